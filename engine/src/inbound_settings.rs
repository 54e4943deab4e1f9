//! What the config says about inbound sessions, as the SMTP server wants it.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use ringpost_config::{BareNewline, Config, TextLine};
use ringpost_smtp::{
    address::PathLimits,
    content::{self, ContentRules},
    extension::Extensions,
    server::{ServerOptions, ServerSettings},
};

use crate::{shared_limits::CountedLimits, tags::TagSources};

/// What all sessions of a shard share. It can change while the shard runs; who holds the present settings keeps them.
pub struct InboundSettings(RefCell<Rc<Present>>);

impl InboundSettings {
    /// From the config, which was checked.
    pub fn new(config: &Arc<Config>, hostname: &str) -> Self {
        InboundSettings(RefCell::new(Rc::new(Present::new(config, hostname))))
    }

    /// As they are now.
    pub fn present(&self) -> Rc<Present> {
        self.0.borrow().clone()
    }

    /// Others from now on.
    pub fn replace(&self, config: &Arc<Config>, hostname: &str) {
        *self.0.borrow_mut() = Rc::new(Present::new(config, hostname));
    }
}

/// The settings of the moment, and what was made of them.
pub struct Present {
    /// Who may send to whom.
    pub config: Arc<Config>,
    /// The server's limits and texts for strangers.
    pub strangers: Rc<ServerSettings>,
    /// For relay networks: priorities count, and mail may be for later (RFC 4865 is for submission).
    pub trusted: Rc<ServerSettings>,
    /// Where tags come from.
    pub(crate) tags: TagSources,
    /// Limits over all nodes.
    pub(crate) counted: CountedLimits,
}

impl Present {
    fn new(config: &Arc<Config>, hostname: &str) -> Self {
        let smtp = &config.smtp;
        let options = ServerOptions {
            hostname: hostname.to_owned(),
            postmaster: smtp.postmaster.clone(),
            extensions: Extensions::DEFAULT,
            content: ContentRules {
                content_bytes_max: smtp.content_max.bytes(),
                header_bytes_max: smtp.header_max.bytes(),
                header_lines_max: smtp.header_lines_max,
                hops_max: smtp.received_max,
                bare_newline: match smtp.bare_newline {
                    BareNewline::Reject => content::BareNewline::Reject,
                    BareNewline::Normalize => content::BareNewline::Normalize,
                },
                text_line: match smtp.text_line {
                    TextLine::Relaxed => content::TextLine::Relaxed,
                    TextLine::Strict => content::TextLine::Strict,
                },
            },
            command_line_bytes_max: smtp.command_line_max.bytes() as usize,
            paths: PathLimits {
                local_part_bytes_max: smtp.local_part_max.bytes() as usize,
                path_bytes_max: smtp.path_max.bytes() as usize,
            },
            hold_seconds_max: u32::try_from(smtp.hold_max.as_secs()).unwrap_or(u32::MAX),
            priority_max: 0,
            recipients_max: smtp.recipients_max as usize,
            messages_max: smtp.messages_per_connection,
            bad_commands_soft: u16::try_from(smtp.bad_commands_soft).unwrap_or(u16::MAX),
            bad_commands_hard: u16::try_from(smtp.bad_commands_max).unwrap_or(u16::MAX),
            junk_commands_max: u16::try_from(smtp.junk_commands_max).unwrap_or(u16::MAX),
            bad_command_delay: smtp.bad_command_delay,
            idle_timeout: smtp.idle_timeout,
            command_timeout: smtp.command_timeout,
            data_timeout: smtp.data_timeout,
            data_rate_min: u32::try_from(smtp.data_rate_min.bytes_per_second()).unwrap_or(u32::MAX),
        };
        let mut trusted = ServerOptions { priority_max: 9, ..options.clone() };
        if trusted.hold_seconds_max > 0 {
            trusted.extensions = trusted.extensions.with(Extensions::FUTURE_RELEASE);
        }
        let settings = |options| Rc::new(ServerSettings::new(options).expect("the config has the same limits"));
        Present {
            config: config.clone(),
            strangers: settings(options),
            trusted: settings(trusted),
            tags: TagSources::new(config),
            counted: CountedLimits::new(config),
        }
    }
}
