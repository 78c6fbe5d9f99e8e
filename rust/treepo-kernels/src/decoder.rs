//! Whole decoder layers, and models of them, in one call: the kernels of their parts, one after another.
//!
//! A step of few rows is hundreds of kernels that take microseconds each; calling them one by one
//! from another language costs as much as they do. The bits are those of the single kernels.

use std::collections::TryReserveError;

mod model;
mod pass;
mod workspace;

pub use model::{Model, Tokens, logits};
pub use workspace::Workspace;

use crate::attention::{self, Step};
use crate::element::Element;
use crate::elementwise::{Activation, RmsNorm, Rows};
use crate::linear::LinearShape;
use crate::simd::Level;
use crate::team::Team;

use pass::Pass;

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
    /// Whether queries and keys are rotated by their positions.
    pub rotates: bool,
    /// Norms of each head's queries and keys.
    pub head_norms: Option<[Norm<T>; 2]>,
    /// Attention; a value is as wide as a key.
    pub attention: attention::Layer<'a>,
    /// Its part of the pool: see [`crate::attention::Buffers`].
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

/// Computes layers, one after another, for the tokens of a step: reads rows of x, writes rows of y.
///
/// # Errors
/// If widths do not fit together, a layer rotates by angles that are missing or do not fit, or there is
/// no memory for what lies between the kernels.
///
/// # Panics
/// As [`attention::attend`].
///
/// # Safety
/// Pointers hold what their fields say, in the shapes of the layers and the step; `output` has room
/// for a row of the layers' width for each token, and may be the input where that is contiguous.
/// Nothing else overlaps, and nobody else writes any of it, or touches output and pool, meanwhile.
#[allow(clippy::too_many_arguments, reason = "buffers of one call")]
pub unsafe fn decoder_layers<T: Element>(
    team: &Team,
    level: Level,
    layers: &[DecoderLayer<'_, T>],
    step: &Step,
    rotary: Option<Rotary<T>>,
    workspace: &mut Workspace,
    input: Rows<T>,
    output: *mut T,
) -> Result<(), Error> {
    check_layers(layers)?;
    check_rotary(layers, rotary.map(|x| x.dim))?;
    let pass = Pass { team, level, step, rotary, wanted: None };
    let mut from = input;
    for layer in layers {
        // SAFETY: the caller's condition.
        unsafe { pass.layer(layer, &mut workspace.of_layer, from, output)? }
        from = contiguous(output, layer.width());
    }
    Ok(())
}

/// Whether layers and their parts fit together.
fn check_layers<T>(layers: &[DecoderLayer<'_, T>]) -> Result<(), Error> {
    for layer in layers {
        layer.check()?;
        let (found, first) = (layer.width(), layers[0].width());
        if found != first {
            return Err(parts(format!("a layer of {found} elements, the first has {first}")));
        }
    }
    Ok(())
}

/// Whether layers that rotate can do so by angles for so many elements of a head.
fn check_rotary<T>(layers: &[DecoderLayer<'_, T>], rotary_dim: Option<usize>) -> Result<(), Error> {
    for layer in layers.iter().filter(|layer| layer.rotates) {
        let Some(dim) = rotary_dim else {
            return Err(parts("a layer rotates and there are no cosines and sines".into()));
        };
        let key_dim = layer.attention.shape.key_dim;
        if dim % 2 != 0 || dim > key_dim {
            return Err(parts(format!("{dim} elements of a key of {key_dim} cannot be rotated")));
        }
    }
    Ok(())
}

fn contiguous<T>(data: *mut T, stride: usize) -> Rows<T> {
    Rows { data: data.cast_const(), stride }
}

/// Layers or a model cannot be computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// Parts do not fit together, or not to the step.
    Parts(String),
    /// There is no memory for what lies between the kernels.
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

fn parts(found: String) -> Error {
    Error::Parts(found)
}

impl<T> DecoderLayer<'_, T> {
    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.attention_norm.norm.width
    }

    /// Elements of what lies between the kernels of attention: the norm, queries with keys and values,
    /// rotated queries and keys, results, those of them that are wanted.
    fn attention_arrays(&self, num_rows: usize, num_wanted: Option<usize>) -> [usize; 6] {
        let heads = self.attention.shape;
        let [queries, keys] = [heads.num_heads, heads.num_kv_heads].map(|n| n * heads.key_dim);
        let qkv = self.qkv.shape.out_features;
        let some = num_wanted.map_or(0, |count| count * queries);
        let [normal, qkv, query, key, attended] =
            [self.width(), qkv, queries, keys, queries].map(|len| num_rows * len);
        [normal, qkv, query, key, attended, some]
    }

    /// The same of the feed-forward part: the norm, gate with up, their product.
    fn feed_forward_arrays(&self, num_rows: usize) -> [usize; 3] {
        let hidden = self.down.shape.in_features;
        [self.width(), 2 * hidden, hidden].map(|len| num_rows * len)
    }

    /// Whether its parts fit together.
    ///
    /// # Errors
    /// [`Error::Parts`] names the part that does not.
    pub fn check(&self) -> Result<(), Error> {
        let heads = self.attention.shape;
        let width = self.width();
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
                return Err(parts(format!(
                    "{name} has inputs and outputs {found:?}, the other parts want {expected:?}"
                )));
            }
        }
        let head_norms = self.head_norms.iter().flatten().map(|norm| (norm, heads.key_dim));
        for (norm, expected) in head_norms.chain([(&self.feed_forward_norm, width)]) {
            if norm.norm.width != expected {
                let found = norm.norm.width;
                return Err(parts(format!("a norm of {found} where {expected} are normed")));
            }
        }
        if heads.key_dim != heads.value_dim {
            let (key, value) = (heads.key_dim, heads.value_dim);
            return Err(parts(format!("keys of {key} and values of {value} elements")));
        }
        Ok(())
    }
}
