//! How often what happened, and whether draws had their odds.

use std::collections::BTreeMap;

/// Observed minus expected values of a kind of draw.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Draws {
    excess: f64,
    variance: f64,
}

/// Events and draws by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    events: BTreeMap<String, u64>,
    draws: BTreeMap<String, Draws>,
}

impl Tally {
    /// Names and counts, by name.
    pub fn entries(&self) -> impl Iterator<Item = (&str, u64)> {
        self.events.iter().map(|(name, &count)| (name.as_str(), count))
    }

    /// Names of draws and how many standard deviations their sum is off its expected value.
    pub fn biases(&self) -> impl Iterator<Item = (&str, f64)> {
        let bias = |draws: &Draws| draws.excess / draws.variance.sqrt().max(f64::MIN_POSITIVE);
        self.draws.iter().map(move |(name, draws)| (name.as_str(), bias(draws)))
    }

    /// Adds `count` events of this name.
    pub fn add_events(&mut self, name: &str, count: u64) {
        *self.events.entry(name.to_owned()).or_default() += count;
    }

    /// Adds draws of this name.
    pub(super) fn add_draw(&mut self, name: &str, excess: f64, variance: f64) {
        // A draw of one thing only says nothing.
        if variance > 1e-9 {
            let draws = self.draws.entry(name.to_owned()).or_default();
            draws.excess += excess;
            draws.variance += variance;
        }
    }

    pub(super) fn count(&mut self, name: &str) {
        self.add_events(name, 1);
    }

    pub(super) fn count_if(&mut self, happened: bool, name: &str) {
        if happened {
            self.count(name);
        }
    }

    /// Adds all of another tally.
    pub fn add(&mut self, other: &Self) {
        for (name, count) in other.entries() {
            self.add_events(name, count);
        }
        for (name, draws) in &other.draws {
            self.add_draw(name, draws.excess, draws.variance);
        }
    }
}
