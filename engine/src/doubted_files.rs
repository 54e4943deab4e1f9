//! Which segment files of a log could not be read, written down for the start that comes next.
//!
//! ```text
//! shard-NNN/unread   "boot <this start's number>\n", for each file "<number in its name> <since> <below>\n",
//!                    at the end "<CRC32C of all before, 8 hex digits>\n"
//! ```
//!
//! Without it that start can't tell how old they are and keeps for their sake what has come since. Each start that still can't read them
//! writes it again, and it counts for the very next one only: whoever came in between may have read such a file, and used it again.

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use ringpost_spool::{Doubt, SegmentFile};

use crate::folder::sync_folder;

/// Its name in the log's directory.
const NAME: &str = "unread";
/// More than a line for each of the segments that a log may have.
const BYTES_MAX: u64 = 1 << 20;

/// What the start `previous_boot` wrote down, which was the last one before this; nothing, if it did not get that far.
pub(crate) fn read(directory: &Path, previous_boot: Option<u64>) -> HashMap<SegmentFile, Doubt> {
    let mut text = String::new();
    let read = File::open(directory.join(NAME)).and_then(|file| file.take(BYTES_MAX).read_to_string(&mut text));
    let known = read.ok().zip(previous_boot).and_then(|(_, previous_boot)| decode(&text, previous_boot));
    known.unwrap_or_default()
}

/// Replaces what the start before wrote down. Blocks, for two flushes of the disk when something could not be read.
pub(crate) fn write(directory: &Path, boot: u64, doubts: &[(SegmentFile, Doubt)]) -> io::Result<()> {
    let path = directory.join(NAME);
    if doubts.is_empty() {
        return remove(directory);
    }
    let temporary = directory.join(format!("{NAME}.new"));
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(encode(boot, doubts).as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_folder(directory)
}

/// Takes it away, if it is there.
pub(crate) fn remove(directory: &Path) -> io::Result<()> {
    for name in [NAME, "unread.new"] {
        match fs::remove_file(directory.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn encode(boot: u64, doubts: &[(SegmentFile, Doubt)]) -> String {
    let mut text = format!("boot {boot}\n");
    for (SegmentFile(number), Doubt { since, below }) in doubts {
        let _ = writeln!(text, "{number} {since} {below}");
    }
    let check = crc32c::crc32c(text.as_bytes());
    let _ = writeln!(text, "{check:08x}");
    text
}

fn decode(text: &str, boot: u64) -> Option<HashMap<SegmentFile, Doubt>> {
    let (lines, check) = text.strip_suffix('\n')?.rsplit_once('\n')?;
    let lines_end = lines.len() + 1;
    if u32::from_str_radix(check, 16).ok()? != crc32c::crc32c(&text.as_bytes()[..lines_end]) {
        return None;
    }
    let rest = lines.strip_prefix(&format!("boot {boot}\n"))?;
    let doubt_of = |line: &str| {
        let mut words = line.split(' ');
        let file = SegmentFile(words.next()?.parse().ok()?);
        Some((file, Doubt { since: words.next()?.parse().ok()?, below: words.next()?.parse().ok()? }))
    };
    rest.lines().map(doubt_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_down_counts_for_the_very_next_start_and_only_whole() {
        let folder = tempfile::tempdir().unwrap();
        let doubts = [(SegmentFile(3), Doubt { since: 7, below: 1 << 30 }), (SegmentFile(9), Doubt { since: 8, below: 12 })];
        assert!(read(folder.path(), Some(8)).is_empty());
        write(folder.path(), 8, &doubts).unwrap();
        assert_eq!(read(folder.path(), Some(8)), HashMap::from(doubts));
        // Another start came in between, or nobody can tell.
        assert!(read(folder.path(), Some(9)).is_empty() && read(folder.path(), None).is_empty());
        let text = fs::read(folder.path().join(NAME)).unwrap();
        for cut in 0..text.len() {
            fs::write(folder.path().join(NAME), &text[..cut]).unwrap();
            assert!(read(folder.path(), Some(8)).is_empty(), "cut at {cut}");
        }
        write(folder.path(), 9, &[]).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
