//! Published searches as configurations.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{
    BranchBy, BranchConfig, BudgetConfig, FallbackAt, FallbackConfig, FallbackFrom, Remainder,
    Repetition, SearchConfig, StopConfig, Transfer,
};
use crate::error::{Error, Result};

/// A published search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// `TreePO` as the paper describes its best run (arXiv 2508.17445, sections 2 and 3): width 16,
    /// 14 segments of 512 tokens, branch factor 2 with budget transfer, the first divergence drawn
    /// of 2 to 8 ("more init"), fallback from answered leaves to a random segment boundary.
    Treepo,
    /// `TreePO` as the published training script samples in effect. It differs from the paper: the
    /// first divergence is 2 (its setting for more is read from the wrong place), the remainder of
    /// an even split goes to the last path, a box ends nothing, and a piece of 32 characters that
    /// occurs 8 times ends a path. Bytes stand for characters, and repetition is looked for in the
    /// last 512 tokens, which is the newest segment. Its faults that splice or overrun texts are
    /// not reproduced.
    TreepoReleased,
    /// `EPTree` of `TreeRL` (arXiv 2506.11902): 6 chains of full length, then 2 continuations each
    /// from the 2 tokens with the largest surprisal of every chain: 6 (1 + 2 * 2) = 30 leaves. A
    /// chain that is shorter than 2 tokens is made up for by forks of the next round.
    Treerl,
    /// `SPO-tree` (arXiv 2505.23564), 6-6-6: three levels of 6 children and segments of 600 tokens,
    /// at most 216 leaves. Paths that end early are not replaced. The published last segment runs
    /// to the end of the answer; here it has 600 tokens like the others.
    SpoTree,
    /// `Tree-GRPO` (arXiv 2509.21240): chains that are expanded at random nodes. The published
    /// search grows several trees a prompt over tool calls; here one tree starts 4 chains at the
    /// prompt and then cuts each leaf in turn at a random segment boundary, to 16 leaves.
    TreeGrpo,
    /// Independent completions: 16 of up to 7168 tokens.
    Flat,
}

/// A row of the table: name, source, configuration.
struct Row {
    preset: Preset,
    name: &'static str,
    source: &'static str,
    config: fn() -> SearchConfig,
}

static TABLE: [Row; 6] = [
    Row {
        preset: Preset::Treepo,
        name: "treepo",
        source: "arXiv 2508.17445, algorithm 1 and section 3",
        config: || SearchConfig {
            initial_divergence: 2,
            max_initial_divergence: Some(8),
            ..treepo_sizes()
        },
    },
    Row {
        preset: Preset::TreepoReleased,
        name: "treepo_released",
        source: "github.com/multimodal-art-projection/TreePO, recipe/treepo/run_treepo_train.sh",
        config: || SearchConfig {
            initial_divergence: 2,
            branch: BranchConfig { remainder: Remainder::Last, ..BranchConfig::default() },
            fallback: FallbackConfig {
                at: FallbackAt::Window,
                window: Some(512),
                ..FallbackConfig::default()
            },
            stop: StopConfig {
                repetition: Repetition::Bytes,
                repetition_len: 32,
                repetition_count: 8,
                repetition_window: 512,
                ..StopConfig::default()
            },
            ..treepo_sizes()
        },
    },
    Row {
        preset: Preset::Treerl,
        name: "treerl",
        source: "arXiv 2506.11902, EPTree (M, N, L, T) = (6, 2, 1, 2)",
        config: || SearchConfig {
            width: 30,
            segment_len: 8192,
            max_depth: 1,
            branch_factor: 1,
            initial_divergence: 6,
            branch: BranchConfig {
                by: BranchBy::TokenSurprisal,
                num_positions: 2,
                copies: 2,
                ..BranchConfig::default()
            },
            fallback: nothing(),
            ..SearchConfig::default()
        },
    },
    Row {
        preset: Preset::SpoTree,
        name: "spo_tree",
        source: "arXiv 2505.23564, tree 6-6-6",
        config: || SearchConfig {
            width: 216,
            segment_len: 600,
            max_depth: 3,
            branch_factor: 6,
            initial_divergence: 6,
            budget: BudgetConfig { transfer: Transfer::Off, ..BudgetConfig::default() },
            fallback: nothing(),
            ..SearchConfig::default()
        },
    },
    Row {
        preset: Preset::TreeGrpo,
        name: "tree_grpo",
        source: "arXiv 2509.21240, random expansion",
        config: || SearchConfig {
            width: 16,
            segment_len: 512,
            max_depth: 14,
            branch_factor: 1,
            initial_divergence: 4,
            budget: BudgetConfig { transfer: Transfer::Off, ..BudgetConfig::default() },
            fallback: FallbackConfig {
                from: FallbackFrom::All,
                copies: Some(1),
                ..FallbackConfig::default()
            },
            ..SearchConfig::default()
        },
    },
    Row {
        preset: Preset::Flat,
        name: "flat",
        source: "independent sampling",
        config: || SearchConfig::flat(16, 14 * 512),
    },
];

fn treepo_sizes() -> SearchConfig {
    SearchConfig {
        width: 16,
        segment_len: 512,
        max_depth: 14,
        branch_factor: 2,
        ..SearchConfig::default()
    }
}

fn nothing() -> FallbackConfig {
    FallbackConfig { from: FallbackFrom::Nothing, ..FallbackConfig::default() }
}

impl Preset {
    /// All presets.
    pub const ALL: [Self; 6] = [
        Self::Treepo,
        Self::TreepoReleased,
        Self::Treerl,
        Self::SpoTree,
        Self::TreeGrpo,
        Self::Flat,
    ];

    fn row(self) -> &'static Row {
        TABLE.iter().find(|row| row.preset == self).unwrap_or(&TABLE[0])
    }

    /// The name.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The paper or code that it follows.
    pub fn source(self) -> &'static str {
        self.row().source
    }

    /// The configuration. It has no end-of-sequence token; the model's belong into it.
    pub fn config(self) -> SearchConfig {
        (self.row().config)()
    }

    /// The preset with this name.
    ///
    /// # Errors
    /// `InvalidConfig` naming the known ones.
    pub fn from_name(name: &str) -> Result<Self> {
        let found = TABLE.iter().find(|row| row.name == name);
        found.map(|row| row.preset).ok_or_else(|| {
            let known = TABLE.iter().map(|row| row.name).collect::<Vec<_>>().join(", ");
            let message = format!("must be one of {known}, got {name:?}");
            Error::InvalidConfig { field: "preset", message }
        })
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Preset {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::from_name(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::{Alignment, Boxed, Opportunistic, Prefer, PruneBy, Refill, Total};

    #[test]
    fn every_preset_is_valid_and_has_its_row() {
        for preset in Preset::ALL {
            assert_eq!(preset.config().check(), Ok(()), "{preset}");
            assert_eq!(Preset::from_name(preset.name()), Ok(preset));
            assert_eq!(preset.row().preset, preset);
            assert!(!preset.source().is_empty());
        }
        assert_eq!(TABLE.len(), Preset::ALL.len());
    }

    #[test]
    fn no_two_presets_are_equal() {
        for (i, a) in Preset::ALL.iter().enumerate() {
            for b in &Preset::ALL[..i] {
                assert_ne!(a.config(), b.config(), "{a} and {b}");
            }
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let error = Preset::from_name("grpo").map_err(|error| error.to_string());
        let expected = "preset: must be one of treepo, treepo_released, treerl, spo_tree, \
                        tree_grpo, flat, got \"grpo\"";
        assert_eq!(error, Err(expected.to_owned()));
    }

    #[test]
    fn only_the_released_script_departs_from_what_its_paper_says() {
        for preset in Preset::ALL {
            let config = preset.config();
            let is_released = preset == Preset::TreepoReleased;
            assert_eq!(config.branch.remainder == Remainder::Last, is_released, "{preset}");
            assert_eq!(config.stop.repetition != Repetition::Ignored, is_released, "{preset}");
            assert_eq!(config.fallback.at == FallbackAt::Window, is_released, "{preset}");
            assert_eq!(config.fallback.alignment, Alignment::Segment);
            assert_eq!(config.stop.boxed, Boxed::Ignored);
            assert_eq!(config.opportunistic, Opportunistic::Off);
            assert_eq!(config.prune.by, PruneBy::Nothing);
            assert_eq!(config.branch.prefer, Prefer::Low);
            let (refill, total) = (config.fallback.refill, config.budget.total);
            assert_eq!((refill, total), (Refill::Late, Total::Trajectories));
        }
        let (paper, released) = (Preset::Treepo.config(), Preset::TreepoReleased.config());
        assert_eq!((paper.initial_divergence, paper.max_initial_divergence), (2, Some(8)));
        assert_eq!((released.initial_divergence, released.max_initial_divergence), (2, None));
        assert_eq!(paper.max_completion_len(), 7 * 1024);
    }
}
