//! Tree sampling for language models, without an engine.
//!
//! Answers to one prompt are sampled as a tree. This crate decides: which paths grow
//! ([`Search`]), where their keys and values live ([`memory`]), and what the next forward pass
//! computes ([`Scheduler`]). It runs no model; the caller runs the forward pass and reports the
//! sampled tokens.
//!
//! Two ways to embed it:
//! * [`Search`] at segment granularity, over any function that continues a token sequence;
//! * [`Scheduler`] at token granularity, over an engine with a paged key-value cache.
//!
//! ```
//! use treepo::{Search, SearchConfig, SampledToken};
//!
//! let config = SearchConfig { width: 4, segment_len: 2, max_depth: 2, ..SearchConfig::default() };
//! let mut search = Search::new(config, 0)?;
//! search.add_tree(7, &[1, 2, 3])?;
//! while let Some(segment) = search.segments().first().copied() {
//!     let token = SampledToken { id: 9, logprob: -0.5, entropy: 0.7 };
//!     search.push_token(segment.tree, segment.path, token)?;
//! }
//! assert_eq!(search.forest().num_paths(), 4);
//! # Ok::<(), treepo::Error>(())
//! ```
//!
//! Everything is deterministic: the same inputs give the same forest and the same plans, byte for
//! byte. There are no threads, no clock, no I/O and no hash maps.
#![forbid(unsafe_code)]

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod error;
pub mod forecast;
pub mod forest;
mod ids;
mod key;
pub mod memory;
pub mod schedule;
pub mod search;
#[cfg(feature = "sim")]
pub mod sim;
mod snapshot;

pub use error::{Error, Result};
pub use forest::{
    Dependence, FinishReason, Forest, ForkOrigin, Path, PathToken, SampledToken, TokenKind, Tree,
};
pub use ids::{BlockId, PathId, TreeId};
pub use key::{Purpose, Stream};
pub use memory::{BlockPool, Memory};
pub use schedule::{
    GroupBuffers, GroupCapacity, PlanArrays, PlanBuffers, PlanCapacity, PlanSizes, Scheduler,
    SchedulerConfig, Stats,
};
pub use search::{FallbackFrom, Preset, Search, SearchConfig, Segment, TokenTexts, Verdict};
