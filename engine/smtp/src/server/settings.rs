//! Limits and texts of a listener, worked out once for all of its sessions.

use std::cell::{Cell, Ref, RefCell};
use std::fmt::Write;
use std::time::Duration;

use crate::address::{PATH_BYTES_MAX, PathKind, PathLimits, is_domain, parse_path};
use crate::content::ContentRules;
use crate::envelope::RECIPIENTS_MAX;
use crate::extension::Extensions;

/// What can be set for a listener. The defaults are safe on the open internet.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Our name in banner, replies and trace fields: a domain, at most 255 octets.
    pub hostname: String,
    /// The address that a `Postmaster` without a domain is (RFC 5321 4.5.1), in canonical form; none: it stays as it is.
    pub postmaster: Option<String>,
    /// What EHLO announces; the rest is refused.
    pub extensions: Extensions,
    /// Limits of a message. `content_bytes_max` is what SIZE announces; above it 552 5.3.4.
    pub content: ContentRules,
    /// A command line with its CRLF, in octets, at least 512 (RFC 5321 4.5.3.1.4); beyond it 500 5.5.2.
    pub command_line_bytes_max: usize,
    /// Paths of MAIL and RCPT; beyond them 501 5.1.7 and 501 5.1.3.
    pub paths: PathLimits,
    /// Recipients of one transaction, 100 (RFC 5321 4.5.3.1.8) to [`RECIPIENTS_MAX`]; each further one gets 452 4.5.3.
    pub recipients_max: usize,
    /// The longest HOLDFOR in seconds, and for the driver the latest HOLDUNTIL, counted from now; beyond it 501 5.5.4.
    pub hold_seconds_max: u32,
    /// The highest MT-PRIORITY that is taken as it is, -9 to 9; a higher one becomes this (RFC 6710 4.1).
    pub priority_max: i8,
    /// Messages accepted on one connection, 1 to 999,999; a further MAIL gets 421 4.7.0.
    pub messages_max: u32,
    /// Bad commands that are answered at once; each further one costs [`ServerOptions::bad_command_delay`].
    pub bad_commands_soft: u16,
    /// The bad command that is answered with 421 4.7.0 and the end. A message accepted starts the count anew.
    pub bad_commands_hard: u16,
    /// Commands that do nothing (NOOP, RSET, VRFY, HELP, EHLO, an empty chunk) before a message is accepted; the next gets
    /// 421 4.7.0.
    pub junk_commands_max: u16,
    /// What a bad command beyond the soft limit waits.
    pub bad_command_delay: Duration,
    /// Silence between commands. RFC 5321 4.5.3.2.7: at least 5 minutes.
    pub idle_timeout: Duration,
    /// From the first octet of a command to its CRLF.
    pub command_timeout: Duration,
    /// From DATA or the first BDAT to the end of the message.
    pub data_timeout: Duration,
    /// Octets per second that content must have on average, once `idle_timeout` is over; 0: as few as `data_timeout` allows.
    pub data_rate_min: u32,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            hostname: "localhost".into(),
            postmaster: None,
            extensions: Extensions::DEFAULT,
            content: ContentRules::default(),
            command_line_bytes_max: 2048,
            paths: PathLimits::default(),
            recipients_max: 1000,
            hold_seconds_max: 30 * 86_400,
            priority_max: 0,
            messages_max: 1000,
            bad_commands_soft: 10,
            bad_commands_hard: 20,
            junk_commands_max: 100,
            bad_command_delay: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(300),
            command_timeout: Duration::from_secs(300),
            data_timeout: Duration::from_secs(1800),
            data_rate_min: 500,
        }
    }
}

/// Why options cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The host name is no domain.
    #[error("the host name must be letters, digits, hyphens and dots, at most 255 octets")]
    Hostname,
    /// The postmaster's address is no canonical one.
    #[error("the postmaster's address must be one, with the domain in lower case")]
    Postmaster,
    /// Out of range.
    #[error("the limit of recipients must be between 100 and {RECIPIENTS_MAX}")]
    Recipients,
    /// Out of range.
    #[error("the limit of messages per connection must be between 1 and 999999")]
    Messages,
    /// Shorter than RFC 5321 4.5.3.1.4 asks for.
    #[error("the limit of a command line must be 512 octets at least")]
    CommandLine,
    /// Shorter than RFC 5321 4.5.3.1 asks for, or longer than an envelope holds.
    #[error("the limits must be 64 octets at least for a local part, 256 to {PATH_BYTES_MAX} for a path")]
    Paths,
    /// An extension without the one it builds on.
    #[error("BINARYMIME needs CHUNKING, SMTPUTF8 needs 8BITMIME")]
    Extensions,
}

/// Options with everything worked out that sessions say again and again. Shared by the sessions of a listener.
#[derive(Debug)]
pub struct ServerSettings {
    options: ServerOptions,
    banner: String,
    ehlo: RefCell<String>,
    /// The minute whose latest time of release [`ServerSettings::ehlo`] names, since 1970.
    announced_minute: Cell<i64>,
}

impl ServerSettings {
    /// Checks the options.
    pub fn new(mut options: ServerOptions) -> Result<Self, SettingsError> {
        let extensions = options.extensions;
        if !is_domain(options.hostname.as_bytes()) {
            return Err(SettingsError::Hostname);
        }
        if options.postmaster.as_ref().is_some_and(|address| !is_canonical(address)) {
            return Err(SettingsError::Postmaster);
        }
        if !(100..=RECIPIENTS_MAX).contains(&options.recipients_max) {
            return Err(SettingsError::Recipients);
        }
        if !(1..=999_999).contains(&options.messages_max) {
            return Err(SettingsError::Messages);
        }
        if options.command_line_bytes_max < 512 {
            return Err(SettingsError::CommandLine);
        }
        if options.paths.local_part_bytes_max < 64 || !(256..=PATH_BYTES_MAX).contains(&options.paths.path_bytes_max) {
            return Err(SettingsError::Paths);
        }
        if extensions.has(Extensions::BINARY_MIME) && !extensions.has(Extensions::CHUNKING)
            || extensions.has(Extensions::SMTPUTF8) && !extensions.has(Extensions::EIGHT_BIT_MIME)
        {
            return Err(SettingsError::Extensions);
        }
        options.hostname.shrink_to_fit();
        let banner = format!("220 {} ESMTP\r\n", options.hostname);
        let ehlo = RefCell::new(ehlo(&options, 0));
        Ok(Self { options, banner, ehlo, announced_minute: Cell::new(0) })
    }

    /// The options.
    pub fn options(&self) -> &ServerOptions {
        &self.options
    }

    /// Our host name.
    pub fn hostname(&self) -> &str {
        &self.options.hostname
    }

    /// The whole greeting.
    pub(crate) fn banner(&self) -> &str {
        &self.banner
    }

    /// The whole reply to EHLO.
    pub(crate) fn ehlo(&self) -> Ref<'_, String> {
        self.ehlo.borrow()
    }

    /// Tells the time, for the latest time of release that FUTURERELEASE announces (RFC 4865 3). To be called before a session is
    /// greeted; does nothing within the same minute.
    pub fn tell_time(&self, unix_s: i64) {
        let minute = unix_s.div_euclid(60);
        if self.options.extensions.has(Extensions::FUTURE_RELEASE) && self.announced_minute.replace(minute) != minute {
            *self.ehlo.borrow_mut() = ehlo(&self.options, minute);
        }
    }
}

/// Is this an address as [`parse_path`] makes it, of ASCII?
fn is_canonical(address: &str) -> bool {
    let limits = PathLimits { local_part_bytes_max: PATH_BYTES_MAX, path_bytes_max: PATH_BYTES_MAX };
    let mut canonical = Vec::new();
    address.is_ascii()
        && parse_path(format!("<{address}>").as_bytes(), PathKind::Forward, limits, &mut canonical).is_ok()
        && canonical == address.as_bytes()
}

/// RFC 5321 4.1.1.1: the keywords, one a line, always in this order.
fn ehlo(options: &ServerOptions, minute: i64) -> String {
    let size = format!("SIZE {}", options.content.content_bytes_max);
    // RFC 9422 3.
    let limits = format!("LIMITS MAILMAX={} RCPTMAX={}", options.messages_max, options.recipients_max);
    let latest = time::OffsetDateTime::from_unix_timestamp(minute.saturating_mul(60).saturating_add(options.hold_seconds_max.into()));
    let latest = latest.ok().and_then(|latest| latest.format(&time::format_description::well_known::Rfc3339).ok());
    let future_release = format!("FUTURERELEASE {} {}", options.hold_seconds_max, latest.as_deref().unwrap_or("9999-12-31T23:59:59Z"));
    let keywords = [
        (Extensions::PIPELINING, "PIPELINING"),
        (Extensions::SIZE, &size),
        (Extensions::EIGHT_BIT_MIME, "8BITMIME"),
        (Extensions::SMTPUTF8, "SMTPUTF8"),
        (Extensions::ENHANCED_STATUS_CODES, "ENHANCEDSTATUSCODES"),
        (Extensions::CHUNKING, "CHUNKING"),
        (Extensions::BINARY_MIME, "BINARYMIME"),
        (Extensions::DSN, "DSN"),
        (Extensions::LIMITS, &limits),
        (Extensions::DELIVER_BY, "DELIVERBY"),
        (Extensions::FUTURE_RELEASE, &future_release),
        (Extensions::MT_PRIORITY, "MT-PRIORITY"),
        (Extensions::HELP, "HELP"),
    ];
    let mut lines: Vec<&str> = vec![&options.hostname];
    lines.extend(keywords.iter().filter(|(extension, _)| options.extensions.has(*extension)).map(|(_, keyword)| *keyword));
    let mut reply = String::new();
    for (at, line) in lines.iter().enumerate() {
        let separator = if at + 1 == lines.len() { ' ' } else { '-' };
        write!(reply, "250{separator}{line}\r\n").expect("writing into a String cannot fail");
    }
    reply
}
