//! What this node has accepted, on disk: a restart must not follow a leader of an earlier epoch (L6).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    durable_file::{make_folder, replace},
    identity::Leadership,
};

/// The file of the highest leadership accepted.
#[derive(Clone, Debug)]
pub struct FloorFile {
    path: PathBuf,
}

impl FloorFile {
    /// In `folder`, which is made if it is missing.
    pub fn open(folder: &Path) -> io::Result<FloorFile> {
        make_folder(folder)?;
        Ok(FloorFile { path: folder.join("leadership") })
    }

    /// What was written last; None: nothing yet. A file that cannot be read is an error: to begin at 0 would be to forget a promise.
    pub fn read(&self) -> io::Result<Option<Leadership>> {
        let text = match fs::read_to_string(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        text.trim()
            .parse()
            .map(Some)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", self.path.display())))
    }

    /// Durable when it returns.
    pub fn write(&self, leadership: &Leadership) -> io::Result<()> {
        replace(&self.path, format!("{leadership}\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Epoch, Incarnation};

    #[test]
    fn what_was_written_is_read_and_damage_is_no_zero() {
        let folder = tempfile::tempdir().unwrap();
        let file = FloorFile::open(&folder.path().join("cluster")).unwrap();
        assert_eq!(file.read().unwrap(), None);
        let leadership = Leadership { incarnation: Incarnation::new("n1".parse().unwrap(), 5), epoch: Epoch(12) };
        file.write(&leadership).unwrap();
        assert_eq!(file.read().unwrap(), Some(leadership));
        fs::write(folder.path().join("cluster/leadership"), "n1:zz/9").unwrap();
        assert!(file.read().is_err());
    }
}
