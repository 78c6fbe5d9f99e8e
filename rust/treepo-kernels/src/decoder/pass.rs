//! A layer for the tokens of a step: the kernels of its parts, one after another.

use super::workspace::Lines;
use super::{DecoderLayer, Error, Norm, Packed, Rotary, contiguous};
use crate::attention::{self, Buffers, Step, Strided};
use crate::element::Element;
use crate::elementwise::{
    RopeShape, Rows, Strided3, gate, gather, rms_norm, rms_norm_heads, rope_pair,
};
use crate::linear::{Summands, linear};
use crate::simd::Level;
use crate::team::Team;

/// Layers' way through the tokens of a step.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a, T> {
    pub(super) team: &'a Team,
    pub(super) level: Level,
    pub(super) step: &'a Step,
    pub(super) rotary: Option<Rotary<T>>,
    /// Tokens whose output is wanted, by their place in the step, which exists; all if absent.
    pub(super) wanted: Option<&'a [i64]>,
}

impl<T: Element> Pass<'_, T> {
    /// Computes a layer whose parts fit together.
    ///
    /// # Safety
    /// As [`super::decoder_layers`]; where only some tokens are wanted, `output` has room for their
    /// rows and is not the input.
    pub(super) unsafe fn layer(
        &self,
        layer: &DecoderLayer<'_, T>,
        lines: &mut Lines,
        input: Rows<T>,
        output: *mut T,
    ) -> Result<(), Error> {
        let rotary = self.rotary.filter(|_| layer.rotates);
        let width = layer.width();
        let num_rows = self.step.num_tokens();
        let num_wanted = self.wanted.map_or(num_rows, <[i64]>::len);
        let attention_arrays = layer.attention_arrays(num_rows, self.wanted.map(<[i64]>::len));
        let feed_forward_arrays = layer.feed_forward_arrays(num_wanted);
        lines.reserve::<T>(&attention_arrays)?;
        lines.reserve::<T>(&feed_forward_arrays)?;
        let arrays = lines.arrays(attention_arrays);
        // What attention needed is no longer when the feed-forward part runs: it lies in its place.
        let feed_forward_arrays = lines.arrays(feed_forward_arrays);
        // SAFETY: the caller's condition; the arrays have the sizes of the layer's parts.
        unsafe {
            let attended = self.attend(layer, rotary, arrays, input);
            let (attended, residual) = match self.wanted {
                None => (attended, input),
                Some(wanted) => {
                    let [.., some] = arrays;
                    let dim = layer.output.shape.in_features;
                    gather(self.team, wanted, contiguous(attended, dim), dim, some);
                    gather(self.team, wanted, input, width, output);
                    (some, contiguous(output, width))
                }
            };
            self.product(num_wanted, layer.output, attended, Some(residual), output);
            self.feed_forward(layer, feed_forward_arrays, num_wanted, output);
        }
        Ok(())
    }

    /// Attention of a layer; returns where its results are.
    ///
    /// # Safety
    /// As [`Pass::layer`].
    unsafe fn attend(
        &self,
        layer: &DecoderLayer<'_, T>,
        rotary: Option<Rotary<T>>,
        arrays: [*mut T; 6],
        input: Rows<T>,
    ) -> *mut T {
        let [normal, qkv, query, key, attended, _] = arrays;
        let (team, level, step) = (self.team, self.level, self.step);
        let num_rows = step.num_tokens();
        let heads = layer.attention.shape;
        let dim = heads.key_dim;
        let sides = Sides::new(qkv, heads);
        // SAFETY: the caller's condition.
        unsafe {
            self.norm(num_rows, layer.attention_norm, input, normal);
            self.product(num_rows, layer.qkv, normal, None, qkv);
            if let Some(norms) = layer.head_norms {
                let counts = [heads.num_heads, heads.num_kv_heads];
                for ((norm, side), count) in norms.iter().zip([sides.query, sides.key]).zip(counts)
                {
                    let (stride, norm, weight) = (sides.stride, &norm.norm, norm.weight);
                    rms_norm_heads(team, level, [num_rows, count], stride, norm, weight, side);
                }
            }
            let (query, key) =
                match rotary {
                    None => (sides.heads(sides.query, dim), sides.heads(sides.key, dim)),
                    Some(Rotary { dim: rotary_dim, cos, sin }) => {
                        let inputs = [sides.query, sides.key].map(|side| Strided3 {
                            data: side.cast_const(),
                            token_stride: sides.stride,
                            head_stride: dim,
                        });
                        let shapes = [heads.num_heads, heads.num_kv_heads].map(|num_heads| {
                            RopeShape { num_tokens: num_rows, num_heads, head_dim: dim, rotary_dim }
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
            let value = sides.heads(sides.value, dim);
            let (keys, values) = (layer.keys, layer.values);
            let buffers = Buffers { query, key, value, output: attended, keys, values };
            attention::attend(team, level, step, &layer.attention, &buffers);
        }
        attended
    }

    /// Adds the feed-forward part to rows of y.
    ///
    /// # Safety
    /// As [`Pass::layer`].
    unsafe fn feed_forward(
        &self,
        layer: &DecoderLayer<'_, T>,
        arrays: [*mut T; 3],
        num_rows: usize,
        output: *mut T,
    ) {
        let [normal, gate_up, gated] = arrays;
        let hidden = layer.down.shape.in_features;
        let rows = contiguous(output, layer.width());
        let half = |from: usize| contiguous(gate_up.wrapping_add(from), 2 * hidden);
        let (team, level, activation) = (self.team, self.level, layer.activation);
        // SAFETY: the caller's condition.
        unsafe {
            self.norm(num_rows, layer.feed_forward_norm, rows, normal);
            self.product(num_rows, layer.gate_up, normal, None, gate_up);
            gate(team, level, num_rows, hidden, activation, half(0), half(hidden), gated);
            self.product(num_rows, layer.down, gated, Some(rows), output);
        }
    }

    /// # Safety
    /// As [`rms_norm`].
    unsafe fn norm(&self, num_rows: usize, of: Norm<T>, from: Rows<T>, to: *mut T) {
        // SAFETY: the caller's condition.
        unsafe { rms_norm(self.team, self.level, num_rows, &of.norm, from, of.weight, to) }
    }

    /// # Safety
    /// As [`linear`].
    unsafe fn product(
        &self,
        num_rows: usize,
        of: Packed<T>,
        from: *mut T,
        residual: Option<Rows<T>>,
        to: *mut T,
    ) {
        let from = contiguous(from, of.shape.in_features);
        let summands = Summands { bias: of.bias, residual };
        // SAFETY: the caller's condition.
        unsafe {
            linear(self.team, self.level, num_rows, of.shape, from, of.weight, summands, to);
        }
    }
}

/// Queries, keys and values that stand side by side in rows.
struct Sides<T> {
    query: *mut T,
    key: *mut T,
    value: *mut T,
    stride: usize,
}

impl<T> Sides<T> {
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
