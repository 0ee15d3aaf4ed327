//! Free addresses, of the arena and of devices.

use std::collections::BTreeMap;

/// Free addresses: first fit, and neighbours become one again.
#[derive(Default)]
pub(crate) struct FreeList {
    /// End of each free range by its start. No two touch.
    ranges: BTreeMap<usize, usize>,
}

impl FreeList {
    pub(crate) fn new(start: usize, end: usize) -> Self {
        Self { ranges: BTreeMap::from([(start, end)]) }
    }

    /// Takes `len` bytes at a multiple of `alignment`.
    pub(crate) fn take(&mut self, len: usize, alignment: usize) -> Option<usize> {
        let (start, end, at) = self.ranges.iter().find_map(|(&start, &end)| {
            let at = start.checked_next_multiple_of(alignment)?;
            (at.checked_add(len)? <= end).then_some((start, end, at))
        })?;
        self.ranges.remove(&start);
        if start < at {
            self.ranges.insert(start, at);
        }
        if at + len < end {
            self.ranges.insert(at + len, end);
        }
        Some(at)
    }

    /// Gives a range back.
    pub(crate) fn give(&mut self, mut start: usize, len: usize) {
        let mut end = start + len;
        if let Some((&after, &after_end)) = self.ranges.range(start..).next() {
            assert!(end <= after, "addresses were given back twice");
            if after == end {
                end = after_end;
                self.ranges.remove(&after);
            }
        }
        if let Some((&before, &before_end)) = self.ranges.range(..start).next_back() {
            assert!(before_end <= start, "addresses were given back twice");
            if before_end == start {
                start = before;
            }
        }
        self.ranges.insert(start, end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: usize = 2 << 20;

    fn ranges(list: &FreeList) -> Vec<(usize, usize)> {
        list.ranges.iter().map(|(&start, &end)| (start / G, end / G)).collect()
    }

    #[test]
    fn addresses_given_back_become_one_range_again_in_any_order() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut list = FreeList::new(G, 9 * G);
            let parts: Vec<_> =
                [1, 2, 3].iter().map(|len| (list.take(len * G, G).unwrap(), len * G)).collect();
            assert_eq!(ranges(&list), [(7, 9)]);
            for part in order {
                list.give(parts[part].0, parts[part].1);
            }
            assert_eq!(ranges(&list), [(1, 9)], "{order:?}");
        }
    }

    #[test]
    fn a_range_is_found_by_size_and_alignment_or_not_at_all() {
        let mut list = FreeList::new(G, 16 * G);
        assert_eq!(list.take(G, 8 * G), Some(8 * G));
        assert_eq!(ranges(&list), [(1, 8), (9, 16)]);
        assert_eq!(list.take(8 * G, G), None);
        assert_eq!(list.take(7 * G, G), Some(G));
        assert_eq!(list.take(7 * G, G), Some(9 * G));
        assert_eq!(list.take(G, G), None);
        assert_eq!(list.take(usize::MAX, G), None);
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    fn addresses_given_back_twice_are_noticed() {
        let mut list = FreeList::new(G, 4 * G);
        let at = list.take(2 * G, G).unwrap();
        list.give(at, 2 * G);
        list.give(at, G);
    }
}
