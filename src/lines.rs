//! Lines on standard output.

use std::io::{self, BufWriter, ErrorKind, StdoutLock, Write};

use ringpost_smtp::shown::{shown_json, shown_lines};

use crate::cli::{EXIT_IO, EXIT_OK};

/// Written in one piece: a system call for each of a million lines costs more than all else about them. No larger, since the engine waits as long as
/// the reader takes for one.
const PIECE_BYTES: usize = 8 * 1024;

/// Many lines, written in pieces: nothing of the process may be printed in another way meanwhile.
pub struct Lines(BufWriter<StdoutLock<'static>>);

impl Default for Lines {
    fn default() -> Lines {
        Lines(BufWriter::with_capacity(PIECE_BYTES, io::stdout().lock()))
    }
}

impl Lines {
    /// As [`crate::queue_cli::say`].
    pub fn say(&mut self, text: &str) {
        ended_by(writeln!(self.0, "{}", shown_lines(text)));
    }

    /// As [`crate::queue_cli::say_json`].
    pub fn say_json(&mut self, object: &str) {
        ended_by(writeln!(self.0, "{}", shown_json(object)));
    }

    /// Writes what is left.
    pub fn end(mut self) {
        ended_by(self.0.flush());
    }
}

/// Ends the process when its output cannot be written: quietly with [`EXIT_OK`] where the reader went away (`| head`), else with [`EXIT_IO`]
/// and the reason (a full disk).
pub fn ended_by(written: io::Result<()>) {
    let Err(reason) = written else { return };
    if reason.kind() == ErrorKind::BrokenPipe {
        std::process::exit(i32::from(EXIT_OK));
    }
    eprintln!("ringpost: standard output cannot be written: {reason}");
    std::process::exit(i32::from(EXIT_IO));
}
