//! Files on the ring: positioned reads and writes, syncs, and names.
//!
//! For what is hot or must not wait for glommio. None of these retries: a short result is the caller's to judge.

use std::{
    ffi::CString,
    fmt, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    os::unix::ffi::OsStrExt,
    path::Path,
    rc::Rc,
};

use io_uring::{opcode, squeue, types};

use crate::{
    pages::{Pages, PagesMut},
    ring::Ring,
    slot::Lent,
};

/// An open file, closed when neither its owners nor a request in the kernel holds it any more. Cheap to clone.
#[derive(Clone)]
pub struct File(Rc<OwnedFd>);

impl File {
    /// Takes over an open descriptor.
    pub fn new(descriptor: OwnedFd) -> File {
        File(Rc::new(descriptor))
    }

    pub(crate) fn fd(&self) -> types::Fd {
        types::Fd(self.0.as_raw_fd())
    }
}

impl From<std::fs::File> for File {
    fn from(file: std::fs::File) -> File {
        File::new(file.into())
    }
}

impl AsRawFd for File {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("File").field(&self.0.as_raw_fd()).finish()
    }
}

impl Ring {
    /// Writes the first `len` bytes of `pages` at `offset`. Returns how many were written. Durable only after a sync; see
    /// [`Ring::write_synced`].
    pub async fn write_at(&self, file: &File, pages: Pages, len: usize, offset: u64) -> io::Result<usize> {
        assert!(len <= pages.len(), "no more than there is");
        // SAFETY: the slot lends the pages and the file.
        let op = unsafe { self.0.issue(Lent::Pages(pages, file.clone()), |lent| write_entry(lent, len, offset)) };
        op.await.result()
    }

    /// Reads up to `len` bytes at `offset` into `pages`, which come back in any case. Returns how many were read, 0 at the end.
    pub async fn read_at(&self, file: &File, pages: PagesMut, len: usize, offset: u64) -> (PagesMut, io::Result<usize>) {
        assert!(len <= pages.len(), "no more than there is room for");
        let entry = |lent: &mut Lent| {
            let Lent::PagesMut(pages, file) = lent else { unreachable!("it was lent as pages to fill") };
            opcode::Read::new(file.fd(), pages.as_mut_ptr(), len as u32).offset(offset).build()
        };
        // SAFETY: the slot lends the pages and the file.
        let done = unsafe { self.0.issue(Lent::PagesMut(pages, file.clone()), entry) }.await;
        let result = done.result();
        let Lent::PagesMut(pages, _) = done.lent else { unreachable!("a slot gives back what it lent") };
        (pages, result)
    }

    /// Makes what was written to `file` durable; with `datasync` not its times. After an error the file's state on disk is unknown, and
    /// a second sync would lie: never retry.
    pub async fn fsync(&self, file: &File, datasync: bool) -> io::Result<()> {
        let flags = if datasync { types::FsyncFlags::DATASYNC } else { types::FsyncFlags::empty() };
        let entry = |lent: &mut Lent| opcode::Fsync::new(lent.fd()).flags(flags).build();
        // SAFETY: no memory but the file, which the slot holds.
        let op = unsafe { self.0.issue(Lent::File(file.clone()), entry) };
        op.await.result().map(drop)
    }

    /// Reserves `len` bytes at `offset` without writing them.
    pub async fn fallocate(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        let entry = |lent: &mut Lent| opcode::Fallocate::new(lent.fd(), len).offset(offset).build();
        // SAFETY: no memory but the file, which the slot holds.
        let op = unsafe { self.0.issue(Lent::File(file.clone()), entry) };
        op.await.result().map(drop)
    }

    /// Opens `path` with the flags of open(2) (close-on-exec is added) and the mode of a file that is made.
    pub async fn open(&self, path: &Path, flags: i32, mode: u32) -> io::Result<File> {
        let at = types::Fd(libc::AT_FDCWD);
        let entry = |lent: &mut Lent| opcode::OpenAt::new(at, opened(lent)).flags(flags | libc::O_CLOEXEC).mode(mode).build();
        // SAFETY: the path is boxed in the slot.
        let op = unsafe { self.0.issue(Lent::Opening(Box::new(c_path(path)?)), entry) };
        let fd = op.await.result()? as RawFd;
        // SAFETY: the kernel has just opened it for us.
        Ok(File::new(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Renames a file, over what is there. Durable only after a sync of the directory.
    pub async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let at = types::Fd(libc::AT_FDCWD);
        let entry = |lent: &mut Lent| opcode::RenameAt::new(at, first(lent), at, second(lent)).build();
        // SAFETY: the paths are boxed in the slot.
        let op = unsafe { self.0.issue(Lent::Paths(Box::new([c_path(from)?, c_path(to)?])), entry) };
        op.await.result().map(drop)
    }

    /// Removes a name. Durable only after a sync of the directory.
    pub async fn unlink(&self, path: &Path) -> io::Result<()> {
        let at = types::Fd(libc::AT_FDCWD);
        let entry = |lent: &mut Lent| opcode::UnlinkAt::new(at, first(lent)).build();
        // SAFETY: the path is boxed in the slot.
        let op = unsafe { self.0.issue(Lent::Paths(Box::new([c_path(path)?, CString::default()])), entry) };
        op.await.result().map(drop)
    }
}

/// The write of the first `len` bytes of lent pages.
pub(crate) fn write_entry(lent: &Lent, len: usize, offset: u64) -> squeue::Entry {
    let Lent::Pages(pages, file) = lent else { unreachable!("they were lent as pages") };
    opcode::Write::new(file.fd(), pages.as_ptr(), len as u32).offset(offset).build()
}

impl Lent {
    /// The file that was lent.
    pub(crate) fn fd(&self) -> types::Fd {
        match self {
            Lent::Pages(_, file) | Lent::PagesMut(_, file) | Lent::File(file) => file.fd(),
            Lent::Connecting(..) | Lent::Paths(_) | Lent::Opening(_) => unreachable!("a request on a file lends it"),
        }
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

fn opened(lent: &Lent) -> *const libc::c_char {
    let Lent::Opening(path) = lent else { unreachable!("it was lent as a path to open") };
    path.as_ptr()
}

fn first(lent: &Lent) -> *const libc::c_char {
    let Lent::Paths(paths) = lent else { unreachable!("it was lent as paths") };
    paths[0].as_ptr()
}

fn second(lent: &Lent) -> *const libc::c_char {
    let Lent::Paths(paths) = lent else { unreachable!("it was lent as paths") };
    paths[1].as_ptr()
}
