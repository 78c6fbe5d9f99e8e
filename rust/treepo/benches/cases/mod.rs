//! What the benches measure. A case builds its state outside of the timing; then one run does
//! its operation a known number of times.

mod memory;
mod schedule;
mod search;

use treepo::{Result, SampledToken};

/// Does the operation [`Case::num_items`] times; called once.
pub(crate) type Run = Box<dyn FnMut()>;

/// One operation.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Operations of a run; figures are given for one.
    pub(crate) num_items: u32,
    build: fn() -> Result<Run>,
}

impl Case {
    /// A state that a run can start from. The operation is warm.
    pub(crate) fn build(&self) -> Run {
        (self.build)().expect("the case's limits suffice for it")
    }
}

/// All cases. `fork` is a fork in forest and memory, `free` frees the paths of a tree one by one,
/// `append` is a token in forest and memory, `plan_commit` a step of decode rows with the given
/// blocks a row, `push` a token in the search alone.
pub(crate) const CASES: [Case; 12] = [
    Case { name: "fork_64", num_items: memory::NUM_FORKS, build: || memory::fork(64) },
    Case { name: "fork_6250", num_items: memory::NUM_FORKS, build: || memory::fork(6_250) },
    Case { name: "fork_memory_64", num_items: memory::NUM_FORKS, build: || memory::fork_alone(64) },
    Case {
        name: "fork_memory_6250",
        num_items: memory::NUM_FORKS,
        build: || memory::fork_alone(6_250),
    },
    Case { name: "free_1088", num_items: memory::NUM_LEAVES, build: memory::free },
    Case { name: "append", num_items: memory::NUM_APPENDS, build: memory::append },
    Case {
        name: "plan_commit_256_12",
        num_items: schedule::STEPS,
        build: || schedule::steps(256, 12),
    },
    Case {
        name: "plan_commit_256_6250",
        num_items: schedule::STEPS,
        build: || schedule::steps(256, 6_250),
    },
    Case {
        name: "plan_commit_4096_12",
        num_items: schedule::STEPS,
        build: || schedule::steps(4_096, 12),
    },
    Case {
        name: "plan_commit_4096_6250",
        num_items: schedule::STEPS,
        build: || schedule::steps(4_096, 6_250),
    },
    Case { name: "push", num_items: search::NUM_PUSHES, build: search::push },
    Case { name: "push_tree", num_items: search::NUM_TREE_TOKENS, build: search::push_tree },
];

/// Tokens of a block.
const BLOCK_SIZE: u32 = 16;

const TOKEN: SampledToken = SampledToken { id: 9, logprob: -0.5, entropy: 0.7 };

/// A prompt that shares no block with that of another tree.
fn prompt(tree: u32, len: u32) -> Vec<u32> {
    let mut prompt: Vec<u32> = (0..len).collect();
    prompt[0] = len + tree;
    prompt
}
