//! Reading the mail log's files: those that were rotated and the one that is written, from their beginning or as they grow.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use crate::mail_log_entry::MailLogEntry;

/// How often a file that is followed is looked at: its writer passes lines on every 100 ms.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A line of 4 KiB with each octet escaped as JSON, and room. What is longer is no line of a mail log: a hole that a power cut left, say.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// The files of a log, oldest first: `mail.log.2`, `mail.log.1`, `mail.log-20261129` and the like beside `mail.log`. Compressed ones are
/// left out.
pub fn files(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let is_rotated = |other: &str| {
        other.strip_prefix(&name).and_then(|rest| rest.strip_prefix(['.', '-'])).is_some_and(|rest| {
            !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'_' | b':' | b'T' | b'.'))
        })
    };
    let mut found: Vec<_> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(is_rotated))
        .filter_map(|entry| {
            let file = fs::metadata(entry.path()).ok().filter(fs::Metadata::is_file)?;
            Some((file.modified().ok()?, entry.path()))
        })
        .collect();
    found.sort();
    let mut files: Vec<_> = found.into_iter().map(|(_, file)| file).collect();
    if path.exists() {
        files.push(path.to_owned());
    }
    files
}

/// Hands each line about `word` (a queue id or an address) to `each`, oldest first.
pub fn grep(files: &[PathBuf], word: &str, mut each: impl FnMut(&str, MailLogEntry)) -> io::Result<()> {
    let needle = word.to_ascii_lowercase();
    let mut line = Vec::new();
    for file in files {
        let mut reader = match File::open(file) {
            Ok(file) => BufReader::with_capacity(256 * 1024, file),
            // Rotated or compressed since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        loop {
            line.clear();
            if reader.by_ref().take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            if line.len() == LINE_BYTES_MAX && !line.ends_with(b"\n") {
                reader.skip_until(b'\n')?;
                continue;
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches('\n');
            // Escapes are rare: what has any is read in full, the rest only where the word stands in it.
            if !text.contains('\\') && !text.to_ascii_lowercase().contains(&needle) {
                continue;
            }
            if let Some(entry) = MailLogEntry::parse(text)
                && entry.is_about(word)
            {
                each(text, entry);
            }
        }
    }
    Ok(())
}

/// A file that grows, under a name that may be given to another one.
pub struct Follower {
    path: PathBuf,
    open: Option<(BufReader<File>, u64)>,
    partial: Vec<u8>,
    /// What came of this line so far was too long for one, and was left out; so is the rest.
    skips: bool,
}

impl Follower {
    /// From the end of what is there now, or from its beginning.
    pub fn new(path: &Path, from_end: bool) -> io::Result<Self> {
        let mut follower = Self { path: path.to_owned(), open: None, partial: Vec::new(), skips: false };
        follower.reopen()?;
        if from_end && let Some((reader, _)) = &mut follower.open {
            reader.seek(SeekFrom::End(0))?;
        }
        Ok(follower)
    }

    /// There is no file of this name yet.
    pub fn is_missing(&self) -> bool {
        self.open.is_none()
    }

    /// The next whole line; waits for it.
    pub fn next_line(&mut self) -> io::Result<String> {
        loop {
            if let Some(line) = self.try_line()? {
                return Ok(line);
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// The next whole line, if there is one. What is left of a file that was renamed away comes before what its successor has.
    pub fn try_line(&mut self) -> io::Result<Option<String>> {
        // Another file has the name only after the last line of this one: it is looked at first, then read once more.
        let identity = fs::metadata(&self.path).ok().map(|file| (file.ino(), file.len()));
        if let Some((reader, inode)) = &mut self.open {
            while reader.by_ref().take((LINE_BYTES_MAX - self.partial.len()) as u64).read_until(b'\n', &mut self.partial)? > 0 {
                let is_whole = self.partial.pop_if(|last| *last == b'\n').is_some();
                if is_whole && !std::mem::take(&mut self.skips) {
                    let line = String::from_utf8_lossy(&self.partial).into_owned();
                    self.partial.clear();
                    return Ok(Some(line));
                }
                self.skips |= self.partial.len() == LINE_BYTES_MAX;
                if is_whole || self.skips {
                    self.partial.clear();
                }
            }
            let position = reader.stream_position()?;
            match identity {
                Some((other, _)) if other != *inode => self.open = None,
                // Copied and truncated: it begins anew.
                Some((_, length)) if length < position => {
                    self.partial.clear();
                    self.skips = false;
                    reader.seek(SeekFrom::Start(0))?;
                }
                _ => return Ok(None),
            }
        }
        self.reopen()?;
        Ok(None)
    }

    fn reopen(&mut self) -> io::Result<()> {
        if self.open.is_none() {
            match File::open(&self.path) {
                Ok(file) => {
                    let inode = file.metadata()?.ino();
                    self.open = Some((BufReader::new(file), inode));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;

    use super::*;

    fn append(path: &Path, text: &str) {
        OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn all(follower: &mut Follower) -> Vec<String> {
        let mut lines = Vec::new();
        let mut misses = 0;
        while misses < 3 {
            match follower.try_line().unwrap() {
                Some(line) => lines.push(line),
                None => misses += 1,
            }
        }
        lines
    }

    #[test]
    fn a_follower_loses_no_line_to_rotation_or_truncation_and_waits_for_whole_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mail.log");
        append(&path, "old\n");
        let mut follower = Follower::new(&path, true).unwrap();
        assert!(!follower.is_missing() && Follower::new(&folder.path().join("none"), true).unwrap().is_missing());
        append(&path, "one\ntw");
        assert_eq!(all(&mut follower), ["one"]);
        append(&path, "o\nthree\n");
        fs::rename(&path, folder.path().join("mail.log.1")).unwrap();
        append(&folder.path().join("mail.log.1"), "late\n");
        append(&path, "four\n");
        assert_eq!(all(&mut follower), ["two", "three", "late", "four"]);
        File::create(&path).unwrap();
        assert!(all(&mut follower).is_empty());
        append(&path, "five\n");
        assert_eq!(all(&mut follower), ["five"]);
        append(&path, &"x".repeat(LINE_BYTES_MAX - 1));
        assert!(all(&mut follower).is_empty());
        append(&path, &format!("{}\nshort\n{}\n", "y".repeat(2 * LINE_BYTES_MAX), "z".repeat(LINE_BYTES_MAX)));
        append(&path, "after\n");
        assert_eq!(all(&mut follower), ["short", "after"]);
        fs::remove_file(&path).unwrap();
        assert!(all(&mut follower).is_empty());
        append(&path, "six\n");
        assert_eq!(all(&mut follower), ["six"]);
    }

    #[test]
    fn rotated_files_are_searched_oldest_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mail.log");
        append(&folder.path().join("mail.log.2"), "2026 queue_id=A1 event=accepted from=<a@b.test>\n");
        append(
            &folder.path().join("mail.log-20261129"),
            "2026 queue_id=A1 event=attempt to=<c@d.test> outcome=deferred\n{\"queue_id\":\"B2\"}\n",
        );
        append(&folder.path().join("mail.log.2.gz"), "x");
        append(&folder.path().join("mail.logs"), "x");
        // Such a folder made every search fail.
        fs::create_dir(folder.path().join("mail.log.7")).unwrap();
        append(&path, "{\"time\":\"2026\",\"queue_id\":\"A1\",\"event\":\"attempt\",\"outcome\":\"delivered\"}\nnonsense A1\n");
        let hour_ago = |hours: u64| std::time::SystemTime::now() - Duration::from_secs(3600 * hours);
        for (name, hours) in [("mail.log.2", 2), ("mail.log-20261129", 1)] {
            File::options().append(true).open(folder.path().join(name)).unwrap().set_modified(hour_ago(hours)).unwrap();
        }
        let files = files(&path);
        assert_eq!(files.len(), 3, "{files:?}");
        let mut seen = Vec::new();
        grep(&files, "a1", |_, entry| seen.push(entry.get("outcome").unwrap_or("accepted").to_owned())).unwrap();
        assert_eq!(seen, ["accepted", "deferred", "delivered"]);
        seen.clear();
        grep(&files, "C@D.test", |line, _| seen.push(line.to_owned())).unwrap();
        assert_eq!(seen.len(), 1);
    }

    /// Such a line was read whole: searching a log with a hole of gigabytes took as much memory.
    #[test]
    fn what_is_too_long_for_a_line_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mail.log");
        append(&path, &format!("{} queue_id=A1 event=accepted\n2026 queue_id=A1 event=deleted\n", "x".repeat(LINE_BYTES_MAX)));
        let longest = format!("2026 queue_id=A1 event={}\n", "y".repeat(LINE_BYTES_MAX - 24));
        assert_eq!(longest.len(), LINE_BYTES_MAX);
        append(&path, &longest);
        append(&path, &"z".repeat(2 * LINE_BYTES_MAX));
        let (mut seen, gone) = (Vec::new(), folder.path().join("mail.log.1"));
        grep(&[gone, path], "a1", |line, _| seen.push(line.len())).unwrap();
        assert_eq!(seen, [30, LINE_BYTES_MAX - 1]);
    }
}
