//! Many lists in one arena: an element has two links, a list is the number of its last element.

/// Stands for "no element".
const NONE: u32 = u32::MAX;

/// A list of an arena, known by its last element.
#[derive(Debug, Clone, Copy)]
pub(super) struct List(u32);

impl List {
    pub(super) const EMPTY: Self = Self(NONE);

    /// The last element.
    #[inline]
    pub(super) fn last(self) -> Option<usize> {
        (self.0 != NONE).then_some(self.0 as usize)
    }
}

/// The links of all elements. `next` of a list's last element is its first, so that a list needs
/// one number; `prev` of the first is none.
#[derive(Debug, Clone, Default)]
pub(super) struct Links {
    prev: Vec<u32>,
    next: Vec<u32>,
}

impl Links {
    /// Bytes of an element.
    pub(super) const BYTES: usize = 2 * size_of::<u32>();

    /// Elements of all lists.
    pub(super) fn len(&self) -> usize {
        self.prev.len()
    }

    /// Elements that there is room for.
    pub(super) fn capacity(&self) -> usize {
        self.prev.capacity()
    }

    /// Makes room for exactly `extra` further elements.
    pub(super) fn reserve(
        &mut self,
        extra: usize,
    ) -> Result<(), std::collections::TryReserveError> {
        self.prev.try_reserve_exact(extra)?;
        self.next.try_reserve_exact(extra)
    }

    /// Appends a new element to the list and returns its number. O(1).
    pub(super) fn push(&mut self, list: &mut List) -> usize {
        let new = self.prev.len();
        self.prev.push(list.0);
        let first = match list.last() {
            Some(last) => std::mem::replace(&mut self.next[last], new as u32),
            None => new as u32,
        };
        self.next.push(first);
        *list = List(new as u32);
        new
    }

    /// The element before this one in its list.
    #[inline]
    pub(super) fn prev(&self, element: usize) -> Option<usize> {
        List(self.prev[element]).last()
    }

    /// The list's elements from its first on.
    pub(super) fn ascending(&self, list: List) -> impl Iterator<Item = usize> + Clone + '_ {
        let first = list.last().map(|last| self.next[last] as usize);
        std::iter::successors(first, move |&element| {
            (Some(element) != list.last()).then(|| self.next[element] as usize)
        })
    }

    /// The list's elements from its last on.
    pub(super) fn descending(&self, list: List) -> impl Iterator<Item = usize> + Clone + '_ {
        std::iter::successors(list.last(), |&element| self.prev(element))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_lists_read_in_both_directions() {
        let mut links = Links::default();
        let mut lists = [List::EMPTY; 3];
        let mut naive = [const { Vec::new() }; 3];
        for which in [0, 1, 0, 0, 1, 0] {
            naive[which].push(links.push(&mut lists[which]));
        }
        for (list, mut elements) in lists.into_iter().zip(naive) {
            assert_eq!(links.ascending(list).collect::<Vec<_>>(), elements);
            elements.reverse();
            assert_eq!(links.descending(list).collect::<Vec<_>>(), elements);
        }
        assert_eq!(links.len(), 6);
    }
}
