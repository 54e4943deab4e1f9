//! The difference of two ledgers: what was acknowledged and never came, came twice, came damaged, or is somebody else's.
//!
//! All of it by recipient: a message may come to its recipients in one transaction or in several. Read `diff/account.rs` for the rules.

mod account;
mod examples;
mod queued_mail;

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Serialize;

pub use queued_mail::QueuedMail;

use self::account::{Account, Wrong};
use crate::{
    cli::{EXIT_NEGATIVE, EXIT_OK, Failure, say},
    input_file,
    ledger::CUT_OFF,
};

/// The longest line that is read: ten thousand recipients with the longest addresses, each octet of which is written as four, are two thirds of
/// it.
const LINE_BYTES_MAX: u64 = 16 << 20;

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
    /// Messages that came twice are no reason for exit code 1 (after a kill, at least once is what is promised), nor those that came though they
    /// were answered 4xx.
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
    /// Deliveries that are owed and did not come, not even damaged, and that nobody is known to have.
    pub lost: u64,
    /// Deliveries that are owed, did not come, and wait in the queue of the engine, which was asked for it; 0 where none was asked.
    pub queued: u64,
    /// Deliveries that are owed and only came damaged: with `delivered`, `queued` and `lost` they are all that is owed.
    pub damaged_only: u64,
    /// Deliveries beyond the first to the same recipient.
    pub duplicated: u64,
    /// Arrivals with bare line ends, missing stuffing, another length or checksum than sent, or another sender.
    pub damaged: u64,
    /// Arrivals without a mark, or of a run that no source's ledger knows, and deliveries to somebody whom the message was not for.
    pub foreign: u64,
    /// Of those the last: deliveries of a message to somebody whom it was not for.
    pub misdirected: u64,
    /// Deliveries of messages whose content was answered 5xx: their senders know them as not delivered.
    pub delivered_though_refused: u64,
    /// Deliveries of messages whose content was answered 4xx: whoever sends them again doubles them.
    pub delivered_though_deferred: u64,
    /// Messages that arrived without a 250 that was read, and were not refused: allowed, the reply was cut off.
    pub unacknowledged: u64,
    /// Lines that earlier runs left unfinished, in all ledgers: what they said is not known, and nothing is taken from them.
    pub cut_off: u64,
    /// Some of each kind, what was lost first, and how many more there are.
    pub examples: Vec<String>,
}

impl Difference {
    /// Is nothing missing, nothing other than it was sent, nothing with somebody else, and nothing there that was refused for good?
    /// Duplicates and other people's mail are not asked for.
    pub fn is_intact(&self) -> bool {
        self.lost == 0 && self.damaged == 0 && self.misdirected == 0 && self.delivered_though_refused == 0
    }

    /// Was there nothing to compare: no message acknowledged, and none that came?
    fn is_of_nothing(&self) -> bool {
        self.accepted + self.delivered + self.damaged + self.foreign + self.unacknowledged == 0
            && self.delivered_though_refused + self.delivered_though_deferred == 0
    }

    /// Is every message there, whole, and nothing else?
    pub fn is_clean(&self, allow_duplicates: bool) -> bool {
        self.is_intact() && self.foreign == 0 && (allow_duplicates || self.duplicated + self.delivered_though_deferred == 0)
    }

    fn text(&self) -> String {
        let mut text = format!(
            "accepted {} (owed {} deliveries), delivered {}: lost {}, duplicated {}, damaged {}, foreign {}, unacknowledged {}",
            self.accepted, self.owed, self.delivered, self.lost, self.duplicated, self.damaged, self.foreign, self.unacknowledged
        );
        if self.queued > 0 {
            text.push_str(&format!(", still queued {}", self.queued));
        }
        if self.damaged_only > 0 {
            text.push_str(&format!(", of the owed {} only came damaged", self.damaged_only));
        }
        if self.delivered_though_refused + self.delivered_though_deferred > 0 {
            text.push_str(&format!(
                ", delivered though answered 5xx {}, though answered 4xx {}",
                self.delivered_though_refused, self.delivered_though_deferred
            ));
        }
        if self.cut_off > 0 {
            text.push_str(&format!(", lines cut off {}", self.cut_off));
        }
        self.examples.iter().for_each(|example| text.push_str(&format!("\n  {example}")));
        text
    }
}

impl DiffArguments {
    /// Prints the difference. The exit code: 0 nothing lost, doubled, damaged, foreign or delivered though refused; 1 something is.
    ///
    /// # Errors
    /// A ledger that cannot be read, or ledgers of which none has a message: nothing was compared, which proves nothing.
    pub fn run(&self) -> Result<u8, Failure> {
        let accepted: Vec<&Path> = self.accepted.iter().map(PathBuf::as_path).collect();
        let difference = compare(&accepted, &self.delivered)?;
        if difference.is_of_nothing() {
            let sources: Vec<String> = accepted.iter().map(|path| path.display().to_string()).collect();
            let (sources, sink) = (sources.join(", "), self.delivered.display());
            return Err(Failure::Data(format!("nothing was compared: neither {sources} nor {sink} has a message in it")));
        }
        if self.json {
            say(&serde_json::to_string(&difference).expect("a difference is plain data"))?;
        } else {
            say(&difference.text())?;
        }
        Ok(if difference.is_clean(self.allow_duplicates) { EXIT_OK } else { EXIT_NEGATIVE })
    }
}

/// Compares the ledgers of some sources with that of the sink, delivery by delivery.
///
/// # Errors
/// A file that cannot be read, a line that is not one of a ledger (a ledger whose last line is cut off proves nothing, and one that does not
/// name recipients not enough; lines that earlier runs left cut off are counted), or an identity that was acknowledged twice.
pub fn compare(accepted: &[&Path], delivered: &Path) -> Result<Difference, Failure> {
    compare_with_queue(accepted, delivered, QueuedMail::default())
}

/// The same where it is known what still waits at the engine: that is no loss.
///
/// # Errors
/// As [`compare`].
pub fn compare_with_queue(accepted: &[&Path], delivered: &Path, queued: QueuedMail) -> Result<Difference, Failure> {
    let mut account = Account::new(queued);
    for path in accepted {
        read_lines(path, &mut account, Account::accepted)?;
    }
    read_lines(delivered, &mut account, Account::delivered)?;
    Ok(account.close())
}

fn read_lines(path: &Path, account: &mut Account, take: fn(&mut Account, &[&str]) -> Result<(), Wrong>) -> Result<(), Failure> {
    let file = input_file::open(path).map_err(|error| Failure::Data(format!("{}: {error}", path.display())))?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut line = String::new();
    for number in 1u64.. {
        line.clear();
        let wrong = |what: &dyn std::fmt::Display| Failure::Data(format!("{}:{number}: {what}", path.display()));
        if reader.by_ref().take(LINE_BYTES_MAX).read_line(&mut line).map_err(|error| wrong(&error))? == 0 {
            break;
        }
        if line.len() as u64 == LINE_BYTES_MAX {
            return Err(wrong(&"no line of a ledger is as long"));
        }
        let whole = line.strip_suffix('\n').ok_or_else(|| {
            wrong(&"the last line is cut off: whoever wrote it was killed or had a full disk, and what it says is not all")
        })?;
        // Ledgers travel through editors and mail.
        let whole = whole.strip_suffix('\r').unwrap_or(whole);
        if whole.ends_with(CUT_OFF) {
            account.cut_off(&format!("{}:{number}", path.display()));
            continue;
        }
        let words: Vec<&str> = whole.split(' ').collect();
        take(account, &words).map_err(|what| wrong(&format!("not a line of this ledger ({what}): {whole:?}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checksum::Checksum,
        identity::{Mark, MessageId},
        ledger::{Envelope, LedgerWriter},
        sink::verify::{Arrival, Damage},
    };

    fn mark(sequence: u64) -> Mark {
        Mark { id: MessageId { run: 1, sequence }, length: 10, checksum: Checksum::from_bits(sequence), due_us: 0 }
    }

    fn arrival(sequence: u64, damage: Option<Damage>) -> Arrival {
        Arrival { mark: Some(mark(sequence)), damage, bytes: 10, bare_line_ends: 0 }
    }

    /// What was sent to these recipients, and what arrived, all from one sender.
    fn compared(sent: &[u64], recipients: &str, received: &[(Arrival, &str)]) -> Difference {
        compared_from(b"s@x", sent, recipients, received)
    }

    /// What arrived is from this sender.
    fn compared_from(reverse_path: &[u8], sent: &[u64], recipients: &str, received: &[(Arrival, &str)]) -> Difference {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("accepted"), folder.path().join("delivered"));
        let mut writer = LedgerWriter::open(Some(&a)).unwrap();
        writer.run(1, b"s@x").unwrap();
        sent.iter().for_each(|&sequence| writer.accepted(&mark(sequence), 5, recipients.as_bytes(), b"7F3A").unwrap());
        writer.flush().unwrap();
        let mut writer = LedgerWriter::open(Some(&b)).unwrap();
        for (arrival, recipients) in received {
            writer.delivered(arrival, 6, Envelope { reverse_path, recipients: recipients.as_bytes() }).unwrap();
        }
        writer.flush().unwrap();
        compare(&[&a], &b).unwrap()
    }

    #[test]
    fn all_delivered_once_is_clean() {
        let result = compared(&[1, 2], "a", &[(arrival(2, None), "a"), (arrival(1, None), "a")]);
        assert!(result.is_clean(false));
        assert_eq!((result.accepted, result.owed, result.delivered), (2, 2, 2));
    }

    #[test]
    fn a_missing_message_is_lost_and_so_is_a_missing_recipient() {
        assert_eq!(compared(&[1, 2], "a", &[(arrival(2, None), "a")]).lost, 1);
        let result = compared(&[1], "a,b", &[(arrival(1, None), "a"), (arrival(1, None), "a,b")]);
        assert_eq!((result.lost, result.duplicated, result.delivered), (0, 1, 2));
        assert!(!result.is_clean(false) && result.is_clean(true));
        let result = compared(&[1], "a,b,c", &[(arrival(1, None), "a,b")]);
        assert_eq!((result.lost, &result.examples[..]), (1, &["lost: 0000000000000001-000000000001 to c".to_owned()][..]));
    }

    /// What happened: the ledgers told how many recipients there were, so that mail at the wrong one was a delivery like any other.
    #[test]
    fn mail_at_the_wrong_recipient_is_lost_there_and_foreign_here() {
        let result = compared(&[1], "a@y.test", &[(arrival(1, None), "b@y.test")]);
        assert_eq!((result.lost, result.damaged_only, result.foreign, result.misdirected, result.delivered), (1, 0, 1, 1, 0), "{result:?}");
        assert!(!result.is_intact() && !result.is_clean(true));
        assert!(result.examples[1].ends_with(" to b@y.test, whom it was not for"), "{result:?}");
        // Whoever it was for has it, and somebody else, too.
        let result = compared(&[1], "a@y.test", &[(arrival(1, None), "a@y.test,b@y.test")]);
        assert_eq!((result.lost, result.foreign, result.delivered), (0, 1, 1), "{result:?}");
        assert!(!result.is_intact());
    }

    /// What happened: neither ledger had the sender, so that a server that changed it, to whom bounces go, was not noticed.
    #[test]
    fn another_sender_than_sent_is_damage() {
        for (sender, shown) in [(&b""[..], "<>"), (b"other@x", "other@x"), (b"S@x", "S@x")] {
            let result = compared_from(sender, &[1], "a", &[(arrival(1, None), "a")]);
            assert_eq!((result.damaged, result.delivered, result.lost, result.damaged_only), (1, 0, 0, 1), "{result:?}");
            let example = format!("damaged (from {shown}, and not s@x): 0000000000000001-000000000001");
            assert!(result.examples.contains(&example) && !result.is_intact(), "{result:?}");
        }
        assert!(compared_from(b"s@X", &[1], "a", &[(arrival(1, None), "a")]).is_clean(false), "a domain is the same in any case");
    }

    /// Ledgers of a source or a sink that did not name the sender are compared with any.
    #[test]
    fn ledgers_without_senders_are_still_read() {
        let folder = tempfile::tempdir().unwrap();
        let (sent, received) = (folder.path().join("accepted"), folder.path().join("delivered"));
        let mark = "0000000000000001-000000000001 10 0000000000000001 5";
        for (from, by) in [("", ""), (" s@x", ""), ("", " other@x"), (" <>", " <>")] {
            std::fs::write(&sent, format!("# run 0000000000000001{from}\n{mark} a@x -\n")).unwrap();
            std::fs::write(&received, format!("{mark} ok a@x{by}\n")).unwrap();
            assert!(compare(&[&sent], &received).unwrap().is_clean(false), "{from:?} {by:?}");
        }
        for (accepted, delivered) in
            [("# run 0000000000000001 a@x b@x", ""), ("# run 0000000000000001 ", ""), ("", "- - - 5 ok a@x b@x c@x")]
        {
            std::fs::write(&sent, format!("{accepted}\n").trim_start_matches('\n')).unwrap();
            std::fs::write(&received, format!("{delivered}\n").trim_start_matches('\n')).unwrap();
            assert!(compare(&[&sent], &received).unwrap_err().to_string().contains("sender"), "{accepted:?} {delivered:?}");
        }
    }

    #[test]
    fn recipients_that_come_in_transactions_of_their_own_are_no_difference() {
        let result = compared(&[1], "a,b,c", &[(arrival(1, None), "c"), (arrival(1, None), "b,a")]);
        assert!(result.is_clean(false) && result.delivered == 3, "{result:?}");
        let result = compared(&[1], "a,b,c", &[(arrival(1, None), "c"), (arrival(1, None), "c,a")]);
        assert_eq!((result.lost, result.duplicated, result.foreign, result.delivered), (1, 1, 0, 2), "{result:?}");
    }

    #[test]
    fn damage_foreign_mail_and_unacknowledged_arrivals_are_told_apart() {
        let foreign = Arrival { mark: None, damage: None, bytes: 3, bare_line_ends: 0 };
        let other_run = Arrival { mark: Some(Mark { id: MessageId { run: 2, sequence: 1 }, ..mark(1) }), ..arrival(1, None) };
        let result =
            compared(&[1], "a", &[(arrival(1, Some(Damage::Checksum)), "a"), (foreign, "a"), (other_run, "a"), (arrival(9, None), "a")]);
        assert_eq!((result.damaged, result.foreign, result.unacknowledged, result.lost, result.damaged_only), (1, 2, 1, 0, 1));
        assert!(result.text().contains("of the owed 1 only came damaged"), "{}", result.text());
        assert_eq!(result.examples.len(), 3);
    }

    /// What happened: the ledger had nothing of mail that was refused, so that a server that refuses a content and delivers it all the same was
    /// one whose reply had been cut off, which is allowed.
    #[test]
    fn mail_that_was_refused_and_came_all_the_same_is_told() {
        let came = |code: u16| {
            let folder = tempfile::tempdir().unwrap();
            let (a, b) = (folder.path().join("accepted"), folder.path().join("delivered"));
            let mut writer = LedgerWriter::open(Some(&a)).unwrap();
            writer.run(1, b"s@x").unwrap();
            writer.refused(mark(1).id, code).unwrap();
            writer.accepted(&mark(2), 5, b"a", b"7F3A").unwrap();
            writer.refused(mark(3).id, code).unwrap();
            writer.flush().unwrap();
            let mut writer = LedgerWriter::open(Some(&b)).unwrap();
            for (sequence, recipients) in [(1, &b"a,b"[..]), (2, b"a")] {
                writer.delivered(&arrival(sequence, None), 6, Envelope { reverse_path: b"s@x", recipients }).unwrap();
            }
            writer.flush().unwrap();
            compare(&[&a], &b).unwrap()
        };
        let counts = |d: &Difference| (d.delivered_though_refused, d.delivered_though_deferred, d.unacknowledged, d.lost);
        let (refused, deferred) = (came(554), came(451));
        assert_eq!((counts(&refused), counts(&deferred)), ((2, 0, 0, 0), (0, 2, 0, 0)));
        assert!(!refused.is_intact() && !refused.is_clean(true), "{refused:?}");
        assert!(deferred.is_intact() && deferred.is_clean(true) && !deferred.is_clean(false), "{deferred:?}");
        let text = refused.text();
        assert!(text.contains("though answered 5xx 2, though answered 4xx 0"), "{text}");
        assert!(text.contains("refused: 0000000000000001-000000000001 with 554, and delivered to a,b"), "{text}");
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("accepted"), folder.path().join("delivered"));
        std::fs::write(&b, "").unwrap();
        for wrong in ["# refused x 554", "# refused 0000000000000001-000000000001 y"] {
            std::fs::write(&a, format!("{wrong}\n")).unwrap();
            assert!(compare(&[&a], &b).unwrap_err().to_string().contains(":1: not a line of this ledger"), "{wrong}");
        }
    }

    /// What happened: a message that came damaged was counted twice, as damaged and as lost, and was "lost to" somebody who had it.
    #[test]
    fn what_came_damaged_is_not_lost_and_what_did_not_come_is() {
        let damaged = || arrival(1, Some(Damage::Checksum));
        let counts = |d: &Difference| (d.owed, d.delivered, d.lost, d.damaged, d.damaged_only, d.duplicated);
        let result = compared(&[1], "a", &[(damaged(), "a")]);
        assert_eq!(counts(&result), (1, 0, 0, 1, 1, 0), "{result:?}");
        assert!(!result.is_intact() && !result.is_clean(true) && !result.text().contains("lost:"), "{}", result.text());
        // One of three has it damaged, one not at all.
        let result = compared(&[1], "a,b,c", &[(damaged(), "a"), (arrival(1, None), "b")]);
        assert_eq!(counts(&result), (3, 1, 1, 1, 1, 0), "{result:?}");
        assert!(result.examples.contains(&"lost: 0000000000000001-000000000001 to c".to_owned()), "{result:?}");
        // Whoever it was not for has it damaged: it was for a.
        assert_eq!(counts(&compared(&[1], "a", &[(damaged(), "b")])), (1, 0, 1, 1, 0, 0));
        // A whole copy and a damaged one, in either order.
        for came in [[(damaged(), "a"), (arrival(1, None), "a")], [(arrival(1, None), "a"), (damaged(), "a")]] {
            let result = compared(&[1], "a", &came);
            assert_eq!(counts(&result), (1, 1, 0, 1, 0, 0), "{result:?}");
            assert!(!result.is_intact());
        }
        // Without a mark nobody knows whose it was.
        let nameless = Arrival { mark: None, damage: Some(Damage::BareLineEnd), bytes: 3, bare_line_ends: 0 };
        assert_eq!(counts(&compared(&[1], "a", &[(nameless, "a")])), (1, 0, 1, 1, 0, 0));
    }

    /// What happened: ten examples in all, so that ten doubled messages hid what was lost.
    #[test]
    fn examples_are_of_each_kind_and_say_how_many_more_there_are() {
        let sent: Vec<u64> = (0..40).collect();
        let received: Vec<(Arrival, &str)> = (0..26).map(|n| (arrival(n % 13, None), "a")).collect();
        let result = compared(&sent, "a", &received);
        let count = |word: &str| result.examples.iter().filter(|example| example.starts_with(word)).count();
        assert_eq!((count("lost"), count("duplicated")), (11, 11), "{:?}", result.examples);
        assert_eq!(result.examples[10], "lost: and 17 more");
        assert_eq!(result.examples[21], "duplicated: and 3 more");
    }

    #[test]
    fn another_checksum_than_acknowledged_is_damage() {
        let other = Arrival { mark: Some(Mark { checksum: Checksum::from_bits(77), ..mark(1) }), ..arrival(1, None) };
        assert_eq!(compared(&[1], "a", &[(other, "a")]).damaged, 1);
    }

    /// What happened: the next run's first line was glued to the one that a kill had cut off, and the ledger was refused from then on.
    #[test]
    fn a_line_that_an_earlier_run_left_unfinished_is_named_and_spoils_no_later_one() {
        let folder = tempfile::tempdir().unwrap();
        let (sent, received) = (folder.path().join("accepted"), folder.path().join("delivered"));
        std::fs::write(&sent, "# run 0000000000000002 s@x\n0000000000000002-000000000001 10 0000000000000001 5 a@x,b").unwrap();
        std::fs::write(&received, "0000000000000002-000000000001 10 0000000000000001 5 ok a@x,b").unwrap();
        for _ in 0..2 {
            let mut source = LedgerWriter::open(Some(&sent)).unwrap();
            drop(LedgerWriter::open(Some(&received)).unwrap());
            source.run(1, b"s@x").unwrap();
        }
        let result = compare(&[&sent], &received).unwrap();
        assert_eq!(result, Difference { cut_off: 2, examples: result.examples.clone(), ..Difference::default() });
        assert!(result.examples[0].starts_with("cut off: ") && result.examples[0].contains("accepted:2"), "{:?}", result.examples);
        assert!(result.text().contains("lines cut off 2"), "{}", result.text());
    }

    #[test]
    fn a_ledger_that_is_cut_off_or_foreign_is_refused_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let (path, empty) = (folder.path().join("accepted"), folder.path().join("empty"));
        std::fs::write(&empty, "").unwrap();
        for text in ["0000000000000001-000000000001 10 0000000000000001 5 a@x -", "hello\n", "- - - 5 a@x\n"] {
            std::fs::write(&path, text).unwrap();
            let error = compare(&[&path], &empty).unwrap_err().to_string();
            assert!(error.contains("accepted:1: "), "{error}");
        }
        let twice = "0000000000000001-000000000001 10 0000000000000001 5 a@x,a@X -\n";
        let old = "0000000000000001-000000000001 10 0000000000000001 5 1 -\n";
        for (text, word) in [(twice, "a recipient twice"), (old, "how many recipients there were and not which")] {
            std::fs::write(&path, text).unwrap();
            let error = compare(&[&path], &empty).unwrap_err().to_string();
            assert!(error.contains("accepted:1: ") && error.contains(word), "{error}");
        }
        assert!(compare(&[&folder.path().join("nowhere")], &empty).is_err());
    }

    /// What happened: both ledgers had a `?` for each octet beyond ASCII, so that mail for `r@münchen.test` that came to `r@mänchen.test` was
    /// delivered as it should be; and what an engine still had for such a recipient was lost.
    #[test]
    fn addresses_beyond_ascii_are_told_apart() {
        let ledger_form = |address: &str| {
            let mut out = Vec::new();
            crate::ledger::push_address(address.as_bytes(), &mut out);
            String::from_utf8(out).unwrap()
        };
        let (right, wrong) = (ledger_form("r@M\u{fc}nchen.test"), ledger_form("r@m\u{e4}nchen.test"));
        let result = compared(&[1], &right, &[(arrival(1, None), &wrong)]);
        assert_eq!((result.lost, result.misdirected, result.delivered), (1, 1, 0), "{result:?}");
        assert!(compared(&[1], &right, &[(arrival(1, None), &ledger_form("r@m\u{fc}nchen.TEST"))]).is_clean(false));
        let result = compared_from("j\u{e4}rg@x".as_bytes(), &[1], "a", &[(arrival(1, None), "a")]);
        assert_eq!((result.damaged, result.delivered), (1, 0), "{result:?}");

        let folder = tempfile::tempdir().unwrap();
        let (sent, received) = (folder.path().join("accepted"), folder.path().join("delivered"));
        std::fs::write(&sent, format!("0000000000000001-000000000001 10 0000000000000001 5 {right} Q1\n")).unwrap();
        std::fs::write(&received, "").unwrap();
        let waiting = r#"{"id":"Q1","recipients":[{"address":"r@m\u00fcnchen.test","state":"deferred"}]}"#;
        let queued = QueuedMail::read(waiting.as_bytes()).unwrap();
        let result = compare_with_queue(&[&sent], &received, queued).unwrap();
        assert_eq!((result.queued, result.lost), (1, 0), "{result:?}");
    }

    #[test]
    fn what_the_engine_still_has_is_not_lost_unless_it_came() {
        let folder = tempfile::tempdir().unwrap();
        let (sent, received) = (folder.path().join("accepted"), folder.path().join("delivered"));
        let mark = |number: u32| format!("0000000000000001-00000000000{number} 10 0000000000000001 5");
        std::fs::write(&sent, format!("{} a@x,b@x Q1\n{} a@x Q2\n{} a@x -\n", mark(1), mark(2), mark(3))).unwrap();
        std::fs::write(&received, format!("{} ok a@x\n", mark(1))).unwrap();
        let waiting = r#"{"id":"Q1","recipients":[{"address":"a@x","state":"active"},{"address":"b@x","state":"deferred"}]}"#;
        let queued = QueuedMail::read(waiting.as_bytes()).unwrap();
        let result = compare_with_queue(&[&sent], &received, queued).unwrap();
        assert_eq!((result.owed, result.delivered, result.queued, result.lost), (4, 1, 1, 2), "{result:?}");
        assert!(result.text().contains("lost 2, ") && result.text().contains(", still queued 1"), "{}", result.text());
        assert!(result.examples.contains(&"still queued: 0000000000000001-000000000001 to b@x".to_owned()), "{result:?}");
        assert_eq!(compare(&[&sent], &received).unwrap().lost, 3);
    }
}
