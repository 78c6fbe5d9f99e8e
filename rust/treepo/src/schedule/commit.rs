//! The end of a step: sampled tokens go into the forest, and what follows from them.

use super::{Fed, Sampled, Scheduler};
use crate::error::{Error, Result};
use crate::forest::SampledToken;
use crate::ids::{PathId, TreeId};

impl Scheduler {
    /// Takes the sampled tokens of the open plan, one for each sample in the plan's order. Returns
    /// the number of trees that are done since the plan. O(samples + what ends).
    ///
    /// # Errors
    /// `InvalidInput` without an open plan or for a wrong number of tokens, `NotFinite` for a bad
    /// log-probability or entropy; the plan stays open and nothing has changed then.
    pub fn commit_step(&mut self, tokens: &[SampledToken]) -> Result<u32> {
        self.check_commit(tokens)?;
        let num_finished = self.finished.len();
        let mut fed = std::mem::take(&mut self.plan.fed);
        let mut samples = std::mem::take(&mut self.plan.samples);
        self.plan.is_open = false;
        self.memory.finish_copies()?;
        for &Fed { tree, path, end } in &fed {
            let computed = self.memory.computed(tree, path).max(end);
            self.memory.set_computed(tree, path, computed);
        }
        self.attach_followers(&samples)?;
        for &Sampled { tree, path, .. } in &samples {
            self.end_prefill(tree, path);
        }
        for (&Sampled { tree, path, .. }, &token) in samples.iter().zip(tokens) {
            self.trees[tree.index()].num_sampled += 1;
            self.search.push_token(tree, path, token)?;
        }
        self.follow_events()?;
        self.stats.steps += 1;
        self.stats.decoded_tokens += samples.len() as u64;
        fed.clear();
        samples.clear();
        self.plan.fed = fed;
        self.plan.samples = samples;
        Ok((self.finished.len() - num_finished) as u32)
    }

    /// The paths that the open plan samples, in the order of its samples.
    pub fn sampled_paths(&self) -> impl Iterator<Item = (TreeId, PathId)> + '_ {
        self.plan.samples.iter().map(|sample| (sample.tree, sample.path))
    }

    fn check_commit(&self, tokens: &[SampledToken]) -> Result<()> {
        let num_samples = self.plan.samples.len();
        if !self.plan.is_open {
            return Err(Error::InvalidInput("there is no plan to commit".into()));
        }
        if tokens.len() != num_samples {
            let message = format!("{} tokens for a plan of {num_samples} samples", tokens.len());
            return Err(Error::InvalidInput(message));
        }
        let pairs = self.plan.samples.iter().zip(tokens);
        pairs.into_iter().try_for_each(|(sample, token)| token.check(sample.tree, sample.path))
    }

    /// Gives the paths that were sampled from another path's row their memory, and lets those that
    /// found no row wait for one.
    fn attach_followers(&mut self, samples: &[Sampled]) -> Result<()> {
        for &Sampled { tree, path, leader } in samples {
            if path != leader {
                let len = self.search.forest().path(tree, path)?.at;
                self.memory.share(tree, path, leader, len)?;
                self.stats.shared_samples += 1;
                continue;
            }
            while let Some(follower) = self.pop_follower(tree, leader) {
                let len = self.search.forest().path(tree, follower)?.at;
                self.memory.share(tree, follower, leader, len)?;
                self.wait(tree, follower);
            }
        }
        Ok(())
    }
}
