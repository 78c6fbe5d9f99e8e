//! Steps with made-up numbers, laid out in a pool in any way, and their exact results.
#![allow(
    dead_code,
    unreachable_pub,
    unsafe_code,
    reason = "each test uses a part; kernels take raw buffers"
)]

use treepo_kernels::attention::{
    Buffers, Layer, Shape, Step, StepArrays, Strided, attend, padded_key_dim, padded_value_dim,
};
use treepo_kernels::element::Element;
use treepo_kernels::simd::Level;
use treepo_kernels::team::Team;

/// A row: its first `shared` tokens are those of row `parent`.
#[derive(Debug, Clone, Copy)]
pub struct RowSpec {
    pub parent: usize,
    pub shared: usize,
    pub kv_len: usize,
    pub num_tokens: usize,
}

impl RowSpec {
    pub fn alone(kv_len: usize, num_tokens: usize) -> Self {
        Self { parent: 0, shared: 0, kv_len, num_tokens }
    }
}

#[derive(Debug, Clone)]
pub struct Case {
    pub shape: Shape,
    pub rows: Vec<RowSpec>,
    pub window: Option<usize>,
    pub softcap: Option<f32>,
    pub has_sinks: bool,
    pub block_size: usize,
    /// Seed of the order of blocks in the pool.
    pub placement: u64,
    pub is_grouped: bool,
}

impl Case {
    pub fn new(shape: Shape, rows: Vec<RowSpec>) -> Self {
        Self {
            shape,
            rows,
            window: None,
            softcap: None,
            has_sinks: false,
            block_size: 16,
            placement: 1,
            is_grouped: false,
        }
    }

    /// The row whose own token stands at a position of a row.
    fn owner(&self, row: usize, position: usize) -> usize {
        let spec = self.rows[row];
        if position < spec.shared { self.owner(spec.parent, position) } else { row }
    }

    fn sinks(&self) -> Option<Vec<f32>> {
        let sink = |h| 2.0 * number([9, h, 0, 0]);
        self.has_sinks.then(|| (0..self.shape.num_heads).map(sink).collect())
    }

    /// Block tables, one list a row, and the number of blocks.
    pub fn tables(&self) -> (Vec<Vec<i32>>, usize) {
        let mut tables: Vec<Vec<i32>> = Vec::new();
        let mut num_blocks = 0;
        for spec in &self.rows {
            let common = spec.shared / self.block_size;
            let mut table: Vec<i32> = match common {
                0 => Vec::new(),
                _ => tables[spec.parent][..common].to_vec(),
            };
            for _ in common..spec.kv_len.div_ceil(self.block_size) {
                table.push(num_blocks);
                num_blocks += 1;
            }
            tables.push(table);
        }
        // Three blocks stay free.
        let count = num_blocks as usize + 3;
        let mut ids: Vec<i32> = (0..count as i32).collect();
        ids.sort_by_key(|&id| mix(self.placement ^ mix(id as u64)));
        for block in tables.iter_mut().flatten() {
            *block = ids[*block as usize];
        }
        (tables, count)
    }

    /// `[num_tokens, num_heads, value_dim]` what the kernel computes.
    pub fn run<T: Element>(&self, level: Level, team: &Team) -> Vec<T> {
        let (tables, num_blocks) = self.tables();
        let mut pool = Pool::<T>::new(self, &tables, num_blocks);
        let arrays = Arrays::new(self, &tables);
        let step = Step::new(num_blocks, self.block_size, &arrays.view()).expect("valid arrays");
        let inputs = Inputs::<T>::new(self);
        let num_tokens = step.num_tokens();
        let shape = self.shape;
        let mut output = vec![T::ZERO; num_tokens * shape.num_heads * shape.value_dim];
        let sinks = self.sinks();
        let layer = Layer {
            shape,
            scaling: self.scaling(),
            window: self.window,
            softcap: self.softcap,
            sinks: sinks.as_deref(),
        };
        let buffers = Buffers {
            query: by_head(&inputs.query, num_tokens, shape.key_dim),
            key: by_token(&inputs.key, shape.num_kv_heads, shape.key_dim),
            value: by_token(&inputs.value, shape.num_kv_heads, shape.value_dim),
            output: output.as_mut_ptr(),
            keys: pool.keys.as_mut_ptr(),
            values: pool.values.as_mut_ptr(),
        };
        // SAFETY: the arrays have the sizes that the shape gives.
        unsafe { attend(team, level, &step, &layer, &buffers) }
        output
    }

    fn scaling(&self) -> f32 {
        2.0 / (self.shape.key_dim as f32).sqrt()
    }

    /// The exact results for inputs in format `T`.
    pub fn expected<T: Element>(&self) -> Vec<f64> {
        let shape = self.shape;
        let ratio = shape.num_heads / shape.num_kv_heads;
        let mut output = Vec::new();
        for (row, spec) in self.rows.iter().enumerate() {
            for position in spec.kv_len - spec.num_tokens..spec.kv_len {
                for head in 0..shape.num_heads {
                    let weights = self.weights::<T>(row, position, head);
                    for d in 0..shape.value_dim {
                        let term = |&(p, w): &(usize, f64)| {
                            let source = [3, self.owner(row, p), p, (head / ratio) << 16 | d];
                            w * exact::<T>(source)
                        };
                        output.push(weights.iter().map(term).sum());
                    }
                }
            }
        }
        output
    }

    fn weights<T: Element>(&self, row: usize, position: usize, head: usize) -> Vec<(usize, f64)> {
        let ratio = self.shape.num_heads / self.shape.num_kv_heads;
        let first = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let score = |p: usize| {
            let dot: f64 = (0..self.shape.key_dim)
                .map(|d| {
                    let query = exact::<T>([1, row, position, head << 16 | d]);
                    query * exact::<T>([2, self.owner(row, p), p, (head / ratio) << 16 | d])
                })
                .sum();
            let x = dot * f64::from(self.scaling());
            self.softcap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh())
        };
        let scores: Vec<f64> = (first..=position).map(score).collect();
        let sink = self.sinks().map_or(f64::NEG_INFINITY, |sinks| f64::from(sinks[head]));
        let top = scores.iter().copied().fold(sink, f64::max);
        let sum: f64 = scores.iter().map(|x| (x - top).exp()).sum::<f64>() + (sink - top).exp();
        scores.iter().enumerate().map(|(i, x)| (first + i, (x - top).exp() / sum)).collect()
    }
}

/// `[heads, tokens, dim]`, as models hold queries.
fn by_head<T>(data: &[T], num_tokens: usize, dim: usize) -> Strided<T> {
    Strided { data: data.as_ptr(), token_stride: dim, head_stride: num_tokens * dim }
}

fn by_token<T>(data: &[T], num_heads: usize, dim: usize) -> Strided<T> {
    Strided { data: data.as_ptr(), token_stride: num_heads * dim, head_stride: dim }
}

/// The step's own arrays.
struct Inputs<T> {
    query: Vec<T>,
    key: Vec<T>,
    value: Vec<T>,
}

impl<T: Element> Inputs<T> {
    fn new(case: &Case) -> Self {
        let shape = case.shape;
        let tokens: Vec<(usize, usize)> = case
            .rows
            .iter()
            .enumerate()
            .flat_map(|(row, spec)| {
                (spec.kv_len - spec.num_tokens..spec.kv_len).map(move |position| (row, position))
            })
            .collect();
        let (mut query, mut key, mut value) = (Vec::new(), Vec::new(), Vec::new());
        for head in 0..shape.num_heads {
            for &(row, position) in &tokens {
                fill(&mut query, [1, row, position, head << 16], shape.key_dim);
            }
        }
        for &(row, position) in &tokens {
            for head in 0..shape.num_kv_heads {
                fill(&mut key, [2, row, position, head << 16], shape.key_dim);
                fill(&mut value, [3, row, position, head << 16], shape.value_dim);
            }
        }
        Self { query, key, value }
    }
}

fn fill<T: Element>(to: &mut Vec<T>, source: [usize; 4], dim: usize) {
    let [kind, row, position, head] = source;
    to.extend((0..dim).map(|d| T::from_f32(number([kind, row, position, head | d]))));
}

/// Keys and values of earlier steps; all else is NaN.
struct Pool<T> {
    keys: Vec<T>,
    values: Vec<T>,
}

impl<T: Element> Pool<T> {
    fn new(case: &Case, tables: &[Vec<i32>], num_blocks: usize) -> Self {
        let Shape { num_kv_heads, key_dim, value_dim, .. } = case.shape;
        let size = case.block_size;
        let wide = padded_value_dim(value_dim);
        let nan = T::from_f32(f32::NAN);
        let (tall, per_word) = (padded_key_dim(key_dim), T::PER_WORD);
        let mut keys = vec![nan; num_blocks * num_kv_heads * tall * size];
        let mut values = vec![nan; num_blocks * num_kv_heads * size * wide];
        for (row, spec) in case.rows.iter().enumerate() {
            for position in 0..spec.kv_len - spec.num_tokens {
                let block = tables[row][position / size] as usize;
                let (offset, owner) = (position % size, case.owner(row, position));
                for head in 0..num_kv_heads {
                    let at = block * num_kv_heads + head;
                    for d in 0..tall {
                        // What fills up the last word is 0.
                        let x = number([2, owner, position, head << 16 | d]);
                        let x = if d < key_dim { x } else { 0.0 };
                        let word = (at * tall + d - d % per_word) * size + offset * per_word;
                        keys[word + d % per_word] = T::from_f32(x);
                    }
                    for d in 0..value_dim {
                        let x = number([3, owner, position, head << 16 | d]);
                        values[(at * size + offset) * wide + d] = T::from_f32(x);
                    }
                }
            }
        }
        Self { keys, values }
    }
}

/// The arrays of a step; its tables lie in reverse order.
pub struct Arrays {
    query_starts: Vec<i32>,
    kv_lens: Vec<i32>,
    tables: Vec<i32>,
    stride: usize,
    table_rows: Vec<i32>,
    slots: Vec<i64>,
    row_order: Vec<i32>,
    groups: Vec<i32>,
}

impl Arrays {
    pub fn new(case: &Case, tables: &[Vec<i32>]) -> Self {
        let stride = tables.iter().map(Vec::len).max().unwrap_or(0) + 1;
        let num_rows = case.rows.len();
        let (mut query_starts, mut slots) = (vec![0], Vec::new());
        let mut flat = vec![-1; num_rows * stride];
        for (row, spec) in case.rows.iter().enumerate() {
            query_starts.push(query_starts[row] + spec.num_tokens as i32);
            for position in spec.kv_len - spec.num_tokens..spec.kv_len {
                let block = tables[row][position / case.block_size] as usize;
                slots.push((block * case.block_size + position % case.block_size) as i64);
            }
            let table = &mut flat[(num_rows - 1 - row) * stride..];
            table[..tables[row].len()].copy_from_slice(&tables[row]);
        }
        let mut row_order: Vec<i32> = Vec::new();
        let mut groups = Vec::new();
        if case.is_grouped {
            row_order = (0..num_rows as i32).collect();
            row_order.sort_by_key(|&row| tables[row as usize].clone());
            let sorted: Vec<&[i32]> =
                row_order.iter().map(|&row| tables[row as usize].as_slice()).collect();
            trie(&sorted, 0, 0, &mut groups);
        }
        Self {
            query_starts,
            kv_lens: case.rows.iter().map(|spec| spec.kv_len as i32).collect(),
            tables: flat,
            stride,
            table_rows: (0..num_rows as i32).rev().collect(),
            slots,
            row_order,
            groups,
        }
    }

    pub fn view(&self) -> StepArrays<'_> {
        StepArrays {
            query_starts: &self.query_starts,
            kv_lens: &self.kv_lens,
            tables: &self.tables,
            table_stride: self.stride,
            table_rows: &self.table_rows,
            slots: &self.slots,
            row_order: &self.row_order,
            groups: &self.groups,
        }
    }
}

/// The groups among sorted tables that have `start` blocks in common.
fn trie(tables: &[&[i32]], first: usize, start: usize, groups: &mut Vec<i32>) {
    if tables.len() < 2 {
        return;
    }
    let (head, last) = (tables[0], tables[tables.len() - 1]);
    let end = head.iter().zip(last).take_while(|(a, b)| a == b).count();
    let mut place = 0;
    for same in tables.chunk_by(|a, b| a.get(end) == b.get(end)) {
        if same.len() < tables.len() && same[0].len() > end {
            trie(same, first + place, end, groups);
        }
        place += same.len();
    }
    if end > start {
        groups.extend([first, tables.len(), start, end].map(|x| x as i32));
    }
}

fn exact<T: Element>(source: [usize; 4]) -> f64 {
    f64::from(T::from_f32(number(source)).to_f32())
}

/// A number between -1 and 1 that depends on its source alone.
pub fn number(source: [usize; 4]) -> f32 {
    let seed = source.into_iter().fold(7, |seed, x| mix(seed ^ x as u64));
    (seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

/// The finaliser of `SplitMix64`.
pub fn mix(seed: u64) -> u64 {
    let x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// The levels of this processor.
pub fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|level| level.is_available())
}

/// Fails where a result is far from the exact one.
pub fn assert_close<T: Element>(results: &[T], expected: &[f64], tolerance: f64) {
    assert_eq!(results.len(), expected.len());
    for (i, (result, &expected)) in results.iter().zip(expected).enumerate() {
        let result = f64::from(result.to_f32());
        let limit = tolerance * (1.0 + expected.abs());
        assert!((result - expected).abs() <= limit, "element {i}: {result}, not {expected}");
    }
}

/// The bits of results: NaN differs from nothing but itself, 0 from -0.
pub fn bits<T: Element>(results: &[T]) -> Vec<u32> {
    results.iter().map(|x| x.to_f32().to_bits()).collect()
}
