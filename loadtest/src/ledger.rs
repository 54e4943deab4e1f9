//! Append-only ledgers: what was acknowledged to a source, and what arrived at a sink.
//!
//! A line of the accepted ledger is made when the 250 was read: `ID LENGTH CHECKSUM TIME_US RECIPIENT,RECIPIENT QUEUE-ID`, the
//! recipients those that the server took, the last as the 250 named it. A line of the delivered one is made before the sink says 250:
//! `ID LENGTH CHECKSUM TIME_US VERDICT RECIPIENT,RECIPIENT SENDER`. `-` stands for a part that is not known, `<>` for the null sender. Up to
//! version 0.1 at commit 146c506 the accepted ledger had the number of recipients in their place; [`crate::diff`] refuses it.
//! Of a message whose content was sent and answered 4xx or 5xx the accepted ledger has `# refused ID CODE`, since version 0.1 behind commit
//! 4d8a1bc; under LMTP where no recipient was answered 250, with the code of the first.
//! Before them a source names its run, `# run RUN SENDER` (the first half of its identities, and the sender of all its messages), so that what
//! arrived of a run of which no 250 was read is known as its own. Lines of version 0.1 up to commit f8177c0 have no sender. Lines are gathered
//! and written whole, so that several threads, and several processes, may share a file: those of a sink before the replies that they are
//! about leave, those of a source every 20 ms. So a kill of a sink loses no line whose 250 anybody has read, while a source that is killed
//! lacks those of its last 20 ms, and their messages are unacknowledged to [`crate::diff`]; what a machine has when its power is gone is not
//! promised. A line that a kill cut off is ended by [`CUT_OFF`] when a later run appends to the ledger.
//! Addresses are written by [`push_address`]. Up to version 0.1 at commit 4f20f61 each octet that is now `\xHH` was a `?`: such a ledger is read,
//! and agrees in those addresses with one of its time only.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::{
    checksum::CHECKSUM_CHARS,
    identity::{Mark, MessageId, push_decimal, write_hex},
    input_file,
    sink::verify::Arrival,
};

/// Lines are written when this many octets have been gathered, unless [`LedgerWriter::flush`] comes first.
const GATHERED_BYTES_MAX: usize = 64 << 10;

/// What the next run puts behind a line that was cut off, so that nobody takes a part of it for all.
pub const CUT_OFF: &str = " (cut off)";

/// Whom a message came from and whom it came to, as its transaction said it.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    /// The sender without brackets, empty for the null one.
    pub reverse_path: &'a [u8],
    /// Joined by commas and each by [`push_address`].
    pub recipients: &'a [u8],
}

/// Appends to a ledger, or to none.
#[derive(Debug)]
pub struct LedgerWriter {
    file: Option<(File, PathBuf)>,
    gathered: Vec<u8>,
}

impl LedgerWriter {
    /// Opens for appending, and ends a line that an earlier run left unfinished; `None`: keeps none.
    pub fn open(path: Option<&Path>) -> io::Result<LedgerWriter> {
        let open = |path: &Path| {
            let mut file = OpenOptions::new().append(true).create(true).open(path)?;
            // Two that open it at once may both write it: the second line of those has nothing before the mark.
            if is_cut_off(path) {
                file.write_all(format!("{CUT_OFF}\n").as_bytes())?;
            }
            Ok((file, path.to_path_buf()))
        };
        let opened = path.map(|path| open(path).map_err(|error| about(path, &error)));
        Ok(LedgerWriter { file: opened.transpose()?, gathered: Vec::new() })
    }

    /// Names a run whose acknowledgements follow, if there are any, and the sender of all of its messages.
    pub fn run(&mut self, run: u64, reverse_path: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            return Ok(());
        }
        let mut text = [0; 16];
        write_hex(run, &mut text);
        self.gathered.extend_from_slice(b"# run ");
        self.gathered.extend_from_slice(&text);
        self.push_sender(reverse_path);
        self.end_line()
    }

    /// Records an acknowledgement for these recipients, joined by commas and each by [`push_address`]; `queue_id` is the server's name
    /// for the message, empty where it told none.
    pub fn accepted(&mut self, mark: &Mark, time_us: u64, recipients: &[u8], queue_id: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            return Ok(());
        }
        self.push_mark(Some(mark), time_us);
        self.push_known(recipients);
        self.gathered.push(b' ');
        self.push_known(queue_id);
        self.end_line()
    }

    /// Records a refusal of a message whose content was sent, with the code of the reply.
    pub fn refused(&mut self, id: MessageId, code: u16) -> io::Result<()> {
        if self.file.is_none() {
            return Ok(());
        }
        self.gathered.extend_from_slice(b"# refused ");
        id.push_to(&mut self.gathered);
        self.gathered.push(b' ');
        push_decimal(u64::from(code), &mut self.gathered);
        self.end_line()
    }

    /// Records an arrival.
    pub fn delivered(&mut self, arrival: &Arrival, time_us: u64, envelope: Envelope<'_>) -> io::Result<()> {
        if self.file.is_none() {
            return Ok(());
        }
        self.push_mark(arrival.mark.as_ref(), time_us);
        let verdict = match (arrival.damage, arrival.mark) {
            (Some(damage), _) => damage.name(),
            (None, Some(_)) => "ok",
            (None, None) => "foreign",
        };
        self.gathered.extend_from_slice(verdict.as_bytes());
        self.gathered.push(b' ');
        self.push_known(envelope.recipients);
        self.push_sender(envelope.reverse_path);
        self.end_line()
    }

    /// Writes what was gathered. What could not be written is gone: half of it may be there, and a second try would repeat that.
    pub fn flush(&mut self) -> io::Result<()> {
        if let Some((file, path)) = &mut self.file
            && !self.gathered.is_empty()
        {
            let written = file.write_all(&self.gathered);
            self.gathered.clear();
            written.map_err(|error| about(path, &error))?;
        }
        Ok(())
    }

    fn push_known(&mut self, part: &[u8]) {
        self.gathered.extend_from_slice(if part.is_empty() { b"-" } else { part });
    }

    fn push_sender(&mut self, reverse_path: &[u8]) {
        self.gathered.push(b' ');
        match reverse_path {
            b"" => self.gathered.extend_from_slice(b"<>"),
            path => push_address(path, &mut self.gathered),
        }
    }

    fn push_mark(&mut self, mark: Option<&Mark>, time_us: u64) {
        let out = &mut self.gathered;
        match mark {
            Some(mark) => {
                mark.id.push_to(out);
                out.push(b' ');
                push_decimal(mark.length, out);
                out.push(b' ');
                let mut checksum = [0; CHECKSUM_CHARS];
                write_hex(mark.checksum.bits(), &mut checksum);
                out.extend_from_slice(&checksum);
            }
            None => out.extend_from_slice(b"- - -"),
        }
        out.push(b' ');
        push_decimal(time_us, out);
        out.push(b' ');
    }

    fn end_line(&mut self) -> io::Result<()> {
        self.gathered.push(b'\n');
        if self.gathered.len() >= GATHERED_BYTES_MAX { self.flush() } else { Ok(()) }
    }
}

/// Appends an address as ledgers have it, so that two of them differ where the addresses do: an octet that would end a line or a part of it, or
/// is not printable ASCII, is `\xHH` in lower case, and so is a backslash before an `x`. Others, as of a quoted pair, stand for themselves.
pub fn push_address(path: &[u8], out: &mut Vec<u8>) {
    for (at, &octet) in path.iter().enumerate() {
        let is_escape = octet == b'\\' && path.get(at + 1) == Some(&b'x');
        if octet.is_ascii_graphic() && octet != b',' && !is_escape {
            out.push(octet);
        } else {
            const DIGITS: &[u8; 16] = b"0123456789abcdef";
            out.extend_from_slice(&[b'\\', b'x', DIGITS[usize::from(octet >> 4)], DIGITS[usize::from(octet & 15)]]);
        }
    }
}

/// Is this a file whose last line has no end? One that cannot be read is appended to as it is.
fn is_cut_off(path: &Path) -> bool {
    let last_octet = || {
        let file = input_file::open(path)?;
        let mut octet = [0];
        file.read_exact_at(&mut octet, file.metadata()?.len().saturating_sub(1))?;
        io::Result::Ok(octet[0])
    };
    last_octet().is_ok_and(|octet| octet != b'\n')
}

fn about(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("the ledger {}: {error}", path.display()))
}

impl Drop for LedgerWriter {
    fn drop(&mut self) {
        // Whoever needs to know of a failure flushes before; this is for early ends.
        let _ = self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::Checksum;

    /// What happened: each octet beyond ASCII was a `?`, so that mail for one mailbox that came to another was no difference.
    #[test]
    fn addresses_that_differ_differ_in_a_ledger_and_end_no_part_of_it() {
        let written = |path: &str| {
            let mut out = Vec::new();
            push_address(path.as_bytes(), &mut out);
            String::from_utf8(out).unwrap()
        };
        for (path, recorded) in [
            ("r@load.test", "r@load.test"),
            ("r@m\u{fc}n.test", r"r@m\xc3\xbcn.test"),
            ("\"a, b\"@y", r#""a\x2c\x20b"@y"#),
            (r#""a\"b\\"@y"#, r#""a\"b\\"@y"#),
            (r#""\x2c"@y"#, r#""\x5cx2c"@y"#),
            ("a\u{7f}?\r\n", r"a\x7f?\x0d\x0a"),
        ] {
            assert_eq!(written(path), recorded);
        }
        let differ = ["\u{e4}", "\u{fc}", "?", "??", r"\xc3\xa4", r"\\xc3\xa4", r"\x5cxc3", r"\xc3", ",", r"\x2c"];
        let all: std::collections::BTreeSet<String> = differ.into_iter().map(written).collect();
        assert_eq!(all.len(), differ.len(), "{all:?}");
    }

    /// A full disk was an error without a name, and what had been written in part was written again when the writer was dropped.
    #[test]
    fn a_full_disk_is_told_with_the_ledgers_name_and_not_tried_again() {
        let mark = Mark { id: MessageId { run: 1, sequence: 2 }, length: 10, checksum: Checksum::from_bits(3), due_us: 0 };
        let mut writer = LedgerWriter::open(Some(Path::new("/dev/full"))).unwrap();
        writer.accepted(&mark, 5, b"a@x", b"7F3A").unwrap();
        let error = writer.flush().unwrap_err();
        assert!(error.kind() == io::ErrorKind::StorageFull && error.to_string().contains("/dev/full"), "{error}");
        writer.flush().expect("nothing is left to be written");
    }
}
