//! Answers of DNS that still hold, and who waits for those that are being asked for: one question at a time for each domain.

use std::collections::{BTreeMap, HashMap, VecDeque};

use ringpost_queue::{Asking, Question, Resolution};

/// An answer that is younger counts as new: a retry of many messages asks once.
const ANEW_MS: u64 = 1000;
/// Destinations that are remembered as having been told of a refusal; there is one for each shard and route by sender.
const TOLD_MAX: usize = 1024;
/// Of each answer that is kept, on average: what an ordinary domain has is a tenth of it, and what a hostile one can have ten times as much.
const ANSWER_BYTES: usize = 4096;

/// Who asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asker {
    /// The shard.
    pub shard: u16,
    /// Its destination, by the routes of then.
    pub asking: Asking,
}

/// What to do with a question.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// The answer is known; it holds for `until` more milliseconds.
    Known(Resolution),
    /// Somebody asked already: the answer comes when that comes.
    Waits,
    /// Ask DNS, then call [`Answers::answered`].
    Ask,
}

/// Bounded by `answers_max`, and by [`ANSWER_BYTES`] for each of those in all; the oldest gives way.
pub struct Answers {
    answers_max: usize,
    known: HashMap<Question, Known>,
    /// Of all that is known.
    bytes: usize,
    /// When they are over, each with the number of its coming. Not of hosts that the operator named: they are few, and may be wanted later.
    ends: BTreeMap<(u64, u64), Question>,
    /// In the order of their coming, each with the number of its coming: one that came anew is here twice.
    order: VecDeque<(Question, u64)>,
    arrivals: u64,
    waiting: HashMap<Question, Vec<Asker>>,
    /// Who went by a refusal that is being asked anew, and has not been told.
    revoked: Vec<Asker>,
}

struct Known {
    resolution: Resolution,
    since: u64,
    arrival: u64,
    bytes: usize,
    /// Who goes by it, if it is a refusal.
    told: Vec<Asker>,
}

impl Known {
    fn is_refusal(&self) -> bool {
        matches!(self.resolution, Resolution::Refused { .. })
    }

    /// Mail of these is refused until the answer grows old, or they hear another.
    fn tell(&mut self, askers: &[Asker]) {
        if self.is_refusal() {
            for asker in askers {
                if self.told.len() < TOLD_MAX && !self.told.contains(asker) {
                    self.told.push(*asker);
                }
            }
        }
    }
}

impl Answers {
    /// Without any.
    pub fn new(answers_max: usize) -> Self {
        Answers {
            answers_max: answers_max.max(1),
            known: HashMap::new(),
            bytes: 0,
            ends: BTreeMap::new(),
            order: VecDeque::new(),
            arrivals: 0,
            waiting: HashMap::new(),
            revoked: Vec::new(),
        }
    }

    /// Somebody asks; `anew`: an answer from before does not count, and if it was a refusal it counts for nobody: who goes by it waits, too,
    /// see [`Answers::take_revoked`]. All times are milliseconds of one steady clock.
    pub fn ask(&mut self, question: &Question, anew: bool, asker: Asker, now: u64) -> Asked {
        let place = if self.is_refused(question, now) { of_all_turns(question) } else { question.clone() };
        if let Some(known) = self.known.get_mut(&place).filter(|known| !anew || now < known.since + ANEW_MS)
            && let Some(until) = until(&known.resolution)
            && until > now
        {
            known.tell(&[asker]);
            return Asked::Known(known.resolution.clone().map_until(|until| until - now));
        }
        let told = if anew { self.revoke(question, now) } else { Vec::new() };
        let told = told.into_iter().filter(|told| *told != asker);
        self.revoked.extend(told.clone());
        match self.waiting.get_mut(question) {
            Some(waiting) => {
                waiting.push(asker);
                waiting.extend(told);
                Asked::Waits
            }
            None => {
                self.waiting.insert(question.clone(), [asker].into_iter().chain(told).collect());
                Asked::Ask
            }
        }
    }

    /// Those whose mail is refused by an answer that counts no more, and is asked for anew: each is to wait for the new one. Once each.
    pub fn take_revoked(&mut self) -> Vec<Asker> {
        std::mem::take(&mut self.revoked)
    }

    /// Is all mail of the domain refused, as was said for one of its turns?
    fn is_refused(&self, question: &Question, now: u64) -> bool {
        let known = self.known.get(&of_all_turns(question));
        known.is_some_and(|known| known.is_refusal() && until(&known.resolution).is_some_and(|until| until > now))
    }

    /// Forgets a refusal. Who goes by it; when its time is over they ask by themselves.
    fn revoke(&mut self, question: &Question, now: u64) -> Vec<Asker> {
        let place = of_all_turns(question);
        if !self.known.get(&place).is_some_and(Known::is_refusal) {
            return Vec::new();
        }
        let refusal = self.forget(&place);
        refusal.filter(|known| until(&known.resolution).is_some_and(|until| until > now)).map(|known| known.told).unwrap_or_default()
    }

    /// DNS has answered; `until` of the resolution counts from now. Who waits for it, and what they get. Hosts that the operator named keep
    /// their last addresses while nothing better is known.
    pub fn answered(&mut self, question: Question, mut resolution: Resolution, stale_ms: u64, now: u64) -> (Vec<Asker>, Resolution) {
        let askers = self.waiting.remove(&question).unwrap_or_default();
        if let (Resolution::Unanswered { .. }, Question::Hosts(_), Some(known)) = (&resolution, &question, self.known.get(&question)) {
            resolution = known.resolution.clone().map_until(|_| stale_ms);
        }
        if until(&resolution).is_some() {
            self.arrivals += 1;
            let resolution = resolution.clone().map_until(|until| now + until);
            // A refusal is of the domain. Whatever else is said of it ends one that was said for another turn.
            let told = self.revoke(&question, now);
            let bytes = bytes_of(&question, &resolution);
            let mut known = Known { resolution, since: now, arrival: self.arrivals, bytes, told: Vec::new() };
            let place = if known.is_refusal() { of_all_turns(&question) } else { question };
            known.tell(&told);
            known.tell(&askers);
            self.forget(&place);
            self.forget_old(now);
            self.order.push_back((place.clone(), self.arrivals));
            if let (Question::Mx { .. }, Some(until)) = (&place, until(&known.resolution)) {
                self.ends.insert((until, self.arrivals), place.clone());
            }
            self.bytes += bytes;
            self.known.insert(place, known);
            self.give_way();
        }
        (askers, resolution)
    }

    /// Questions that are being asked.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Answers that are kept.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    fn forget(&mut self, question: &Question) -> Option<Known> {
        let known = self.known.remove(question)?;
        self.bytes -= known.bytes;
        if let Some(until) = until(&known.resolution) {
            self.ends.remove(&(until, known.arrival));
        }
        Some(known)
    }

    /// What is over is of no use to anybody.
    fn forget_old(&mut self, now: u64) {
        while let Some(entry) = self.ends.first_entry().filter(|entry| entry.key().0 <= now) {
            let question = entry.get().clone();
            self.forget(&question);
        }
    }

    fn give_way(&mut self) {
        // Those that came anew leave stale places in the order; they are not to pile up either.
        let bytes_max = self.answers_max.saturating_mul(ANSWER_BYTES);
        while self.known.len() > self.answers_max || self.bytes > bytes_max || self.order.len() > 2 * self.answers_max {
            let Some((question, arrival)) = self.order.pop_front() else { return };
            if self.known.get(&question).is_some_and(|known| known.arrival == arrival) {
                self.forget(&question);
            }
        }
    }
}

/// What an answer takes, its question included, which stands in three places.
fn bytes_of(question: &Question, resolution: &Resolution) -> usize {
    let named = match question {
        Question::Mx { domain, .. } => domain.len(),
        Question::Hosts(hosts) => hosts.iter().map(|host| size_of_val(host) + host.name.len()).sum(),
    };
    let said = match resolution {
        Resolution::Site { key, name, hosts, .. } => {
            key.len() + name.len() + hosts.iter().map(|host| size_of_val(host) + host.name.len()).sum::<usize>()
        }
        Resolution::Refused { reply, .. } => reply.len(),
        Resolution::Unanswered { reason, .. } => reason.len(),
        Resolution::Awaited => 0,
    };
    size_of::<Known>() + 3 * (size_of::<Question>() + named) + said
}

/// The question that is about all hosts of a domain, of whichever of them this one is.
fn of_all_turns(question: &Question) -> Question {
    match question {
        Question::Mx { domain, port, turn: 1.. } => Question::Mx { domain: domain.clone(), port: *port, turn: 0 },
        other => other.clone(),
    }
}

fn until(resolution: &Resolution) -> Option<u64> {
    match resolution {
        Resolution::Site { until, .. } | Resolution::Refused { until, .. } => Some(*until),
        Resolution::Unanswered { .. } | Resolution::Awaited => None,
    }
}

#[cfg(test)]
mod tests {
    use ringpost_queue::DestinationId;

    use super::*;

    fn mx(domain: &str) -> Question {
        Question::Mx { domain: domain.into(), port: 25, turn: 0 }
    }

    fn refused(until: u64) -> Resolution {
        Resolution::Refused { reply: "550 5.1.2 no".into(), until }
    }

    fn asker(shard: u16) -> Asker {
        Asker { shard, asking: Asking { destination: DestinationId::UNROUTED, table: 0 } }
    }

    #[test]
    fn one_question_at_a_time_is_asked_and_all_who_wait_get_its_answer() {
        let mut answers = Answers::new(10);
        assert_eq!(answers.ask(&mx("a.test"), false, asker(0), 0), Asked::Ask);
        assert_eq!(answers.ask(&mx("a.test"), false, asker(1), 5), Asked::Waits);
        assert_eq!(answers.ask(&mx("b.test"), false, asker(1), 5), Asked::Ask);
        assert_eq!(answers.waiting(), 2);
        assert_eq!(answers.answered(mx("a.test"), refused(100), 0, 10), (vec![asker(0), asker(1)], refused(100)));
        assert_eq!(answers.ask(&mx("a.test"), false, asker(2), 50), Asked::Known(refused(60)));
        assert_eq!(answers.ask(&mx("a.test"), false, asker(2), 110), Asked::Ask, "it has grown old");
    }

    /// `queue retry` for a domain that had been mended got the refusal from before, and the mail failed for good once more.
    #[test]
    fn who_asks_anew_gets_no_answer_from_before() {
        let mut answers = Answers::new(10);
        answers.ask(&mx("a.test"), false, asker(0), 0);
        answers.answered(mx("a.test"), refused(3_600_000), 0, 0);
        assert_eq!(answers.ask(&mx("a.test"), true, asker(0), ANEW_MS - 1), Asked::Known(refused(3_600_000 - ANEW_MS + 1)), "it is new");
        assert_eq!(answers.ask(&mx("a.test"), true, asker(0), 5000), Asked::Ask);
        assert_eq!(answers.ask(&mx("a.test"), true, asker(1), 5000), Asked::Waits);
        answers.answered(mx("a.test"), refused(10_000), 0, 5100);
        assert_eq!(answers.ask(&mx("a.test"), true, asker(0), 5200), Asked::Known(refused(9900)));
    }

    /// The shard that had asked anew delivered, and the others refused mail of the mended domain until the old answer's end; then until the
    /// new answer, which without mail on the shard that was asked nobody waited for.
    #[test]
    fn who_was_told_of_a_refusal_waits_for_what_is_asked_anew() {
        let site = Resolution::Site {
            key: "h".into(),
            name: "h".into(),
            hosts: vec!["192.0.2.1:25".parse().unwrap()],
            is_whole: true,
            until: 60_000,
        };
        let mut answers = Answers::new(10);
        answers.ask(&mx("a.test"), false, asker(0), 0);
        answers.answered(mx("a.test"), refused(3_600_000), 0, 0);
        assert!(matches!(answers.ask(&mx("a.test"), false, asker(1), 10), Asked::Known(_)));
        assert_eq!((answers.ask(&mx("a.test"), true, asker(2), 5000), answers.take_revoked()), (Asked::Ask, vec![asker(0), asker(1)]));
        // One that has never heard of it waits, too, and gets none of the old answer.
        assert_eq!((answers.ask(&mx("a.test"), false, asker(3), 5001), answers.take_revoked()), (Asked::Waits, vec![]));
        let all = [asker(2), asker(0), asker(1), asker(3)];
        assert_eq!(answers.answered(mx("a.test"), refused(3_600_000), 0, 5010).0, all);
        assert_eq!(answers.ask(&mx("a.test"), true, asker(1), 9000), Asked::Ask);
        assert_eq!(answers.take_revoked(), [asker(2), asker(0), asker(3)]);
        // No answer is none for all of them: their mail waits.
        let nothing = Resolution::Unanswered { reason: "SERVFAIL".into(), turns: 0 };
        assert_eq!(answers.answered(mx("a.test"), nothing.clone(), 0, 9100), (vec![asker(1), asker(2), asker(0), asker(3)], nothing));
        assert_eq!(answers.ask(&mx("a.test"), false, asker(3), 9200), Asked::Ask, "the refusal is forgotten");
        assert_eq!(answers.answered(mx("a.test"), site.clone(), 0, 9300), (vec![asker(3)], site.clone()));
        // A refusal that was over before is asked about by each for itself, and its list does not grow from one to the next.
        answers.ask(&mx("b.test"), false, asker(0), 0);
        answers.answered(mx("b.test"), refused(100), 0, 0);
        assert_eq!(answers.ask(&mx("b.test"), false, asker(1), 100), Asked::Ask);
        assert_eq!(answers.answered(mx("b.test"), site, 0, 100).0, [asker(1)]);
    }

    /// A domain whose many hosts are asked for in turns was refused for the turn that had been asked for alone: others asked again, and a retry
    /// left those refused who went by it.
    #[test]
    fn a_refusal_is_of_the_domain_in_whichever_turn_it_was_said() {
        let of_turn = |turn| Question::Mx { domain: "a.test".into(), port: 25, turn };
        let site = Resolution::Site {
            key: "h".into(),
            name: "h".into(),
            hosts: vec!["192.0.2.1:25".parse().unwrap()],
            is_whole: false,
            until: 60_000,
        };
        let mut answers = Answers::new(10);
        for (shard, turn) in [(0, 0), (1, 3)] {
            assert_eq!(answers.ask(&of_turn(turn), false, asker(shard), 0), Asked::Ask);
        }
        answers.answered(of_turn(0), site.clone(), 0, 0);
        answers.answered(of_turn(3), refused(3_600_000), 0, 0);
        for (shard, turn) in [(0, 0), (2, 3), (3, 7)] {
            assert_eq!(answers.ask(&of_turn(turn), false, asker(shard), 10), Asked::Known(refused(3_599_990)), "turn {turn}");
        }
        assert_eq!((answers.ask(&of_turn(0), true, asker(0), 5000), answers.take_revoked()), (Asked::Ask, [1, 2, 3].map(asker).into()));
        assert_eq!(answers.ask(&of_turn(5), false, asker(4), 5000), Asked::Ask);
        // Who is refused in one turn stays known while another one hears the same; and hosts are no refusal in any turn.
        answers.answered(of_turn(0), refused(3_600_000), 0, 5100);
        answers.answered(of_turn(5), refused(3_600_000), 0, 5200);
        assert_eq!(
            (answers.ask(&of_turn(1), true, asker(9), 9000), answers.take_revoked()),
            (Asked::Ask, [0, 1, 2, 3, 4].map(asker).into())
        );
        answers.answered(of_turn(1), site.clone(), 0, 9100);
        assert_eq!(answers.ask(&of_turn(1), false, asker(0), 9200), Asked::Known(site.map_until(|until| until - 100)));
        assert_eq!(answers.ask(&of_turn(0), false, asker(1), 9200), Asked::Ask);
    }

    #[test]
    fn what_got_no_answer_is_not_kept() {
        let mut answers = Answers::new(10);
        let nothing = Resolution::Unanswered { reason: "SERVFAIL".into(), turns: 0 };
        answers.ask(&mx("a.test"), false, asker(0), 0);
        assert_eq!(answers.answered(mx("a.test"), nothing.clone(), 0, 0), (vec![asker(0)], nothing));
        assert_eq!(answers.ask(&mx("a.test"), false, asker(0), 0), Asked::Ask);
    }

    #[test]
    fn hosts_that_the_operator_named_keep_their_addresses_while_dns_is_silent() {
        let question = Question::Hosts(Vec::new());
        let site = |until| Resolution::Site {
            key: String::new(),
            name: "h".into(),
            hosts: vec!["192.0.2.1:25".parse().unwrap()],
            is_whole: true,
            until,
        };
        let mut answers = Answers::new(10);
        answers.ask(&question, false, asker(0), 0);
        answers.answered(question.clone(), site(100), 7, 0);
        assert_eq!(answers.ask(&question, false, asker(0), 200), Asked::Ask);
        let silent = Resolution::Unanswered { reason: "timed out".into(), turns: 0 };
        assert_eq!(answers.answered(question.clone(), silent, 7, 200).1, site(7));
        assert_eq!(answers.ask(&question, false, asker(0), 206), Asked::Known(site(1)));
    }

    /// Each answer counted for one, however large: a domain has as many hosts with as long names as whoever writes its records wants. And what
    /// was over stayed until as many others had come.
    #[test]
    fn large_answers_give_way_by_their_bytes_and_old_ones_by_their_time() {
        let mut answers = Answers::new(100);
        let large = |until| Resolution::Site {
            key: "k".repeat(16 << 10),
            name: "h".into(),
            hosts: vec!["192.0.2.1:25".parse().unwrap()],
            is_whole: true,
            until,
        };
        for number in 0..100 {
            let question = mx(&format!("d{number}.test"));
            answers.ask(&question, false, asker(0), number);
            answers.answered(question, large(1000), 0, number);
        }
        assert!((20..=25).contains(&answers.len()) && answers.bytes <= 100 * ANSWER_BYTES, "{} of {}", answers.len(), answers.bytes);
        assert!(matches!(answers.ask(&mx("d99.test"), false, asker(0), 100), Asked::Known(_)));
        answers.ask(&mx("e.test"), false, asker(0), 5000);
        answers.answered(mx("e.test"), refused(10), 0, 5000);
        assert_eq!((answers.len(), answers.ends.len()), (1, 1), "the others are over");
        answers.answered(mx("e.test"), large(10), 0, 5001);
        answers.answered(mx("f.test"), large(10), 0, 6000);
        assert_eq!((answers.len(), answers.ends.len()), (1, 1));
        assert_eq!(answers.bytes, answers.known.values().map(|known| known.bytes).sum::<usize>());
    }

    #[test]
    fn the_oldest_answers_give_way_and_answers_that_come_anew_do_not_pile_up() {
        let mut answers = Answers::new(100);
        for round in 0..50_u64 {
            for number in 0..70 {
                let question = mx(&format!("d{number}.test"));
                if answers.ask(&question, false, asker(0), round * 1000) == Asked::Ask {
                    answers.answered(question, refused(10), 0, round * 1000);
                }
            }
            assert!(answers.len() <= 70 && answers.order.len() <= 200, "{}", answers.order.len());
        }
        for number in 0..1000 {
            let question = mx(&format!("e{number}.test"));
            answers.ask(&question, false, asker(0), 0);
            answers.answered(question, refused(u64::MAX / 2), 0, 0);
        }
        assert!(answers.len() <= 100);
        assert!(matches!(answers.ask(&mx("e999.test"), false, asker(0), 1), Asked::Known(_)));
        assert_eq!(answers.ask(&mx("e0.test"), false, asker(0), 1), Asked::Ask);
    }
}
