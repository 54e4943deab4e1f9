//! `[smtp]`: Ringpost as a server, and the limits of its sessions.

use std::time::Duration;

use crate::choice::choice;
use crate::name::parse_address;
use crate::section::Section;
use crate::{ByteRate, ByteSize, WithoutValkey};

/// Most recipients that a transaction can be allowed: the state of all of them, with a reply to each, is one record of the spool.
pub const RECIPIENTS_MAX: u32 = 2000;

/// `[smtp]`: what one session, one transaction and one peer may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Smtp {
    /// The address that a `Postmaster` without a domain is (RFC 5321 4.5.1), of an own domain, which is in lower case. Not set: postmaster@ the
    /// first `[[domain]]` of the file; None without any.
    pub postmaster: Option<String>,
    /// Content of one message, as SIZE announces it (RFC 1870); beyond it 552 5.3.4.
    pub content_max: ByteSize,
    /// Recipients of one transaction, 100 (RFC 5321 4.5.3.1.8) to [`RECIPIENTS_MAX`]; each further one 452 4.5.3.
    pub recipients_max: u32,
    /// The longest time that a client of a relay network may have a message held for (RFC 4865); zero announces no such thing.
    /// Beyond it 501 5.5.4.
    pub hold_max: Duration,
    /// The header field in which clients of relay networks say how urgent a message is, 0 to 9; None: none is looked at.
    pub priority_header: Option<String>,
    /// Messages of one connection; then 421 4.7.0.
    pub messages_per_connection: u32,
    /// A command line with its CRLF; beyond it 500 5.5.2.
    pub command_line_max: ByteSize,
    /// Octets of a local part, 64 at least (RFC 5321 4.5.3.1.1); beyond it 501 5.1.3 or 5.1.7.
    pub local_part_max: ByteSize,
    /// Octets of a path, 256 (RFC 5321 4.5.3.1.3) to 512; beyond it 501 5.1.3 or 5.1.7.
    pub path_max: ByteSize,
    /// A CR or LF by itself inside content.
    pub bare_newline: BareNewline,
    /// Lines of content longer than 998 octets.
    pub text_line: TextLine,
    /// The header block; beyond it 552 5.3.4.
    pub header_max: ByteSize,
    /// Lines of the header block; beyond it 552 5.3.4.
    pub header_lines_max: u32,
    /// Received lines before a message counts as looping (RFC 5321 6.3); then 554 5.4.6.
    pub received_max: u32,
    /// Sessions of all shards together; None: derived from the memory. Beyond it 421 4.7.0.
    pub sessions_max: Option<u32>,
    /// Sessions of one IPv4 address or IPv6 /64, except relay networks; beyond it 421 4.7.0.
    pub sessions_per_address: u32,
    /// New connections a minute from one IPv4 address or IPv6 /64, except relay networks; None: no limit. Beyond it 421 4.7.0.
    pub connections_per_minute: Option<u32>,
    /// Messages a minute, likewise; beyond it 450 4.7.1.
    pub messages_per_minute: Option<u32>,
    /// Recipients a minute, likewise; beyond it 450 4.7.1.
    pub recipients_per_minute: Option<u32>,
    /// Messages a minute from one IPv4 address or IPv6 /64 over all nodes, except relay networks; None: no limit. Beyond it 450 4.7.1.
    pub cluster_messages_per_minute: Option<u32>,
    /// What of it holds while Valkey is away.
    pub cluster_messages_without_valkey: WithoutValkey,
    /// Silence of the peer between commands, 5 minutes at least (RFC 5321 4.5.3.2.7); then 421 4.4.2.
    pub idle_timeout: Duration,
    /// From the first octet of a command to its CRLF; then 421 4.4.2.
    pub command_timeout: Duration,
    /// From 354 to the end of content; then 421 4.4.2.
    pub data_timeout: Duration,
    /// Octets a second that content must come at, averaged; slower 421 4.4.2. Zero: no such limit.
    pub data_rate_min: ByteRate,
    /// Bad commands before each further one is answered after `bad_command_delay`.
    pub bad_commands_soft: u32,
    /// How long such a reply is held back.
    pub bad_command_delay: Duration,
    /// Bad commands before the session ends with 421 4.7.0; at least `bad_commands_soft`.
    pub bad_commands_max: u32,
    /// Commands that carry no mail (NOOP, VRFY, RSET, HELP, repeated EHLO) before the session ends with 421 4.7.0.
    pub junk_commands_max: u32,
}

choice! {
    /// A CR or LF by itself inside content. In no case does it end content.
    BareNewline {
        /// The content is read to its end and refused with 550 5.5.2, the session ends.
        Reject = "reject",
        /// It becomes a CRLF.
        Normalize = "normalize",
    }
}

choice! {
    /// Lines of content longer than 998 octets (RFC 5321 4.5.3.1.6).
    TextLine {
        /// Passed on as they are.
        Relaxed = "relaxed",
        /// Refused with 550 5.6.0.
        Strict = "strict",
    }
}

impl Smtp {
    pub(crate) fn read(mut section: Section<'_, '_>) -> Smtp {
        let bytes = ByteSize::new;
        let second = Duration::from_secs(1);
        let day = Duration::from_secs(86_400);
        let rates = 1..=10_000_000;
        let default = Smtp::default();
        let priority_header = section.optional("priority_header").filter(|name: &String| name != "off");
        if priority_header.as_ref().is_some_and(|name| name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':'))
        {
            section.refuse("priority_header", "is not the name of a header field: write for instance \"X-Queue-Priority\", or \"off\"");
        }
        // RFC 6758 3: its values go from -9 to 9, so that 0 is the middle there and the last here.
        if priority_header.as_ref().is_some_and(|name| name.eq_ignore_ascii_case("MT-Priority")) {
            section.refuse("priority_header", "has values from -9 to 9 (RFC 6758), and not from 0 to 9: take a field of your own");
        }
        let postmaster = section.optional::<String>("postmaster").and_then(|address| {
            let parsed = parse_address(&address);
            if parsed.is_none() {
                section.refuse("postmaster", "is not an address, for instance \"postmaster@example.org\"");
            }
            parsed
        });
        let smtp = Smtp {
            postmaster,
            // RFC 5321 4.5.3.1.7: at least 64 KiB of content must be possible.
            content_max: section.within("content_max", default.content_max, ByteSize::kib(64)..=ByteSize::gib(1)),
            recipients_max: section.within("recipients_max", default.recipients_max, 100..=RECIPIENTS_MAX),
            priority_header,
            hold_max: section.within("hold_max", default.hold_max, Duration::ZERO..=day * 365),
            messages_per_connection: section.within("messages_per_connection", default.messages_per_connection, 1..=999_999),
            command_line_max: section.within("command_line_max", default.command_line_max, bytes(1024)..=ByteSize::kib(16)),
            local_part_max: section.within("local_part_max", default.local_part_max, bytes(64)..=bytes(255)),
            path_max: section.within("path_max", default.path_max, bytes(256)..=bytes(512)),
            bare_newline: section.read("bare_newline", default.bare_newline),
            text_line: section.read("text_line", default.text_line),
            header_max: section.within("header_max", default.header_max, ByteSize::kib(16)..=ByteSize::mib(16)),
            header_lines_max: section.within("header_lines_max", default.header_lines_max, 100..=100_000),
            received_max: section.within("received_max", default.received_max, 10..=1000),
            sessions_max: section.word_or_within("sessions_max", "auto", default.sessions_max, 1..=10_000_000),
            sessions_per_address: section.within("sessions_per_address", default.sessions_per_address, 1..=10_000_000),
            connections_per_minute: section.word_or_within("connections_per_minute", "off", None, rates.clone()),
            messages_per_minute: section.word_or_within("messages_per_minute", "off", None, rates.clone()),
            recipients_per_minute: section.word_or_within("recipients_per_minute", "off", None, rates.clone()),
            cluster_messages_per_minute: section.word_or_within("cluster_messages_per_minute", "off", None, rates),
            cluster_messages_without_valkey: section.read("cluster_messages_without_valkey", default.cluster_messages_without_valkey),
            idle_timeout: section.within("idle_timeout", default.idle_timeout, second..=day),
            command_timeout: section.within("command_timeout", default.command_timeout, second..=day),
            data_timeout: section.within("data_timeout", default.data_timeout, second..=day),
            data_rate_min: section.within("data_rate_min", default.data_rate_min, ByteRate::new(0)..=ByteRate::new(1 << 20)),
            bad_commands_soft: section.within("bad_commands_soft", default.bad_commands_soft, 1..=1000),
            bad_command_delay: section.within("bad_command_delay", default.bad_command_delay, Duration::ZERO..=second * 30),
            bad_commands_max: section.within("bad_commands_max", default.bad_commands_max, 1..=1000),
            junk_commands_max: section.within("junk_commands_max", default.junk_commands_max, 1..=65_535),
        };
        section.finish();
        smtp
    }
}

impl Default for Smtp {
    fn default() -> Smtp {
        Smtp {
            content_max: ByteSize::mib(50),
            recipients_max: 1000,
            priority_header: None,
            hold_max: Duration::from_secs(30 * 86_400),
            messages_per_connection: 1000,
            postmaster: None,
            command_line_max: ByteSize::new(2048),
            local_part_max: ByteSize::new(64),
            path_max: ByteSize::new(256),
            bare_newline: BareNewline::Reject,
            text_line: TextLine::Relaxed,
            header_max: ByteSize::kib(256),
            header_lines_max: 2000,
            received_max: 100,
            sessions_max: None,
            sessions_per_address: 50,
            connections_per_minute: None,
            messages_per_minute: None,
            recipients_per_minute: None,
            cluster_messages_per_minute: None,
            cluster_messages_without_valkey: WithoutValkey::Share,
            idle_timeout: Duration::from_secs(300),
            command_timeout: Duration::from_secs(300),
            data_timeout: Duration::from_secs(1800),
            data_rate_min: ByteRate::new(500),
            bad_commands_soft: 10,
            bad_command_delay: Duration::from_secs(1),
            bad_commands_max: 20,
            junk_commands_max: 100,
        }
    }
}
