//! `[delivery]`: Ringpost as a client.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::ByteSize;
use crate::choice::choice;
use crate::destination_policy::{CONNECTIONS_MAX, DestinationPolicy, PolicyOverrides};
use crate::section::Section;

/// `[delivery]`: connections to next hops and their deadlines (RFC 5321 4.5.3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Who delivers what is accepted here.
    pub mode: DeliveryMode,
    /// Whether this node delivers at all; false only with [`DeliveryMode::Shared`].
    pub deliver: bool,
    /// Connections to one destination at most, over all shards.
    pub connections_max: u32,
    /// Connections to one destination to begin with; success lets it grow to `connections_max`.
    pub window_initial: u32,
    /// Messages over one connection; None: as many as `max_lifetime` allows.
    pub messages_per_connection: Option<u32>,
    /// How each destination is treated.
    pub policy: DestinationPolicy,
    /// How long a destination that cannot be reached is left alone.
    pub dead_destination: Duration,
    /// Deadline of the TCP connection.
    pub connect_timeout: Duration,
    /// Deadline of the banner.
    pub banner_timeout: Duration,
    /// Deadline of the reply to EHLO or HELO.
    pub ehlo_timeout: Duration,
    /// Deadline of the reply to MAIL, and to RSET.
    pub mail_timeout: Duration,
    /// Deadline of the reply to RCPT.
    pub rcpt_timeout: Duration,
    /// Deadline of the reply to DATA.
    pub data_timeout: Duration,
    /// Deadline for a block of content to be taken by the peer.
    pub block_timeout: Duration,
    /// Deadline of the reply to the end of content.
    pub dot_timeout: Duration,
    /// Deadline of the reply to QUIT.
    pub quit_timeout: Duration,
    /// Deadline of each step of writing a message into maildirs.
    pub maildir_timeout: Duration,
}

choice! {
    /// Who delivers what a node accepts.
    DeliveryMode {
        /// The node itself.
        Local = "local",
        /// Whichever node of the cluster takes it; with Valkey away, the node itself.
        Shared = "shared",
    }
}

/// The largest content that can be offered to other nodes: `smtp.content_max` of a node that delivers nothing is at most this, and this
/// by default.
pub const OFFERED_CONTENT_MAX: ByteSize = ByteSize::mib(4);

/// Messages one connection can be allowed.
pub(crate) const MESSAGES_PER_CONNECTION_MAX: u32 = 1_000_000;

/// How long a destination can be left alone.
pub(crate) const DEAD_DESTINATION: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);

impl Delivery {
    pub(crate) fn read(mut section: Section<'_, '_>) -> Delivery {
        let second = Duration::from_secs(1);
        let hour = Duration::from_secs(3600);
        let default = Delivery::default();
        let messages_per_connection = default.messages_per_connection;
        let connections_max = section.within("connections_max", default.connections_max, 1..=CONNECTIONS_MAX);
        // Few connections make a small window, unless the file asks for both.
        let window_default = default.window_initial.min(connections_max);
        let window_initial = section.within("window_initial", window_default, 1..=CONNECTIONS_MAX);
        if window_initial > connections_max {
            section.refuse("window_initial", format!("is more than delivery.connections_max, which is {connections_max}"));
        }
        let (mode, deliver) = (section.read("mode", default.mode), section.read("deliver", default.deliver));
        if mode == DeliveryMode::Local && !deliver {
            section.refuse("deliver", "is a contradiction: with delivery.mode = \"local\" nobody would deliver this node's mail");
        }
        let policy = PolicyOverrides::read(&mut section);
        policy.check(&section, default.policy);
        let delivery = Delivery {
            mode,
            deliver,
            connections_max,
            window_initial,
            messages_per_connection: section.word_or_within(
                "messages_per_connection",
                "off",
                messages_per_connection,
                1..=MESSAGES_PER_CONNECTION_MAX,
            ),
            policy: policy.over(default.policy),
            dead_destination: section.within("dead_destination", default.dead_destination, DEAD_DESTINATION),
            connect_timeout: section.within("connect_timeout", default.connect_timeout, second..=hour),
            banner_timeout: section.within("banner_timeout", default.banner_timeout, second..=hour),
            ehlo_timeout: section.within("ehlo_timeout", default.ehlo_timeout, second..=hour),
            mail_timeout: section.within("mail_timeout", default.mail_timeout, second..=hour),
            rcpt_timeout: section.within("rcpt_timeout", default.rcpt_timeout, second..=hour),
            data_timeout: section.within("data_timeout", default.data_timeout, second..=hour),
            block_timeout: section.within("block_timeout", default.block_timeout, second..=hour),
            dot_timeout: section.within("dot_timeout", default.dot_timeout, second..=hour),
            quit_timeout: section.within("quit_timeout", default.quit_timeout, second..=hour),
            maildir_timeout: section.within("maildir_timeout", default.maildir_timeout, second..=hour),
        };
        section.finish();
        delivery
    }
}

impl Default for Delivery {
    fn default() -> Delivery {
        Delivery {
            mode: DeliveryMode::Local,
            deliver: true,
            connections_max: 20,
            window_initial: 5,
            messages_per_connection: None,
            policy: DestinationPolicy::default(),
            dead_destination: Duration::from_secs(300),
            connect_timeout: Duration::from_secs(30),
            banner_timeout: Duration::from_secs(300),
            ehlo_timeout: Duration::from_secs(300),
            mail_timeout: Duration::from_secs(300),
            rcpt_timeout: Duration::from_secs(300),
            data_timeout: Duration::from_secs(120),
            block_timeout: Duration::from_secs(180),
            dot_timeout: Duration::from_secs(600),
            quit_timeout: Duration::from_secs(10),
            maildir_timeout: Duration::from_secs(60),
        }
    }
}
