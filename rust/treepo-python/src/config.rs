//! `SearchConfig`.

use pyo3::prelude::*;

use crate::argument::{int, ints, optional_int};
use crate::error::{IntoPy, to_py};
use treepo::search::FallbackConfig;
use treepo::{Error, FallbackFrom as Fallback};

/// Configuration of the search; validated when it is made.
#[pyclass(frozen, module = "treepo.core")]
#[derive(Debug)]
pub(crate) struct SearchConfig(pub(crate) treepo::SearchConfig);

const FALLBACKS: [(&str, Fallback); 2] =
    [("answered", Fallback::Answered), ("none", Fallback::Nothing)];

fn parse_fallback(name: &str) -> PyResult<Fallback> {
    let found = FALLBACKS.iter().find(|(known, _)| *known == name);
    found.map(|&(_, fallback)| fallback).ok_or_else(|| {
        let message = format!("must be \"answered\" or \"none\", got {name:?}");
        to_py(&Error::InvalidConfig { field: "fallback", message })
    })
}

#[pymethods]
impl SearchConfig {
    #[new]
    #[pyo3(signature = (
        *, width=8, segment_len=64, max_depth=8, branch_factor=2, initial_divergence=2,
        fallback="answered", max_completion_len=None, max_model_len=None, eos_token_ids=Vec::new(),
    ))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of a Python constructor")]
    fn new(
        #[pyo3(from_py_with = int)] width: u32,
        #[pyo3(from_py_with = int)] segment_len: u32,
        #[pyo3(from_py_with = int)] max_depth: u32,
        #[pyo3(from_py_with = int)] branch_factor: u32,
        #[pyo3(from_py_with = int)] initial_divergence: u32,
        fallback: &str,
        #[pyo3(from_py_with = optional_int)] max_completion_len: Option<u32>,
        #[pyo3(from_py_with = optional_int)] max_model_len: Option<u32>,
        #[pyo3(from_py_with = ints)] eos_token_ids: Vec<u32>,
    ) -> PyResult<Self> {
        let config = treepo::SearchConfig {
            width,
            segment_len,
            max_depth,
            branch_factor,
            initial_divergence,
            fallback: FallbackConfig {
                from: parse_fallback(fallback)?,
                ..FallbackConfig::default()
            },
            max_completion_len,
            max_model_len: max_model_len.unwrap_or(u32::MAX),
            eos_token_ids,
            ..treepo::SearchConfig::default()
        };
        config.check().into_py()?;
        Ok(Self(config))
    }

    #[getter]
    fn width(&self) -> u32 {
        self.0.width
    }

    #[getter]
    fn segment_len(&self) -> u32 {
        self.0.segment_len
    }

    #[getter]
    fn max_depth(&self) -> u32 {
        self.0.max_depth
    }

    #[getter]
    fn branch_factor(&self) -> u32 {
        self.0.branch_factor
    }

    #[getter]
    fn initial_divergence(&self) -> u32 {
        self.0.initial_divergence
    }

    #[getter]
    fn fallback(&self) -> &'static str {
        FALLBACKS
            .iter()
            .find(|(_, known)| *known == self.0.fallback.from)
            .map_or("", |(name, _)| name)
    }

    #[getter]
    fn max_completion_len(&self) -> u32 {
        self.0.max_completion_len()
    }

    #[getter]
    fn max_model_len(&self) -> u32 {
        self.0.max_model_len
    }

    #[getter]
    fn eos_token_ids(&self) -> Vec<u32> {
        self.0.eos_token_ids.clone()
    }
}
