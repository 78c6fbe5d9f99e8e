//! How the rows of a step become units of work, and units become tasks.

use std::ops::Range;

use super::step::Row;
use super::{Shape, Step, TILE};
use crate::team::Team;

/// Tokens of a unit that reads a row's prompt.
const MAX_TOKENS: usize = 64;
/// Tokens of a unit of several rows: enough that a shared tile costs little a row.
const MAX_SHARED_TOKENS: usize = 32;
/// Picoseconds of arithmetic of one query head, key and element, one multiplication and addition.
const COMPUTE_PS: u64 = 25;
/// Picoseconds until a byte arrives from memory.
const MEMORY_PS: u64 = 80;
/// Picoseconds that a task should last at least.
const TASK_PS: u64 = 20_000_000;

/// Neighbouring tokens of a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// Its first flat token.
    pub(super) first_token: usize,
    pub(super) num_tokens: usize,
    /// Position of its first token.
    pub(super) position: usize,
    /// Where the row's table begins.
    pub(super) table: usize,
    /// Blocks in common with the piece before it in its unit; 0 for the first.
    pub(super) shared: usize,
}

impl Piece {
    /// The position behind its last token.
    pub(super) fn end(&self) -> usize {
        self.position + self.num_tokens
    }
}

/// Pieces that go through shared tiles together.
#[derive(Debug, Clone)]
pub(super) struct Unit {
    pub(super) pieces: Range<usize>,
    /// Work of the units before it and of itself.
    through: Amount,
}

/// Work, before the heads are known.
#[derive(Debug, Clone, Copy, Default)]
struct Amount {
    /// Pairs of a token and a key that it sees.
    pairs: u64,
    /// Keys that are read from memory.
    keys: u64,
}

/// Divides rows into units, those with much work first.
pub(super) fn divide(
    rows: &[Row],
    order: &[usize],
    shared: &[usize],
    block_size: usize,
) -> (Vec<Piece>, Vec<Unit>) {
    let mut pieces: Vec<Piece> = Vec::with_capacity(order.len());
    let mut units: Vec<Range<usize>> = Vec::with_capacity(order.len());
    // Tokens of the open unit and what the row shares with its last piece.
    let (mut num_tokens, mut common) = (MAX_SHARED_TOKENS, 0);
    for (&row, &with_last) in order.iter().zip(shared) {
        let row = &rows[row];
        common = with_last.min(common);
        if row.num_tokens == 0 {
            continue;
        }
        num_tokens += row.num_tokens;
        if common * block_size >= TILE && num_tokens <= MAX_SHARED_TOKENS {
            pieces.push(Piece { shared: common, ..whole(row) });
            if let Some(unit) = units.last_mut() {
                unit.end = pieces.len();
            }
        } else {
            num_tokens = row.num_tokens;
            cut(row, &mut pieces, &mut units);
        }
        common = usize::MAX;
    }
    let units = sort(&pieces, units, block_size);
    (pieces, units)
}

fn whole(row: &Row) -> Piece {
    Piece {
        first_token: row.first_token,
        num_tokens: row.num_tokens,
        position: row.kv_len - row.num_tokens,
        table: row.table,
        shared: 0,
    }
}

/// Cuts a row at the ends of tiles, one unit each.
fn cut(row: &Row, pieces: &mut Vec<Piece>, units: &mut Vec<Range<usize>>) {
    let mut rest = whole(row);
    while rest.num_tokens > 0 {
        let num_tokens = rest.num_tokens.min(MAX_TOKENS - rest.position % MAX_TOKENS);
        units.push(pieces.len()..pieces.len() + 1);
        pieces.push(Piece { num_tokens, ..rest });
        rest.first_token += num_tokens;
        rest.position += num_tokens;
        rest.num_tokens -= num_tokens;
    }
}

fn amount(pieces: &[Piece], block_size: usize) -> Amount {
    let mut sum = Amount::default();
    for piece in pieces {
        let tokens = piece.num_tokens as u64;
        sum.pairs += tokens * (2 * piece.position as u64 + tokens + 1) / 2;
        sum.keys += piece.end().saturating_sub(piece.shared * block_size) as u64;
    }
    sum
}

fn sort(pieces: &[Piece], units: Vec<Range<usize>>, block_size: usize) -> Vec<Unit> {
    let mut units: Vec<(Amount, Range<usize>)> =
        units.into_iter().map(|unit| (amount(&pieces[unit.clone()], block_size), unit)).collect();
    units.sort_by_key(|(amount, _)| std::cmp::Reverse(amount.pairs + 8 * amount.keys));
    let mut through = Amount::default();
    let sum = |(amount, pieces): (Amount, Range<usize>)| {
        through.pairs += amount.pairs;
        through.keys += amount.keys;
        Unit { pieces, through }
    };
    units.into_iter().map(sum).collect()
}

/// The items of a step in one layer (an item is a unit and a key head) as tasks of similar cost.
#[derive(Debug)]
pub(super) struct Work<'a> {
    units: &'a [Unit],
    num_heads: usize,
    /// Picoseconds of a pair and of a key.
    pair_ps: u64,
    key_ps: u64,
    num_tasks: usize,
    task_ps: u64,
}

impl<'a> Work<'a> {
    pub(super) fn new(step: &'a Step, shape: Shape, element_bytes: usize) -> Self {
        let dims = (shape.key_dim + shape.value_dim) as u64;
        let mut work = Self {
            units: &step.units,
            num_heads: shape.num_kv_heads,
            pair_ps: dims * shape.ratio() as u64 * COMPUTE_PS / 2,
            key_ps: dims * element_bytes as u64 * MEMORY_PS,
            num_tasks: 0,
            task_ps: 1,
        };
        let total = work.total_ps();
        work.num_tasks = (total / TASK_PS).max(1) as usize;
        work.task_ps = total.div_ceil(work.num_tasks as u64).max(1);
        work
    }

    pub(super) fn num_tasks(&self) -> usize {
        self.num_tasks
    }

    /// Whether waking threads would take longer than they help.
    pub(super) fn is_small(&self, team: &Team) -> bool {
        !team.is_worth_sharing((self.total_ps() / 1000) as usize)
    }

    fn total_ps(&self) -> u64 {
        self.start_ps(self.units.len() * self.num_heads)
    }

    /// The cost of all items before one.
    fn start_ps(&self, item: usize) -> u64 {
        let (unit, head) = (item / self.num_heads, item % self.num_heads);
        let before = |unit: usize| {
            let through = unit.checked_sub(1).map_or(Amount::default(), |i| self.units[i].through);
            through.pairs * self.pair_ps + through.keys * self.key_ps
        };
        let start = before(unit) * self.num_heads as u64;
        match head {
            0 => start,
            _ => start + (before(unit + 1) - before(unit)) * head as u64,
        }
    }

    /// The first item that starts at or behind a time.
    fn first_from(&self, time: u64) -> usize {
        let (mut low, mut high) = (0, self.units.len() * self.num_heads);
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.start_ps(middle) < time {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The items of a task: those that start within its share of the total; may be none. Item i is
    /// unit i / `num_kv_heads` and head i % `num_kv_heads`.
    pub(super) fn items(&self, task: usize) -> Range<usize> {
        let start = self.first_from(task as u64 * self.task_ps);
        if task + 1 == self.num_tasks {
            return start..self.units.len() * self.num_heads;
        }
        start..self.first_from((task as u64 + 1) * self.task_ps)
    }
}
