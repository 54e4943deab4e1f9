//! Dispatches between shards: to the home of their destination, and back with what came of them.
//!
//! The owner keeps the dispatch; what travels is a [`Parcel`] with what an attempt needs. The home's queue serves it in turn with
//! the home's own mail ([`ringpost_queue::Guest`]), and each parcel goes back exactly once: settled, unreachable, refused, or given
//! up because the home ends. The owner then does with its dispatch what it does after an attempt of its own.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, HashSet, VecDeque},
    rc::Rc,
};

use ringpost_lane::{MeshCredit, Refusal};
use ringpost_queue::{Countermand, DestinationId, Dispatch, Guest, MessageKey, Queue, QueueId, Refused, Wait};
use ringpost_ring::PageSlice;
use slab::Slab;

use crate::{
    attempt::{Attempt, AttemptStorage, RecipientOutcome},
    mesh::{ShardReply, ShardRequest},
    pool_limits::PoolLimits,
    record_id::record_id,
    remote_content::Fetches,
    shard::Shard,
    stored_envelope::MessageRecord,
};

/// Dispatches that one shard has out at one other at most. As many again of the lane's window are for content.
const OUT_PER_PEER_MAX: u32 = 512;
/// Parcels of one shard that carry their content along at most: each keeps a batch of it in memory, where it is anyway for a second.
const ATTACHED_MAX: usize = 128;
/// Parcels kept for the next dispatches.
const SPARE_MAX: usize = 256;
/// A home that ends is asked again after this, and another then, if this shard does not end, too.
const ENDED_MS: u64 = 1000;

/// How a dispatch ended at its home.
#[derive(Default)]
enum End {
    /// Not yet.
    #[default]
    Open,
    /// Outcomes are in the storage.
    Settled,
    /// No host could be reached; nothing can be done before `until` (unix ms).
    Unreachable { until: u64, wait: Wait, reason: String },
    /// It was not tried, and would not be before `until`.
    Refused { until: u64, wait: Wait, reason: String },
    /// A command has come before it was sent.
    TakenBack,
    /// The home ends.
    GivenUp,
}

/// A dispatch on its way to its home and back. Its memory is used again by its owner.
#[derive(Default)]
pub(crate) struct Parcel {
    guest: Guest,
    /// The message record, while it was in memory when the dispatch left, and the number of its chunks.
    record: Option<(PageSlice, u32)>,
    storage: AttemptStorage,
    /// Who gave the outcomes.
    relay: String,
    /// The mail log has them.
    is_logged: bool,
    /// What other hosts said that the log has not: of the last one, and of those before it that could not be told at once.
    for_log: Vec<(Vec<RecipientOutcome>, String)>,
    end: End,
    /// What others of its owner's wait for at the home.
    busy_with: Wait,
}

/// What some recipients of a dispatch came to at its home, while others are still under way there.
pub(crate) struct PartOutcomes {
    /// The owner's, of the dispatch.
    call: u32,
    outcomes: Vec<RecipientOutcome>,
    /// The mail log has them.
    is_logged: bool,
    /// Of those that go on to the next host: for the mail log alone.
    put_off: Vec<RecipientOutcome>,
    relay: String,
}

/// A dispatch that is out.
struct Out {
    dispatch: Dispatch,
    home: u16,
    /// It was sent; else it waits for room in the lane.
    sent: bool,
    attached: bool,
    countermand: Countermand,
    /// Whether it may go on was asked last then (unix ms).
    asked_at: Cell<u64>,
}

/// A guest here.
struct GuestCall {
    /// The duty to answer its owner.
    credit: MeshCredit,
    parcel: Box<Parcel>,
}

/// What a shard keeps of its dispatches elsewhere, and of those of others here.
#[derive(Default)]
pub(crate) struct HomeCalls {
    out: RefCell<Slab<Out>>,
    /// By shard: dispatches that were sent, and those that wait for room.
    sent: RefCell<Vec<u32>>,
    waiting: RefCell<Vec<VecDeque<u32>>>,
    attached: Cell<usize>,
    #[expect(clippy::vec_box, reason = "they travel in their boxes")]
    spare: RefCell<Vec<Box<Parcel>>>,
    guests: RefCell<Slab<GuestCall>>,
    /// Nothing that is out comes to an end before (unix ms); `None`: not at all.
    nearest_end: Cell<Option<u64>>,
    pub(crate) fetches: Fetches,
}

impl HomeCalls {
    pub(crate) fn new(shards: u16) -> HomeCalls {
        let shards = usize::from(shards);
        HomeCalls { sent: RefCell::new(vec![0; shards]), waiting: RefCell::new(vec![VecDeque::new(); shards]), ..HomeCalls::default() }
    }

    /// Every guest was answered.
    pub(crate) fn is_quiet(&self) -> bool {
        self.guests.borrow().is_empty()
    }

    /// Dispatches of this shard at others.
    pub(crate) fn out(&self) -> usize {
        self.out.borrow().len()
    }

    /// Dispatches of others here.
    pub(crate) fn guests(&self) -> usize {
        self.guests.borrow().len()
    }

    /// Has this shard anything out at `peer`?
    pub(crate) fn is_waiting_for(&self, peer: u16) -> bool {
        self.sent.borrow()[usize::from(peer)] > 0 || self.fetches.is_waiting_for(peer)
    }

    /// The owner of a guest, and its message record if it was sent along.
    pub(crate) fn attached(&self, guest: &Guest) -> Option<(PageSlice, u32)> {
        self.guests.borrow().get(guest.home_call as usize)?.parcel.record.clone()
    }
}

/// The ends of what is out: of what is not begun, and of what is.
fn ends_of(queue: &Queue, dispatch: &Dispatch) -> impl Iterator<Item = u64> {
    [queue.end_at(dispatch), queue.own_end(dispatch)].into_iter().flatten()
}

/// The ends that are to come of one that is out.
fn note_nearest(nearest: &Cell<Option<u64>>, queue: &Queue, dispatch: &Dispatch, now: u64) {
    nearest.set(ends_of(queue, dispatch).filter(|&end| end > now).chain(nearest.get()).min());
}

/// The owner's side.
impl Shard {
    /// Has the attempt made by the home of its destination.
    pub(crate) fn send_home(&self, dispatch: Dispatch, home: u16) {
        note_nearest(&self.homes.nearest_end, &self.queue.borrow(), &dispatch, 0);
        let out = Out { dispatch, home, sent: false, attached: false, countermand: Countermand::default(), asked_at: Cell::new(0) };
        let call = self.homes.out.borrow_mut().insert(out);
        let call = u32::try_from(call).expect("credits bound the dispatches that are out");
        let is_first = self.homes.waiting.borrow()[usize::from(home)].is_empty();
        if !is_first || !self.launch(call, home) {
            self.homes.waiting.borrow_mut()[usize::from(home)].push_back(call);
        }
    }

    /// Sends a dispatch that is out; false when there is no room now. What makes room is an answer or the bell.
    fn launch(&self, call: u32, home: u16) -> bool {
        if self.homes.sent.borrow()[usize::from(home)] >= OUT_PER_PEER_MAX {
            return false;
        }
        let permit = match self.mesh.reserve(home) {
            Ok(permit) => permit,
            Err(Refusal::LaneFull | Refusal::WindowFull) => return false,
            Err(Refusal::Closed) => {
                self.come_back(call, End::GivenUp, None);
                return true;
            }
        };
        let mut parcel = self.homes.spare.borrow_mut().pop().unwrap_or_default();
        let mut out = self.homes.out.borrow_mut();
        let out = out.get_mut(call as usize).expect("it is out");
        self.queue.borrow_mut().describe(&out.dispatch, call, &mut parcel.guest);
        out.countermand = parcel.guest.countermand();
        if self.homes.attached.get() < ATTACHED_MAX {
            let id = parcel.guest.id();
            let record = self.committer_of(id.shard).and_then(|log| MessageRecord::in_memory(&log, record_id(id)));
            parcel.record = record.map(MessageRecord::into_parts);
        }
        out.attached = parcel.record.is_some();
        out.sent = true;
        self.homes.attached.set(self.homes.attached.get() + usize::from(out.attached));
        self.homes.sent.borrow_mut()[usize::from(home)] += 1;
        self.metrics.dispatched_to_homes.increment();
        self.mesh.send(permit, ShardRequest::Dispatch(parcel));
        true
    }

    /// Recipients that wait for room in the lane to their destination's home, by the destination's name.
    pub(crate) fn unsent_by_destination(&self) -> Vec<(String, u64)> {
        let (queue, out) = (self.queue.borrow(), self.homes.out.borrow());
        let unsent = out.iter().filter(|(_, out)| !out.sent).filter_map(|(_, out)| {
            let number = queue.recipients(&out.dispatch).next()?.0;
            let view = queue.show(out.dispatch.key())?;
            let name = view.recipients().nth(number.into())?.destination_name().to_owned();
            Some((name, out.dispatch.recipients() as u64))
        });
        unsent.collect()
    }

    /// Of these messages, those recipients that wait here for their turn, or for room in the lane to their home.
    pub(crate) fn in_turn_of(&self, ids: Vec<QueueId>) -> Vec<(QueueId, Vec<u16>)> {
        let ids: BTreeSet<QueueId> = ids.into_iter().collect();
        let (queue, out) = (self.queue.borrow(), self.homes.out.borrow());
        let mut found = queue.guests_in_turn_of(&ids);
        for (_, out) in out.iter().filter(|(_, out)| !out.sent) {
            let id = queue.envelope(out.dispatch.key()).map(|envelope| envelope.id).filter(|id| ids.contains(id));
            found.extend(id.map(|id| (id, queue.recipients(&out.dispatch).map(|(number, _)| number).collect())));
        }
        found
    }

    /// These messages were changed by command: what of them is at other shards, and may not go on, begins nothing more there. What waits for room
    /// in the lane stays here. And what is attempted here hears of it.
    pub(crate) fn countermand(self: &Rc<Self>, changed: &[MessageKey]) {
        let changed: HashSet<MessageKey> = changed.iter().copied().collect();
        self.ungreeted.call(|message| message.is_some_and(|message| changed.contains(&message)));
        let (mut unsent, mut homes) = (Vec::new(), BTreeSet::new());
        {
            let out = self.homes.out.borrow();
            let (mut queue, now) = (self.queue.borrow_mut(), self.now_ms());
            for (call, out) in out.iter().filter(|(_, out)| changed.contains(&out.dispatch.key())) {
                out.asked_at.set(now);
                note_nearest(&self.homes.nearest_end, &queue, &out.dispatch, now);
                let is_over = queue.is_over(&out.dispatch, now);
                let mut stopped: Vec<u16> = queue.recipients(&out.dispatch).map(|(number, _)| number).collect();
                stopped.retain(|number| !queue.may_go_on(&out.dispatch, *number, now));
                match (stopped.is_empty() && !is_over, out.sent) {
                    (true, _) => {}
                    (false, true) => {
                        if is_over {
                            out.countermand.end();
                        }
                        if !stopped.is_empty() {
                            out.countermand.give(stopped.into_iter().map(|number| (number, queue.is_purged(&out.dispatch, number))));
                        }
                        homes.insert(out.home);
                    }
                    (false, false) => unsent.push((call as u32, usize::from(out.home))),
                }
            }
        }
        for (call, home) in unsent {
            self.homes.waiting.borrow_mut()[home].retain(|waiting| *waiting != call);
            self.come_back(call, End::TakenBack, None);
        }
        self.call_homes(homes);
    }

    /// What is out and has come to the end of its life since it was asked for comes home, unless it is being attempted: it expires where it waits.
    pub(crate) fn end_what_is_out(self: &Rc<Self>) {
        let now = self.now_ms();
        if self.homes.nearest_end.get().is_none_or(|at| now < at) {
            return;
        }
        let mut over = Vec::new();
        {
            let (queue, out) = (self.queue.borrow(), self.homes.out.borrow());
            self.homes.nearest_end.set(None);
            for (_, out) in out.iter() {
                note_nearest(&self.homes.nearest_end, &queue, &out.dispatch, now);
                if ends_of(&queue, &out.dispatch).any(|end| end <= now && end > out.asked_at.get()) {
                    over.push(out.dispatch.key());
                }
            }
        }
        if !over.is_empty() {
            self.countermand(&over);
        }
    }

    /// When [`Shard::end_what_is_out`] has something to do (unix ms).
    pub(crate) fn out_ends_at(&self) -> Option<u64> {
        self.homes.nearest_end.get()
    }

    /// There may be room in the lanes again.
    pub(crate) fn launch_waiting(&self) {
        for home in 0..self.shards {
            loop {
                let Some(call) = self.homes.waiting.borrow()[usize::from(home)].front().copied() else { break };
                if !self.launch(call, home) {
                    break;
                }
                self.homes.waiting.borrow_mut()[usize::from(home)].pop_front();
            }
        }
    }

    /// A parcel is back.
    pub(crate) fn take_back(&self, mut parcel: Box<Parcel>) {
        let end = std::mem::take(&mut parcel.end);
        self.come_back(parcel.guest.owner_call, end, Some(&mut parcel));
        let mut spare = self.homes.spare.borrow_mut();
        if spare.len() < SPARE_MAX {
            parcel.record = None;
            parcel.for_log.clear();
            spare.push(parcel);
        }
    }

    fn come_back(&self, call: u32, end: End, parcel: Option<&mut Parcel>) {
        let Out { mut dispatch, home, sent, attached, .. } = self.homes.out.borrow_mut().remove(call as usize);
        if sent {
            self.homes.sent.borrow_mut()[usize::from(home)] -= 1;
            self.homes.attached.set(self.homes.attached.get() - usize::from(attached));
        }
        match (end, parcel) {
            (End::Settled, Some(parcel)) => {
                dispatch.weigh_as(&parcel.guest);
                self.queue.borrow_mut().home_said(&dispatch, parcel.busy_with);
                // The parcel leaves with other vectors, so that the next outcomes find room in them.
                let storage = std::mem::replace(&mut parcel.storage, self.delivery.storage());
                for (outcomes, relay) in parcel.for_log.drain(..) {
                    self.log_outcomes(&dispatch, &outcomes, &relay, self.now_ms());
                }
                let attempt = Attempt::decided(dispatch, storage);
                match parcel.is_logged {
                    true => self.settle_logged(attempt, &parcel.relay),
                    false => self.settle_attempt(attempt, &parcel.relay),
                }
            }
            (End::Unreachable { until, wait, reason }, _) => {
                self.queue.borrow_mut().home_sleeps(&dispatch, until, wait, &reason, self.now_ms());
                self.attempt_unreachable(dispatch);
            }
            (End::Refused { until, wait, reason }, _) => {
                self.metrics.homes_refused.increment();
                self.queue.borrow_mut().home_sleeps(&dispatch, until, wait, &reason, self.now_ms());
                self.attempt_abandoned(dispatch);
            }
            (End::TakenBack, _) => self.attempt_abandoned(dispatch),
            (End::GivenUp | End::Open | End::Settled, _) => {
                let now = self.now_ms();
                let until = now + ENDED_MS;
                let reason = "the shard that delivers there has ended";
                self.queue.borrow_mut().home_sleeps(&dispatch, until, Wait::Shortage { until }, reason, now);
                self.attempt_abandoned(dispatch);
            }
        }
    }

    /// Some recipients of a dispatch are decided: the rest comes behind it on the same lane.
    pub(crate) fn take_part(&self, part: PartOutcomes) {
        let PartOutcomes { call, outcomes, is_logged, put_off, relay } = part;
        if let Some(Out { dispatch, .. }) = self.homes.out.borrow_mut().get_mut(call as usize) {
            self.log_outcomes(dispatch, &put_off, &relay, self.now_ms());
            let settled = match (outcomes.is_empty(), is_logged) {
                (true, _) => Ok(()),
                (false, true) => self.settle_some_logged(dispatch, outcomes, &relay),
                (false, false) => self.settle_some(dispatch, outcomes, &relay),
            };
            debug_assert!(settled.is_ok(), "it is this shard's own");
        }
    }

    /// The thread of `peer` has ended: what it was sent does not come back by itself.
    pub(crate) fn forget_peer(&self, peer: u16) {
        let lost: Vec<u32> =
            self.homes.out.borrow().iter().filter(|(_, out)| out.home == peer && out.sent).map(|(call, _)| call as u32).collect();
        for call in lost {
            self.come_back(call, End::GivenUp, None);
        }
        self.homes.fetches.forget_peer(peer);
    }

    /// This shard ends: what waits for room is not sent any more, and guests that wait go home.
    fn end_homes(&self) {
        for home in 0..usize::from(self.shards) {
            let waiting = std::mem::take(&mut self.homes.waiting.borrow_mut()[home]);
            for call in waiting {
                self.come_back(call, End::GivenUp, None);
            }
        }
        self.queue.borrow_mut().refuse_all(self.now_ms());
        self.answer_refused();
    }
}

/// The home's side.
impl Shard {
    /// How this shard keeps its connections to a destination: its part of what holds for the node.
    pub(crate) fn pool_limits(&self, destination: DestinationId) -> PoolLimits {
        let queue = self.queue.borrow();
        let limits = self.pool.limits(queue.route_of(destination));
        let part_of = |limit: usize| queue.part_of(destination, u32::try_from(limit).unwrap_or(u32::MAX)) as usize;
        PoolLimits {
            min_idle: part_of(limits.min_idle),
            max_idle: part_of(limits.max_idle),
            connections_max: queue.connections_now(destination, self.now_ms()).min(limits.connections_max),
            ..limits
        }
    }

    /// Takes in a dispatch of another shard.
    pub(crate) fn receive_dispatch(self: &Rc<Self>, mut parcel: Box<Parcel>, credit: MeshCredit) {
        self.metrics.dispatched_for_others.increment();
        let mut guest = std::mem::take(&mut parcel.guest);
        let call = self.homes.guests.borrow_mut().insert(GuestCall { credit, parcel });
        guest.home_call = u32::try_from(call).expect("the windows of all lanes bound the guests");
        if self.is_ending() {
            return self.answer(guest, End::GivenUp);
        }
        let received = self.queue.borrow_mut().receive(guest, self.now_ms());
        if let Err(guest) = received {
            // Only while the limits of this shard and those of the owner are of different configs.
            let until = self.now_ms() + ENDED_MS;
            let reason = "the shards are changing over to new limits".to_owned();
            self.answer(guest, End::Refused { until, wait: Wait::Shortage { until }, reason });
        }
        self.delivery.kick();
    }

    /// Sends a guest home.
    fn answer(&self, guest: Guest, end: End) {
        let GuestCall { credit, mut parcel } = self.homes.guests.borrow_mut().remove(guest.home_call as usize);
        // The content is the owner's again as soon as possible.
        parcel.record = None;
        parcel.guest = guest;
        parcel.end = end;
        self.mesh.reply(credit, ShardReply::Dispatch(parcel));
        if self.is_ending() {
            self.wake_life();
        }
    }

    /// After each look at the queue: guests that it does not want go home.
    pub(crate) fn tend_guests(&self) {
        if self.is_ending() {
            self.end_homes();
        } else {
            self.answer_refused();
        }
    }

    /// A look at the queue for a connection may have refused guests: the delivery's task sends them home.
    pub(crate) fn note_refused(&self) {
        if self.shards > 1 && self.queue.borrow().has_refused() {
            self.delivery.kick();
        }
    }

    /// Sends those home that are not to be tried now.
    fn answer_refused(&self) {
        loop {
            let Some(refused) = self.queue.borrow_mut().take_refused() else { return };
            let Refused { guest, until, wait, reason } = refused;
            self.answer(guest, if self.is_ending() { End::GivenUp } else { End::Refused { until, wait, reason } });
        }
    }

    /// As [`Shard::settle_some`], for a guest; `is_logged`: as [`Shard::settle_some_logged`].
    pub(crate) fn tell_owner(
        &self,
        dispatch: &mut Dispatch,
        outcomes: Vec<RecipientOutcome>,
        is_logged: bool,
        relay: &str,
    ) -> Result<(), Vec<RecipientOutcome>> {
        self.tell_owner_of(dispatch, outcomes, is_logged, &[], relay)
    }

    /// The host at `relay` decided `decided` of a guest, and put the others off, in the words of `put_off`, which go on to the next host: that is
    /// for the owner's mail log. `decided` comes back when it cannot be told just now.
    pub(crate) fn tell_owner_what_goes_on(
        &self,
        dispatch: &mut Dispatch,
        decided: Vec<RecipientOutcome>,
        put_off: Vec<RecipientOutcome>,
        relay: &str,
    ) -> Result<(), Vec<RecipientOutcome>> {
        let is_any_decided = !decided.is_empty();
        match self.tell_owner_of(dispatch, decided, false, &put_off, relay) {
            Err(decided) if is_any_decided => return Err(decided),
            Err(_) => self.keep_for_log(dispatch, put_off, relay),
            Ok(()) => {}
        }
        Ok(())
    }

    /// What a host said of a guest goes to its owner's mail log with the end of the attempt, whose word is another host's.
    pub(crate) fn keep_for_log(&self, dispatch: &Dispatch, outcomes: Vec<RecipientOutcome>, relay: &str) {
        let Some(call) = self.queue.borrow().guest(dispatch).map(|guest| guest.home_call) else { return };
        if let Some(call) = self.homes.guests.borrow_mut().get_mut(call as usize) {
            call.parcel.for_log.push((outcomes, relay.to_owned()));
        }
    }

    fn tell_owner_of(
        &self,
        dispatch: &mut Dispatch,
        outcomes: Vec<RecipientOutcome>,
        is_logged: bool,
        put_off: &[RecipientOutcome],
        relay: &str,
    ) -> Result<(), Vec<RecipientOutcome>> {
        let queue = self.queue.borrow();
        let guest = queue.guest(dispatch).expect("it leaves with its dispatch");
        let (owner, call) = (guest.owner(), guest.owner_call);
        let Ok(permit) = self.mesh.reserve(owner) else { return Err(outcomes) };
        let told: Vec<_> = outcomes.iter().map(|outcome| (outcome.recipient, outcome.outcome())).collect();
        dispatch.told_some(&told);
        let part = PartOutcomes { call, outcomes, is_logged, put_off: put_off.to_vec(), relay: relay.to_owned() };
        self.mesh.send(permit, ShardRequest::Outcomes(Box::new(part)));
        Ok(())
    }

    /// As [`Shard::settle_attempt`], for a guest; `is_logged`: as [`Shard::settle_logged`].
    pub(crate) fn settle_guest(&self, attempt: Attempt, is_logged: bool, relay: &str) {
        let Attempt { dispatch, mut storage, .. } = attempt;
        let destination = dispatch.destination();
        let guest = {
            let mut queue = self.queue.borrow_mut();
            match &*storage.outcomes {
                [only] => queue.settle_guest(dispatch, &[(only.recipient, only.outcome())], self.now_ms()),
                many => {
                    let outcomes: Vec<_> = many.iter().map(|outcome| (outcome.recipient, outcome.outcome())).collect();
                    queue.settle_guest(dispatch, &outcomes, self.now_ms())
                }
            }
        };
        if let Some(call) = self.homes.guests.borrow_mut().get_mut(guest.home_call as usize) {
            std::mem::swap(&mut call.parcel.storage, &mut storage);
            call.parcel.busy_with = self.queue.borrow().guests_wait_for(destination, self.now_ms());
            call.parcel.relay.clear();
            call.parcel.relay.push_str(relay);
            call.parcel.is_logged = is_logged;
        }
        self.delivery.keep_storage(storage);
        self.answer(guest, End::Settled);
        self.delivery.attempt_ended(self);
    }

    /// As [`Shard::attempt_unreachable`], for a guest.
    pub(crate) fn guest_unreachable(&self, dispatch: Dispatch) {
        let Refused { guest, until, wait, reason } = self.queue.borrow_mut().unreachable_guest(dispatch, self.now_ms());
        self.answer(guest, End::Unreachable { until, wait, reason });
        self.delivery.attempt_ended(self);
    }

    /// As [`Shard::attempt_put_off`], for a guest.
    pub(crate) fn guest_put_off(&self, dispatch: Dispatch) {
        let Refused { guest, until, wait, reason } = self.queue.borrow_mut().put_off_guest(dispatch, self.now_ms());
        self.answer(guest, End::Refused { until, wait, reason });
        self.delivery.attempt_ended(self);
    }

    /// As [`Shard::attempt_abandoned`], for a guest.
    pub(crate) fn guest_abandoned(&self, dispatch: Dispatch) {
        let guest = self.queue.borrow_mut().abandon_guest(dispatch, self.is_ending(), self.now_ms());
        if let Some(guest) = guest {
            self.answer(guest, End::GivenUp);
        }
        self.delivery.attempt_ended(self);
    }
}
