//! Typed settings with units, and their checks.
//!
//! Pure: the caller reads the file and passes its text and path to [`Config::parse`]; nothing here opens a file or looks at the
//! machine. All mistakes of a file are reported at once, each with file, line, key, value and what is allowed. What can only be
//! checked later (a core this machine lacks, a port in use) is reported with the same line by [`Config::error_at`].
//!
//! [`DEFAULT_TOML`] documents every key. Read [`Config`] first, then [`topology::Plan`].
#![forbid(unsafe_code)]

mod advice;
mod bounce;
mod byte_size;
mod check;
mod choice;
mod cluster;
mod config;
mod core_set;
mod delivery;
mod destination_policy;
mod difference;
mod dns;
mod domain;
mod duration;
mod error;
mod listener;
mod log;
mod mailboxes;
mod name;
mod network;
mod overlay;
mod percent;
mod process;
mod queue;
mod rate;
mod route;
mod section;
mod sender;
mod setting;
mod shards;
mod shared_limit;
mod smarthost;
mod smtp;
mod source;
mod split_limits;
mod spool;
pub mod topology;

pub use bounce::{Bounce, Placeholder, Template};
pub use byte_size::{ByteRate, ByteSize};
pub use cluster::{Admin, CONFIG_POLL, Cluster, ClusterRole};
pub use config::Config;
pub use core_set::{CORE_ID_MAX, CoreSet};
pub use delivery::{Delivery, DeliveryMode, OFFERED_CONTENT_MAX};
pub use destination_policy::{Breaker, DestinationPolicy, PolicyOverrides, Pool};
pub use difference::Difference;
pub use dns::Dns;
pub use domain::{Domain, Domains};
pub use duration::{format_duration, parse_duration};
pub use error::{ConfigError, ConfigErrors};
pub use listener::Listener;
pub use log::{Log, LogFormat, LogLevel, MailLog, MailOutput};
pub use mailboxes::{StoreAddress, UnknownMailbox};
pub use network::{Network, Relay};
pub use overlay::NODE_SECTIONS;
pub use percent::Percent;
pub use process::{Control, Memory};
pub use queue::{EXPIRY_MAX, Queue, Retry};
pub use rate::Rate;
pub use route::{DomainPattern, ROUTE_NAME_BYTES_MAX, Route, RouteOverrides, Routes, Via};
pub use sender::SenderPattern;
pub use shards::{CoordinatorCore, Cores, IoWq, Shards, Smt};
pub use shared_limit::WithoutValkey;
pub use smarthost::{SMARTHOSTS_MAX, SMTP_PORT, Smarthost, SmarthostAddress};
pub use smtp::{BareNewline, RECIPIENTS_MAX, Smtp, TextLine};
pub use spool::{OnDiskFailure, Spool};

/// The documented defaults, as `ringpost config default` prints them.
///
/// Every key stands in it with its default (those without one are commented out), and a sentence: what it bounds and what happens
/// at the bound. It parses, to [`Config::default`].
pub const DEFAULT_TOML: &str = include_str!("../default.toml");
