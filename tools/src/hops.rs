//! Odd and hostile next hops: one engine, one message with three recipients for each hop, and a table of what came of them.
//!
//! The outcome of each recipient is read from the mail log, the copies are counted at the hop: nothing may be lost, and nothing may
//! arrive twice but where a hop took a message without saying so.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;

use crate::dialogue::Dialogue;
use crate::engine::{Engine, EngineOptions, Route};

mod cases;
mod server;

use cases::{CASES, Case};
use server::{Hop, Reading};

/// The engine's deadlines are a second each and its retries come after 1 to 2 s: whatever has to happen has happened by then.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// And for so long nothing more may arrive.
const QUIET: Duration = Duration::from_secs(4);
const RECIPIENTS: [&str; 3] = ["a", "b", "c"];

/// What to run.
#[derive(Debug, Args)]
pub struct HopsArguments {
    /// The engine's binary.
    #[arg(long)]
    engine: PathBuf,
    /// Only hops whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Keep the folder of the run.
    #[arg(long)]
    keep: bool,
}

/// What must come of a recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Delivered, one copy.
    Once,
    /// Delivered; the hop took it before without saying so, so it may have two.
    AtLeastOnce,
    /// Refused for good with this enhanced code, no copy.
    Failed(&'static str),
    /// Still tried, for a reason with these words, no copy.
    Deferred(&'static str),
}

impl End {
    fn is_met(self, seen: &Outcome, copies: usize) -> bool {
        match self {
            End::Once => seen.word == "delivered" && copies == 1,
            End::AtLeastOnce => seen.word == "delivered" && (1..=2).contains(&copies),
            End::Failed(code) => seen.word == "bounced" && seen.dsn == code && copies == 0,
            End::Deferred(words) => seen.word == "deferred" && seen.line.contains(words) && copies == 0,
        }
    }
}

/// The last word of the mail log on a recipient.
#[derive(Debug, Clone, Default)]
struct Outcome {
    word: String,
    dsn: String,
    line: String,
}

/// Runs the table; true when every recipient came to what it must.
pub fn run(arguments: &HopsArguments) -> Result<bool, Box<dyn std::error::Error>> {
    let folder = crate::engine::rig_folder("hops")?;
    let cases: Vec<&Case> = CASES.iter().filter(|case| case.name.contains(&arguments.only)).collect();
    let hops = cases.iter().map(|case| Hop::start(case.script, case.reading)).collect::<io::Result<Vec<_>>>()?;
    let mut engine = Engine::new(options(arguments, folder.path(), &cases, &hops)?)?;
    engine.start()?;
    for number in 0..cases.len() {
        let mut client = Dialogue::greeted(engine.address, WAIT_MAX)?;
        client.must("MAIL FROM:<sender@x.test>", "250")?;
        for to in RECIPIENTS {
            client.must(&format!("RCPT TO:<{to}@hop{number}.test>"), "250")?;
        }
        client.must("DATA", "354")?;
        client.must("Subject: to an odd hop\r\n\r\n..a dot\r\n.", "250")?;
    }
    let began = Instant::now();
    let is_done = |outcomes: &HashMap<String, Outcome>| {
        (0..).zip(&cases).zip(&hops).all(|((number, case), hop)| is_met(case, hop, &ends_of(outcomes, number)))
    };
    while began.elapsed() < WAIT_MAX && !is_done(&outcomes(folder.path())?) {
        engine.must_run()?;
        std::thread::sleep(Duration::from_millis(50));
    }
    let took = began.elapsed();
    // What comes now is a copy too many.
    std::thread::sleep(QUIET);
    engine.must_run()?;
    let outcomes = outcomes(folder.path())?;
    let (mut wrong, mut twice) = (0, 0);
    for ((number, case), hop) in (0..).zip(&cases).zip(&hops) {
        let seen = ends_of(&outcomes, number);
        let good = is_met(case, hop, &seen);
        let copies = RECIPIENTS.map(|to| hop.copies(to));
        twice += copies.iter().filter(|copies| **copies > 1).count();
        wrong += usize::from(!good);
        let mut text = String::new();
        for ((to, seen), copies) in RECIPIENTS.iter().zip(&seen).zip(copies) {
            let word = if seen.word.is_empty() { "nothing" } else { &seen.word };
            write!(text, " {to} {:<20}", format!("{word} {} x{copies}", seen.dsn))?;
        }
        println!("{:<46} {} {text} {} connections", case.name, if good { "ok   " } else { "WRONG" }, hop.connections());
        for seen in seen.iter().filter(|_| !good) {
            println!("    {}", seen.line);
        }
    }
    let log = std::fs::read(folder.path().join("mail.log"))?;
    let clean = log.iter().all(|octet| *octet == b'\n' || (0x20..0x7F).contains(octet) || *octet >= 0x80);
    println!(
        "hops: {} of {} as they must be after {:.1} s; {twice} copies more than one where a hop took mail in silence; the mail log is {}",
        cases.len() - wrong,
        cases.len(),
        took.as_secs_f64(),
        if clean { "clean" } else { "NOT CLEAN" }
    );
    if arguments.keep || wrong > 0 {
        println!("kept: {}", folder.keep().display());
    }
    Ok(wrong == 0 && clean)
}

fn options(arguments: &HopsArguments, folder: &std::path::Path, cases: &[&Case], hops: &[Hop]) -> io::Result<EngineOptions> {
    let mut options = EngineOptions::new(&arguments.engine, folder, Route::Discard)?;
    options.segment_mib = Some(1);
    let keys = ["banner", "ehlo", "mail", "rcpt", "data", "block", "quit"];
    let mut lines: Vec<String> = keys.iter().map(|key| format!("{key}_timeout = \"1s\"")).collect();
    // Longer than that of a block, as it is by default.
    lines.push("dot_timeout = \"6s\"".into());
    options.lines.push(("delivery", format!("{}\nthrottle_pause = \"1s\"", lines.join("\n"))));
    for ((number, case), hop) in (0..).zip(cases).zip(hops) {
        let via = if case.reading == Reading::Lmtp { "lmtp" } else { "smarthost" };
        write!(options.tail, "[[route]]\ndomain = \"hop{number}.test\"\nvia = \"{via}\"\nhosts = [\"{}\"]\n", hop.address)
            .expect("writing to a string does not fail");
    }
    Ok(options)
}

fn is_met(case: &Case, hop: &Hop, seen: &[Outcome; 3]) -> bool {
    (0..3).all(|at| case.ends[at].is_met(&seen[at], hop.copies(RECIPIENTS[at])))
}

fn ends_of(outcomes: &HashMap<String, Outcome>, number: usize) -> [Outcome; 3] {
    RECIPIENTS.map(|to| outcomes.get(&format!("{to}@hop{number}.test")).cloned().unwrap_or_default())
}

/// The last outcome of each recipient in the mail log.
fn outcomes(folder: &std::path::Path) -> io::Result<HashMap<String, Outcome>> {
    let text = std::fs::read(folder.join("mail.log"))?;
    let mut outcomes = HashMap::new();
    for line in String::from_utf8_lossy(&text).lines().filter(|line| line.contains(" event=attempt ")) {
        // The reply is the last field, and what a hop put into it is not to be taken for another.
        let fields = line.split_once(" reply=").map_or(line, |(fields, _)| fields);
        let field = |name: &str| fields.split(' ').find_map(|field| field.strip_prefix(name)).unwrap_or_default().to_owned();
        let to = field("to=").trim_matches(['<', '>']).to_owned();
        outcomes.insert(to, Outcome { word: field("outcome="), dsn: field("dsn="), line: line.to_owned() });
    }
    Ok(outcomes)
}
