//! Standing for election, leading and stepping down (L1 to L4, L8 to L11).
//!
//! Pure: [`Election::next`] says which call to send, [`Election::answered`] takes what came of it. One call is under way at a time.
//! A lease is counted from before it was asked for and ends here before it ends in Valkey; nobody depends on there being a leader.

use std::time::Duration;

use crate::{
    boot_time::BootTime,
    identity::{EPOCH_JUMP_MAX, Epoch, Incarnation, Leadership, Role},
};

mod vacancy;

use vacancy::Vacancy;

/// A number that was seen counts for the own next epoch up to here above what is accepted: the election that follows must still be in reach
/// of everybody's fence.
const SEEN_JUMP_MAX: u64 = EPOCH_JUMP_MAX / 2;
/// What makes a heartbeat later than its interval: the shards are asked first, and the call has its deadline.
const HEARTBEAT_LATE_MAX: Duration = Duration::from_secs(1);

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
    /// Renewals every third of `ttl`, a guard of a sixth, polls of a sixth. Nodes that do not stand hear of the leader each `heartbeat`, of
    /// which one can be lost.
    pub fn of(ttl: Duration, heartbeat: Duration) -> ElectionTimes {
        ElectionTimes { ttl, poll: ttl / 6, guard: ttl / 6, forgotten_after: ttl + heartbeat * 2 + HEARTBEAT_LATE_MAX }
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
    /// Read who has the lease: a standby watches it.
    Look,
}

/// What came of a call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Acquire: the lease is ours.
    Acquired(Epoch),
    /// Acquire: the lease was ours, fewer replicas than are required got it in time, and it was given back (L7).
    NotReplicated(Epoch),
    /// Acquire: somebody has it, for so long.
    Held(Leadership, Duration),
    /// Renew: done.
    Renewed,
    /// Renew: not ours any more, or the epoch was raised to this meanwhile.
    Lost(Epoch),
    /// Release: done, or it was not ours.
    Released,
    /// Look: who has the lease.
    Seen(Option<Leadership>),
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
    /// An epoch further above the accepted one than elections lead was seen, and refused.
    OutOfReach(Epoch),
    /// This node would lead, but for the replicas that are required.
    NotReplicated(Epoch),
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
    /// The node is in no state to lead.
    Unfit,
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
    /// What this node has accepted, durably.
    accepted: Epoch,
    /// The own next epoch is above this: what was accepted or seen.
    floor: Epoch,
    /// The call under way: what it was and when it was sent.
    sent: Option<(Step, BootTime)>,
    next_call: BootTime,
    /// Does not stand before that time: others go first after a hand-over.
    rests_until: BootTime,
    /// Nor before this: replicas are missing, for whoever asks.
    replicas_missing_until: BootTime,
    /// Of the last poll, up to half of one.
    jitter: Duration,
    is_fit: bool,
    last_look: Option<BootTime>,
    leader: Option<Leadership>,
    /// Of the lease, as a standby watches it.
    vacancy: Vacancy,
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
            accepted: floor,
            floor,
            sent: None,
            next_call: BootTime::default(),
            rests_until: BootTime::default(),
            replicas_missing_until: BootTime::default(),
            jitter: Duration::ZERO,
            is_fit: true,
            last_look: None,
            leader: None,
            vacancy: Vacancy::default(),
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

    /// This node has accepted `epoch`, durably.
    pub fn accepted(&mut self, epoch: Epoch) {
        self.accepted = self.accepted.max(epoch);
        self.floor = self.floor.max(epoch);
    }

    /// The own floor has the epoch, durably: lead.
    pub fn confirm(&mut self, now: BootTime) {
        self.look(now);
        if let State::Elected { epoch, valid_until } = self.state {
            self.accepted(epoch);
            self.state = State::Leading { epoch, valid_until };
            self.events.push(Event::Elected(epoch));
            self.hear_of(now, Some(Leadership { incarnation: self.me.clone(), epoch }));
        }
    }

    /// What the caller logs and acts on, in order.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// The next step. `masters_alive` counts for a standby only, which stands without any, and when none has taken a free lease for half of its
    /// length; `random` makes the polls of the nodes differ.
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
                    // Fencing makes it harmless where a master that is there was only late.
                    Role::Standby => !masters_alive || self.vacancy.is_lasting(now, self.times.ttl),
                };
                // Jitter of half a poll: two nodes that saw a lease end do not ask at the same moment for ever.
                self.jitter = self.times.poll / 2 * u32::try_from(random % 1024).expect("below 1024") / 1024;
                self.next_call = now + self.times.poll + self.jitter;
                let has_rested = now >= self.rests_until.max(self.replicas_missing_until);
                if stands && self.is_fit && has_rested {
                    Step::Acquire(self.floor)
                } else if self.role == Role::Standby {
                    Step::Look
                } else {
                    Step::Wait(self.next_call)
                }
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
            (Step::Acquire(_), Answer::NotReplicated(epoch)) => {
                // Asked again at once it would be the same, with one more epoch.
                self.replicas_missing_until = now + self.times.ttl + self.jitter;
                self.events.push(Event::NotReplicated(epoch));
            }
            (Step::Acquire(_), Answer::Held(leader, remaining)) => {
                self.vacancy.saw(sent_at, false, self.times.ttl);
                if self.gives_back(&leader) {
                    return;
                }
                if remaining > self.times.ttl * 2 {
                    self.events.push(Event::FrozenLease(remaining));
                }
                self.saw_leader(now, Some(leader));
            }
            (Step::Look, Answer::Seen(leader)) => {
                self.vacancy.saw(sent_at, leader.is_none(), self.times.ttl);
                if leader.as_ref().is_some_and(|leader| self.gives_back(leader)) {
                    return;
                }
                if let Some(due) = self.vacancy.due().filter(|due| *due > now) {
                    self.next_call = self.next_call.min(due);
                }
                self.saw_leader(now, leader);
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
            (Step::Acquire(_) | Step::Look | Step::Wait(_), _) => {}
        }
    }

    /// Our own lease, of a call whose answer was lost. When it began is unknown, so it is given back.
    fn gives_back(&mut self, holder: &Leadership) -> bool {
        let is_lost = holder.incarnation == self.me && matches!(self.state, State::Following);
        if is_lost {
            self.state = State::Releasing { epoch: holder.epoch };
        }
        is_lost
    }

    /// Epochs lower than this must not be used, says a heartbeat's answer. A leader of a lower one steps down.
    pub fn saw_epoch(&mut self, epoch: Epoch) {
        if !self.raise_floor(epoch) {
            return;
        }
        if let State::Leading { epoch: mine, .. } | State::Elected { epoch: mine, .. } = self.state
            && mine < epoch
        {
            self.step_down(SteppedDown::Outranked);
        }
    }

    /// A receiver refused our order because it has accepted `epoch`, from somebody else: that is at least ours.
    pub fn refused(&mut self, epoch: Epoch) {
        if !self.raise_floor(epoch) {
            return;
        }
        if let State::Leading { epoch: mine, .. } | State::Elected { epoch: mine, .. } = self.state
            && mine <= epoch
        {
            self.step_down(SteppedDown::Outranked);
        }
    }

    /// Somebody else told who leads (a heartbeat's answer); None: nobody.
    pub fn saw_leader(&mut self, now: BootTime, leader: Option<Leadership>) {
        if let Some(leader) = leader.as_ref().filter(|leader| !leader.epoch.is_within(EPOCH_JUMP_MAX, self.accepted)) {
            self.events.push(Event::OutOfReach(leader.epoch));
        } else if !matches!(self.state, State::Leading { .. }) {
            // Whom a later leader has followed leads nobody, however long its lease lasts that a failover has brought back.
            self.hear_of(now, leader.filter(|leader| leader.epoch >= self.accepted));
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

    /// A call is under way.
    pub fn is_asking(&self) -> bool {
        self.sent.is_some()
    }

    /// Whether this node is in a state to lead; while it is not, it neither leads nor stands.
    pub fn set_fit(&mut self, is_fit: bool) {
        self.is_fit = is_fit;
        if !is_fit {
            self.step_down(SteppedDown::Unfit);
        }
    }

    fn won(&mut self, now: BootTime, sent_at: BootTime, epoch: Epoch) {
        let valid_until = sent_at + self.times.validity();
        let is_in_reach = epoch.is_within(EPOCH_JUMP_MAX, self.accepted);
        if !is_in_reach {
            self.events.push(Event::OutOfReach(epoch));
            // Asked again at once it would be the same, with one more epoch, for each node that stands.
            self.rests_until = now + self.times.ttl;
        }
        // While the call was under way the node may have become unfit, or have been asked to let others go first.
        let may_lead = matches!(self.state, State::Following) && self.is_fit && now >= self.rests_until;
        // An epoch at or below the floor can come only from a Valkey that is not ours or not sound: nobody would follow.
        let is_usable = epoch > self.floor && is_in_reach && now < valid_until;
        if may_lead && is_usable {
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

    /// False: nothing that elections lead to, and nothing to go by.
    fn raise_floor(&mut self, epoch: Epoch) -> bool {
        let is_in_reach = epoch.is_within(SEEN_JUMP_MAX, self.accepted);
        if is_in_reach {
            self.floor = self.floor.max(epoch);
        } else {
            self.events.push(Event::OutOfReach(epoch));
        }
        is_in_reach
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
mod tests;
