//! The server side: a [`Session`] reads commands and content and says what is to be done.
//!
//! The driver's loop, in short:
//!
//! ```text
//! session.banner(&input, &mut replies)
//! loop { match session.next(&mut input, &mut replies) {
//!     Read       send the replies, receive (deadline: session.timeout()), go on
//!     Send       send the replies, go on
//!     Mail       ask policy, disk, quota      -> session.mail(verdict, ..)
//!     Recipient  ask policy                   -> session.recipient(verdict, ..)
//!     Content    session.content(..) until End, sending replies and receiving on More
//!     Abort      drop the content that was put
//!     Commit     make envelope + content durable -> session.committed(..)
//!     Delay      send the replies, wait, go on
//!     Close      send the replies, drop the content that was put, close
//! } }
//! ```

mod action;
mod commands;
mod replies;
mod session;
mod settings;
mod transaction;

pub use action::{Action, CommitFailure, ContentStep, Timeout, TimeoutKind, Verdict};
pub use replies::{Line, Replies};
pub use session::{REPLIES_BYTES_MAX, Session};
pub use settings::{ServerOptions, ServerSettings, SettingsError};
