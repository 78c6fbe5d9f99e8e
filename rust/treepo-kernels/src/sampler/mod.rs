//! Draws tokens from logits and reads log-probabilities off them.
//!
//! Inverse CDF in three levels, with one uniform a token: a chunk of the vocabulary by the chunks'
//! masses, a group of entries within it, an entry. One pass over a row gives its chunks' masses,
//! its entropy and its normaliser, and only the chunk that was picked is read again.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::element::Element;
use crate::elementwise::{Output, spread};
use crate::simd::Level;
use crate::team::Team;

mod groups;
mod passes;
mod row;
mod select;
mod truncate;

use groups::Groups;
use passes::Row;
use row::{Distribution, Scratch};

/// How one token is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingParams {
    /// Logits are multiplied by 1 / temperature, rounded to f32; 0 takes the most likely token.
    pub temperature: f32,
    /// Only the k most likely tokens may be drawn; 0 is off.
    pub top_k: usize,
    /// Only the most likely tokens that together reach this mass may be drawn; 1 is off.
    pub top_p: f32,
    /// Only tokens with at least this part of the largest probability may be drawn; 0 is off.
    pub min_p: f32,
}

/// Rows of logits.
#[derive(Debug, Clone, Copy)]
pub struct Logits<T> {
    /// First entry of the first row.
    pub data: *const T,
    /// Number of rows.
    pub num_rows: usize,
    /// Entries of a row, contiguous.
    pub vocab_size: usize,
    /// Elements from one row's begin to the next one's.
    pub row_stride: usize,
}

// SAFETY: they are only read, and whoever passes them to a kernel answers for their elements.
unsafe impl<T: Sync> Sync for Logits<T> {}

impl<T> Logits<T> {
    /// # Safety
    /// The row is one of them.
    unsafe fn row(&self, row: usize, temperature: f32) -> Row<T> {
        let data = unsafe { self.data.add(row * self.row_stride) };
        let scale = if temperature == 0.0 { 1.0 } else { 1.0 / temperature };
        Row { data, vocab_size: self.vocab_size, scale }
    }

    /// About what one thread takes for a row, in ns.
    fn nanos_per_row(&self) -> usize {
        self.vocab_size / 4
    }
}

/// Where draws are written, one entry a sample.
#[derive(Debug)]
pub struct Draws<'a> {
    /// Tokens drawn, never one of probability 0.
    pub token_ids: &'a mut [u32],
    /// Log-probability under the distribution that was sampled from (temperature and truncation
    /// applied, renormalised); greedy: at temperature 1.
    pub logprobs: &'a mut [f32],
    /// Entropy in nats of the full vocabulary at the sampling temperature, before truncation;
    /// greedy: at temperature 1.
    pub entropies: &'a mut [f32],
}

/// Logits that give no distribution: NaN, an infinity (minus infinity too), or two logits whose
/// difference divided by the temperature exceeds the range of f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotFinite {
    /// First row of the logits, among those that are read, that holds one.
    pub row: usize,
}

impl std::fmt::Display for NotFinite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "row {} of the logits holds a NaN or an infinity", self.row)
    }
}

impl std::error::Error for NotFinite {}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::new());
}

/// Draws a token for each uniform, which lies in [0, 1); greedy sampling does not read them.
///
/// `rows` is the logits row of each sample; without it sample i reads row i. A row that several
/// samples read is summed once. With an error the draws hold anything.
///
/// # Panics
/// If lengths disagree, a row is not one of the logits, or there is no vocabulary.
///
/// # Safety
/// `logits` holds its rows and no other thread writes them meanwhile.
pub unsafe fn sample<T: Element>(
    team: &Team,
    level: Level,
    logits: &Logits<T>,
    rows: Option<&[i64]>,
    uniforms: &[f64],
    params: &SamplingParams,
    out: &mut Draws<'_>,
) -> Result<(), NotFinite> {
    let num_samples = uniforms.len();
    check_lengths(num_samples, &[out.token_ids.len(), out.logprobs.len(), out.entropies.len()]);
    let groups = Groups::new(rows, num_samples, logits.num_rows);
    assert!(num_samples == 0 || logits.vocab_size > 0, "a sample needs a vocabulary");
    let token_ids = Output(out.token_ids.as_mut_ptr());
    let [logprobs, entropies] =
        [&mut out.logprobs, &mut out.entropies].map(|x| Output(x.as_mut_ptr()));
    let not_finite = FirstRow::none();
    spread(team, groups.len(), logits.nanos_per_row(), |tasks| {
        SCRATCH.with_borrow_mut(|scratch| {
            for (row, samples) in tasks.map(|group| groups.get(group)) {
                // SAFETY: the row is one of the logits.
                let read = unsafe {
                    let row = logits.row(row, params.temperature);
                    Distribution::read(level, row, scratch)
                };
                let Some(full) = read else {
                    not_finite.note(row);
                    continue;
                };
                let cut = full.truncated(params, scratch);
                for sample in samples {
                    let token_id = if params.temperature == 0.0 {
                        cut.most_likely(scratch)
                    } else {
                        cut.draw(uniforms[*sample], scratch)
                    };
                    // SAFETY: the lengths are checked; each sample is in one group.
                    unsafe {
                        *token_ids.pointer().add(*sample) = token_id as u32;
                        *logprobs.pointer().add(*sample) = cut.logprob(token_id);
                        *entropies.pointer().add(*sample) = cut.entropy;
                    }
                }
            }
        });
    });
    not_finite.result()
}

/// Reads the log-probability of one token a row, and the row's entropy, at a temperature; 0 means 1.
///
/// The arithmetic is that of [`sample`] without truncation: the same row and token give the same
/// bits. With an error the results hold anything.
///
/// # Panics
/// If lengths disagree or a target is not in the vocabulary.
///
/// # Safety
/// `logits` holds its rows and no other thread writes them meanwhile.
pub unsafe fn token_logprobs<T: Element>(
    team: &Team,
    level: Level,
    logits: &Logits<T>,
    targets: &[i64],
    temperature: f32,
    logprobs: &mut [f32],
    entropies: &mut [f32],
) -> Result<(), NotFinite> {
    check_lengths(logits.num_rows, &[targets.len(), logprobs.len(), entropies.len()]);
    for target in targets {
        let is_token = (0..logits.vocab_size as i64).contains(target);
        assert!(is_token, "target {target} is not in the vocabulary of {}", logits.vocab_size);
    }
    let [logprobs, entropies] = [logprobs, entropies].map(|x| Output(x.as_mut_ptr()));
    let not_finite = FirstRow::none();
    spread(team, targets.len(), logits.nanos_per_row(), |rows| {
        SCRATCH.with_borrow_mut(|scratch| {
            for row in rows {
                // SAFETY: the row is one of the logits, and the lengths are checked.
                unsafe {
                    let read = Distribution::read(level, logits.row(row, temperature), scratch);
                    let Some(full) = read else {
                        not_finite.note(row);
                        continue;
                    };
                    *logprobs.pointer().add(row) = full.logprob(targets[row] as usize);
                    *entropies.pointer().add(row) = full.entropy;
                }
            }
        });
    });
    not_finite.result()
}

fn check_lengths(expected: usize, actual: &[usize]) {
    for length in actual {
        assert!(*length == expected, "expected a length of {expected}, got {length}");
    }
}

/// The smallest row that any thread noted.
struct FirstRow(AtomicUsize);

impl FirstRow {
    fn none() -> Self {
        Self(AtomicUsize::new(usize::MAX))
    }

    fn note(&self, row: usize) {
        self.0.fetch_min(row, Ordering::Relaxed);
    }

    fn result(self) -> Result<(), NotFinite> {
        match self.0.into_inner() {
            usize::MAX => Ok(()),
            row => Err(NotFinite { row }),
        }
    }
}
