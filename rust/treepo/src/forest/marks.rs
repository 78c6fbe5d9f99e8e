//! Segment marks of one tree's paths.

use std::collections::TryReserveError;

use super::links::{Links, List};

/// One mark.
#[derive(Debug, Clone, Copy)]
struct Mark {
    /// Absolute position behind the segment's last token.
    position: u32,
    /// Marks of the path up to and with this one.
    count: u32,
    /// An older mark of the path, or this one if it is the first.
    jump: u32,
}

/// The marks of all paths of a tree, one ascending list a path.
///
/// A mark also jumps to an older one, so that a position is found in O(log marks); source: Myers,
/// "An applicative random-access stack", Inf. Proc. Letters 17 (1983).
#[derive(Debug, Clone, Default)]
pub(super) struct Marks {
    marks: Vec<Mark>,
    links: Links,
}

impl Marks {
    /// Makes room for `extra` further marks.
    pub(super) fn reserve(&mut self, extra: usize) -> Result<(), TryReserveError> {
        self.marks.try_reserve_exact(extra)?;
        self.links.reserve(extra)
    }

    /// Bytes of the marks, with the room that is not used.
    pub(super) fn bytes(&self) -> usize {
        self.marks.capacity() * size_of::<Mark>() + self.links.capacity() * Links::BYTES
    }

    /// Appends a mark behind all others of the path. O(1).
    pub(super) fn push(&mut self, list: &mut List, position: u32) {
        let before = list.last();
        let new = self.links.push(list);
        let (count, jump) = match before {
            Some(before) => (self.marks[before].count + 1, self.jump_over(before)),
            None => (1, new as u32),
        };
        self.marks.push(Mark { position, count, jump });
    }

    /// Where a mark behind `before` jumps to: as far as two equal jumps reach, else one step.
    fn jump_over(&self, before: usize) -> u32 {
        let near = self.marks[before];
        let middle = self.marks[near.jump as usize];
        let far = self.marks[middle.jump as usize];
        if near.count - middle.count == middle.count - far.count {
            middle.jump
        } else {
            before as u32
        }
    }

    /// The last mark of the path at or before `position`. O(log marks), O(1) if it is the last.
    fn last_up_to(&self, list: List, position: u32) -> Option<usize> {
        let mut current = list.last()?;
        while self.marks[current].position > position {
            let jump = self.marks[current].jump as usize;
            let is_useful = jump != current && self.marks[jump].position > position;
            current = if is_useful { jump } else { self.links.prev(current)? };
        }
        Some(current)
    }

    /// Position of the path's last mark.
    pub(super) fn last(&self, list: List) -> Option<u32> {
        list.last().map(|last| self.marks[last].position)
    }

    /// Marks of the path at or before `position`. O(log marks), O(1) behind the last mark.
    pub(super) fn count_up_to(&self, list: List, position: u32) -> u32 {
        self.last_up_to(list, position).map_or(0, |mark| self.marks[mark].count)
    }

    /// The path's marks at or before `position`, last first.
    pub(super) fn descending(
        &self,
        list: List,
        position: u32,
    ) -> impl Iterator<Item = u32> + Clone + '_ {
        let last = self.last_up_to(list, position);
        let marks = std::iter::successors(last, |&mark| self.links.prev(mark));
        marks.map(|mark| self.marks[mark].position)
    }

    /// The path's marks, first first.
    pub(super) fn ascending(&self, list: List) -> impl Iterator<Item = u32> + Clone + '_ {
        self.links.ascending(list).map(|mark| self.marks[mark].position)
    }

    /// Whether a path's list holds `count` marks that ascend within `start + 1..=end` and find
    /// themselves. O(marks log marks).
    pub(super) fn is_list(&self, list: List, count: u32, start: u32, end: u32) -> bool {
        let positions = self.ascending(list).take(count as usize + 1);
        let is_inside = positions.clone().all(|position| start < position && position <= end);
        let is_ascending = positions.clone().is_sorted_by(|a, b| a < b);
        let mut counted = (1..).zip(positions.clone());
        let is_found = counted.all(|(n, position)| self.count_up_to(list, position) == n);
        positions.count() == count as usize && is_inside && is_ascending && is_found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_position_is_found_in_few_steps() {
        let mut marks = Marks::default();
        let mut lists = [List::EMPTY; 2];
        for i in 1..=1000 {
            marks.push(&mut lists[0], 3 * i);
            marks.push(&mut lists[1], i);
        }
        for position in 0..3010 {
            let expected = (position / 3).min(1000);
            assert_eq!(marks.count_up_to(lists[0], position), expected);
            let last = marks.descending(lists[0], position).next();
            assert_eq!(last, Some(3 * expected).filter(|&mark| mark > 0));
        }
        assert!(marks.is_list(lists[0], 1000, 2, 3000));
        assert!(!marks.is_list(lists[0], 1000, 3, 3000), "the first mark lies outside");
        assert!(!marks.is_list(lists[0], 999, 2, 3000));
        assert_eq!(marks.ascending(List::EMPTY).next(), None);
    }
}
