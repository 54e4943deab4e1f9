//! Which mail a spool knows to be settled: what the cluster's queue still has of it may be taken out there.
//!
//! That a spool does not have a message proves nothing by itself: it may have been put back from a copy that was made before the message came
//! in, or while it was moved to another segment, or be damaged there. So each settlement is remembered as what it is, and stays true whatever
//! becomes of the disk.
//!
//! ```text
//! <CRC32C of all that follows this line, 8 hexadecimal digits>
//! <boot> <shard> <first sequence> <last sequence>      a line for each range
//! ```

use std::collections::BTreeMap;

use ringpost_queue::QueueId;

/// Ranges that are remembered: mail that is settled in the order in which it came is one for each start and shard. Each message that stays open
/// for longer, and each that was begun and not accepted, begins another. The oldest are forgotten, which costs
/// duplicates at worst. In memory they take 150 KiB, and as a file.
pub const RANGES_MAX: usize = 4096;

/// A set of ids, kept as ranges.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SettledIds {
    /// The last sequence by the first id, of the same boot and shard. They neither meet nor touch.
    ranges: BTreeMap<QueueId, u64>,
}

impl SettledIds {
    /// One message more.
    pub fn insert(&mut self, id: QueueId) {
        self.add(id, id.sequence);
    }

    /// All of another set.
    pub fn extend(&mut self, other: &SettledIds) {
        other.ranges.iter().for_each(|(first, last)| self.add(*first, *last));
    }

    /// Whether this message is known to be settled.
    pub fn contains(&self, id: QueueId) -> bool {
        self.ranges.range(..=id).next_back().is_some_and(|(first, last)| is_one_log(*first, id) && id.sequence <= *last)
    }

    fn add(&mut self, first: QueueId, last: u64) {
        let (mut first, mut last) = (first, last);
        while let Some((&other, &end)) = self.ranges.range(..=QueueId { sequence: last.saturating_add(1), ..first }).next_back() {
            if !is_one_log(other, first) || end.saturating_add(1) < first.sequence {
                break;
            }
            self.ranges.remove(&other);
            (first, last) = (first.min(other), last.max(end));
        }
        self.ranges.insert(first, last);
        while self.ranges.len() > RANGES_MAX {
            self.ranges.pop_first();
        }
    }

    /// As a file has it.
    pub fn text(&self) -> String {
        let line = |(first, last): (&QueueId, &u64)| format!("{} {} {} {last}\n", first.boot, first.shard, first.sequence);
        let lines: String = self.ranges.iter().map(line).collect();
        format!("{:08x}\n{lines}", crc32c::crc32c(lines.as_bytes()))
    }

    /// Reads [`text`](SettledIds::text); `None` for anything else: a digit that is another would say of mail that it is settled.
    pub fn parse(text: &str) -> Option<SettledIds> {
        let (check, lines) = text.split_once('\n')?;
        if u32::from_str_radix(check, 16).ok()? != crc32c::crc32c(lines.as_bytes()) {
            return None;
        }
        let mut settled = SettledIds::default();
        for line in lines.lines() {
            let mut numbers = line.split(' ');
            let mut next = || numbers.next();
            let first = QueueId { boot: next()?.parse().ok()?, shard: next()?.parse().ok()?, sequence: next()?.parse().ok()? };
            settled.add(first, next()?.parse().ok().filter(|last| *last >= first.sequence)?);
        }
        Some(settled)
    }
}

/// Whether both are of one start and shard.
fn is_one_log(one: QueueId, other: QueueId) -> bool {
    (one.boot, one.shard) == (other.boot, other.shard)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn id(boot: u32, shard: u16, sequence: u64) -> QueueId {
        QueueId { boot, shard, sequence }
    }

    #[test]
    fn random_settlements_agree_with_a_set_of_ids() {
        let (mut settled, mut model, mut state) = (SettledIds::default(), BTreeSet::new(), 7_u64);
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        for _ in 0..3000 {
            let one = id(random(2) as u32, random(2) as u16, random(300));
            settled.insert(one);
            model.insert(one);
        }
        for boot in 0..2 {
            for shard in 0..2 {
                (0..302).for_each(|sequence| {
                    let id = id(boot, shard, sequence);
                    assert_eq!(settled.contains(id), model.contains(&id), "{id:?}");
                });
            }
        }
        assert_eq!(SettledIds::parse(&settled.text()), Some(settled));
    }

    #[test]
    fn what_is_settled_in_order_is_one_range_and_two_sets_are_one() {
        let mut settled = SettledIds::default();
        [3, 1, 2, 5].into_iter().for_each(|sequence| settled.insert(id(7, 0, sequence)));
        assert_eq!(settled.text().lines().skip(1).collect::<Vec<_>>(), ["7 0 1 3", "7 0 5 5"]);
        let mut other = SettledIds::default();
        other.insert(id(7, 0, 4));
        other.insert(id(7, 1, u64::MAX));
        settled.extend(&other);
        assert_eq!(settled.text().lines().skip(1).collect::<Vec<_>>(), ["7 0 1 5", "7 1 18446744073709551615 18446744073709551615"]);
        assert!(!settled.contains(id(8, 0, 3)) && !settled.contains(id(7, 0, 6)) && !settled.contains(id(7, 0, 0)));
    }

    #[test]
    fn the_oldest_are_forgotten_first_and_damage_says_nothing() {
        let mut settled = SettledIds::default();
        (0..2 * RANGES_MAX as u64).for_each(|number| settled.insert(id(7, 0, number * 2)));
        assert_eq!(settled.text().lines().count(), RANGES_MAX + 1);
        assert!(!settled.contains(id(7, 0, 0)) && settled.contains(id(7, 0, 4 * RANGES_MAX as u64 - 2)));
        let text = settled.text();
        assert_eq!(SettledIds::parse(&text.replacen("7 0 ", "7 1 ", 1)), None);
        assert_eq!(SettledIds::parse(&text[..text.len() - 20]), None);
        assert_eq!(SettledIds::parse(""), None);
    }
}
