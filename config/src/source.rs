//! Where each setting stands in its file.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::ConfigError;

/// Longest value shown in a message, in characters: a mistake is a line, not a page.
const VALUE_CHARS_MAX: usize = 80;

/// A setting as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    line: u32,
    value: Option<String>,
}

/// The file's name, and line and written value of every key in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Source {
    path: PathBuf,
    origins: BTreeMap<String, Origin>,
}

impl Source {
    pub(crate) fn new(path: &Path) -> Source {
        Source { path: path.to_path_buf(), origins: BTreeMap::new() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn record(&mut self, key: &str, line: u32, value: Option<String>) {
        self.origins.insert(key.to_owned(), Origin { line, value });
    }

    pub(crate) fn line(&self, key: &str) -> Option<u32> {
        self.origins.get(key).map(|origin| origin.line)
    }

    /// An error at `key`; where the key isn't in the file, at the nearest section that is.
    pub(crate) fn error(&self, key: &str, message: impl Into<String>) -> ConfigError {
        let origin = self.origins.get(key);
        let mut line = origin.map(|origin| origin.line);
        let mut parent = key;
        while line.is_none()
            && let Some((section, _)) = parent.rsplit_once('.')
        {
            line = self.line(section);
            parent = section;
        }
        let value = origin.and_then(|origin| origin.value.clone());
        ConfigError { path: self.path.clone(), line, key: key.to_owned(), value, message: message.into() }
    }
}

/// Where the lines of a text begin: a file with ten thousand domains asks for many.
pub(crate) struct Lines {
    /// Offset of each line but the first, in bytes.
    starts: Vec<usize>,
}

impl Lines {
    pub(crate) fn new(text: &str) -> Lines {
        Lines { starts: text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1).collect() }
    }

    /// Line of a byte offset, from 1.
    pub(crate) fn of(&self, offset: usize) -> u32 {
        let before = self.starts.partition_point(|start| *start <= offset);
        u32::try_from(before).unwrap_or(u32::MAX - 1) + 1
    }
}

/// A value as it stands in the file, its first line, cut at [`VALUE_CHARS_MAX`].
pub(crate) fn written(text: &str, span: Range<usize>) -> Option<String> {
    let value = text.get(span)?;
    let line = value.lines().next().unwrap_or_default();
    let mut shown: String = line.chars().take(VALUE_CHARS_MAX).collect();
    if shown.len() < value.len() {
        shown.push_str("...");
    }
    Some(shown)
}
