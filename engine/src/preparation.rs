//! Writes segments ahead for an engine that is not running. A running one does it itself, as its log says.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use ringpost_spool::SegmentFile;

use crate::folder::sync_folder;

const PIECE_BYTES: u64 = 1 << 20;

/// Adds `segments` zeroed files of `segment_bytes` to a log's directory, made if missing. They have no header: the log gives them
/// one before it uses them. `progress` is told (done, all). The spool's lock must be held by the caller.
pub fn prepare(directory: &Path, segment_bytes: u64, segments: u32, mut progress: impl FnMut(u32, u32)) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    if let Some(parent) = directory.parent() {
        sync_folder(parent)?;
    }
    let mut newest = 0;
    for entry in fs::read_dir(directory)? {
        if let Some((SegmentFile(number), _)) = entry?.file_name().to_str().and_then(SegmentFile::parse) {
            newest = newest.max(number);
        }
    }
    let zeros = vec![0; PIECE_BYTES as usize];
    for made in 0..segments {
        let file = SegmentFile(newest.saturating_add(made + 1));
        let temporary = directory.join(file.temporary_name());
        let write = || -> io::Result<()> {
            let mut open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            let mut left = segment_bytes;
            while left > 0 {
                let piece = left.min(PIECE_BYTES);
                open.write_all(&zeros[..piece as usize])?;
                left -= piece;
            }
            open.sync_data()?;
            fs::rename(&temporary, directory.join(file.to_string()))?;
            sync_folder(directory)
        };
        if let Err(error) = write() {
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        progress(made + 1, segments);
    }
    Ok(())
}
