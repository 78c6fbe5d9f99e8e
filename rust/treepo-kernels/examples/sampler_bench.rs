//! Times of the sampler and of the elementwise kernels: `cargo run --release --example
//! sampler_bench [threads]`.

#![allow(unsafe_code, reason = "the kernels take raw buffers")]
#![allow(clippy::print_stdout, reason = "the result")]
#![allow(clippy::disallowed_methods, reason = "a benchmark takes the time")]

use std::time::Instant;

use treepo_kernels::element::{Bf16, Element};
use treepo_kernels::elementwise::{
    Activation, RmsNorm, RopeShape, Rows, Strided3, gate, rms_norm, rope_pair,
};
use treepo_kernels::sampler::{Draws, Logits, SamplingParams, sample};
use treepo_kernels::simd::Level;
use treepo_kernels::team::Team;

const VOCAB_SIZE: usize = 49152;
const PLAIN: SamplingParams = SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };

/// Where a kernel runs.
struct Place {
    team: Team,
    level: Level,
}

/// Runs the work often and prints its shortest time.
fn report(name: &str, num_bytes: usize, mut work: impl FnMut()) {
    let once = |work: &mut dyn FnMut()| {
        let begin = Instant::now();
        work();
        begin.elapsed().as_secs_f64()
    };
    let runs = (0.3 / once(&mut work).max(1e-6)).clamp(5.0, 1000.0) as usize;
    let seconds = (0..runs).map(|_| once(&mut work)).fold(f64::INFINITY, f64::min);
    println!("{name:44} {:9.1} us {:7.1} GB/s", seconds * 1e6, num_bytes as f64 / seconds / 1e9);
}

/// Numbers that are roughly normal with the given deviation.
fn numbers<T: Element>(count: usize, deviation: f32) -> Vec<T> {
    let mut state = 1_u64;
    let mut unit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut normal = || (0..12).map(|_| unit()).sum::<f32>() * deviation;
    (0..count).map(|_| T::from_f32(normal())).collect()
}

fn bench_sampler<T: Element>(place: &Place, kind: &str, num_rows: usize, deviation: f32) {
    let data = numbers::<T>(num_rows * VOCAB_SIZE, deviation);
    let logits =
        Logits { data: data.as_ptr(), num_rows, vocab_size: VOCAB_SIZE, row_stride: VOCAB_SIZE };
    let uniforms: Vec<f64> = (0..num_rows).map(|i| (i as f64 + 0.5) / num_rows as f64).collect();
    let mut token_ids = vec![0; num_rows];
    let [mut logprobs, mut entropies] = [0, 1].map(|_| vec![0.0; num_rows]);
    let cases = [
        ("plain", PLAIN),
        ("greedy", SamplingParams { temperature: 0.0, ..PLAIN }),
        ("top-k 50", SamplingParams { top_k: 50, ..PLAIN }),
        ("top-p 0.95", SamplingParams { top_p: 0.95, ..PLAIN }),
        ("top-k 50 top-p 0.95", SamplingParams { top_k: 50, top_p: 0.95, ..PLAIN }),
        ("min-p 0.05", SamplingParams { min_p: 0.05, ..PLAIN }),
    ];
    for (name, params) in cases {
        let name = format!("sample {kind} {num_rows} x {VOCAB_SIZE} s{deviation} {name}");
        report(&name, size_of_val(&data[..]), || {
            let mut out = Draws {
                token_ids: &mut token_ids,
                logprobs: &mut logprobs,
                entropies: &mut entropies,
            };
            let Place { team, level } = place;
            // SAFETY: the logits hold these rows.
            unsafe { sample(team, *level, &logits, None, &uniforms, &params, &mut out) }
                .expect("the logits are finite");
        });
    }
}

fn bench_norm<T: Element>(place: &Place, kind: &str, num_rows: usize) {
    let norm = RmsNorm { width: 576, eps: 1e-5, offset: 0.0 };
    let x = numbers::<T>(num_rows * norm.width, 1.0);
    let mut output = x.clone();
    let input = Rows { data: x.as_ptr(), stride: norm.width };
    report(&format!("rms_norm {kind} {num_rows} x 576"), 2 * size_of_val(&x[..]), || {
        let to = output.as_mut_ptr();
        // SAFETY: the buffers have these sizes.
        unsafe { rms_norm(&place.team, place.level, num_rows, &norm, input, x.as_ptr(), to) }
    });
}

fn bench_rope<T: Element>(place: &Place, kind: &str, num_tokens: usize) {
    let shape = |num_heads| RopeShape { num_tokens, num_heads, head_dim: 64, rotary_dim: 64 };
    let shapes = [shape(9), shape(3)];
    let x = numbers::<T>(num_tokens * 12 * 64, 1.0);
    let mut output = x.clone();
    let angles = numbers::<f32>(num_tokens * 64, 1.0);
    // SAFETY: the keys lie behind the queries of each token.
    let keys = unsafe { x.as_ptr().add(9 * 64) };
    let inputs =
        [x.as_ptr(), keys].map(|data| Strided3 { data, token_stride: 768, head_stride: 64 });
    report(&format!("rope {kind} {num_tokens} x (9 + 3) x 64"), 2 * size_of_val(&x[..]), || {
        // SAFETY: the buffers have these sizes.
        unsafe {
            let outputs = [output.as_mut_ptr(), output.as_mut_ptr().add(num_tokens * 9 * 64)];
            let Place { team, level } = place;
            rope_pair(team, *level, shapes, inputs, angles.as_ptr(), angles.as_ptr(), outputs);
        }
    });
}

fn bench_gate<T: Element>(place: &Place, kind: &str, num_rows: usize) {
    let x = numbers::<T>(num_rows * 1536, 1.0);
    let mut output = x.clone();
    let rows = Rows { data: x.as_ptr(), stride: 1536 };
    let Place { team, level } = place;
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
        let name = format!("gate {kind} {num_rows} x 1536 {activation:?}");
        report(&name, 3 * size_of_val(&x[..]), || {
            let to = output.as_mut_ptr();
            // SAFETY: the buffers have these sizes.
            unsafe { gate(team, *level, num_rows, 1536, activation, rows, rows, to) }
        });
    }
}

fn main() {
    let num_threads = std::env::args().nth(1).map_or(1, |text| text.parse().expect("a number"));
    let place = Place { team: Team::parked(num_threads), level: Level::detect() };
    println!("{} threads, {}", num_threads, place.level.name());
    for num_rows in [16, 64, 128] {
        bench_sampler::<f32>(&place, "f32", num_rows, 2.0);
        bench_sampler::<Bf16>(&place, "bf16", num_rows, 2.0);
    }
    bench_sampler::<f32>(&place, "f32", 64, 4.0);
    for num_rows in [16, 128] {
        bench_norm::<f32>(&place, "f32", num_rows);
        bench_norm::<Bf16>(&place, "bf16", num_rows);
        bench_rope::<f32>(&place, "f32", num_rows);
        bench_rope::<Bf16>(&place, "bf16", num_rows);
        bench_gate::<f32>(&place, "f32", num_rows);
        bench_gate::<Bf16>(&place, "bf16", num_rows);
    }
}
