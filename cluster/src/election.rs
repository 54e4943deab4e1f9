//! Standing for election, leading and stepping down (L1 to L4, L8 to L11).
//!
//! Pure: [`Election::next`] says which call to send, [`Election::answered`] takes what came of it. One call is under way at a time.
//! A lease is counted from before it was asked for and ends here before it ends in Valkey; nobody depends on there being a leader.

use std::time::Duration;

use crate::{
    boot_time::BootTime,
    identity::{Epoch, Incarnation, Leadership, Role},
};

/// Times of the election; all follow from the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElectionTimes {
    /// The lease in Valkey.
    pub ttl: Duration,
    /// How often a follower looks; the caller adds jitter by [`Election::next`]'s `random`.
    pub poll: Duration,
    /// A gap between two looks at the clock longer than this ends leadership at once: the process was stopped (L9).
    pub guard: Duration,
    /// A leader of whom nothing was heard for so long leads no longer, as far as this node can say.
    pub forgotten_after: Duration,
}

impl ElectionTimes {
    /// Renewals every third of `ttl`, a guard of a sixth, polls of a sixth. Nodes that do not stand hear of the leader each `heartbeat`.
    pub fn of(ttl: Duration, heartbeat: Duration) -> ElectionTimes {
        ElectionTimes { ttl, poll: ttl / 6, guard: ttl / 6, forgotten_after: ttl + heartbeat }
    }

    /// How long an answered lease is good here, from before it was asked for. Two thirds: a leader that cannot renew is silent well before
    /// others can be elected. Clock rates that differ by less than a sixth do no harm.
    fn validity(&self) -> Duration {
        // L4: ttl * (1 - 1 %) - guard is what clocks allow, 2/3 ttl is when a failed renewal ends it: the earlier counts.
        (self.ttl * 2 / 3).min((self.ttl * 99 / 100).saturating_sub(self.guard))
    }

    fn renewal(&self) -> Duration {
        self.ttl / 3
    }
}

/// What to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Nothing before that time (an answer or a change of the surroundings comes in between as it likes).
    Wait(BootTime),
    /// Run the acquire script with this floor.
    Acquire(Epoch),
    /// Run the renew script.
    Renew(Leadership),
    /// Run the release script.
    Release(Leadership),
}

/// What came of a call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Acquire: the lease is ours.
    Acquired(Epoch),
    /// Acquire: somebody has it, for so long.
    Held(Leadership, Duration),
    /// Renew: done.
    Renewed,
    /// Renew: not ours any more, or the epoch was raised to this meanwhile.
    Lost(Epoch),
    /// Release: done, or it was not ours.
    Released,
    /// No answer within the deadline, or an error: it may have happened or not.
    Unknown,
}

/// What others want to know of: logged, counted, acted on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// This node leads. Everything is to be read anew (L11).
    Elected(Epoch),
    /// This node leads no longer.
    SteppedDown(Epoch, SteppedDown),
    /// Another leader than before, or none.
    LeaderChanged(Option<Leadership>),
    /// The lease of Valkey does not run out: its clock was stepped back.
    FrozenLease(Duration),
}

/// Why a leader stepped down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SteppedDown {
    /// No renewal was answered in time.
    Expired,
    /// The process stood still, or its machine.
    Paused,
    /// Valkey says that the lease is another's, or gone.
    Lost,
    /// A receiver has accepted a higher epoch.
    Outranked,
    /// Asked to: a drain or a hand-over.
    Asked,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum State {
    Following,
    /// Acquired, but not yet durable in this node's own floor.
    Elected {
        epoch: Epoch,
        valid_until: BootTime,
    },
    Leading {
        epoch: Epoch,
        valid_until: BootTime,
    },
    /// Stepped down; the lease is to be given back.
    Releasing {
        epoch: Epoch,
    },
}

/// One node's part in the election.
#[derive(Clone, Debug)]
pub struct Election {
    me: Incarnation,
    role: Role,
    times: ElectionTimes,
    state: State,
    floor: Epoch,
    /// The call under way: what it was and when it was sent.
    sent: Option<(Step, BootTime)>,
    next_call: BootTime,
    /// Does not stand before that time: others go first after a hand-over.
    rests_until: BootTime,
    is_fit: bool,
    last_look: Option<BootTime>,
    leader: Option<Leadership>,
    /// When the leader was heard of last.
    leader_heard_at: BootTime,
    is_leader_known: bool,
    events: Vec<Event>,
}

/// After a hand-over others have so long to be elected.
const REST_TTLS: u32 = 1;

impl Election {
    /// `floor` is the highest epoch this node has accepted, from its disk.
    pub fn new(me: Incarnation, role: Role, times: ElectionTimes, floor: Epoch) -> Election {
        Election {
            me,
            role,
            times,
            state: State::Following,
            floor,
            sent: None,
            next_call: BootTime::default(),
            rests_until: BootTime::default(),
            is_fit: true,
            last_look: None,
            leader: None,
            leader_heard_at: BootTime::default(),
            is_leader_known: false,
            events: Vec::new(),
        }
    }

    /// Whether this node may act as leader right now; ask immediately before each action.
    pub fn leadership(&self, now: BootTime) -> Option<Leadership> {
        match self.state {
            State::Leading { epoch, valid_until } if now < valid_until && !self.has_paused(now) => {
                Some(Leadership { incarnation: self.me.clone(), epoch })
            }
            _ => None,
        }
    }

    /// Who stands.
    pub fn incarnation(&self) -> &Incarnation {
        &self.me
    }

    /// Who leads, as far as this node knows.
    pub fn leader(&self) -> Option<&Leadership> {
        self.leader.as_ref()
    }

    /// The epoch that waits to be durable in this node's floor before it may be acted on; then call [`Election::confirm`].
    pub fn unconfirmed(&self) -> Option<Leadership> {
        match self.state {
            State::Elected { epoch, .. } => Some(Leadership { incarnation: self.me.clone(), epoch }),
            _ => None,
        }
    }

    /// The own floor has the epoch, durably: lead.
    pub fn confirm(&mut self, now: BootTime) {
        self.look(now);
        if let State::Elected { epoch, valid_until } = self.state {
            self.raise_floor(epoch);
            self.state = State::Leading { epoch, valid_until };
            self.events.push(Event::Elected(epoch));
            self.hear_of(now, Some(Leadership { incarnation: self.me.clone(), epoch }));
        }
    }

    /// What the caller logs and acts on, in order.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// The next step. `masters_alive` counts for a standby only; `random` makes the polls of the nodes differ.
    pub fn next(&mut self, now: BootTime, masters_alive: bool, random: u64) -> Step {
        self.look(now);
        if self.sent.is_some() {
            return Step::Wait(self.due(now));
        }
        let step = match self.state {
            State::Elected { .. } => Step::Wait(self.due(now)),
            State::Releasing { epoch } => Step::Release(Leadership { incarnation: self.me.clone(), epoch }),
            State::Leading { epoch, .. } if now >= self.next_call => Step::Renew(Leadership { incarnation: self.me.clone(), epoch }),
            State::Following if now >= self.next_call => {
                let stands = match self.role {
                    Role::Master => true,
                    Role::Worker => false,
                    Role::Standby => !masters_alive,
                };
                // Jitter of half a poll: two nodes that saw a lease end do not ask at the same moment for ever.
                let jitter = self.times.poll / 2 * u32::try_from(random % 1024).expect("below 1024") / 1024;
                self.next_call = now + self.times.poll + jitter;
                if stands && self.is_fit && now >= self.rests_until { Step::Acquire(self.floor) } else { Step::Wait(self.next_call) }
            }
            _ => Step::Wait(self.due(now)),
        };
        if !matches!(step, Step::Wait(_)) {
            self.sent = Some((step.clone(), now));
        }
        step
    }

    /// What came of the call that is under way.
    pub fn answered(&mut self, now: BootTime, answer: Answer) {
        self.look(now);
        let Some((step, sent_at)) = self.sent.take() else { return };
        match (step, answer) {
            (Step::Acquire(_), Answer::Acquired(epoch)) => self.won(now, sent_at, epoch),
            (Step::Acquire(_), Answer::Held(leader, remaining)) => {
                if leader.incarnation == self.me && matches!(self.state, State::Following) {
                    // Our own, of a call whose answer was lost. When it began is unknown, so it is given back.
                    self.state = State::Releasing { epoch: leader.epoch };
                    return;
                }
                if remaining > self.times.ttl * 2 {
                    self.events.push(Event::FrozenLease(remaining));
                }
                self.hear_of(now, Some(leader));
            }
            (Step::Renew(_), Answer::Renewed) => {
                if let State::Leading { epoch, valid_until } = self.state {
                    let valid_until = valid_until.max(sent_at + self.times.validity());
                    self.state = State::Leading { epoch, valid_until };
                    self.next_call = sent_at + self.times.renewal();
                }
            }
            (Step::Renew(_), Answer::Lost(epoch)) => {
                self.raise_floor(epoch);
                self.step_down(SteppedDown::Lost);
                self.state = State::Following;
                self.next_call = now;
            }
            (Step::Renew(_), _) => self.next_call = now + self.times.guard / 2,
            // A lease that could not be given back runs out by itself.
            (Step::Release(_), _) => {
                if let State::Releasing { .. } = self.state {
                    self.state = State::Following;
                    self.next_call = now + self.times.poll;
                }
            }
            (Step::Acquire(_), _) | (Step::Wait(_), _) => {}
        }
    }

    /// Epochs lower than this must not be used, says a heartbeat's answer. A leader of a lower one steps down.
    pub fn saw_epoch(&mut self, epoch: Epoch) {
        self.raise_floor(epoch);
        if let State::Leading { epoch: mine, .. } | State::Elected { epoch: mine, .. } = self.state
            && mine < epoch
        {
            self.step_down(SteppedDown::Outranked);
        }
    }

    /// A receiver refused our order because it has accepted `epoch`, from somebody else: that is at least ours.
    pub fn refused(&mut self, epoch: Epoch) {
        self.raise_floor(epoch);
        if let State::Leading { epoch: mine, .. } | State::Elected { epoch: mine, .. } = self.state
            && mine <= epoch
        {
            self.step_down(SteppedDown::Outranked);
        }
    }

    /// Somebody else told who leads (a heartbeat's answer); None: nobody.
    pub fn saw_leader(&mut self, now: BootTime, leader: Option<Leadership>) {
        if !matches!(self.state, State::Leading { .. }) {
            self.hear_of(now, leader);
        }
    }

    /// The lease was given back: ask soon, but not all at the same moment.
    pub fn hurry(&mut self, now: BootTime, random: u64) {
        let jitter = self.times.poll / 4 * u32::try_from(random % 1024).expect("below 1024") / 1024;
        self.next_call = self.next_call.min(now + jitter);
    }

    /// Steps down, gives the lease back and lets others go first. For a drain or a hand-over.
    pub fn hand_over(&mut self, now: BootTime) {
        self.step_down(SteppedDown::Asked);
        self.rests_until = now + self.times.ttl * REST_TTLS;
    }

    /// Whether this node is in a state to lead; while it is not, it does not stand. A leader is to be told with [`Election::hand_over`].
    pub fn set_fit(&mut self, is_fit: bool) {
        self.is_fit = is_fit;
    }

    fn won(&mut self, now: BootTime, sent_at: BootTime, epoch: Epoch) {
        let valid_until = sent_at + self.times.validity();
        let is_usable = matches!(self.state, State::Following) && epoch > self.floor && now < valid_until;
        // An epoch at or below the floor can come only from a Valkey that is not ours or not sound: nobody would follow.
        if is_usable {
            self.state = State::Elected { epoch, valid_until };
            self.next_call = sent_at + self.times.renewal();
        } else {
            self.state = State::Releasing { epoch };
        }
    }

    /// Ends what time has ended. Done at every call, before anything else (L9, L11).
    fn look(&mut self, now: BootTime) {
        let has_paused = self.has_paused(now);
        self.last_look = Some(now);
        match self.state {
            State::Leading { .. } if has_paused => self.step_down(SteppedDown::Paused),
            State::Leading { valid_until, .. } | State::Elected { valid_until, .. } if now >= valid_until => {
                self.step_down(SteppedDown::Expired);
            }
            State::Leading { .. } => {}
            // No leader is a normal state (L10), and to be said as it is.
            _ if self.leader.is_some() && now.since(self.leader_heard_at) >= self.times.forgotten_after => self.set_leader(None),
            _ => {}
        }
    }

    fn has_paused(&self, now: BootTime) -> bool {
        self.last_look.is_some_and(|last| now.since(last) > self.times.guard)
    }

    fn step_down(&mut self, why: SteppedDown) {
        match self.state {
            State::Leading { epoch, .. } => {
                self.events.push(Event::SteppedDown(epoch, why));
                self.set_leader(None);
                self.state = State::Releasing { epoch };
            }
            State::Elected { epoch, .. } => self.state = State::Releasing { epoch },
            State::Following | State::Releasing { .. } => {}
        }
    }

    fn raise_floor(&mut self, epoch: Epoch) {
        self.floor = self.floor.max(epoch);
    }

    fn hear_of(&mut self, now: BootTime, leader: Option<Leadership>) {
        self.leader_heard_at = now;
        self.set_leader(leader);
    }

    fn set_leader(&mut self, leader: Option<Leadership>) {
        if self.leader != leader || !self.is_leader_known {
            self.is_leader_known = true;
            if leader.as_ref().is_some_and(|leader| leader.incarnation != self.me) {
                // Others have gone first.
                self.rests_until = BootTime::default();
            }
            self.leader = leader.clone();
            self.events.push(Event::LeaderChanged(leader));
        }
    }

    /// When `next` is to be asked again if nothing else happens: often enough to tell a pause from an idle loop.
    fn due(&self, now: BootTime) -> BootTime {
        let look_again = now + self.times.guard / 4;
        match self.state {
            State::Leading { valid_until, .. } | State::Elected { valid_until, .. } => {
                let call = if self.sent.is_some() { valid_until } else { self.next_call };
                look_again.min(valid_until).min(call.max(now))
            }
            State::Following | State::Releasing { .. } => self.next_call.max(now + Duration::from_millis(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(3);
    const HEARTBEAT: Duration = Duration::from_secs(1);

    fn at(ms: u64) -> BootTime {
        BootTime::after_boot(Duration::from_millis(100_000 + ms))
    }

    fn election(role: Role) -> Election {
        Election::new(Incarnation::new("n1".parse().unwrap(), 1), role, ElectionTimes::of(TTL, HEARTBEAT), Epoch(4))
    }

    fn leading() -> Election {
        let mut election = election(Role::Master);
        assert_eq!(election.next(at(0), true, 0), Step::Acquire(Epoch(4)));
        election.answered(at(20), Answer::Acquired(Epoch(5)));
        assert_eq!(election.leadership(at(20)), None, "not before the floor is durable");
        election.confirm(at(30));
        assert_eq!(election.leadership(at(30)).unwrap().epoch, Epoch(5));
        election
    }

    /// Looks at the clock every 100 ms and answers nothing.
    fn walk(election: &mut Election, from: u64, to: u64) -> Vec<Step> {
        (from..to).step_by(100).map(|ms| election.next(at(ms), true, 0)).filter(|step| !matches!(step, Step::Wait(_))).collect()
    }

    #[test]
    fn a_lease_is_renewed_after_a_third_and_counted_from_before_it_was_asked_for() {
        let mut election = leading();
        assert_eq!(walk(&mut election, 100, 1000), []);
        assert!(matches!(election.next(at(1000), true, 0), Step::Renew(_)));
        election.answered(at(1040), Answer::Renewed);
        walk(&mut election, 1100, 2000);
        assert!(matches!(election.next(at(2000), true, 0), Step::Renew(_)));
        walk(&mut election, 2100, 3000);
        assert!(election.leadership(at(2999)).is_some());
        assert_eq!(election.leadership(at(3000)), None, "two thirds after the last answered renewal was sent");
    }

    #[test]
    fn an_unanswered_renewal_ends_leadership_at_two_thirds_and_the_lease_is_given_back() {
        let mut election = leading();
        let steps = walk(&mut election, 100, 2200);
        assert_eq!(steps.len(), 1, "one call at a time: {steps:?}");
        assert!(election.take_events().contains(&Event::SteppedDown(Epoch(5), SteppedDown::Expired)));
        election.answered(at(2200), Answer::Unknown);
        assert!(matches!(election.next(at(2200), true, 0), Step::Release(_)));
    }

    #[test]
    fn a_gap_between_two_looks_ends_leadership_first() {
        let mut election = leading();
        walk(&mut election, 100, 600);
        assert_eq!(election.leadership(at(500 + 501)), None);
        assert!(matches!(election.next(at(1100), true, 0), Step::Release(_)));
        assert!(election.take_events().contains(&Event::SteppedDown(Epoch(5), SteppedDown::Paused)));
    }

    #[test]
    fn an_epoch_at_the_floor_is_not_led_with() {
        let mut election = election(Role::Master);
        election.next(at(0), true, 0);
        election.answered(at(10), Answer::Acquired(Epoch(4)));
        assert_eq!(election.unconfirmed(), None);
        assert!(matches!(election.next(at(20), true, 0), Step::Release(_)));
    }

    #[test]
    fn a_lease_whose_answer_was_lost_is_given_back_and_asked_for_again() {
        let mut election = election(Role::Master);
        election.next(at(0), true, 0);
        election.answered(at(60), Answer::Unknown);
        let mine = Leadership { incarnation: Incarnation::new("n1".parse().unwrap(), 1), epoch: Epoch(5) };
        assert_eq!(election.next(at(500), true, 0), Step::Acquire(Epoch(4)));
        election.answered(at(510), Answer::Held(mine.clone(), TTL));
        assert_eq!(election.next(at(520), true, 0), Step::Release(mine));
        election.answered(at(530), Answer::Released);
        assert!(walk(&mut election, 600, 1200).contains(&Step::Acquire(Epoch(4))));
    }

    #[test]
    fn workers_never_stand_and_standby_nodes_only_without_a_master() {
        assert_eq!(walk(&mut election(Role::Worker), 0, 5000), []);
        let mut standby = election(Role::Standby);
        assert!(matches!(standby.next(at(0), true, 0), Step::Wait(_)));
        assert_eq!(standby.next(at(600), false, 0), Step::Acquire(Epoch(4)));
    }

    #[test]
    fn a_higher_epoch_ends_leadership_and_is_the_floor_of_the_next() {
        let mut election = leading();
        election.saw_epoch(Epoch(9));
        assert_eq!(election.leadership(at(40)), None);
        assert!(matches!(election.next(at(40), true, 0), Step::Release(_)));
        election.answered(at(50), Answer::Released);
        assert!(walk(&mut election, 100, 700).contains(&Step::Acquire(Epoch(9))));
    }

    /// A follower named its last leader for as long as Valkey was away.
    #[test]
    fn a_leader_of_whom_nothing_is_heard_is_forgotten() {
        let leader = Leadership { incarnation: Incarnation::new("n2".parse().unwrap(), 2), epoch: Epoch(5) };
        let mut follower = election(Role::Worker);
        follower.saw_leader(at(0), Some(leader.clone()));
        walk(&mut follower, 100, 2000);
        follower.saw_leader(at(2000), Some(leader.clone()));
        assert_eq!(follower.take_events(), [Event::LeaderChanged(Some(leader.clone()))]);
        walk(&mut follower, 2100, 6000);
        assert_eq!(follower.leader(), Some(&leader));
        walk(&mut follower, 6000, 6100);
        assert_eq!((follower.leader().cloned(), follower.take_events()), (None, vec![Event::LeaderChanged(None)]));
        follower.saw_leader(at(6100), Some(leader.clone()));
        assert_eq!(follower.leader(), Some(&leader));
        // One that leads hears of itself by its own renewals.
        let mut leader = leading();
        for ms in (1000..20_000).step_by(1000) {
            walk(&mut leader, ms - 900, ms);
            assert!(matches!(leader.next(at(ms), true, 0), Step::Renew(_)));
            leader.answered(at(ms + 10), Answer::Renewed);
            assert!(leader.leader().is_some());
        }
    }

    #[test]
    fn a_node_that_is_not_fit_does_not_stand() {
        let mut election = election(Role::Master);
        election.set_fit(false);
        assert_eq!(walk(&mut election, 0, 5000), []);
        election.set_fit(true);
        assert!(matches!(walk(&mut election, 5000, 6000)[..], [Step::Acquire(_)]));
    }

    #[test]
    fn after_a_hand_over_others_go_first() {
        let mut election = leading();
        election.hand_over(at(100));
        assert_eq!(election.leadership(at(100)), None);
        assert!(matches!(election.next(at(100), true, 0), Step::Release(_)));
        election.answered(at(110), Answer::Released);
        assert_eq!(walk(&mut election, 200, 3000), []);
        assert!(matches!(walk(&mut election, 3100, 3900)[..], [Step::Acquire(_)]));
    }
}
