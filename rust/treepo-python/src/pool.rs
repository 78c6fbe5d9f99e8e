//! `BlockPool`.

use pyo3::prelude::*;
use treepo::BlockId;

use crate::argument::{count, int};
use crate::error::IntoPy;

/// Reference counts and free blocks of a paged key-value cache.
#[pyclass(module = "treepo.core")]
#[derive(Debug)]
pub(crate) struct BlockPool(treepo::BlockPool);

#[pymethods]
impl BlockPool {
    #[new]
    fn new(#[pyo3(from_py_with = count)] num_blocks: u32) -> PyResult<Self> {
        Ok(Self(treepo::BlockPool::new(num_blocks).into_py()?))
    }

    fn allocate(&mut self) -> Option<u32> {
        self.0.allocate().map(|block| block.0)
    }

    fn retain(&mut self, #[pyo3(from_py_with = int)] block: u32) -> PyResult<()> {
        self.0.retain(BlockId(block)).into_py()
    }

    fn release(&mut self, #[pyo3(from_py_with = int)] block: u32) -> PyResult<bool> {
        self.0.release(BlockId(block)).into_py()
    }

    fn count(&self, #[pyo3(from_py_with = int)] block: u32) -> u32 {
        self.0.count(BlockId(block))
    }

    #[getter]
    fn num_free(&self) -> u32 {
        self.0.num_free()
    }

    #[getter]
    fn num_blocks(&self) -> u32 {
        self.0.num_blocks()
    }

    fn check(&self) -> PyResult<()> {
        self.0.check().into_py()
    }
}
