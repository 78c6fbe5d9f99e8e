//! Arguments from Python: integers and arrays, with errors that say what came and what is needed.

use numpy::{
    Element, PyArray1, PyArrayDescrMethods, PyArrayMethods, PyReadonlyArray1, PyUntypedArray,
    PyUntypedArrayMethods,
};
use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use pyo3::{Borrowed, FromPyObject};
use treepo::{Error, TokenTexts, Verdict};

use crate::error::to_py;

/// An `InvalidInputError`.
pub(crate) fn invalid(message: String) -> PyErr {
    to_py(&Error::InvalidInput(message))
}

/// Reads an integer within the range of the unsigned type `T`.
pub(crate) fn int<'py, T>(object: &Bound<'py, PyAny>) -> PyResult<T>
where
    T: for<'a> FromPyObject<'a, 'py, Error = PyErr>,
{
    object.extract::<T>().map_err(|error| {
        if !error.is_instance_of::<PyOverflowError>(object.py()) {
            return error;
        }
        let max = u64::MAX >> (64 - 8 * size_of::<T>());
        invalid(format!("{object} is not within 0 and {max}"))
    })
}

/// Blocks, rows or tokens of a step. More is a mistake, and to allocate it would end the process.
const MAX_COUNT: u32 = 1 << 26;

/// Reads how many of something is to be allocated.
pub(crate) fn count(object: &Bound<'_, PyAny>) -> PyResult<u32> {
    let count = int(object)?;
    if count > MAX_COUNT {
        return Err(invalid(format!("{count} is more than can be allocated, {MAX_COUNT}")));
    }
    Ok(count)
}

/// Reads how many of something is to be allocated, or nothing.
pub(crate) fn optional_count(object: &Bound<'_, PyAny>) -> PyResult<Option<u32>> {
    if object.is_none() { Ok(None) } else { count(object).map(Some) }
}

/// Reads the version of a policy, which fits the forest's columns.
pub(crate) fn version(object: &Bound<'_, PyAny>) -> PyResult<u32> {
    let version: u32 = int(object)?;
    let fits = i32::try_from(version).is_ok();
    if fits { Ok(version) } else { Err(invalid(format!("version {version} is too large"))) }
}

/// Reads the priority of a tree.
pub(crate) fn priority(object: &Bound<'_, PyAny>) -> PyResult<i32> {
    object.extract().map_err(|error: PyErr| {
        let overflows = error.is_instance_of::<PyOverflowError>(object.py());
        let (low, high) = (i32::MIN, i32::MAX);
        if overflows { invalid(format!("{object} is not within {low} and {high}")) } else { error }
    })
}

/// Reads the bytes of every token id.
pub(crate) fn texts(object: &Bound<'_, PyAny>) -> PyResult<TokenTexts> {
    let pieces = object.try_iter()?.enumerate().map(|(id, piece)| text_of(id, &piece?));
    let pieces: Vec<_> = pieces.collect::<PyResult<_>>()?;
    Ok(TokenTexts::new(pieces.iter().map(PyBytesMethods::as_bytes)))
}

fn text_of<'py>(id: usize, piece: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let wrong = |_| {
        let given = describe(piece);
        invalid(format!("the text of token {id} is {given}; give a bytes object for each token id"))
    };
    piece.cast::<PyBytes>().cloned().map_err(wrong)
}

/// Reads a verdict: its name, and the score of one that goes on.
pub(crate) fn verdict(name: &str, score: f32) -> PyResult<Verdict> {
    match name {
        "continue" => Ok(Verdict::Continue { score }),
        "stop" => Ok(Verdict::Stop),
        "prune" => Ok(Verdict::Prune),
        _ => Err(invalid(format!(
            "verdict {name:?} is unknown; give \"continue\", \"stop\" or \"prune\""
        ))),
    }
}

/// A one-dimensional array in one piece, borrowed for reading.
#[derive(Debug)]
pub(crate) struct Vector<'py, T: Element>(PyReadonlyArray1<'py, T>);

impl<T: Element> Vector<'_, T> {
    /// The elements.
    pub(crate) fn as_slice(&self) -> PyResult<&[T]> {
        Ok(self.0.as_slice()?)
    }
}

impl Vector<'_, u32> {
    /// The elements as token ids, which fit the forest's columns.
    pub(crate) fn token_ids(&self) -> PyResult<&[u32]> {
        let ids = self.as_slice()?;
        match ids.iter().find(|&&id| id > i32::MAX as u32) {
            Some(id) => Err(invalid(format!("token id {id} is above {}", i32::MAX))),
            None => Ok(ids),
        }
    }
}

impl<'a, 'py, T: Element + 'a> FromPyObject<'a, 'py> for Vector<'py, T> {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let wrong = || {
            let (dtype, given) = (T::get_dtype(object.py()), describe(&object));
            invalid(format!(
                "expected a contiguous one-dimensional array of {dtype}, got {given}; convert it \
                 with numpy.ascontiguousarray(.., dtype=numpy.{dtype})"
            ))
        };
        let array = object.cast::<PyArray1<T>>().map_err(|_| wrong())?;
        let array = array.to_owned().try_readonly().map_err(|error| invalid(error.to_string()))?;
        if array.as_slice().is_err() {
            return Err(wrong());
        }
        Ok(Self(array))
    }
}

/// What an object is, for messages.
pub(crate) fn describe(object: &Bound<'_, PyAny>) -> String {
    let Ok(array) = object.cast::<PyUntypedArray>() else {
        return object.get_type().name().map_or_else(|_| "an object".into(), |n| format!("a {n}"));
    };
    let (order, dtype) = (array.dtype().byteorder(), array.dtype());
    let swapped = if matches!(order, b'<' | b'>') { " in foreign byte order" } else { "" };
    let layout = if array.is_c_contiguous() { "contiguous" } else { "non-contiguous" };
    format!("a {layout} array of {dtype}{swapped} with {} dimensions", array.ndim())
}
