//! Writes segments ahead for an engine that is not running. A running one does it itself, as its log says.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use ringpost_spool::{BLOCK_BYTES, SegmentFile, blank_front};

use crate::{folder::sync_folder, spool_home::SpoolHome};

const PIECE_BYTES: u64 = 1 << 20;

/// Adds `segments` files of `segment_bytes` (at most 1 GiB) to the directory of the log `number` of the spool, made if missing: zeros behind a
/// mark that tells a start not to look through them. The log gives them a header before it uses them. `progress` is told (done, all).
pub fn prepare(home: &SpoolHome, number: u16, segment_bytes: u64, segments: u32, progress: impl FnMut(u32, u32)) -> io::Result<()> {
    let bytes = u32::try_from(segment_bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    write_files(&home.log_directory(number), &blank_front(home.node(), number, bytes), segment_bytes, segments, progress)
}

fn write_files(
    directory: &Path,
    front: &[u8; BLOCK_BYTES],
    segment_bytes: u64,
    segments: u32,
    mut progress: impl FnMut(u32, u32),
) -> io::Result<()> {
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
            open.write_all(front)?;
            let mut left = segment_bytes.saturating_sub(BLOCK_BYTES as u64);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_written_ahead_is_a_mark_and_zeros() {
        let folder = tempfile::tempdir().unwrap();
        let home = SpoolHome::open(folder.path(), 0x1234, true).unwrap();
        prepare(&home, 3, 64 << 10, 2, |_, _| ()).unwrap();
        for number in [1, 2] {
            let bytes = fs::read(home.log_directory(3).join(SegmentFile(number).to_string())).unwrap();
            assert_eq!(bytes.len(), 64 << 10);
            assert!(bytes[..BLOCK_BYTES] == blank_front(0x1234, 3, 64 << 10) && bytes[BLOCK_BYTES..].iter().all(|byte| *byte == 0));
        }
    }
}
