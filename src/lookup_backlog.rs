//! Which question about DNS is asked next, when there are more than can be asked at once.
//!
//! A name server that is silent holds a place for as long as the time-out. So questions that got no answer last time never take more
//! than half of the places, nor of the room to wait, and wait until no other question does; and of those that wait the newest and the
//! oldest are asked in turn, so that neither a domain whose mail has just come waits behind all of a flood, nor one of the flood for ever.

use std::collections::{HashSet, VecDeque};

use ringpost_queue::Question;

/// Questions asked at once.
pub const LOOKUPS_MAX: usize = 512;
/// Those of them that got no answer last time.
const AGAIN_MAX: usize = LOOKUPS_MAX / 2;
/// Questions that wait at most.
const WAITING_MAX: usize = 65_536;
/// Those of them that got no answer last time.
const AGAIN_WAITING_MAX: usize = WAITING_MAX / 2;
/// Questions without an answer that are remembered at least, and half of what is at most.
const SILENT_MAX: usize = 65_536;

/// A question that may be asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ask {
    /// What.
    pub question: Question,
    /// With no answer from before.
    pub anew: bool,
    /// It got no answer last time.
    pub is_again: bool,
}

/// The questions that wait, and those that got no answer.
#[derive(Default)]
pub struct LookupBacklog {
    others: Turns,
    again: Turns,
    asking: usize,
    asking_again: usize,
    /// Without an answer of late, and before that.
    silent: [HashSet<Question>; 2],
}

impl LookupBacklog {
    /// Takes a question that neither waits nor is being asked. False if too many wait.
    pub fn push(&mut self, question: Question, anew: bool) -> bool {
        let is_again = self.silent.iter().any(|silent| silent.contains(&question));
        let is_full = self.others.waiting.len() + self.again.waiting.len() >= WAITING_MAX;
        if is_full || is_again && self.again.waiting.len() >= AGAIN_WAITING_MAX {
            return false;
        }
        let turns = if is_again { &mut self.again } else { &mut self.others };
        turns.waiting.push_back(Ask { question, anew, is_again });
        true
    }

    /// What to ask now, if there is a place. Ends in [`LookupBacklog::ended`].
    pub fn next(&mut self) -> Option<Ask> {
        if self.asking >= LOOKUPS_MAX {
            return None;
        }
        let ask = self.others.next().or_else(|| if self.asking_again < AGAIN_MAX { self.again.next() } else { None })?;
        self.asking += 1;
        self.asking_again += usize::from(ask.is_again);
        Some(ask)
    }

    /// A question was asked, and got an answer or none.
    pub fn ended(&mut self, question: &Question, was_again: bool, is_answered: bool) {
        self.asking -= 1;
        self.asking_again -= usize::from(was_again);
        if is_answered {
            self.silent.iter_mut().for_each(|silent| {
                silent.remove(question);
            });
        } else if self.silent[0].insert(question.clone()) && self.silent[0].len() >= SILENT_MAX {
            self.silent[1] = std::mem::take(&mut self.silent[0]);
        }
    }
}

/// The newest, the oldest, the newest.
#[derive(Default)]
struct Turns {
    waiting: VecDeque<Ask>,
    oldest_is_next: bool,
}

impl Turns {
    fn next(&mut self) -> Option<Ask> {
        self.oldest_is_next = !self.oldest_is_next;
        if self.oldest_is_next { self.waiting.pop_back() } else { self.waiting.pop_front() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mx(number: usize) -> Question {
        Question::Mx { domain: format!("d{number}.test"), port: 25, turn: 0 }
    }

    fn asked(backlog: &mut LookupBacklog) -> Vec<Ask> {
        std::iter::from_fn(|| backlog.next()).collect()
    }

    /// All that waited stood in one line: with as many silent domains as there are places, each time-out let 512 questions of 65,536 pass,
    /// and a domain whose mail had just come waited for twenty minutes.
    #[test]
    fn silent_name_servers_leave_half_of_the_places_to_others() {
        let mut backlog = LookupBacklog::default();
        for round in 0..3 {
            (0..2000).for_each(|number| assert!(backlog.push(mx(number), false)));
            let most = if round == 0 { LOOKUPS_MAX } else { AGAIN_MAX };
            let mut left = 2000;
            while left > 0 {
                let asking = asked(&mut backlog);
                assert!(asking.len() <= most && asking.iter().all(|ask| ask.is_again == (round > 0)), "{}", asking.len());
                if round > 0 {
                    // Half of the places are for a domain of which nothing bad is known, at once.
                    assert!(backlog.push(mx(9999), true));
                    let other = Ask { question: mx(9999), anew: true, is_again: false };
                    assert_eq!(asked(&mut backlog), [other]);
                    backlog.ended(&mx(9999), false, true);
                }
                left -= asking.len();
                asking.iter().for_each(|ask| backlog.ended(&ask.question, ask.is_again, false));
            }
        }
        // One that answers again is as good as any.
        assert!(backlog.push(mx(1), false) && backlog.next().is_some_and(|ask| ask.is_again));
        backlog.ended(&mx(1), true, true);
        assert!(backlog.push(mx(1), false) && backlog.next().is_some_and(|ask| !ask.is_again));
    }

    /// They could take all of the room to wait, for hours, and every domain whose mail had just come was turned away.
    #[test]
    fn silent_name_servers_leave_half_of_the_room_to_others() {
        let mut backlog = LookupBacklog::default();
        for number in 0..WAITING_MAX {
            assert!(backlog.push(mx(number), false) && backlog.next().is_some());
            backlog.ended(&mx(number), false, false);
        }
        let taken = (0..WAITING_MAX).filter(|number| backlog.push(mx(*number), false)).count();
        assert_eq!(taken, AGAIN_WAITING_MAX);
        assert!(backlog.push(mx(WAITING_MAX), false), "of this one nothing bad is known");
    }

    #[test]
    fn in_a_flood_neither_the_newest_nor_the_oldest_waits_long() {
        let mut backlog = LookupBacklog::default();
        (0..20_000).for_each(|number| assert!(backlog.push(mx(number), false)));
        assert_eq!(asked(&mut backlog).len(), LOOKUPS_MAX);
        backlog.ended(&mx(0), false, false);
        backlog.ended(&mx(0), false, false);
        assert!(backlog.push(mx(77_777), false));
        let next = asked(&mut backlog);
        assert!(
            next.iter().any(|ask| ask.question == mx(77_777)) && next.iter().any(|ask| ask.question == mx(LOOKUPS_MAX / 2)),
            "{next:?}"
        );
        let room = WAITING_MAX - (20_000 - LOOKUPS_MAX - 1);
        (0..room).for_each(|number| assert!(backlog.push(mx(100_000 + number), false)));
        assert!(!backlog.push(mx(1), false), "it is full");
    }
}
