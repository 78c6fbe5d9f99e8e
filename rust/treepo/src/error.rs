//! The one error type of the crate.

use std::fmt;

use crate::ids::{PathId, TreeId};

/// Result with the crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong. A call that returns an error has changed nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// A configuration value is out of its range.
    InvalidConfig {
        /// The field's name.
        field: &'static str,
        /// Its value and what is allowed.
        message: String,
    },
    /// An argument does not fit the state: an unknown index, a wrong length, a finished path.
    InvalidInput(String),
    /// The prompt leaves no room for a completion.
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_len: u32,
        /// Tokens that prompt and completion may have together.
        max_model_len: u32,
    },
    /// The block pool cannot hold one path at its full length.
    PoolTooSmall {
        /// Blocks that one path of this tree needs.
        needed: u32,
        /// Blocks of the pool without the reserved one.
        available: u32,
    },
    /// A log-probability or an entropy is NaN or infinite.
    NotFinite {
        /// The tree.
        tree: TreeId,
        /// The path within the tree.
        path: PathId,
        /// What was not finite, with its value.
        what: String,
    },
    /// A plan array of the caller is shorter than the plan may need.
    BufferTooSmall {
        /// The array's name.
        array: &'static str,
        /// Elements needed.
        needed: usize,
        /// Elements given.
        given: usize,
    },
    /// A law of the data structures does not hold: a fault of this crate.
    LawBroken {
        /// The law's number.
        law: &'static str,
        /// Where and how.
        detail: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidConfig { field, message } => write!(f, "{field}: {message}"),
            Self::InvalidInput(message) => f.write_str(message),
            Self::PromptTooLong { prompt_len, max_model_len } => write!(
                f,
                "prompt of {prompt_len} tokens leaves no room within max_model_len \
                 {max_model_len}; shorten the prompt or raise max_model_len"
            ),
            Self::PoolTooSmall { needed, available } => write!(
                f,
                "one path needs {needed} KV blocks but the pool has {available}; give the KV \
                 cache more memory or shorten prompt and completion"
            ),
            Self::NotFinite { tree, path, what } => {
                write!(f, "{what} for tree {tree}, path {path}; check weights and logits")
            }
            Self::BufferTooSmall { array, needed, given } => {
                write!(f, "plan array {array} has {given} elements, {needed} are needed")
            }
            Self::LawBroken { law, detail } => write!(f, "law {law} is broken: {detail}"),
        }
    }
}

impl std::error::Error for Error {}

/// Returns [`Error::LawBroken`] unless `holds`.
pub(crate) fn law(holds: bool, law: &'static str, detail: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::LawBroken { law, detail: detail() }) }
}
