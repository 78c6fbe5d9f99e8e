//! The rows of a step: checked copies of the caller's arrays and their division into units.

use std::fmt;

use super::plan::{self, Piece, Unit};

/// The arrays that describe the rows of a step; a token is one of the step's flat tokens.
#[derive(Debug, Clone, Copy)]
pub struct StepArrays<'a> {
    /// `[num_rows + 1]` first token of each row; the last entry is the number of tokens.
    pub query_starts: &'a [i32],
    /// `[num_rows]` tokens in the pool of each row, the step's own included.
    pub kv_lens: &'a [i32],
    /// Block tables, `table_stride` entries each.
    pub tables: &'a [i32],
    /// Entries from one table to the next.
    pub table_stride: usize,
    /// `[num_rows]` row i reads `tables[table_rows[i] * table_stride ..]`.
    pub table_rows: &'a [i32],
    /// `[num_tokens]` block * `block_size` + offset, where a token's key and value are written; -1:
    /// nowhere.
    pub slots: &'a [i64],
    /// `[num_rows]` an order of the rows in which those that share blocks are neighbours; empty
    /// where no sharing is known.
    pub row_order: &'a [i32],
    /// `[num_groups, 4]` first place in `row_order`, number of rows, first logical block, logical
    /// block behind the last: blocks that these rows have in common. Only checked; what rows share
    /// is read off their tables.
    pub groups: &'a [i32],
}

/// Arrays that do not describe a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepError(String);

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StepError {}

/// One row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) first_token: usize,
    pub(super) num_tokens: usize,
    pub(super) kv_len: usize,
    /// Where its table begins in [`Step::tables`].
    pub(super) table: usize,
}

/// The rows of a step, checked: every block and slot lies within the pool.
#[derive(Debug, Clone)]
pub struct Step {
    pub(super) block_size: usize,
    pub(super) slots: Vec<usize>,
    pub(super) tables: Vec<u32>,
    pub(super) pieces: Vec<Piece>,
    pub(super) units: Vec<Unit>,
}

impl Step {
    /// Copies and checks the arrays and divides the rows into units of work.
    ///
    /// O(tokens + table entries), plus a sort of the slots.
    ///
    /// # Errors
    /// An index outside its array or the pool, a row with more tokens than keys, two tokens in one
    /// slot, an order that is no permutation, groups whose rows do not share their blocks.
    pub fn new(
        num_blocks: usize,
        block_size: usize,
        arrays: &StepArrays<'_>,
    ) -> Result<Self, StepError> {
        if block_size == 0 {
            return error("block_size is 0: give the tokens of a block".into());
        }
        let (rows, tables) = read_rows(num_blocks, block_size, arrays)?;
        let slots = read_slots(num_blocks * block_size, arrays)?;
        let order = read_order(rows.len(), arrays)?;
        let shared = match arrays.row_order {
            [] => vec![0; rows.len()],
            _ => shared_blocks(&rows, &order, &tables, block_size),
        };
        check_groups(arrays, &shared)?;
        let (pieces, units) = plan::divide(&rows, &order, &shared, block_size);
        Ok(Self { block_size, slots, tables, pieces, units })
    }

    /// Flat tokens of the step.
    pub fn num_tokens(&self) -> usize {
        self.slots.len()
    }
}

fn error<T>(message: String) -> Result<T, StepError> {
    Err(StepError(message))
}

fn check_lengths(arrays: &StepArrays<'_>) -> Result<(), StepError> {
    let num_rows = arrays.kv_lens.len();
    for (name, given, needed) in [
        ("query_starts", arrays.query_starts.len(), num_rows + 1),
        ("table_rows", arrays.table_rows.len(), num_rows),
    ] {
        if given != needed {
            return error(format!("{name} has {given} entries: give {needed} for {num_rows} rows"));
        }
    }
    let first = arrays.query_starts[0];
    if first != 0 {
        return error(format!("query_starts begins with {first}: begin with 0"));
    }
    let last = arrays.query_starts[num_rows];
    if usize::try_from(last) != Ok(arrays.slots.len()) {
        let num_slots = arrays.slots.len();
        return error(format!(
            "query_starts ends with {last}: give as many slots, not {num_slots}"
        ));
    }
    Ok(())
}

/// The rows and the entries of their tables that they read.
fn read_rows(
    num_blocks: usize,
    block_size: usize,
    arrays: &StepArrays<'_>,
) -> Result<(Vec<Row>, Vec<u32>), StepError> {
    check_lengths(arrays)?;
    let mut rows = Vec::with_capacity(arrays.kv_lens.len());
    let mut tables = Vec::new();
    for i in 0..arrays.kv_lens.len() {
        let (first, behind) = (arrays.query_starts[i], arrays.query_starts[i + 1]);
        if behind < first {
            return error(format!("query_starts falls from {first} to {behind}: sort it"));
        }
        let (num_tokens, kv_len) = ((behind - first) as usize, arrays.kv_lens[i]);
        if i64::from(kv_len) < num_tokens as i64 {
            return error(format!(
                "kv_lens of row {i} is {kv_len}: count its {num_tokens} new tokens too"
            ));
        }
        let kv_len = kv_len as usize;
        rows.push(Row { first_token: first as usize, num_tokens, kv_len, table: tables.len() });
        for &block in row_table(i, kv_len.div_ceil(block_size), arrays)? {
            if usize::try_from(block).is_ok_and(|block| block < num_blocks) {
                tables.push(block as u32);
            } else {
                return error(format!(
                    "the table of row {i} holds block {block}: the pool has {num_blocks} blocks"
                ));
            }
        }
    }
    Ok((rows, tables))
}

/// The first `num_blocks` entries of a row's table.
fn row_table<'a>(
    row: usize,
    num_blocks: usize,
    arrays: &StepArrays<'a>,
) -> Result<&'a [i32], StepError> {
    let stride = arrays.table_stride;
    if num_blocks > stride {
        return error(format!(
            "row {row} reads {num_blocks} blocks: widen its table of {stride} entries"
        ));
    }
    let table_row = arrays.table_rows[row];
    let start = usize::try_from(table_row).ok().and_then(|table| table.checked_mul(stride));
    match start.and_then(|start| arrays.tables.get(start..start + num_blocks)) {
        Some(table) => Ok(table),
        None => error(format!("table_rows of row {row} is {table_row}: tables has no such row")),
    }
}

/// The slot of a token whose keys and values are not kept.
pub(super) const NOWHERE: usize = usize::MAX;

fn read_slots(num_slots: usize, arrays: &StepArrays<'_>) -> Result<Vec<usize>, StepError> {
    let mut slots = Vec::with_capacity(arrays.slots.len());
    for &slot in arrays.slots {
        match usize::try_from(slot) {
            Ok(slot) if slot < num_slots => slots.push(slot),
            Err(_) if slot == -1 => slots.push(NOWHERE),
            _ => return error(format!("slot {slot} is none of the pool's {num_slots} slots")),
        }
    }
    let mut sorted = slots.clone();
    sorted.sort_unstable();
    if let Some([slot, ..]) = sorted.windows(2).find(|x| x[0] == x[1] && x[0] != NOWHERE) {
        return error(format!("slot {slot} is written twice: give each token its own"));
    }
    Ok(slots)
}

fn read_order(num_rows: usize, arrays: &StepArrays<'_>) -> Result<Vec<usize>, StepError> {
    if arrays.row_order.is_empty() {
        return Ok((0..num_rows).collect());
    }
    let mut is_seen = vec![false; num_rows];
    let mut order = Vec::with_capacity(num_rows);
    for &row in arrays.row_order {
        match usize::try_from(row) {
            Ok(row) if row < num_rows && !is_seen[row] => {
                is_seen[row] = true;
                order.push(row);
            }
            _ => {
                return error(format!("row_order holds {row} twice or out of {num_rows} rows"));
            }
        }
    }
    if order.len() < num_rows {
        return error(format!("row_order has {} entries: name all {num_rows} rows", order.len()));
    }
    Ok(order)
}

/// For each place in the order, the blocks that its row has in common with the row before.
fn shared_blocks(rows: &[Row], order: &[usize], tables: &[u32], block_size: usize) -> Vec<usize> {
    let table = |row: usize| {
        let Row { table, kv_len, .. } = rows[row];
        &tables[table..table + kv_len.div_ceil(block_size)]
    };
    let mut shared = vec![0; order.len()];
    for place in 1..order.len() {
        let (before, row) = (table(order[place - 1]), table(order[place]));
        shared[place] = before.iter().zip(row).take_while(|(a, b)| a == b).count();
    }
    shared
}

fn check_groups(arrays: &StepArrays<'_>, shared: &[usize]) -> Result<(), StepError> {
    if !arrays.groups.len().is_multiple_of(4) {
        return error(format!("groups has {} entries: give four a group", arrays.groups.len()));
    }
    for group in arrays.groups.chunks_exact(4) {
        let [first, count, start, end] = [0, 1, 2, 3].map(|i| usize::try_from(group[i]).ok());
        let rows = first.zip(count).map(|(first, count)| first..first + count);
        let fits = match rows.and_then(|rows| shared.get(rows)) {
            Some([_, others @ ..]) if !arrays.row_order.is_empty() => {
                start < end && others.iter().all(|&common| Some(common) >= end)
            }
            _ => false,
        };
        if !fits {
            return error(format!(
                "group {group:?} is none: name neighbours in row_order that share its blocks"
            ));
        }
    }
    Ok(())
}
