//! Arbitrary columns: they are refused, or they are those of a forest.
#![no_main]

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use treepo::Forest;
use treepo::forest::Columns;

/// A column of about `len` elements: rarely one more or less.
fn column<T>(
    bytes: &mut Unstructured<'_>,
    len: usize,
    mut value: impl FnMut(&mut Unstructured<'_>, usize) -> Result<T>,
) -> Result<Vec<T>> {
    let len = match bytes.int_in_range(0..=255u8)? {
        254 => len + 1,
        255 => len.saturating_sub(1),
        _ => len,
    };
    (0..len).map(|i| value(bytes, i)).collect()
}

/// Small numbers mostly.
fn number(bytes: &mut Unstructured<'_>, _: usize) -> Result<i32> {
    Ok(match bytes.int_in_range(0..=63u8)? {
        63 => i32::arbitrary(bytes)?,
        62 => i32::MAX,
        61 => -1,
        small => i32::from(small % 16),
    })
}

/// Offsets that ascend mostly from 0 to `end`.
fn offsets(bytes: &mut Unstructured<'_>, len: usize, end: usize) -> Result<Vec<i64>> {
    let mut offsets = column(bytes, len + 1, |bytes, i| match i {
        0 => Ok(0),
        _ if i == len => Ok(end as i64),
        _ => Ok(i64::from(number(bytes, i)?)),
    })?;
    if bytes.ratio(7, 8)? {
        offsets.sort_unstable();
    }
    Ok(offsets)
}

fn small(bytes: &mut Unstructured<'_>, _: usize) -> Result<u8> {
    bytes.int_in_range(0..=7u8)
}

fn any<T: for<'a> Arbitrary<'a>>(bytes: &mut Unstructured<'_>, _: usize) -> Result<T> {
    T::arbitrary(bytes)
}

fn columns(bytes: &mut Unstructured<'_>) -> Result<Columns> {
    let sizes: [u8; 4] = Arbitrary::arbitrary(bytes)?;
    let sizes = [sizes[0] % 4, sizes[1] % 8, sizes[2] % 32, sizes[3] % 8];
    let [trees, paths, tokens, marks] = sizes.map(usize::from);
    let mut mark_path = column(bytes, marks, number)?;
    if bytes.ratio(7, 8)? {
        mark_path.sort_unstable();
    }
    let path_start = offsets(bytes, trees, paths)?;
    Ok(Columns {
        tree_key: column(bytes, trees, any)?,
        tree_stream: column(bytes, trees, any)?,
        tree_prompt_len: column(bytes, trees, number)?,
        tree_replayable: column(bytes, trees, small)?,
        tree_dependence: column(bytes, trees, |bytes, i| Ok(small(bytes, i)? / 3))?,
        path_start: path_start.into_iter().map(|offset| offset as i32).collect(),
        path_tree: column(bytes, paths, number)?,
        path_parent: column(bytes, paths, number)?,
        path_at: column(bytes, paths, number)?,
        token_start: offsets(bytes, paths, tokens)?,
        path_length: column(bytes, paths, number)?,
        path_stream: column(bytes, paths, any)?,
        path_finish: column(bytes, paths, small)?,
        path_origin: column(bytes, paths, small)?,
        path_weight: column(bytes, paths, any)?,
        path_reward: column(bytes, paths, any)?,
        token_id: column(bytes, tokens, any)?,
        token_kind: column(bytes, tokens, |bytes, i| Ok(small(bytes, i)? / 2))?,
        token_logprob: column(bytes, tokens, any)?,
        token_entropy: column(bytes, tokens, any)?,
        token_version: column(bytes, tokens, any)?,
        mark_path,
        mark_pos: column(bytes, marks, number)?,
    })
}

/// Makes path lengths and trees what the other columns say, so that more is accepted.
fn repair(columns: &mut Columns) {
    for (p, length) in columns.path_length.iter_mut().enumerate() {
        let starts = (columns.token_start.get(p), columns.token_start.get(p + 1));
        let at = columns.path_at.get(p).copied().unwrap_or(0);
        if let (Some(start), Some(end)) = starts {
            *length = at.wrapping_add((end - start) as i32);
        }
    }
    for (t, bounds) in columns.path_start.windows(2).enumerate() {
        let paths = bounds[0].max(0) as usize..bounds[1].max(0) as usize;
        let own = columns.path_tree.get_mut(paths).unwrap_or_default();
        own.iter_mut().for_each(|tree| *tree = t as i32);
    }
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = Unstructured::new(data);
    let Ok(mut columns) = columns(&mut bytes) else { return };
    if bytes.ratio(7, 8).unwrap_or(true) {
        repair(&mut columns);
    }
    let Ok(forest) = Forest::from_columns(&columns) else { return };
    forest.check().expect("what is accepted is a forest");
    forest.nodes();
    let written = forest.columns();
    let replayable = &mut columns.tree_replayable;
    replayable.iter_mut().for_each(|replayable| *replayable = u8::from(*replayable != 0));
    assert_eq!(format!("{written:?}"), format!("{columns:?}"), "loaded as something else");
});
