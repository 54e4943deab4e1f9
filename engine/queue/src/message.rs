//! What the queue keeps of a message: a few words in memory, everything else stays in the spool (S25), which finds it by its
//! id.

use crate::arena::Span;
use crate::destination_id::DestinationId;
use crate::notify::Notify;
use crate::outcome::{SUCCESS_DUE, Settling};
use crate::queue_id::QueueId;
use crate::slab::NONE;

/// Recipients of one message at most.
pub const RECIPIENTS_MAX: usize = 60_000;

/// Highest priority; a message of a lower one is sent later, but never starves.
pub const PRIORITY_MAX: u8 = 9;

/// No recipient.
pub(crate) const NO_RECIPIENT: u16 = u16::MAX;

/// Names a queued message while it is queued. Cheaper than its [`QueueId`]; never shown, never stored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MessageKey {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// A message to be queued, after its record is acknowledged (S21).
#[derive(Clone, Copy, Debug, Default)]
pub struct NewMessage<'a> {
    /// Its name; must not be queued yet.
    pub id: QueueId,
    /// Content bytes, as the next hop's SIZE wants them.
    pub size: u64,
    /// Unix milliseconds.
    pub accepted_at: u64,
    /// By another node, whose starts the number in the id does not count.
    pub accepted_elsewhere: bool,
    /// Unix milliseconds; `None` leaves it to the lifetime of each recipient's route, which also holds when it is earlier.
    pub expires_at: Option<u64>,
    /// Unix milliseconds; not tried before, and its routes' lifetimes count from then (RFC 4865 4).
    pub not_before: Option<u64>,
    /// Unix milliseconds at which the sender is told of a delay, where it wants to be (RFC 2852 4: BY with N); `None` leaves it
    /// to the routes.
    pub warn_at: Option<u64>,
    /// The sender is told of each next hop that takes it, unless NOTIFY=NEVER (RFC 2852 4.1: BY with T).
    pub traced: bool,
    /// 0 to [`PRIORITY_MAX`]; more is clamped.
    pub priority: u8,
    /// The content has bytes above 127 (BODY=8BITMIME).
    pub eight_bit: bool,
    /// The header of it has.
    pub eight_bit_header: bool,
    /// The transaction asked for SMTPUTF8.
    pub smtputf8: bool,
    /// The envelope says more than addresses: the driver reads it from the record before MAIL.
    pub extended: bool,
    /// Offered to other nodes: not attempted here until it is taken back, see [`Queue::take_back`](crate::Queue::take_back).
    pub offered: Offered,
    /// Reverse-path without brackets; empty is the null reverse-path. At most 65,535 bytes.
    pub reverse_path: &'a [u8],
    /// What operators find it by beside its addresses: at most [`TAGS_MAX`](crate::TAGS_MAX), the rest is left out. An empty one is none.
    pub tags: &'a [&'a [u8]],
}

/// Whether a message is offered to other nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Offered {
    /// It is attempted here.
    #[default]
    No,
    /// It is, unless it is found to be held or to have been begun here: that is ended here.
    Untouched,
    /// It is, unless it is found to be held: an earlier run has offered it, perhaps, whatever was begun here before.
    Perhaps,
    /// It is in any case: this node attempts nothing.
    Always,
}

/// A recipient of a [`NewMessage`].
#[derive(Clone, Copy, Debug)]
pub struct NewRecipient<'a> {
    /// Forward-path without brackets.
    pub address: &'a [u8],
    /// From [`Queue::route`](crate::Queue::route).
    pub destination: DestinationId,
    /// What its sender wants to know.
    pub notify: Notify,
}

/// What an attempt needs to know of its message besides its recipients.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// Name.
    pub id: QueueId,
    /// Content bytes.
    pub size: u64,
    /// Unix milliseconds.
    pub accepted_at: u64,
    /// The content has bytes above 127.
    pub eight_bit: bool,
    /// The header of it has.
    pub eight_bit_header: bool,
    /// SMTPUTF8 is needed.
    pub smtputf8: bool,
    /// The envelope in the record says more than addresses.
    pub extended: bool,
    /// Without brackets; empty is the null reverse-path.
    pub reverse_path: &'a [u8],
}

/// The message itself. Its addresses are one slice of text: reverse-path, then the recipients' in order.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) size: u64,
    pub(crate) accepted_at: u64,
    /// `u64::MAX` when only the routes' lifetimes count.
    pub(crate) expires_at: u64,
    /// Does not expire before; 0 unless it was given time for one more attempt.
    pub(crate) grace_until: u64,
    pub(crate) generation: u32,
    /// Where its id stands among those of all.
    pub(crate) id_place: u32,
    pub(crate) addresses: Span,
    pub(crate) first_group: u32,
    /// Seconds from the acceptance to the release, rounded up; 0 unless it came with a time of release.
    pub(crate) release_after_s: u32,
    /// Seconds from the acceptance to the report of a delay; 0 leaves it to the routes.
    pub(crate) warn_after_s: u32,
    /// Records handed to the engine that it has not acknowledged.
    pub(crate) unrecorded: u32,
    /// Where it waits, or waited, to be put into lists.
    pub(crate) fresh_place: u32,
    pub(crate) reverse_bytes: u16,
    /// Dispatches not settled.
    pub(crate) in_flight: u16,
    pub(crate) next_dispatch: u16,
    /// The route that all of it was sent to by command, whatever its recipients' domains; a [`RouteId`](crate::RouteId) or
    /// [`NOT_REROUTED`]. See `reroutes.rs` for what was sent elsewhere in part.
    pub(crate) rerouted: u16,
    pub(crate) priority: u8,
    pub(crate) flags: Flags,
}

/// No command changed the route.
pub(crate) const NOT_REROUTED: u16 = u16::MAX;

impl Message {
    /// Unix milliseconds from which lifetimes count.
    pub(crate) fn released_at(&self) -> u64 {
        self.accepted_at.saturating_add(u64::from(self.release_after_s) * 1000)
    }

    /// All is done; it leaves when the record that says so is acknowledged.
    #[inline]
    pub(crate) fn begin_closing(&mut self) {
        self.flags.set(Flags::CLOSING, true);
        self.unrecorded += 1;
    }

    /// It is done or deleted, nothing of it is open, and all its records are acknowledged.
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.flags.has(Flags::CLOSING) && self.unrecorded == 0 && self.in_flight == 0
    }

    /// When it may be attempted by command: now, unless it came with a time of release that is still to come.
    pub(crate) fn may_go_at(&self, now: u64) -> u64 {
        if self.release_after_s == 0 { now } else { now.max(self.released_at()) }
    }
}

/// Facts about a message.
///
/// In halves: a flag is set in one octet of memory, and whoever reads more than that right behind waits until it is written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flags {
    low: u8,
    high: u8,
}

impl Flags {
    /// The slot is in use.
    pub(crate) const QUEUED: u16 = 1;
    /// Held by command.
    pub(crate) const HELD: u16 = 2;
    /// Delivered to all or deleted: leaves when the record is acknowledged and no attempt runs.
    pub(crate) const CLOSING: u16 = 4;
    pub(crate) const EIGHT_BIT: u16 = 8;
    pub(crate) const SMTPUTF8: u16 = 16;
    /// Somebody is to be told something.
    pub(crate) const REPORT_DUE: u16 = 128;
    /// Its report is under way, from the wish to the acknowledgement.
    pub(crate) const REPORT_SET: u16 = 256;
    /// And is being made: it may be on its way to the sender at any time.
    pub(crate) const REPORT_OPEN: u16 = 16384;
    /// `expires_at` was set by command: records keep it.
    pub(crate) const EXPIRY_SET: u16 = 32;
    /// The envelope in the record says more than addresses.
    pub(crate) const EXTENDED: u16 = 64;
    /// Some of its recipients were sent another way than the others, see `reroutes.rs`.
    pub(crate) const PARTLY_REROUTED: u16 = 512;
    pub(crate) const EIGHT_BIT_HEADER: u16 = 32768;
    /// It is in lists of the index.
    pub(crate) const LISTED: u16 = 1024;
    /// A recipient that is being attempted leads elsewhere than its group says: it goes there when that has ended.
    pub(crate) const REGROUP: u16 = 2048;
    /// Offered to other nodes; never in records.
    pub(crate) const OFFERED: u16 = 4096;
    /// The sender is told of each next hop.
    pub(crate) const TRACED: u16 = 8192;
    /// Not attempted here. Its route's lifetime does not end it.
    pub(crate) const KEPT: u16 = Flags::HELD | Flags::OFFERED;
    /// It waits for a command, or a recipient for where it leads now: the lifetime of where that was does not end it.
    pub(crate) const WAY_OPEN: u16 = Flags::HELD | Flags::REGROUP;

    /// Those that are on.
    #[inline]
    pub(crate) fn of<const N: usize>(flags: [(u16, bool); N]) -> Self {
        let [low, high] = flags.into_iter().fold(0_u16, |bits, (flag, on)| bits | (flag * u16::from(on))).to_le_bytes();
        Self { low, high }
    }

    #[inline]
    pub(crate) fn has(self, flag: u16) -> bool {
        let [low, high] = flag.to_le_bytes();
        self.low & low != 0 || self.high & high != 0
    }

    #[inline]
    pub(crate) fn set(&mut self, flag: u16, on: bool) {
        let [low, high] = flag.to_le_bytes();
        (self.low, self.high) = if on { (self.low | low, self.high | high) } else { (self.low & !low, self.high & !high) };
    }
}

impl Default for Message {
    fn default() -> Self {
        Self {
            size: 0,
            accepted_at: 0,
            expires_at: u64::MAX,
            grace_until: 0,
            generation: 0,
            id_place: 0,
            addresses: Span::default(),
            first_group: NONE,
            release_after_s: 0,
            warn_after_s: 0,
            unrecorded: 0,
            fresh_place: 0,
            reverse_bytes: 0,
            in_flight: 0,
            next_dispatch: 0,
            rerouted: NOT_REROUTED,
            priority: 0,
            flags: Flags::default(),
        }
    }
}

/// Where a recipient is: always in exactly one of these.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Place {
    /// Until its next attempt is due.
    #[default]
    Waiting,
    /// In its destination's ready queue.
    Ready,
    /// In the dispatch of the recipient's `dispatch` number.
    Attempting,
    Delivered,
    /// For good, and its sender is to be told.
    Failed,
    /// For good, and its sender was told, or need not be.
    Bounced,
    /// Taken out by command, and nobody is told.
    Purged,
}

/// Number of places.
pub(crate) const PLACES: usize = Place::Purged as usize + 1;

impl Place {
    pub(crate) fn is_open(self) -> bool {
        matches!(self, Self::Waiting | Self::Ready | Self::Attempting)
    }

    /// It is not to be attempted any more, whatever is commanded.
    pub(crate) fn is_over(self) -> bool {
        matches!(self, Self::Delivered | Self::Bounced | Self::Purged)
    }

    pub(crate) fn settling(self) -> Settling {
        match self {
            Self::Waiting | Self::Ready | Self::Attempting => Settling::Waiting,
            Self::Delivered => Settling::Delivered,
            Self::Failed => Settling::Failed,
            Self::Bounced => Settling::Bounced,
            Self::Purged => Settling::Purged,
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Recipient {
    pub(crate) last_attempt: u64,
    pub(crate) next_attempt: u64,
    pub(crate) group: u32,
    reply_slot: u32,
    /// End of its address in the message's addresses; it begins where the one before ends.
    pub(crate) address_end: u32,
    pub(crate) next_in_group: u16,
    pub(crate) attempts: u16,
    pub(crate) dispatch: u16,
    pub(crate) place: Place,
    /// What its sender was told and is to be told (`outcome.rs`), and in memory beside it what it wants to know (`report.rs`).
    pub(crate) told: u8,
    pub(crate) deferrals: u8,
    pub(crate) untried: u8,
    reply_bytes: u8,
    reply_class: u8,
}

impl Recipient {
    pub(crate) fn waiting(address_end: u32, group: u32) -> Self {
        Self { address_end, group, ..Self::default() }
    }

    /// An attempt came to its turn.
    #[inline]
    pub(crate) fn attempted(&mut self, now: u64) {
        self.untried = 0;
        self.attempts = self.attempts.saturating_add(1);
        self.last_attempt = now;
    }

    /// Nothing is left to do.
    pub(crate) fn is_settled(&self) -> bool {
        match self.place {
            Place::Delivered => self.told & SUCCESS_DUE == 0,
            Place::Bounced | Place::Purged => true,
            Place::Waiting | Place::Ready | Place::Attempting | Place::Failed => false,
        }
    }

    pub(crate) fn reply(&self) -> Span {
        Span::from_parts(self.reply_slot, self.reply_class, self.reply_bytes)
    }

    pub(crate) fn has_reply(&self) -> bool {
        self.reply_bytes > 0
    }

    pub(crate) fn set_reply(&mut self, reply: Span) {
        (self.reply_slot, self.reply_class) = (reply.slot(), reply.class());
        self.reply_bytes = u8::try_from(reply.len()).expect("replies are cut when they are kept");
    }

    pub(crate) fn is_in(&self, dispatch: u16) -> bool {
        self.place == Place::Attempting && self.dispatch == dispatch
    }
}

/// The recipients of one message that share a destination: what a ready queue holds.
#[derive(Debug)]
pub(crate) struct Group {
    /// Unix seconds: enough for ageing, and half the room of milliseconds.
    pub(crate) ready_since_s: u32,
    pub(crate) message: u32,
    pub(crate) destination: u32,
    pub(crate) next_in_message: u32,
    /// In the ready queue.
    pub(crate) previous: u32,
    pub(crate) next: u32,
    /// Among all groups of its destination, in the order of their coming.
    pub(crate) previous_here: u32,
    pub(crate) next_here: u32,
    pub(crate) first: u16,
    /// Recipients that are ready; the group is in the ready queue while this is above 0.
    pub(crate) ready: u16,
    pub(crate) priority: u8,
    /// The time at which its sender is told of the delay has passed.
    pub(crate) warned: bool,
}

impl Default for Group {
    fn default() -> Self {
        Self {
            ready_since_s: 0,
            message: NONE,
            destination: 0,
            next_in_message: NONE,
            previous: NONE,
            next: NONE,
            previous_here: NONE,
            next_here: NONE,
            first: NO_RECIPIENT,
            ready: 0,
            priority: 0,
            warned: false,
        }
    }
}

const _: () = assert!(size_of::<Message>() <= 80);
const _: () = assert!(size_of::<Recipient>() <= 40);
const _: () = assert!(size_of::<Group>() <= 40);
