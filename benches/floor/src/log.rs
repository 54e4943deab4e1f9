//! The log: what was appended is durable when its batch and all before it are flushed.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::rc::Rc;

use crate::kernel::{Completion, Kernel, Kind};
use crate::memory::{BLOCK_BYTES, Block, Blocks};

/// Batches being written at a time.
const IN_FLIGHT_MAX: usize = 2;

/// Where a stretch of octets stands in memory.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Holds the memory.
    pub block: Rc<Block>,
    /// First octet.
    pub start: usize,
    /// Octets.
    pub bytes: usize,
}

#[derive(Debug)]
struct Batch {
    number: u64,
    /// Held for the kernel until the batch is done.
    block: Rc<Block>,
    bytes: usize,
    written: bool,
    flushed: bool,
}

/// A file of fixed length, written before it is used, and used again from its start.
#[derive(Debug)]
pub struct Log {
    file: File,
    file_bytes: u64,
    offset: u64,
    blocks: Blocks,
    open: Rc<Block>,
    /// Full ones that wait for their turn.
    sealed: VecDeque<Rc<Block>>,
    in_flight: VecDeque<Batch>,
    begun: u64,
    /// All batches up to this one are durable.
    pub durable: u64,
    /// Somebody waits for what is in the open block.
    pub urgent: bool,
}

impl Log {
    /// Makes the file and writes all of it. `file_bytes` is a multiple of the length of a block.
    pub fn create(path: &Path, file_bytes: u64) -> io::Result<Self> {
        assert!(file_bytes >= 4 * BLOCK_BYTES as u64 && file_bytes.is_multiple_of(BLOCK_BYTES as u64), "a few whole blocks");
        let mut plain = File::create(path)?;
        let zeros = vec![0; BLOCK_BYTES];
        for _ in 0..file_bytes / BLOCK_BYTES as u64 {
            plain.write_all(&zeros)?;
        }
        plain.sync_all()?;
        let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path)?;
        let mut blocks = Blocks::default();
        let open = blocks.take();
        let (sealed, in_flight) = (VecDeque::new(), VecDeque::new());
        Ok(Self { file, file_bytes, offset: 0, blocks, open, sealed, in_flight, begun: 0, durable: 0, urgent: false })
    }

    /// The batch that what is appended now will be in.
    pub fn gathering(&self) -> u64 {
        self.begun + self.sealed.len() as u64 + 1
    }

    /// Something was appended that is not in a batch under way.
    pub fn is_waiting(&self) -> bool {
        self.open.used() > 0
    }

    /// Appends, in several batches if one has not room enough; `placed` is told where.
    pub fn append(&mut self, mut bytes: &[u8], mut placed: impl FnMut(Piece)) {
        while !bytes.is_empty() {
            if self.open.room() == 0 {
                let next = self.blocks.take();
                self.sealed.push_back(std::mem::replace(&mut self.open, next));
            }
            let (here, rest) = bytes.split_at(bytes.len().min(self.open.room()));
            let start = self.open.used();
            self.open.append(here);
            placed(Piece { block: Rc::clone(&self.open), start, bytes: here.len() });
            bytes = rest;
        }
    }

    /// Begins batches while there is something to write and a place in flight.
    pub fn begin(&mut self, kernel: &mut Kernel) {
        while self.in_flight.len() < IN_FLIGHT_MAX {
            let block = match self.sealed.pop_front() {
                Some(block) => block,
                None if self.urgent => {
                    self.urgent = false;
                    let next = self.blocks.take();
                    std::mem::replace(&mut self.open, next)
                }
                None => return,
            };
            let bytes = block.pad();
            if self.offset + bytes as u64 > self.file_bytes {
                self.offset = 0;
            }
            self.begun += 1;
            kernel.write_flushed(self.file.as_raw_fd(), self.begun as u32, block.at(0), bytes, self.offset);
            self.offset += bytes as u64;
            self.in_flight.push_back(Batch { number: self.begun, block, bytes, written: false, flushed: false });
        }
    }

    /// Takes in a completion. A failure ends the process: the floor promises nothing more.
    pub fn completed(&mut self, completion: &Completion) -> io::Result<()> {
        if completion.result < 0 {
            return Err(io::Error::from_raw_os_error(-completion.result));
        }
        let batch = self.in_flight.iter_mut().find(|batch| batch.number as u32 == completion.number);
        let batch = batch.expect("completions are of batches in flight");
        if completion.kind == Kind::Write {
            if completion.result as usize != batch.bytes {
                return Err(io::Error::new(io::ErrorKind::WriteZero, "a batch was written in part"));
            }
            batch.written = true;
        } else {
            batch.flushed = true;
        }
        while self.in_flight.front().is_some_and(|first| first.written && first.flushed) {
            let done = self.in_flight.pop_front().expect("there is a first one");
            self.durable = done.number;
            drop(done.block);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log whose batches are begun and never submitted: each test says what the kernel answers.
    fn begun(batches: u64) -> (tempfile::TempDir, Kernel, Log) {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let mut kernel = Kernel::new().unwrap();
        let mut log = Log::create(&folder.path().join("log"), 4 * BLOCK_BYTES as u64).unwrap();
        for number in 1..=batches {
            assert_eq!(log.gathering(), number);
            log.append(b"a message", drop);
            log.urgent = true;
            log.begin(&mut kernel);
        }
        assert_eq!(log.in_flight.len() as u64, batches);
        (folder, kernel, log)
    }

    fn answer(log: &mut Log, kind: Kind, number: u32) {
        let result = if kind == Kind::Write { log.in_flight[0].bytes as i32 } else { 0 };
        log.completed(&Completion::new(kind, number, result)).unwrap();
    }

    /// A 250 is said when `durable` has reached its batch.
    #[test]
    fn a_batch_is_durable_when_it_is_written_and_flushed() {
        for order in [[Kind::Write, Kind::Flush], [Kind::Flush, Kind::Write]] {
            let (_folder, _kernel, mut log) = begun(1);
            answer(&mut log, order[0], 1);
            assert_eq!(log.durable, 0, "after {:?} alone", order[0]);
            answer(&mut log, order[1], 1);
            assert_eq!(log.durable, 1);
        }
    }

    #[test]
    fn a_flush_does_not_make_durable_what_an_earlier_batch_waits_for() {
        let (_folder, _kernel, mut log) = begun(2);
        for kind in [Kind::Write, Kind::Flush] {
            answer(&mut log, kind, 2);
            assert_eq!(log.durable, 0, "the second was begun behind the first");
        }
        answer(&mut log, Kind::Write, 1);
        assert_eq!(log.durable, 0);
        answer(&mut log, Kind::Flush, 1);
        assert_eq!(log.durable, 2);
    }

    #[test]
    fn what_comes_while_two_batches_are_in_flight_waits_for_a_third() {
        let (_folder, mut kernel, mut log) = begun(2);
        log.append(b"another one", drop);
        log.urgent = true;
        log.begin(&mut kernel);
        assert_eq!((log.in_flight.len(), log.gathering()), (2, 3));
        answer(&mut log, Kind::Write, 1);
        answer(&mut log, Kind::Flush, 1);
        log.begin(&mut kernel);
        assert_eq!((log.durable, log.in_flight.len(), log.gathering()), (1, 2, 4));
    }

    #[test]
    fn a_batch_that_was_written_in_part_or_not_flushed_makes_nothing_durable() {
        for (kind, result) in [(Kind::Write, 512), (Kind::Write, -libc::EIO), (Kind::Flush, -libc::EIO), (Kind::Flush, -libc::ECANCELED)] {
            let (_folder, _kernel, mut log) = begun(1);
            assert!(log.completed(&Completion::new(kind, 1, result)).is_err(), "{kind:?} {result}");
            assert_eq!(log.durable, 0);
        }
    }
}
