//! The pushed config on this node's disk: it runs again after a restart, with Valkey or without.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::floor_file::replace;

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

    /// Durable when it returns.
    pub fn keep(&mut self, version: u64, text: &str) -> io::Result<()> {
        replace(&self.path, format!("{HEAD}{version}\n{text}").as_bytes())?;
        (self.version, self.text) = (version, Some(text.to_owned()));
        Ok(())
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
        pushed.keep(7, text).unwrap();
        let again = PushedConfig::open(folder.path()).unwrap();
        assert_eq!((again.version(), again.text().as_deref()), (7, Some(text)));
        fs::write(folder.path().join("pushed.toml"), "x").unwrap();
        assert!(PushedConfig::open(folder.path()).is_err());
    }
}
