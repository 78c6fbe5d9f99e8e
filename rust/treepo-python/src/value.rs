//! Python values as data.

use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyString};
use serde_json::{Number, Value};

/// A number, truth value, string, nothing, or a flat list of these; what is wrong otherwise.
pub(crate) fn to_value(object: &Bound<'_, PyAny>) -> Result<Value, String> {
    if object.is_instance_of::<PyDict>() {
        return Err("takes no dict".into());
    }
    if object.is_instance_of::<PyString>() {
        return to_scalar(object);
    }
    let Ok(items) = object.try_iter() else { return to_scalar(object) };
    let item =
        |item: PyResult<Bound<'_, PyAny>>| to_scalar(&item.map_err(|error| error.to_string())?);
    items.map(item).collect::<Result<_, _>>().map(Value::Array)
}

fn to_scalar(object: &Bound<'_, PyAny>) -> Result<Value, String> {
    if object.is_none() {
        return Ok(Value::Null);
    }
    if let Ok(truth) = object.cast::<PyBool>() {
        return Ok(Value::Bool(truth.is_true()));
    }
    if let Ok(text) = object.cast::<PyString>() {
        let text = text.to_str().map_err(|_| "must be valid Unicode".to_owned())?;
        return Ok(Value::String(text.to_owned()));
    }
    to_number(object)
}

fn to_number(object: &Bound<'_, PyAny>) -> Result<Value, String> {
    match object.extract::<i64>() {
        Ok(number) => return Ok(Value::Number(number.into())),
        Err(error) if error.is_instance_of::<PyOverflowError>(object.py()) => {
            return Err(format!("{object} is out of range"));
        }
        Err(_) => {}
    }
    let number: f64 = object.extract().map_err(|_| {
        let class = object.get_type();
        format!("must be a number, a name or a list of these, got {class}")
    })?;
    let value = Number::from_f64(number).map(Value::Number);
    value.ok_or_else(|| format!("must be finite, got {number}"))
}
