//! What the kernel offers, found out by using it.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use crate::{
    arena::{Arena, GROUP, windowed_receive},
    kernel::{Completion, Kernel},
};

/// How long a feature that works may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What of the kernel's can be used beyond what must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Multishot receives with a window of their own (Linux 6.17). Without it each receive is a request: slower, with the same bounds.
    pub receive_window: bool,
}

/// What is missing, and how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    /// ENOSYS.
    #[error("this kernel has no io_uring: use Linux 6.1 or later, built with CONFIG_IO_URING")]
    NoIoUring,
    /// EPERM.
    #[error(
        "io_uring is forbidden here: set kernel.io_uring_disabled=0, and in a container allow the io_uring system calls in its seccomp profile"
    )]
    Forbidden,
    /// ENOMEM.
    #[error("too little memory may be locked for {what}: raise the limit of locked memory (ulimit -l, LimitMEMLOCK=) to 64 MiB per shard")]
    Memory {
        /// What was being made.
        what: &'static str,
    },
    /// EMFILE, ENFILE, or a limit below what is needed.
    #[error("too few file descriptors ({have} allowed, {need} needed): raise the limit (ulimit -n, LimitNOFILE=)")]
    Descriptors {
        /// The soft limit in force.
        have: u64,
        /// How many are needed.
        need: u64,
    },
    /// The kernel is too old or built without something.
    #[error("this kernel lacks {what} ({error}): use Linux 6.1 or later")]
    Feature {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
}

impl Missing {
    pub(crate) fn from_io(what: &'static str, error: io::Error) -> Missing {
        match error.raw_os_error() {
            Some(libc::ENOSYS) => Missing::NoIoUring,
            Some(libc::EPERM | libc::EACCES) => Missing::Forbidden,
            Some(libc::ENOMEM) => Missing::Memory { what },
            Some(libc::EMFILE | libc::ENFILE) => {
                let have = descriptors_max();
                Missing::Descriptors { have, need: have + 1 }
            }
            _ => Missing::Feature { what, error },
        }
    }
}

/// Tries each feature that the ring needs, on a small ring of its own. Takes some milliseconds.
///
/// # Errors
/// The first thing that is missing, as a sentence with its mend.
pub fn check() -> Result<Features, Missing> {
    let probe = Probe::new()?;
    probe.accepts_many()?;
    probe.receives_many()?;
    probe.links_a_sync_to_a_write()?;
    probe.times_out()?;
    probe.rings_the_bell()?;
    Ok(Features { receive_window: probe.receives_a_window()? })
}

/// May this process have `need` descriptors? Connections are most of them.
pub fn check_descriptors(need: u64) -> Result<(), Missing> {
    let have = descriptors_max();
    if have < need { Err(Missing::Descriptors { have, need }) } else { Ok(()) }
}

pub(crate) fn receive_window_works() -> Result<bool, Missing> {
    Probe::new()?.receives_a_window()
}

fn descriptors_max() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit is valid for the call.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    limit.rlim_cur
}

/// A ring of its own. The kernel is dropped before the arena, and by then nothing is armed that could receive.
struct Probe {
    kernel: Kernel,
    _arena: Arena,
}

const BUFFER_BYTES: u32 = 64;

impl Probe {
    fn new() -> Result<Probe, Missing> {
        // The plainest of rings first, to tell "none" from "too old for the flags".
        IoUring::new(2).map_err(|e| Missing::from_io("io_uring_setup", e))?;
        let kernel = Kernel::new(8).map_err(|e| Missing::from_io("cooperative task running for one thread", e))?;
        let arena = Arena::new(&kernel, 8, BUFFER_BYTES).map_err(|e| Missing::from_io("a ring of receive buffers", e))?;
        Ok(Probe { kernel, _arena: arena })
    }

    /// Runs `entry` until it has posted `want` completions or its last.
    fn run(&self, what: &'static str, entry: squeue::Entry, want: usize) -> Result<Vec<Completion>, Missing> {
        // SAFETY: each caller keeps what the entry names until its last completion, which `finish` has seen.
        unsafe { self.kernel.push(entry.user_data(1)) };
        self.wait(what, want)
    }

    fn wait(&self, what: &'static str, want: usize) -> Result<Vec<Completion>, Missing> {
        let failed = |e| Missing::from_io(what, e);
        let (start, mut done) = (Instant::now(), Vec::new());
        while done.len() < want && done.last().is_none_or(|c: &Completion| cqueue::more(c.flags)) {
            if start.elapsed() > PATIENCE {
                return Err(failed(io::ErrorKind::TimedOut.into()));
            }
            self.kernel.turn_and_wait(Some(Duration::from_millis(100)), &mut done).map_err(failed)?;
        }
        if let Some(refused) = done.iter().find(|c| c.result < 0) {
            return Err(failed(io::Error::from_raw_os_error(-refused.result)));
        }
        Ok(done)
    }

    /// Cancels entry 1 if it is still armed, which tries the cancellation, too.
    fn finish(&self, what: &'static str, done: &[Completion]) -> Result<(), Missing> {
        if done.last().is_none_or(|c| !cqueue::more(c.flags)) {
            return Ok(());
        }
        let cancel = opcode::AsyncCancel2::new(types::CancelBuilder::any().all()).build().flags(squeue::Flags::SKIP_SUCCESS);
        // SAFETY: a cancellation names no memory.
        unsafe { self.kernel.push(cancel.user_data(0)) };
        match self.wait(what, 1) {
            Err(Missing::Feature { error, .. }) if error.raw_os_error() == Some(libc::ECANCELED) => Ok(()),
            other => other.map(drop),
        }
    }

    fn accepts_many(&self) -> Result<(), Missing> {
        const WHAT: &str = "multishot accept";
        let (listener, address) = local_listener().map_err(|e| Missing::from_io(WHAT, e))?;
        let _clients = [address.connect(), address.connect()];
        let done = self.run(WHAT, opcode::AcceptMulti::new(types::Fd(listener.as_raw_fd())).build(), 2)?;
        for accepted in &done {
            // SAFETY: the kernel has just accepted it for us.
            drop(unsafe { OwnedFd::from_raw_fd(accepted.result) });
        }
        self.finish("cancelling a request", &done)
    }

    fn receives_many(&self) -> Result<(), Missing> {
        const WHAT: &str = "multishot receive";
        let (near, far) = UnixStream::pair().map_err(|e| Missing::from_io(WHAT, e))?;
        write_all(&far, &[7; 10]).map_err(|e| Missing::from_io(WHAT, e))?;
        let done = self.run(WHAT, opcode::RecvMulti::new(types::Fd(near.as_raw_fd()), GROUP).build(), 1)?;
        if done[0].result != 10 || cqueue::buffer_select(done[0].flags).is_none() {
            return Err(Missing::Feature { what: WHAT, error: io::ErrorKind::Unsupported.into() });
        }
        self.finish(WHAT, &done)
    }

    /// Four buffers' worth is sent to a window of two: it must end after two.
    fn receives_a_window(&self) -> Result<bool, Missing> {
        const WHAT: &str = "a receive window";
        let (near, far) = UnixStream::pair().map_err(|e| Missing::from_io(WHAT, e))?;
        write_all(&far, &[7; 4 * BUFFER_BYTES as usize]).map_err(|e| Missing::from_io(WHAT, e))?;
        let entry = windowed_receive(types::Fd(near.as_raw_fd()), 2 * BUFFER_BYTES);
        match self.run(WHAT, entry, usize::MAX) {
            Ok(done) => Ok(done.iter().map(|c| c.result).sum::<i32>() == 2 * BUFFER_BYTES as i32),
            Err(Missing::Feature { error, .. }) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            // A kernel that takes no notice of the window goes on until the arena is empty.
            Err(Missing::Feature { error, .. }) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(false),
            Err(Missing::Feature { error, .. }) if error.kind() == io::ErrorKind::TimedOut => Ok(false),
            Err(other) => Err(other),
        }
    }

    fn links_a_sync_to_a_write(&self) -> Result<(), Missing> {
        const WHAT: &str = "a write linked to a sync";
        // SAFETY: the name is a constant string.
        let raw = unsafe { libc::memfd_create(c"probe".as_ptr(), libc::MFD_CLOEXEC) };
        if raw < 0 {
            return Err(Missing::from_io(WHAT, io::Error::last_os_error()));
        }
        // SAFETY: the descriptor is fresh and ours.
        let file = unsafe { OwnedFd::from_raw_fd(raw) };
        let fd = types::Fd(file.as_raw_fd());
        let write = opcode::Write::new(fd, b"probe".as_ptr(), 5).build().flags(squeue::Flags::IO_LINK).user_data(1);
        let sync = opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build().user_data(1);
        // SAFETY: the bytes are constant.
        unsafe { self.kernel.push_chain([write, sync], 0) };
        let first = self.wait(WHAT, 1)?;
        if first.len() < 2 {
            self.wait(WHAT, 1)?;
        }
        Ok(())
    }

    fn times_out(&self) -> Result<(), Missing> {
        const WHAT: &str = "a timeout";
        let soon = types::Timespec::new().nsec(1000);
        match self.run(WHAT, opcode::Timeout::new(&raw const soon).build(), 1) {
            Err(Missing::Feature { error, .. }) if error.raw_os_error() == Some(libc::ETIME) => Ok(()),
            other => other.map(drop),
        }
    }

    fn rings_the_bell(&self) -> Result<(), Missing> {
        const WHAT: &str = "a read of an eventfd";
        let bell = crate::bell::Bell::new().map_err(|e| Missing::from_io(WHAT, e))?;
        let mut count = Box::new(0_u64);
        let read = opcode::Read::new(types::Fd(bell.raw_fd()), (&raw mut *count).cast(), size_of::<u64>() as u32).build();
        bell.strike();
        let result = self.run(WHAT, read, 1);
        if result.is_err() {
            // The kernel may still hold the read.
            Box::leak(count);
        }
        result.map(drop)
    }
}

fn write_all(mut to: &UnixStream, bytes: &[u8]) -> io::Result<()> {
    io::Write::write_all(&mut to, bytes)
}

/// Where a local listener without a name can be reached.
struct Unnamed(std::os::unix::net::SocketAddr);

impl Unnamed {
    fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect_addr(&self.0)
    }
}

fn local_listener() -> io::Result<(std::os::unix::net::UnixListener, Unnamed)> {
    use std::os::linux::net::SocketAddrExt;
    // A name that no other process has, outside the file system. The thread is part of it because shards probe at the same time.
    let name = format!("ringpost-probe-{}-{:?}", std::process::id(), std::thread::current().id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    Ok((std::os::unix::net::UnixListener::bind_addr(&address)?, Unnamed(address)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_all_that_the_ring_needs() {
        let features = check().unwrap();
        println!("{features:?}");
        assert_eq!(features.receive_window, receive_window_works().unwrap());
    }

    #[test]
    fn what_the_kernel_says_becomes_a_sentence_with_its_mend() {
        let sentence = |errno| Missing::from_io("a ring", io::Error::from_raw_os_error(errno)).to_string();
        assert!(sentence(libc::ENOSYS).contains("Linux 6.1"));
        assert!(sentence(libc::EPERM).contains("io_uring_disabled"));
        assert!(sentence(libc::ENOMEM).contains("ulimit -l"));
        assert!(sentence(libc::EMFILE).contains("ulimit -n"));
        assert!(sentence(libc::EINVAL).contains("a ring"));
        assert!(check_descriptors(16).is_ok());
        assert!(check_descriptors(u64::MAX).is_err_and(|e| e.to_string().contains("needed")));
    }
}
