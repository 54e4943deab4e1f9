//! What a sink says of itself: its name, and the extensions behind EHLO.

/// What a sink says of itself.
#[derive(Debug, Clone)]
pub struct Announcement {
    /// Its name in banner and EHLO reply.
    pub hostname: String,
    /// LMTP instead of SMTP.
    pub lmtp: bool,
    /// Octets a message may have; announced as SIZE. 0: any number (RFC 1870 3).
    pub size_max: u64,
    /// PIPELINING.
    pub pipelining: bool,
    /// CHUNKING.
    pub chunking: bool,
    /// 8BITMIME.
    pub eight_bit: bool,
    /// SMTPUTF8.
    pub smtputf8: bool,
}

impl Default for Announcement {
    fn default() -> Announcement {
        Announcement {
            hostname: "sink.load.test".into(),
            lmtp: false,
            size_max: 512 << 20,
            pipelining: true,
            chunking: true,
            eight_bit: true,
            smtputf8: true,
        }
    }
}

impl Announcement {
    pub(super) fn is_too_large(&self, content_bytes: u64) -> bool {
        self.size_max > 0 && content_bytes > self.size_max
    }

    /// The parameters of MAIL that belong to what was announced, behind HELO (not `extended`) none: RFC 1870 4, RFC 6152 2, RFC 6531 3.4. An
    /// empty one stands for each that does not.
    pub(super) fn mail_parameters(&self, extended: bool) -> [&'static str; 4] {
        let (eight_bit, smtputf8) = (extended && self.eight_bit, extended && self.smtputf8);
        let parameters = [(extended, "SIZE"), (eight_bit, "BODY=7BIT"), (eight_bit, "BODY=8BITMIME"), (smtputf8, "SMTPUTF8")];
        parameters.map(|(announced, word)| if announced { word } else { "" })
    }

    pub(super) fn push_hello(&self, extended: bool, out: &mut Vec<u8>) {
        if !extended {
            out.extend_from_slice(format!("250 {}\r\n", self.hostname).as_bytes());
            return;
        }
        let size = format!("SIZE {}", self.size_max);
        let words = [
            (true, self.hostname.as_str()),
            (self.pipelining, "PIPELINING"),
            (self.chunking, "CHUNKING"),
            (self.eight_bit, "8BITMIME"),
            (self.smtputf8, "SMTPUTF8"),
            (true, "ENHANCEDSTATUSCODES"),
            (true, &size),
        ];
        let words: Vec<&str> = words.iter().filter(|(announced, _)| *announced).map(|&(_, word)| word).collect();
        for (at, word) in words.iter().enumerate() {
            out.extend_from_slice(if at + 1 < words.len() { b"250-" } else { b"250 " });
            out.extend_from_slice(word.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}
