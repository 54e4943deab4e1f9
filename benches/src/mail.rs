//! The mail that benches work on.

/// Text as people's programs make it, 77 octets a line.
pub const TEXT_LINE: &[u8] = b"An ordinary line of text, as long as those that people's programs make of it.";

const HEADER: &[u8] = b"Received: from a.example\r\n\tby b.example; Mon, 23 Nov 2026 23:13:33 +0000\r\nFrom: a@x.test\r\nTo: b@y.test\r\n\
    Subject: a message like many others\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n";

/// A message of about `bytes` octets made of one line again and again, without its final dot.
pub fn message(line: &[u8], bytes: usize) -> Vec<u8> {
    let mut message = HEADER.to_vec();
    while message.len() < bytes {
        message.extend_from_slice(line);
        message.extend_from_slice(b"\r\n");
    }
    message
}

/// A message as DATA carries it.
pub fn with_dot(mut message: Vec<u8>) -> Vec<u8> {
    message.extend_from_slice(b".\r\n");
    message
}

/// The envelope of a pipelining client, up to DATA.
pub const ENVELOPE: &[u8] = b"MAIL FROM:<newsletter-bounces@lists.example.org>\r\nRCPT TO:<some.recipient@mail.example.com>\r\nDATA\r\n";
