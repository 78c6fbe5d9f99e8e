//! Keyed random numbers: a draw is a pure function of what it is for.
//!
//! A draw depends on the seed, the caller's tree key, the path's ordinal within its tree, the
//! purpose and a counter, and on nothing else. So no schedule, batch or order of arrival can
//! change it (law S4).

/// What a random number is used for. Draws of different purposes are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The next token of a path; the counter is the token's position.
    Token = 1,
    /// Which paths get the remainder of the branching budget; the counter is the round.
    Branch = 2,
    /// The order of the fallback candidates; the counter is the round.
    FallbackOrder = 3,
    /// Where a fallback cuts a candidate; the counter combines round and candidate.
    FallbackCut = 4,
}

/// A stream of keyed random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream(pub u64);

impl Stream {
    /// The stream of a tree.
    pub fn of_tree(seed: u64, tree_key: u64) -> Self {
        Self(mix(mix(seed ^ 0x7472_6565_706f_0001, tree_key), 0x7472_6565))
    }

    /// The stream of the path with this ordinal in the tree that `self` belongs to.
    #[must_use]
    pub fn of_path(self, ordinal: u32) -> Self {
        Self(mix(self.0, u64::from(ordinal) | 1 << 40))
    }

    /// A 64-bit draw.
    pub fn bits(self, purpose: Purpose, counter: u64) -> u64 {
        mix(mix(self.0, purpose as u64), counter)
    }

    /// A uniform draw in `[0, 1)` with 53 random bits.
    pub fn uniform(self, purpose: Purpose, counter: u64) -> f64 {
        (self.bits(purpose, counter) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// A uniform draw in `0..n`; `n` is at least 1. The bias is below `n / 2^64`.
    pub fn below(self, purpose: Purpose, counter: u64, n: u32) -> u32 {
        ((u128::from(self.bits(purpose, counter)) * u128::from(n)) >> 64) as u32
    }
}

/// Combines two words; the finaliser is that of `SplitMix64` (Steele, Lea, Flood 2014).
pub(crate) fn mix(a: u64, b: u64) -> u64 {
    let mut z = a ^ b.wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xd6e8_feb8_6659_fd93);
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_draws_fill_the_unit_interval_evenly() {
        let stream = Stream::of_tree(0, 1).of_path(3);
        let draws: Vec<f64> = (0..20_000).map(|i| stream.uniform(Purpose::Token, i)).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let square = draws.iter().map(|u| u * u).sum::<f64>() / draws.len() as f64;
        assert!(draws.iter().all(|u| (0.0..1.0).contains(u)));
        assert!((mean - 0.5).abs() < 0.01, "mean {mean}");
        assert!((square - 1.0 / 3.0).abs() < 0.01, "second moment {square}");
    }

    #[test]
    fn draws_differ_by_seed_key_path_purpose_and_counter() {
        let base = Stream::of_tree(0, 0).of_path(0);
        let draw = base.bits(Purpose::Token, 0);
        assert_ne!(draw, Stream::of_tree(1, 0).of_path(0).bits(Purpose::Token, 0));
        assert_ne!(draw, Stream::of_tree(0, 1).of_path(0).bits(Purpose::Token, 0));
        assert_ne!(draw, Stream::of_tree(0, 0).of_path(1).bits(Purpose::Token, 0));
        assert_ne!(draw, base.bits(Purpose::Branch, 0));
        assert_ne!(draw, base.bits(Purpose::Token, 1));
    }

    #[test]
    fn below_stays_below_and_reaches_every_value() {
        let stream = Stream::of_tree(5, 5);
        let mut seen = [0u32; 7];
        for i in 0..7_000 {
            seen[stream.below(Purpose::Branch, i, 7) as usize] += 1;
        }
        assert!(seen.iter().all(|&n| (800..1200).contains(&n)), "{seen:?}");
    }
}
