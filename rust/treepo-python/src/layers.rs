//! What kernels are told of a layer and a step: shapes, settings and addresses.

#![allow(unsafe_code, reason = "buffers of torch tensors are given by their addresses")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use treepo_kernels::attention::{Layer, Shape, Step};
use treepo_kernels::decoder::{self, Norm, Packed, Workspace};
use treepo_kernels::elementwise::{self, RmsNorm, Rows};
use treepo_kernels::linear::LinearShape;

use crate::argument::invalid;

/// Number format of a buffer.
#[pyclass(module = "treepo.core", eq, eq_int, frozen, hash, from_py_object)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Element {
    F32,
    BF16,
}

/// Compiles `$body` for each number format and runs the one of `$element`.
macro_rules! of_element {
    ($element:expr, $format:ident => $body:expr) => {
        match $element {
            Element::F32 => {
                type $format = f32;
                $body
            }
            Element::BF16 => {
                type $format = treepo_kernels::element::Bf16;
                $body
            }
        }
    };
}
pub(crate) use of_element;

/// Function of a gated feed-forward layer.
#[pyclass(module = "treepo.core", eq, eq_int, frozen, hash, from_py_object)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Activation {
    #[pyo3(name = "SILU")]
    Silu,
    #[pyo3(name = "GELU")]
    Gelu,
    #[pyo3(name = "GELU_TANH")]
    GeluTanh,
}

impl From<Activation> for elementwise::Activation {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::Silu => Self::Silu,
            Activation::Gelu => Self::Gelu,
            Activation::GeluTanh => Self::GeluTanh,
        }
    }
}

/// The rows of one step and where their keys and values are.
#[pyclass(module = "treepo.core", frozen)]
pub(crate) struct AttentionStep {
    pub(crate) inner: Step,
    /// Of whole layers and models.
    pub(crate) workspace: Mutex<Workspace>,
}

impl AttentionStep {
    /// Memory for what lies between kernels, for one call at a time.
    pub(crate) fn workspace(&self) -> MutexGuard<'_, Workspace> {
        self.workspace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one layer's attention computes, and its keys and values.
#[pyclass(module = "treepo.core", frozen)]
pub(crate) struct AttentionLayer {
    shape: Shape,
    scaling: f32,
    window: Option<usize>,
    softcap: Option<f32>,
    sinks: Option<Vec<f32>>,
    pub(crate) keys: usize,
    pub(crate) values: usize,
}

#[pymethods]
impl AttentionLayer {
    #[new]
    #[pyo3(signature = (*, num_heads, num_kv_heads, key_dim, value_dim, scaling, keys, values,
                        window=None, softcap=None, sinks=None))]
    #[allow(clippy::too_many_arguments, reason = "each is a keyword")]
    fn new(
        num_heads: usize,
        num_kv_heads: usize,
        key_dim: usize,
        value_dim: usize,
        scaling: f32,
        keys: usize,
        values: usize,
        window: Option<usize>,
        softcap: Option<f32>,
        sinks: Option<Vec<f32>>,
    ) -> PyResult<Self> {
        if num_kv_heads == 0 || !num_heads.is_multiple_of(num_kv_heads) {
            return Err(invalid(format!(
                "{num_heads} query heads cannot share {num_kv_heads} key heads evenly"
            )));
        }
        if num_heads == 0 || window == Some(0) {
            return Err(invalid(format!(
                "{num_heads} heads and a window of {window:?}: both are at least 1"
            )));
        }
        if let Some(sinks) = sinks.as_ref().filter(|sinks| sinks.len() != num_heads) {
            return Err(invalid(format!("{} sinks for {num_heads} heads", sinks.len())));
        }
        let shape = Shape { num_heads, num_kv_heads, key_dim, value_dim };
        Ok(Self { shape, scaling, window, softcap, sinks, keys, values })
    }
}

impl AttentionLayer {
    pub(crate) fn layer(&self) -> Layer<'_> {
        let Self { shape, scaling, window, softcap, ref sinks, .. } = *self;
        Layer { shape, scaling, window, softcap, sinks: sinks.as_deref() }
    }
}

type NormArgs = (usize, usize, f32, f32);
type PackedArgs = (usize, (usize, usize), Option<usize>);

/// A pre-norm decoder layer whose parts are all kernels, and its weights by address.
#[pyclass(module = "treepo.core", frozen)]
pub(crate) struct DecoderLayer {
    pub(crate) element: Element,
    attention: Py<AttentionLayer>,
    rotates: bool,
    activation: Activation,
    norms: [NormArgs; 2],
    head_norms: Option<[NormArgs; 2]>,
    qkv: PackedArgs,
    output: PackedArgs,
    gate_up: PackedArgs,
    down: PackedArgs,
}

#[pymethods]
impl DecoderLayer {
    #[new]
    #[pyo3(signature = (element, attention, activation, *, rotates, norms, head_norms, qkv, output,
                        gate_up, down))]
    #[allow(clippy::too_many_arguments, reason = "each is a part of the layer")]
    fn new(
        element: Element,
        attention: Py<AttentionLayer>,
        activation: Activation,
        rotates: bool,
        norms: [NormArgs; 2],
        head_norms: Option<[NormArgs; 2]>,
        qkv: PackedArgs,
        output: PackedArgs,
        gate_up: PackedArgs,
        down: PackedArgs,
    ) -> PyResult<Self> {
        let layer = Self {
            element,
            attention,
            rotates,
            activation,
            norms,
            head_norms,
            qkv,
            output,
            gate_up,
            down,
        };
        of_element!(element, T => layer.parts::<T>().check())
            .map_err(|error| invalid(error.to_string()))?;
        Ok(layer)
    }
}

impl DecoderLayer {
    pub(crate) fn parts<T>(&self) -> decoder::DecoderLayer<'_, T> {
        let attention = self.attention.get();
        let [attention_norm, feed_forward_norm] = self.norms.map(norm::<T>);
        decoder::DecoderLayer {
            attention_norm,
            qkv: packed(self.qkv),
            rotates: self.rotates,
            head_norms: self.head_norms.map(|norms| norms.map(norm)),
            attention: attention.layer(),
            keys: at(attention.keys),
            values: at(attention.values),
            output: packed(self.output),
            feed_forward_norm,
            gate_up: packed(self.gate_up),
            activation: self.activation.into(),
            down: packed(self.down),
        }
    }
}

/// A language model whose parts are all kernels, and its weights by address.
#[pyclass(module = "treepo.core", frozen)]
pub(crate) struct DecoderModel {
    pub(crate) element: Element,
    layers: Vec<Py<DecoderLayer>>,
    /// Address, rows, elements from row to row.
    embedding: (usize, usize, usize),
    norm: NormArgs,
    head: PackedArgs,
}

#[pymethods]
impl DecoderModel {
    #[new]
    #[pyo3(signature = (element, layers, *, embedding, norm, head))]
    fn new(
        element: Element,
        layers: Vec<Py<DecoderLayer>>,
        embedding: (usize, usize, usize),
        norm: NormArgs,
        head: PackedArgs,
    ) -> PyResult<Self> {
        if layers.iter().any(|layer| layer.get().element != element) {
            return Err(invalid("layers of another format than the model's".into()));
        }
        let model = Self { element, layers, embedding, norm, head };
        of_element!(element, T => model.parts::<T>().check())
            .map_err(|error| invalid(error.to_string()))?;
        Ok(model)
    }
}

impl DecoderModel {
    pub(crate) fn parts<T>(&self) -> decoder::Model<'_, T> {
        let (address, num_embeddings, stride) = self.embedding;
        decoder::Model {
            embedding: Rows { data: at(address), stride },
            num_embeddings,
            layers: self.layers.iter().map(|layer| layer.get().parts()).collect(),
            norm: norm(self.norm),
            head: packed(self.head),
        }
    }
}

fn norm<T>((weight, width, eps, offset): NormArgs) -> Norm<T> {
    Norm { norm: RmsNorm { width, eps, offset }, weight: at(weight) }
}

fn packed<T>((weight, shape, bias): PackedArgs) -> Packed<T> {
    let bias = bias.map(|bias| at::<T>(bias).cast_const());
    Packed { shape: linear_shape(shape), weight: at(weight), bias }
}

pub(crate) fn at<T>(address: usize) -> *mut T {
    std::ptr::with_exposed_provenance_mut(address)
}

pub(crate) fn linear_shape((in_features, out_features): (usize, usize)) -> LinearShape {
    LinearShape { in_features, out_features }
}
