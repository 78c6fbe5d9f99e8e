//! Runs the sampler on logits that a test makes.

use treepo_kernels::element::Element;
use treepo_kernels::sampler::{Draws, Logits, NotFinite, SamplingParams, sample, token_logprobs};
use treepo_kernels::simd::Level;
use treepo_kernels::team::Team;

pub(crate) fn levels() -> Vec<Level> {
    Level::ALL.into_iter().filter(|level| level.is_available()).collect()
}

/// A place to run and the logits.
pub(crate) struct Step<'a, T> {
    pub(crate) team: Team,
    pub(crate) level: Level,
    pub(crate) data: &'a [T],
    pub(crate) vocab_size: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Drawn {
    pub(crate) token_ids: Vec<u32>,
    pub(crate) logprobs: Vec<f32>,
    pub(crate) entropies: Vec<f32>,
}

impl<'a, T: Element> Step<'a, T> {
    pub(crate) fn alone(level: Level, data: &'a [T], vocab_size: usize) -> Self {
        Self { team: Team::alone(), level, data, vocab_size }
    }

    fn logits(&self) -> Logits<T> {
        let num_rows = self.data.len() / self.vocab_size;
        let (data, vocab_size) = (self.data.as_ptr(), self.vocab_size);
        Logits { data, num_rows, vocab_size, row_stride: vocab_size }
    }

    pub(crate) fn sample(
        &self,
        rows: Option<&[i64]>,
        uniforms: &[f64],
        params: &SamplingParams,
    ) -> Result<Drawn, NotFinite> {
        let zeros = vec![0.0; uniforms.len()];
        let token_ids = vec![0; uniforms.len()];
        let mut drawn = Drawn { token_ids, logprobs: zeros.clone(), entropies: zeros };
        let Drawn { token_ids, logprobs, entropies } = &mut drawn;
        let mut out = Draws { token_ids, logprobs, entropies };
        let (logits, level) = (self.logits(), self.level);
        // SAFETY: the logits hold these rows.
        unsafe { sample(&self.team, level, &logits, rows, uniforms, params, &mut out) }?;
        Ok(drawn)
    }

    pub(crate) fn token_logprobs(
        &self,
        targets: &[i64],
        temperature: f32,
    ) -> Result<Drawn, NotFinite> {
        let mut logprobs = vec![0.0; targets.len()];
        let mut entropies = logprobs.clone();
        let Self { team, level, .. } = self;
        let (logits, to) = (self.logits(), (&mut logprobs[..], &mut entropies[..]));
        // SAFETY: the logits hold these rows.
        unsafe { token_logprobs(team, *level, &logits, targets, temperature, to.0, to.1) }?;
        let token_ids = targets.iter().map(|x| *x as u32).collect();
        Ok(Drawn { token_ids, logprobs, entropies })
    }
}

pub(crate) fn sampled<T: Element>(
    level: Level,
    row: &[T],
    uniforms: &[f64],
    params: &SamplingParams,
) -> Drawn {
    let rows = vec![0; uniforms.len()];
    let step = Step::alone(level, row, row.len());
    step.sample(Some(&rows), uniforms, params).expect("the logits are finite")
}

pub(crate) fn unit(state: &mut u64) -> f64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 11) as f64 / (1_u64 << 53) as f64
}

/// Logits that are roughly normal with the given deviation, the same for a seed.
pub(crate) fn normal<T: Element>(count: usize, seed: u64, deviation: f64) -> Vec<T> {
    let mut state = seed;
    let mut one = || (0..12).map(|_| unit(&mut state)).sum::<f64>() - 6.0;
    (0..count).map(|_| T::from_f32((one() * deviation) as f32)).collect()
}

pub(crate) fn grid(count: usize) -> Vec<f64> {
    (0..count).map(|i| (i as f64 + 0.5) / count as f64).collect()
}
