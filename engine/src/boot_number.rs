//! The number of a spool's newest start, in a file that is overwritten in place: a start on a full disk needs no new block.
//!
//! ```text
//! spool/boot   two slots of 512 octets, written in turn: "<boot> <CRC32C of the number's digits, 8 hex digits>\n", zeros behind
//! ```

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use ringpost_smtp::shown::shown_bytes;

use crate::{
    folder::sync_folder,
    spool_home::{SpoolHomeError, io_error},
};

/// A slot is a sector, which a power cut leaves as it was or as it was to be.
const SLOT_BYTES: usize = 512;
const FILE_BYTES: usize = 2 * SLOT_BYTES;
/// Of a damaged file so much is shown.
const FOUND_BYTES: usize = 24;

/// Unix seconds that a clock may show: up to 2097. A clock without its battery may show all bits set, and of an id 32 bits are the start's:
/// a start that counted from there would leave no number to those after it. What is above is for starts that count on.
const CLOCK_SECONDS_MAX: u64 = u32::MAX as u64 - (1 << 28);

/// Counts a start: max(last + 1, unix seconds), on disk with its folder before it is returned (S18).
///
/// Refused, with nothing written, when the clock is far off or the numbers are used up: an id given out twice is mail lost.
pub(crate) fn next_boot(spool: &Path) -> Result<u32, SpoolHomeError> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    next_boot_at(spool, seconds)
}

/// The number of the newest start so far, if there was one and it is sure.
pub(crate) fn newest_boot(spool: &Path) -> Option<u64> {
    let mut slots = Vec::with_capacity(FILE_BYTES);
    File::open(spool.join("boot")).ok()?.take(FILE_BYTES as u64 + 1).read_to_end(&mut slots).ok()?;
    match Known::read(&slots)? {
        Known::Slots { newest, in_doubt: false, .. } => Some(newest),
        Known::Nothing | Known::Slots { .. } => None,
    }
}

/// `seconds`: what the clock shows, since 1970.
fn next_boot_at(spool: &Path, seconds: u64) -> Result<u32, SpoolHomeError> {
    let path = spool.join("boot");
    if seconds > CLOCK_SECONDS_MAX {
        return Err(SpoolHomeError::ClockFarOff { path, seconds });
    }
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(io_error(&path, "open"))?;
    let mut slots = Vec::with_capacity(FILE_BYTES);
    (&file).take(FILE_BYTES as u64 + 1).read_to_end(&mut slots).map_err(io_error(&path, "read"))?;
    let known = Known::read(&slots).ok_or_else(|| SpoolHomeError::BootUnreadable { path: path.clone(), found: found(&slots) })?;
    let boot = u32::try_from(known.next().max(seconds)).map_err(|_| SpoolHomeError::BootsUsedUp { path: path.clone() })?;
    write(&file, u64::from(boot), known).and_then(|()| sync_folder(spool)).map_err(io_error(&path, "write"))?;
    Ok(boot)
}

/// What is to be read in the file, for people.
fn found(bytes: &[u8]) -> String {
    let size = match bytes.len() {
        FILE_BYTES => format!("{FILE_BYTES} octets, and both numbers fail their check"),
        0..FILE_BYTES => format!("{} octets instead of {FILE_BYTES}", bytes.len()),
        _ => format!("more than {FILE_BYTES} octets"),
    };
    format!("{size}; it begins with \"{}\"", shown_bytes(&bytes[..bytes.len().min(FOUND_BYTES)]))
}

fn write(file: &File, boot: u64, known: Known) -> io::Result<()> {
    match known {
        // Both slots, so that the room for them is there from now on.
        Known::Nothing => file.write_all_at(&[slot(boot), [0; SLOT_BYTES]].concat(), 0)?,
        Known::Slots { older, .. } => file.write_all_at(&slot(boot), (older * SLOT_BYTES) as u64)?,
    }
    file.sync_all()
}

/// What the file says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Known {
    /// A new spool, or one whose first start did not get to its end: no id was given out.
    Nothing,
    Slots {
        newest: u64,
        older: usize,
        /// The other slot can't be read: a start that was cut short, or one newer than `newest`.
        in_doubt: bool,
    },
}

impl Known {
    /// `None`: it was written and cannot be read any more.
    fn read(bytes: &[u8]) -> Option<Known> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Some(Known::Nothing);
        }
        if bytes.len() != FILE_BYTES {
            return None;
        }
        let (first, second) = bytes.split_at(SLOT_BYTES);
        let is_blank = |slot: &[u8]| slot.iter().all(|byte| *byte == 0);
        match (boot_of(first), boot_of(second)) {
            (Some(first), Some(second)) if first > second => Some(Known::Slots { newest: first, older: 1, in_doubt: false }),
            (Some(_), Some(second)) => Some(Known::Slots { newest: second, older: 0, in_doubt: false }),
            (Some(first), None) => Some(Known::Slots { newest: first, older: 1, in_doubt: !is_blank(second) }),
            (None, Some(second)) => Some(Known::Slots { newest: second, older: 0, in_doubt: !is_blank(first) }),
            (None, None) => None,
        }
    }

    fn next(self) -> u64 {
        match self {
            Known::Nothing => 0,
            // The unreadable one was at most one later.
            Known::Slots { newest, in_doubt, .. } => newest.saturating_add(1 + u64::from(in_doubt)),
        }
    }
}

fn slot(boot: u64) -> [u8; SLOT_BYTES] {
    let digits = boot.to_string();
    let text = format!("{digits} {:08x}\n", crc32c::crc32c(digits.as_bytes()));
    let mut slot = [0; SLOT_BYTES];
    slot[..text.len()].copy_from_slice(text.as_bytes());
    slot
}

fn boot_of(slot: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(slot.split(|byte| *byte == b'\n').next()?).ok()?;
    let (digits, check) = text.split_once(' ')?;
    let is_whole = u32::from_str_radix(check, 16).ok()? == crc32c::crc32c(digits.as_bytes());
    if is_whole { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use super::*;

    /// Further than any clock that is believed, so that it has no part.
    const FAR: u64 = CLOCK_SECONDS_MAX + 1000;

    fn file_of(first: u64, second: u64) -> Vec<u8> {
        [slot(first), slot(second)].concat()
    }

    #[test]
    fn each_start_counts_on_and_none_needs_room() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("boot");
        let first = next_boot(folder.path()).unwrap();
        let (inode, blocks) = fs::metadata(&path).map(|file| (file.ino(), file.blocks())).unwrap();
        let mut last = first;
        for _ in 0..5 {
            let boot = next_boot(folder.path()).unwrap();
            assert!(boot > last);
            last = boot;
        }
        let now = fs::metadata(&path).unwrap();
        assert_eq!((now.ino(), now.blocks(), now.len()), (inode, blocks, FILE_BYTES as u64));
    }

    #[test]
    fn a_slot_torn_at_any_octet_leaves_a_later_number_than_was_given_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("boot");
        for (first, second, torn) in [(FAR, FAR + 1, 0), (FAR + 1, FAR, 1)] {
            for cut in 0..30 {
                // The start that was writing `FAR + 2` over the older slot gave out nothing; what was there is gone, too.
                let mut bytes = file_of(first, second);
                bytes[torn * SLOT_BYTES..][..cut].copy_from_slice(&slot(FAR + 2)[..cut]);
                fs::write(&path, &bytes).unwrap();
                assert!(u64::from(next_boot(folder.path()).unwrap()) >= FAR + 2, "cut at {cut}");
            }
        }
        // The newest slot goes bad afterwards: its number is not given out again.
        let mut bytes = file_of(FAR, FAR + 1);
        bytes[SLOT_BYTES] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(u64::from(next_boot(folder.path()).unwrap()), FAR + 2);
    }

    /// A start with a clock at or beyond 2106 wrote a number that ids have no room for. Each start after it gave out the same ids, those
    /// of the last number there is, and mail took the place of other mail.
    #[test]
    fn a_clock_far_off_stops_the_start_and_leaves_numbers_for_later_ones() {
        let folder = tempfile::tempdir().unwrap();
        for seconds in [CLOCK_SECONDS_MAX + 1, u64::from(u32::MAX), u64::from(u32::MAX) + 1, u64::MAX] {
            let refused = next_boot_at(folder.path(), seconds).unwrap_err();
            assert!(matches!(refused, SpoolHomeError::ClockFarOff { .. }));
            assert!(refused.to_string().contains("set the clock"), "{refused}");
            assert!(!folder.path().join("boot").exists(), "nothing is written");
        }
        let first = next_boot_at(folder.path(), CLOCK_SECONDS_MAX).unwrap();
        assert_eq!(next_boot_at(folder.path(), 1_800_000_000).unwrap(), first + 1);
    }

    #[test]
    fn a_start_without_a_number_of_its_own_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("boot");
        let last = u64::from(u32::MAX);
        for newest in [last, last + 1, u64::MAX] {
            fs::write(&path, file_of(newest, newest - 1)).unwrap();
            let refused = next_boot(folder.path()).unwrap_err();
            assert!(matches!(refused, SpoolHomeError::BootsUsedUp { .. }));
            assert!(refused.to_string().contains("an empty folder"), "{refused}");
            assert_eq!(fs::read(&path).unwrap(), file_of(newest, newest - 1), "it is left alone");
        }
        fs::write(&path, file_of(last - 1, last - 2)).unwrap();
        assert_eq!(next_boot(folder.path()).unwrap(), u32::MAX);
    }

    #[test]
    fn a_damaged_boot_number_stops_the_start_instead_of_repeating_ids() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("boot");
        for damaged in [b"x".to_vec(), vec![7; FILE_BYTES], file_of(FAR, FAR)[..600].to_vec(), vec![1; FILE_BYTES + 1]] {
            fs::write(&path, &damaged).unwrap();
            // The file was called a spool identity, and the mend would have been another spool.
            let refused = next_boot(folder.path()).unwrap_err();
            assert!(matches!(refused, SpoolHomeError::BootUnreadable { .. }));
            let said = refused.to_string();
            assert!(
                said.starts_with(&format!("{}: the number of the newest start", path.display())) && said.contains("remove the file"),
                "{said}"
            );
            assert!(said.contains("octets") && said.contains("it begins with \"") && !said.contains(char::is_control), "{said}");
            assert_eq!(fs::read(&path).unwrap(), damaged, "it is left alone");
        }
    }
}
