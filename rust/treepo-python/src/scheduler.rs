//! `Scheduler`: plans go into numpy arrays that the caller owns.

use numpy::{Element, Ix1, Ix2, PyArray1, PyArray2, PyArrayMethods, PyReadwriteArray};
use numpy::{PyUntypedArrayMethods, dtype};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use treepo::{PlanBuffers, SchedulerConfig, TreeId};

use crate::argument::{self, Vector, describe, int, invalid};
use crate::config::SearchConfig;
use crate::error::IntoPy;
use crate::forest::{Forest, sampled_tokens};

/// Search plus memory plus time: plans one flat step after another.
#[pyclass(module = "treepo.core")]
#[derive(Debug)]
pub(crate) struct Scheduler(treepo::Scheduler);

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

/// Borrows the array `name` of shape [n, 3] for writing.
fn triples<'py>(
    buffers: &Bound<'py, PyAny>,
    name: &str,
) -> PyResult<PyReadwriteArray<'py, i32, Ix2>> {
    let given = buffers.getattr(name)?;
    let fits =
        |array: &&Bound<'py, PyArray2<i32>>| array.is_c_contiguous() && array.shape()[1] == 3;
    let array = given.cast::<PyArray2<i32>>().ok().filter(fits);
    let array = array.ok_or_else(|| wrong_array::<i32>(&given, name, "[n, 3]"))?;
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
    #[pyo3(signature = (
        config, *, seed=0, num_blocks, block_size=16, max_num_seqs=256,
        max_num_batched_tokens=2048, policy_version=0,
    ))]
    fn new(
        config: &SearchConfig,
        #[pyo3(from_py_with = int)] seed: u64,
        #[pyo3(from_py_with = argument::count)] num_blocks: u32,
        #[pyo3(from_py_with = int)] block_size: u32,
        #[pyo3(from_py_with = argument::count)] max_num_seqs: u32,
        #[pyo3(from_py_with = argument::count)] max_num_batched_tokens: u32,
        #[pyo3(from_py_with = argument::version)] policy_version: u32,
    ) -> PyResult<Self> {
        let limits = SchedulerConfig {
            num_blocks,
            block_size,
            max_num_seqs,
            max_num_batched_tokens,
            ..SchedulerConfig::default()
        };
        let mut scheduler = treepo::Scheduler::new(config.0.clone(), limits, seed).into_py()?;
        scheduler.set_policy_version(policy_version);
        Ok(Self(scheduler))
    }

    fn add_tree(
        &mut self,
        #[pyo3(from_py_with = int)] key: u64,
        prompt: Vector<'_, u32>,
    ) -> PyResult<u32> {
        Ok(self.0.add_tree(key, prompt.token_ids()?).into_py()?.0)
    }

    fn buffer_sizes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let capacity = self.0.capacity();
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
        let mut copies = triples(buffers, "copies")?;
        let mut table_updates = triples(buffers, "table_updates")?;
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
        let scheduler = &mut self.0;
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
        let tokens = sampled_tokens(ids, logprobs, entropies.as_slice()?)?;
        let scheduler = &mut self.0;
        py.detach(|| scheduler.commit_step(&tokens)).into_py()
    }

    fn is_done(&self) -> bool {
        self.0.is_done()
    }

    fn take_finished(&mut self) -> Vec<u32> {
        self.0.take_finished().into_iter().map(|tree| tree.0).collect()
    }

    fn abort_tree(&mut self, #[pyo3(from_py_with = int)] tree: u32) -> PyResult<()> {
        self.0.abort_tree(TreeId(tree)).into_py()
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = PyDict::new(py);
        for (name, value) in self.0.stats().entries() {
            stats.set_item(name, value)?;
        }
        Ok(stats)
    }

    fn forest(&self) -> Forest {
        Forest(self.0.forest().clone())
    }

    fn check(&self) -> PyResult<()> {
        self.0.check().into_py()
    }
}
