//! `ringpost spool`: verify, ls and cat read the logs themselves; prepare asks the running engine, or writes them itself.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use ringpost_config::Config;
use ringpost_engine::{
    inspection::{self, Inspection},
    random::random_u64,
    spool_home::SpoolHome,
};
use ringpost_smtp::shown::{shown, shown_bytes};
use ringpost_spool::{Ahead, Space};
use serde_json::json;

use crate::{
    Failure,
    cli::{ConfigFile, EXIT_CONFIG, EXIT_IO, EXIT_NEGATIVE, EXIT_OK, SpoolCall, SpoolPlace},
    control_client::{ControlError, ask},
    control_wire::WireRequest,
    queue_cli::{code, say, say_json},
    spool_supply::{Prepared, SpoolSupply},
};

/// A longer line of content is shown on a terminal in pieces.
const TERMINAL_LINE_BYTES_MAX: usize = 64 * 1024;

/// Runs a spool command.
pub fn spool(call: SpoolCall, read_config: impl Fn(&ConfigFile) -> Result<Config, String>) -> Result<ExitCode, Failure> {
    let config = |file: &ConfigFile| read_config(file).map_err(|message| Failure { message, code: EXIT_CONFIG });
    let folder = |place: &SpoolPlace| -> Result<PathBuf, Failure> {
        match &place.path {
            Some(path) => Ok(path.clone()),
            None => Ok(config(&place.config)?.spool.path),
        }
    };
    match call {
        SpoolCall::Verify { place, output } => verify(&read(folder(&place)?)?, output.json),
        SpoolCall::Ls { place, output } => list(&read(folder(&place)?)?, output.json),
        SpoolCall::Cat { id, place } => cat(&read(folder(&place)?)?, &id),
        SpoolCall::Prepare { segments, config: file } => prepare(&config(&file)?, segments),
    }
}

fn read(spool: PathBuf) -> Result<Vec<(u16, Inspection)>, Failure> {
    let io_failure = |message: String| Failure { message, code: EXIT_IO };
    let logs = inspection::logs(&spool).map_err(|reason| io_failure(format!("{}: {reason}", spool.display())))?;
    if logs.is_empty() {
        return Err(io_failure(format!("{}: no logs here; is this the `spool.path` of the config?", spool.display())));
    }
    let read = |(number, directory): (u16, PathBuf)| {
        Inspection::read(&spool, number, &directory).map(|inspection| (number, inspection)).map_err(io_failure)
    };
    logs.into_iter().map(read).collect()
}

fn verify(logs: &[(u16, Inspection)], as_json: bool) -> Result<ExitCode, Failure> {
    let mut harmful = 0;
    for (number, log) in logs {
        for damage in &log.damages {
            let kind = format!("{:?}", damage.kind);
            let is_tail = damage.kind == ringpost_spool::DamageKind::UnacknowledgedTail;
            harmful += usize::from(!is_tail);
            if as_json {
                say(&json!({"log": number, "file": damage.file.to_string(), "offset": damage.offset, "bytes": damage.bytes, "kind": kind})
                    .to_string());
            } else if is_tail {
                say(&format!(
                    "log {number}: {} at {}: unacknowledged_tail, {} bytes: nobody was told 250 for them",
                    damage.file, damage.offset, damage.bytes
                ));
            } else {
                say(&format!("log {number}: {} at {}: {} bytes damaged ({kind})", damage.file, damage.offset, damage.bytes));
            }
        }
        for id in &log.incomplete {
            harmful += 1;
            say(&if as_json {
                json!({"log": number, "incomplete": format!("{id:?}")}).to_string()
            } else {
                format!("log {number}: message {id:?} lacks a part of its content")
            });
        }
        let mut unreadable = 0;
        for message in &log.messages {
            if let Err(reason) = log.content(message.record, |_| Ok(())) {
                unreadable += 1;
                say(&if as_json {
                    json!({"log": number, "id": message.id, "damaged": reason}).to_string()
                } else {
                    format!("log {number}: message {}: {reason}", message.id)
                });
            }
        }
        harmful += unreadable;
        let report = &log.report;
        if as_json {
            say(&json!({"log": number, "segments": report.segments, "batches": report.batches, "records": report.records, "messages": log.messages.len()}).to_string());
        } else {
            say(&format!(
                "log {number}: {} segments, {} batches, {} records, {} messages not settled",
                report.segments,
                report.batches,
                report.records,
                log.messages.len()
            ));
        }
    }
    Ok(ExitCode::from(if harmful == 0 { EXIT_OK } else { EXIT_NEGATIVE }))
}

fn list(logs: &[(u16, Inspection)], as_json: bool) -> Result<ExitCode, Failure> {
    for (number, log) in logs {
        for message in &log.messages {
            if as_json {
                say_json(&json!({"id": message.id, "log": number, "sender": message.sender, "recipients": message.recipients, "size": message.size, "accepted_at_ms": message.accepted_at_ms, "chunks": message.chunks}).to_string());
            } else {
                let recipients: Vec<_> = message.recipients.iter().map(|recipient| shown(recipient)).collect();
                say(&format!("{:<24}{:>10}  <{}> -> {}", message.id, message.size, shown(&message.sender), recipients.join(", ")));
            }
        }
    }
    Ok(ExitCode::from(EXIT_OK))
}

fn cat(logs: &[(u16, Inspection)], id: &str) -> Result<ExitCode, Failure> {
    let found = logs
        .iter()
        .find_map(|(_, log)| log.messages.iter().find(|message| message.id.eq_ignore_ascii_case(id)).map(|message| (log, message)));
    let Some((log, message)) = found else {
        eprintln!("ringpost: no message {id} in the spool");
        return Ok(ExitCode::from(EXIT_NEGATIVE));
    };
    let out = io::stdout().lock();
    let failure = |message| Failure { message, code: EXIT_IO };
    if out.is_terminal() {
        let mut terminal = ForTerminal { out, rest: Vec::new() };
        log.content(message.record, |piece| terminal.write(piece)).map_err(failure)?;
        terminal.end().map_err(|error| failure(error.to_string()))?;
    } else {
        let mut out = out;
        log.content(message.record, |piece| out.write_all(piece)).map_err(failure)?;
    }
    Ok(ExitCode::from(EXIT_OK))
}

/// Writes content so that it steers no terminal, line by line.
struct ForTerminal<W> {
    out: W,
    /// A line that has not ended yet.
    rest: Vec<u8>,
}

impl<W: Write> ForTerminal<W> {
    fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.rest.extend_from_slice(piece);
        let whole = match self.rest.iter().rposition(|&byte| byte == b'\n') {
            Some(at) => at + 1,
            None if self.rest.len() >= TERMINAL_LINE_BYTES_MAX => self.rest.len(),
            None => return Ok(()),
        };
        let lines: Vec<u8> = self.rest.drain(..whole).collect();
        for line in lines.split_inclusive(|&byte| byte == b'\n') {
            let (line, end) = line.strip_suffix(b"\n").map_or((line, ""), |line| (line.strip_suffix(b"\r").unwrap_or(line), "\n"));
            write!(self.out, "{}{end}", shown_bytes(line))?;
        }
        Ok(())
    }

    fn end(mut self) -> io::Result<()> {
        writeln!(self.out, "{}", shown_bytes(&self.rest))
    }
}

fn prepare(config: &Config, segments: u32) -> Result<ExitCode, Failure> {
    let mut prepared = None;
    match ask(&config.control.socket, &WireRequest::SpoolPrepare { segments }, |line| prepared = serde_json::from_str(line).ok()) {
        Ok(made) => {
            let ready = prepared.map_or(0, |Prepared { ready, .. }| ready);
            say(&format!(
                "{made} more segments are being prepared, and {ready} are ready; `ringpost stats` counts those ready now (segments_ready)"
            ));
            Ok(ExitCode::from(EXIT_OK))
        }
        Err(ControlError::Unreachable { .. }) => {
            let shards = crate::topology::CorePlan::new(config).map_err(Failure::config)?.shards.len();
            // A folder that is made yet lies where its nearest one above does; where nobody can tell, the disk itself will.
            let stat = config.spool.path.ancestors().find_map(|folder| rustix::fs::statvfs(folder).ok());
            if let Some(stat) = stat {
                let supply = nothing_ahead(config, shards, &stat);
                let path = config.spool.path.display();
                supply.prepare(segments).map_err(|reason| Failure { message: format!("{path}: {reason}"), code: EXIT_IO })?;
            }
            let path = &config.spool.path;
            let home = SpoolHome::open(path, random_u64(), config.spool.allow_unsafe_spool)
                .map_err(|reason| Failure { message: reason.to_string(), code: EXIT_IO })?;
            for number in 0..u16::try_from(shards).expect("the plan has at most as many shards as ids have room for") {
                let directory = home.log_directory(number);
                let made =
                    ringpost_engine::preparation::prepare(&home, number, config.spool.segment_bytes.bytes(), segments, |done, all| {
                        eprint!("\rlog {number}: {done} of {all} segments prepared");
                    });
                eprintln!();
                made.map_err(|reason| Failure { message: format!("{}: {reason}", directory.display()), code: EXIT_IO })?;
            }
            say(&format!("{} segments prepared", shards * segments as usize));
            Ok(ExitCode::from(EXIT_OK))
        }
        Err(error) => Ok(code(Err(error))),
    }
}

/// Of a spool whose engine does not run: what is added comes to what is there, whatever that is.
fn nothing_ahead(config: &Config, shards: usize, stat: &rustix::fs::StatVfs) -> SpoolSupply {
    let segment_bytes = u32::try_from(config.spool.segment_bytes.bytes()).expect("the config allows at most 1 GiB");
    let inodes = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
    SpoolSupply {
        own: vec![Ahead { segment_bytes, ..Ahead::default() }; shards],
        others: Vec::new(),
        space: Space { bytes: stat.f_bavail.saturating_mul(stat.f_frsize), inodes },
        kept: Space { bytes: config.spool.min_free_bytes.bytes(), inodes: config.spool.min_free_inodes.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header field or a body could clear the screen of who looked at it, or write other words over it.
    #[test]
    fn content_steers_no_terminal_however_it_comes_in_pieces() {
        let content = "Subject: \u{1b}[2Jgr\u{fc}n\r\n\r\n\ta\u{202e}b\rc\n\u{2028}end".as_bytes();
        let expected = "Subject: \\x1b[2Jgr\u{fc}n\n\n\ta\\xe2\\x80\\xaeb\\x0dc\n\\xe2\\x80\\xa8end\n";
        for size in 1..content.len() {
            let mut out = Vec::new();
            let mut terminal = ForTerminal { out: &mut out, rest: Vec::new() };
            content.chunks(size).for_each(|piece| terminal.write(piece).unwrap());
            terminal.end().unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), expected, "pieces of {size}");
        }
        let mut terminal = ForTerminal { out: Vec::new(), rest: Vec::new() };
        terminal.write(&vec![b'x'; TERMINAL_LINE_BYTES_MAX]).unwrap();
        assert!(terminal.rest.is_empty() && terminal.out.len() == TERMINAL_LINE_BYTES_MAX, "its memory is bounded");
    }
}
