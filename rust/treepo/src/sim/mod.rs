//! Tests of schedules without an engine (feature `sim`).
//!
//! * [`FakeModel`] stores tokens in the slots of a paged cache and hashes what it reads back, so
//!   that a copy done late, twice or never, or a wrong block table, changes its output.
//! * [`oracle`] grows the same forest without scheduler and memory, and [`rounds`] derives the
//!   search's rules again from a finished forest.
//! * [`Scenario`] draws a run from one seed and [`Scenario::verify`] holds it against both.
//!
//! An embedder can drive its own engine with the same parts.

mod caller;
mod draw;
mod model;
pub mod oracle;
mod report;
pub mod rounds;
mod scenario;
mod simulator;
mod view;

pub use crate::schedule::PlanArrays;
pub use caller::{Caller, Judge, Ruling};
pub use model::{FakeModel, TokenRule};
pub use report::Report;
pub use scenario::Scenario;
pub use simulator::Run;

/// Combines two words, independently of the crate's own keyed numbers.
fn mix(a: u64, b: u64) -> u64 {
    let mut z = a.rotate_left(23) ^ b.wrapping_mul(0x9fb2_1c65_1e98_df25);
    z = (z ^ (z >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    z = (z ^ (z >> 29)).wrapping_mul(0xa076_1d64_78bd_642f);
    z ^ (z >> 32)
}
