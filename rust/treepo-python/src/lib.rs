//! Python binding of the `treepo` crate: parse, call, convert. It decides nothing.

#![allow(clippy::needless_pass_by_value, reason = "pyo3 hands arguments over by value")]

mod argument;
mod config;
mod error;
mod forecast;
mod forest;
mod kernels;
mod layers;
mod pool;
mod scheduler;
mod search;
mod value;

use pyo3::prelude::*;

/// The extension module; `treepo.core` is its only importer.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    error::register(module)?;
    module.add_function(wrap_pyfunction!(forecast::forecast, module)?)?;
    module.add_class::<config::SearchConfig>()?;
    module.add_class::<forest::Forest>()?;
    module.add_class::<layers::Activation>()?;
    module.add_class::<layers::AttentionLayer>()?;
    module.add_class::<layers::AttentionStep>()?;
    module.add_class::<layers::DecoderLayer>()?;
    module.add_class::<layers::DecoderModel>()?;
    module.add_class::<layers::Element>()?;
    module.add_class::<kernels::Kernels>()?;
    module.add_class::<pool::BlockPool>()?;
    module.add_class::<scheduler::Scheduler>()?;
    module.add_class::<search::Search>()
}
