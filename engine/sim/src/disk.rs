//! A directory on a disk that keeps what it promised and nothing else.
//!
//! `live` is what a reader sees, `durable` what a power cut leaves. A completed write is live, and dirty until a flush. At a cut each dirty
//! sector of 512 bytes stays, goes, or is torn, whatever the order of writing; of a write under way the same holds for each of its sectors.
//! Names are durable when the directory was synced; before, each change stays or goes by itself.

use std::collections::BTreeMap;

use ringpost_spool::{FoundFile, SegmentFile};

use crate::random::Random;

/// What a drive writes whole, mostly.
pub const SECTOR_BYTES: usize = 512;

/// A name in the directory: the file, and whether it is the temporary one.
pub type Name = (SegmentFile, bool);

#[derive(Default)]
struct File {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors that differ or may differ, each once.
    dirty: Vec<u32>,
    is_dirty: Vec<bool>,
    /// The length isn't durable yet.
    grew: bool,
}

enum Change {
    Create(Name, usize),
    Rename(Name, Name),
    Unlink(Name),
}

/// A write that the drive has, and may or may not put down.
pub struct Landing {
    file: usize,
    offset: usize,
    bytes: Vec<u8>,
}

/// How a cut treats what was not promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The power fails: everything unflushed is at risk.
    Power,
    /// The process is killed: completed writes stay, those under way are at risk.
    Kill,
}

/// The disk of one log.
#[derive(Default)]
pub struct Disk {
    files: Vec<File>,
    names: BTreeMap<Name, usize>,
    durable_names: BTreeMap<Name, usize>,
    changes: Vec<Change>,
    /// Flushes do nothing: a control.
    pub forgets_flushes: bool,
    /// Bytes that files may have altogether.
    pub capacity: usize,
}

const NO_ENTRY: i64 = -2;
const NO_SPACE: i64 = -28;

impl Disk {
    /// An empty directory on a disk of `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        Disk { capacity, ..Disk::default() }
    }

    /// The directory, as a starting process sees it.
    pub fn list(&self) -> Vec<FoundFile> {
        let found = |(&(file, temporary), &at): (&Name, &usize)| FoundFile {
            file,
            bytes: self.files[at].live.len() as u64,
            temporary,
            doubt: None,
        };
        self.names.iter().map(found).collect()
    }

    /// Takes a file into the directory.
    pub fn create(&mut self, name: Name) -> i64 {
        let at = self.files.len();
        self.files.push(File::default());
        self.names.insert(name, at);
        self.changes.push(Change::Create(name, at));
        0
    }

    /// Gives a file this length; what was not there reads as zeros.
    pub fn allocate(&mut self, name: Name, bytes: usize) -> i64 {
        let Some(&at) = self.names.get(&name) else { return NO_ENTRY };
        let used: usize = self.names.values().map(|&at| self.files[at].live.len()).sum();
        let file = &mut self.files[at];
        if bytes <= file.live.len() {
            return 0;
        }
        if used + bytes - file.live.len() > self.capacity {
            return NO_SPACE;
        }
        file.live.resize(bytes, 0);
        file.is_dirty.resize(bytes / SECTOR_BYTES, false);
        file.grew = true;
        0
    }

    /// Bytes that files may still grow by.
    pub fn room(&self) -> usize {
        self.capacity.saturating_sub(self.names.values().map(|&at| self.files[at].live.len()).sum())
    }

    /// Gives another name.
    pub fn rename(&mut self, from: Name, to: Name) -> i64 {
        let Some(at) = self.names.remove(&from) else { return NO_ENTRY };
        self.names.insert(to, at);
        self.changes.push(Change::Rename(from, to));
        0
    }

    /// Takes a name away.
    pub fn unlink(&mut self, name: Name) -> i64 {
        if self.names.remove(&name).is_some() {
            self.changes.push(Change::Unlink(name));
        }
        0
    }

    /// Makes all names durable.
    pub fn sync_directory(&mut self) -> i64 {
        if !self.forgets_flushes {
            self.durable_names = self.names.clone();
            self.changes.clear();
        }
        0
    }

    /// A write is handed to the drive: it lands when the caller says so, or partly, at a cut.
    pub fn begin_write(&self, name: Name, offset: usize, bytes: &[u8]) -> Option<Landing> {
        let file = *self.names.get(&name)?;
        Some(Landing { file, offset, bytes: bytes.to_vec() })
    }

    /// The write completes: readers see it.
    pub fn land(&mut self, landing: &Landing) -> i64 {
        let file = &mut self.files[landing.file];
        if landing.offset + landing.bytes.len() > file.live.len() {
            return NO_SPACE;
        }
        file.live[landing.offset..landing.offset + landing.bytes.len()].copy_from_slice(&landing.bytes);
        for sector in landing.offset / SECTOR_BYTES..(landing.offset + landing.bytes.len()) / SECTOR_BYTES {
            file.mark(sector);
        }
        landing.bytes.len() as i64
    }

    /// fdatasync: what has landed in the file is durable.
    pub fn sync(&mut self, name: Name) -> i64 {
        let Some(&at) = self.names.get(&name) else { return NO_ENTRY };
        if !self.forgets_flushes {
            self.files[at].flush();
        }
        0
    }

    /// A flush that fails: what was unflushed is lost or not, and a later flush says nothing about it (finding 2).
    pub fn fail_sync(&mut self, name: Name, random: &mut Random) {
        if let Some(&at) = self.names.get(&name) {
            let file = &mut self.files[at];
            file.settle(random, 2);
            let length = file.durable.len();
            file.live[..length].copy_from_slice(&file.durable);
        }
    }

    /// Copies out what a reader sees; less than asked for at the end of the file.
    pub fn read(&self, name: Name, offset: usize, into: &mut [u8]) -> i64 {
        let Some(&at) = self.names.get(&name) else { return NO_ENTRY };
        let left = self.files[at].live.get(offset..).unwrap_or(&[]);
        let bytes = left.len().min(into.len());
        into[..bytes].copy_from_slice(&left[..bytes]);
        bytes as i64
    }

    /// Flips bits in what is there, as a bad drive does.
    pub fn damage(&mut self, name: Name, offset: usize, xor: &[u8]) {
        let file = &mut self.files[self.names[&name]];
        for (at, flip) in xor.iter().enumerate() {
            file.live[offset + at] ^= flip;
            if let Some(byte) = file.durable.get_mut(offset + at) {
                *byte ^= flip;
            }
        }
    }

    /// Takes away the end of a file, durably, and returns it.
    pub fn take_end(&mut self, name: Name, kept: usize) -> Vec<u8> {
        let file = &mut self.files[self.names[&name]];
        file.flush();
        file.durable.truncate(kept);
        file.is_dirty.truncate(kept / SECTOR_BYTES);
        file.live.split_off(kept)
    }

    /// Puts it back.
    pub fn put_end(&mut self, name: Name, end: &[u8]) {
        let file = &mut self.files[self.names[&name]];
        file.flush();
        file.live.extend_from_slice(end);
        file.durable.extend_from_slice(end);
        file.is_dirty.resize(file.live.len() / SECTOR_BYTES, false);
    }

    /// The cut. Of the writes under way some sectors land, of what was unflushed some stay. Returns whether a write was torn.
    pub fn cut(&mut self, cut: Cut, under_way: &[Landing], random: &mut Random) -> bool {
        // Some cuts keep everything, some nothing, most a part.
        let keep_in = match random.below(4) {
            0 => 0,
            1 => 1,
            _ => random.between(2, 4),
        };
        let mut torn = false;
        for landing in under_way {
            let (mut landed, mut lost) = (0, 0);
            for (index, sector) in landing.bytes.chunks_exact(SECTOR_BYTES).enumerate() {
                if keep_in == 0 || !random.one_in(keep_in) {
                    lost += 1;
                    continue;
                }
                landed += 1;
                let file = &mut self.files[landing.file];
                let at = landing.offset + index * SECTOR_BYTES;
                let bytes = torn_at(random);
                if at + SECTOR_BYTES <= file.live.len() {
                    file.live[at..at + bytes].copy_from_slice(&sector[..bytes]);
                    file.mark(at / SECTOR_BYTES);
                }
            }
            torn |= landed > 0 && lost > 0;
        }
        if cut == Cut::Power {
            self.lose_names(random);
            for file in &mut self.files {
                file.settle(random, keep_in);
                file.live.clear();
                file.live.extend_from_slice(&file.durable);
                file.is_dirty.truncate(file.live.len() / SECTOR_BYTES);
            }
        }
        torn
    }

    fn lose_names(&mut self, random: &mut Random) {
        for change in std::mem::take(&mut self.changes) {
            if random.one_in(2) {
                continue;
            }
            let names = &mut self.durable_names;
            match change {
                Change::Create(name, at) => drop(names.insert(name, at)),
                Change::Unlink(name) => drop(names.remove(&name)),
                Change::Rename(from, to) => {
                    if let Some(at) = names.remove(&from) {
                        names.insert(to, at);
                    }
                }
            }
        }
        self.names = self.durable_names.clone();
    }
}

impl File {
    fn mark(&mut self, sector: usize) {
        if !self.is_dirty[sector] {
            self.is_dirty[sector] = true;
            self.dirty.push(sector as u32);
        }
    }

    fn flush(&mut self) {
        if self.grew {
            self.durable.resize(self.live.len(), 0);
            self.grew = false;
        }
        for sector in self.dirty.drain(..) {
            let at = sector as usize * SECTOR_BYTES;
            self.durable[at..at + SECTOR_BYTES].copy_from_slice(&self.live[at..at + SECTOR_BYTES]);
            self.is_dirty[sector as usize] = false;
        }
    }

    /// Decides what becomes of the unflushed: each sector stays once in `keep_in` times (0: never), now and then torn.
    fn settle(&mut self, random: &mut Random, keep_in: u64) {
        if self.grew && random.one_in(2) {
            self.durable.resize(self.live.len(), 0);
        }
        self.grew = self.durable.len() < self.live.len();
        for sector in self.dirty.drain(..) {
            self.is_dirty[sector as usize] = false;
            let at = sector as usize * SECTOR_BYTES;
            if keep_in == 0 || !random.one_in(keep_in) || at + SECTOR_BYTES > self.durable.len() {
                continue;
            }
            let bytes = torn_at(random);
            self.durable[at..at + bytes].copy_from_slice(&self.live[at..at + bytes]);
        }
    }
}

/// Bytes of a sector that reach the medium: all, or seldom only the front.
fn torn_at(random: &mut Random) -> usize {
    if random.one_in(8) { random.below(SECTOR_BYTES as u64) as usize } else { SECTOR_BYTES }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: Name = (SegmentFile(1), false);

    fn disk_with_file() -> Disk {
        let mut disk = Disk::new(1 << 20);
        disk.create(NAME);
        disk.allocate(NAME, 4096);
        disk.sync(NAME);
        disk.sync_directory();
        disk
    }

    fn content(disk: &Disk) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        disk.read(NAME, 0, &mut bytes);
        bytes
    }

    #[test]
    fn flushed_writes_outlive_every_cut_and_unflushed_ones_do_not_always() {
        let (mut kept, mut lost, mut mixed) = (0, 0, 0);
        for seed in 0..200 {
            let (mut disk, mut random) = (disk_with_file(), Random::new(seed));
            let first = disk.begin_write(NAME, 0, &[1; 2048]).expect("the file is there");
            disk.land(&first);
            disk.sync(NAME);
            let second = disk.begin_write(NAME, 2048, &[2; 2048]).expect("the file is there");
            disk.land(&second);
            disk.cut(Cut::Power, &[], &mut random);
            let bytes = content(&disk);
            assert_eq!(&bytes[..2048], [1; 2048]);
            match bytes[2048..].iter().filter(|&&byte| byte == 2).count() {
                0 => lost += 1,
                2048 => kept += 1,
                _ => mixed += 1,
            }
        }
        assert!(kept > 10 && lost > 10 && mixed > 10, "{kept} {lost} {mixed}");
    }

    #[test]
    fn a_kill_keeps_what_completed() {
        let (mut disk, mut random) = (disk_with_file(), Random::new(1));
        let write = disk.begin_write(NAME, 0, &[1; 4096]).expect("the file is there");
        disk.land(&write);
        disk.cut(Cut::Kill, &[], &mut random);
        assert_eq!(content(&disk), [1; 4096]);
    }

    #[test]
    fn a_name_is_durable_only_after_the_directory_was_synced() {
        let mut lost = 0;
        for seed in 0..100 {
            let mut disk = disk_with_file();
            disk.create((SegmentFile(2), true));
            disk.cut(Cut::Power, &[], &mut Random::new(seed));
            assert!(disk.list().iter().any(|found| found.file == NAME.0));
            lost += usize::from(disk.list().len() == 1);
        }
        assert!((20..80).contains(&lost), "{lost}");
    }

    #[test]
    fn a_full_disk_refuses_to_grow() {
        let mut disk = Disk::new(8192);
        disk.create(NAME);
        assert_eq!(disk.allocate(NAME, 8192), 0);
        disk.create((SegmentFile(2), true));
        assert_eq!(disk.allocate((SegmentFile(2), true), 4096), NO_SPACE);
        disk.unlink(NAME);
        assert_eq!(disk.allocate((SegmentFile(2), true), 4096), 0);
    }
}
