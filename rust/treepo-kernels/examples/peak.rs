//! What this processor can do at most, to hold kernels and other engines against:
//! `cargo run --release -p treepo-kernels --example peak [threads]`.
//!
//! Products of numbers in registers, as many at once as hide their latency, and reading of memory
//! that no cache holds.

#![allow(unsafe_code, reason = "the kernels' own vectors")]
#![allow(clippy::print_stdout, reason = "the result")]
#![allow(clippy::disallowed_methods, reason = "a benchmark takes the time")]

use std::hint::black_box;
use std::time::Instant;

use treepo_kernels::element::{Bf16, Element};
use treepo_kernels::simd::{Kernel, Level, Simd, prefetch, run};
use treepo_kernels::team::Team;

/// Sums in registers.
const SUMS: usize = 12;
const ROUNDS: usize = 4_000_000;
/// Floats that each thread reads.
const LEN: usize = 32 << 20;
const REPEATS: usize = 5;

struct Products<T> {
    number: T,
}

impl<T: Element> Kernel for Products<T> {
    type Output = f32;

    #[allow(clippy::inline_always, reason = "compiled for the level that runs it")]
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        // SAFETY: `run` has chosen a level that is there.
        unsafe {
            let x = S::splat(black_box(self.number.word()));
            let mut sums = [S::splat(0.0); SUMS];
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = T::mul_add_words::<S>(x, x, *sum);
                }
            }
            sums.into_iter().map(|sum| S::sum(sum)).sum()
        }
    }
}

struct Reading<'a>(&'a [f32]);

impl Kernel for Reading<'_> {
    type Output = f32;

    #[allow(clippy::inline_always, reason = "compiled for the level that runs it")]
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        const AHEAD: usize = 1 << 10;
        let vectors = self.0.chunks_exact(4 * S::LANES);
        // SAFETY: the vectors lie within the slice.
        unsafe {
            let mut sums = [S::splat(0.0); 4];
            for part in vectors {
                prefetch(part.as_ptr().wrapping_add(AHEAD).cast());
                prefetch(part.as_ptr().wrapping_add(AHEAD + 16).cast());
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = S::add(*sum, S::load(part.as_ptr().add(i * S::LANES)));
                }
            }
            sums.into_iter().map(|sum| S::sum(sum)).sum()
        }
    }
}

/// The shortest time of one run on every thread of the team.
fn seconds(team: &Team, work: impl Fn(usize) -> f32 + Sync) -> f64 {
    let once = |_| {
        let begin = Instant::now();
        team.run(team.num_threads(), |index| {
            black_box(work(index));
        });
        begin.elapsed().as_secs_f64()
    };
    (0..REPEATS).map(once).fold(f64::INFINITY, f64::min)
}

fn lanes(level: Level) -> usize {
    struct Lanes;
    impl Kernel for Lanes {
        type Output = usize;
        #[allow(clippy::inline_always, reason = "as every kernel")]
        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> usize {
            S::LANES
        }
    }
    run(level, Lanes)
}

fn products<T: Element>(team: &Team, level: Level, name: &str) {
    let number = T::from_f32(1e-3);
    let seconds = seconds(team, |_| run(level, Products { number }));
    let count = team.num_threads() * ROUNDS * SUMS * lanes(level) * T::PER_WORD;
    println!("{:>12} {name:>5}: {:7.1} GFLOP/s", level.name(), 2.0 * count as f64 / seconds / 1e9);
}

fn main() {
    let num_threads = std::env::args().nth(1).and_then(|x| x.parse().ok()).unwrap_or(2);
    let team = Team::parked(num_threads);
    println!("{num_threads} threads");
    for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
        products::<f32>(&team, level, "f32");
        products::<Bf16>(&team, level, "bf16");
    }
    let data = vec![1.0_f32; LEN * num_threads];
    let level = Level::detect();
    let seconds =
        seconds(&team, |index| run(level, Reading(&data[index * LEN..(index + 1) * LEN])));
    println!("{:>12}       {:8.1} GB/s", "memory", size_of_val(&data[..]) as f64 / seconds / 1e9);
}
