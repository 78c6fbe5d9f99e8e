//! Attention: against exact results, and the same bits whatever surrounds a query.

mod attention_case;

use attention_case::{Arrays, Case, RowSpec, assert_close, bits, levels};
use treepo_kernels::attention::{Shape, Step, StepArrays};
use treepo_kernels::element::{Bf16, Element};
use treepo_kernels::simd::Level;
use treepo_kernels::team::Team;

const SHAPE: Shape = Shape { num_heads: 6, num_kv_heads: 2, key_dim: 24, value_dim: 40 };

/// Two decode rows of one prompt, one of its own, a chunk and a whole prompt.
fn mixed() -> Case {
    let fork = |kv_len| RowSpec { parent: 0, shared: 130, kv_len, num_tokens: 1 };
    let rows = vec![
        RowSpec::alone(150, 1),
        fork(131),
        fork(200),
        RowSpec { parent: 2, shared: 170, kv_len: 171, num_tokens: 1 },
        RowSpec::alone(65, 1),
        RowSpec::alone(180, 77),
        RowSpec::alone(70, 70),
    ];
    Case::new(SHAPE, rows)
}

fn check<T: Element>(case: &Case, tolerance: f64) {
    let expected = case.expected::<T>();
    for level in levels() {
        assert_close(&case.run::<T>(level, &Team::alone()), &expected, tolerance);
    }
}

#[test]
fn results_are_right_with_every_option() {
    for block_size in [1, 5, 16, 32] {
        for (window, softcap) in [(None, None), (Some(70), None), (None, Some(1.5))] {
            for has_sinks in [false, true] {
                let case = Case { window, softcap, has_sinks, block_size, ..mixed() };
                check::<f32>(&case, 2e-6);
                check::<Bf16>(&case, 5e-3);
            }
        }
    }
}

/// The results of the last row's tokens, whatever else the step holds.
fn last_row<T: Element>(case: &Case, level: Level, team: &Team) -> Vec<u32> {
    let size = case.rows.last().map_or(0, |row| row.num_tokens);
    let all = bits(&case.run::<T>(level, team));
    all[all.len() - size * case.shape.num_heads * case.shape.value_dim..].to_vec()
}

fn chunks_do_not_matter<T: Element>(options: &Case) {
    let case = |kv_len, num_tokens| Case {
        rows: vec![RowSpec::alone(kv_len, num_tokens)],
        ..options.clone()
    };
    let team = Team::alone();
    for level in levels() {
        let whole = last_row::<T>(&case(150, 150), level, &team);
        for len in [1, 2, 7, 64, 100] {
            let mut chunked = Vec::new();
            for first in (0..150).step_by(len) {
                let end = 150.min(first + len);
                chunked.extend(last_row::<T>(&case(end, end - first), level, &team));
            }
            assert!(chunked == whole, "chunks of {len} differ at {}", level.name());
        }
    }
}

#[test]
fn a_query_gives_the_same_bits_in_chunks_of_any_length() {
    let options = Case::new(SHAPE, vec![]);
    chunks_do_not_matter::<f32>(&options);
    chunks_do_not_matter::<Bf16>(&options);
    let windowed = Case { window: Some(30), softcap: Some(2.0), has_sinks: true, ..options };
    chunks_do_not_matter::<f32>(&windowed);
    chunks_do_not_matter::<Bf16>(&Case { block_size: 7, ..windowed });
}

/// Many forks of one prompt, so that units are full, and loners between them.
fn forest() -> Case {
    let rows = (0..45)
        .map(|i| match i % 5 {
            4 => RowSpec::alone(40 + 7 * i, 1 + i % 3),
            _ => RowSpec { parent: 0, shared: 140 * i.min(1), kv_len: 145 + i, num_tokens: 1 },
        })
        .collect();
    Case::new(SHAPE, rows)
}

fn surroundings_do_not_matter<T: Element>(case: &Case) {
    for level in levels() {
        let plain = bits(&case.run::<T>(level, &Team::alone()));
        for team in [Team::alone(), Team::parked(3)] {
            for is_grouped in [false, true] {
                for (block_size, placement) in [(16, 2), (16, 3), (1, 4), (5, 1), (32, 1), (64, 5)]
                {
                    let other = Case { block_size, placement, is_grouped, ..case.clone() };
                    let results = bits(&other.run::<T>(level, &team));
                    assert!(results == plain, "{other:?} at {} differs", level.name());
                }
            }
        }
    }
}

#[test]
fn groups_threads_and_blocks_do_not_change_a_bit() {
    for case in [mixed(), forest()] {
        surroundings_do_not_matter::<f32>(&case);
        surroundings_do_not_matter::<Bf16>(&case);
        let windowed = Case { window: Some(100), has_sinks: true, ..case };
        surroundings_do_not_matter::<f32>(&windowed);
    }
}

#[test]
fn a_row_gives_the_same_bits_alone_and_among_others() {
    let all = forest();
    let alone = Case { rows: vec![RowSpec::alone(100, 1)], ..all.clone() };
    for level in levels() {
        let mut rows = all.rows.clone();
        rows.splice(0..0, alone.rows.clone());
        for row in &mut rows[2..] {
            row.parent = 1;
        }
        let team = Team::alone();
        let results = bits(&Case { rows, ..all.clone() }.run::<f32>(level, &team));
        let single = bits(&alone.run::<f32>(level, &team));
        assert_eq!(results[..single.len()], single);
    }
}

/// Valid arrays of two rows in a pool of 4 blocks of 4: two tokens behind three, one behind none.
const VALID: StepArrays<'static> = StepArrays {
    query_starts: &[0, 2, 3],
    kv_lens: &[5, 1],
    tables: &[0, 1, 0, 2],
    table_stride: 2,
    table_rows: &[0, 1],
    slots: &[3, 4, 8],
    row_order: &[],
    groups: &[],
};

fn message(arrays: &StepArrays<'_>) -> String {
    Step::new(4, 4, arrays).expect_err("these arrays are bad").to_string()
}

#[test]
fn arrays_that_leave_the_pool_are_rejected() {
    assert!(Step::new(4, 4, &StepArrays { tables: &[0, 1, 2], ..VALID }).is_ok());
    for (arrays, part) in [
        (StepArrays { tables: &[0, 4, 2, 2], ..VALID }, "block 4"),
        (StepArrays { tables: &[-1, 1, 2, 2], ..VALID }, "block -1"),
        (StepArrays { table_rows: &[0, 2], ..VALID }, "table_rows of row 1 is 2"),
        (StepArrays { table_rows: &[-1, 0], ..VALID }, "table_rows of row 0 is -1"),
        (StepArrays { table_rows: &[0], ..VALID }, "table_rows has 1 entries"),
        (StepArrays { kv_lens: &[9, 1], ..VALID }, "reads 3 blocks"),
        (StepArrays { kv_lens: &[1, 1], ..VALID }, "kv_lens of row 0 is 1"),
        (StepArrays { kv_lens: &[5, -1], ..VALID }, "kv_lens of row 1 is -1"),
        (StepArrays { slots: &[3, 4, 16], ..VALID }, "slot 16"),
        (StepArrays { slots: &[3, -4, 9], ..VALID }, "slot -4"),
        (StepArrays { slots: &[3, 4, 4], ..VALID }, "slot 4 is written twice"),
        (StepArrays { slots: &[3, 4], ..VALID }, "ends with 3"),
    ] {
        let message = message(&arrays);
        assert!(message.contains(part), "{message}");
    }
    assert!(Step::new(4, 0, &VALID).is_err());
}

#[test]
fn rows_and_groups_that_do_not_fit_are_rejected() {
    for (arrays, part) in [
        (StepArrays { query_starts: &[1, 2, 3], ..VALID }, "begins with 1"),
        (StepArrays { query_starts: &[0, 4, 3], ..VALID }, "falls from 4 to 3"),
        (StepArrays { query_starts: &[0, 3], ..VALID }, "query_starts has 2"),
        (StepArrays { row_order: &[0, 0], ..VALID }, "row_order holds 0"),
        (StepArrays { row_order: &[2, 0], ..VALID }, "row_order holds 2"),
        (StepArrays { row_order: &[1], ..VALID }, "row_order has 1"),
        (StepArrays { groups: &[0, 2, 0, 1], ..VALID }, "group [0, 2, 0, 1]"),
        (StepArrays { row_order: &[0, 1], groups: &[0, 2, 0, 2], ..VALID }, "group [0, 2, 0, 2]"),
        (StepArrays { row_order: &[0, 1], groups: &[0, 3, 0, 1], ..VALID }, "group [0, 3, 0, 1]"),
        (StepArrays { row_order: &[0, 1], groups: &[0, 2, 1, 1], ..VALID }, "group [0, 2, 1, 1]"),
        (StepArrays { row_order: &[0, 1], groups: &[0, 2, 0], ..VALID }, "groups has 3"),
        (StepArrays { row_order: &[0, 1], groups: &[-1, 2, 0, 1], ..VALID }, "group [-1"),
    ] {
        let message = message(&arrays);
        assert!(message.contains(part), "{message}");
    }
    assert!(
        Step::new(4, 4, &StepArrays { row_order: &[0, 1], groups: &[0, 2, 0, 1], ..VALID }).is_ok()
    );
}

#[test]
fn a_step_without_rows_is_valid() {
    let empty = StepArrays {
        query_starts: &[0],
        kv_lens: &[],
        tables: &[],
        table_stride: 0,
        table_rows: &[],
        slots: &[],
        row_order: &[],
        groups: &[],
    };
    assert_eq!(Step::new(4, 4, &empty).expect("valid").num_tokens(), 0);
    let case = Case::new(SHAPE, vec![]);
    assert!(case.run::<f32>(Level::detect(), &Team::alone()).is_empty());
}

#[test]
fn the_groups_of_a_case_are_those_of_its_rows() {
    let case = Case { is_grouped: true, ..mixed() };
    let (tables, _) = case.tables();
    let arrays = Arrays::new(&case, &tables);
    let groups: Vec<i32> = arrays.view().groups.to_vec();
    // The rows of the prompt share its 8 whole blocks, two of them 10.
    let sizes: Vec<&[i32]> = groups.chunks(4).map(|group| &group[1..]).collect();
    assert_eq!(sizes, [[2, 8, 10], [4, 0, 8]]);
}
