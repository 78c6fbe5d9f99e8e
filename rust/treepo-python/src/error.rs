//! The one mapping from `treepo::Error` to Python exceptions.

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyType};
use treepo::Error;

/// The exception classes. A class has two bases, `TreepoError` and a built-in one, which pyo3's
/// macros cannot express, so they are made by calling `type`.
struct Classes {
    base: Py<PyType>,
    by_kind: [Py<PyType>; 7],
}

const KINDS: [(&str, &str, &str); 7] = [
    ("InvalidConfigError", "ValueError", "A configuration value is out of its range."),
    ("InvalidInputError", "ValueError", "An argument does not fit the object's state."),
    ("PromptTooLongError", "ValueError", "A prompt leaves no room for a completion."),
    ("PoolTooSmallError", "MemoryError", "The KV pool cannot hold one path at full length."),
    ("NotFiniteError", "ArithmeticError", "A log-probability, logit or loss is not finite."),
    ("BufferTooSmallError", "ValueError", "A plan array is shorter than the plan may need."),
    ("LawBrokenError", "AssertionError", "An invariant does not hold: a fault of treepo."),
];

static CLASSES: PyOnceLock<Classes> = PyOnceLock::new();

fn new_class(
    py: Python<'_>,
    name: &str,
    bases: Bound<'_, PyTuple>,
    doc: &str,
) -> PyResult<Py<PyType>> {
    let namespace = PyDict::new(py);
    namespace.set_item("__doc__", doc)?;
    namespace.set_item("__module__", "treepo.errors")?;
    let class = py.get_type::<PyType>().call1((name, bases, namespace))?;
    Ok(class.cast_into::<PyType>()?.unbind())
}

fn classes(py: Python<'_>) -> PyResult<&Classes> {
    CLASSES.get_or_try_init(py, || {
        let exception = PyTuple::new(py, [py.get_type::<PyException>()])?;
        let base = new_class(py, "TreepoError", exception, "Base of treepo's exceptions.")?;
        let builtins = py.import("builtins")?;
        let make = |(name, builtin, doc): (&str, &str, &str)| {
            let bases = [base.bind(py).clone().into_any(), builtins.getattr(builtin)?];
            new_class(py, name, PyTuple::new(py, bases)?, doc)
        };
        let by_kind = KINDS.map(make);
        let mut made = Vec::with_capacity(KINDS.len());
        for class in by_kind {
            made.push(class?);
        }
        let by_kind = made.try_into().map_err(|_| PyException::new_err("exception classes"))?;
        Ok(Classes { base, by_kind })
    })
}

/// Adds the exception classes to the module.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let classes = classes(py)?;
    module.add("TreepoError", classes.base.bind(py))?;
    for ((name, _, _), class) in KINDS.iter().zip(&classes.by_kind) {
        module.add(*name, class.bind(py))?;
    }
    Ok(())
}

/// An `InvalidConfigError` about a field.
pub(crate) fn invalid_config(field: &str, message: &str) -> PyErr {
    of_kind(0, format!("{field}: {message}"))
}

/// The Python exception of an error of the core.
pub(crate) fn to_py(error: &Error) -> PyErr {
    let kind = match error {
        Error::InvalidConfig { .. } => 0,
        Error::InvalidInput(_) => 1,
        Error::PromptTooLong { .. } => 2,
        Error::PoolTooSmall { .. } => 3,
        Error::NotFinite { .. } => 4,
        Error::BufferTooSmall { .. } => 5,
        Error::LawBroken { .. } => 6,
    };
    of_kind(kind, error.to_string())
}

fn of_kind(kind: usize, message: String) -> PyErr {
    Python::attach(|py| match classes(py) {
        Ok(classes) => PyErr::from_type(classes.by_kind[kind].bind(py).clone(), message),
        Err(failure) => failure,
    })
}

/// Converts the core's results.
pub(crate) trait IntoPy<T> {
    /// The value, or the exception.
    fn into_py(self) -> PyResult<T>;
}

impl<T> IntoPy<T> for treepo::Result<T> {
    fn into_py(self) -> PyResult<T> {
        self.map_err(|error| to_py(&error))
    }
}
