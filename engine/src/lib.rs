//! One core's engine: sessions, committer, queue and delivery of a shard. Read [`shard`] first.
//!
//! The rules are elsewhere and pure (`ringpost-smtp`, `ringpost-spool`, `ringpost-queue`); what is here drives them over the ring.
#![forbid(unsafe_code)]

pub mod admission;
mod attempt;
mod boot_number;
mod clock;
mod committer;
mod content;
mod content_sending;
pub mod control;
mod delivery;
mod destination_events;
mod dialing;
mod envelope_times;
mod file_threads;
mod homes;
mod housekeeping;
mod idling;
mod inbound;
mod inbound_settings;
mod incoming;
pub mod inspection;
mod listener;
pub mod load;
mod log_events;
pub mod mail_log;
mod mailbox_delivery;
mod maildir;
mod maildir_path;
pub mod mesh;
pub mod message_record;
pub mod metrics;
mod outbound;
mod passing;
mod policy;
pub mod pool;
pub mod preparation;
pub mod priority;
mod queueing;
mod record_id;
mod recovering;
pub mod reload;
mod remote_content;
mod report_origin;
mod reporting;
pub mod request_lane;
mod routes;
mod segment_files;
pub mod shard;
mod shard_control;
mod shard_life;
pub mod share;
mod spare_sessions;
pub mod spool_home;
mod staging;
mod stored_envelope;
