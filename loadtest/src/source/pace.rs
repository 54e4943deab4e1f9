//! A slow sender's pace: so many octets a second, in steps. Pure: the driver waits and sends.

use std::time::{Duration, Instant};

/// Slow senders send this often at least, while they have something to send.
const STEP: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug)]
pub(super) struct Pace {
    octets_per_s: u64,
    /// When what was sent so far is through at that rate.
    next: Instant,
}

/// What a slow sender does now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step<'a> {
    /// Nothing until then.
    Wait(Instant),
    /// Send this.
    Send(&'a [u8]),
}

impl Pace {
    pub(super) fn new(octets_per_s: u64, now: Instant) -> Pace {
        Pace { octets_per_s, next: now }
    }

    /// The next step, taken off `rest`; none when all of it has been sent. The pause behind the last octet is the first of what is sent
    /// next: replies are looked for at once. A sender that is late stays late.
    pub(super) fn step<'a>(&mut self, rest: &mut &'a [u8], now: Instant) -> Option<Step<'a>> {
        if rest.is_empty() {
            return None;
        }
        if self.next > now {
            return Some(Step::Wait(self.next));
        }
        let octets = (self.octets_per_s as f64 * STEP.as_secs_f64()).max(1.0) as usize;
        let (part, behind) = rest.split_at(octets.min(rest.len()));
        *rest = behind;
        self.next = now + Duration::from_secs_f64(part.len() as f64 / self.octets_per_s as f64);
        Some(Step::Send(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// What is sent of so many octets from `now` on, by a driver that is never late: when, after that, and how many; and when it ended.
    fn sent(pace: &mut Pace, octets: usize, now: Instant) -> (Vec<(Duration, usize)>, Duration) {
        let (octets, mut at, mut sent) = (vec![b'x'; octets], now, Vec::new());
        let mut rest = octets.as_slice();
        while let Some(step) = pace.step(&mut rest, at) {
            match step {
                Step::Wait(until) => at = until,
                Step::Send(part) => sent.push((at - now, part.len())),
            }
        }
        (sent, at - now)
    }

    /// What happened: the pause behind the last octet was waited for before replies were looked for, so that a server that waits was
    /// given 50 ms less than it waits, and one that does not 50 ms.
    #[test]
    fn the_pause_behind_the_last_octet_is_before_the_next_send() {
        let began = Instant::now();
        let mut pace = Pace::new(20_000, began);
        assert_eq!(sent(&mut pace, 1500, began), (vec![(Duration::ZERO, 1000), (50 * MS, 500)], 50 * MS));
        // 25 ms are due behind the 500, and 15 of them have passed.
        assert_eq!(sent(&mut pace, 20, began + 65 * MS), (vec![(10 * MS, 20)], 10 * MS));
        // The reply took its time: nothing is due any more, and nothing was saved up.
        assert_eq!(sent(&mut pace, 2000, began + 500 * MS), (vec![(Duration::ZERO, 1000), (50 * MS, 1000)], 50 * MS));
        assert_eq!(pace.step(&mut &b""[..], began + 500 * MS), None);
    }

    #[test]
    fn the_slowest_sends_an_octet_at_a_time() {
        let began = Instant::now();
        let (sent, ended) = sent(&mut Pace::new(1, began), 3, began);
        assert_eq!((sent, ended), (vec![(Duration::ZERO, 1), (1000 * MS, 1), (2000 * MS, 1)], 2000 * MS));
    }
}
