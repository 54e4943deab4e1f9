//! The client side of SMTP: one connection as a state machine without socket or clock.
//!
//! Read [`Client`] and [`Action`] first, then `transaction.rs`. The driver's loop:
//! ```text
//! loop {
//!     match client.next(&mut received, &mut out) {
//!         Read => { send(out); received = read(client.timeout())?  or client.disconnected(why) }
//!         Ready => client.begin(transaction, recipients, &mut out), probe, quit, or wait for mail
//!         SendContent(_, form) => {
//!             client.begin(next transaction, ..., &mut behind);              // only if there is one; where the peer pipelines
//!             send_vectored(out, content in this form, behind); client.content_sent();
//!         }
//!         Outcome(outcome) => note it, Done(transaction) => settle it, Close(why) => { send(out); break }
//!     }
//! }
//! ```
//! Each answer is matched to its command by order. What cannot be matched, and whatever is unclear, ends the connection and
//! defers. A permanent refusal is only what a peer said in answer to MAIL, RCPT, DATA or the content, or what we know before
//! anything is sent.

mod action;
mod connection;
mod offer;
pub(crate) mod own_words;
mod rcpt;
mod settings;
mod timeouts;
mod transaction;

pub use action::{Action, CloseReason, ContentForm, Disconnect, ProtocolError, RecipientOutcome, SuccessReport, TransactionId, Verdict};
pub use connection::Client;
pub use offer::Offer;
pub use own_words::{is_about_content, is_about_offer, is_about_protocol, put_off_offer};
pub use rcpt::Rcpt;
pub use settings::{ClientSettings, Protocol};
pub use timeouts::Timeouts;
pub use transaction::Transaction;

/// What an attempt says in the place of a next hop when the message cannot be given to it; a report knows it as our own word.
pub const MESSAGE_UNREADABLE: &str = own_words::UNREADABLE;

/// What the client says where an address or a header needs SMTPUTF8 and the server does not offer it: another one may (RFC 6531 3.2).
pub const NEEDS_SMTPUTF8: &str = own_words::NEEDS_SMTPUTF8;
