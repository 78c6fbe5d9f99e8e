//! Whole decoder layers against the same kernels called one by one, to the bit.

#![allow(unsafe_code, reason = "the kernels take raw buffers")]

mod attention_case;
mod decoder_case;

use attention_case::{Arrays, Case, RowSpec, bits, levels};
use decoder_case::{Computed, Setup, Sizes, many_tokens, sizes};
use proptest::prelude::*;
use treepo_kernels::attention::{self, Shape, Step};
use treepo_kernels::decoder::{DecoderLayer, Norm, Packed, Workspace, decoder_layers};
use treepo_kernels::element::{Bf16, Element};
use treepo_kernels::elementwise::{Activation, RmsNorm, Rows};
use treepo_kernels::linear::LinearShape;
use treepo_kernels::simd::Level;
use treepo_kernels::team::Team;

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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_whole_layer_has_the_bits_of_its_parts(sizes in sizes()) {
        let mut workspace = Workspace::default();
        check::<f32>(&sizes, &mut workspace);
        check::<Bf16>(&sizes, &mut workspace);
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
        decoder_layers(&team, level, &[layer], &step, None, &mut workspace, input, output)
    };
    assert_eq!(result, layer.check());
    assert!(result.is_err());
}
