//! `SearchConfig`: keyword arguments become the core's configuration by their names.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde_json::{Map, Value};
use treepo::search::Dependence;
use treepo::{Preset, SearchConfig as Config};

use crate::error::{IntoPy, invalid_config};
use crate::value::to_value;

/// Configuration of the search; validated when it is made.
#[pyclass(frozen, eq, module = "treepo.core")]
#[derive(Debug, PartialEq)]
pub(crate) struct SearchConfig(pub(crate) Config);

/// Every field with its default, by name.
fn defaults() -> PyResult<Map<String, Value>> {
    match serde_json::to_value(Config::default()) {
        Ok(Value::Object(fields)) => Ok(fields),
        _ => Err(invalid_config("SearchConfig", "has no default")),
    }
}

/// The core's configuration of some fields, the others at their defaults.
fn parse(fields: Map<String, Value>) -> serde_json::Result<Config> {
    serde_json::from_value(Value::Object(fields))
}

/// The error for a name that is not known.
fn unknown(py: Python<'_>, section: Option<&str>, name: &str, known: &Map<String, Value>) -> PyErr {
    let names: Vec<&str> = known.keys().map(String::as_str).collect();
    let nearest = || -> PyResult<Vec<String>> {
        let difflib = py.import("difflib")?;
        difflib.call_method1("get_close_matches", (name, &names, 1, 0.5))?.extract()
    };
    let message = match nearest().unwrap_or_default().first() {
        Some(known) => format!("is unknown; did you mean {known}?"),
        None => format!("is unknown; known are {}", names.join(", ")),
    };
    invalid_config(&full_name(section, name), &message)
}

fn full_name(section: Option<&str>, name: &str) -> String {
    section.map_or(name.to_owned(), |section| format!("{section}.{name}"))
}

/// Reads one number, name or list; alone, so that an error is about this field.
fn read_field(section: Option<&str>, name: &str, object: &Bound<'_, PyAny>) -> PyResult<Value> {
    let invalid = |message: &str| invalid_config(&full_name(section, name), message);
    let value = to_value(object).map_err(|message| invalid(&message))?;
    let only = |name: &str, value| Map::from_iter([(name.to_owned(), value)]);
    let fields = only(name, value.clone());
    let fields = match section {
        Some(section) => only(section, Value::Object(fields)),
        None => fields,
    };
    match parse(fields) {
        Ok(_) => Ok(value),
        Err(error) => Err(invalid(&error.to_string())),
    }
}

/// Reads the fields of a section, or the sections and fields of the whole.
fn read_fields(
    section: Option<&str>,
    given: &Bound<'_, PyDict>,
    known: &Map<String, Value>,
) -> PyResult<Map<String, Value>> {
    let mut fields = Map::new();
    for (name, object) in given {
        let name = name.to_string();
        let value = match known.get(&name) {
            None => return Err(unknown(given.py(), section, &name, known)),
            Some(Value::Object(inner)) => read_section(&name, &object, inner)?,
            Some(_) => read_field(section, &name, &object)?,
        };
        fields.insert(name, value);
    }
    Ok(fields)
}

fn read_section(
    name: &str,
    object: &Bound<'_, PyAny>,
    known: &Map<String, Value>,
) -> PyResult<Value> {
    let Ok(given) = object.cast::<PyDict>() else {
        let names = known.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let given = object.repr().map_or_else(|_| "something else".into(), |text| text.to_string());
        return Err(invalid_config(name, &format!("must be a dict of {names}, got {given}")));
    };
    Ok(Value::Object(read_fields(Some(name), given, known)?))
}

fn dependence_name(dependence: Dependence) -> &'static str {
    match dependence {
        Dependence::Prefix => "prefix",
        Dependence::SampledToken => "sampled_token",
    }
}

impl SearchConfig {
    /// One field or section as Python data.
    fn to_python<'py, T: serde::Serialize>(
        py: Python<'py>,
        field: &T,
    ) -> PyResult<Bound<'py, PyAny>> {
        let text = serde_json::to_string(field)
            .map_err(|error| invalid_config("SearchConfig", &error.to_string()))?;
        py.import("json")?.call_method1("loads", (text,))
    }
}

/// Getters that give a field as it is.
macro_rules! with_getters {
    ({ $($name:ident: $type:ty),* $(,)? } { $($section:ident),* $(,)? } $($rest:tt)*) => {
        #[pymethods]
        impl SearchConfig {
            $(#[getter]
            fn $name(&self) -> $type {
                self.0.$name.clone()
            })*

            $(#[getter]
            fn $section<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
                Self::to_python(py, &self.0.$section)
            })*

            $($rest)*
        }
    };
}

with_getters! {
    {
        width: u32,
        segment_len: u32,
        max_depth: u32,
        branch_factor: u32,
        max_branch_factor: Option<u32>,
        initial_divergence: u32,
        max_initial_divergence: Option<u32>,
        step_tokens: u32,
        progress: f32,
        max_model_len: u32,
        eos_token_ids: Vec<u32>,
    }
    { branch, budget, fallback, stop, prune, verdicts, opportunistic }

    #[new]
    #[pyo3(signature = (**fields), text_signature = "(*, width=8, segment_len=64, max_depth=8, \
        branch_factor=2, max_branch_factor=None, initial_divergence=2, \
        max_initial_divergence=None, branch=..., budget=..., fallback=..., stop=..., prune=..., \
        verdicts='nothing', opportunistic='off', step_tokens=8192, progress=0.0, \
        max_completion_len=None, max_model_len=4294967295, eos_token_ids=...)")]
    fn new(fields: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let fields = match fields {
            Some(given) => read_fields(None, given, &defaults()?)?,
            None => Map::new(),
        };
        let config =
            parse(fields).map_err(|error| invalid_config("SearchConfig", &error.to_string()))?;
        config.check().into_py()?;
        Ok(Self(config))
    }

    #[getter]
    fn max_completion_len(&self) -> u32 {
        self.0.max_completion_len()
    }

    #[getter]
    fn max_paths(&self) -> u32 {
        self.0.max_paths()
    }

    #[getter]
    fn dependence(&self) -> &'static str {
        dependence_name(self.0.dependence())
    }

    fn policies<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let entry = |policy: treepo::search::Policy| {
            let entry = PyDict::new(py);
            entry.set_item("name", policy.name)?;
            entry.set_item("rule", policy.rule)?;
            entry.set_item("dependence", dependence_name(policy.dependence))?;
            Ok(entry)
        };
        self.0.policies().into_iter().map(entry).collect()
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("SearchConfig(**{})", self.to_dict(py)?.repr()?))
    }

    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Self::to_python(py, &self.0)
    }

    #[staticmethod]
    fn preset(name: &str) -> PyResult<Self> {
        Ok(Self(Preset::from_name(name).into_py()?.config()))
    }

    #[staticmethod]
    fn presets() -> Vec<(&'static str, &'static str)> {
        Preset::ALL.iter().map(|preset| (preset.name(), preset.source())).collect()
    }
}
