//! The pushed config on this node's disk: it runs again after a restart, with Valkey or without.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::durable_file::{remove, replace};

/// The file: one line with the version, then the text as it was pushed.
#[derive(Clone, Debug)]
pub struct PushedConfig {
    path: PathBuf,
    version: u64,
    text: Option<String>,
}

const HEAD: &str = "# pushed config, version ";

impl PushedConfig {
    /// As kept in `folder`. A file that is none is an error: the node would run other settings than its operator thinks.
    pub fn open(folder: &Path) -> io::Result<PushedConfig> {
        let path = folder.join("pushed.toml");
        let kept = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(PushedConfig { path, version: 0, text: None }),
            other => other.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?,
        };
        let damaged =
            || io::Error::new(io::ErrorKind::InvalidData, format!("{}: is not a pushed config; remove it to run without", path.display()));
        let (head, text) = kept.split_once('\n').ok_or_else(damaged)?;
        let version = head.strip_prefix(HEAD).and_then(|version| version.parse().ok()).ok_or_else(damaged)?;
        Ok(PushedConfig { version, text: Some(text.to_owned()), path })
    }

    /// 0 when there is none.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The text as it was pushed.
    pub fn text(&self) -> Option<String> {
        self.text.clone()
    }

    /// What this node is to begin with once `text` runs; not on disk before [`PushedConfig::write`].
    #[must_use]
    pub fn followed_by(&self, version: u64, text: String) -> PushedConfig {
        PushedConfig { path: self.path.clone(), version, text: Some(text) }
    }

    /// The next start begins with this. Durable when it returns; after an error the file may say the one or the other.
    pub fn write(&self) -> io::Result<()> {
        match self.content() {
            Some(content) => replace(&self.path, content.as_bytes()),
            None => remove(&self.path),
        }
    }

    /// As [`PushedConfig::write`], where the file may say so already: a full disk need not take it again.
    pub fn restore(&self) -> io::Result<()> {
        let kept = match fs::read_to_string(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            other => Some(other?),
        };
        if kept == self.content() { Ok(()) } else { self.write() }
    }

    fn content(&self) -> Option<String> {
        let version = self.version;
        self.text.as_ref().map(|text| format!("{HEAD}{version}\n{text}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let mut pushed = PushedConfig::open(folder.path()).unwrap();
        assert_eq!(pushed.version(), 0);
        let text = "[relay]\nnetworks = []\n";
        pushed = pushed.followed_by(7, text.to_owned());
        pushed.write().unwrap();
        let again = PushedConfig::open(folder.path()).unwrap();
        assert_eq!((again.version(), again.text().as_deref()), (7, Some(text)));
        fs::write(folder.path().join("pushed.toml"), "x").unwrap();
        assert!(PushedConfig::open(folder.path()).is_err());
    }
    #[test]
    fn what_was_not_taken_over_is_not_begun_with() {
        let folder = tempfile::tempdir().unwrap();
        let none = PushedConfig::open(folder.path()).unwrap();
        let first = none.followed_by(1, "a = 1\n".to_owned());
        first.write().unwrap();
        none.restore().unwrap();
        assert_eq!(PushedConfig::open(folder.path()).unwrap().version(), 0);
        first.write().unwrap();
        first.followed_by(2, "a = 2\n".to_owned()).write().unwrap();
        first.restore().unwrap();
        assert_eq!(PushedConfig::open(folder.path()).unwrap().version(), 1);
        // The disk is full: nothing was written, and nothing has to be.
        fs::create_dir(folder.path().join("pushed.new")).unwrap();
        assert!(first.followed_by(2, "a = 2\n".to_owned()).write().is_err());
        first.restore().unwrap();
        assert_eq!(PushedConfig::open(folder.path()).unwrap().version(), 1);
    }
}
