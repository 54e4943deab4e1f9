//! Content of test messages, composed without walking over it.
//!
//! A text is made once: a header, then lines of one width, some of which begin with dots. A message is a beginning of that text (any
//! length, cut at a line), in front of it a line with the mark, behind it a line of its own. The checksum at each cut is known, so that
//! composing costs two short writes and the checksum of the last line. Texts come stuffed for DATA and raw for BDAT.
//! Read [`Composer::plan`] first.

use std::ops::Range;

use crate::{
    checksum::Checksum,
    identity::{FIELD, ID_CHARS, Mark, MessageId, VALUE_CHARS},
    random::Random,
    sizes::Sizes,
    template::Template,
};

/// Octets of each line of a text, CRLF included.
const LINE_BYTES: usize = 78;

/// What the last line of a message begins with, in front of its id.
const LAST_LINE: &[u8] = b"ringpost-load ";

const MESSAGE_ID_END: &[u8] = b"@load.test>\r\n";
const MESSAGE_ID: &[u8] = b"Message-ID: <";

/// How content goes over the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// After DATA, a dot in front of each line that begins with one (RFC 5321 4.5.2).
    Stuffed,
    /// After BDAT, as it is (RFC 3030).
    Raw,
}

/// A finished content in both forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// As it is.
    pub raw: Vec<u8>,
    /// With stuffing.
    pub stuffed: Vec<u8>,
    checksum: Checksum,
}

impl Item {
    /// Takes content whose line ends are CRLF.
    pub fn new(raw: Vec<u8>) -> Item {
        let stuffed = stuff(&raw, true);
        let checksum = Checksum::of(&raw);
        Item { raw, stuffed, checksum }
    }
}

/// Where a text may be cut.
#[derive(Debug, Clone, Copy)]
struct Cut {
    raw: u32,
    stuffed: u32,
    checksum: Checksum,
}

#[derive(Debug)]
enum Source {
    /// Beginnings of one text.
    Text { sizes: Sizes, cuts: Vec<Cut> },
    /// Whole messages, one after the other; their lengths and checksums, in both forms.
    Corpus(Vec<Cut>),
    /// Rendered for each message.
    Template(Template),
}

/// What is sent between the head and the tail of a message: a part of one of the items that [`Composer::new`] returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    /// Which item.
    pub item: usize,
    /// Which of its octets, in the form that was planned.
    pub range: Range<usize>,
}

/// One message before it is written.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its identity, the length and checksum of what is covered.
    pub mark: Mark,
    /// All its octets before stuffing, the line with the mark included: what `SIZE=` and `BDAT` state.
    pub content_bytes: u64,
    form: Form,
    body: Option<Body>,
    /// Filling of the last line.
    padding: usize,
}

/// Composes the messages of one core.
#[derive(Debug)]
pub struct Composer {
    source: Source,
    run: u64,
    random: Random,
    next_item: usize,
    raised: u64,
}

/// What messages are made of.
#[derive(Debug, Clone)]
pub enum ContentKind {
    /// Generated text of these sizes.
    Text(Sizes),
    /// These messages in turn.
    Corpus(Vec<Item>),
    /// A template.
    Template(Template),
}

impl Composer {
    /// A composer of run `run`, and the items that its bodies are parts of. The text follows from `seed`, sizes from `seed` and `part`.
    pub fn new(kind: &ContentKind, run: u64, seed: u64, part: u64) -> (Composer, Vec<Item>) {
        let (source, items) = match kind {
            ContentKind::Text(sizes) => {
                let (item, cuts) = generate(sizes.most() as usize, seed);
                (Source::Text { sizes: sizes.clone(), cuts }, vec![item])
            }
            ContentKind::Corpus(items) => {
                let whole = |item: &Item| Cut { raw: item.raw.len() as u32, stuffed: item.stuffed.len() as u32, checksum: item.checksum };
                (Source::Corpus(items.iter().map(whole).collect()), items.clone())
            }
            ContentKind::Template(template) => (Source::Template(template.clone()), Vec::new()),
        };
        (Composer { source, run, random: Random::part(seed, part), next_item: part as usize, raised: 0 }, items)
    }

    /// Decides about the message with this number: size, checksum, body.
    pub fn plan(&mut self, sequence: u64, due_us: u64, form: Form) -> Plan {
        let id = MessageId { run: self.run, sequence };
        match &self.source {
            Source::Text { sizes, cuts } => {
                let wanted = sizes.draw(&mut self.random) as usize;
                let shortest = head_bytes(true) + cuts[0].raw as usize + last_line_bytes(0);
                self.raised += u64::from(wanted < shortest);
                let room = wanted.saturating_sub(shortest);
                let lines = (room / LINE_BYTES).min(cuts.len() - 1);
                let (cut, padding) = (cuts[lines], room % LINE_BYTES);
                let mut last = [0; LAST_LINE.len() + ID_CHARS + LINE_BYTES + 2];
                let last = write_last_line(&mut last, id, padding);
                let checksum = cut.checksum.append(last);
                let length = cut.raw as usize + last.len();
                let mark = Mark { id, length: length as u64, checksum, due_us };
                let body = Some(Body { item: 0, range: 0..pick(form, &cut) });
                Plan { mark, content_bytes: (head_bytes(true) + length) as u64, form, body, padding }
            }
            Source::Corpus(items) => {
                let item = self.next_item % items.len();
                self.next_item += 1;
                let whole = items[item];
                let mark = Mark { id, length: u64::from(whole.raw), checksum: whole.checksum, due_us };
                let body = Some(Body { item, range: 0..pick(form, &whole) });
                Plan { mark, content_bytes: (head_bytes(false) as u64) + mark.length, form, body, padding: 0 }
            }
            Source::Template(template) => {
                let (length, checksum) = template.measure(id);
                let mark = Mark { id, length, checksum, due_us };
                Plan { mark, content_bytes: head_bytes(false) as u64 + length, form, body: None, padding: 0 }
            }
        }
    }

    /// Messages planned so far whose size was drawn below [`text_bytes_least`], and is that.
    pub fn raised(&self) -> u64 {
        self.raised
    }

    /// Appends what comes in front of the body.
    pub fn write_head(&self, plan: &Plan, out: &mut Vec<u8>) {
        if matches!(self.source, Source::Text { .. }) {
            out.extend_from_slice(MESSAGE_ID);
            plan.mark.id.push_to(out);
            out.extend_from_slice(MESSAGE_ID_END);
        }
        let mut value = [0; VALUE_CHARS];
        plan.mark.write(&mut value);
        out.extend_from_slice(FIELD);
        out.extend_from_slice(&value);
        out.extend_from_slice(b"\r\n");
        if let Source::Template(template) = &self.source {
            template.render(plan.mark.id, plan.form, out);
        }
    }

    /// What comes next, where there is something.
    pub fn body<'a>(&self, plan: &'a Plan) -> Option<&'a Body> {
        plan.body.as_ref()
    }

    /// Appends what comes behind the body, without the final dot.
    pub fn write_tail(&self, plan: &Plan, out: &mut Vec<u8>) {
        if matches!(self.source, Source::Text { .. }) {
            let mut last = [0; LAST_LINE.len() + ID_CHARS + LINE_BYTES + 2];
            out.extend_from_slice(write_last_line(&mut last, plan.mark.id, plan.padding));
        }
    }

    /// All of a message in its form, without the final dot. `items` are those that came with the composer.
    pub fn whole(&self, plan: &Plan, items: &[Item]) -> Vec<u8> {
        let mut content = Vec::with_capacity(plan.content_bytes as usize);
        self.write_head(plan, &mut content);
        if let Some(Body { item, range }) = &plan.body {
            let item = &items[*item];
            content.extend_from_slice(&if plan.form == Form::Raw { &item.raw } else { &item.stuffed }[range.clone()]);
        }
        self.write_tail(plan, &mut content);
        content
    }
}

/// Octets in front of the covered part: the line of the mark, and Message-ID where we write one.
fn head_bytes(with_message_id: bool) -> usize {
    let message_id = MESSAGE_ID.len() + ID_CHARS + MESSAGE_ID_END.len();
    FIELD.len() + VALUE_CHARS + 2 + if with_message_id { message_id } else { 0 }
}

fn last_line_bytes(padding: usize) -> usize {
    LAST_LINE.len() + ID_CHARS + padding + 2
}

fn write_last_line(line: &mut [u8], id: MessageId, padding: usize) -> &[u8] {
    let (mut at, end) = (LAST_LINE.len(), last_line_bytes(padding));
    line[..at].copy_from_slice(LAST_LINE);
    let text = line[at..].first_chunk_mut::<ID_CHARS>().expect("the line has room for the id");
    id.write(text);
    at += ID_CHARS;
    line[at..end - 2].fill(b'-');
    line[end - 2..end].copy_from_slice(b"\r\n");
    &line[..end]
}

fn pick(form: Form, cut: &Cut) -> usize {
    match form {
        Form::Stuffed => cut.stuffed as usize,
        Form::Raw => cut.raw as usize,
    }
}

/// Octets of the smallest generated message: header, mark and the line that ends it.
pub fn text_bytes_least() -> u64 {
    let (_, cuts) = generate(0, 0);
    (head_bytes(true) + cuts[0].raw as usize + last_line_bytes(0)) as u64
}

/// Refuses sizes below [`text_bytes_least`], of a distribution when half of them were: others would be sent in their place.
///
/// # Errors
/// The sizes, and what there is at least.
pub fn check_sizes(sizes: &Sizes) -> Result<(), String> {
    let (asked, least) = (sizes.least_asked(), text_bytes_least());
    if asked >= least {
        return Ok(());
    }
    let half = if matches!(sizes, Sizes::LogNormal { .. }) { "half of them would have no more than " } else { "" };
    Err(format!("{sizes}: {half}{asked} octets, and a message that says what it is has {least} octets at least"))
}

/// A sentence where messages of a load are larger than the sizes that were drawn for them.
pub fn raised_text(raised: u64, begun: u64) -> Option<String> {
    (raised > 0).then(|| {
        format!(
            "{raised} of {begun} messages were drawn smaller than {} octets, the least that one has, and are of that size",
            text_bytes_least()
        )
    })
}

/// A text for messages of up to `bytes` octets, and its cuts: the first behind its header, one behind each line.
fn generate(bytes: usize, seed: u64) -> (Item, Vec<Cut>) {
    let mut random = Random::new(seed);
    let mut raw = b"From: <sender@load.test>\r\nTo: undisclosed-recipients:;\r\nSubject: Ringpost load\r\n\
        Date: Thu, 01 Jan 2026 00:00:00 +0000\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n"
        .to_vec();
    let header_bytes = raw.len();
    let lines = bytes.saturating_sub(header_bytes) / LINE_BYTES;
    raw.reserve(lines * LINE_BYTES);
    for line in 0..lines {
        let start = raw.len();
        while raw.len() < start + LINE_BYTES - 2 {
            let letters = random.bits().to_le_bytes();
            let room = start + LINE_BYTES - 2 - raw.len();
            raw.extend(letters.iter().take(room).map(|byte| if byte & 7 == 0 { b' ' } else { b'a' + byte % 26 }));
        }
        // Dots are never far from the beginning, so that small messages meet stuffing, too.
        match line % 16 {
            3 => raw[start] = b'.',
            9 => raw[start..start + 2].copy_from_slice(b".."),
            _ => {}
        }
        raw.extend_from_slice(b"\r\n");
    }
    let mut cuts = Vec::with_capacity(lines + 1);
    let mut cut = Cut { raw: 0, stuffed: 0, checksum: Checksum::default() };
    let mut stuffed = Vec::with_capacity(raw.len() + raw.len() / LINE_BYTES);
    let (header, body) = raw.split_at(header_bytes);
    for part in std::iter::once(header).chain(body.chunks(LINE_BYTES)) {
        if part[0] == b'.' {
            stuffed.push(b'.');
        }
        stuffed.extend_from_slice(part);
        cut = Cut { raw: cut.raw + part.len() as u32, stuffed: stuffed.len() as u32, checksum: cut.checksum.append(part) };
        cuts.push(cut);
    }
    (Item { checksum: cut.checksum, raw, stuffed }, cuts)
}

/// Puts a dot in front of each line that begins with one. `line_starts`: the first octet begins a line.
pub(crate) fn stuff(raw: &[u8], line_starts: bool) -> Vec<u8> {
    let mut stuffed = Vec::with_capacity(raw.len() + raw.len() / 64);
    let mut starts = line_starts;
    for line in raw.split_inclusive(|&byte| byte == b'\n') {
        if starts && line[0] == b'.' {
            stuffed.push(b'.');
        }
        stuffed.extend_from_slice(line);
        starts = true;
    }
    stuffed
}

/// The same text with CRLF as its only line end, and one at its end: a lone CR or LF counts as a line end.
pub fn normalise(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + text.len() / 32);
    let mut at = 0;
    while at < text.len() {
        let end = memchr::memchr2(b'\r', b'\n', &text[at..]).map_or(text.len(), |found| at + found);
        out.extend_from_slice(&text[at..end]);
        if end < text.len() || end > at {
            out.extend_from_slice(b"\r\n");
        }
        at = if text[end..].starts_with(b"\r\n") { end + 2 } else { end + 1 };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compose(composer: &mut Composer, items: &[Item], sequence: u64, form: Form) -> (Plan, Vec<u8>) {
        let plan = composer.plan(sequence, 5, form);
        let content = composer.whole(&plan, items);
        (plan, content)
    }

    fn covered(content: &[u8]) -> &[u8] {
        let field = memchr::memmem::find(content, FIELD).unwrap();
        &content[field + memchr::memchr(b'\n', &content[field..]).unwrap() + 1..]
    }

    #[test]
    fn messages_have_the_size_asked_for_and_say_the_truth_about_themselves() {
        for size in (600..1200).chain([4096, 65_536, 1 << 20]) {
            let (mut composer, items) = Composer::new(&ContentKind::Text(Sizes::fixed(size)), 7, 1, 0);
            let (plan, content) = compose(&mut composer, &items, 3, Form::Raw);
            assert_eq!(content.len() as u64, size);
            assert_eq!(plan.content_bytes, size);
            assert_eq!(plan.mark.length, covered(&content).len() as u64);
            assert_eq!(plan.mark.checksum, Checksum::of(covered(&content)), "size {size}");
            let (_, wire) = compose(&mut composer, &items, 3, Form::Stuffed);
            let head = wire.len() - covered(&wire).len();
            assert_eq!(wire[head..], stuff(covered(&content), true));
            assert_eq!(wire[..head], content[..head]);
        }
    }

    #[test]
    fn two_messages_of_one_size_differ_in_what_is_covered() {
        let (mut composer, items) = Composer::new(&ContentKind::Text(Sizes::fixed(4096)), 7, 1, 0);
        let (one, _) = compose(&mut composer, &items, 1, Form::Raw);
        let (two, _) = compose(&mut composer, &items, 2, Form::Raw);
        assert_ne!(one.mark.checksum, two.mark.checksum);
    }

    #[test]
    fn a_size_too_small_for_the_header_becomes_the_smallest_there_is() {
        let (mut composer, items) = Composer::new(&ContentKind::Text(Sizes::fixed(1)), 7, 1, 0);
        let (plan, content) = compose(&mut composer, &items, 3, Form::Raw);
        assert_eq!(plan.content_bytes, content.len() as u64);
        assert_eq!(plan.content_bytes, text_bytes_least());
        assert_eq!(plan.mark.checksum, Checksum::of(covered(&content)));
    }

    /// What happened: the small ones of a distribution were all of one size, and nothing said so.
    #[test]
    fn sizes_that_are_drawn_too_small_are_counted() {
        let least = text_bytes_least();
        let raised = |sizes: &str| {
            let (mut composer, _) = Composer::new(&ContentKind::Text(sizes.parse().unwrap()), 7, 1, 0);
            let of_least = (0..1000).filter(|&sequence| composer.plan(sequence, 5, Form::Raw).content_bytes == least).count() as u64;
            (composer.raised(), of_least)
        };
        let (some, of_least) = raised("lognormal:1KiB:1.5:256..1MiB");
        assert!((some..some + 5).contains(&of_least) && (200..500).contains(&some), "{some} of 1000, {of_least}");
        assert_eq!(raised(&format!("lognormal:1KiB:1.5:{}..1MiB", least + 1)), (0, 0));
        assert!(raised(&format!("{least}")) == (0, 1000), "what was asked for is not raised");
        assert_eq!(raised_text(0, 1000), None);
        assert!(raised_text(7, 1000).unwrap().starts_with(&format!("7 of 1000 messages were drawn smaller than {least} octets")));
    }

    #[test]
    fn a_corpus_takes_turns_and_keeps_every_octet() {
        let items = vec![Item::new(b"Subject: a\r\n\r\n.one\r\n".to_vec()), Item::new(b"Subject: b\r\n\r\ntwo\r\n".to_vec())];
        let (mut composer, items) = Composer::new(&ContentKind::Corpus(items), 7, 1, 0);
        for turn in 0..4 {
            let (plan, content) = compose(&mut composer, &items, turn, Form::Raw);
            assert_eq!(covered(&content), items[turn as usize % 2].raw);
            assert_eq!(plan.content_bytes, content.len() as u64);
        }
        let (_, content) = compose(&mut composer, &items, 4, Form::Stuffed);
        assert!(content.ends_with(b"\r\n\r\n..one\r\n"));
    }

    #[test]
    fn line_ends_become_crlf_and_the_last_line_gets_one() {
        assert_eq!(normalise(b"a\nb\r\nc\rd"), b"a\r\nb\r\nc\r\nd\r\n");
        assert_eq!(normalise(b"\n\r\n\n"), b"\r\n\r\n\r\n");
        assert_eq!(normalise(b"a\r\n"), b"a\r\n");
        assert_eq!(normalise(b""), b"");
    }
}
