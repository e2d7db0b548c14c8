//! A set of allocated numbers, stored as runs of consecutive numbers. The next free number is found without iterating
//! over allocated or free numbers.

use std::collections::BTreeMap;

/// A set of numbers.
#[derive(Clone, Debug, Default)]
pub(super) struct Runs {
    /// The last number of each run by its first. Runs are never adjacent.
    last_by_first: BTreeMap<u128, u128>,
}

impl Runs {
    /// The run that contains a number.
    fn run_of(&self, number: u128) -> Option<(u128, u128)> {
        let (first, last) = self.last_by_first.range(..=number).next_back()?;
        (number <= *last).then_some((*first, *last))
    }

    /// Returns the first number from `start` on that is not in the set; `None` if there is none up to the maximum.
    pub(super) fn next_free(&self, start: u128) -> Option<u128> {
        match self.run_of(start) {
            Some((_, last)) => last.checked_add(1),
            None => Some(start),
        }
    }

    pub(super) fn insert(&mut self, number: u128) {
        if self.run_of(number).is_some() {
            return;
        }
        let before = number.checked_sub(1).and_then(|before| self.run_of(before));
        let after = number.checked_add(1).and_then(|after| self.run_of(after));
        let first = before.map_or(number, |(first, _)| first);
        let last = after.map_or(number, |(_, last)| last);
        if let Some((next, _)) = after {
            self.last_by_first.remove(&next);
        }
        self.last_by_first.insert(first, last);
    }

    pub(super) fn remove(&mut self, number: u128) {
        let Some((first, last)) = self.run_of(number) else { return };
        self.last_by_first.remove(&first);
        if first < number {
            self.last_by_first.insert(first, number - 1);
        }
        if number < last {
            self.last_by_first.insert(number + 1, last);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_maximum_has_no_successor() {
        let mut runs = Runs::default();
        runs.insert(u128::MAX);
        assert_eq!(runs.next_free(u128::MAX), None);
        runs.insert(0);
        assert_eq!(runs.next_free(0), Some(1));
        runs.remove(u128::MAX);
        assert_eq!(runs.next_free(u128::MAX), Some(u128::MAX));
    }

    proptest! {
        #[test]
        fn runs_are_a_set(changes in proptest::collection::vec((any::<bool>(), 0..24_u128), 0..80), start in 0..26_u128) {
            let (mut runs, mut set) = (Runs::default(), BTreeSet::new());
            for (insert, number) in changes {
                if insert {
                    runs.insert(number);
                    set.insert(number);
                } else {
                    runs.remove(number);
                    set.remove(&number);
                }
            }
            let free = (start..).find(|number| !set.contains(number));
            prop_assert_eq!(runs.next_free(start), free);
            let mut runs: Vec<_> = runs.last_by_first.into_iter().collect();
            runs.sort_unstable();
            prop_assert!(runs.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "{:?}", runs);
        }
    }
}
