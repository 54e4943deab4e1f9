//! What can go wrong with a call to Valkey, told apart by what the caller does about it (Q16).

use std::time::Duration;

/// A call that brought no answer.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
pub enum ValkeyError {
    /// The circuit is open: nothing was sent. What the last call came to that failed.
    #[error("Valkey is left alone for the moment: earlier calls failed, the last with: {0}")]
    CircuitOpen(String),
    /// No connection, or one that broke: it may have been done or not. Safe to repeat (Q9).
    #[error("Valkey cannot be reached: {0}")]
    Unreachable(String),
    /// The same by a sound connection: no answer within this deadline of the call's own.
    #[error("Valkey cannot be reached: no answer within {} ms", .0.as_millis())]
    Late(Duration),
    /// It answers, but cannot serve now: loading, read-only, without replicas, a busy script. Go local, try later.
    #[error("Valkey cannot serve: {0}")]
    Unavailable(String),
    /// It has no room for what a call writes (`maxmemory`): nothing was changed. All else it serves, so no circuit counts it; what was to be written
    /// goes local.
    #[error("Valkey is full: {0}")]
    Full(String),
    /// The operator has to act: password, rights, eviction policy. Go local, and say so loudly.
    #[error("Valkey refuses this node: {0}")]
    Misconfigured(String),
    /// This node's number of the queue's partitions is not that of the cluster, or was not compared yet: nothing was sent. Go local.
    #[error("{0}")]
    NotAgreed(String),
    /// A script refused its arguments, or the server a command: our bug, or damaged data. Nothing was changed.
    #[error("Valkey refuses the call: {0}")]
    Refused(String),
    /// The server does not know the script's hash: it was restarted. The driver sends the text.
    #[error("Valkey does not know the script")]
    NoScript,
    /// An answer in a form that scripts do not give. Data in Valkey is not trusted.
    #[error("an answer of Valkey is not understood: {0}")]
    Malformed(&'static str),
}

impl ValkeyError {
    /// Whether the server itself is to blame: go local.
    pub fn is_outage(&self) -> bool {
        use ValkeyError::{Full, Late, Misconfigured, NotAgreed, Unavailable, Unreachable};
        matches!(self, Unreachable(_) | Late(_) | Unavailable(_) | Misconfigured(_) | Full(_) | NotAgreed(_))
    }

    /// The same, or it is left alone since it was.
    pub fn is_away(&self) -> bool {
        self.is_outage() || matches!(self, ValkeyError::CircuitOpen(_))
    }

    /// No connection, or no answer in time.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, ValkeyError::Unreachable(_) | ValkeyError::Late(_))
    }

    /// Whether the call may have reached the server.
    pub fn was_sent(&self) -> bool {
        !matches!(self, ValkeyError::CircuitOpen(_) | ValkeyError::NotAgreed(_))
    }

    /// Whether a key was of another type than the call wants: nothing was changed by a script that looks at its keys first.
    pub(crate) fn is_of_a_type(&self) -> bool {
        matches!(self, ValkeyError::Refused(text) if text.contains("WRONGTYPE"))
    }

    /// Whether the user lacks a right: what was asked is refused until somebody gives it that.
    pub(crate) fn is_of_rights(&self) -> bool {
        matches!(self, ValkeyError::Misconfigured(text) if text.contains("NOPERM") || text.contains("ACL failure in script"))
    }

    /// By the first word of a server's error and the whole of it.
    pub(crate) fn of_reply(code: &str, text: String) -> ValkeyError {
        match code {
            "OOM" => ValkeyError::Full(text),
            "LOADING" | "READONLY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "NOREPLICAS" | "MISCONF" | "BUSY" | "EXECABORT"
            | "MOVED" | "ASK" | "UNKILLABLE" => ValkeyError::Unavailable(text),
            "NOAUTH" | "NOPERM" | "WRONGPASS" | "DENIED" => ValkeyError::Misconfigured(without_user(text)),
            "NOSCRIPT" => ValkeyError::NoScript,
            // Inside a script a missing right has no code of its own.
            _ if text.contains("ACL failure in script") => ValkeyError::Misconfigured(without_user(text)),
            _ => ValkeyError::Refused(text),
        }
    }

    pub(crate) fn of_client(error: &redis::RedisError) -> ValkeyError {
        let text = in_words(&error.to_string(), error.kind() == redis::ErrorKind::Parse);
        match error.code() {
            Some(code) => ValkeyError::of_reply(code, text),
            None => match error.kind() {
                redis::ErrorKind::AuthenticationFailed => ValkeyError::Misconfigured(text),
                redis::ErrorKind::UnexpectedReturnType | redis::ErrorKind::Parse => ValkeyError::Unreachable(text),
                redis::ErrorKind::InvalidClientConfig => ValkeyError::Misconfigured(text),
                _ => ValkeyError::Unreachable(text),
            },
        }
    }
}

/// In one line, whatever a server that is none of Valkey's says, and with what is likely to be wrong.
fn in_words(text: &str, is_not_parsed: bool) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.contains("received corrupt message") {
        format!("{line}: this does not speak TLS, which valkeys:// wants: write valkey://, or name the server's port for TLS")
    } else if is_not_parsed {
        format!("this does not answer as a Valkey does, another service may have its port: {line}")
    } else {
        line
    }
}

/// Who asks `/ready` need not know as whom this node logs in; the operator does. The command that the user may not run stays.
fn without_user(text: String) -> String {
    let after_name = |(before, rest): (&str, &str)| {
        let (name, after) = rest.split_once(" has no permissions")?;
        (!name.contains(' ')).then(|| format!("{before}its user has no permissions{after}"))
    };
    text.split_once("User ").and_then(after_name).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name came into `last_error`, and with it into the answer to `/ready`, which anybody may ask.
    #[test]
    fn a_missing_right_is_named_and_the_user_is_not() {
        for (text, told) in [
            (
                "NOPERM User ringpost has no permissions to run the 'evalsha' command",
                "NOPERM its user has no permissions to run the 'evalsha' command",
            ),
            (
                "NOPERM ACL failure in script: User a.b has no permissions to run the 'time' command script: ab, on @user_script:3.",
                "NOPERM ACL failure in script: its user has no permissions to run the 'time' command script: ab, on @user_script:3.",
            ),
            ("NOPERM No permissions to access a key", "NOPERM No permissions to access a key"),
        ] {
            let error = ValkeyError::of_reply("NOPERM", text.to_owned());
            assert_eq!(error, ValkeyError::Misconfigured(told.to_owned()));
            assert!(error.is_of_rights());
        }
        assert!(!ValkeyError::of_reply("WRONGPASS", "WRONGPASS invalid username-password pair".to_owned()).is_of_rights());
    }

    /// What an SMTP server says to a call broke the entry of the process log over several lines, and did not say what was wrong.
    #[test]
    fn what_is_no_valkey_is_told_so_in_one_line() {
        let told = in_words("Incompatible type - Parse error at 1\nUnexpected `2`\x1b[31m", true);
        assert_eq!(
            told,
            "this does not answer as a Valkey does, another service may have its port: Incompatible type - Parse error at 1 Unexpected `2` [31m"
        );
        let told = in_words("received corrupt message of type InvalidContentType", false);
        assert!(told.contains("this does not speak TLS, which valkeys:// wants"), "{told}");
        assert_eq!(in_words("timed out", false), "timed out");
    }

    #[test]
    fn server_errors_are_told_apart() {
        let of = |code: &str| ValkeyError::of_reply(code, String::new());
        for code in ["LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS", "MISCONF", "BUSY", "EXECABORT"] {
            assert!(matches!(of(code), ValkeyError::Unavailable(_)) && of(code).is_outage(), "{code}");
        }
        assert!(matches!(of("OOM"), ValkeyError::Full(_)) && of("OOM").is_outage());
        for code in ["NOAUTH", "NOPERM", "WRONGPASS"] {
            assert!(matches!(of(code), ValkeyError::Misconfigured(_)), "{code}");
        }
        let denied = "ERR ACL failure in script: User ringpost has no permissions to run the 'time' command".to_owned();
        assert!(matches!(ValkeyError::of_reply("ERR", denied), ValkeyError::Misconfigured(_)));
        assert!(matches!(of("ERR"), ValkeyError::Refused(_)) && !of("ERR").is_outage());
        assert!(matches!(of("CROSSSLOT"), ValkeyError::Refused(_)));
    }
}
