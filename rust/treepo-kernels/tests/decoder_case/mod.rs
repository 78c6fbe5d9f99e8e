//! Layers with numbers, and what their kernels compute one by one.

#![allow(dead_code, reason = "each test uses a part")]

use proptest::prelude::*;
use treepo_kernels::attention::{
    self, Buffers, Shape, Step, Strided, attend, padded_key_dim, padded_value_dim,
};
use treepo_kernels::decoder::{DecoderLayer, Norm, Packed, Rotary, Workspace, decoder_layers};
use treepo_kernels::element::Element;
use treepo_kernels::elementwise::{
    Activation, RmsNorm, RopeShape, Rows, Strided3, gate, rms_norm, rope,
};
use treepo_kernels::linear::{LinearShape, Summands, linear, pack, packed_len};
use treepo_kernels::simd::Level;
use treepo_kernels::team::Team;

use crate::attention_case::{Arrays, Case, RowSpec, number};

/// A layer and the tokens of a step.
#[derive(Debug, Clone)]
pub(crate) struct Sizes {
    /// Rows, blocks, heads and window.
    pub(crate) tokens: Case,
    pub(crate) width: usize,
    pub(crate) hidden: usize,
    pub(crate) rotary_dim: Option<usize>,
    pub(crate) has_head_norms: bool,
    /// Of queries, keys and values; output; gate and up; down.
    pub(crate) has_bias: [bool; 4],
    /// Of every norm.
    pub(crate) offset: f32,
    pub(crate) activation: Activation,
    /// Elements between rows of the input.
    pub(crate) gap: usize,
}

impl Sizes {
    pub(crate) fn num_tokens(&self) -> usize {
        self.tokens.rows.iter().map(|row| row.num_tokens).sum()
    }

    /// Elements of a token's queries, and of its keys.
    pub(crate) fn heads(&self) -> [usize; 2] {
        let Shape { num_heads, num_kv_heads, key_dim, .. } = self.tokens.shape;
        [num_heads * key_dim, num_kv_heads * key_dim]
    }

    /// Of queries, keys and values; output; gate and up; down.
    pub(crate) fn products(&self) -> [LinearShape; 4] {
        let [queries, keys] = self.heads();
        let shape = |in_features, out_features| LinearShape { in_features, out_features };
        [
            shape(self.width, queries + 2 * keys),
            shape(queries, self.width),
            shape(self.width, 2 * self.hidden),
            shape(self.hidden, self.width),
        ]
    }

    pub(crate) fn norm(&self, width: usize) -> RmsNorm {
        RmsNorm { width, eps: 1e-5, offset: self.offset }
    }
}

/// `count` numbers, the same for a kind.
pub(crate) fn numbers<T: Element>(kind: usize, count: usize) -> Vec<T> {
    (0..count).map(|i| T::from_f32(number([kind, i, 0, 0]))).collect()
}

pub(crate) struct Weights<T> {
    norms: [Vec<T>; 2],
    head_norms: [Vec<T>; 2],
    packed: [Vec<T>; 4],
    biases: [Option<Vec<T>>; 4],
    pub(crate) cos: Vec<T>,
    pub(crate) sin: Vec<T>,
}

impl<T: Element> Weights<T> {
    pub(crate) fn new(sizes: &Sizes, level: Level) -> Self {
        let (num_tokens, dim) = (sizes.num_tokens(), sizes.tokens.shape.key_dim);
        let num_angles = num_tokens * sizes.rotary_dim.unwrap_or(0);
        let packed = std::array::from_fn(|i| {
            let shape = sizes.products()[i];
            let weight = numbers::<T>(10 + i, shape.in_features * shape.out_features);
            let rows = Rows { data: weight.as_ptr(), stride: shape.in_features };
            let mut packed = vec![T::ZERO; packed_len::<T>(level, shape)];
            // SAFETY: both have the size of the shape.
            unsafe { pack(&Team::alone(), level, shape, rows, packed.as_mut_ptr()) }
            packed
        });
        Self {
            norms: [numbers(1, sizes.width), numbers(2, sizes.width)],
            head_norms: [numbers(3, dim), numbers(4, dim)],
            packed,
            biases: std::array::from_fn(|i| {
                sizes.has_bias[i].then(|| numbers(20 + i, sizes.products()[i].out_features))
            }),
            cos: numbers(5, num_angles),
            sin: numbers(6, num_angles),
        }
    }

    pub(crate) fn bias(&self, product: usize) -> Option<*const T> {
        self.biases[product].as_ref().map(Vec::as_ptr)
    }
}

/// Keys and values, with numbers where earlier steps wrote.
#[derive(Clone)]
pub(crate) struct Pool<T> {
    pub(crate) keys: Vec<T>,
    pub(crate) values: Vec<T>,
}

/// What a layer computes: its output and the pool behind it.
pub(crate) type Computed<T> = (Vec<T>, Pool<T>);

/// A layer with numbers, at a level.
pub(crate) struct Setup<'a, T> {
    pub(crate) sizes: &'a Sizes,
    pub(crate) level: Level,
    pub(crate) weights: Weights<T>,
    pub(crate) step: Step,
    pub(crate) pool: Pool<T>,
    /// Rows of `width`, `gap` elements between them.
    pub(crate) input: Vec<T>,
}

impl<'a, T: Element> Setup<'a, T> {
    pub(crate) fn new(sizes: &'a Sizes, level: Level) -> Self {
        let case = &sizes.tokens;
        let (tables, num_blocks) = case.tables();
        let arrays = Arrays::new(case, &tables);
        let step = Step::new(num_blocks, case.block_size, &arrays.view()).expect("valid arrays");
        let num_slots = num_blocks * case.shape.num_kv_heads * case.block_size;
        let padded = padded_value_dim(case.shape.value_dim);
        let pool = Pool {
            keys: numbers(7, num_slots * padded_key_dim(case.shape.key_dim)),
            values: numbers(8, num_slots * padded),
        };
        let input = numbers(9, step.num_tokens() * (sizes.width + sizes.gap));
        Self { sizes, level, weights: Weights::new(sizes, level), step, pool, input }
    }

    pub(crate) fn attention(&self) -> attention::Layer<'static> {
        let Case { shape, window, softcap, .. } = self.sizes.tokens;
        attention::Layer { shape, scaling: 0.3, window, softcap, sinks: None }
    }

    pub(crate) fn layer(&self, pool: &mut Pool<T>) -> DecoderLayer<'static, T> {
        let Self { sizes, weights, .. } = self;
        let dim = sizes.tokens.shape.key_dim;
        let norm = |width, weight: &[T]| Norm { norm: sizes.norm(width), weight: weight.as_ptr() };
        let [qkv, output, gate_up, down] = [0, 1, 2, 3].map(|i| Packed {
            shape: sizes.products()[i],
            weight: weights.packed[i].as_ptr(),
            bias: weights.bias(i),
        });
        DecoderLayer {
            attention_norm: norm(sizes.width, &weights.norms[0]),
            qkv,
            rotates: sizes.rotary_dim.is_some(),
            head_norms: sizes
                .has_head_norms
                .then(|| [0, 1].map(|i| norm(dim, &weights.head_norms[i]))),
            attention: self.attention(),
            keys: pool.keys.as_mut_ptr(),
            values: pool.values.as_mut_ptr(),
            output,
            feed_forward_norm: norm(sizes.width, &weights.norms[1]),
            gate_up,
            activation: sizes.activation,
            down,
        }
    }

    /// In one call; where `is_in_place`, from contiguous rows onto themselves.
    pub(crate) fn whole(
        &self,
        team: &Team,
        workspace: &mut Workspace,
        is_in_place: bool,
    ) -> Computed<T> {
        let width = self.sizes.width;
        let mut pool = self.pool.clone();
        let mut output = vec![T::from_f32(f32::NAN); self.step.num_tokens() * width];
        let mut input = Rows { data: self.input.as_ptr(), stride: width + self.sizes.gap };
        if is_in_place {
            output = self.input[..output.len()].to_vec();
            input = Rows { data: output.as_mut_ptr().cast_const(), stride: width };
        }
        let (cos, sin) = (self.weights.cos.as_ptr(), self.weights.sin.as_ptr());
        let rotary = self.sizes.rotary_dim.map(|dim| Rotary { dim, cos, sin });
        let (layer, to) = (self.layer(&mut pool), output.as_mut_ptr());
        // SAFETY: the buffers have the sizes of the layer and the step.
        unsafe {
            decoder_layers(team, self.level, &[layer], &self.step, rotary, workspace, input, to)
        }
        .expect("the parts fit");
        (output, pool)
    }

    /// By the caller alone, kernel by kernel, each into a buffer of its own.
    pub(crate) fn parts(&self, stride: usize) -> Computed<T> {
        let Self { sizes, weights, .. } = self;
        let mut pool = self.pool.clone();
        let input = Rows { data: self.input.as_ptr(), stride };
        let normal = self.normed(sizes.width, input, self.step.num_tokens(), &weights.norms[0]);
        let qkv = self.product(0, contiguous(&normal, sizes.width), None);
        let attended = self.attended(&qkv, &mut pool);
        let after = self.product(1, contiguous(&attended, sizes.heads()[0]), Some(input));
        let rows = contiguous(&after, sizes.width);
        let normal = self.normed(sizes.width, rows, self.step.num_tokens(), &weights.norms[1]);
        let gate_up = self.product(2, contiguous(&normal, sizes.width), None);
        let gated = self.gated(&gate_up);
        (self.product(3, contiguous(&gated, sizes.hidden), Some(rows)), pool)
    }

    pub(crate) fn normed(
        &self,
        width: usize,
        input: Rows<T>,
        num_rows: usize,
        weight: &[T],
    ) -> Vec<T> {
        let (team, norm) = (Team::alone(), self.sizes.norm(width));
        let mut output = vec![T::ZERO; num_rows * width];
        let (weight, to) = (weight.as_ptr(), output.as_mut_ptr());
        // SAFETY: the buffers have these sizes.
        unsafe { rms_norm(&team, self.level, num_rows, &norm, input, weight, to) }
        output
    }

    pub(crate) fn product(
        &self,
        index: usize,
        input: Rows<T>,
        residual: Option<Rows<T>>,
    ) -> Vec<T> {
        let (shape, num_rows) = (self.sizes.products()[index], self.step.num_tokens());
        let summands = Summands { bias: self.weights.bias(index), residual };
        let weight = self.weights.packed[index].as_ptr();
        let mut output = vec![T::ZERO; num_rows * shape.out_features];
        let (team, to) = (Team::alone(), output.as_mut_ptr());
        // SAFETY: the buffers have these sizes.
        unsafe { linear(&team, self.level, num_rows, shape, input, weight, summands, to) }
        output
    }

    /// Queries (0) or keys (1) as attention reads them: `[num_tokens, num_heads, dim]`.
    pub(crate) fn positioned(&self, part: Vec<T>, index: usize) -> Vec<T> {
        let shape = self.sizes.tokens.shape;
        let (num_tokens, head_dim) = (self.step.num_tokens(), shape.key_dim);
        let num_heads = [shape.num_heads, shape.num_kv_heads][index];
        let mut part = part;
        if self.sizes.has_head_norms {
            let (rows, weight) = (contiguous(&part, head_dim), &self.weights.head_norms[index]);
            part = self.normed(head_dim, rows, num_tokens * num_heads, weight);
        }
        let Some(rotary_dim) = self.sizes.rotary_dim else { return part };
        let of = RopeShape { num_tokens, num_heads, head_dim, rotary_dim };
        let (data, token_stride) = (part.as_ptr(), num_heads * head_dim);
        let from = Strided3 { data, token_stride, head_stride: head_dim };
        let mut rotated = vec![T::ZERO; part.len()];
        let (cos, sin) = (self.weights.cos.as_ptr(), self.weights.sin.as_ptr());
        // SAFETY: the buffers have these sizes.
        unsafe { rope(&Team::alone(), self.level, of, from, cos, sin, rotated.as_mut_ptr()) }
        rotated
    }

    pub(crate) fn attended(&self, qkv: &[T], pool: &mut Pool<T>) -> Vec<T> {
        let Shape { num_heads, num_kv_heads, key_dim, .. } = self.sizes.tokens.shape;
        let [queries, keys] = self.sizes.heads();
        let column = |from: usize, width: usize| -> Vec<T> {
            let rows = qkv.chunks_exact(queries + 2 * keys);
            rows.flat_map(|row| row[from..from + width].to_vec()).collect()
        };
        let query = self.positioned(column(0, queries), 0);
        let key = self.positioned(column(queries, keys), 1);
        let value = column(queries + keys, keys);
        let strided = |data: &Vec<T>, num_heads: usize| Strided {
            data: data.as_ptr(),
            token_stride: num_heads * key_dim,
            head_stride: key_dim,
        };
        let mut output = vec![T::ZERO; query.len()];
        let buffers = Buffers {
            query: strided(&query, num_heads),
            key: strided(&key, num_kv_heads),
            value: strided(&value, num_kv_heads),
            output: output.as_mut_ptr(),
            keys: pool.keys.as_mut_ptr(),
            values: pool.values.as_mut_ptr(),
        };
        // SAFETY: the buffers have the sizes of the step and the heads.
        unsafe { attend(&Team::alone(), self.level, &self.step, &self.attention(), &buffers) }
        output
    }

    pub(crate) fn gated(&self, gate_up: &[T]) -> Vec<T> {
        let (hidden, num_rows) = (self.sizes.hidden, self.step.num_tokens());
        let from = gate_up.as_ptr();
        let half = |at: usize| Rows { data: from.wrapping_add(at), stride: 2 * hidden };
        let mut output = vec![T::ZERO; num_rows * hidden];
        let (team, activation) = (Team::alone(), self.sizes.activation);
        let (level, to) = (self.level, output.as_mut_ptr());
        // SAFETY: the buffers have these sizes.
        unsafe { gate(&team, level, num_rows, hidden, activation, half(0), half(hidden), to) }
        output
    }
}

pub(crate) fn contiguous<T>(data: &[T], stride: usize) -> Rows<T> {
    Rows { data: data.as_ptr(), stride }
}

pub(crate) fn rows(seeds: Vec<(usize, usize, bool)>) -> Vec<RowSpec> {
    let mut rows: Vec<RowSpec> = Vec::new();
    for (before, num_tokens, is_fork) in seeds {
        let shared = match rows.first() {
            Some(first) if is_fork => before.min(first.kv_len - first.num_tokens),
            _ => 0,
        };
        rows.push(RowSpec { parent: 0, shared, kv_len: before + num_tokens, num_tokens });
    }
    rows
}

prop_compose! {
    pub(crate) fn tokens()(
        num_kv_heads in 1..4_usize,
        ratio in 1..4_usize,
        dim in 1..24_usize,
        seeds in prop::collection::vec((0..70_usize, 1..9_usize, any::<bool>()), 0..5),
        window in prop::option::of(1..40_usize),
        softcap in prop::option::of(0.5_f32..3.0),
        block_size in 1..18_usize,
        is_grouped: bool,
    ) -> Case {
        let (num_heads, key_dim, value_dim) = (num_kv_heads * ratio, dim, dim);
        let shape = Shape { num_heads, num_kv_heads, key_dim, value_dim };
        Case { window, softcap, block_size, is_grouped, ..Case::new(shape, rows(seeds)) }
    }
}

prop_compose! {
    pub(crate) fn sizes()(
        tokens in tokens(),
        width in 1..70_usize,
        hidden in 1..70_usize,
        half in prop::option::of(0..12_usize),
        has_head_norms: bool,
        has_bias in any::<[bool; 4]>(),
        offset in prop::sample::select(vec![0.0_f32, 1.0]),
        activation in prop::sample::select(vec![
            Activation::Silu, Activation::GeluTanh, Activation::Gelu,
        ]),
        gap in 0..4_usize,
    ) -> Sizes {
        let rotary_dim = half.map(|half| 2 * half.min(tokens.shape.key_dim / 2));
        Sizes {
            tokens, width, hidden, rotary_dim, has_head_norms, has_bias, offset, activation, gap,
        }
    }
}

/// Some decode rows, and chunks of prompts.
pub(crate) fn many_tokens() -> Sizes {
    let shape = Shape { num_heads: 6, num_kv_heads: 2, key_dim: 32, value_dim: 32 };
    let decoded = (0..30).map(|i| RowSpec { parent: 0, shared: 0, kv_len: 90 + i, num_tokens: 1 });
    let prompts = [RowSpec::alone(150, 80), RowSpec::alone(40, 40)];
    Sizes {
        tokens: Case::new(shape, decoded.chain(prompts).collect()),
        width: 192,
        hidden: 320,
        rotary_dim: Some(32),
        has_head_norms: true,
        has_bias: [true, false, false, true],
        offset: 0.0,
        activation: Activation::Silu,
        gap: 0,
    }
}
