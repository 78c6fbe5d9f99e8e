//! What the rules that are switched on may know: the base of every statement about bias.

use crate::forest::Dependence;

use super::{
    BranchBy, FallbackFrom, Opportunistic, PruneBy, Refill, SearchConfig, Transfer, Verdicts,
};

/// A rule that is switched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// The part of the configuration that it belongs to.
    pub name: &'static str,
    /// What it does.
    pub rule: &'static str,
    /// What it depends on.
    pub dependence: Dependence,
}

impl SearchConfig {
    /// The rules that are switched on and decide which paths there are.
    pub fn policies(&self) -> Vec<Policy> {
        let policies = [
            self.branch_policy(),
            self.fallback_policy(),
            self.prune_policy(),
            (self.verdicts == Verdicts::Segments).then_some(Policy {
                name: "verdicts",
                rule: "the caller judges each segment and may give its path up",
                dependence: Dependence::SampledToken,
            }),
            (self.opportunistic == Opportunistic::StepTokens).then_some(Policy {
                name: "opportunistic",
                rule: "the open trees share the tokens of a segment",
                dependence: Dependence::Prefix,
            }),
        ];
        policies.into_iter().flatten().collect()
    }

    /// The worst dependence of the rules that are switched on.
    pub fn dependence(&self) -> Dependence {
        let policies = self.policies();
        policies.iter().map(|policy| policy.dependence).max().unwrap_or(Dependence::Prefix)
    }

    /// `TokenEntropyAbove` looks at distributions alone where the width leaves room for all forks.
    /// Where it binds, which positions get the last places is decided when later tokens are known.
    fn branch_policy(&self) -> Option<Policy> {
        use Dependence::{Prefix, SampledToken};
        let (rule, dependence) = match self.branch.by {
            BranchBy::Even => ("ends of live paths, evenly", Prefix),
            BranchBy::PathLogprob => ("ends of live paths, by log-probability", Prefix),
            BranchBy::MeanLogprob => ("ends of live paths, by mean log-probability", Prefix),
            BranchBy::SegmentLogprob => {
                ("ends of live paths, by the segment's log-probability", Prefix)
            }
            BranchBy::SegmentEntropy => ("ends of live paths, by the segment's entropy", Prefix),
            BranchBy::Score => ("ends of live paths, by the caller's score", Prefix),
            BranchBy::TokenSurprisal => ("tokens of largest surprisal", SampledToken),
            BranchBy::TokenEntropy => ("tokens of largest entropy", SampledToken),
            BranchBy::TokenEntropyAbove => ("tokens of entropy above a threshold", SampledToken),
        };
        let is_token_rule = super::positions::is_token_rule(self.branch.by);
        let forks = if is_token_rule {
            self.branch.num_positions > 0
        } else {
            let passes_on = self.budget.transfer == Transfer::On;
            let most = self.max_branch_factor.unwrap_or(self.branch_factor);
            self.max_depth > 1 && (most > 1 || passes_on)
        };
        forks.then_some(Policy { name: "branch", rule, dependence })
    }

    fn fallback_policy(&self) -> Option<Policy> {
        let rule = match self.fallback.refill {
            Refill::Late => "leaves are cut and continued again when no path lives",
            Refill::Early => "leaves are cut and continued again when leaves will be missing",
        };
        let dependence = Dependence::SampledToken;
        let falls_back = self.fallback.from != FallbackFrom::Nothing;
        falls_back.then_some(Policy { name: "fallback", rule, dependence })
    }

    fn prune_policy(&self) -> Option<Policy> {
        let rule = match self.prune.by {
            PruneBy::Nothing => return None,
            PruneBy::Logprob => "paths of low log-probability are given up",
            PruneBy::Entropy => "paths of high entropy are given up",
            PruneBy::Score => "paths of low score are given up",
        };
        Some(Policy { name: "prune", rule, dependence: Dependence::SampledToken })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::Preset;

    fn without_fallback(by: BranchBy) -> SearchConfig {
        let mut config = SearchConfig::default();
        config.fallback.from = FallbackFrom::Nothing;
        config.branch.by = by;
        config
    }

    #[test]
    fn forks_at_ends_depend_on_the_prefix_and_forks_at_sampled_tokens_do_not() {
        use BranchBy::{Even, Score, SegmentEntropy, TokenEntropy, TokenEntropyAbove};
        for by in [Even, Score, SegmentEntropy] {
            assert_eq!(without_fallback(by).dependence(), Dependence::Prefix, "{by:?}");
        }
        for by in [BranchBy::TokenSurprisal, TokenEntropy, TokenEntropyAbove] {
            assert_eq!(without_fallback(by).dependence(), Dependence::SampledToken, "{by:?}");
        }
    }

    #[test]
    fn fallback_and_pruning_look_at_what_was_sampled() {
        assert_eq!(SearchConfig::default().dependence(), Dependence::SampledToken);
        let mut config = without_fallback(BranchBy::Even);
        config.prune.by = PruneBy::Entropy;
        let names: Vec<_> = config.policies().iter().map(|policy| policy.name).collect();
        assert_eq!(names, ["branch", "prune"]);
        assert_eq!(config.dependence(), Dependence::SampledToken);
    }

    #[test]
    fn a_flat_rollout_has_no_policy() {
        assert_eq!(Preset::Flat.config().policies(), []);
        assert_eq!(Preset::Flat.config().dependence(), Dependence::Prefix);
    }
}
