//! Whole decoder layers against the same kernels called one by one, to the bit.

#![allow(unsafe_code, reason = "the kernels take raw buffers")]

mod attention_case;

use attention_case::{Arrays, Case, RowSpec, bits, levels, number};
use proptest::prelude::*;
use treepo_kernels::attention::{
    self, Buffers, Shape, Step, Strided, attend, padded_key_dim, padded_value_dim,
};
use treepo_kernels::decoder::{DecoderLayer, Norm, Packed, Rotary, Workspace, decoder_layers};
use treepo_kernels::element::{Bf16, Element};
use treepo_kernels::elementwise::{
    Activation, RmsNorm, RopeShape, Rows, Strided3, gate, rms_norm, rope,
};
use treepo_kernels::linear::{LinearShape, Summands, linear, pack, packed_len};
use treepo_kernels::simd::Level;
use treepo_kernels::team::Team;

/// A layer and the tokens of a step.
#[derive(Debug, Clone)]
struct Sizes {
    /// Rows, blocks, heads and window.
    tokens: Case,
    width: usize,
    hidden: usize,
    rotary_dim: Option<usize>,
    has_head_norms: bool,
    /// Of queries, keys and values; output; gate and up; down.
    has_bias: [bool; 4],
    /// Of every norm.
    offset: f32,
    activation: Activation,
    /// Elements between rows of the input.
    gap: usize,
}

impl Sizes {
    fn num_tokens(&self) -> usize {
        self.tokens.rows.iter().map(|row| row.num_tokens).sum()
    }

    /// Elements of a token's queries, and of its keys.
    fn heads(&self) -> [usize; 2] {
        let Shape { num_heads, num_kv_heads, key_dim, .. } = self.tokens.shape;
        [num_heads * key_dim, num_kv_heads * key_dim]
    }

    /// Of queries, keys and values; output; gate and up; down.
    fn products(&self) -> [LinearShape; 4] {
        let [queries, keys] = self.heads();
        let shape = |in_features, out_features| LinearShape { in_features, out_features };
        [
            shape(self.width, queries + 2 * keys),
            shape(queries, self.width),
            shape(self.width, 2 * self.hidden),
            shape(self.hidden, self.width),
        ]
    }

    fn norm(&self, width: usize) -> RmsNorm {
        RmsNorm { width, eps: 1e-5, offset: self.offset }
    }
}

/// `count` numbers, the same for a kind.
fn numbers<T: Element>(kind: usize, count: usize) -> Vec<T> {
    (0..count).map(|i| T::from_f32(number([kind, i, 0, 0]))).collect()
}

struct Weights<T> {
    norms: [Vec<T>; 2],
    head_norms: [Vec<T>; 2],
    packed: [Vec<T>; 4],
    biases: [Option<Vec<T>>; 4],
    cos: Vec<T>,
    sin: Vec<T>,
}

impl<T: Element> Weights<T> {
    fn new(sizes: &Sizes, level: Level) -> Self {
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

    fn bias(&self, product: usize) -> Option<*const T> {
        self.biases[product].as_ref().map(Vec::as_ptr)
    }
}

/// Keys and values, with numbers where earlier steps wrote.
#[derive(Clone)]
struct Pool<T> {
    keys: Vec<T>,
    values: Vec<T>,
}

/// What a layer computes: its output and the pool behind it.
type Computed<T> = (Vec<T>, Pool<T>);

/// A layer with numbers, at a level.
struct Setup<'a, T> {
    sizes: &'a Sizes,
    level: Level,
    weights: Weights<T>,
    step: Step,
    pool: Pool<T>,
    /// Rows of `width`, `gap` elements between them.
    input: Vec<T>,
}

impl<'a, T: Element> Setup<'a, T> {
    fn new(sizes: &'a Sizes, level: Level) -> Self {
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

    fn attention(&self) -> attention::Layer<'static> {
        let Case { shape, window, softcap, .. } = self.sizes.tokens;
        attention::Layer { shape, scaling: 0.3, window, softcap, sinks: None }
    }

    fn layer(&self, pool: &mut Pool<T>) -> DecoderLayer<'static, T> {
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
    fn whole(&self, team: &Team, workspace: &mut Workspace, is_in_place: bool) -> Computed<T> {
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
    fn parts(&self, stride: usize) -> Computed<T> {
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

    fn normed(&self, width: usize, input: Rows<T>, num_rows: usize, weight: &[T]) -> Vec<T> {
        let (team, norm) = (Team::alone(), self.sizes.norm(width));
        let mut output = vec![T::ZERO; num_rows * width];
        let (weight, to) = (weight.as_ptr(), output.as_mut_ptr());
        // SAFETY: the buffers have these sizes.
        unsafe { rms_norm(&team, self.level, num_rows, &norm, input, weight, to) }
        output
    }

    fn product(&self, index: usize, input: Rows<T>, residual: Option<Rows<T>>) -> Vec<T> {
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
    fn positioned(&self, part: Vec<T>, index: usize) -> Vec<T> {
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

    fn attended(&self, qkv: &[T], pool: &mut Pool<T>) -> Vec<T> {
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

    fn gated(&self, gate_up: &[T]) -> Vec<T> {
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

fn contiguous<T>(data: &[T], stride: usize) -> Rows<T> {
    Rows { data: data.as_ptr(), stride }
}

fn assert_same<T: Element>(found: &Computed<T>, expected: &Computed<T>, what: &str) {
    assert!(bits(&found.0) == bits(&expected.0), "outputs differ: {what}");
    assert!(bits(&found.1.keys) == bits(&expected.1.keys), "keys differ: {what}");
    assert!(bits(&found.1.values) == bits(&expected.1.values), "values differ: {what}");
}

fn check<T: Element>(sizes: &Sizes, workspace: &mut Workspace) {
    for level in levels() {
        let setup = Setup::<T>::new(sizes, level);
        let expected = setup.parts(sizes.width + sizes.gap);
        let in_place = setup.parts(sizes.width);
        let what = level.name();
        for team in [Team::alone(), Team::parked(3)] {
            assert_same(&setup.whole(&team, workspace, false), &expected, what);
            // Threads that are awake share kernels of a few microseconds.
            let found = team.awake(|team| setup.whole(team, workspace, false));
            assert_same(&found, &expected, what);
            let found = team.awake(|team| setup.whole(team, workspace, true));
            assert_same(&found, &in_place, what);
        }
    }
}

fn rows(seeds: Vec<(usize, usize, bool)>) -> Vec<RowSpec> {
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
    fn tokens()(
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
    fn sizes()(
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_whole_layer_has_the_bits_of_its_parts(sizes in sizes()) {
        let mut workspace = Workspace::default();
        check::<f32>(&sizes, &mut workspace);
        check::<Bf16>(&sizes, &mut workspace);
    }
}

/// Some decode rows, and chunks of prompts.
fn many_tokens() -> Sizes {
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

#[test]
fn work_for_several_threads_has_the_same_bits() {
    let mut workspace = Workspace::default();
    check::<f32>(&many_tokens(), &mut workspace);
    check::<Bf16>(&many_tokens(), &mut workspace);
}

#[test]
fn memory_that_another_layer_left_is_no_input() {
    let many = many_tokens();
    let some =
        Case { rows: vec![RowSpec::alone(9, 3), RowSpec::alone(70, 1)], ..many.tokens.clone() };
    let narrow = Sizes { tokens: some, width: 65, hidden: 33, ..many.clone() };
    let mut workspace = Workspace::default();
    for sizes in [narrow.clone(), many, narrow] {
        check::<Bf16>(&sizes, &mut workspace);
        check::<f32>(&sizes, &mut workspace);
    }
}

/// A layer of width 12 and hidden width 20, with 4 query and 2 key heads of 6; nothing in memory.
fn valid() -> DecoderLayer<'static, f32> {
    let norm =
        |width| Norm { norm: RmsNorm { width, eps: 1e-6, offset: 0.0 }, weight: std::ptr::null() };
    let packed = |in_features, out_features| Packed {
        shape: LinearShape { in_features, out_features },
        weight: std::ptr::null(),
        bias: None,
    };
    let shape = Shape { num_heads: 4, num_kv_heads: 2, key_dim: 6, value_dim: 6 };
    DecoderLayer {
        attention_norm: norm(12),
        qkv: packed(12, 48),
        rotates: false,
        head_norms: Some([norm(6), norm(6)]),
        attention: attention::Layer {
            shape,
            scaling: 1.0,
            window: None,
            softcap: None,
            sinks: None,
        },
        keys: std::ptr::null_mut(),
        values: std::ptr::null_mut(),
        output: packed(24, 12),
        feed_forward_norm: norm(12),
        gate_up: packed(12, 40),
        activation: Activation::Silu,
        down: packed(20, 12),
    }
}

type Change = fn(&mut DecoderLayer<'static, f32>);

#[test]
fn layers_whose_parts_do_not_fit_are_refused() {
    assert_eq!(valid().check(), Ok(()));
    assert_eq!(DecoderLayer { head_norms: None, ..valid() }.check(), Ok(()));
    let changes: [(Change, &str); 15] = [
        (|x| x.qkv.shape.in_features = 11, "qkv has inputs and outputs (11, 48)"),
        (|x| x.qkv.shape.out_features = 47, "want (12, 48)"),
        (|x| x.attention_norm.norm.width = 13, "want (13, 48)"),
        (|x| x.attention.shape.num_heads = 6, "want (12, 60)"),
        (|x| x.attention.shape.num_kv_heads = 1, "want (12, 36)"),
        (|x| x.output.shape.in_features = 23, "output has inputs and outputs (23, 12)"),
        (|x| x.output.shape.out_features = 13, "want (24, 12)"),
        (|x| x.gate_up.shape.in_features = 13, "gate_up has inputs and outputs (13, 40)"),
        (|x| x.gate_up.shape.out_features = 39, "want (12, 40)"),
        (|x| x.down.shape.in_features = 21, "want (12, 42)"),
        (|x| x.down.shape.out_features = 11, "down has inputs and outputs (20, 11)"),
        (|x| x.feed_forward_norm.norm.width = 11, "a norm of 11 where 12 are normed"),
        (|x| x.head_norms.as_mut().expect("some")[0].norm.width = 12, "a norm of 12 where 6"),
        (|x| x.head_norms.as_mut().expect("some")[1].norm.width = 5, "a norm of 5 where 6"),
        (|x| x.attention.shape.value_dim = 8, "keys of 6 and values of 8"),
    ];
    for (change, part) in changes {
        let mut layer = valid();
        change(&mut layer);
        let message = layer.check().expect_err("the parts do not fit").to_string();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_layer_that_does_not_fit_is_not_computed() {
    let mut layer = valid();
    layer.down.shape.out_features = 11;
    let arrays = Arrays::new(&Case::new(layer.attention.shape, vec![]), &[]);
    let step = Step::new(4, 4, &arrays.view()).expect("valid arrays");
    let input = Rows { data: std::ptr::null(), stride: 12 };
    let (team, output) = (Team::alone(), std::ptr::null_mut());
    let mut workspace = Workspace::default();
    let level = Level::Portable;
    // SAFETY: there are no tokens.
    let result = unsafe {
        decoder_layers(&team, level, &[layer.clone()], &step, None, &mut workspace, input, output)
    };
    assert_eq!(result, layer.check());
    assert!(result.is_err());
}
