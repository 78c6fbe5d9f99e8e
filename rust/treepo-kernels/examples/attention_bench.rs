//! Time of one layer's attention against a plain read of as much memory.
//!
//! `cargo run --release -p treepo-kernels --example attention_bench [threads [load]]`
//!
//! `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` gives the pools large pages, as the engine does.
//! `load` is the place of one load in the list; without it all are measured, in both formats.
#![allow(unsafe_code, reason = "kernels take raw buffers")]
#![allow(clippy::print_stdout, reason = "it prints its measurements")]
#![allow(clippy::disallowed_methods, reason = "it takes the time")]

use std::hint::black_box;
use std::time::Instant;

use treepo_kernels::attention::{
    Buffers, Layer, Shape, Step, StepArrays, Strided, attend, padded_key_dim, padded_value_dim,
};
use treepo_kernels::element::{Bf16, Element};
use treepo_kernels::simd::Level;
use treepo_kernels::team::Team;

const SHAPE: Shape = Shape { num_heads: 9, num_kv_heads: 3, key_dim: 64, value_dim: 64 };
const BLOCK_SIZE: usize = 16;
const MAX_LAYERS: usize = 30;
/// Pools are cut to so many layers that they fit.
const MAX_BYTES: usize = 1 << 30;
const REPEATS: usize = 5;
/// Rows that share three quarters of their keys.
const SIBLINGS: usize = 8;

#[derive(Debug, Clone, Copy)]
struct Load {
    num_rows: usize,
    kv_len: usize,
    num_tokens: usize,
    is_shared: bool,
}

impl Load {
    /// Block tables and the number of blocks.
    fn tables(&self) -> (Vec<i32>, usize, usize) {
        let stride = self.kv_len.div_ceil(BLOCK_SIZE);
        let common = if self.is_shared { stride * 3 / 4 } else { 0 };
        let mut tables = Vec::new();
        let mut num_blocks = 0;
        for row in 0..self.num_rows {
            for place in 0..stride {
                if place < common && row % SIBLINGS > 0 {
                    tables.push(tables[(row - 1) * stride + place]);
                } else {
                    tables.push(num_blocks);
                    num_blocks += 1;
                }
            }
        }
        // Neighbours in a table are no neighbours in memory.
        let count = num_blocks as usize;
        let factor = (count / 2 + 1..2 * count).find(|&x| gcd(x, count) == 1).unwrap_or(1);
        for block in &mut tables {
            *block = ((*block as usize * factor) % count) as i32;
        }
        (tables, stride, count)
    }

    fn step(&self) -> (Step, usize) {
        let (tables, stride, num_blocks) = self.tables();
        let rows: Vec<i32> = (0..self.num_rows as i32).collect();
        let starts: Vec<i32> =
            (0..=self.num_rows).map(|row| (row * self.num_tokens) as i32).collect();
        let mut slots = Vec::new();
        for row in 0..self.num_rows {
            for position in self.kv_len - self.num_tokens..self.kv_len {
                let block = tables[row * stride + position / BLOCK_SIZE] as usize;
                slots.push((block * BLOCK_SIZE + position % BLOCK_SIZE) as i64);
            }
        }
        let arrays = StepArrays {
            query_starts: &starts,
            kv_lens: &vec![self.kv_len as i32; self.num_rows],
            tables: &tables,
            table_stride: stride,
            table_rows: &rows,
            slots: &slots,
            row_order: if self.is_shared { &rows } else { &[] },
            groups: &[],
        };
        (Step::new(num_blocks, BLOCK_SIZE, &arrays).expect("valid arrays"), num_blocks)
    }

    /// Multiplications and additions.
    fn flops(&self) -> f64 {
        let seen = self.kv_len as f64 - (self.num_tokens as f64 - 1.0) / 2.0;
        let pairs = (self.num_rows * self.num_tokens * SHAPE.num_heads) as f64 * seen;
        2.0 * pairs * (SHAPE.key_dim + SHAPE.value_dim) as f64
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Milliseconds of the fastest repeat, a call.
fn time(mut call: impl FnMut(usize), num_calls: usize) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..=REPEATS {
        let start = Instant::now();
        for index in 0..num_calls {
            call(index);
        }
        best = best.min(start.elapsed().as_secs_f64() / num_calls as f64);
    }
    best
}

/// Reads memory in as many parts as there are tasks.
fn read(team: &Team, data: &[u64]) {
    let parts: Vec<&[u64]> = data.chunks(1 << 14).collect();
    team.run(parts.len(), |part| {
        let mut sums = [0u64; 32];
        for lanes in parts[part].chunks_exact(32) {
            for (sum, x) in sums.iter_mut().zip(lanes) {
                *sum = sum.wrapping_add(*x);
            }
        }
        black_box(sums);
    });
}

fn measure<T: Element>(team: &Team, level: Level, name: &str, load: Load) {
    let (step, num_blocks) = load.step();
    let positions = num_blocks * BLOCK_SIZE * SHAPE.num_kv_heads;
    let (num_keys, num_values) =
        (positions * padded_key_dim(SHAPE.key_dim), positions * padded_value_dim(SHAPE.value_dim));
    let bytes = (num_keys + num_values) * size_of::<T>();
    let num_layers = (MAX_BYTES / bytes).clamp(1, MAX_LAYERS);
    let filled = |count: usize| vec![T::from_f32(0.1); count];
    let mut pools: Vec<(Vec<T>, Vec<T>)> =
        (0..num_layers).map(|_| (filled(num_keys), filled(num_values))).collect();
    let num_tokens = load.num_rows * load.num_tokens;
    let input = filled(num_tokens * SHAPE.num_heads * SHAPE.key_dim);
    let mut output = filled(input.len());
    let layer = Layer { shape: SHAPE, scaling: 0.125, window: None, softcap: None, sinks: None };
    let view = |heads: usize| Strided {
        data: input.as_ptr(),
        token_stride: heads * SHAPE.key_dim,
        head_stride: SHAPE.key_dim,
    };
    let call = |index: usize| {
        let (keys, values) = &mut pools[index];
        let buffers = Buffers {
            query: view(SHAPE.num_heads),
            key: view(SHAPE.num_kv_heads),
            value: view(SHAPE.num_kv_heads),
            output: output.as_mut_ptr(),
            keys: keys.as_mut_ptr(),
            values: values.as_mut_ptr(),
        };
        // SAFETY: the arrays have the sizes that the shape gives.
        unsafe { attend(team, level, &step, &layer, &buffers) }
    };
    let seconds = time(call, num_layers);
    let plain: Vec<Vec<u64>> = (0..num_layers).map(|_| vec![1; bytes / 8]).collect();
    let reading = time(|index| read(team, &plain[index]), num_layers);
    println!(
        "{name:>4} rows {:>3} x {:>4} tokens, ctx {:>4}, shared {}: {:>8.1} us, {:>5.1} MB, {:>5.1} GB/s (plain read {:>5.1}), {:>6.1} GFLOP/s",
        load.num_rows,
        load.num_tokens,
        load.kv_len,
        if load.is_shared { "3/4" } else { "  0" },
        seconds * 1e6,
        bytes as f64 / 1e6,
        bytes as f64 / seconds / 1e9,
        bytes as f64 / reading / 1e9,
        load.flops() / seconds / 1e9,
    );
}

fn main() {
    let num_threads = std::env::args().nth(1).and_then(|x| x.parse().ok()).unwrap_or(2);
    let (team, level) = (Team::parked(num_threads), Level::detect());
    println!("{num_threads} threads, {}", level.name());
    let mut loads = Vec::new();
    for is_shared in [false, true] {
        for kv_len in [128, 150, 512] {
            for num_rows in [16, 64, 128] {
                loads.push(Load { num_rows, kv_len, num_tokens: 1, is_shared });
            }
        }
    }
    loads.push(Load { num_rows: 16, kv_len: 64, num_tokens: 64, is_shared: false });
    loads.push(Load { num_rows: 1, kv_len: 1024, num_tokens: 1024, is_shared: false });
    let only: Option<usize> = std::env::args().nth(2).and_then(|x| x.parse().ok());
    for (index, load) in loads.into_iter().enumerate() {
        if only.is_some_and(|only| only != index) {
            continue;
        }
        measure::<f32>(&team, level, "f32", load);
        if only.is_none() {
            measure::<Bf16>(&team, level, "bf16", load);
        }
    }
}
