//! `forecast`.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use treepo::SchedulerConfig;
use treepo::forecast::Assumptions;

use crate::argument::{count, int, optional_count};
use crate::config::SearchConfig;
use crate::error::IntoPy;

/// The most blocks of a pool that is to be large.
const MANY_BLOCKS: u32 = 1 << 21;

/// Blocks for all trees at once, or [`MANY_BLOCKS`].
fn plenty(config: &treepo::SearchConfig, assumptions: &Assumptions, block_size: u32) -> u32 {
    let of_completion = config.max_completion_len().div_ceil(block_size.max(1)).saturating_add(1);
    let of_prompt = assumptions.prompt_len.div_ceil(block_size.max(1)).saturating_add(1);
    let of_tree = config.max_paths().saturating_mul(of_completion).saturating_add(of_prompt);
    let of_path = of_prompt.saturating_add(of_completion).saturating_add(1);
    assumptions.num_trees.saturating_mul(of_tree).min(MANY_BLOCKS).max(of_path)
}

/// What a configuration will cost, before anything runs.
#[pyfunction]
#[pyo3(signature = (
    config, *, rates, prompt_len=64, num_trees=64, num_blocks=None, block_size=16,
    max_num_seqs=256, max_num_batched_tokens=2048, admission_percent=200, age_bias=32, seed=0,
))]
#[allow(clippy::too_many_arguments, reason = "keyword arguments of a Python function")]
pub(crate) fn forecast<'py>(
    py: Python<'py>,
    config: &SearchConfig,
    rates: Vec<f64>,
    #[pyo3(from_py_with = count)] prompt_len: u32,
    #[pyo3(from_py_with = count)] num_trees: u32,
    #[pyo3(from_py_with = optional_count)] num_blocks: Option<u32>,
    #[pyo3(from_py_with = int)] block_size: u32,
    #[pyo3(from_py_with = count)] max_num_seqs: u32,
    #[pyo3(from_py_with = count)] max_num_batched_tokens: u32,
    #[pyo3(from_py_with = int)] admission_percent: u32,
    #[pyo3(from_py_with = int)] age_bias: u32,
    #[pyo3(from_py_with = int)] seed: u64,
) -> PyResult<Bound<'py, PyDict>> {
    let assumptions = Assumptions { rates, prompt_len, num_trees };
    let search = &config.0;
    let limits = SchedulerConfig {
        num_blocks: num_blocks.unwrap_or_else(|| plenty(search, &assumptions, block_size)),
        block_size,
        max_num_seqs,
        max_num_batched_tokens,
        admission_percent,
        age_bias,
    };
    let forecast = py.detach(|| treepo::forecast::forecast(search, limits, &assumptions, seed));
    let dict = PyDict::new(py);
    for (name, value) in forecast.into_py()?.entries() {
        dict.set_item(name, value)?;
    }
    Ok(dict)
}
