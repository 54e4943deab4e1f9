//! What a server offers in its answer to EHLO.

/// The extensions that a server announced; of this session only (RFC 5321 4.1.1.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offer {
    /// PIPELINING (RFC 2920).
    pub pipelining: bool,
    /// 8BITMIME (RFC 6152).
    pub eight_bit_mime: bool,
    /// SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
    /// SIZE (RFC 1870): announced at all.
    pub size: bool,
    /// Largest content in bytes; `None` without a limit.
    pub size_max: Option<u64>,
    /// CHUNKING (RFC 3030).
    pub chunking: bool,
    /// BINARYMIME (RFC 3030).
    pub binary_mime: bool,
    /// DSN (RFC 3461).
    pub dsn: bool,
    /// DELIVERBY (RFC 2852), with the least time it takes in seconds; 0 when it names none.
    pub deliver_by: Option<u32>,
    /// MT-PRIORITY (RFC 6710).
    pub mt_priority: bool,
    /// STARTTLS (RFC 3207).
    pub starttls: bool,
    /// LIMITS MAILMAX (RFC 9422): transactions of this session.
    pub mail_max: Option<u32>,
    /// LIMITS RCPTMAX: recipients of a transaction.
    pub rcpt_max: Option<u32>,
    /// LIMITS RCPTDOMAINMAX: different recipient domains of a transaction.
    pub rcpt_domain_max: Option<u32>,
}

impl Offer {
    /// Takes in one line of the reply behind the first, which is the server's name. Unknown and malformed lines are ignored.
    pub(super) fn learn(&mut self, line: &[u8]) {
        let mut words = line.split(|&b| b == b' ' || b == b'\t').filter(|word| !word.is_empty());
        let Some(keyword) = words.next() else { return };
        let is = |name: &str| keyword.eq_ignore_ascii_case(name.as_bytes());
        if is("PIPELINING") {
            self.pipelining = true;
        } else if is("8BITMIME") {
            self.eight_bit_mime = true;
        } else if is("SMTPUTF8") {
            self.smtputf8 = true;
        } else if is("SIZE") {
            self.size = true;
            // RFC 1870 4: 0 and no number mean that no limit is declared.
            self.size_max = words.next().and_then(|word| number(word, 20)).filter(|&limit| limit > 0);
        } else if is("CHUNKING") {
            self.chunking = true;
        } else if is("BINARYMIME") {
            self.binary_mime = true;
        } else if is("DSN") {
            self.dsn = true;
        } else if is("MT-PRIORITY") {
            self.mt_priority = true;
        } else if is("DELIVERBY") {
            // RFC 2852 2: up to nine digits.
            self.deliver_by = Some(words.next().and_then(|word| number(word, 9)).map_or(0, |least| least as u32));
        } else if is("STARTTLS") {
            self.starttls = true;
        } else if is("LIMITS") {
            words.for_each(|word| self.learn_limit(word));
        }
    }

    /// RFC 9422 4: `NAME=value`, 1 to 6 digits without a leading zero; anything else is ignored.
    fn learn_limit(&mut self, word: &[u8]) {
        let Some(equals) = word.iter().position(|&b| b == b'=') else { return };
        let (name, value) = (&word[..equals], &word[equals + 1..]);
        if value.first() == Some(&b'0') {
            return;
        }
        let Some(value) = number(value, 6).map(|value| value as u32) else { return };
        if name.eq_ignore_ascii_case(b"MAILMAX") {
            self.mail_max = Some(value);
        } else if name.eq_ignore_ascii_case(b"RCPTMAX") {
            self.rcpt_max = Some(value);
        } else if name.eq_ignore_ascii_case(b"RCPTDOMAINMAX") {
            self.rcpt_domain_max = Some(value);
        }
    }
}

fn number(digits: &[u8], digits_max: usize) -> Option<u64> {
    let fits = (1..=digits_max).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    fits.then(|| std::str::from_utf8(digits).ok()?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announced_extensions_are_learnt_in_any_case_and_the_rest_is_ignored() {
        let mut offer = Offer::default();
        for line in [
            "pipelining",
            "8BITMIME",
            "Size 1000",
            "DELIVERBY 30",
            "mt-priority MIXER",
            "dsn",
            "CHUNKING",
            "BinaryMime",
            "LIMITS RCPTMAX=20 mailmax=5 RCPTDOMAINMAX=03 X=1 RCPTDOMAINMAX=1234567",
            "",
            "X-NEW thing",
        ] {
            offer.learn(line.as_bytes());
        }
        let expected = Offer {
            pipelining: true,
            eight_bit_mime: true,
            size: true,
            size_max: Some(1000),
            rcpt_max: Some(20),
            mail_max: Some(5),
            deliver_by: Some(30),
            mt_priority: true,
            dsn: true,
            chunking: true,
            binary_mime: true,
            ..Offer::default()
        };
        assert_eq!(offer, expected);
        offer.learn(b"DELIVERBY");
        assert_eq!(offer.deliver_by, Some(0));
        for (line, limit) in [
            ("SIZE", None),
            ("SIZE 0", None),
            ("SIZE x", None),
            ("SIZE 99999999999999999999", None),
            ("SIZE 18446744073709551615", Some(u64::MAX)),
        ] {
            offer.learn(line.as_bytes());
            assert_eq!(offer.size_max, limit, "{line}");
        }
    }
}
