//! What is wrong with a config file, and where.

use std::fmt;
use std::path::PathBuf;

/// One mistake: file, line, key, value and what is allowed.
///
/// Shown as `ringpost.toml:12: relay.networks: "10.0.0.0/33" is not a network: the prefix length is 0 to 32`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The file as the caller named it.
    pub path: PathBuf,
    /// Line of the value (or of the section, when a key is missing), from 1. None: nothing in the file belongs to it.
    pub line: Option<u32>,
    /// The key with its sections, for instance `spool.segment_bytes` or `listener[2].address`; empty when the text is not TOML.
    pub key: String,
    /// The value as written in the file, cut at 80 characters; None when there is none.
    pub value: Option<String>,
    /// What is wrong and what is allowed; reads on after the value.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        f.write_str(": ")?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        if let Some(value) = &self.value {
            write!(f, "{value} ")?;
        }
        f.write_str(&self.message)
    }
}

impl ConfigError {
    /// Key, value and message, for a text whose lines nobody has seen.
    pub fn without_place(&self) -> String {
        ConfigError { path: PathBuf::new(), line: None, ..self.clone() }.to_string().trim_start_matches(": ").to_owned()
    }
}

/// All mistakes of one file, in the order of their lines; never empty. Shown one a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}
