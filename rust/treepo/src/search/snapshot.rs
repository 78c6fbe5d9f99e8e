//! A half-grown search as data.

use serde::{Deserialize, Serialize};

use super::state::{Phase, TreeState};
use super::stop::StopRules;
use super::{Event, Search, SearchConfig, TokenTexts};
use crate::error::{Error, Result};
use crate::forest::{Columns, FinishReason, Forest, Tree};
use crate::ids::{PathId, TreeId};
use crate::snapshot::{Content, decode, encode};

/// Everything that decides how a search goes on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SearchSnapshot {
    config: SearchConfig,
    seed: u64,
    policy_version: u32,
    texts: Option<TokenTexts>,
    forest: Columns,
    trees: Vec<TreeState>,
}

impl Search {
    /// The half-grown search with its forest as bytes, for [`Search::from_bytes`]. O(tokens).
    ///
    /// # Errors
    /// `InvalidInput` if it cannot be encoded.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        encode(Content::Search, &self.snapshot())
    }

    /// The search that these bytes are of; it goes on as that one would have gone on, in any
    /// process. O(tokens).
    ///
    /// # Errors
    /// `InvalidInput` for bytes that are damaged, cut short, or of another kind or version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::of_snapshot(decode(Content::Search, bytes)?)
    }

    pub(crate) fn snapshot(&self) -> SearchSnapshot {
        SearchSnapshot {
            config: self.config.clone(),
            seed: self.seed,
            policy_version: self.policy_version,
            texts: self.stop.as_ref().map(|stop| stop.texts().clone()),
            forest: self.forest.columns(),
            trees: self.trees.clone(),
        }
    }

    pub(crate) fn of_snapshot(snapshot: SearchSnapshot) -> Result<Self> {
        let mut search = Self::new(snapshot.config, snapshot.seed)?;
        search.policy_version = snapshot.policy_version;
        search.forest = Forest::from_columns(&snapshot.forest)?;
        let texts = snapshot.texts.filter(|texts| !texts.is_empty());
        if texts.is_some() || !snapshot.trees.is_empty() {
            search.stop = Some(StopRules::new(&search.config, texts)?);
        }
        search.trees = snapshot.trees;
        if search.trees.len() != search.forest.trees().len() {
            return Err(Error::InvalidInput("snapshot: trees without state".into()));
        }
        for (t, (state, tree)) in search.trees.iter_mut().zip(search.forest.trees()).enumerate() {
            complete(state, tree)
                .ok_or_else(|| Error::InvalidInput(format!("snapshot: the state of tree {t}")))?;
        }
        search.num_open = search.trees.iter().filter(|tree| !tree.is_done).count() as u32;
        search.check().map_err(|error| Error::InvalidInput(format!("snapshot: {error}")))?;
        Ok(search)
    }

    /// What a scheduler has to know of a live path that it has not seen grow.
    pub(crate) fn resumed(&self, tree: TreeId, path: PathId) -> Option<Event> {
        match self.trees[tree.index()].path(path).phase {
            Phase::Runs { .. } => Some(Event::Continues(tree, path)),
            Phase::Pending | Phase::Waits => Some(Event::Waits(tree, path)),
            Phase::Finished => None,
        }
    }
}

/// Derives what follows from the forest; none for a state that cannot be this tree's.
fn complete(state: &mut TreeState, tree: &Tree) -> Option<()> {
    let is_live = |(_, path): &(PathId, &crate::Path)| path.finish.is_none();
    let ids = (0..).map(PathId).zip(tree.paths());
    state.live = ids.filter(is_live).map(|(id, _)| id).collect();
    let pruned = tree.paths().iter().filter(|path| path.finish == Some(FinishReason::Pruned));
    let fits = state.paths.len() == tree.paths().len()
        && state.prompt_len == tree.prompt_len
        && state.scores.iter().all(|score| score.path.index() < state.paths.len())
        && state.finished.iter().all(|path| path.index() < state.paths.len())
        && state.num_rewound as usize <= pruned.count();
    if !fits {
        return None;
    }
    let phases = || state.live.iter().map(|&path| state.path(path).phase);
    let num_running = phases().filter(|phase| matches!(phase, Phase::Runs { .. })).count();
    let num_pending = phases().filter(|&phase| phase == Phase::Pending).count();
    (state.num_running, state.num_pending) = (num_running as u32, num_pending as u32);
    Some(())
}
