//! `Scheduler`: plans go into numpy arrays that the caller owns.

use numpy::{Element, Ix1, Ix2, PyArray1, PyArray2, PyArrayMethods, PyReadwriteArray};
use numpy::{PyUntypedArrayMethods, dtype};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use treepo::{GroupBuffers, PathId, PlanBuffers, SampledToken, SchedulerConfig, TreeId};

use crate::argument::{self, Vector, describe, int, invalid};
use crate::config::SearchConfig;
use crate::error::IntoPy;
use crate::forest::{Forest, copy_of, pair_up, pairs, tokens_of};

/// Search plus memory plus time: plans one flat step after another.
#[pyclass(module = "treepo.core")]
#[derive(Debug)]
pub(crate) struct Scheduler {
    inner: treepo::Scheduler,
    /// The tokens of a commit; kept, so that none allocates.
    sampled: Vec<SampledToken>,
}

/// Borrows the array `name` of shape [n] for writing.
fn vector<'py, T: Element>(
    buffers: &Bound<'py, PyAny>,
    name: &str,
) -> PyResult<PyReadwriteArray<'py, T, Ix1>> {
    let given = buffers.getattr(name)?;
    let array = given.cast::<PyArray1<T>>().ok().filter(|array| array.is_c_contiguous());
    let array = array.ok_or_else(|| wrong_array::<T>(&given, name, "[n]"))?;
    array.try_readwrite().map_err(|error| invalid(format!("plan array {name}: {error}")))
}

/// Borrows the array `name` of shape [n, N] for writing.
fn table<'py, const N: usize>(
    buffers: &Bound<'py, PyAny>,
    name: &str,
) -> PyResult<PyReadwriteArray<'py, i32, Ix2>> {
    let given = buffers.getattr(name)?;
    let fits =
        |array: &&Bound<'py, PyArray2<i32>>| array.is_c_contiguous() && array.shape()[1] == N;
    let array = given.cast::<PyArray2<i32>>().ok().filter(fits);
    let array = array.ok_or_else(|| wrong_array::<i32>(&given, name, &format!("[n, {N}]")))?;
    array.try_readwrite().map_err(|error| invalid(format!("plan array {name}: {error}")))
}

fn wrong_array<T: Element>(given: &Bound<'_, PyAny>, name: &str, shape: &str) -> PyErr {
    let (dtype, given) = (dtype::<T>(given.py()), describe(given));
    invalid(format!(
        "plan array {name} must be a contiguous array of {dtype} of shape {shape}, is {given}"
    ))
}

#[pymethods]
impl Scheduler {
    #[new]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of a Python constructor")]
    #[pyo3(signature = (
        config, *, seed=0, num_blocks, block_size=16, max_num_seqs=256,
        max_num_batched_tokens=2048, admission_percent=200, age_bias=32, policy_version=0,
    ))]
    fn new(
        config: &SearchConfig,
        #[pyo3(from_py_with = int)] seed: u64,
        #[pyo3(from_py_with = argument::count)] num_blocks: u32,
        #[pyo3(from_py_with = int)] block_size: u32,
        #[pyo3(from_py_with = argument::count)] max_num_seqs: u32,
        #[pyo3(from_py_with = argument::count)] max_num_batched_tokens: u32,
        #[pyo3(from_py_with = int)] admission_percent: u32,
        #[pyo3(from_py_with = int)] age_bias: u32,
        #[pyo3(from_py_with = argument::version)] policy_version: u32,
    ) -> PyResult<Self> {
        let limits = SchedulerConfig {
            num_blocks,
            block_size,
            max_num_seqs,
            max_num_batched_tokens,
            admission_percent,
            age_bias,
        };
        let mut scheduler = treepo::Scheduler::new(config.0.clone(), limits, seed).into_py()?;
        scheduler.set_policy_version(policy_version).into_py()?;
        Ok(Self { inner: scheduler, sampled: Vec::new() })
    }

    fn add_tree(
        &mut self,
        #[pyo3(from_py_with = int)] key: u64,
        prompt: Vector<'_, u32>,
    ) -> PyResult<u32> {
        Ok(self.inner.add_tree(key, prompt.token_ids()?).into_py()?.0)
    }

    fn buffer_sizes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let capacity = self.inner.capacity();
        let sizes = PyDict::new(py);
        for name in ["token_ids", "positions", "slot_mapping"] {
            sizes.set_item(name, capacity.num_tokens)?;
        }
        sizes.set_item("query_starts", capacity.num_rows + 1)?;
        sizes.set_item("kv_lens", capacity.num_rows)?;
        sizes.set_item("row_ids", capacity.num_rows)?;
        sizes.set_item("sample_index", capacity.num_samples)?;
        sizes.set_item("uniforms", capacity.num_samples)?;
        sizes.set_item("copies", capacity.num_copies)?;
        sizes.set_item("table_updates", capacity.num_table_updates)?;
        let groups = self.inner.group_capacity();
        sizes.set_item("row_order", groups.num_rows)?;
        sizes.set_item("groups", groups.num_groups)?;
        Ok(sizes)
    }

    fn plan_step(
        &mut self,
        py: Python<'_>,
        buffers: &Bound<'_, PyAny>,
    ) -> PyResult<(usize, usize, usize, usize, usize)> {
        let mut token_ids = vector(buffers, "token_ids")?;
        let mut positions = vector(buffers, "positions")?;
        let mut slot_mapping = vector(buffers, "slot_mapping")?;
        let mut query_starts = vector(buffers, "query_starts")?;
        let mut kv_lens = vector(buffers, "kv_lens")?;
        let mut row_ids = vector(buffers, "row_ids")?;
        let mut sample_index = vector(buffers, "sample_index")?;
        let mut uniforms = vector(buffers, "uniforms")?;
        let mut copies = table::<3>(buffers, "copies")?;
        let mut table_updates = table::<3>(buffers, "table_updates")?;
        let mut out = PlanBuffers {
            token_ids: token_ids.as_slice_mut()?,
            positions: positions.as_slice_mut()?,
            slot_mapping: slot_mapping.as_slice_mut()?,
            query_starts: query_starts.as_slice_mut()?,
            kv_lens: kv_lens.as_slice_mut()?,
            row_ids: row_ids.as_slice_mut()?,
            sample_index: sample_index.as_slice_mut()?,
            uniforms: uniforms.as_slice_mut()?,
            copies: copies.as_slice_mut()?,
            table_updates: table_updates.as_slice_mut()?,
        };
        let scheduler = &mut self.inner;
        let sizes = py.detach(|| scheduler.plan_step(&mut out)).into_py()?;
        let (samples, copies) = (sizes.num_samples, sizes.num_copies);
        Ok((sizes.num_rows, sizes.num_tokens, samples, copies, sizes.num_table_updates))
    }

    fn commit_step(
        &mut self,
        py: Python<'_>,
        token_ids: Vector<'_, u32>,
        logprobs: Vector<'_, f32>,
        entropies: Vector<'_, f32>,
    ) -> PyResult<u32> {
        let (ids, logprobs) = (token_ids.token_ids()?, logprobs.as_slice()?);
        let Self { inner, sampled } = self;
        pair_up(ids, logprobs, entropies.as_slice()?, sampled)?;
        py.detach(|| inner.commit_step(sampled)).into_py()
    }

    fn group_rows(&mut self, buffers: &Bound<'_, PyAny>) -> PyResult<usize> {
        let mut row_order = vector(buffers, "row_order")?;
        let mut groups = table::<4>(buffers, "groups")?;
        let mut out =
            GroupBuffers { row_order: row_order.as_slice_mut()?, groups: groups.as_slice_mut()? };
        self.inner.group_rows(&mut out).into_py()
    }

    fn tokens<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = int)] tree: u32,
        #[pyo3(from_py_with = int)] path: u32,
    ) -> PyResult<Bound<'py, PyArray1<u32>>> {
        tokens_of(py, self.inner.forest(), tree, path)
    }

    fn set_texts(&mut self, texts: &Bound<'_, PyAny>) -> PyResult<()> {
        self.inner.set_texts(argument::texts(texts)?).into_py()
    }

    fn ended_segments<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<i32>>> {
        pairs(py, self.inner.ended_segments())
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
        self.inner.report(TreeId(tree), PathId(path), verdict).into_py()
    }

    fn fork(
        &mut self,
        #[pyo3(from_py_with = int)] tree: u32,
        #[pyo3(from_py_with = int)] path: u32,
        #[pyo3(from_py_with = int)] at: u32,
    ) -> PyResult<u32> {
        Ok(self.inner.fork(TreeId(tree), PathId(path), at).into_py()?.0)
    }

    fn prune(
        &mut self,
        #[pyo3(from_py_with = int)] tree: u32,
        #[pyo3(from_py_with = int)] path: u32,
    ) -> PyResult<()> {
        self.inner.prune(TreeId(tree), PathId(path)).into_py()
    }

    fn prune_subtree(
        &mut self,
        #[pyo3(from_py_with = int)] tree: u32,
        #[pyo3(from_py_with = int)] path: u32,
        #[pyo3(from_py_with = int)] at: u32,
    ) -> PyResult<u32> {
        self.inner.prune_subtree(TreeId(tree), PathId(path), at).into_py()
    }

    fn rewind(
        &mut self,
        #[pyo3(from_py_with = int)] tree: u32,
        #[pyo3(from_py_with = int)] path: u32,
        #[pyo3(from_py_with = int)] at: u32,
    ) -> PyResult<u32> {
        Ok(self.inner.rewind(TreeId(tree), PathId(path), at).into_py()?.0)
    }

    fn set_policy_version(
        &mut self,
        #[pyo3(from_py_with = argument::version)] version: u32,
    ) -> PyResult<()> {
        self.inner.set_policy_version(version).into_py()
    }

    fn abort_tree(&mut self, #[pyo3(from_py_with = int)] tree: u32) -> PyResult<()> {
        self.inner.abort_tree(TreeId(tree)).into_py()
    }

    fn set_priority(
        &mut self,
        #[pyo3(from_py_with = int)] tree: u32,
        #[pyo3(from_py_with = argument::priority)] priority: i32,
    ) -> PyResult<()> {
        self.inner.set_priority(TreeId(tree), priority).into_py()
    }

    fn drop_memory(&mut self) -> PyResult<()> {
        self.inner.drop_memory().into_py()
    }

    fn is_done(&self) -> bool {
        self.inner.is_done()
    }

    fn take_finished(&mut self) -> Vec<u32> {
        self.inner.take_finished().into_iter().map(|tree| tree.0).collect()
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = PyDict::new(py);
        for (name, value) in self.inner.stats().entries() {
            stats.set_item(name, value)?;
        }
        Ok(stats)
    }

    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.inner.to_bytes().into_py()?))
    }

    #[staticmethod]
    fn from_bytes(bytes: &[u8]) -> PyResult<Self> {
        Ok(Self { inner: treepo::Scheduler::from_bytes(bytes).into_py()?, sampled: Vec::new() })
    }

    #[pyo3(signature = (trees=None))]
    fn forest(&self, trees: Option<Vector<'_, u32>>) -> PyResult<Forest> {
        copy_of(self.inner.forest(), trees)
    }

    fn sampled_paths<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<i32>>> {
        pairs(py, self.inner.sampled_paths())
    }

    #[getter]
    fn num_blocks(&self) -> u32 {
        self.inner.config().num_blocks
    }

    #[getter]
    fn block_size(&self) -> u32 {
        self.inner.config().block_size
    }

    #[getter]
    fn max_num_seqs(&self) -> u32 {
        self.inner.config().max_num_seqs
    }

    #[getter]
    fn max_num_batched_tokens(&self) -> u32 {
        self.inner.config().max_num_batched_tokens
    }

    #[getter]
    fn policy_version(&self) -> u32 {
        self.inner.search().policy_version()
    }

    fn check(&self) -> PyResult<()> {
        self.inner.check().into_py()
    }
}
