//! How often what happened.

use std::collections::BTreeMap;

/// Events by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<String, u64>);

impl Tally {
    /// Names and counts, by name.
    pub fn entries(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, &count)| (name.as_str(), count))
    }

    /// Adds `count` events of this name.
    pub fn add_events(&mut self, name: &str, count: u64) {
        *self.0.entry(name.to_owned()).or_default() += count;
    }

    pub(super) fn count(&mut self, name: &str) {
        self.add_events(name, 1);
    }

    pub(super) fn count_if(&mut self, happened: bool, name: &str) {
        if happened {
            self.count(name);
        }
    }

    /// Adds all events of another tally.
    pub fn add(&mut self, other: &Self) {
        for (name, count) in other.entries() {
            self.add_events(name, count);
        }
    }
}
