//! A model in one call against its kernels called one by one, to the bit.

#![allow(unsafe_code, reason = "the kernels take raw buffers")]

mod attention_case;
mod decoder_case;

use attention_case::{bits, levels};
use decoder_case::{Pool, Setup, Sizes, contiguous, many_tokens, numbers, sizes};
use proptest::prelude::*;
use treepo_kernels::decoder::{
    Error, Model, Norm, Packed, Rotary, Tokens, Workspace, decoder_layers, logits,
};
use treepo_kernels::element::{Bf16, Element};
use treepo_kernels::elementwise::Rows;
use treepo_kernels::linear::{LinearShape, Summands, linear, pack, packed_len};
use treepo_kernels::simd::Level;
use treepo_kernels::team::Team;

const NUM_LAYERS: usize = 3;
const NUM_EMBEDDINGS: usize = 11;

/// Ends of a model around layers.
struct Ends<T> {
    embedding: Vec<T>,
    ids: Vec<i64>,
    norm: Vec<T>,
    head: Vec<T>,
    bias: Option<Vec<T>>,
    shape: LinearShape,
}

impl<T: Element> Ends<T> {
    fn new(setup: &Setup<'_, T>, out_features: usize) -> Self {
        let Sizes { width, has_bias, gap, .. } = *setup.sizes;
        let shape = LinearShape { in_features: width, out_features };
        let weight = numbers::<T>(30, width * out_features);
        let mut head = vec![T::ZERO; packed_len::<T>(setup.level, shape)];
        // SAFETY: both have the size of the shape.
        unsafe {
            pack(&Team::alone(), setup.level, shape, contiguous(&weight, width), head.as_mut_ptr());
        }
        Self {
            embedding: numbers(31, NUM_EMBEDDINGS * (width + gap)),
            ids: (0..setup.step.num_tokens()).map(|i| (7 * i % NUM_EMBEDDINGS) as i64).collect(),
            norm: numbers(32, width),
            head,
            bias: has_bias[0].then(|| numbers(33, out_features)),
            shape,
        }
    }

    fn bias(&self) -> Option<*const T> {
        self.bias.as_ref().map(Vec::as_ptr)
    }
}

fn rotary<T>(setup: &Setup<'_, T>) -> Option<Rotary<T>> {
    let (cos, sin) = (setup.weights.cos.as_ptr(), setup.weights.sin.as_ptr());
    setup.sizes.rotary_dim.map(|dim| Rotary { dim, cos, sin })
}

fn pools<T: Element>(setup: &Setup<'_, T>) -> Vec<Pool<T>> {
    vec![setup.pool.clone(); NUM_LAYERS]
}

/// Logits of some tokens, or all, and the pools behind them, in one call.
fn whole<T: Element>(
    setup: &Setup<'_, T>,
    ends: &Ends<T>,
    wanted: Option<&[i64]>,
    team: &Team,
    workspace: &mut Workspace,
) -> (Vec<T>, Vec<Pool<T>>) {
    let Sizes { width, gap, .. } = *setup.sizes;
    let mut pools = pools(setup);
    let model = Model {
        embedding: Rows { data: ends.embedding.as_ptr(), stride: width + gap },
        num_embeddings: NUM_EMBEDDINGS,
        layers: pools.iter_mut().map(|pool| setup.layer(pool)).collect(),
        norm: Norm { norm: setup.sizes.norm(width), weight: ends.norm.as_ptr() },
        head: Packed { shape: ends.shape, weight: ends.head.as_ptr(), bias: ends.bias() },
    };
    let num_wanted = wanted.map_or(ends.ids.len(), <[i64]>::len);
    let mut output = vec![T::from_f32(f32::NAN); num_wanted * ends.shape.out_features];
    let tokens = Tokens { ids: &ends.ids, wanted };
    let (level, to) = (setup.level, output.as_mut_ptr());
    // SAFETY: the buffers have the sizes of the model and the step.
    unsafe { logits(team, level, &model, &setup.step, rotary(setup), tokens, workspace, to) }
        .expect("the parts fit");
    (output, pools)
}

/// Logits of all tokens and the pools behind them, by the caller alone, part by part.
fn parts<T: Element>(setup: &Setup<'_, T>, ends: &Ends<T>) -> (Vec<T>, Vec<Pool<T>>) {
    let Sizes { width, gap, .. } = *setup.sizes;
    let (team, mut pools) = (Team::alone(), pools(setup));
    let row = |&id: &i64| &ends.embedding[id as usize * (width + gap)..][..width];
    let mut hidden: Vec<T> = ends.ids.iter().flat_map(row).copied().collect();
    for pool in &mut pools {
        let mut output = vec![T::ZERO; hidden.len()];
        let (layer, from, to) =
            (setup.layer(pool), contiguous(&hidden, width), output.as_mut_ptr());
        let (level, workspace) = (setup.level, &mut Workspace::default());
        // SAFETY: the buffers have the sizes of the layer and the step.
        unsafe {
            decoder_layers(&team, level, &[layer], &setup.step, rotary(setup), workspace, from, to)
        }
        .expect("the parts fit");
        hidden = output;
    }
    let num_rows = setup.step.num_tokens();
    let normal = setup.normed(width, contiguous(&hidden, width), num_rows, &ends.norm);
    let mut output = vec![T::ZERO; num_rows * ends.shape.out_features];
    let summands = Summands { bias: ends.bias(), residual: None };
    let (from, head, to) = (contiguous(&normal, width), ends.head.as_ptr(), output.as_mut_ptr());
    // SAFETY: the buffers have the sizes of the head.
    unsafe { linear(&team, setup.level, num_rows, ends.shape, from, head, summands, to) }
    (output, pools)
}

/// None of the tokens, each third, and some in any order and twice.
fn choices(num_tokens: usize) -> [Vec<i64>; 3] {
    let last = (num_tokens as i64 - 1).max(0);
    let ends = if num_tokens == 0 { vec![] } else { vec![last, 0, last] };
    [vec![], (0..num_tokens as i64).step_by(3).collect(), ends]
}

fn check<T: Element>(sizes: &Sizes, out_features: usize, workspace: &mut Workspace) {
    for level in levels() {
        let setup = Setup::<T>::new(sizes, level);
        let ends = Ends::new(&setup, out_features);
        let (expected, pools) = parts(&setup, &ends);
        let choices = choices(ends.ids.len());
        for team in [Team::alone(), Team::parked(3)] {
            for wanted in [None].into_iter().chain(choices.iter().map(|x| Some(x.as_slice()))) {
                let (found, after) =
                    team.awake(|team| whole(&setup, &ends, wanted, team, workspace));
                let row = |&i: &i64| &expected[i as usize * out_features..][..out_features];
                let expected = wanted.map_or_else(
                    || expected.clone(),
                    |wanted| wanted.iter().flat_map(row).copied().collect(),
                );
                assert!(bits(&found) == bits(&expected), "logits differ: {level:?} {wanted:?}");
                for (found, expected) in after.iter().zip(&pools) {
                    assert!(bits(&found.keys) == bits(&expected.keys), "keys differ");
                    assert!(bits(&found.values) == bits(&expected.values), "values differ");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_model_has_the_bits_of_its_parts(sizes in sizes(), out_features in 1..70_usize) {
        let mut workspace = Workspace::default();
        check::<f32>(&sizes, out_features, &mut workspace);
        check::<Bf16>(&sizes, out_features, &mut workspace);
    }
}

#[test]
fn work_for_several_threads_has_the_same_bits() {
    let mut workspace = Workspace::default();
    check::<f32>(&many_tokens(), 300, &mut workspace);
    check::<Bf16>(&many_tokens(), 300, &mut workspace);
}

type Change = fn(&mut Model<'_, f32>);
/// Ids, wanted places, elements that rotate and what the answer says.
type Case<'a> = (&'a [i64], Option<&'a [i64]>, Option<usize>, &'a str);

/// What a model of one layer with nothing in memory answers to a change, to tokens and to angles.
fn refused(change: Change, tokens: Tokens<'_>, rotary_dim: Option<usize>) -> Error {
    let sizes = many_tokens();
    let setup = Setup::<f32>::new(&sizes, Level::Portable);
    let mut pool = setup.pool.clone();
    let (width, head) = (sizes.width, LinearShape { in_features: sizes.width, out_features: 5 });
    let mut model = Model {
        embedding: Rows { data: std::ptr::null(), stride: width },
        num_embeddings: NUM_EMBEDDINGS,
        layers: vec![setup.layer(&mut pool)],
        norm: Norm { norm: sizes.norm(width), weight: std::ptr::null() },
        head: Packed { shape: head, weight: std::ptr::null(), bias: None },
    };
    change(&mut model);
    let (team, level, step) = (Team::alone(), setup.level, &setup.step);
    let rotary = rotary_dim.map(|dim| Rotary { dim, cos: std::ptr::null(), sin: std::ptr::null() });
    let (workspace, output) = (&mut Workspace::default(), std::ptr::null_mut());
    // SAFETY: nothing is read before it is refused.
    unsafe { logits(&team, level, &model, step, rotary, tokens, workspace, output) }
        .expect_err("it does not fit")
}

#[test]
fn models_that_do_not_fit_are_refused() {
    let ids = vec![0; many_tokens().num_tokens()];
    let changes: [(Change, &str); 5] = [
        (|x| x.layers.clear(), "without layers"),
        (|x| x.embedding.stride = 191, "an embedding of 191 elements, layers of 192"),
        (|x| x.norm.norm.width = 7, "the norm has 7 elements, the layers 192"),
        (|x| x.head.shape.in_features = 8, "the head's input has 8 elements"),
        (|x| x.layers[0].down.shape.out_features = 9, "down has inputs and outputs"),
    ];
    for (change, part) in changes {
        let message = refused(change, Tokens { ids: &ids, wanted: None }, Some(32)).to_string();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn tokens_and_angles_that_do_not_fit_are_refused() {
    let ids = vec![0; many_tokens().num_tokens()];
    let with_last = |id| [&ids[1..], &[id]].concat();
    let cases: [Case<'_>; 7] = [
        (&ids[1..], None, Some(32), "149 ids for a step of 150 tokens"),
        (&with_last(11), None, Some(32), "id 11 lies outside 0..11"),
        (&with_last(-1), None, Some(32), "id -1 lies outside 0..11"),
        (&ids, Some(&[0, 150]), Some(32), "wanted place 150 lies outside 0..150"),
        (&ids, None, None, "there are no cosines and sines"),
        (&ids, None, Some(34), "34 elements of a key of 32 cannot be rotated"),
        (&ids, None, Some(7), "7 elements of a key of 32 cannot be rotated"),
    ];
    for (ids, wanted, rotary_dim, part) in cases {
        let message = refused(|_| (), Tokens { ids, wanted }, rotary_dim).to_string();
        assert!(message.contains(part), "{message}");
    }
}
