//! A whole decoder layer in one call: the kernels of its parts, one after another.
//!
//! A step of few rows is hundreds of kernels that take microseconds each; calling them one by one
//! from another language costs as much as they do. The bits are those of the single kernels.

use std::collections::TryReserveError;

use crate::attention::{self, Buffers, Step, Strided};
use crate::element::Element;
use crate::elementwise::{
    Activation, RmsNorm, RopeShape, Rows, Strided3, gate, rms_norm, rms_norm_heads, rope_pair,
};
use crate::linear::{LinearShape, Summands, linear};
use crate::simd::Level;
use crate::team::Team;

/// A norm and its weight.
#[derive(Debug, Clone, Copy)]
pub struct Norm<T> {
    /// What it computes.
    pub norm: RmsNorm,
    /// `width` elements.
    pub weight: *const T,
}

/// A linear layer, packed by [`crate::linear::pack`].
#[derive(Debug, Clone, Copy)]
pub struct Packed<T> {
    /// Inputs and outputs.
    pub shape: LinearShape,
    /// The packed weight.
    pub weight: *const T,
    /// One element an output.
    pub bias: Option<*const T>,
}

/// The two norms, two products before and two behind of a pre-norm decoder layer:
///
/// ```text
/// h = x + output(attention(rope(head_norms(qkv(attention_norm(x))))))
/// y = h + down(activation(gate(n)) * up(n))    with n = feed_forward_norm(h)
/// ```
#[derive(Debug, Clone, Copy)]
pub struct DecoderLayer<'a, T> {
    /// Norm in front of attention.
    pub attention_norm: Norm<T>,
    /// Queries, keys and values side by side.
    pub qkv: Packed<T>,
    /// Norms of each head's queries and keys.
    pub head_norms: Option<[Norm<T>; 2]>,
    /// Attention; a value is as wide as a key.
    pub attention: attention::Layer<'a>,
    /// Its part of the pool: see [`Buffers`].
    pub keys: *mut T,
    /// As `keys`.
    pub values: *mut T,
    /// Product behind attention.
    pub output: Packed<T>,
    /// Norm in front of the feed-forward part.
    pub feed_forward_norm: Norm<T>,
    /// Gate and up side by side.
    pub gate_up: Packed<T>,
    /// Function of the gate.
    pub activation: Activation,
    /// Product behind the gate.
    pub down: Packed<T>,
}

/// Cosines and sines of a step's tokens, `[num_tokens, dim]` each.
#[derive(Debug, Clone, Copy)]
pub struct Rotary<T> {
    /// Rotated elements of a head; even.
    pub dim: usize,
    /// Cosines.
    pub cos: *const T,
    /// Sines.
    pub sin: *const T,
}

/// Memory for what lies between the kernels of a layer, used again by the next one.
#[derive(Debug, Default)]
pub struct Workspace {
    lines: Vec<Line>,
}

/// One cache line, so that vectors do not straddle two.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE_BYTES]);

const LINE_BYTES: usize = 64;

impl Workspace {
    /// Makes room for the layer's arrays.
    fn reserve<T>(&mut self, layer: &DecoderLayer<'_, T>, num_rows: usize) -> Result<(), Error> {
        let needed = |lens: &[usize]| lens.iter().map(|&len| lines::<T>(len)).sum::<usize>();
        let needed = needed(&layer.attention_arrays(num_rows))
            .max(needed(&layer.feed_forward_arrays(num_rows)));
        if self.lines.len() < needed {
            self.lines.clear();
            self.lines.try_reserve_exact(needed)?;
            self.lines.resize(needed, Line([0; LINE_BYTES]));
        }
        Ok(())
    }

    /// Arrays of so many elements, each from a line's begin on, for which there is room.
    fn arrays<T, const N: usize>(&mut self, lens: [usize; N]) -> [*mut T; N] {
        let first = self.lines.as_mut_ptr();
        let mut end = 0;
        lens.map(|len| {
            let start = end;
            end += lines::<T>(len);
            debug_assert!(end <= self.lines.len());
            first.wrapping_add(start).cast()
        })
    }
}

/// Lines of so many elements.
fn lines<T>(len: usize) -> usize {
    (len * size_of::<T>()).div_ceil(LINE_BYTES)
}

/// Computes a layer for the tokens of a step: reads rows of x, writes rows of y.
///
/// # Errors
/// If the widths of its parts do not fit together, or there is no memory for what lies between them.
///
/// # Panics
/// As [`attention::attend`].
///
/// # Safety
/// Pointers hold what their fields say, in the shapes of the layer and the step; `output` has room
/// for a row of the layer's width for each token, and may be the input where that is contiguous.
/// Nothing else overlaps, and nobody else writes any of it, or touches output and pool, meanwhile.
#[allow(clippy::too_many_arguments, reason = "buffers of one call")]
pub unsafe fn decoder_layer<T: Element>(
    team: &Team,
    level: Level,
    layer: &DecoderLayer<'_, T>,
    step: &Step,
    rotary: Option<Rotary<T>>,
    workspace: &mut Workspace,
    input: Rows<T>,
    output: *mut T,
) -> Result<(), Error> {
    layer.check()?;
    let num_rows = step.num_tokens();
    let heads = layer.attention.shape;
    let (dim, width) = (heads.key_dim, layer.attention_norm.norm.width);
    let hidden = layer.down.shape.in_features;
    workspace.reserve(layer, num_rows)?;
    let arrays = workspace.arrays(layer.attention_arrays(num_rows));
    let [normal, qkv, query, key, attended] = arrays;
    let contiguous = |data: *mut T, stride: usize| Rows { data: data.cast_const(), stride };
    let norm = |norm: Norm<T>, from: Rows<T>| {
        // SAFETY: the caller's condition.
        unsafe { rms_norm(team, level, num_rows, &norm.norm, from, norm.weight, normal) }
    };
    let product = |of: Packed<T>, from: *mut T, residual: Option<Rows<T>>, to: *mut T| {
        let from = contiguous(from, of.shape.in_features);
        let summands = Summands { bias: of.bias, residual };
        // SAFETY: the caller's condition.
        unsafe { linear(team, level, num_rows, of.shape, from, of.weight, summands, to) }
    };
    norm(layer.attention_norm, input);
    product(layer.qkv, normal, None, qkv);
    let parts = Parts::new(qkv, heads);
    // SAFETY: the arrays have the sizes of the layer's parts.
    unsafe {
        if let Some(norms) = layer.head_norms {
            let counts = [heads.num_heads, heads.num_kv_heads];
            for ((norm, part), count) in norms.iter().zip([parts.query, parts.key]).zip(counts) {
                let (stride, norm, weight) = (parts.stride, &norm.norm, norm.weight);
                rms_norm_heads(team, level, [num_rows, count], stride, norm, weight, part);
            }
        }
        let (query, key) = match rotary {
            None => (parts.heads(parts.query, dim), parts.heads(parts.key, dim)),
            Some(Rotary { dim: rotary_dim, cos, sin }) => {
                let inputs = [parts.query, parts.key].map(|part| Strided3 {
                    data: part.cast_const(),
                    token_stride: parts.stride,
                    head_stride: dim,
                });
                let shapes = [heads.num_heads, heads.num_kv_heads].map(|num_heads| RopeShape {
                    num_tokens: num_rows,
                    num_heads,
                    head_dim: dim,
                    rotary_dim,
                });
                rope_pair(team, level, shapes, inputs, cos, sin, [query, key]);
                let rotated = |data: *mut T, num_heads: usize| Strided {
                    data: data.cast_const(),
                    token_stride: num_heads * dim,
                    head_stride: dim,
                };
                (rotated(query, heads.num_heads), rotated(key, heads.num_kv_heads))
            }
        };
        let value = parts.heads(parts.value, dim);
        let (keys, values) = (layer.keys, layer.values);
        let buffers = Buffers { query, key, value, output: attended, keys, values };
        attention::attend(team, level, step, &layer.attention, &buffers);
    }
    product(layer.output, attended, Some(input), output);
    norm(layer.feed_forward_norm, contiguous(output, width));
    // What attention needed is no longer: these lie in its place.
    let [normal, gate_up, gated] = workspace.arrays(layer.feed_forward_arrays(num_rows));
    product(layer.gate_up, normal, None, gate_up);
    let half = |from: usize| contiguous(gate_up.wrapping_add(from), 2 * hidden);
    // SAFETY: the arrays have the sizes of the layer's parts.
    unsafe {
        gate(team, level, num_rows, hidden, layer.activation, half(0), half(hidden), gated);
    }
    product(layer.down, gated, Some(contiguous(output, width)), output);
    Ok(())
}

/// A layer cannot be computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// Its parts do not fit together.
    Parts(String),
    /// There is no memory for what lies between its kernels.
    Memory(TryReserveError),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Parts(found) => found.fmt(f),
            Self::Memory(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<TryReserveError> for Error {
    fn from(error: TryReserveError) -> Self {
        Self::Memory(error)
    }
}

impl<T> DecoderLayer<'_, T> {
    /// Elements of what lies between the kernels of attention: the norm, queries with keys and values,
    /// rotated queries and keys, results.
    fn attention_arrays(&self, num_rows: usize) -> [usize; 5] {
        let heads = self.attention.shape;
        let [queries, keys] = [heads.num_heads, heads.num_kv_heads].map(|n| n * heads.key_dim);
        let width = self.attention_norm.norm.width;
        [width, self.qkv.shape.out_features, queries, keys, queries].map(|len| num_rows * len)
    }

    /// The same of the feed-forward part: the norm, gate with up, their product.
    fn feed_forward_arrays(&self, num_rows: usize) -> [usize; 3] {
        let hidden = self.down.shape.in_features;
        [self.attention_norm.norm.width, 2 * hidden, hidden].map(|len| num_rows * len)
    }

    /// Whether its parts fit together.
    ///
    /// # Errors
    /// [`Error::Parts`] names the part that does not.
    pub fn check(&self) -> Result<(), Error> {
        let heads = self.attention.shape;
        let width = self.attention_norm.norm.width;
        let attended = heads.num_heads * heads.key_dim;
        let qkv = attended + 2 * heads.num_kv_heads * heads.key_dim;
        let hidden = self.down.shape.in_features;
        let products = [
            ("qkv", self.qkv.shape, (width, qkv)),
            ("output", self.output.shape, (attended, width)),
            ("gate_up", self.gate_up.shape, (width, 2 * hidden)),
            ("down", self.down.shape, (hidden, width)),
        ];
        for (name, LinearShape { in_features, out_features }, expected) in products {
            let found = (in_features, out_features);
            if found != expected {
                return Err(Error::Parts(format!(
                    "{name} has inputs and outputs {found:?}, the other parts want {expected:?}"
                )));
            }
        }
        let head_norms = self.head_norms.iter().flatten().map(|norm| (norm, heads.key_dim));
        for (norm, expected) in head_norms.chain([(&self.feed_forward_norm, width)]) {
            if norm.norm.width != expected {
                let found = norm.norm.width;
                return Err(Error::Parts(format!("a norm of {found} where {expected} are normed")));
            }
        }
        if heads.key_dim != heads.value_dim {
            let (key, value) = (heads.key_dim, heads.value_dim);
            return Err(Error::Parts(format!("keys of {key} and values of {value} elements")));
        }
        Ok(())
    }
}

/// Queries, keys and values that stand side by side in rows.
struct Parts<T> {
    query: *mut T,
    key: *mut T,
    value: *mut T,
    stride: usize,
}

impl<T> Parts<T> {
    fn new(qkv: *mut T, heads: attention::Shape) -> Self {
        let [queries, keys] = [heads.num_heads, heads.num_kv_heads].map(|n| n * heads.key_dim);
        Self {
            query: qkv,
            key: qkv.wrapping_add(queries),
            value: qkv.wrapping_add(queries + keys),
            stride: queries + 2 * keys,
        }
    }

    fn heads(&self, part: *mut T, dim: usize) -> Strided<T> {
        Strided { data: part.cast_const(), token_stride: self.stride, head_stride: dim }
    }
}
