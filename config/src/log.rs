//! `[log]`: what the process says, and the mail log.

use std::path::PathBuf;

use crate::choice::choice;
use crate::section::Section;

/// `[log]`: messages of the process go to standard error, the mail log where `mail_output` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// For people or for programs.
    pub format: LogFormat,
    /// The least important messages that are written.
    pub level: LogLevel,
    /// What a shard does when the mail log cannot be written as fast as mail is accepted.
    pub mail: MailLog,
    /// The form of the mail log's lines.
    pub mail_format: LogFormat,
    /// Where the mail log goes.
    pub mail_output: MailOutput,
}

choice! {
    /// The form of messages.
    LogFormat {
        /// One line of text.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

choice! {
    /// How important a message is.
    LogLevel {
        /// Wakes somebody.
        Error = "error",
        /// Is the operator's to fix.
        Warn = "warn",
        /// The life of the process.
        Info = "info",
        /// The dialogues.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

choice! {
    /// What a shard does when it has no room left for lines of the mail log.
    MailLog {
        /// Lines are dropped and counted, and a line `lost=N` says so.
        BestEffort = "best-effort",
        /// MAIL is refused with 452 until there is room.
        Required = "required",
    }
}

/// Where the mail log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MailOutput {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Appended to this file; a relative path starts at the config file's folder.
    File(PathBuf),
}

impl Log {
    pub(crate) fn read(mut section: Section<'_, '_>) -> Log {
        let default = Log::default();
        let log = Log {
            format: section.read("format", default.format),
            level: section.read("level", default.level),
            mail: section.read("mail", default.mail),
            mail_format: section.read("mail_format", default.mail_format),
            mail_output: match section.optional::<String>("mail_output").as_deref() {
                None => default.mail_output,
                Some("stdout") => MailOutput::Stdout,
                Some("stderr") => MailOutput::Stderr,
                Some(_) => MailOutput::File(section.path("mail_output", "stdout")),
            },
        };
        section.finish();
        log
    }
}

impl Default for Log {
    fn default() -> Log {
        Log {
            format: LogFormat::Text,
            level: LogLevel::Info,
            mail: MailLog::BestEffort,
            mail_format: LogFormat::Text,
            mail_output: MailOutput::Stdout,
        }
    }
}
