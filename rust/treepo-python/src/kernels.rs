//! CPU kernels for Python: addresses in, results at addresses out.
//!
//! The caller owns every buffer; `treepo.engine.kernels` checks their types, shapes and strides.

#![allow(unsafe_code, reason = "buffers of torch tensors are given by their addresses")]

use std::sync::Mutex;

use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyReadwriteArray1};
use pyo3::exceptions::PyMemoryError;
use pyo3::prelude::*;
use treepo_kernels::attention::{self, Buffers, Step, StepArrays, Strided};
use treepo_kernels::decoder::{self, Rotary, Tokens};
use treepo_kernels::elementwise::{self, RmsNorm, RopeShape, Rows, Strided3};
use treepo_kernels::linear::{self, Summands};
use treepo_kernels::sampler::{self, Draws, Logits, NotFinite, SamplingParams};
use treepo_kernels::simd::Level;
use treepo_kernels::team::{GompParallel, Team};

use crate::argument::invalid;
use crate::layers::{
    Activation, AttentionLayer, AttentionStep, DecoderLayer, DecoderModel, Element, at,
    linear_shape, of_element,
};

/// Threads of a team at most.
const MAX_THREADS: usize = 1024;

type Vector<'py, T> = PyReadonlyArray1<'py, T>;
/// Address, elements from token to token, elements from head to head.
type Heads = (usize, usize, usize);

/// Threads and an instruction set.
#[pyclass(module = "treepo.core", frozen)]
pub(crate) struct Kernels {
    team: Team,
    level: Level,
}

#[pymethods]
impl Kernels {
    #[new]
    #[pyo3(signature = (num_threads, *, gomp_parallel=None, level=None))]
    fn new(
        num_threads: usize,
        gomp_parallel: Option<usize>,
        level: Option<&str>,
    ) -> PyResult<Self> {
        if !(1..=MAX_THREADS).contains(&num_threads) {
            return Err(invalid(format!("num_threads is 1 to {MAX_THREADS}, got {num_threads}")));
        }
        let team = match gomp_parallel.filter(|&address| address != 0) {
            // SAFETY: the caller names the C function of OpenMP by its address.
            Some(address) => unsafe {
                let function = std::mem::transmute::<usize, GompParallel>(address);
                Team::openmp(num_threads, function)
            },
            None => Team::parked(num_threads),
        };
        Ok(Self { team, level: level.map_or_else(|| Ok(Level::detect()), named)? })
    }

    #[getter]
    fn level(&self) -> &'static str {
        self.level.name()
    }

    #[getter]
    fn num_threads(&self) -> usize {
        self.team.num_threads()
    }

    fn awake(&self, py: Python<'_>, function: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        self.team.awake(|team| {
            let kernels = Self { team: team.clone(), level: self.level };
            Ok(function.call1((Py::new(py, kernels)?,))?.unbind())
        })
    }

    #[staticmethod]
    fn levels() -> Vec<&'static str> {
        Level::ALL.into_iter().filter(|x| x.is_available()).map(Level::name).collect()
    }

    #[staticmethod]
    fn padded_key_dim(key_dim: usize) -> usize {
        attention::padded_key_dim(key_dim)
    }

    #[staticmethod]
    fn padded_value_dim(value_dim: usize) -> usize {
        attention::padded_value_dim(value_dim)
    }

    #[staticmethod]
    #[pyo3(signature = (*, num_blocks, block_size, query_starts, kv_lens, tables, table_rows,
                        slots, row_order, groups))]
    #[allow(clippy::too_many_arguments, reason = "each is a keyword")]
    fn step(
        num_blocks: usize,
        block_size: usize,
        query_starts: Vector<'_, i32>,
        kv_lens: Vector<'_, i32>,
        tables: PyReadonlyArray2<'_, i32>,
        table_rows: Vector<'_, i32>,
        slots: Vector<'_, i64>,
        row_order: Vector<'_, i32>,
        groups: PyReadonlyArray2<'_, i32>,
    ) -> PyResult<AttentionStep> {
        let arrays = StepArrays {
            query_starts: query_starts.as_slice()?,
            kv_lens: kv_lens.as_slice()?,
            tables: tables.as_slice()?,
            table_stride: tables.as_array().ncols(),
            table_rows: table_rows.as_slice()?,
            slots: slots.as_slice()?,
            row_order: row_order.as_slice()?,
            groups: groups.as_slice()?,
        };
        let inner = Step::new(num_blocks, block_size, &arrays);
        let inner = inner.map_err(|error| invalid(error.to_string()))?;
        Ok(AttentionStep { inner, workspace: Mutex::default() })
    }

    #[allow(clippy::too_many_arguments, reason = "buffers of one call")]
    fn attend(
        &self,
        py: Python<'_>,
        element: Element,
        step: &AttentionStep,
        layer: &AttentionLayer,
        query: Heads,
        key: Heads,
        value: Heads,
        output: usize,
    ) {
        let Self { team, level } = self;
        let step = &step.inner;
        let (of_layer, keys, values) = (layer.layer(), layer.keys, layer.values);
        // SAFETY: the caller vouches for the buffers; the step's slots lie within the pool.
        py.detach(|| unsafe {
            of_element!(element, T => {
                let buffers = buffers::<T>(query, key, value, output, keys, values);
                attention::attend(team, *level, step, &of_layer, &buffers);
            });
        });
    }

    /// `input`: address, elements from row to row; `rotary`: width, cosines, sines. Each layer but
    /// the first reads what the one before it wrote to `output`.
    #[allow(clippy::too_many_arguments, reason = "buffers of one call")]
    #[allow(clippy::needless_pass_by_value, reason = "made from a list")]
    fn decoder_layers(
        &self,
        py: Python<'_>,
        layers: Vec<Py<DecoderLayer>>,
        step: &AttentionStep,
        num_rows: usize,
        rotary: Option<(usize, usize, usize)>,
        input: (usize, usize),
        output: usize,
    ) -> PyResult<()> {
        if num_rows != step.inner.num_tokens() {
            let num_tokens = step.inner.num_tokens();
            return Err(invalid(format!("{num_rows} rows for a step of {num_tokens} tokens")));
        }
        let Some(element) = layers.first().map(|layer| layer.get().element) else {
            return Ok(());
        };
        if layers.iter().any(|layer| layer.get().element != element) {
            return Err(invalid("layers of two formats".into()));
        }
        let (team, level) = (&self.team, self.level);
        // SAFETY: the caller vouches for the buffers; the step's slots lie within the pool.
        let result = py.detach(|| unsafe {
            let workspace = &mut *step.workspace();
            of_element!(element, T => {
                let layers: Vec<_> = layers.iter().map(|layer| layer.get().parts::<T>()).collect();
                let (step, rotary) = (&step.inner, angles(rotary));
                let (from, to) = (rows(input), at(output));
                decoder::decoder_layers(team, level, &layers, step, rotary, workspace, from, to)
            })
        });
        result.map_err(not_computed)
    }

    /// `rotary`: width, cosines, sines.
    #[allow(clippy::too_many_arguments, reason = "buffers of one call")]
    fn logits(
        &self,
        py: Python<'_>,
        model: &DecoderModel,
        step: &AttentionStep,
        token_ids: Vector<'_, i64>,
        wanted: Option<Vector<'_, i64>>,
        rotary: Option<(usize, usize, usize)>,
        output: usize,
    ) -> PyResult<()> {
        let (team, level) = (&self.team, self.level);
        let wanted = wanted.as_ref().map(PyReadonlyArray1::as_slice).transpose()?;
        let tokens = Tokens { ids: token_ids.as_slice()?, wanted };
        // SAFETY: the caller vouches for the buffers; the step's slots lie within the pool.
        let result = py.detach(|| unsafe {
            let workspace = &mut *step.workspace();
            of_element!(model.element, T => {
                let (model, step, rotary) = (&model.parts::<T>(), &step.inner, angles(rotary));
                decoder::logits(team, level, model, step, rotary, tokens, workspace, at(output))
            })
        });
        result.map_err(not_computed)
    }

    #[allow(clippy::too_many_arguments, reason = "buffers of one call")]
    fn rms_norm(
        &self,
        element: Element,
        num_rows: usize,
        width: usize,
        eps: f32,
        offset: f32,
        input: (usize, usize),
        weight: usize,
        output: usize,
    ) {
        let norm = RmsNorm { width, eps, offset };
        let (team, level) = (&self.team, self.level);
        // SAFETY: the caller vouches for the buffers.
        unsafe {
            of_element!(element, T => {
                let (input, weight) = (rows::<T>(input), at(weight));
                elementwise::rms_norm(team, level, num_rows, &norm, input, weight, at(output));
            });
        }
    }

    /// `shape`: inputs, outputs.
    fn packed_len(&self, element: Element, shape: (usize, usize)) -> usize {
        let (level, shape) = (self.level, linear_shape(shape));
        of_element!(element, T => linear::packed_len::<T>(level, shape))
    }

    fn pack(
        &self,
        py: Python<'_>,
        element: Element,
        shape: (usize, usize),
        weight: (usize, usize),
        packed: usize,
    ) {
        let (team, level, shape) = (&self.team, self.level, linear_shape(shape));
        // SAFETY: the caller vouches for the buffers.
        py.detach(|| unsafe {
            of_element!(element, T => {
                linear::pack(team, level, shape, rows::<T>(weight), at(packed));
            });
        });
    }

    #[pyo3(signature = (element, num_rows, shape, input, packed, bias, residual, output))]
    #[allow(clippy::too_many_arguments, reason = "buffers of one call")]
    fn linear(
        &self,
        py: Python<'_>,
        element: Element,
        num_rows: usize,
        shape: (usize, usize),
        input: (usize, usize),
        packed: usize,
        bias: Option<usize>,
        residual: Option<(usize, usize)>,
        output: usize,
    ) {
        let (team, level, shape) = (&self.team, self.level, linear_shape(shape));
        // SAFETY: the caller vouches for the buffers.
        py.detach(|| unsafe {
            of_element!(element, T => {
                let bias = bias.map(|x| at::<T>(x).cast_const());
                let summands = Summands { bias, residual: residual.map(rows) };
                let (input, packed, output) = (rows(input), at(packed), at(output));
                linear::linear(team, level, num_rows, shape, input, packed, summands, output);
            });
        });
    }

    #[allow(clippy::too_many_arguments, reason = "buffers of one call")]
    fn gate(
        &self,
        element: Element,
        num_rows: usize,
        width: usize,
        activation: Activation,
        gate: (usize, usize),
        up: (usize, usize),
        output: usize,
    ) {
        let (team, level, activation) = (&self.team, self.level, activation.into());
        // SAFETY: the caller vouches for the buffers.
        unsafe {
            of_element!(element, T => {
                let (gate, up, to) = (rows::<T>(gate), rows(up), at(output));
                elementwise::gate(team, level, num_rows, width, activation, gate, up, to);
            });
        }
    }

    /// `shape`: tokens, query heads, key heads, head width, rotated width.
    #[allow(clippy::too_many_arguments, reason = "buffers of one call")]
    fn rotate(
        &self,
        element: Element,
        shape: (usize, usize, usize, usize, usize),
        query: Heads,
        key: Heads,
        cos: usize,
        sin: usize,
        query_output: usize,
        key_output: usize,
    ) {
        let (num_tokens, num_heads, num_kv_heads, head_dim, rotary_dim) = shape;
        let of = |num_heads| RopeShape { num_tokens, num_heads, head_dim, rotary_dim };
        let shapes = [of(num_heads), of(num_kv_heads)];
        let (team, level) = (&self.team, self.level);
        // SAFETY: the caller vouches for the buffers.
        unsafe {
            of_element!(element, T => {
                let inputs = [strided::<T>(query), strided(key)];
                let outputs = [at(query_output), at(key_output)];
                let (cos, sin) = (at::<T>(cos), at(sin));
                elementwise::rope_pair(team, level, shapes, inputs, cos, sin, outputs);
            });
        }
    }

    /// `logits`: address, rows, vocabulary, elements from row to row. Returns the first row that
    /// is not finite.
    #[allow(clippy::too_many_arguments, reason = "buffers of one call")]
    fn sample(
        &self,
        py: Python<'_>,
        element: Element,
        logits: (usize, usize, usize, usize),
        rows: Option<Vector<'_, i64>>,
        uniforms: Vector<'_, f64>,
        params: (f32, usize, f32, f32),
        mut token_ids: PyReadwriteArray1<'_, u32>,
        mut logprobs: PyReadwriteArray1<'_, f32>,
        mut entropies: PyReadwriteArray1<'_, f32>,
    ) -> PyResult<Option<usize>> {
        let Self { team, level } = self;
        let (temperature, top_k, top_p, min_p) = params;
        let params = SamplingParams { temperature, top_k, top_p, min_p };
        let rows = rows.as_ref().map(PyReadonlyArray1::as_slice).transpose()?;
        let uniforms = uniforms.as_slice()?;
        let mut out = Draws {
            token_ids: token_ids.as_slice_mut()?,
            logprobs: logprobs.as_slice_mut()?,
            entropies: entropies.as_slice_mut()?,
        };
        let counts = [out.logprobs.len(), out.entropies.len(), uniforms.len()];
        let count = out.token_ids.len();
        if counts != [count; 3] || rows.is_some_and(|rows| rows.len() != count) {
            return Err(invalid(format!("{count} draws need as many rows and uniforms")));
        }
        check_within(rows.unwrap_or(&[]), logits.1, "row")?;
        if rows.is_none() && count != logits.1 {
            return Err(invalid(format!("{count} draws from {} rows of logits", logits.1)));
        }
        // SAFETY: the caller vouches for the buffers.
        let result = py.detach(|| unsafe {
            of_element!(element, T => {
                let logits = matrix::<T>(logits);
                sampler::sample(team, *level, &logits, rows, uniforms, &params, &mut out)
            })
        });
        Ok(result.err().map(|NotFinite { row }| row))
    }

    #[allow(clippy::too_many_arguments, reason = "buffers of one call")]
    fn token_logprobs(
        &self,
        py: Python<'_>,
        element: Element,
        logits: (usize, usize, usize, usize),
        targets: Vector<'_, i64>,
        temperature: f32,
        mut logprobs: PyReadwriteArray1<'_, f32>,
        mut entropies: PyReadwriteArray1<'_, f32>,
    ) -> PyResult<Option<usize>> {
        let Self { team, level } = self;
        let targets = targets.as_slice()?;
        let (logprobs, entropies) = (logprobs.as_slice_mut()?, entropies.as_slice_mut()?);
        let lengths = [logits.1, logprobs.len(), entropies.len()];
        if lengths != [targets.len(); 3] {
            return Err(invalid(format!("{} targets need as many rows", targets.len())));
        }
        check_within(targets, logits.2, "target")?;
        // SAFETY: the caller vouches for the buffers.
        let result = py.detach(|| unsafe {
            of_element!(element, T => {
                let of = matrix::<T>(logits);
                sampler::token_logprobs(team, *level, &of, targets, temperature, logprobs, entropies)
            })
        });
        Ok(result.err().map(|NotFinite { row }| row))
    }
}

/// Width, cosines, sines.
fn angles<T>(rotary: Option<(usize, usize, usize)>) -> Option<Rotary<T>> {
    rotary.map(|(dim, cos, sin)| Rotary { dim, cos: at(cos), sin: at(sin) })
}

fn not_computed(error: decoder::Error) -> PyErr {
    match error {
        decoder::Error::Memory(_) => PyMemoryError::new_err(error.to_string()),
        decoder::Error::Parts(found) => invalid(found),
    }
}

fn check_within(indices: &[i64], end: usize, what: &str) -> PyResult<()> {
    let is_within = |&index: &i64| usize::try_from(index).is_ok_and(|index| index < end);
    match indices.iter().find(|index| !is_within(index)) {
        None => Ok(()),
        Some(index) => Err(invalid(format!("{what} {index} lies outside 0..{end}"))),
    }
}

fn named(name: &str) -> PyResult<Level> {
    let level = Level::ALL.into_iter().find(|level| level.name() == name);
    match level {
        Some(level) if level.is_available() => Ok(level),
        _ => {
            let names = Kernels::levels().join(", ");
            Err(invalid(format!("this processor has no level {name}; it has {names}")))
        }
    }
}

fn rows<T>((address, stride): (usize, usize)) -> Rows<T> {
    Rows { data: at(address), stride }
}

fn strided<T>((address, token_stride, head_stride): Heads) -> Strided3<T> {
    Strided3 { data: at(address), token_stride, head_stride }
}

fn matrix<T>(
    (address, num_rows, vocab_size, row_stride): (usize, usize, usize, usize),
) -> Logits<T> {
    Logits { data: at(address), num_rows, vocab_size, row_stride }
}

fn buffers<T>(
    query: Heads,
    key: Heads,
    value: Heads,
    output: usize,
    keys: usize,
    values: usize,
) -> Buffers<T> {
    let heads = |(address, token_stride, head_stride): Heads| Strided {
        data: at(address),
        token_stride,
        head_stride,
    };
    Buffers {
        query: heads(query),
        key: heads(key),
        value: heads(value),
        output: at(output),
        keys: at(keys),
        values: at(values),
    }
}
