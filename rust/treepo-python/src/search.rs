//! `Search` at segment granularity.

use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use treepo::{PathId, TreeId};

use crate::argument::{self, Vector, int};
use crate::config::SearchConfig;
use crate::error::IntoPy;
use crate::forest::{Forest, copy_of, finish_reason, pairs, sampled_tokens, tokens_of};

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
        tokens_of(py, self.0.forest(), tree, path)
    }

    fn complete_segment(
        &mut self,
        #[pyo3(from_py_with = int)] tree: u32,
        #[pyo3(from_py_with = int)] path: u32,
        token_ids: Vector<'_, u32>,
        logprobs: Vector<'_, f32>,
        entropies: Vector<'_, f32>,
    ) -> PyResult<()> {
        let tokens = sampled_tokens(&token_ids, &logprobs, &entropies)?;
        self.0.complete_segment(TreeId(tree), PathId(path), &tokens).into_py()
    }

    fn set_texts(&mut self, texts: &Bound<'_, PyAny>) -> PyResult<()> {
        self.0.set_texts(argument::texts(texts)?).into_py()
    }

    fn ended_segments<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<i32>>> {
        pairs(py, self.0.ended_segments())
    }

    #[pyo3(signature = (tree, path, verdict="continue", *, score=0.0))]
    fn report(
        &mut self,
        #[pyo3(from_py_with = int)] tree: u32,
        #[pyo3(from_py_with = int)] path: u32,
        verdict: &str,
        score: f32,
    ) -> PyResult<()> {
        let verdict = argument::verdict(verdict, score)?;
        self.0.report(TreeId(tree), PathId(path), verdict).into_py()
    }

    fn fork(
        &mut self,
        #[pyo3(from_py_with = int)] tree: u32,
        #[pyo3(from_py_with = int)] path: u32,
        #[pyo3(from_py_with = int)] at: u32,
    ) -> PyResult<u32> {
        Ok(self.0.fork(TreeId(tree), PathId(path), at).into_py()?.0)
    }

    fn prune(
        &mut self,
        #[pyo3(from_py_with = int)] tree: u32,
        #[pyo3(from_py_with = int)] path: u32,
    ) -> PyResult<()> {
        self.0.prune(TreeId(tree), PathId(path)).into_py()
    }

    fn prune_subtree(
        &mut self,
        #[pyo3(from_py_with = int)] tree: u32,
        #[pyo3(from_py_with = int)] path: u32,
        #[pyo3(from_py_with = int)] at: u32,
    ) -> PyResult<u32> {
        self.0.prune_subtree(TreeId(tree), PathId(path), at).into_py()
    }

    fn rewind(
        &mut self,
        #[pyo3(from_py_with = int)] tree: u32,
        #[pyo3(from_py_with = int)] path: u32,
        #[pyo3(from_py_with = int)] at: u32,
    ) -> PyResult<u32> {
        Ok(self.0.rewind(TreeId(tree), PathId(path), at).into_py()?.0)
    }

    fn set_policy_version(
        &mut self,
        #[pyo3(from_py_with = argument::version)] version: u32,
    ) -> PyResult<()> {
        self.0.set_policy_version(version).into_py()
    }

    #[allow(clippy::too_many_arguments, reason = "columns of tokens")]
    fn complete_path(
        &mut self,
        #[pyo3(from_py_with = int)] tree: u32,
        #[pyo3(from_py_with = int)] path: u32,
        token_ids: Vector<'_, u32>,
        logprobs: Vector<'_, f32>,
        entropies: Vector<'_, f32>,
        #[pyo3(from_py_with = int)] reason: u8,
    ) -> PyResult<()> {
        let tokens = sampled_tokens(&token_ids, &logprobs, &entropies)?;
        let reason = finish_reason(reason)?;
        self.0.complete_path(TreeId(tree), PathId(path), &tokens, reason).into_py()
    }

    fn is_tree_done(&self, #[pyo3(from_py_with = int)] tree: u32) -> bool {
        self.0.is_tree_done(TreeId(tree))
    }

    fn abort_tree(&mut self, #[pyo3(from_py_with = int)] tree: u32) -> PyResult<()> {
        self.0.abort_tree(TreeId(tree)).into_py()
    }

    fn awaits_verdicts(&self) -> bool {
        self.0.awaits_verdicts()
    }

    fn is_done(&self) -> bool {
        self.0.is_done()
    }

    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.0.to_bytes().into_py()?))
    }

    #[staticmethod]
    fn from_bytes(bytes: &[u8]) -> PyResult<Self> {
        Ok(Self(treepo::Search::from_bytes(bytes).into_py()?))
    }

    #[pyo3(signature = (trees=None))]
    fn forest(&self, trees: Option<Vector<'_, u32>>) -> PyResult<Forest> {
        copy_of(self.0.forest(), trees)
    }

    fn check(&self) -> PyResult<()> {
        self.0.check().into_py()
    }
}
