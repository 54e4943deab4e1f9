//! `ringpost-floor`: the floor as a process. It serves until its standard input ends, then prints what it did as one JSON object on a
//! line; and what it did so far for each line that it reads.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::process::ExitCode;

use ringpost_floor::server::{Options, Server};

const USAGE: &str =
    "usage: ringpost-floor --listen HOST:PORT --log FILE [--log-mib 512] [--relay HOST:PORT [--connections 16] [--unchained]]";

fn options() -> Result<(SocketAddr, Options), String> {
    let mut arguments = std::env::args().skip(1);
    let (mut listen, mut log, mut log_bytes, mut relay, mut connections, mut chained) = (None, None, 512 << 20, None, 16, true);
    while let Some(name) = arguments.next() {
        if name == "--unchained" {
            chained = false;
            continue;
        }
        let value = arguments.next().ok_or(format!("{name} wants a value\n{USAGE}"))?;
        let number = |least: u64| match value.parse::<u64>() {
            Ok(number) if number >= least => Ok(number),
            _ => Err(format!("{name}: {value:?} is no number from {least} on")),
        };
        let address = || value.parse::<SocketAddr>().map(Some).map_err(|error| format!("{name}: {value:?}: {error}"));
        match name.as_str() {
            "--listen" => listen = address()?,
            "--log" => log = Some(value.into()),
            "--log-mib" => log_bytes = number(4)? << 20,
            "--relay" => relay = address()?,
            "--connections" => connections = number(1)? as usize,
            _ => return Err(format!("{name} is unknown\n{USAGE}")),
        }
    }
    let (Some(listen), Some(log)) = (listen, log) else { return Err(USAGE.into()) };
    Ok((listen, Options { log, log_bytes, relay, connections, chained }))
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let (listen, options) = options()?;
    let server = Server::new(&options)?;
    // Whoever can connect is served at once.
    let listener = TcpListener::bind(listen)?;
    // Unbuffered: what was read ahead would wait for the next line to make the descriptor readable.
    let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let counts = server.run(&listener, input, io::stdout())?;
    println!("{}", counts.json());
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringpost-floor: {error}");
            ExitCode::FAILURE
        }
    }
}
