//! Config files as text: read, or refused with what is said about them.

use std::path::Path;

use ringpost_config::Config;

/// A file that must be read.
pub fn parse(text: &str) -> Config {
    Config::parse(text, Path::new("/etc/ringpost/ringpost.toml")).unwrap_or_else(|errors| panic!("{errors}"))
}

/// What is said about a file, one line a mistake.
pub fn refused(text: &str) -> Vec<String> {
    let errors = Config::parse(text, Path::new("ringpost.toml")).expect_err("the file must be refused");
    errors.to_string().lines().map(str::to_owned).collect()
}

/// Exactly this is said about a file.
#[track_caller]
pub fn assert_refused(text: &str, expected: &[&str]) {
    assert_eq!(refused(text), expected, "{text}");
}
