//! Files that are given to be read: regular ones, and no more of them than there is room for.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::OFlags;

/// The largest text that somebody writes by hand: a scenario, a mix of sizes.
pub const TEXT_BYTES_MAX: u64 = 16 << 20;
/// The largest message, template or attachment.
pub const MESSAGE_BYTES_MAX: u64 = 256 << 20;

/// Opens a regular file. A device has no end, and a pipe may never have a beginning: both are refused and not waited for.
///
/// # Errors
/// What the system says; [`io::ErrorKind::InvalidInput`] for what is no regular file, and [`io::ErrorKind::IsADirectory`].
pub fn open(path: &Path) -> io::Result<File> {
    // Without it the open itself waits for whoever writes into a pipe. On a regular file it means nothing.
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    let known = file.metadata()?;
    match (known.is_file(), known.is_dir()) {
        (true, _) => Ok(file),
        (_, true) => Err(io::ErrorKind::IsADirectory.into()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")),
    }
}

/// Reads a regular file of at most so many octets.
///
/// # Errors
/// As [`open`], and [`io::ErrorKind::FileTooLarge`] beyond the bound.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open(path)?.take(bytes_max + 1).read_to_end(&mut content)?;
    if content.len() as u64 > bytes_max {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is larger than the {bytes_max} octets that are read of such a file"),
        ));
    }
    Ok(content)
}

/// The same of a text.
///
/// # Errors
/// As [`read`], and [`io::ErrorKind::InvalidData`] for what is not UTF-8.
pub fn read_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    String::from_utf8(read(path, bytes_max)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What happened: results, templates and ledgers from `/dev/zero` took all memory, and a pipe that nobody wrote into was waited for.
    #[test]
    fn what_has_no_end_or_is_too_large_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (file, pipe) = (folder.path().join("file"), folder.path().join("pipe"));
        std::fs::write(&file, "12345").unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert_eq!(read_text(&file, 5).unwrap(), "12345");
        let kind = |path: &Path, bytes_max| read(path, bytes_max).unwrap_err().kind();
        assert_eq!(kind(&file, 4), io::ErrorKind::FileTooLarge);
        assert_eq!(kind(&pipe, 5), io::ErrorKind::InvalidInput);
        assert_eq!(kind(Path::new("/dev/zero"), 5), io::ErrorKind::InvalidInput);
        assert_eq!(kind(folder.path(), 5), io::ErrorKind::IsADirectory);
        assert_eq!(kind(&folder.path().join("nowhere"), 5), io::ErrorKind::NotFound);
    }
}
