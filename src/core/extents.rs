//! An interval map: disjoint ranges of bytes, each with a value, where the newest insertion wins.
//!
//! Overwriting a part of a range splits it: the value is sliced, so what stands for the rest still fits it.

use std::collections::BTreeMap;

/// A value that stands for a range and can stand for a part of it.
pub trait Sliceable {
    /// The value for the bytes `at .. at + length` of this value's range.
    fn slice(&self, at: u64, length: u64) -> Self;
}

#[derive(Clone, Debug)]
struct Slot<V> {
    end: u64,
    value: V,
}

/// Disjoint, non-empty ranges `start..end` in bytes, in order.
#[derive(Clone, Debug)]
pub struct RangeMap<V> {
    slots: BTreeMap<u64, Slot<V>>,
}

impl<V> Default for RangeMap<V> {
    fn default() -> RangeMap<V> {
        RangeMap { slots: BTreeMap::new() }
    }
}

impl<V: Sliceable> RangeMap<V> {
    /// A map without ranges.
    pub fn new() -> RangeMap<V> {
        RangeMap::default()
    }

    /// Whether no range is held.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Ranges held.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// `value` for `start..end`, in place of whatever stood there. An empty range changes nothing.
    pub fn insert(&mut self, start: u64, end: u64, value: V) {
        if start >= end {
            return;
        }
        // Most are new, or what stood there before: one search tells.
        match self.slots.range_mut(..end).next_back() {
            Some((&at, slot)) if at == start && slot.end == end => {
                slot.value = value;
                return;
            }
            Some((_, slot)) if slot.end > start => self.cut(start, end),
            _ => {}
        }
        self.slots.insert(start, Slot { end, value });
    }

    /// Removes whatever stands in `start..end`, splitting what reaches out of it. An empty range changes nothing.
    pub fn cut(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        if let Some((&before, slot)) = self.slots.range_mut(..start).next_back()
            && slot.end > start
        {
            let whole = slot.end;
            let tail = (whole > end).then(|| slot.value.slice(end - before, whole - end));
            slot.value = slot.value.slice(0, start - before);
            slot.end = start;
            if let Some(value) = tail {
                // It reached over the whole range, so nothing else stands there.
                self.slots.insert(end, Slot { end: whole, value });
                return;
            }
        }
        while let Some((&at, _)) = self.slots.range(start..end).next()
            && let Some(slot) = self.slots.remove(&at)
        {
            if slot.end > end {
                let value = slot.value.slice(end - at, slot.end - end);
                self.slots.insert(end, Slot { end: slot.end, value });
                return;
            }
        }
    }

    /// Removes the ranges that begin in `start..end` and whose value is `gone`, whole even where they reach past `end`.
    pub fn remove_starting_in(&mut self, start: u64, end: u64, gone: impl Fn(&V) -> bool) {
        let mut from = start;
        while from < end
            && let Some((&at, slot)) = self.slots.range(from..end).find(|(_, slot)| gone(&slot.value))
        {
            from = slot.end;
            self.slots.remove(&at);
        }
    }

    /// All ranges as (start, end, value), in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64, &V)> {
        self.slots.iter().map(|(&start, slot)| (start, slot.end, &slot.value))
    }

    /// The ranges that touch `start..end`, in order and not clipped to it. None for an empty range.
    pub fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64, &V)> {
        let end = end.max(start); // `range` panics on a reversed range
        let before = self.slots.range(..start).next_back().filter(|(_, slot)| start < end && slot.end > start);
        before.into_iter().chain(self.slots.range(start..end)).map(|(&at, slot)| (at, slot.end, &slot.value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The bytes `from ..` of what was inserted as number `tag`.
    #[derive(Clone, Debug, PartialEq)]
    struct Piece {
        tag: usize,
        from: u64,
        length: u64,
    }

    impl Sliceable for Piece {
        fn slice(&self, at: u64, length: u64) -> Piece {
            assert!(length > 0 && at + length <= self.length, "slice {at}+{length} of {self:?}");
            Piece { tag: self.tag, from: self.from + at, length }
        }
    }

    const SIZE: u64 = 24;

    /// Per byte: which insertion it shows, and which byte of it.
    type Model = Vec<Option<(usize, u64)>>;

    fn shown(map: &RangeMap<Piece>) -> Model {
        let mut bytes = vec![None; SIZE as usize];
        let mut last_end = 0;
        for (start, end, piece) in map.iter() {
            assert!(start >= last_end && start < end, "{start}..{end} after {last_end}");
            assert_eq!(piece.length, end - start);
            for at in start..end {
                bytes[at as usize] = Some((piece.tag, piece.from + at - start));
            }
            last_end = end;
        }
        bytes
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert,
        Cut,
        Remove { odd: bool },
    }

    fn op() -> impl Strategy<Value = (Op, u64, u64)> {
        let op = prop_oneof![6 => Just(Op::Insert), 2 => Just(Op::Cut), 1 => any::<bool>().prop_map(|odd| Op::Remove { odd })];
        (op, 0..=SIZE, 0..=SIZE)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

        #[test]
        fn shows_the_newest_insertion_of_each_byte(ops in prop::collection::vec(op(), 1..24)) {
            let mut map = RangeMap::new();
            let mut model: Model = vec![None; SIZE as usize];
            for (tag, (op, start, end)) in ops.into_iter().enumerate() {
                // Reversed ranges stay in: they are empty, and must change nothing.
                let bytes = start..end;
                match op {
                    Op::Insert => {
                        map.insert(start, end, Piece { tag, from: 0, length: end.saturating_sub(start) });
                        bytes.for_each(|at| model[at as usize] = Some((tag, at - start)));
                    }
                    Op::Cut => {
                        map.cut(start, end);
                        bytes.for_each(|at| model[at as usize] = None);
                    }
                    Op::Remove { odd } => {
                        let gone: Vec<_> = map.iter()
                            .filter(|(at, _, piece)| bytes.contains(at) && (piece.tag % 2 == 1) == odd)
                            .map(|(at, end, _)| at..end)
                            .collect();
                        map.remove_starting_in(start, end, |piece| (piece.tag % 2 == 1) == odd);
                        gone.into_iter().flatten().for_each(|at| model[at as usize] = None);
                    }
                }
                prop_assert_eq!(shown(&map), model.clone());
                prop_assert_eq!(map.is_empty(), model.iter().all(Option::is_none));
                let touched: Vec<_> = map.overlapping(start, end).map(|(at, _, _)| at).collect();
                let expected: Vec<_> =
                    map.iter().filter(|(s, e, _)| start < end && *s < end && *e > start).map(|(at, _, _)| at).collect();
                prop_assert_eq!(touched, expected);
            }
        }
    }
}
