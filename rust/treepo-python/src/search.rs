//! `Search` at segment granularity.

use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use treepo::{PathId, TreeId};

use crate::argument::{Vector, int};
use crate::config::SearchConfig;
use crate::error::IntoPy;
use crate::forest::{Forest, sampled_tokens};

/// The tree search, over any function that continues token sequences.
#[pyclass(module = "treepo.core")]
#[derive(Debug)]
pub(crate) struct Search(treepo::Search);

#[pymethods]
impl Search {
    #[new]
    #[pyo3(signature = (config, *, seed=0))]
    fn new(config: &SearchConfig, #[pyo3(from_py_with = int)] seed: u64) -> PyResult<Self> {
        Ok(Self(treepo::Search::new(config.0.clone(), seed).into_py()?))
    }

    fn add_tree(
        &mut self,
        #[pyo3(from_py_with = int)] key: u64,
        prompt: Vector<'_, u32>,
    ) -> PyResult<u32> {
        Ok(self.0.add_tree(key, prompt.token_ids()?).into_py()?.0)
    }

    fn segments<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<i32>>> {
        let segments = self.0.segments();
        let row = |s: &treepo::Segment| {
            [s.tree.0, s.path.0, s.max_new_tokens.min(i32::MAX as u32)].map(|n| n as i32)
        };
        let flat: Vec<i32> = segments.iter().flat_map(row).collect();
        flat.into_pyarray(py).reshape([segments.len(), 3])
    }

    fn tokens<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = int)] tree: u32,
        #[pyo3(from_py_with = int)] path: u32,
    ) -> PyResult<Bound<'py, PyArray1<u32>>> {
        let (tree, path) = (TreeId(tree), PathId(path));
        let tokens = self.0.forest().tree(tree).and_then(|tree| tree.tokens(path)).into_py()?;
        Ok(tokens.into_pyarray(py))
    }

    fn complete_segment(
        &mut self,
        #[pyo3(from_py_with = int)] tree: u32,
        #[pyo3(from_py_with = int)] path: u32,
        token_ids: Vector<'_, u32>,
        logprobs: Vector<'_, f32>,
        entropies: Vector<'_, f32>,
    ) -> PyResult<()> {
        let (ids, logprobs) = (token_ids.token_ids()?, logprobs.as_slice()?);
        let tokens = sampled_tokens(ids, logprobs, entropies.as_slice()?)?;
        self.0.complete_segment(TreeId(tree), PathId(path), &tokens).into_py()
    }

    fn is_done(&self) -> bool {
        self.0.is_done()
    }

    fn forest(&self) -> Forest {
        Forest(self.0.forest().clone())
    }
}
