//! Quoted-printable (RFC 2045 6.7): text of any script through a hop that knows seven bits only.

use memchr::memmem;

/// Octets of an encoded line at most, with the `=` that continues it.
const LINE_BYTES_MAX: usize = 76;

/// Appends one line, without its end, encoded.
pub(super) fn quote_printable(line: &[u8], out: &mut Vec<u8>) {
    let mut length = 0;
    for (index, &byte) in line.iter().enumerate() {
        let is_last = index + 1 == line.len();
        // A blank at the end of a line may be lost on the way.
        let is_plain = (b'!'..=b'~').contains(&byte) && byte != b'=' || byte == b' ' && !is_last;
        let takes = if is_plain { 1 } else { 3 };
        if length + takes >= LINE_BYTES_MAX {
            out.extend_from_slice(b"=\r\n");
            length = 0;
        }
        length += takes;
        match is_plain {
            true => out.push(byte),
            false => out.extend_from_slice(&[b'=', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]),
        }
    }
}

/// Appends content, line by line, encoded; the last line has an end.
pub(super) fn quote_lines(content: &[u8], out: &mut Vec<u8>) {
    let mut lines = content.strip_suffix(b"\r\n").unwrap_or(content);
    loop {
        let end = memmem::find(lines, b"\r\n");
        quote_printable(&lines[..end.unwrap_or(lines.len())], out);
        out.extend_from_slice(b"\r\n");
        let Some(end) = end else { return };
        lines = &lines[end + 2..];
    }
}

const HEX: &[u8; 16] = b"0123456789ABCDEF";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_short_and_decode_to_what_they_were() {
        let line = "Größe = 100 % ".repeat(20);
        let mut out = Vec::new();
        quote_printable(line.as_bytes(), &mut out);
        assert!(out.is_ascii());
        let text = String::from_utf8(out).unwrap();
        assert!(text.split("\r\n").all(|line| line.len() <= LINE_BYTES_MAX && !line.ends_with(' ')));
        let joined = text.replace("=\r\n", "");
        let mut decoded = Vec::new();
        let mut rest = joined.as_bytes();
        while let [byte, behind @ ..] = rest {
            rest = behind;
            if *byte == b'=' {
                decoded.push(u8::from_str_radix(std::str::from_utf8(&rest[..2]).unwrap(), 16).unwrap());
                rest = &rest[2..];
            } else {
                decoded.push(*byte);
            }
        }
        assert_eq!(String::from_utf8(decoded).unwrap(), line);
    }
}
