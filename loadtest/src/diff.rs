//! The difference of two ledgers: what was acknowledged and never came, came twice, came damaged, or is somebody else's.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
    path::PathBuf,
};

use clap::Args;
use serde::Serialize;

use crate::{
    checksum::Checksum,
    cli::{EXIT_NEGATIVE, EXIT_OK, Failure, say},
    identity::MessageId,
};

/// Examples of each kind that a difference names.
const EXAMPLES_MAX: usize = 10;

/// Arguments of `diff`.
#[derive(Args, Debug, Clone)]
pub struct DiffArguments {
    /// Ledger of a source. More than one: separated by commas.
    #[arg(value_delimiter = ',', required = true)]
    pub accepted: Vec<PathBuf>,
    /// Ledger of the sink.
    pub delivered: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Messages that came twice are no reason for exit code 1 (after a kill, at least once is what is promised).
    #[arg(long)]
    pub allow_duplicates: bool,
}

/// What came of it.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Messages a source saw a 250 for.
    pub accepted: u64,
    /// Recipients of those: deliveries that are owed.
    pub owed: u64,
    /// Deliveries of them, message by recipient, each counted once.
    pub delivered: u64,
    /// Deliveries that are owed and did not come.
    pub lost: u64,
    /// Deliveries beyond the first to the same recipient.
    pub duplicated: u64,
    /// Arrivals with bare line ends, missing stuffing, or another length or checksum than sent.
    pub damaged: u64,
    /// Arrivals without a mark, or of a run that no source's ledger knows.
    pub foreign: u64,
    /// Messages that arrived without a 250 that was read: allowed, the reply was cut off.
    pub unacknowledged: u64,
    /// Some of each kind, what was lost first, and how many more there are.
    pub examples: Vec<String>,
}

/// Kinds of differences, in the order in which examples are named.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Lost,
    Damaged,
    Duplicated,
    Foreign,
}

/// Examples by kind: the first of each, and how many there are.
#[derive(Debug, Default)]
struct Examples([(Vec<String>, u64); 4]);

impl Examples {
    fn add(&mut self, kind: Kind, text: impl FnOnce() -> String) {
        let (texts, count) = &mut self.0[kind as usize];
        *count += 1;
        if texts.len() < EXAMPLES_MAX {
            texts.push(text());
        }
    }

    fn lines(self) -> Vec<String> {
        let names = ["lost", "damaged", "duplicated", "foreign"];
        let of_kind = |(name, (mut texts, count)): (&str, (Vec<String>, u64))| {
            let more = count - texts.len() as u64;
            if more > 0 {
                texts.push(format!("{name}: and {more} more"));
            }
            texts
        };
        names.into_iter().zip(self.0).flat_map(of_kind).collect()
    }
}

impl Difference {
    /// Is nothing missing and nothing other than it was sent? Duplicates and foreign mail are not asked for.
    pub fn is_intact(&self) -> bool {
        self.lost == 0 && self.damaged == 0
    }

    /// Is every message there, whole, and nothing else?
    pub fn is_clean(&self, allow_duplicates: bool) -> bool {
        self.is_intact() && self.foreign == 0 && (allow_duplicates || self.duplicated == 0)
    }

    fn text(&self) -> String {
        let mut text = format!(
            "accepted {} (owed {} deliveries), delivered {}: lost {}, duplicated {}, damaged {}, foreign {}, unacknowledged {}",
            self.accepted, self.owed, self.delivered, self.lost, self.duplicated, self.damaged, self.foreign, self.unacknowledged
        );
        self.examples.iter().for_each(|example| text.push_str(&format!("\n  {example}")));
        text
    }
}

impl DiffArguments {
    /// Prints the difference. The exit code: 0 nothing lost, doubled, damaged or foreign; 1 something is.
    ///
    /// # Errors
    /// A ledger that cannot be read.
    pub fn run(&self) -> Result<u8, Failure> {
        let accepted: Vec<&Path> = self.accepted.iter().map(PathBuf::as_path).collect();
        let difference = compare(&accepted, &self.delivered)?;
        if self.json {
            say(&serde_json::to_string(&difference).expect("a difference is plain data"))?;
        } else {
            say(&difference.text())?;
        }
        Ok(if difference.is_clean(self.allow_duplicates) { EXIT_OK } else { EXIT_NEGATIVE })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sent {
    length: u64,
    checksum: Checksum,
    recipients: u32,
}

/// Compares the ledgers of some sources with that of the sink.
///
/// # Errors
/// A file that cannot be read, a line that is not one of a ledger (a ledger that is cut off proves nothing), or an identity that was
/// acknowledged twice.
pub fn compare(accepted: &[&Path], delivered: &Path) -> Result<Difference, Failure> {
    let mut sent: HashMap<MessageId, Sent> = HashMap::new();
    for path in accepted {
        read_lines(path, |words| {
            let [id, length, checksum, _time, recipients, _queue_id] = words else { return Err("not six parts") };
            let id = MessageId::parse(id.as_bytes()).ok_or("no identity")?;
            let (length, checksum) = length_and_checksum(length, checksum).ok_or("no length or checksum")?;
            let recipients = recipients.parse().map_err(|_| "no number of recipients")?;
            match sent.insert(id, Sent { length, checksum, recipients }) {
                None => Ok(()),
                Some(_) => Err("an identity acknowledged twice"),
            }
        })?;
    }
    let runs: HashSet<u64> = sent.keys().map(|id| id.run).collect();
    let owed = sent.values().map(|one| u64::from(one.recipients)).sum();
    let mut result = Difference { accepted: sent.len() as u64, owed, ..Difference::default() };
    let mut examples = Examples::default();
    let mut reached: HashMap<MessageId, Vec<String>> = HashMap::with_capacity(sent.len());
    read_lines(delivered, |words| {
        let [id, length, checksum, _time, verdict, recipients] = words else { return Err("not six parts") };
        let Some(id) = MessageId::parse(id.as_bytes()).filter(|id| runs.contains(&id.run)) else {
            // Without a mark a damaged message of ours and a foreign one look alike; either is a reason to look.
            let (foreign, word) = if *verdict == "foreign" || *verdict == "ok" { (true, "foreign") } else { (false, "damaged") };
            *(if foreign { &mut result.foreign } else { &mut result.damaged }) += 1;
            examples.add(if foreign { Kind::Foreign } else { Kind::Damaged }, || format!("{word}: {}", words.join(" ")));
            return Ok(());
        };
        let known = sent.get(&id);
        let (length, checksum) = length_and_checksum(length, checksum).ok_or("no length or checksum")?;
        let same = known.is_none_or(|sent| (sent.length, sent.checksum) == (length, checksum));
        if *verdict != "ok" || !same {
            result.damaged += 1;
            let what = if *verdict == "ok" { "another length or checksum than acknowledged" } else { verdict };
            examples.add(Kind::Damaged, || format!("damaged ({what}): {id}"));
            return Ok(());
        }
        let recipients_reached = reached.entry(id).or_default();
        for recipient in recipients.split(',') {
            if recipients_reached.iter().any(|other| other == recipient) {
                result.duplicated += 1;
                examples.add(Kind::Duplicated, || format!("duplicated: {id} to {recipient}"));
            } else {
                recipients_reached.push(recipient.to_string());
            }
        }
        Ok(())
    })?;
    result.unacknowledged = reached.keys().filter(|id| !sent.contains_key(id)).count() as u64;
    for (id, one) in &sent {
        let (got, owed) = (reached.get(id).map_or(0, Vec::len) as u64, u64::from(one.recipients));
        result.delivered += got;
        if got < owed {
            result.lost += owed - got;
            examples.add(Kind::Lost, || format!("lost: {id} reached {got} of {owed} recipients"));
        }
    }
    result.examples = examples.lines();
    Ok(result)
}

fn length_and_checksum(length: &str, checksum: &str) -> Option<(u64, Checksum)> {
    Some((length.parse().ok()?, Checksum::parse(checksum.as_bytes())?))
}

fn read_lines(path: &Path, mut take: impl FnMut(&[&str]) -> Result<(), &'static str>) -> Result<(), Failure> {
    let file = File::open(path).map_err(|error| Failure::Data(format!("{}: {error}", path.display())))?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut line = String::new();
    for number in 1u64.. {
        line.clear();
        let wrong = |what: &dyn std::fmt::Display| Failure::Data(format!("{}:{number}: {what}", path.display()));
        if reader.read_line(&mut line).map_err(|error| wrong(&error))? == 0 {
            break;
        }
        let whole = line.strip_suffix('\n').ok_or_else(|| {
            wrong(&"the last line is cut off: whoever wrote it was killed or had a full disk, and what it says is not all")
        })?;
        let words: Vec<&str> = whole.split(' ').collect();
        take(&words).map_err(|what| wrong(&format!("not a line of this ledger ({what}): {whole:?}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::Mark,
        ledger::LedgerWriter,
        sink::verify::{Arrival, Damage},
    };

    fn mark(sequence: u64) -> Mark {
        Mark { id: MessageId { run: 1, sequence }, length: 10, checksum: Checksum::from_bits(sequence), due_us: 0 }
    }

    fn arrival(sequence: u64, damage: Option<Damage>) -> Arrival {
        Arrival { mark: Some(mark(sequence)), damage, bytes: 10, bare_line_ends: 0 }
    }

    fn compared(sent: &[u64], recipients: u32, received: &[(Arrival, &str)]) -> Difference {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("accepted"), folder.path().join("delivered"));
        let mut writer = LedgerWriter::open(Some(&a)).unwrap();
        sent.iter().for_each(|&sequence| writer.accepted(&mark(sequence), 5, recipients, b"7F3A").unwrap());
        writer.flush().unwrap();
        let mut writer = LedgerWriter::open(Some(&b)).unwrap();
        received.iter().for_each(|(arrival, recipients)| writer.delivered(arrival, 6, recipients.as_bytes()).unwrap());
        writer.flush().unwrap();
        compare(&[&a], &b).unwrap()
    }

    #[test]
    fn all_delivered_once_is_clean() {
        let result = compared(&[1, 2], 1, &[(arrival(2, None), "a"), (arrival(1, None), "a")]);
        assert!(result.is_clean(false));
        assert_eq!((result.accepted, result.owed, result.delivered), (2, 2, 2));
    }

    #[test]
    fn a_missing_message_is_lost_and_so_is_a_missing_recipient() {
        assert_eq!(compared(&[1, 2], 1, &[(arrival(2, None), "a")]).lost, 1);
        let result = compared(&[1], 2, &[(arrival(1, None), "a"), (arrival(1, None), "a,b")]);
        assert_eq!((result.lost, result.duplicated, result.delivered), (0, 1, 2));
        assert!(!result.is_clean(false) && result.is_clean(true));
        assert_eq!(compared(&[1], 3, &[(arrival(1, None), "a,b")]).lost, 1);
    }

    #[test]
    fn damage_foreign_mail_and_unacknowledged_arrivals_are_told_apart() {
        let foreign = Arrival { mark: None, damage: None, bytes: 3, bare_line_ends: 0 };
        let other_run = Arrival { mark: Some(Mark { id: MessageId { run: 2, sequence: 1 }, ..mark(1) }), ..arrival(1, None) };
        let result =
            compared(&[1], 1, &[(arrival(1, Some(Damage::Checksum)), "a"), (foreign, "a"), (other_run, "a"), (arrival(9, None), "a")]);
        assert_eq!((result.damaged, result.foreign, result.unacknowledged, result.lost), (1, 2, 1, 1));
        assert_eq!(result.examples.len(), 4);
    }

    /// What happened: ten examples in all, so that ten doubled messages hid what was lost.
    #[test]
    fn examples_are_of_each_kind_and_say_how_many_more_there_are() {
        let sent: Vec<u64> = (0..40).collect();
        let received: Vec<(Arrival, &str)> = (0..26).map(|n| (arrival(n % 13, None), "a")).collect();
        let result = compared(&sent, 1, &received);
        let count = |word: &str| result.examples.iter().filter(|example| example.starts_with(word)).count();
        assert_eq!((count("lost"), count("duplicated")), (11, 11), "{:?}", result.examples);
        assert_eq!(result.examples[10], "lost: and 17 more");
        assert_eq!(result.examples[21], "duplicated: and 3 more");
    }

    #[test]
    fn another_checksum_than_acknowledged_is_damage() {
        let other = Arrival { mark: Some(Mark { checksum: Checksum::from_bits(77), ..mark(1) }), ..arrival(1, None) };
        assert_eq!(compared(&[1], 1, &[(other, "a")]).damaged, 1);
    }

    #[test]
    fn a_ledger_that_is_cut_off_or_foreign_is_refused_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let (path, empty) = (folder.path().join("accepted"), folder.path().join("empty"));
        std::fs::write(&empty, "").unwrap();
        for text in ["0000000000000001-000000000001 10 0000000000000001 5 1 -", "hello\n", "- - - 5 1\n"] {
            std::fs::write(&path, text).unwrap();
            let error = compare(&[&path], &empty).unwrap_err().to_string();
            assert!(error.contains("accepted:1: "), "{error}");
        }
        assert!(compare(&[&folder.path().join("nowhere")], &empty).is_err());
    }
}
