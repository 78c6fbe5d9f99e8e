//! What a configuration will cost, before anything runs.
//!
//! The forecast grows trees with the real search and scheduler, over a model that is nothing but
//! ending rates. So it holds for every rule and every limit, with the sampling error that it states.

use serde::Serialize;

use crate::error::{Error, Result};
use crate::forest::{FinishReason, Forest, ForkOrigin, Path, SampledToken, Tree};
use crate::ids::PathId;
use crate::key::{Purpose, Stream};
use crate::schedule::{PlanArrays, Scheduler, SchedulerConfig};
use crate::search::{SearchConfig, TokenTexts, Verdict, boundary};

/// Mean of the exponential distributions that stand for surprisal and entropy, in nats. Rules that
/// read them see independent numbers of a plausible size. Where paths are pruned by confidence, how
/// many are depends on this assumption.
const MEAN_NATS: f64 = 0.5;

/// Tokens that the model draws from evenly.
const NUM_TOKENS: u32 = 50_000;

/// What a forecast assumes.
#[derive(Debug, Clone, PartialEq)]
pub struct Assumptions {
    /// Probability that a path ends within its next segment, by the number of segments that it has;
    /// the last one holds for all deeper ones. Within a segment every place of the end is as likely.
    pub rates: Vec<f64>,
    /// Tokens of a prompt.
    pub prompt_len: u32,
    /// Trees that are sampled together.
    pub num_trees: u32,
}

macro_rules! forecast {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What a configuration will cost: means a tree, and totals where it says so.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
        pub struct Forecast {
            $($(#[$doc])* pub $name: f64,)*
        }

        impl Forecast {
            /// Names and values, in order.
            pub fn entries(&self) -> Vec<(&'static str, f64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

forecast! {
    /// Tokens sampled, each once.
    decoded_tokens,
    /// Standard error of `decoded_tokens`.
    decoded_tokens_error,
    /// Tokens of all completions together: what a flat rollout samples for as many.
    returned_tokens,
    /// `returned_tokens / decoded_tokens`: how much faster than a flat rollout the tree can be at
    /// most, if a decoded token costs the same in both. Rows that stay empty and prefix tokens that
    /// are computed again take from it.
    speedup_bound,
    /// Paths, one for each leaf.
    leaves,
    /// Leaves that end with an end of sequence.
    leaves_stop,
    /// Leaves at the length limit.
    leaves_length,
    /// Leaves at the depth limit.
    leaves_depth,
    /// Leaves whose text repeats itself.
    leaves_repetition,
    /// Leaves that were given up.
    leaves_pruned,
    /// Paths that start at the prompt from the first.
    initial_paths,
    /// Paths forked by branching.
    branches,
    /// Paths forked by fallback.
    fallbacks,
    /// Mean segments from the prompt to a leaf.
    leaf_depth,
    /// Tokens fed for the second time, as memory was short.
    recomputed_tokens,
    /// Forward passes, in total.
    steps,
    /// Mean rows of a pass.
    rows,
    /// Share of the rows that nobody was in.
    idle_rows,
    /// Share of the rows that were empty while a path waited for its round.
    round_wait,
    /// The most KV blocks resident, in total.
    peak_blocks,
}

/// Forecasts the cost of trees under this search within these limits. O(decoded tokens), no more
/// than microseconds a token.
///
/// # Errors
/// `InvalidConfig` for rates outside 0 to 1 or no rates, no trees, and whatever search or scheduler
/// refuse.
pub fn forecast(
    search: &SearchConfig,
    limits: SchedulerConfig,
    assumptions: &Assumptions,
    seed: u64,
) -> Result<Forecast> {
    check(assumptions)?;
    let mut search = search.clone();
    if search.eos_token_ids.is_empty() {
        search.eos_token_ids.push(0);
    }
    let eos = search.eos_token_ids[0];
    let segment_len = f64::from(search.segment_len);
    let model = Model {
        rates: assumptions.rates.clone(),
        segment_len,
        eos,
        eos_token_ids: search.eos_token_ids.clone(),
    };
    let mut scheduler = Scheduler::new(search, limits, seed)?;
    scheduler.set_texts(TokenTexts::new([""]))?;
    for t in 0..assumptions.num_trees {
        // tokens of its own: a forecast counts on no common prefix
        let prompt: Vec<u32> = (0..assumptions.prompt_len).map(|i| t.wrapping_add(i)).collect();
        scheduler.add_tree(u64::from(t), &prompt)?;
    }
    run(&mut scheduler, &model)?;
    Ok(summarise(&scheduler))
}

fn check(assumptions: &Assumptions) -> Result<()> {
    let invalid = |field, message| Err(Error::InvalidConfig { field, message });
    if assumptions.rates.is_empty() {
        return invalid("rates", "must have at least one rate".into());
    }
    if let Some(rate) = assumptions.rates.iter().find(|rate| !(0.0..=1.0).contains(*rate)) {
        return invalid("rates", format!("must lie between 0 and 1, got {rate}"));
    }
    let counts = [("num_trees", assumptions.num_trees), ("prompt_len", assumptions.prompt_len)];
    match counts.iter().find(|(_, count)| *count == 0) {
        Some((field, _)) => invalid(field, "must be at least 1, got 0".into()),
        None => Ok(()),
    }
}

/// A model that knows how often paths end.
struct Model {
    /// Probability that a segment ends its path, by depth.
    rates: Vec<f64>,
    segment_len: f64,
    eos: u32,
    eos_token_ids: Vec<u32>,
}

impl Model {
    /// A token that ends nothing, one of so many that no text repeats itself.
    fn other(&self, numbers: Stream) -> u32 {
        let is_other = |id: &u32| !self.eos_token_ids.contains(id);
        let first = numbers.below(Purpose::Token, 2, NUM_TOKENS);
        (first..=u32::MAX).find(is_other).unwrap_or(first)
    }

    /// The next token of a path. The place of an end within its segment is drawn evenly, so the
    /// hazard of token j of L at rate r is `(r / L) / (1 - r j / L)`.
    fn token(&self, tree: &Tree, id: PathId, uniform: f64) -> Result<SampledToken> {
        let path = tree.path(id)?;
        let depth = (path.depth() as usize).min(self.rates.len() - 1);
        let start = boundary(tree, id, path.len());
        let per_token = self.rates[depth] / self.segment_len;
        let hazard = per_token / (1.0 - per_token * f64::from(path.len() - start));
        let numbers = Stream(uniform.to_bits());
        let nats = |counter| {
            let uniform = numbers.uniform(Purpose::Token, counter);
            -MEAN_NATS * (1.0 - uniform).ln()
        };
        let id = if uniform < hazard { self.eos } else { self.other(numbers) };
        Ok(SampledToken { id, logprob: -nats(0) as f32, entropy: nats(1) as f32 })
    }
}

fn run(scheduler: &mut Scheduler, model: &Model) -> Result<()> {
    let mut arrays = PlanArrays::new(&scheduler.capacity());
    let (mut tokens, mut ended) = (Vec::new(), Vec::new());
    while !scheduler.is_done() {
        let sizes = scheduler.plan_step(&mut arrays.buffers())?;
        tokens.clear();
        for ((tree, path), &uniform) in scheduler.sampled_paths().zip(&arrays.uniforms) {
            tokens.push(model.token(scheduler.forest().tree(tree)?, path, uniform)?);
        }
        if sizes.num_rows > 0 {
            scheduler.commit_step(&tokens)?;
        }
        ended.clear();
        ended.extend(scheduler.ended_segments());
        for &(tree, path) in &ended {
            scheduler.report(tree, path, Verdict::Continue { score: 0.0 })?;
        }
    }
    Ok(())
}

fn summarise(scheduler: &Scheduler) -> Forecast {
    let (forest, stats) = (scheduler.forest(), scheduler.stats());
    let num_trees = forest.trees().len() as f64;
    let count = |is: &dyn Fn(&Path) -> bool| {
        forest.trees().iter().flat_map(Tree::paths).filter(|path| is(path)).count() as f64
            / num_trees
    };
    let ends = |reason| count(&|path| path.finish == Some(reason));
    let starts = |origin| count(&|path| path.origin == origin);
    let (decoded, error) = mean_and_error(forest);
    let returned = returned_tokens(forest) / num_trees;
    let leaves = count(&|_| true);
    let share = |part: u64| part as f64 / stats.row_steps.max(1) as f64;
    let depths: u64 =
        forest.trees().iter().flat_map(Tree::paths).map(|path| u64::from(path.depth())).sum();
    Forecast {
        decoded_tokens: decoded,
        decoded_tokens_error: error,
        returned_tokens: returned,
        speedup_bound: returned / decoded,
        leaves,
        leaves_stop: ends(FinishReason::Stop),
        leaves_length: ends(FinishReason::Length),
        leaves_depth: ends(FinishReason::Depth),
        leaves_repetition: ends(FinishReason::Repetition),
        leaves_pruned: ends(FinishReason::Pruned),
        initial_paths: starts(ForkOrigin::Root) + starts(ForkOrigin::Initial),
        branches: starts(ForkOrigin::Branch),
        fallbacks: starts(ForkOrigin::Fallback),
        leaf_depth: depths as f64 / num_trees / leaves,
        recomputed_tokens: stats.recomputed_tokens as f64 / num_trees,
        steps: stats.steps as f64,
        rows: (stats.row_steps - stats.idle_row_steps) as f64 / stats.steps.max(1) as f64,
        idle_rows: share(stats.idle_row_steps),
        round_wait: share(stats.round_wait_row_steps),
        peak_blocks: stats.peak_blocks as f64,
    }
}

/// Sampled tokens a tree, and the standard error of their mean.
fn mean_and_error(forest: &Forest) -> (f64, f64) {
    let decoded = |tree: &Tree| {
        let own: u64 = tree.paths().iter().map(|path| u64::from(path.own_len())).sum();
        (own - u64::from(tree.prompt_len)) as f64
    };
    let num_trees = forest.trees().len() as f64;
    let mean = forest.trees().iter().map(decoded).sum::<f64>() / num_trees;
    let square = |tree| (decoded(tree) - mean).powi(2);
    let variance = forest.trees().iter().map(square).sum::<f64>() / (num_trees - 1.0).max(1.0);
    (mean, (variance / num_trees).sqrt())
}

fn returned_tokens(forest: &Forest) -> f64 {
    let completion = |tree: &Tree| {
        let completions = tree.paths().iter().map(|path| u64::from(path.len() - tree.prompt_len));
        completions.sum::<u64>()
    };
    forest.trees().iter().map(completion).sum::<u64>() as f64
}
