//! The life of a queued message as pure rules: no clock, no I/O, `now` and outcomes in, attempts and records out.
//!
//! ```text
//! enqueue / recover -> waiting (timer wheel) <-> ready (per destination) -> attempting -> delivered | failed | waiting
//! ```
//! One [`Queue`] per shard, used by one thread. Read [`Queue`] first, then `destination.rs` for when mail may go.
//!
//! The driver's loop: after anything that changed the queue, call [`Queue::poll`] until it returns `None`, then arm one timer
//! for [`Queue::next_due`]. Each [`Dispatch`] ends in exactly one of [`Queue::settle`], [`Queue::unreachable`] or
//! [`Queue::abandon`]. Each record that a call wrote goes to the spool, and [`Queue::recorded`] tells that it is safe.
//!
//! All times are unix milliseconds of a clock that never steps: unix time at start plus monotonic time since.
//! A `now` before an earlier one is harmless (nothing fires early).
#![forbid(unsafe_code)]

mod address_range;
mod arena;
mod assigning;
mod avoided;
mod away;
mod backlog;
mod breaker;
mod command;
mod countermand;
mod crowding;
mod destination;
mod destination_id;
mod directory;
mod dispatch;
mod domain_name;
mod feedback;
mod fresh;
mod groups;
mod guest;
mod guests;
mod guests_in_turn;
mod home;
mod hosts;
mod ids;
mod index;
mod kept_reply;
mod leaving;
mod listing;
mod message;
mod messages;
pub mod mx;
pub mod named_hosts;
mod names;
mod notify;
mod offering;
mod outcome;
mod pauses;
mod queue;
mod queue_id;
mod queued_domains;
mod quota;
mod rate;
mod ready;
mod reconfiguring;
mod regrouping;
mod report;
mod report_wait;
mod reroutes;
mod reserving;
mod retry;
mod route;
mod routes;
mod sender_group;
mod senders;
mod settling;
mod shortages;
mod site;
mod slab;
mod steering;
mod storage;
mod terms;
mod throttling;
mod transition;
mod view;
mod wait;
mod walks;
mod watch;
mod wheel;
mod window;
mod word;
mod wrong_clock;

pub use backlog::{BACKLOG_PER_DESTINATION_MAX, Backlog, BacklogWalk, READY_PER_DESTINATION_MAX};
pub use breaker::{Breaker, BreakerSettings};
pub use countermand::Countermand;
pub use destination_id::DestinationId;
pub use dispatch::Dispatch;
pub use domain_name::canonical_domain;
pub use feedback::Change;
pub use guest::{Guest, Refused};
pub use home::{CONNECTIONS_PER_HOME, Homes};
pub use hosts::{BreakerChange, HostIndex, HostView, HostsTried, PutOffBy};
pub use index::{TAG_BYTES_MAX, TAGS_MAX};
pub use kept_reply::REPLY_BYTES_MAX;
pub use listing::{Cursor, CursorLost, Filter};
pub use message::{Envelope, MessageKey, NewMessage, NewRecipient, Offered, PRIORITY_MAX, RECIPIENTS_MAX};
pub use notify::Notify;
pub use outcome::{DecodeError, Outcome};
pub use pauses::{PAUSES_MAX, PausedBy, Pauses};
pub use queue::{Queue, QueueSettings, Recovered, Work};
pub use queue_id::{ParseQueueIdError, QueueId};
pub use quota::{Apart, Reserved, SLOTS_MAX, SharedRate, Slots};
pub use rate::{RATE_PERIOD_MS_MAX, Rate};
pub use reconfiguring::Followed;
pub use report::{About, Notice, REPORT_RECIPIENTS_MAX, Report, ReportLimits};
pub use report_wait::ReportWait;
pub use reserving::Reservation;
pub use retry::{Jitter, RetryPolicy};
pub use route::{DestinationLimits, HOSTS_MAX, HostAddress, NamedHost, NextHop, Route, RouteId, UnknownMailbox, Via};
pub use routes::{Mail, RouteError, Routes};
pub use settling::Settled;
pub use site::{Asking, Lookup, Question, Resolution, Verdict};
pub use terms::TermKind;
pub use throttling::{Throttled, asks_for_fewer_connections, asks_for_less, has_enough_of_connection, put_off_by};
pub use view::{DestinationView, MessageView, OFFERED_REASON, QueueCounts, RecipientView, State};
pub use wait::Wait;
