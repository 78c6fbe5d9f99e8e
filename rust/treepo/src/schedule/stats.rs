//! Counters of the scheduler.

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters since the scheduler was made.
        #[derive(
            Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize,
        )]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Stats {
            /// Names and values, in order.
            pub fn entries(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

stats! {
    /// Steps committed.
    steps,
    /// Tokens sampled.
    decoded_tokens,
    /// Tokens sampled from logits that another path's row computed.
    shared_samples,
    /// Tokens fed to the model.
    fed_tokens,
    /// Prompt tokens whose keys and values another tree had resident.
    shared_prefix_tokens,
    /// Fed tokens whose keys and values had been computed before and lost since: to eviction, with
    /// a path that was given up, with the end of a leaf, or with all memory.
    recomputed_tokens,
    /// Fed tokens whose keys and values were resident and only their logits were missing.
    refed_tokens,
    /// Rows that computed a part of a prefill only.
    chunked_prefills,
    /// Paths that lost their row to another one.
    preemptions,
    /// Blocks, and holds on shared ones, that paths lost to others.
    evictions,
    /// Blocks, and holds on shared ones, that leaves gave up because the search will not fork
    /// them there.
    trimmed_blocks,
    /// Partly filled blocks copied.
    block_copies,
    /// Partly filled blocks adopted without a copy.
    block_adoptions,
    /// Paths forked by branching.
    branches,
    /// Paths forked by fallback.
    fallbacks,
    /// Paths that were given up.
    prunes,
    /// Rows of all steps, taken or not.
    row_steps,
    /// Rows that nobody was in, summed over the steps.
    idle_row_steps,
    /// Of these, rows that a path could have had whose round had not ended: at most as many as
    /// there are such paths.
    round_wait_row_steps,
    /// The most blocks resident after a plan.
    peak_blocks,
}
