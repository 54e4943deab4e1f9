//! Text from others where people see it: on a terminal, in a log, in a report. What would steer the terminal, end the line or turn the
//! order of what is read is written as octets, `\x1b`, so that nothing that came over the network looks like something that we say.

use std::{
    borrow::Cow,
    fmt::{self, Write},
};

/// Whether a character steers what shows it instead of being seen: controls (C0, DEL, C1), line and paragraph separators, and the marks
/// and overrides of writing direction (Unicode's Bidi_Control).
pub fn is_steering(character: char) -> bool {
    character.is_control() || matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Writes a character as its octets in UTF-8: `\xe2\x80\xae`.
///
/// # Errors
/// Those of `out`.
pub fn write_octets(out: &mut impl Write, character: char) -> fmt::Result {
    character.encode_utf8(&mut [0; 4]).bytes().try_for_each(|byte| write!(out, "\\x{byte:02x}"))
}

/// One line of text, with what steers as octets.
pub fn shown(text: &str) -> Cow<'_, str> {
    shown_but(text, |_| false)
}

/// Text of several lines, likewise; line feeds and tabs stay.
pub fn shown_lines(text: &str) -> Cow<'_, str> {
    shown_but(text, |character| matches!(character, '\n' | '\t'))
}

/// JSON, which means the same afterwards: what steers can only stand within its strings.
pub fn shown_json(json: &str) -> Cow<'_, str> {
    replaced(json, is_steering, |out, character| write!(out, "\\u{:04x}", u32::from(character)))
}

/// Octets that may be text, one line without its end: what is no UTF-8 is written as octets, too.
pub fn shown_bytes(line: &[u8]) -> String {
    let mut out = String::with_capacity(line.len());
    for chunk in line.utf8_chunks() {
        out.push_str(&shown_but(chunk.valid(), |character| character == '\t'));
        chunk.invalid().iter().for_each(|byte| write!(out, "\\x{byte:02x}").expect("writing into a String cannot fail"));
    }
    out
}

fn shown_but(text: &str, stays: impl Fn(char) -> bool) -> Cow<'_, str> {
    replaced(text, |character| is_steering(character) && !stays(character), write_octets)
}

fn replaced(text: &str, is_one: impl Fn(char) -> bool, write: impl Fn(&mut String, char) -> fmt::Result) -> Cow<'_, str> {
    if !text.contains(&is_one) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match is_one(character) {
            true => write(&mut out, character).expect("writing into a String cannot fail"),
            false => out.push(character),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_is_shown_as_octets_and_the_rest_as_it_is() {
        for (text, expected) in [
            ("250 Ok gr\u{fc}n \u{1f600} \u{5d0}\u{5d1}", "250 Ok gr\u{fc}n \u{1f600} \u{5d0}\u{5d1}"),
            ("\u{1b}[2J\r\n\tx\u{7f}", "\\x1b[2J\\x0d\\x0a\\x09x\\x7f"),
            ("\u{9b}2J\u{85}", "\\xc2\\x9b2J\\xc2\\x85"),
            ("a\u{2028}b\u{2029}c", "a\\xe2\\x80\\xa8b\\xe2\\x80\\xa9c"),
            ("\u{202a}\u{202e}\u{2066}\u{2069}", "\\xe2\\x80\\xaa\\xe2\\x80\\xae\\xe2\\x81\\xa6\\xe2\\x81\\xa9"),
            ("\u{61c}\u{200e}\u{200f}", "\\xd8\\x9c\\xe2\\x80\\x8e\\xe2\\x80\\x8f"),
        ] {
            assert_eq!(shown(text), expected);
            assert_eq!(shown_bytes(text.replace('\t', "").as_bytes()), expected.replace("\\x09", ""));
        }
        assert_eq!(shown_lines("a\n\tb\r\u{202e}"), "a\n\tb\\x0d\\xe2\\x80\\xae");
        assert_eq!(shown_bytes(b"a\tb\xff\xc3"), "a\tb\\xff\\xc3");
    }

    #[test]
    fn json_means_the_same() {
        assert_eq!(shown_json("{\"a\":\"\u{202e}x\u{7f}\u{9b}\\n\"}"), "{\"a\":\"\\u202ex\\u007f\\u009b\\n\"}");
        assert_eq!(shown_json("{\"a\":\"gr\u{fc}n\"}"), "{\"a\":\"gr\u{fc}n\"}");
    }
}
