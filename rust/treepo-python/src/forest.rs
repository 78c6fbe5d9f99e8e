//! `Forest` and its columns as numpy arrays.

use numpy::{Element, IntoPyArray, PyArray1, PyArray2, PyArrayMethods};
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use treepo::forest::Columns;
use treepo::{FinishReason, ForkOrigin, PathId, SampledToken, TreeId};

use crate::argument::{self, Vector, describe, int, invalid};
use crate::error::IntoPy;

/// Trees of token paths.
#[pyclass(module = "treepo.core")]
#[derive(Debug)]
pub(crate) struct Forest(pub(crate) treepo::Forest);

/// Pairs up the three arrays of sampled tokens in `out`.
pub(crate) fn pair_up(
    ids: &[u32],
    logprobs: &[f32],
    entropies: &[f32],
    out: &mut Vec<SampledToken>,
) -> PyResult<()> {
    if ids.len() != logprobs.len() || ids.len() != entropies.len() {
        let (i, l, e) = (ids.len(), logprobs.len(), entropies.len());
        let message = format!("{i} token ids, {l} log-probabilities and {e} entropies");
        return Err(invalid(message));
    }
    let rows = ids.iter().zip(logprobs).zip(entropies);
    out.clear();
    out.extend(rows.map(|((&id, &logprob), &entropy)| SampledToken { id, logprob, entropy }));
    Ok(())
}

/// The three arrays of sampled tokens as one list.
pub(crate) fn sampled_tokens(
    ids: &Vector<'_, u32>,
    logprobs: &Vector<'_, f32>,
    entropies: &Vector<'_, f32>,
) -> PyResult<Vec<SampledToken>> {
    let mut tokens = Vec::new();
    let (ids, logprobs) = (ids.token_ids()?, logprobs.as_slice()?);
    pair_up(ids, logprobs, entropies.as_slice()?, &mut tokens)?;
    Ok(tokens)
}

/// The finish reason with this number.
pub(crate) fn finish_reason(number: u8) -> PyResult<FinishReason> {
    FinishReason::from_u8(number)
        .ok_or_else(|| invalid(format!("no finish reason has the number {number}")))
}

/// A copy of these trees of a forest, or of all.
pub(crate) fn copy_of(forest: &treepo::Forest, trees: Option<Vector<'_, u32>>) -> PyResult<Forest> {
    let Some(trees) = trees else { return Ok(Forest(forest.clone())) };
    let trees: Vec<_> = trees.as_slice()?.iter().map(|&tree| TreeId(tree)).collect();
    Ok(Forest(forest.select(&trees).into_py()?))
}

/// Pairs of a tree and a path as an int32 array of shape [n, 2].
pub(crate) fn pairs(
    py: Python<'_>,
    paths: impl Iterator<Item = (TreeId, PathId)>,
) -> PyResult<Bound<'_, PyArray2<i32>>> {
    let flat: Vec<i32> = paths.flat_map(|(tree, path)| [tree.0 as i32, path.0 as i32]).collect();
    let num_pairs = flat.len() / 2;
    flat.into_pyarray(py).reshape([num_pairs, 2])
}

/// The whole token sequence of a path of a forest that grows.
pub(crate) fn tokens_of<'py>(
    py: Python<'py>,
    forest: &treepo::Forest,
    tree: u32,
    path: u32,
) -> PyResult<Bound<'py, PyArray1<u32>>> {
    let tokens = forest.tree(TreeId(tree)).and_then(|tree| tree.tokens(PathId(path))).into_py()?;
    Ok(tokens.into_pyarray(py))
}

fn read<T: Element + Copy>(columns: &Bound<'_, PyAny>, name: &str) -> PyResult<Vec<T>> {
    let py = columns.py();
    let column = columns.get_item(name).map_err(|error| {
        let is_missing = error.is_instance_of::<PyKeyError>(py);
        if is_missing { invalid(format!("forest column {name} is missing")) } else { error }
    })?;
    let wrong = || {
        let (given, dtype) = (describe(&column), T::get_dtype(py));
        invalid(format!(
            "forest column {name} must be a contiguous one-dimensional array of {dtype}, is {given}"
        ))
    };
    let array = column.cast::<PyArray1<T>>().map_err(|_| wrong())?;
    array.try_readonly()?.to_vec().map_err(|_| wrong())
}

fn put<T: Element>(dict: &Bound<'_, PyDict>, name: &str, values: Vec<T>) -> PyResult<()> {
    let array = values.into_pyarray(dict.py());
    array.try_readwrite()?.make_nonwriteable();
    dict.set_item(name, array)
}

/// One list of the column names and fields for both directions.
macro_rules! for_each_column {
    ($action:ident) => {
        $action!(
            tree_key,
            tree_stream,
            tree_prompt_len,
            tree_replayable,
            tree_dependence,
            path_start,
            path_tree,
            path_parent,
            path_at,
            token_start,
            path_length,
            path_stream,
            path_finish,
            path_origin,
            path_weight,
            path_reward,
            token_id,
            token_kind,
            token_logprob,
            token_entropy,
            token_version,
            mark_path,
            mark_pos
        )
    };
}

#[pymethods]
impl Forest {
    #[new]
    fn new() -> Self {
        Self(treepo::Forest::new())
    }

    #[staticmethod]
    fn from_columns(columns: &Bound<'_, PyAny>) -> PyResult<Self> {
        macro_rules! read_all {
            ($($name:ident),*) => { Columns { $($name: read(columns, stringify!($name))?),* } };
        }
        let columns = for_each_column!(read_all);
        Ok(Self(treepo::Forest::from_columns(&columns).into_py()?))
    }

    #[pyo3(signature = (key, prompt, *, seed=0))]
    fn add_tree(
        &mut self,
        #[pyo3(from_py_with = int)] key: u64,
        prompt: Vector<'_, u32>,
        #[pyo3(from_py_with = int)] seed: u64,
    ) -> PyResult<u32> {
        Ok(self.0.add_tree(seed, key, prompt.token_ids()?).into_py()?.0)
    }

    fn fork(
        &mut self,
        #[pyo3(from_py_with = int)] tree: u32,
        #[pyo3(from_py_with = int)] path: u32,
        #[pyo3(from_py_with = int)] at: u32,
    ) -> PyResult<u32> {
        let path = self.0.fork(TreeId(tree), PathId(path), at, ForkOrigin::Caller).into_py()?;
        Ok(path.0)
    }

    #[pyo3(signature = (tree, path, token_ids, logprobs, entropies, *, version=0))]
    #[allow(clippy::too_many_arguments, reason = "one call appends all columns")]
    fn append(
        &mut self,
        #[pyo3(from_py_with = int)] tree: u32,
        #[pyo3(from_py_with = int)] path: u32,
        token_ids: Vector<'_, u32>,
        logprobs: Vector<'_, f32>,
        entropies: Vector<'_, f32>,
        #[pyo3(from_py_with = argument::version)] version: u32,
    ) -> PyResult<()> {
        let (tree, path) = (TreeId(tree), PathId(path));
        let tokens = sampled_tokens(&token_ids, &logprobs, &entropies)?;
        self.0.push_given(tree, path, &[]).into_py()?; // Refuses a path that is finished.
        for token in &tokens {
            token.check(tree, path).into_py()?;
        }
        for token in tokens {
            self.0.push_token(tree, path, token, version).into_py()?;
        }
        Ok(())
    }

    fn append_given(
        &mut self,
        #[pyo3(from_py_with = int)] tree: u32,
        #[pyo3(from_py_with = int)] path: u32,
        token_ids: Vector<'_, u32>,
    ) -> PyResult<()> {
        self.0.push_given(TreeId(tree), PathId(path), token_ids.token_ids()?).into_py()
    }

    fn mark(
        &mut self,
        #[pyo3(from_py_with = int)] tree: u32,
        #[pyo3(from_py_with = int)] path: u32,
    ) -> PyResult<()> {
        self.0.mark(TreeId(tree), PathId(path)).into_py()
    }

    fn finish(
        &mut self,
        #[pyo3(from_py_with = int)] tree: u32,
        #[pyo3(from_py_with = int)] path: u32,
        #[pyo3(from_py_with = int)] reason: u8,
    ) -> PyResult<()> {
        self.0.finish(TreeId(tree), PathId(path), finish_reason(reason)?).into_py()
    }

    fn set_rewards(&mut self, rewards: Vector<'_, f32>) -> PyResult<()> {
        self.0.set_rewards(rewards.as_slice()?).into_py()
    }

    #[getter]
    fn num_trees(&self) -> usize {
        self.0.trees().len()
    }

    #[getter]
    fn num_paths(&self) -> usize {
        self.0.num_paths()
    }

    #[getter]
    fn num_tokens(&self) -> usize {
        self.0.num_tokens()
    }

    fn columns<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        let columns = py.detach(|| self.0.columns());
        macro_rules! put_all {
            ($($name:ident),*) => { $(put(&dict, stringify!($name), columns.$name)?;)* };
        }
        for_each_column!(put_all);
        Ok(dict)
    }

    fn nodes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        let nodes = py.detach(|| self.0.nodes());
        put(&dict, "tree", nodes.tree)?;
        put(&dict, "path", nodes.path)?;
        put(&dict, "start", nodes.start)?;
        put(&dict, "end", nodes.end)?;
        put(&dict, "parent", nodes.parent)?;
        put(&dict, "depth", nodes.depth)?;
        put(&dict, "subtree_end", nodes.subtree_end)?;
        put(&dict, "leaf", nodes.leaf)?;
        Ok(dict)
    }

    fn select(&self, trees: Vector<'_, u32>) -> PyResult<Self> {
        copy_of(&self.0, Some(trees))
    }

    #[staticmethod]
    fn concatenate(forests: Vec<PyRef<'_, Self>>) -> Self {
        Self(treepo::Forest::concatenate(forests.iter().map(|forest| &forest.0)))
    }

    fn check(&self) -> PyResult<()> {
        self.0.check().into_py()
    }
}
