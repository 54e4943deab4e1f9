//! Commands that change queued messages: a bounded number at a time between other tasks, confirmed when durable.

use std::{collections::HashMap, rc::Rc};

use ringpost_queue::{Filter, MessageKey, QueueId, RecipientView, RouteId, Settled, State};
use ringpost_smtp::shown::is_steering;

use crate::{
    control::{Answer, Change, ChangeOrder, Changed, EXPIRY_AHEAD_MAX, MessageFilter, REASON_BYTES_MAX, Recalled, Selection, time_text},
    listing::filter_of,
    mail_log::{Escaped, EscapedWord},
    queue_walk::QueueWalk,
    shard::Shard,
};

/// Messages changed before other tasks get their turn.
const CHANGES_PER_TURN: usize = 256;

/// Messages looked for, and changed, by one order at most: its answer says where the next one goes on.
const CHANGES_PER_ORDER: usize = 16_384;

/// Orders without a match end after so many pages, so that who waits for them hears something.
const PAGES_PER_ORDER: usize = 256;

/// The log takes no more: what was done before this was noticed is in memory alone.
const NOT_RECORDED: &str = "the engine's spool failed, or the engine is about to end: what was changed last is not on disk, and does not hold after the \
                            next start; repeat it then";
/// The same when the disk is full.
const NO_ROOM: &str = "the spool has no room left on its disk: what was changed last is in force but not on disk, and is forgotten at the next start unless \
     there is room before; make room, or delete messages";

/// Carries out an order and waits until it is durable.
pub(crate) async fn steer(shard: &Rc<Shard>, order: ChangeOrder) -> Answer {
    if let Err(reason) = shard.loaded_for_command().await {
        return Answer::Failed(reason);
    }
    let steering = match Steering::new(shard, &order.change) {
        Ok(steering) => steering,
        Err(reason) => return Answer::Failed(reason),
    };
    if !order.only_counts && !shard.keeps_records() {
        return Answer::Failed(
            "the engine's spool failed, or the engine is about to end: nothing was changed; repeat it after the next start".to_owned(),
        );
    }
    let mut course = Course::default();
    match order.selection {
        Selection::Ids(ids) => {
            for ids in ids.chunks(CHANGES_PER_TURN) {
                let keys: Vec<_> = ids.iter().filter_map(|id| shard.queue.borrow().key_of(*id)).collect();
                steering.apply_all(shard, &keys, &Filter::default(), &mut course).await;
                take_turns(shard).await;
            }
        }
        Selection::Matching(filter) => {
            if matches!(steering, Steering::Retry) {
                revive_named(shard, &filter);
            }
            let filter = match filter_of(&shard.queue.borrow(), &filter, shard.now_ms()) {
                Ok(Some(filter)) => filter,
                Ok(None) => return Answer::Changed(course.changed),
                Err(reason) => return Answer::Failed(reason),
            };
            // What comes meanwhile is not meant.
            let mut walk = match order.after {
                None => QueueWalk::begin(filter, shard.upcoming_id()),
                Some(rest) => QueueWalk::resume(filter, rest),
            };
            let (mut keys, mut pages) = (Vec::with_capacity(CHANGES_PER_TURN), 0);
            while let Some(rest) = walk.rest() {
                if course.changed.count >= CHANGES_PER_ORDER as u64 || pages == PAGES_PER_ORDER {
                    course.changed.next = Some(rest);
                    break;
                }
                keys.clear();
                let page = walk.page(&mut shard.queue.borrow_mut(), CHANGES_PER_TURN, |view| keys.push(view.key()));
                if let Err(lost) = page {
                    return Answer::Failed(lost.to_string());
                }
                pages += 1;
                match order.only_counts {
                    true => steering.count_partly_meant(shard, &keys, walk.filter(), &mut course.changed),
                    false => steering.apply_all(shard, &keys, walk.filter(), &mut course).await,
                }
                take_turns(shard).await;
            }
        }
    }
    shard.delivery.kick();
    shard.records_durable().await;
    if !order.only_counts && !shard.keeps_records() {
        return Answer::Failed(NOT_RECORDED.to_owned());
    }
    if course.records.lack_room(|settled| shard.lacks_room_for(settled)) {
        return Answer::Failed(NO_ROOM.to_owned());
    }
    Answer::Changed(course.changed)
}

/// Probes dead destinations, and asks DNS anew about domains, that a retry names, though no mail for them may be left: who names one has
/// mended it, and the next message is not to fail by what was known before.
fn revive_named(shard: &Shard, filter: &MessageFilter) {
    let (mut queue, now) = (shard.queue.borrow_mut(), shard.now_ms());
    for name in [&filter.domain, &filter.destination].into_iter().flatten() {
        let named: Vec<_> = queue.destinations_named(name).collect();
        named.into_iter().for_each(|destination| queue.revive(destination, now));
    }
}

/// Lets other tasks run, and goes on when what was changed so far found its room in a batch: acceptance comes first.
async fn take_turns(shard: &Rc<Shard>) {
    shard.delivery.kick();
    shard.ring.yield_now().await;
    shard.backlog_written().await;
}

/// The message's id, if it is in the cluster's queue.
fn given_out(shard: &Shard, key: MessageKey) -> Option<QueueId> {
    let queue = shard.queue.borrow();
    queue.show(key).filter(|view| view.is_given_out()).map(|view| view.envelope().id)
}

/// What came of a change of one message.
enum Applied {
    Changed,
    /// It was so already.
    Unchanged,
    /// Nothing that is meant of it is attempted any more.
    Failed,
    /// It is not queued, or all that could be changed of it is being attempted.
    Absent,
}

impl Changed {
    fn count_in(&mut self, applied: Applied) {
        match applied {
            Applied::Changed => self.count += 1,
            Applied::Unchanged => self.unchanged += 1,
            Applied::Failed => self.failed += 1,
            Applied::Absent => {}
        }
    }
}

/// What an order has come to.
#[derive(Default)]
struct Course {
    changed: Changed,
    records: Records,
}

/// The kinds of records of what an order has changed, each once: a purge of a whole message is a settled record, which finds room where nothing else does,
/// that of a part of one an outcome.
#[derive(Default)]
struct Records(Vec<Settled>);

impl Records {
    fn note(&mut self, settled: Settled) {
        if !self.0.contains(&settled) {
            self.0.push(settled);
        }
    }

    /// Is some of what was changed not on disk? That others' records wait says nothing of it.
    fn lack_room(&self, is_lacking: impl Fn(Settled) -> bool) -> bool {
        self.0.iter().any(|settled| is_lacking(*settled))
    }
}

/// What keeps all that is meant of a message from being attempted here, so that there is nothing to retry.
enum Kept {
    /// Until it is released, or goes by another route.
    Held,
    /// Another node of the cluster is to deliver it.
    Offered,
}

fn kept(shard: &Shard, key: MessageKey, filter: &Filter) -> Option<Kept> {
    let queue = shard.queue.borrow();
    let view = queue.show(key)?;
    let meant = || view.recipients().filter(|recipient| !recipient.is_settled() && recipient.matches(filter));
    meant().next()?;
    if view.is_held() || meant().all(|recipient| recipient.state() == State::Held) {
        return Some(Kept::Held);
    }
    meant().all(|recipient| recipient.state() == State::Offered).then_some(Kept::Offered)
}

/// Is nothing of what is meant of a message attempted any more? Its sender is to be told of a failure, or of a delivery.
fn is_over(shard: &Shard, key: MessageKey, filter: &Filter) -> bool {
    let queue = shard.queue.borrow();
    let Some(view) = queue.show(key).filter(|view| !view.is_closing()) else { return false };
    let mut meant = view.recipients().filter(|recipient| !recipient.is_settled() && recipient.matches(filter)).peekable();
    meant.peek().is_some() && meant.all(|recipient| !recipient.is_open())
}

/// A change with what has to be looked up once.
enum Steering {
    Retry,
    Hold,
    Release,
    Bounce(String),
    Purge,
    Reroute(RouteId, String),
    SetExpiry(u64),
}

impl Steering {
    fn new(shard: &Shard, change: &Change) -> Result<Self, String> {
        Ok(match change {
            Change::Retry {} => Self::Retry,
            Change::Hold {} => Self::Hold,
            Change::Release {} => Self::Release,
            Change::Bounce { reason } => {
                if reason.len() > REASON_BYTES_MAX {
                    let bytes = reason.len();
                    return Err(format!("the reason is {bytes} bytes long: at most {REASON_BYTES_MAX} fit into a report; say it shorter"));
                }
                if reason.contains(is_steering) {
                    return Err("the reason has a line break or another control character: it is one line of text".to_owned());
                }
                Self::Bounce(format!("554 5.0.0 {reason}"))
            }
            Change::Purge {} => Self::Purge,
            Change::Reroute { .. } if !shard.config().delivery.deliver => {
                return Err("this node delivers nothing (delivery.deliver = false): re-route where the mail is delivered".to_owned());
            }
            Change::Reroute { to } => {
                let route = shard.queue.borrow().route_named(to);
                let known = || {
                    format!(
                        "{to:?} is no route of the config; a route is named by its `domain`, exactly as it stands there, and with ` from ` and its sender behind it where it has one"
                    )
                };
                Self::Reroute(route.ok_or_else(known)?, to.clone())
            }
            Change::SetExpiry { at_ms } => {
                if *at_ms > shard.now_ms() + EXPIRY_AHEAD_MAX.as_millis() as u64 {
                    return Err(format!("an end of life is at most {} days ahead", EXPIRY_AHEAD_MAX.as_secs() / 86_400));
                }
                Self::SetExpiry(*at_ms)
            }
        })
    }

    /// Changes messages, at most [`CHANGES_PER_TURN`] of them. What is offered to the cluster is taken out of its queue before.
    async fn apply_all(&self, shard: &Rc<Shard>, keys: &[MessageKey], filter: &Filter, course: &mut Course) {
        let wanted: Vec<QueueId> = match self {
            Self::Retry | Self::Release => Vec::new(),
            _ => keys.iter().filter_map(|key| given_out(shard, *key)).collect(),
        };
        let answers = if wanted.is_empty() { HashMap::new() } else { shard.recall(&wanted).await };
        for &key in keys {
            if matches!(self, Self::Retry)
                && let Some(kept) = kept(shard, key, filter)
            {
                match kept {
                    Kept::Held => course.changed.held += 1,
                    Kept::Offered => course.changed.offered += 1,
                }
                continue;
            }
            let asked = given_out(shard, key).filter(|id| wanted.contains(id));
            let recalled = asked.map(|id| answers.get(&id).copied().unwrap_or(Recalled::Unanswered));
            match recalled {
                Some(Recalled::Taken) => course.changed.taken += 1,
                Some(Recalled::Unanswered) => course.changed.unanswered += 1,
                Some(Recalled::Out) => {
                    self.change_one(shard, key, filter, course);
                    shard.after_recall(key);
                }
                None => {
                    self.change_one(shard, key, filter, course);
                    if matches!(self, Self::Retry | Self::Release) {
                        shard.offer_what_is_open(key);
                    }
                }
            }
        }
        if !matches!(self, Self::Retry | Self::Release) {
            shard.countermand(keys);
        }
    }

    /// Counts the messages some of whose recipients the filter does not match, and those, as [`ChangeOrder::only_counts`] wants.
    fn count_partly_meant(&self, shard: &Shard, keys: &[MessageKey], filter: &Filter, changed: &mut Changed) {
        for &key in keys {
            let others = self.others(shard, key, filter);
            changed.others += others;
            changed.count += u64::from(others > 0);
        }
    }

    /// Changes one message, and counts what came of it.
    fn change_one(&self, shard: &Shard, key: MessageKey, filter: &Filter, course: &mut Course) {
        let (others, is_paused) = (self.others(shard, key, filter), self.is_paused(shard, key, filter));
        let is_under_way = self.is_under_way(shard, key, filter);
        let has_failed = self.has_failed(shard, key, filter);
        let applied = match self.apply(shard, key, filter, &mut course.records) {
            // It is ready already, and waits all the same: that is told as it is of what was deferred.
            Applied::Unchanged if is_paused && matches!(self, Self::Retry) => Applied::Changed,
            applied => applied,
        };
        let changed = &mut course.changed;
        changed.unless_delivered += u64::from(is_under_way && matches!(applied, Applied::Changed));
        let already_failed = if matches!(self, Self::Hold) { &mut changed.already_failed } else { &mut changed.once_retried };
        *already_failed += u64::from(has_failed && matches!(applied, Applied::Changed));
        changed.others += if matches!(applied, Applied::Changed) { others } else { 0 };
        changed.ends_earlier += u64::from(self.ends_earlier(shard, key));
        changed.paused += u64::from(is_paused && matches!(applied, Applied::Changed));
        changed.count_in(applied);
    }

    /// Changes one message.
    fn apply(&self, shard: &Shard, key: MessageKey, filter: &Filter, records: &mut Records) -> Applied {
        let now = shard.now_ms();
        if matches!(self, Self::Bounce(_) | Self::Purge) {
            self.log_recipients(shard, key, filter);
        }
        let chosen = self.chosen(shard, key, filter);
        let whole = Filter::default();
        let is_over = match self {
            Self::Bounce(_) | Self::Reroute(..) => is_over(shard, key, filter),
            Self::Hold | Self::Release | Self::SetExpiry(_) => is_over(shard, key, &whole),
            Self::Retry | Self::Purge => false,
        };
        // Nothing of it is attempted that could be kept back or come to another end. A release and another way are for what is retried yet.
        if is_over && matches!(self, Self::Hold | Self::SetExpiry(_)) {
            return Applied::Failed;
        }
        let settled = {
            let (mut queue, mut record) = (shard.queue.borrow_mut(), Vec::new());
            match self {
                Self::Retry => queue.retry(key, filter, now, &mut record),
                Self::Hold => queue.hold(key, now, &mut record),
                Self::Release => queue.release(key, now, &mut record),
                Self::Bounce(reply) => queue.bounce(key, filter, reply.as_bytes(), now, &mut record),
                Self::Purge => queue.purge(key, filter, now, &mut record),
                Self::Reroute(to, _) => queue.reroute(key, filter, *to, now, &mut record),
                Self::SetExpiry(at) => queue.set_expiry(key, *at, &mut record),
            }
        };
        match (settled, self) {
            (None, _) => return Applied::Absent,
            (Some(Settled::Nothing), Self::Reroute(to, _)) if shard.queue.borrow().is_rerouted(key, filter, *to) => {
                return Applied::Unchanged;
            }
            (Some(Settled::Nothing), _) if is_over => return Applied::Failed,
            // An attempt runs to its end; what had failed before stays as it is.
            (Some(Settled::Nothing), Self::Bounce(_) | Self::Purge | Self::Reroute(..)) => return Applied::Absent,
            (Some(Settled::Nothing), Self::Hold | Self::Release | Self::Retry) => return Applied::Unchanged,
            (Some(settled), _) => {
                self.log(shard, key, settled, &chosen);
                shard.persist(key, settled);
                records.note(settled);
            }
        }
        Applied::Changed
    }

    /// Is some of that which is to leave being attempted? It leaves when that has ended; but what it delivers is delivered.
    fn is_under_way(&self, shard: &Shard, key: MessageKey, filter: &Filter) -> bool {
        let queue = shard.queue.borrow();
        let view = queue.show(key).filter(|view| matches!(self, Self::Bounce(_) | Self::Purge) && !view.is_closing());
        view.is_some_and(|view| {
            let is_attempted = |recipient: &RecipientView<'_>| recipient.state() == State::Attempting && !self.is_to_leave(recipient);
            view.recipients().any(|recipient| is_attempted(&recipient) && recipient.matches(filter))
        })
    }

    /// Is the change for something that has failed? For that all but a hold, which comes after a retry, counts once it is retried.
    fn has_failed(&self, shard: &Shard, key: MessageKey, filter: &Filter) -> bool {
        let whole = Filter::default();
        let meant = match self {
            Self::Reroute(..) => filter,
            Self::Hold | Self::Release | Self::SetExpiry(_) => &whole,
            Self::Retry | Self::Bounce(_) | Self::Purge => return false,
        };
        let queue = shard.queue.borrow();
        let Some(view) = queue.show(key) else { return false };
        view.recipients().any(|recipient| recipient.state() == State::Failed && recipient.matches(meant))
    }

    /// Has a command been for this before, while it is being attempted? What is bounced can be purged yet.
    fn is_to_leave(&self, recipient: &RecipientView<'_>) -> bool {
        recipient.is_leaving() || recipient.is_failing() && matches!(self, Self::Bounce(_))
    }

    /// Is something meant that is not attempted all the same, because its destination is paused?
    fn is_paused(&self, shard: &Shard, key: MessageKey, filter: &Filter) -> bool {
        if !matches!(self, Self::Retry | Self::Release) {
            return false;
        }
        let queue = shard.queue.borrow();
        let Some(view) = queue.show(key) else { return false };
        view.recipients().any(|recipient| recipient.is_open() && recipient.paused().is_some() && recipient.matches(filter))
    }

    /// Does something end it before the end of life that it was given?
    fn ends_earlier(&self, shard: &Shard, key: MessageKey) -> bool {
        let Self::SetExpiry(at) = self else { return false };
        let queue = shard.queue.borrow();
        let Some(view) = queue.show(key) else { return false };
        view.recipients().any(|recipient| !recipient.is_settled() && recipient.fails_at().is_some_and(|end| end < *at))
    }

    /// Mail that leaves, or is given up, has a line for the message and, where a filter chose among them, for each recipient.
    fn log_recipients(&self, shard: &Shard, key: MessageKey, filter: &Filter) {
        let queue = shard.queue.borrow();
        let Some(view) = queue.show(key).filter(|view| !view.is_closing()) else { return };
        let id = view.envelope().id;
        let is_taken = |recipient: &RecipientView<'_>| match self {
            // What has failed, or was delivered and is to be told to its sender, has its end.
            Self::Bounce(_) => recipient.is_open() && !self.is_to_leave(recipient),
            _ => recipient.state() != State::Delivered && !self.is_to_leave(recipient),
        };
        let chosen = view.recipients().filter(|recipient| !recipient.is_settled() && recipient.matches(filter));
        for recipient in chosen.filter(is_taken) {
            let to = EscapedWord(recipient.address());
            let is_attempted = recipient.state() == State::Attempting;
            match self {
                Self::Bounce(reply) => {
                    let unless = if is_attempted { " reason=\"unless the attempt that is under way delivers it\"" } else { "" };
                    let reply = Escaped(reply.as_bytes());
                    shard.log_mail(format_args!(
                        "queue_id={id} event=bounced to=<{to}> dsn=5.0.0 outcome=bounced reply=\"{reply}\"{unless}"
                    ));
                }
                _ => {
                    let unless = if is_attempted { ", unless the attempt that is under way delivers it" } else { "" };
                    shard.log_mail(format_args!("queue_id={id} event=purged to=<{to}> outcome=purged reason=\"by command{unless}\""));
                }
            }
        }
    }

    /// The addresses of those that a filter chose among the recipients, where what is done is done with them alone.
    fn chosen(&self, shard: &Shard, key: MessageKey, filter: &Filter) -> Vec<Vec<u8>> {
        if !matches!(self, Self::Retry | Self::Reroute(..)) || !filter.is_about_recipients() {
            return Vec::new();
        }
        let queue = shard.queue.borrow();
        let Some(view) = queue.show(key) else { return Vec::new() };
        let chosen = view.recipients().filter(|recipient| !recipient.is_settled() && recipient.matches(filter));
        chosen.map(|recipient| recipient.address().to_vec()).collect()
    }

    /// What is done with whole messages takes along the recipients that the filter does not match: how many.
    fn others(&self, shard: &Shard, key: MessageKey, filter: &Filter) -> u64 {
        if !matches!(self, Self::Hold | Self::Release | Self::SetExpiry(_)) || !filter.is_about_recipients() {
            return 0;
        }
        let queue = shard.queue.borrow();
        let Some(view) = queue.show(key) else { return 0 };
        view.recipients().filter(|recipient| recipient.is_open() && !recipient.matches(filter)).count() as u64
    }

    /// `chosen` as from [`Steering::chosen`]: each has a line of its own.
    fn log(&self, shard: &Shard, key: MessageKey, settled: Settled, chosen: &[Vec<u8>]) {
        let queue = shard.queue.borrow();
        let Some(envelope) = queue.envelope(key) else { return };
        let id = envelope.id;
        let to = chosen.iter().map(|address| format!(" to=<{}>", EscapedWord(address)));
        let lines: Vec<String> = if chosen.is_empty() { vec![String::new()] } else { to.collect() };
        match self {
            Self::Purge | Self::Bounce(_) if settled == Settled::Done => {
                shard.log_mail(format_args!("queue_id={id} event=deleted reason=\"by command\""));
            }
            Self::Purge | Self::Bounce(_) => {}
            Self::Retry => lines.iter().for_each(|to| shard.log_mail(format_args!("queue_id={id} event=command{to} command=retry"))),
            Self::Hold => shard.log_mail(format_args!("queue_id={id} event=command command=hold")),
            Self::Release => shard.log_mail(format_args!("queue_id={id} event=command command=release")),
            Self::Reroute(_, route) => {
                let route = Escaped(route.as_bytes());
                for to in &lines {
                    shard.log_mail(format_args!("queue_id={id} event=command{to} command=reroute route=\"{route}\""));
                }
            }
            Self::SetExpiry(at) => {
                let at = time_text(*at);
                shard.log_mail(format_args!("queue_id={id} event=command command=set-expiry expires={at}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ringpost_queue::{NewMessage, NewRecipient, Notify, Queue, QueueSettings, RetryPolicy, Route, Routes, Via};

    use super::*;

    /// With the disk full, a purge of one of two recipients was said to be done, which the next start had forgotten, and a release that changed nothing failed
    /// by what others had not on disk: the answer went by the name of the command.
    #[test]
    fn whether_a_change_is_on_disk_goes_by_the_records_that_it_made() {
        let route = Route { pattern: "*".into(), via: Via::Hold, retry: RetryPolicy::default(), limits: Default::default() };
        let mut queue = Queue::new(QueueSettings::default(), Routes::new(vec![route]).unwrap(), 1, 1);
        let message = NewMessage { id: QueueId { boot: 1, shard: 0, sequence: 1 }, accepted_at: 1, ..NewMessage::default() };
        let destinations = ["y.test", "z.test"].map(|domain| queue.route(domain.as_bytes()));
        let recipients = [("b@y.test", destinations[0]), ("b@z.test", destinations[1])].map(|(address, destination)| NewRecipient {
            address: address.as_bytes(),
            destination,
            notify: Notify::UNSAID,
        });
        let key = queue.enqueue(&message, recipients.into_iter(), 1);
        let one = Filter { recipient_domain: Some("z.test".into()), ..Filter::default() };
        let records_of = |settled: Option<Settled>| {
            let mut records = Records::default();
            settled.into_iter().filter(|settled| *settled != Settled::Nothing).for_each(|settled| records.note(settled));
            records
        };
        let outcomes_lack_room = |settled| settled == Settled::Outcome;
        assert!(!records_of(queue.release(key, 2, &mut Vec::new())).lack_room(outcomes_lack_room), "it was not held");
        assert!(records_of(queue.purge(key, &one, 2, &mut Vec::new())).lack_room(outcomes_lack_room), "the other recipient stays");
        assert!(!records_of(queue.purge(key, &Filter::default(), 2, &mut Vec::new())).lack_room(outcomes_lack_room), "it leaves");
    }
}
