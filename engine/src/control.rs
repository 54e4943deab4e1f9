//! What the coordinator may ask of a shard, and what it answers. Plain data that crosses threads; the shard's side is in `shard`.

use std::{sync::Arc, time::Duration};

use ringpost_config::Config;
use ringpost_queue::{Asking, Backlog, Pauses, QueueId, REPLY_BYTES_MAX, Resolution};
use ringpost_spool::{Ahead, Space};
use serde::{Deserialize, Serialize};

pub use crate::destination_summary::{DestinationSummary, HostSummary};
pub use crate::listing::time_text;
use crate::{settled_ids::SettledIds, shared_limits::LimitAnswer};

/// One page of `queue ls` holds at most so many messages; the rest comes with further calls.
pub const PAGE_MESSAGES_MAX: usize = 200;

/// A question to one shard with the way back. The answer is given exactly once, on the shard's thread; dropping the request
/// unanswered (a shard that ended) drops the way back with it.
pub struct Request {
    /// What is asked.
    pub command: Command,
    /// Called with the answer; must not block.
    pub answer: Box<dyn FnOnce(Answer) + Send>,
}

/// What the logs of a shard have written ahead.
#[derive(Clone, Debug)]
pub struct LogsAhead {
    /// Of its own log: the one that [`Command::Prepare`] is for.
    pub own: Ahead,
    /// Of those that it has adopted.
    pub adopted: Vec<Ahead>,
    /// What may still be used of the file system.
    pub space: Space,
    /// Of that, what is to stay.
    pub kept: Space,
}

/// What can be asked.
#[derive(Clone, Debug)]
pub enum Command {
    /// One page of the queue.
    List(ListQuery),
    /// One message.
    Show(QueueId),
    /// Why a message is still here.
    Why(QueueId, Elsewhere),
    /// What hosts said of attempts that this shard makes of a message, and that are at a further host now.
    SaidBefore(QueueId),
    /// Which recipients of these messages wait for their turn here though their owner takes them to be attempted.
    InTurn(Vec<QueueId>),
    /// Each destination with mail, and those that are not well; or those of this name only.
    Summary(Option<String>),
    /// Steer messages, a bounded number of them.
    Change(ChangeOrder),
    /// Can destinations be called so? [`Answer::Failed`] says of the first that cannot why not.
    CanPause(Vec<String>),
    /// Pause these destinations, and no others.
    Pause(Pauses),
    /// What pauses these destinations.
    WhatPauses(Vec<String>),
    /// The counters.
    Stats,
    /// What DNS said to questions of this shard; how long each answer holds counts from now.
    Resolved(Vec<(Asking, Resolution)>),
    /// What came of questions about limits over all nodes.
    Limits(Vec<LimitAnswer>),
    /// What is written ahead: [`Answer::Ahead`].
    Ahead,
    /// Keep so many more segments ready.
    Prepare(u32),
    /// Hand-over of mail between nodes.
    HandOver(HandOver),
    /// Run with these settings, which differ from the present ones in nothing that is settled at the start. Answered as soon as they are in
    /// force; [`Command::FollowRoutes`] is next.
    Reload(Arc<Config>),
    /// Send the mail that is queued where the routes in force say; answered when all of it has been looked at.
    FollowRoutes,
    /// Answer when there are no more connections than the settings of the last [`Command::Reload`] allow.
    AwaitLimits,
    /// All shards have answered that, this one with this number.
    SettleLimits(u64),
    /// Stop accepting, finish, flush, end.
    Drain,
}

/// What the coordinator wants of a shard while mail is handed over.
#[derive(Clone, Debug)]
pub enum HandOver {
    /// Mail to offer, as soon as there is some.
    Take(Take),
    /// Offer these again.
    OfferAgain(Vec<QueueId>),
    /// Deliver these here.
    TakeBack(Vec<QueueId>),
    /// Other nodes have these.
    HandedOver(Vec<HandedOver>),
    /// Offer new mail, or deliver it here because Valkey is away.
    SetOffering(bool),
    /// From now on offer all mail that can be offered, new mail included. To be repeated: what is being attempted can be offered later.
    OfferAll,
    /// Mail that the shard wants back, as soon as there is some.
    Recalls,
    /// What became of such wishes.
    Recalled(Vec<(QueueId, Recalled)>),
    /// Answer when the mail of an earlier run that is wanted back, as it shared or was emptied, has been spoken of: see [`HandOver::Recalled`].
    Retracted,
    /// Which of these the shard does not have.
    Missing(Vec<QueueId>),
    /// All that the shard knows to be settled.
    SettledIds,
    /// Store another node's mail.
    Claim(Claim),
    /// A stored claim is this node's mail, or another's.
    Decide(QueueId, bool),
    /// The claims without an answer.
    Claims,
    /// What is left to deliver that goes.
    Backlog,
}

/// Mail that a shard does not have.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Missing {
    /// It came to its end in this spool.
    pub settled: Vec<QueueId>,
    /// Nothing is known of its end: it came in after the copy was made from which the spool was put back, or its record is damaged, or it was
    /// settled so long ago that nothing says so any more.
    pub unknown: Vec<QueueId>,
}

/// How much of which mail to give.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Take {
    /// Of which.
    pub which: Which,
    /// At most so many.
    pub items_max: usize,
    /// About so many bytes: one item more at most.
    pub bytes_max: usize,
}

/// Which mail the coordinator takes to offer it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// What it has not had: accepted, or found in the spool. It waits while there is no room.
    New,
    /// What it asked for by [`HandOver::OfferAgain`]. It never waits.
    Again,
    /// What an earlier run may have offered and this one delivers itself: to leave the queue. It waits while much of that is on its way.
    Kept,
}

/// What became of the wish to have offered mail back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recalled {
    /// No other node has it, nor can get it.
    Out,
    /// Another node has leased it, or has taken it over.
    Taken,
    /// Nobody can say now: Valkey does not answer, or is long taking it.
    Unanswered,
}

/// What a shard that is being emptied has, by message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct DrainCounts {
    /// Offered, until another node has it.
    pub offered: u64,
    /// Being attempted here, or with a report to be made first.
    pub active: u64,
    /// Held by command: stays until it is released.
    pub held: u64,
    /// Larger than what can be offered: delivered here.
    pub too_large: u64,
}

impl DrainCounts {
    /// Adds what another shard has.
    pub fn add(&mut self, other: DrainCounts) {
        self.offered += other.offered;
        self.active += other.active;
        self.held += other.held;
        self.too_large += other.too_large;
    }

    /// All of it.
    pub fn messages(&self) -> u64 {
        self.offered + self.active + self.held + self.too_large
    }
}

/// What a change came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Changed {
    /// Messages found and changed; durable where the change must be.
    pub count: u64,
    /// When there are more: where to go on.
    pub next: Option<Rest>,
    /// Found, and not changed: to hold and held already, to release and not held by command, to retry and may go already, to
    /// re-route and goes that way already.
    pub unchanged: u64,
    /// Found, and not changed: another node of the cluster is taking them over.
    pub taken: u64,
    /// Found, and not changed: they are offered to the cluster, and Valkey does not answer, or is long taking them.
    pub unanswered: u64,
    /// Found, and not changed: they are held, and what was asked for comes after a release.
    pub held: u64,
    /// Found, and not changed: to retry, and in the cluster's queue, among its dead letters perhaps.
    pub offered: u64,
    /// Found, and not changed: nothing that is meant of them is attempted any more, mostly because it has failed, and their senders are still
    /// to be told.
    pub failed: u64,
    /// Changed, and something meant of them has failed already: for that it counts once it is retried.
    pub once_retried: u64,
    /// Held, and something of them has failed already: a hold is nothing to that, and its report is made.
    pub already_failed: u64,
    /// Changed, and without effect for some recipient, whose route ends it earlier.
    pub ends_earlier: u64,
    /// Changed, and not attempted before destinations are resumed.
    pub paused: u64,
    /// Changed: purged or bounced while an attempt is under way, which may deliver all the same.
    pub unless_delivered: u64,
    /// Recipients that the filter does not match and that were changed all the same, as what was done is done with whole messages.
    pub others: u64,
}

/// Bytes of the reason of [`Change::Bounce`] at most: with its code it is the last word about a recipient.
pub const REASON_BYTES_MAX: usize = REPLY_BYTES_MAX - "554 5.0.0 ".len();

/// How far ahead an end of life can be set: a year. What is meant to stay for longer is held.
pub const EXPIRY_AHEAD_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// One mail to be offered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    /// Its name here.
    pub id: QueueId,
    /// The queue's: 0 to 9, 9 is the most urgent.
    pub priority: u8,
    /// Not before so long from now.
    pub delay_ms: u64,
    /// Not after so long from now; 0: always.
    pub expires_in_ms: u64,
    /// [`crate::handed_mail`].
    pub data: Vec<u8>,
}

/// What [`HandOver::Take`] gives.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Offers {
    /// To be offered.
    pub items: Vec<Offer>,
    /// Delivered here, but offered in an earlier run, perhaps.
    pub kept: Vec<QueueId>,
    /// Not to be offered any more.
    pub gone: Vec<QueueId>,
}

impl Offers {
    /// Nothing: the shard ends.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.kept.is_empty() && self.gone.is_empty()
    }
}

/// A mail that another node has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HandedOver {
    /// Its name here.
    pub id: QueueId,
    /// What the other node said: its name, and the mail's name there.
    pub to: String,
}

/// Another node's mail.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    /// The item's name.
    pub item: String,
    /// Of its lease.
    pub token: String,
    /// [`crate::handed_mail`].
    pub data: Vec<u8>,
}

/// A claim in the spool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoundClaim {
    /// Its name here.
    pub id: QueueId,
    /// The item's name.
    pub item: String,
    /// Of its lease.
    pub token: String,
}

/// Which messages; what is absent matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MessageFilter {
    /// Only messages with a recipient in this state (`ready`, `deferred`, `active`, `held`, `offered`, `failed`).
    pub state: Option<String>,
    /// Only this reverse-path.
    pub sender: Option<String>,
    /// Only reverse-paths in this domain; empty is the null reverse-path.
    pub sender_domain: Option<String>,
    /// Only messages with a recipient in this domain.
    pub domain: Option<String>,
    /// Only messages with a recipient that leads to the destination of this name.
    pub destination: Option<String>,
    /// Only messages with this tag.
    pub tag: Option<String>,
    /// Only messages at least so many seconds old.
    pub older_than_s: Option<u64>,
}

/// Filter and place of a page.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ListQuery {
    /// Which messages.
    #[serde(default)]
    pub filter: MessageFilter,
    /// Where the page before ended, as its answer gave it.
    pub after: Option<u64>,
    /// At most so many, and never more than [`PAGE_MESSAGES_MAX`].
    pub limit: Option<usize>,
}

impl Change {
    /// It is done with messages as a whole, whatever a filter says of their recipients.
    pub fn is_of_messages(&self) -> bool {
        matches!(self, Self::Hold {} | Self::Release {} | Self::SetExpiry { .. })
    }
}

impl MessageFilter {
    /// It chooses among the recipients of a message.
    pub fn is_about_recipients(&self) -> bool {
        self.state.is_some() || self.domain.is_some() || self.destination.is_some()
    }
}

/// How `queue` commands steer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Change {
    /// Attempt now.
    Retry {},
    /// Keep back until released.
    Hold {},
    /// End a hold.
    Release {},
    /// Fail the recipients, so that their sender is told.
    Bounce {
        /// What the sender is told, in one line of at most [`REASON_BYTES_MAX`] bytes.
        reason: String,
    },
    /// Remove without telling anybody.
    Purge {},
    /// Send another way.
    Reroute {
        /// Pattern of the route.
        to: String,
    },
    /// Another end of life.
    SetExpiry {
        /// Unix milliseconds.
        at_ms: u64,
    },
}

/// What is left of a change: where it goes on, and where it ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rest {
    /// As [`Cursor::position`](ringpost_queue::Cursor::position).
    pub at: u64,
    /// What the shard has numbered from here on came after the change began.
    pub older_than: QueueId,
}

/// A [`Change`] and the messages that it is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChangeOrder {
    /// What is done.
    pub change: Change,
    /// With which.
    pub selection: Selection,
    /// Where the answer before ended.
    pub after: Option<Rest>,
    /// Change nothing: count the messages that the selection means in part, and in [`Changed::others`] the recipients that it does not mean
    /// and that would be changed.
    pub only_counts: bool,
}

/// Which messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Selection {
    /// These.
    Ids(Vec<QueueId>),
    /// All that match. Retries, bounces, purges and re-routes are about the matching recipients alone.
    Matching(MessageFilter),
}

/// What the shards that deliver, or hand-over, know of a message, and the one that owns it does not.
#[derive(Clone, Debug, Default)]
pub struct Elsewhere {
    /// Its recipients that wait for their turn at another shard, by [`Command::InTurn`].
    pub in_turn: Vec<u16>,
    /// By [`Command::SaidBefore`].
    pub said: Vec<SaidBefore>,
    /// That it is not in the cluster's queue, where it is to be offered, or not as it should be, and why: a sentence without its end. `None`: it is, or was.
    pub unoffered: Option<String>,
}

/// What hosts said of an attempt that is at a further host now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SaidBefore {
    /// Their numbers in the message.
    pub recipients: Vec<u16>,
    /// For people.
    pub text: String,
}

/// A shard's answer.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A page, and where to go on when there is more.
    Messages(Vec<MessageView>, Option<u64>),
    /// The message, if this shard has it.
    Message(Option<Box<MessageView>>),
    /// Sentences about the message, if this shard has it.
    Why(Option<String>),
    /// Recipients by their numbers, of the messages that have some.
    InTurn(Vec<(QueueId, Vec<u16>)>),
    /// One for each attempt.
    SaidBefore(Vec<SaidBefore>),
    /// What is stuck on this shard.
    Summary(Summary),
    /// See there.
    Changed(Changed),
    /// All queued mail follows its routes.
    Followed {
        /// Messages that lead elsewhere now.
        moved: u64,
        /// Messages that a route holds now, and none did before; among them some that lead elsewhere.
        held: u64,
    },
    /// There are no more connections than allowed since the change of the limits that has this number.
    LimitsKept(u64),
    /// What pauses each of them, as `queue resume` takes it.
    PausedBy(Vec<Option<String>>),
    /// Counter names and values.
    Stats(Vec<(&'static str, u64)>),
    /// What the logs have written ahead, and the room that there is for more.
    Ahead(LogsAhead),
    /// Mail to offer.
    Offers(Offers),
    /// A claim is durable: its name here, and how many messages this shard has.
    Claimed(QueueId, u64),
    /// What was to be stored is no mail, for this version.
    Unusable(&'static str),
    /// The claims without an answer.
    Claims(Vec<FoundClaim>),
    /// What is left to deliver that goes.
    Backlog(Backlog),
    /// Mail that is wanted back.
    Recalls(Vec<QueueId>),
    /// Mail of an earlier run that was wanted back, all of which has its answer.
    Retracted(Vec<QueueId>),
    /// How far the shard is emptied.
    Draining(DrainCounts),
    /// These the shard does not have.
    Missing(Missing),
    /// All that it knows to be settled.
    SettledIds(SettledIds),
    /// It is done.
    Done,
    /// It could not be done; a sentence for the operator.
    Failed(String),
    /// The same, of what passes by itself: asked again later it may be done.
    NotNow(String),
}

/// A queued message as `queue ls --json` prints it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MessageView {
    /// Queue id.
    pub id: String,
    /// Reverse-path without brackets.
    pub sender: String,
    /// Each recipient that is not delivered, and those that are while others are not.
    pub recipients: Vec<RecipientView>,
    /// Most attempts of a recipient.
    pub attempts: u32,
    /// Nearest next attempt, RFC 3339; absent when none is planned (active, held, paused, failed).
    pub next_attempt: Option<String>,
    /// Content bytes.
    pub size: u64,
    /// 0 to 9, 9 is the most urgent; absent where an earlier version answers.
    #[serde(default)]
    pub priority: Option<u8>,
    /// RFC 3339.
    pub accepted_at: String,
    /// What it can be found by beside its addresses.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Why it is still here, in one sentence.
    pub reason: String,
}

/// A recipient within [`MessageView`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RecipientView {
    /// Forward-path without brackets.
    pub address: String,
    /// `ready`, `deferred`, `active`, `held`, `offered`, `failed`, `bounced`, `purged` or `delivered`.
    pub state: String,
    /// Name of the destination it leads to.
    #[serde(default)]
    pub destination: String,
    /// Name of the route that it goes by: its domain, and the sender behind ` from ` where it is for some only. Empty when there is none.
    #[serde(default)]
    pub route: String,
    /// Attempts so far.
    pub attempts: u32,
    /// RFC 3339; absent when none is planned.
    pub next_attempt: Option<String>,
    /// Its destination is paused by command, and this is what `queue resume` takes to end that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_by: Option<String>,
    /// It is being attempted, and commands have said what comes of it when that has ended: for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_attempt: Option<String>,
    /// RFC 3339: when it is given up; absent when it has failed or nothing is left to do, and while it is held without a time of its own.
    #[serde(default)]
    pub expires_at: Option<String>,
    /// What the next hop said last, or why it could not be asked.
    pub last_reply: Option<String>,
    /// The next hop that said it, as the mail log names it (`mx1.example.org[192.0.2.7]:25`); absent when none did, and of one whose name is too long
    /// to be kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<String>,
}

/// What one shard says to [`Command::Summary`].
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Its destinations.
    pub destinations: Vec<DestinationSummary>,
    /// By a destination's name: recipients that some shard counts as being attempted there, and that wait for their turn at its home.
    pub in_turn: Vec<(String, u64)>,
}
