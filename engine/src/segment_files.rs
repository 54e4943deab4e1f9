//! Executes the operations that a log asks for, on the ring.

use std::{
    cell::RefCell,
    collections::HashMap,
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use ringpost_ring::{File, Pages, PagesMut, Ring, WriteError, WriteSynced};
use ringpost_spool::{BatchBuffer, Doubt, FoundFile, OpKind, OpResult, SegmentFile, Space};

use crate::{doubted_files, spool_home::WriteMode};

/// Zeros written at once while a segment is prepared.
const FILL_BYTES: usize = 1 << 20;
/// No errno at all came back: reported as EIO.
const EIO: i64 = -5;
const ECANCELED: i64 = -125;

/// Page-aligned memory as the log wants it.
pub struct PageBuffer(pub PagesMut);

impl BatchBuffer for PageBuffer {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// One log's directory: open descriptors, names, and how its operations reach the disk.
pub struct SegmentFiles {
    ring: Ring,
    directory: PathBuf,
    /// Open all the time: with no descriptor left its names can still be synced.
    names: File,
    write_mode: WriteMode,
    open: RefCell<HashMap<SegmentFile, File>>,
    zeros: RefCell<Option<Pages>>,
}

impl SegmentFiles {
    /// The directory is made if missing. Blocks: called once, at the start.
    pub fn open(ring: Ring, directory: PathBuf, write_mode: WriteMode) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        if let Some(parent) = directory.parent() {
            crate::folder::sync_folder(parent)?;
        }
        let names = File::from(fs::File::open(&directory)?);
        Ok(SegmentFiles { ring, directory, names, write_mode, open: RefCell::default(), zeros: RefCell::default() })
    }

    /// The segment files that are there, with what the start `previous_boot` could not read of them. Blocks: called once, at the start.
    pub fn found(&self, previous_boot: Option<u64>) -> io::Result<Vec<FoundFile>> {
        let (mut files, doubts) = (Vec::new(), doubted_files::read(&self.directory, previous_boot));
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if let Some((file, temporary)) = entry.file_name().to_str().and_then(SegmentFile::parse) {
                files.push(FoundFile { file, bytes: entry.metadata()?.len(), temporary, doubt: doubts.get(&file).copied() });
            }
        }
        Ok(files)
    }

    /// Where the segments are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Room on the file system.
    pub fn space(&self) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(&self.directory)?;
        let inodes = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
        Ok(Space { bytes: stat.f_bavail.saturating_mul(stat.f_frsize), inodes })
    }

    /// Writes down what the start `boot` could not read, for the next one. Blocks, seldom for more than a look.
    pub fn note_doubts(&self, boot: u64, doubts: &[(SegmentFile, Doubt)]) -> io::Result<()> {
        doubted_files::write(&self.directory, boot, doubts)
    }

    /// Removes the directory, which must be empty of segments.
    pub fn remove_directory(&self) -> io::Result<()> {
        self.open.borrow_mut().clear();
        doubted_files::remove(&self.directory)?;
        fs::remove_dir(&self.directory)?;
        self.directory.parent().map_or(Ok(()), crate::folder::sync_folder)
    }

    /// Starts a write linked to its flush; `None` when the file cannot be opened.
    pub fn write_synced(&self, file: SegmentFile, temporary: bool, offset: u64, pages: Pages, bytes: usize) -> io::Result<WriteSynced> {
        Ok(self.ring.write_synced(&self.file(file, temporary)?, pages, bytes, offset))
    }

    /// Reads past the page cache; the buffer comes back in any case.
    pub async fn read(&self, file: SegmentFile, offset: u64, buffer: PagesMut, bytes: usize) -> (PagesMut, io::Result<usize>) {
        match self.file(file, false) {
            Ok(open) => self.ring.read_at(&open, buffer, bytes, offset).await,
            Err(error) => (buffer, Err(error)),
        }
    }

    /// Executes anything; batches go through [`SegmentFiles::write_synced`] instead, which does not cost a task.
    pub async fn execute(&self, kind: OpKind<PageBuffer>) -> OpResult<PageBuffer> {
        match kind {
            OpKind::WriteSynced { file, temporary, offset, buffer, bytes, batch: _ } => {
                match self.write_synced(file, temporary, offset, buffer.0.freeze(), bytes) {
                    Ok(write) => write_result(bytes, write.await),
                    Err(error) => OpResult::WriteSynced { write: errno(&error), sync: ECANCELED },
                }
            }
            OpKind::Read { file, offset, buffer, bytes } => {
                let (buffer, result) = self.read(file, offset, buffer.0, bytes).await;
                OpResult::Read { buffer: PageBuffer(buffer), result: result.map_or_else(|error| errno(&error), |read| read as i64) }
            }
            kind => {
                let result = self.change(kind).await;
                OpResult::Done { result: result.map_or_else(|error| errno(&error), |()| 0) }
            }
        }
    }

    async fn change(&self, kind: OpKind<PageBuffer>) -> io::Result<()> {
        match kind {
            OpKind::WriteSynced { .. } | OpKind::Read { .. } => unreachable!("answered by `execute`"),
            OpKind::Sync { file } => self.ring.fsync(&self.file(file, false)?, true).await,
            OpKind::Create { file } => {
                self.open.borrow_mut().remove(&file);
                let path = self.path(file, true);
                let flags = self.flags() | libc::O_CREAT | libc::O_TRUNC;
                let open = self.ring.open(&path, flags, 0o600).await?;
                self.open.borrow_mut().insert(file, open);
                Ok(())
            }
            OpKind::Allocate { file, bytes } => self.ring.fallocate(&self.file(file, true)?, 0, bytes).await,
            OpKind::Fill { file, offset, bytes } => self.fill(file, offset, bytes).await,
            OpKind::Publish { file } => self.ring.rename(&self.path(file, true), &self.path(file, false)).await,
            OpKind::SyncDirectory => self.ring.fsync(&self.names, false).await,
            OpKind::Unlink { file, temporary } => {
                self.open.borrow_mut().remove(&file);
                match self.ring.unlink(&self.path(file, temporary)).await {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    result => result,
                }
            }
        }
    }

    async fn fill(&self, file: SegmentFile, offset: u64, bytes: usize) -> io::Result<()> {
        let open = self.file(file, true)?;
        let zeros = self.zeros.borrow_mut().get_or_insert_with(|| self.ring.take_pages(FILL_BYTES).freeze()).clone();
        let mut done = 0;
        while done < bytes {
            let wanted = (bytes - done).min(FILL_BYTES);
            match self.ring.write_at(&open, zeros.clone(), wanted, offset + done as u64).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => done += written,
            }
        }
        Ok(())
    }

    fn path(&self, file: SegmentFile, temporary: bool) -> PathBuf {
        self.directory.join(if temporary { file.temporary_name() } else { file.to_string() })
    }

    fn flags(&self) -> i32 {
        libc::O_RDWR
            | match self.write_mode {
                WriteMode::Direct => libc::O_DIRECT,
                WriteMode::Buffered => 0,
            }
    }

    /// The open descriptor; opening a file that exists does not wait for the disk in practice and happens once for each segment.
    fn file(&self, file: SegmentFile, temporary: bool) -> io::Result<File> {
        if let Some(open) = self.open.borrow().get(&file) {
            return Ok(open.clone());
        }
        let direct = if self.write_mode == WriteMode::Direct { libc::O_DIRECT } else { 0 };
        let open = fs::OpenOptions::new().read(true).write(true).custom_flags(direct).open(self.path(file, temporary))?;
        if self.write_mode == WriteMode::Buffered {
            // After a failed flush the cache may show what the disk does not have (S9): what is read first comes from the disk.
            rustix::fs::fadvise(&open, 0, None, rustix::fs::Advice::DontNeed)?;
        }
        let open = File::from(open);
        self.open.borrow_mut().insert(file, open.clone());
        Ok(open)
    }
}

/// Both completions of a synced write as the log wants them.
pub fn write_result(bytes: usize, result: Result<(), WriteError>) -> OpResult<PageBuffer> {
    let (write, sync) = match result {
        Ok(()) => (bytes as i64, 0),
        Err(WriteError::Short { written, .. }) => (written as i64, ECANCELED),
        Err(WriteError::Write(error)) => (errno(&error), ECANCELED),
        Err(WriteError::Sync(error)) => (bytes as i64, errno(&error)),
        Err(WriteError::Torn) => (bytes as i64, EIO),
    };
    OpResult::WriteSynced { write, sync }
}

fn errno(error: &io::Error) -> i64 {
    error.raw_os_error().map_or(EIO, |errno| -i64::from(errno))
}
