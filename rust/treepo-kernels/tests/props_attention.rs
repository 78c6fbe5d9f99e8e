//! Attention of arbitrary steps: exact results within rounding, and the same bits when nothing but
//! the surroundings change.

mod attention_case;

use attention_case::{Case, RowSpec, assert_close, bits, levels};
use proptest::prelude::*;
use treepo_kernels::attention::Shape;
use treepo_kernels::element::{Bf16, Element};
use treepo_kernels::team::Team;

prop_compose! {
    fn shapes()(num_kv_heads in 1..4usize, ratio in 1..10usize, key_dim in 4..=80usize,
        value_dim in 4..=80usize) -> Shape {
        Shape { num_heads: num_kv_heads * ratio, num_kv_heads, key_dim, value_dim }
    }
}

/// (parent, shared, length behind, new tokens), each reduced to what the rows before allow.
type Seed = (prop::sample::Index, usize, usize, usize);

fn rows(seeds: Vec<Seed>) -> Vec<RowSpec> {
    let mut rows: Vec<RowSpec> = Vec::new();
    for (parent, shared, len, num_tokens) in seeds {
        let (parent, shared) = match rows.len() {
            0 => (0, 0),
            count => {
                let parent = parent.index(count);
                (parent, shared.min(rows[parent].kv_len - rows[parent].num_tokens))
            }
        };
        let num_tokens = num_tokens.min(len);
        rows.push(RowSpec { parent, shared, kv_len: shared + len, num_tokens });
    }
    rows
}

prop_compose! {
    fn cases()(
        shape in shapes(),
        seeds in prop::collection::vec(
            (any::<prop::sample::Index>(), 0..150usize, 1..90usize, 0..40usize), 1..7),
        window in prop::option::of(1..120usize),
        softcap in prop::option::of(0.5f32..4.0),
        has_sinks: bool,
        block_size in 1..=33usize,
        placement: u64,
        is_grouped: bool,
    ) -> Case {
        let rows = rows(seeds);
        Case { window, softcap, has_sinks, block_size, placement, is_grouped, ..Case::new(shape, rows) }
    }
}

fn check<T: Element>(case: &Case, tolerance: f64) {
    let expected = case.expected::<T>();
    let other = Case { block_size: 16, is_grouped: !case.is_grouped, ..case.clone() };
    for level in levels() {
        let results = case.run::<T>(level, &Team::alone());
        assert_close(&results, &expected, tolerance);
        assert!(bits(&results) == bits(&other.run::<T>(level, &Team::parked(2))));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn f32_results_are_exact_to_rounding(case in cases()) {
        check::<f32>(&case, 2e-6);
    }

    #[test]
    fn bf16_results_are_exact_to_rounding(case in cases()) {
        check::<Bf16>(&case, 5e-3);
    }
}
