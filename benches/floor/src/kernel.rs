//! The ring: requests pushed, one system call a turn, completions taken.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, CancelBuilder, Fd, FsyncFlags, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use crate::memory::Pages;

/// Requests that one turn can submit without a system call in between.
const ENTRIES: u32 = 4096;
/// The provided buffers' group.
const GROUP: u16 = 0;
/// Provided buffers; a power of two.
const BUFFERS: u16 = 1024;
/// Length of one; touched only as far as it is filled.
const BUFFER_BYTES: usize = 16 << 10;

/// What a completion is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A connection came; on the listener.
    Accept,
    /// Octets of a client.
    Receive,
    /// A client's replies are out.
    Send,
    /// Octets of a next hop.
    HopReceive,
    /// What was sent to a next hop is out.
    HopSend,
    /// A batch is written.
    Write,
    /// A batch is flushed.
    Flush,
    /// Time is over.
    Timeout,
    /// Standard input has something to say: its end.
    Input,
    /// Nobody waits for it.
    Forget,
}

const KINDS: [Kind; 10] = [
    Kind::Accept,
    Kind::Receive,
    Kind::Send,
    Kind::HopReceive,
    Kind::HopSend,
    Kind::Write,
    Kind::Flush,
    Kind::Timeout,
    Kind::Input,
    Kind::Forget,
];

/// One completion.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// What it is about.
    pub kind: Kind,
    /// The number it was asked for with.
    pub number: u32,
    /// A count, or a negative errno.
    pub result: i32,
    flags: u32,
}

impl Completion {
    /// One that no kernel gave.
    #[cfg(test)]
    pub fn new(kind: Kind, number: u32, result: i32) -> Self {
        Self { kind, number, result, flags: 0 }
    }

    /// Further completions of the same request follow.
    pub fn more(&self) -> bool {
        cqueue::more(self.flags)
    }
}

/// A ring of its own with provided buffers. Used by one thread.
pub struct Kernel {
    ring: IoUring,
    entries: Pages,
    memory: Pages,
    tail: u16,
    timespec: Box<Timespec>,
    /// System calls made.
    pub calls: u64,
}

fn user_data(kind: Kind, number: u32) -> u64 {
    (kind as u64) << 32 | u64::from(number)
}

impl Kernel {
    /// Fails where the kernel is too old (6.1) or forbids io_uring.
    pub fn new() -> io::Result<Self> {
        let ring =
            IoUring::builder().setup_single_issuer().setup_defer_taskrun().setup_submit_all().setup_cqsize(4 * ENTRIES).build(ENTRIES)?;
        let entries = Pages::new(usize::from(BUFFERS) * size_of::<BufRingEntry>())?;
        let memory = Pages::new(usize::from(BUFFERS) * BUFFER_BYTES)?;
        // SAFETY: the mapping is page aligned, long enough, and lives as long as the ring: fields are dropped in order, the ring first.
        unsafe { ring.submitter().register_buf_ring_with_flags(entries.at(0) as u64, BUFFERS, GROUP, 0)? };
        let mut kernel = Self { ring, entries, memory, tail: 0, timespec: Box::new(Timespec::new()), calls: 0 };
        (0..BUFFERS).for_each(|buffer| kernel.give_back(buffer));
        Ok(kernel)
    }

    fn give_back(&mut self, buffer: u16) {
        let at = usize::from(self.tail & (BUFFERS - 1)) * size_of::<BufRingEntry>();
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: `at` is inside the ring of entries, which the kernel reads up to the tail only, and that moves behind the entry.
        unsafe {
            let entry = &mut *self.entries.at(at).cast::<BufRingEntry>();
            entry.set_addr(self.memory.at(usize::from(buffer) * BUFFER_BYTES) as u64);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(buffer);
            let tail = BufRingEntry::tail(self.entries.at(0).cast::<BufRingEntry>());
            (*tail.cast::<AtomicU16>()).store(self.tail, Ordering::Release);
        }
    }

    /// Calls `take` with the octets that a completion of a receive brought, and gives their buffer back.
    pub fn received(&mut self, completion: &Completion, take: impl FnOnce(&[u8])) {
        let Some(buffer) = cqueue::buffer_select(completion.flags) else { return };
        if completion.result > 0 {
            let start = self.memory.at(usize::from(buffer) * BUFFER_BYTES);
            // SAFETY: the kernel filled so many octets of this buffer and does not touch it until it is given back, below.
            take(unsafe { std::slice::from_raw_parts(start, completion.result as usize) });
        }
        self.give_back(buffer);
    }

    fn push(&mut self, entries: &[squeue::Entry]) {
        let submission = self.ring.submission();
        let room = submission.capacity() - submission.len();
        drop(submission);
        if room < entries.len() {
            self.calls += 1;
            self.ring.submit().expect("the kernel takes what is pushed");
        }
        // SAFETY: callers lend memory that outlives the request: buffers of connections that stay until their sends end, blocks that
        // are held until their batch is done, and fields of this struct.
        unsafe { self.ring.submission().push_multiple(entries).expect("room was made") };
    }

    /// Accepts until told otherwise.
    pub fn accept(&mut self, listener: RawFd) {
        self.push(&[opcode::AcceptMulti::new(Fd(listener)).build().user_data(user_data(Kind::Accept, 0))]);
    }

    /// Receives into provided buffers until the end of the stream.
    pub fn receive(&mut self, kind: Kind, fd: RawFd, number: u32) {
        self.push(&[opcode::RecvMulti::new(Fd(fd), GROUP).build().user_data(user_data(kind, number))]);
    }

    /// Sends all of `bytes`, which must stay where they are until the completion.
    pub fn send(&mut self, fd: RawFd, number: u32, bytes: &[u8]) {
        let entry = opcode::Send::new(Fd(fd), bytes.as_ptr(), bytes.len() as u32).flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL).build();
        self.push(&[entry.user_data(user_data(Kind::Send, number))]);
    }

    /// Sends all that `message` gathers; it and what it names must stay until the completion.
    pub fn send_message(&mut self, fd: RawFd, number: u32, message: &libc::msghdr) {
        let entry = opcode::SendMsg::new(Fd(fd), message).flags((libc::MSG_WAITALL | libc::MSG_NOSIGNAL) as u32).build();
        self.push(&[entry.user_data(user_data(Kind::HopSend, number))]);
    }

    /// A write linked to a flush; the memory must stay until both completions.
    pub fn write_flushed(&mut self, fd: RawFd, number: u32, start: *const u8, bytes: usize, offset: u64) {
        let write = opcode::Write::new(Fd(fd), start, bytes as u32).offset(offset).build();
        let flush = opcode::Fsync::new(Fd(fd)).flags(FsyncFlags::DATASYNC).build();
        self.push(&[
            write.flags(squeue::Flags::IO_LINK).user_data(user_data(Kind::Write, number)),
            flush.user_data(user_data(Kind::Flush, number)),
        ]);
    }

    /// One timeout; not a second one before it has ended.
    pub fn timeout(&mut self, milliseconds: u32) {
        *self.timespec = Timespec::new().nsec(milliseconds * 1_000_000);
        let entry = opcode::Timeout::new(&*self.timespec).build().user_data(user_data(Kind::Timeout, 0));
        self.push(&[entry]);
    }

    /// Waits for anything on a descriptor.
    pub fn readable(&mut self, fd: RawFd) {
        self.push(&[opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32).build().user_data(user_data(Kind::Input, 0))]);
    }

    /// Ends a receive; its last completion follows.
    pub fn stop_receiving(&mut self, number: u32) {
        let entry = opcode::AsyncCancel::new(user_data(Kind::Receive, number)).build();
        self.push(&[entry.user_data(user_data(Kind::Forget, 0))]);
    }

    /// Closes a descriptor.
    pub fn close(&mut self, fd: RawFd) {
        self.push(&[opcode::Close::new(Fd(fd)).build().user_data(user_data(Kind::Forget, 0))]);
    }

    /// Submits what was pushed, waits for a completion, and takes all there are. One system call.
    pub fn turn(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        self.calls += 1;
        match self.ring.submit_and_wait(1) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted && error.raw_os_error() != Some(libc::EBUSY) => return Err(error),
            _ => {}
        }
        completions.clear();
        completions.extend(self.ring.completion().map(|entry| Completion {
            kind: KINDS[(entry.user_data() >> 32) as usize],
            number: entry.user_data() as u32,
            result: entry.result(),
            flags: entry.flags(),
        }));
        Ok(())
    }
}

impl Drop for Kernel {
    /// Nothing may be armed when the memory goes that the kernel writes into.
    fn drop(&mut self) {
        let within = Timespec::new().sec(10);
        match self.ring.submitter().register_sync_cancel(Some(within), CancelBuilder::any()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => panic!("requests cannot be cancelled: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsRawFd;

    use super::*;

    const OCTETS: &[u8; 8] = b"a batch!";

    /// Results of a write and of the flush linked to it.
    fn written_and_flushed(fd: RawFd) -> (i32, i32) {
        let mut kernel = Kernel::new().unwrap();
        let (mut completions, mut results) = (Vec::new(), (None, None));
        kernel.write_flushed(fd, 7, OCTETS.as_ptr(), OCTETS.len(), 0);
        while results.0.is_none() || results.1.is_none() {
            kernel.turn(&mut completions).unwrap();
            for completion in &completions {
                assert_eq!(completion.number, 7);
                let result = if completion.kind == Kind::Write { &mut results.0 } else { &mut results.1 };
                *result = Some(completion.result);
            }
        }
        (results.0.unwrap(), results.1.unwrap())
    }

    /// A pipe takes octets and knows no flush, so that one that is none shows; a file that may not be written says whether the flush stands
    /// behind the write.
    #[test]
    fn a_batch_ends_with_a_flush_of_its_file_behind_its_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        assert_eq!(written_and_flushed(File::create(&path).unwrap().as_raw_fd()), (OCTETS.len() as i32, 0));
        assert_eq!(fs::read(&path).unwrap(), OCTETS);
        let (_reader, writer) = io::pipe().unwrap();
        assert_eq!(written_and_flushed(writer.as_raw_fd()), (OCTETS.len() as i32, -libc::EINVAL));
        assert_eq!(written_and_flushed(File::open(&path).unwrap().as_raw_fd()), (-libc::EBADF, -libc::ECANCELED));
    }
}
