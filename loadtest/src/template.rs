//! Messages made from a template: `{{seq}}` and `{{id}}` in any line, further header fields, attachments.

use std::{fmt::Write as _, os::unix::ffi::OsStrExt, path::Path};

use crate::{
    checksum::Checksum,
    content::{Form, Item, normalise, stuff},
    identity::{ID_CHARS, MessageId, push_decimal},
    input_file::{self, MESSAGE_BYTES_MAX},
};

/// All messages of a corpus together, in octets: they are held in memory, twice.
const CORPUS_BYTES_MAX: u64 = 1 << 30;

/// What separates the parts of a message with attachments. Nothing that base64 or a text without it can contain.
const BOUNDARY: &str = "=_ringpost_load_part";

/// The header fields of an assembled message, where no others of their names are given.
const OWN_FIELDS: [&str; 5] = [
    "Date: Thu, 01 Jan 2026 00:00:00 +0000",
    "From: <sender@load.test>",
    "Message-ID: <{{id}}@load.test>",
    "Subject: Ringpost load {{seq}}",
    "MIME-Version: 1.0",
];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Fixed { raw: Vec<u8>, stuffed: Vec<u8> },
    Sequence,
    Id,
}

/// A message with places for what differs from one to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
}

impl Template {
    /// Reads the text of a template. Line ends become CRLF; a text without header gets an empty one.
    ///
    /// # Errors
    /// A `{{` without end, or a name that is none: the line and the names there are.
    pub fn parse(text: &[u8]) -> Result<Template, String> {
        let text = normalise(text);
        let mut pieces = Vec::new();
        let (mut at, mut line_starts) = (0, true);
        while let Some(found) = memchr::memmem::find(&text[at..], b"{{") {
            let open = at + found;
            push_fixed(&mut pieces, &text[at..open], line_starts);
            let line = 1 + memchr::memchr_iter(b'\n', &text[..open]).count();
            let Some(length) = memchr::memmem::find(&text[open..], b"}}") else {
                return Err(format!("line {line}: {{{{ has no end"));
            };
            pieces.push(match text[open + 2..open + length].trim_ascii() {
                b"seq" => Piece::Sequence,
                b"id" => Piece::Id,
                other => return Err(format!("line {line}: {:?} is not known; there are seq and id", String::from_utf8_lossy(other))),
            });
            at = open + length + 2;
            line_starts = false;
        }
        push_fixed(&mut pieces, &text[at..], line_starts);
        Ok(Template { pieces })
    }

    /// A message of these header fields (`Name: value`), this text and these files as attachments. RFC 5322 3.6: Date and From are there
    /// once, and so are Message-ID and Subject, those of `fields` where it has them.
    ///
    /// # Errors
    /// A file that cannot be read or is larger than 256 MiB, a field without colon, and what [`Template::parse`] refuses.
    pub fn assemble(fields: &[String], text: &[u8], attachments: &[std::path::PathBuf]) -> Result<Template, String> {
        let is_given = |own: &str| fields.iter().any(|field| name_of(field).eq_ignore_ascii_case(name_of(own)));
        let mut message = String::new();
        for own in OWN_FIELDS.iter().filter(|own| !is_given(own)) {
            message.push_str(own);
            message.push_str("\r\n");
        }
        for field in fields {
            check_field(field)?;
            message.push_str(field);
            message.push_str("\r\n");
        }
        if attachments.is_empty() {
            message.push_str("\r\n");
            return Template::parse(&[message.as_bytes(), text].concat());
        }
        write!(message, "Content-Type: multipart/mixed; boundary=\"{BOUNDARY}\"\r\n\r\n--{BOUNDARY}\r\n\r\n")
            .expect("writing to a string does not fail");
        let mut bytes = [message.as_bytes(), text, b"\r\n"].concat();
        for path in attachments {
            let part = attach(path)?;
            bytes.extend_from_slice(part.as_bytes());
        }
        bytes.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
        Template::parse(&bytes)
    }

    /// Octets and checksum of the message with this identity.
    pub fn measure(&self, id: MessageId) -> (u64, Checksum) {
        let mut scratch = Vec::with_capacity(32);
        self.pieces.iter().fold((0, Checksum::default()), |(length, checksum), piece| {
            scratch.clear();
            let raw = match piece {
                Piece::Fixed { raw, .. } => raw,
                _ => {
                    piece.write(id, Form::Raw, &mut scratch);
                    &scratch
                }
            };
            (length + raw.len() as u64, checksum.append(raw))
        })
    }

    /// Appends the message with this identity.
    pub fn render(&self, id: MessageId, form: Form, out: &mut Vec<u8>) {
        self.pieces.iter().for_each(|piece| piece.write(id, form, out));
    }
}

impl Piece {
    fn write(&self, id: MessageId, form: Form, out: &mut Vec<u8>) {
        match (self, form) {
            (Piece::Fixed { raw, .. }, Form::Raw) => out.extend_from_slice(raw),
            (Piece::Fixed { stuffed, .. }, Form::Stuffed) => out.extend_from_slice(stuffed),
            // Neither begins with a dot, so neither needs stuffing.
            (Piece::Sequence, _) => push_decimal(id.sequence, out),
            (Piece::Id, _) => {
                let mut text = [0; ID_CHARS];
                id.write(&mut text);
                out.extend_from_slice(&text);
            }
        }
    }
}

fn push_fixed(pieces: &mut Vec<Piece>, raw: &[u8], line_starts: bool) {
    if !raw.is_empty() {
        pieces.push(Piece::Fixed { raw: raw.to_vec(), stuffed: stuff(raw, line_starts) });
    }
}

fn attach(path: &Path) -> Result<String, String> {
    let wrong = |what: &dyn std::fmt::Display| format!("the attachment {}: {what}", path.display());
    let content = input_file::read(path, MESSAGE_BYTES_MAX).map_err(|error| wrong(&error))?;
    let name = file_name_parameter(path.file_name().unwrap_or_default().as_bytes());
    let mut part = format!(
        "--{BOUNDARY}\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\
         Content-Disposition: attachment;\r\n {name}\r\n\r\n"
    );
    // 57 octets make a line of 76 characters (RFC 2045 6.8).
    content.chunks(57).for_each(|line| {
        push_base64(line, &mut part);
        part.push_str("\r\n");
    });
    Ok(part)
}

/// A file's name as the parameter of its part: a quoted string, or where that cannot say it, octet by octet (RFC 2231 4). Its line stays below
/// the 998 octets of RFC 5322 2.1.1, as no system has names of more than 255.
fn file_name_parameter(name: &[u8]) -> String {
    // A brace could be taken for a place that is filled.
    let is_plain = |octet: u8| (octet.is_ascii_graphic() || octet == b' ') && !b"\"\\{}".contains(&octet);
    match std::str::from_utf8(name) {
        Ok(name) if name.bytes().all(is_plain) => format!("filename=\"{name}\""),
        known => {
            let mut parameter = format!("filename*={}''", if known.is_ok() { "UTF-8" } else { "" });
            for &octet in name {
                match octet.is_ascii_alphanumeric() || b"-._".contains(&octet) {
                    true => parameter.push(char::from(octet)),
                    false => write!(parameter, "%{octet:02X}").expect("writing to a string does not fail"),
                }
            }
            parameter
        }
    }
}

fn push_base64(bytes: &[u8], out: &mut String) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for group in bytes.chunks(3) {
        let number = group.iter().fold(0u32, |number, &byte| number << 8 | u32::from(byte)) << (8 * (3 - group.len()));
        for digit in 0..4 {
            let letter = ALPHABET[(number >> (18 - 6 * digit)) as usize & 63];
            out.push(if digit <= group.len() { char::from(letter) } else { '=' });
        }
    }
}

/// Reads all `.eml` files of a folder, in the order of their names, with CRLF as line end.
///
/// # Errors
/// A folder or file that cannot be read, no such file, or more of them than 1 GiB in all.
pub fn read_corpus(folder: &Path) -> Result<Vec<Item>, String> {
    read_corpus_of(folder, CORPUS_BYTES_MAX)
}

fn read_corpus_of(folder: &Path, bytes_max: u64) -> Result<Vec<Item>, String> {
    let wrong = |path: &Path, error: std::io::Error| format!("the corpus {}: {error}", path.display());
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| wrong(folder, error))? {
        let path = entry.map_err(|error| wrong(folder, error))?.path();
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("eml")) {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        return Err(format!(
            "the corpus {} has no file whose name ends in .eml: put messages there, or name another folder",
            folder.display()
        ));
    }
    paths.sort();
    let mut left = bytes_max;
    let mut items = Vec::with_capacity(paths.len());
    for path in &paths {
        let content = input_file::read(path, MESSAGE_BYTES_MAX.min(left)).map_err(|error| match error.kind() {
            std::io::ErrorKind::FileTooLarge if left < MESSAGE_BYTES_MAX => format!(
                "the corpus {}: with {} its files are larger than the {bytes_max} octets that are held of a corpus: take some out",
                folder.display(),
                path.display()
            ),
            _ => wrong(path, error),
        })?;
        left -= content.len() as u64;
        items.push(Item::new(normalise(&content)));
    }
    Ok(items)
}

/// What stands before the colon of a header field.
fn name_of(field: &str) -> &str {
    field.split_once(':').map_or(field, |(name, _)| name)
}

/// Octets of a line without its end: RFC 5322 2.1.1.
const LINE_BYTES_MAX: usize = 998;

/// Digits of the largest `{{seq}}`.
const SEQUENCE_DIGITS_MAX: usize = 20;

/// Is this a header field, of no more octets than a line has, whatever stands in its places?
///
/// # Errors
/// A sentence that shows it, and one that is.
pub fn check_field(field: &str) -> Result<(), String> {
    let named = field.split_once(':').is_some_and(|(name, _)| !name.is_empty() && name.bytes().all(|b| (33..=126).contains(&b)));
    if !named || field.contains(['\r', '\n']) {
        return Err(format!("{field:?} is no header field such as \"Subject: number {{{{seq}}}}\""));
    }
    let read = Template::parse(field.as_bytes()).map_err(|error| format!("{field:?}: {}", error.trim_start_matches("line 1: ")))?;
    let octets = |piece: &Piece| match piece {
        // It is one line, whose end is not counted.
        Piece::Fixed { raw, .. } => raw.iter().filter(|octet| !matches!(octet, b'\r' | b'\n')).count(),
        Piece::Sequence => SEQUENCE_DIGITS_MAX,
        Piece::Id => ID_CHARS,
    };
    match read.pieces.iter().map(octets).sum::<usize>() {
        0..=LINE_BYTES_MAX => Ok(()),
        octets => Err(format!(
            "the field {:?} is a line of up to {octets} octets, and {LINE_BYTES_MAX} are allowed (RFC 5322 2.1.1): such a line is no one's to relay",
            name_of(field)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: MessageId = MessageId { run: 1, sequence: 42 };

    fn rendered(template: &Template, form: Form) -> String {
        let mut out = Vec::new();
        template.render(ID, form, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn places_are_filled_and_lines_stuffed() {
        let template = Template::parse(b"Subject: no {{seq}}\n\n.dot {{ id }}.\n{{seq}}.x\n.").unwrap();
        let raw = format!("Subject: no 42\r\n\r\n.dot {ID}.\r\n42.x\r\n.\r\n");
        assert_eq!(rendered(&template, Form::Raw), raw);
        assert_eq!(rendered(&template, Form::Stuffed).as_bytes(), stuff(raw.as_bytes(), true));
        assert_eq!(template.measure(ID), (raw.len() as u64, Checksum::of(raw.as_bytes())));
    }

    #[test]
    fn wrong_places_are_named_with_their_line() {
        assert!(Template::parse(b"a\nb {{who}}").unwrap_err().starts_with("line 2: \"who\""));
        assert!(Template::parse(b"{{seq").unwrap_err().starts_with("line 1"));
    }

    /// What happened: a field of two thousand octets was sent as one line, which no server has to take.
    #[test]
    fn a_field_fits_into_a_line_with_whatever_is_put_into_its_places() {
        let field = |octets: usize, places: &str| format!("X-Y: {}{places}", "a".repeat(octets - 5));
        assert_eq!(check_field(&field(998, "")), Ok(()));
        assert_eq!(check_field(&field(998 - ID_CHARS, "{{id}}")), Ok(()));
        for long in [field(999, ""), field(999 - ID_CHARS, "{{ id }}"), field(990, "{{seq}}")] {
            let told = check_field(&long).unwrap_err();
            assert!(told.contains("\"X-Y\"") && told.contains("998") && told.len() < 200, "{told}");
        }
    }

    #[test]
    fn attachments_are_base64_in_short_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a b.bin");
        std::fs::write(&path, [b"Man".as_slice(), &[0xFF; 100]].concat()).unwrap();
        let template = Template::assemble(&["X-One: {{seq}}".into()], b"hello", &[path]).unwrap();
        let text = rendered(&template, Form::Raw);
        assert!(text.contains("X-One: 42\r\n") && text.contains("\r\nTWFu") && text.contains("filename=\"a b.bin\""));
        assert!(text.ends_with(&format!("--{BOUNDARY}--\r\n")));
        assert!(text.split("\r\n").all(|line| line.len() <= 78));
        assert!(Template::assemble(&["no colon".into()], b"", &[]).is_err());
        let mut out = String::new();
        push_base64(b"a", &mut out);
        push_base64(b"ab", &mut out);
        assert_eq!(out, "YQ==YWI=");
    }

    /// What happened: of a name all was left out that is no ASCII or a quote, without a word.
    #[test]
    fn an_attachments_name_is_the_files() {
        let named = |name: &[u8]| file_name_parameter(name);
        assert_eq!(named(b"a (1)'s.bin"), "filename=\"a (1)'s.bin\"");
        assert_eq!(named("ä \"q\" x.bin".as_bytes()), "filename*=UTF-8''%C3%A4%20%22q%22%20x.bin");
        assert_eq!(named(b"{{seq}}\\\r\n"), "filename*=UTF-8''%7B%7Bseq%7D%7D%5C%0D%0A");
        assert_eq!(named(b"\xff-1"), "filename*=''%FF-1");
        assert!(named("ä".repeat(127).as_bytes()).len() < 998);
    }

    /// What happened: messages with attachments had no Date, and with a From of one's own they had two.
    #[test]
    fn an_assembled_message_has_each_field_once_that_a_message_has_to_have() {
        for given in [vec![], vec!["FROM: <a@x>", "date: Fri, 02 Jan 2026 00:00:00 +0000", "Message-Id: <{{seq}}@x>", "Subject: s"]] {
            let given: Vec<String> = given.into_iter().map(String::from).collect();
            let text = rendered(&Template::assemble(&given, b"hello", &[]).unwrap(), Form::Raw);
            let (header, _) = text.split_once("\r\n\r\n").unwrap();
            for name in ["Date", "From", "Message-ID", "Subject", "MIME-Version"] {
                let count = header.lines().filter(|line| name_of(line).eq_ignore_ascii_case(name)).count();
                assert_eq!(count, 1, "{name} in {header}");
            }
            assert!(given.iter().all(|field| header.contains(&field.replace("{{seq}}", "42"))), "{header}");
        }
    }

    #[test]
    fn a_corpus_is_read_in_order_and_an_empty_one_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read_corpus(folder.path()).unwrap_err().contains(".eml"));
        std::fs::write(folder.path().join("b.eml"), "Subject: b\n\nb\n").unwrap();
        std::fs::write(folder.path().join("a.EML"), "Subject: a\r\n\r\na").unwrap();
        std::fs::write(folder.path().join("c.txt"), "no").unwrap();
        let items = read_corpus(folder.path()).unwrap();
        assert_eq!(
            items.iter().map(|item| item.raw.as_slice()).collect::<Vec<_>>(),
            [b"Subject: a\r\n\r\na\r\n".as_slice(), b"Subject: b\r\n\r\nb\r\n"]
        );
    }

    /// What happened: of a file that did not fit in behind the others it was said that no more octets than were left are read of such a file.
    #[test]
    fn files_that_are_too_much_together_are_told_from_one_that_is() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.eml"), [b'a'; 60]).unwrap();
        std::fs::write(folder.path().join("b.eml"), [b'b'; 60]).unwrap();
        assert_eq!(read_corpus_of(folder.path(), 120).unwrap().len(), 2);
        let told = read_corpus_of(folder.path(), 119).unwrap_err();
        assert!(told.contains("with ") && told.contains("b.eml") && told.contains("the 119 octets that are held of a corpus"), "{told}");
    }
}
