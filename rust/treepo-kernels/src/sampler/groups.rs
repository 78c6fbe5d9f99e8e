//! Samples by the row that they read.

/// Samples in groups that read one row, by ascending row.
#[derive(Debug)]
pub(super) struct Groups {
    /// Samples, group by group.
    samples: Vec<usize>,
    /// Row and first place in `samples` of each group.
    groups: Vec<(usize, usize)>,
}

impl Groups {
    /// Groups samples by their row; sample i reads row i where there are no `rows`.
    ///
    /// # Panics
    /// If lengths disagree or a row is not below `num_rows`.
    pub(super) fn new(rows: Option<&[i64]>, num_samples: usize, num_rows: usize) -> Self {
        let samples: Vec<usize> = (0..num_samples).collect();
        let Some(rows) = rows else {
            assert!(num_samples == num_rows, "{num_samples} samples of {num_rows} rows");
            let groups = (0..num_samples).map(|i| (i, i)).collect();
            return Self { samples, groups };
        };
        assert!(rows.len() == num_samples, "{num_samples} samples with {} rows", rows.len());
        for row in rows {
            assert!((0..num_rows as i64).contains(row), "row {row} of {num_rows}");
        }
        Self::sorted(samples, rows)
    }

    fn sorted(mut samples: Vec<usize>, rows: &[i64]) -> Self {
        samples.sort_unstable_by_key(|sample| (rows[*sample], *sample));
        let mut groups: Vec<(usize, usize)> = Vec::new();
        for (place, sample) in samples.iter().enumerate() {
            let row = rows[*sample] as usize;
            if groups.last().is_none_or(|(last, _)| *last != row) {
                groups.push((row, place));
            }
        }
        Self { samples, groups }
    }

    pub(super) fn len(&self) -> usize {
        self.groups.len()
    }

    /// The row and the samples of a group.
    pub(super) fn get(&self, group: usize) -> (usize, &[usize]) {
        let (row, first) = self.groups[group];
        let end = self.groups.get(group + 1).map_or(self.samples.len(), |(_, first)| *first);
        (row, &self.samples[first..end])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(groups: &Groups) -> Vec<(usize, Vec<usize>)> {
        (0..groups.len()).map(|i| groups.get(i)).map(|(row, group)| (row, group.to_vec())).collect()
    }

    #[test]
    fn samples_of_one_row_come_together() {
        let groups = Groups::new(Some(&[4, 0, 4, 2, 0, 4]), 6, 5);
        assert_eq!(all(&groups), [(0, vec![1, 4]), (2, vec![3]), (4, vec![0, 2, 5])]);
    }

    #[test]
    fn without_rows_each_sample_reads_its_own() {
        assert_eq!(all(&Groups::new(None, 2, 2)), [(0, vec![0]), (1, vec![1])]);
        assert!(all(&Groups::new(None, 0, 0)).is_empty());
    }

    #[test]
    #[should_panic(expected = "row 5 of 5")]
    fn a_row_beyond_the_logits_is_refused() {
        Groups::new(Some(&[0, 5]), 2, 5);
    }
}
