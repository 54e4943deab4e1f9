//! Clients that others wrote, through the engine to a sink that checks every octet and to Postfix's `smtp-sink`.

use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use ringpost_loadtest::content::{Composer, ContentKind, Form, Item};
use ringpost_loadtest::ledger::LedgerWriter;
use ringpost_loadtest::random::Random;
use ringpost_loadtest::sink::Sink;

use crate::engine::{Engine, EngineOptions, Route, rig_folder};
use crate::machine;
use crate::traffic::{difference, next_hop};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// A client that has not ended by itself after this long has failed.
const CLIENT_MAX: Duration = Duration::from_secs(120);

/// What Python's smtplib does with one file.
const PYTHON: &str = r#"
import smtplib, sys
host, port, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with smtplib.SMTP(host, port, timeout=60) as client:
    client.ehlo("python.x.test")
    client.sendmail("a@x.test", ["b@y.test"], open(path, "rb").read(), mail_options=["BODY=8BITMIME"])
"#;

/// What to run.
#[derive(Debug, Args)]
pub struct InteropArguments {
    /// The engine's binary.
    #[arg(long)]
    engine: PathBuf,
    /// Messages of smtp-source.
    #[arg(long, default_value_t = 20_000)]
    messages: u64,
}

/// Runs both parts; true when every octet arrived, nothing was lost and nothing came twice.
pub fn run(arguments: &InteropArguments) -> Outcome<bool> {
    let folder = rig_folder("interop")?;
    let checked = to_checking_sink(&arguments.engine, arguments.messages, &folder.path().join("own"))?;
    let counted = to_smtp_sink(&arguments.engine, arguments.messages, &folder.path().join("smtp-sink"))?;
    let good = checked && counted;
    println!("{}", if good { "interop: OK" } else { "interop: FAILED" });
    Ok(good)
}

/// Contents that usually go wrong, by name.
fn bodies() -> Vec<(&'static str, Vec<u8>)> {
    let mut random = Random::new(11);
    let eight_bit: Vec<u8> = (0..4000)
        .flat_map(|_| if random.one_in(60) { b"\r\n".to_vec() } else { vec![random.between(0x80, 0xFF) as u8] })
        .chain(*b"\r\n")
        .collect();
    let long_lines =
        [vec![b'a'; 998], b"\r\n".to_vec(), vec![b'b'; 5000], b"\r\n".to_vec(), vec![b'c'; 200_000], b"\r\n".to_vec()].concat();
    let large: Vec<u8> = b"0123456789 abcdefghijklmnopqrstuvwxyz ..........\r\n.begins with a dot\r\n".repeat(25 * 1024 * 1024 / 69);
    vec![
        ("dots", b".\r\n..\r\n...\r\n.x\r\n \r\n.\r\n\r\n.\r\nend\r\n.\r\n".to_vec()),
        ("one line", b"x\r\n".to_vec()),
        ("8-bit", eight_bit),
        ("long lines", long_lines),
        ("25 MB", large),
    ]
}

fn to_checking_sink(binary: &Path, messages: u64, folder: &Path) -> Outcome<bool> {
    std::fs::create_dir_all(folder)?;
    let (sent, received) = (folder.join("sent"), folder.join("received"));
    let sink = Sink::start(next_hop(Some(received.clone()))?)?;
    let mut engine = Engine::new(EngineOptions::new(binary, folder, Route::Smarthost(sink.address))?)?;
    engine.start()?;
    let mut ledger = LedgerWriter::open(Some(&sent))?;
    let run = Random::fresh_seed();
    let mut sequence = 0;
    for (name, body) in bodies() {
        let message = [b"From: a@x.test\r\nTo: b@y.test\r\nSubject: interop\r\n\r\n", &body[..]].concat();
        let (mut composer, items) = Composer::new(&ContentKind::Corpus(vec![Item::new(message)]), run, 0, 0);
        for client in ["smtplib", "curl", "swaks"] {
            // swaks adds an empty line unless it sends the data as it is, dots and end included.
            let (form, end) = if client == "swaks" { (Form::Stuffed, &b".\r\n"[..]) } else { (Form::Raw, &b""[..]) };
            let plan = composer.plan(sequence, 0, form);
            sequence += 1;
            let file = folder.join("content");
            std::fs::write(&file, [&composer.whole(&plan, &items), end].concat())?;
            let outcome = send_by(client, engine.address, &file);
            println!("{client:<10} {name:<10} {}", outcome.as_ref().map_or_else(ToString::to_string, |()| "accepted".into()));
            outcome?;
            ledger.accepted(&plan.mark, 0, b"b@y.test", b"")?;
        }
    }
    ledger.flush()?;
    smtp_source(engine.address, messages)?;
    engine.drain(Duration::from_secs(30), || sink.messages())?;
    engine.terminate(Duration::from_secs(30))?;
    sink.stop();
    let (report, _) = sink.join()?;
    let result = difference(&[&sent], &received)?;
    println!(
        "checking sink: {} of {sequence} contents intact, damaged {}, lost {}, twice {}; {} of {messages} messages of smtp-source",
        result.delivered, result.damaged, result.lost, result.duplicated, report.foreign
    );
    for example in &result.examples {
        if !example.starts_with("foreign") {
            println!("  {example}");
        }
    }
    Ok(result.is_intact() && result.duplicated == 0 && result.delivered == sequence && report.foreign == messages)
}

fn to_smtp_sink(binary: &Path, messages: u64, folder: &Path) -> Outcome<bool> {
    std::fs::create_dir_all(folder)?;
    let (address, counters) = (machine::free_port()?, folder.join("counters"));
    // -c counts; it prints its counters as they change. Into a file: it would stand still before a full pipe.
    let sink = Command::new("smtp-sink")
        .args(["-c", "-u", "nobody"][..if machine::is_root() { 3 } else { 1 }].iter())
        .args([&address.to_string(), "1000"])
        .stdout(std::fs::File::create(&counters)?)
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("smtp-sink: {error} (package postfix)"))?;
    let sink = Running(sink);
    let mut engine = Engine::new(EngineOptions::new(binary, folder, Route::Smarthost(address))?)?;
    engine.start()?;
    smtp_source(engine.address, messages)?;
    let drained = engine.drain(Duration::from_secs(30), || std::fs::metadata(&counters).map_or(0, |file| file.len()));
    let ended = engine.terminate(Duration::from_secs(30));
    drop(sink);
    drained?;
    ended?;
    let printed = String::from_utf8_lossy(&std::fs::read(&counters)?).into_owned();
    let arrived = printed
        .split(['\r', '\n'])
        .filter_map(|line| line.split_once("mesg=")?.1.split(|letter: char| !letter.is_ascii_digit()).next()?.parse::<u64>().ok())
        .next_back();
    println!("smtp-sink: {arrived:?} of {messages} messages of smtp-source");
    Ok(arrived == Some(messages))
}

/// A program that ends when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _already_ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn send_by(client: &str, to: SocketAddr, file: &Path) -> Outcome<()> {
    let path = file.to_string_lossy();
    let mut command = match client {
        "smtplib" => {
            let mut command = Command::new("python3");
            command.args(["-c", PYTHON, &to.ip().to_string(), &to.port().to_string(), &path]);
            command
        }
        "curl" => {
            let mut command = Command::new("curl");
            command.args([
                "-sS",
                "--mail-from",
                "a@x.test",
                "--mail-rcpt",
                "b@y.test",
                "--upload-file",
                &path,
                &format!("smtp://{to}/curl.x.test"),
            ]);
            command
        }
        _ => {
            let mut command = Command::new("swaks");
            command.args(["--server", &to.ip().to_string(), "--port", &to.port().to_string(), "--ehlo", "swaks.x.test"]);
            command.args([
                "--from",
                "a@x.test",
                "--to",
                "b@y.test",
                "--data",
                &format!("@{path}"),
                "--no-data-fixup",
                "--suppress-data",
                "--hide-all",
            ]);
            command
        }
    };
    ends_well(&mut command, client)
}

fn smtp_source(to: SocketAddr, messages: u64) -> Outcome<()> {
    let began = Instant::now();
    let mut command = Command::new("smtp-source");
    command.args(["-s", "100", "-m", &messages.to_string(), "-l", "4096", "-f", "a@x.test", "-t", "b@y.test", &to.to_string()]);
    ends_well(&mut command, "smtp-source")?;
    println!("smtp-source: {messages} messages accepted in {:.1?}", began.elapsed());
    Ok(())
}

fn ends_well(command: &mut Command, name: &str) -> Outcome<()> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(|error| format!("{name}: {error}"))?;
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            let mut words = String::new();
            if let Some(errors) = &mut child.stderr {
                errors.read_to_string(&mut words)?;
            }
            return if status.success() { Ok(()) } else { Err(format!("{name}: {status}: {}", words.trim()).into()) };
        }
        if began.elapsed() > CLIENT_MAX {
            child.kill()?;
            child.wait()?;
            return Err(format!("{name} did not end within {CLIENT_MAX:?}").into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
