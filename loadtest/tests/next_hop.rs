//! `ringpost-load run --to … --next-hop …` against a server that queues what it takes and sends it on as soon as somebody is there.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::{sleep, spawn},
    time::Duration,
};

use ringpost_loadtest::{free_port::free_port, run_result::RunResult};

/// What the server tries again after: a next hop that was not there.
const AGAIN: Duration = Duration::from_millis(5);

type Mail = (Vec<Vec<u8>>, Vec<u8>);

fn line(from: &mut impl BufRead) -> Vec<u8> {
    let mut line = Vec::new();
    // Whoever is gone says nothing more.
    let _gone = from.read_until(b'\n', &mut line);
    line
}

/// The lines of a message, as they stand on the wire, up to its dot.
fn content(from: &mut impl BufRead) -> Vec<u8> {
    let mut content = Vec::new();
    while !content.ends_with(b"\r\n.\r\n") {
        let line = line(from);
        assert!(!line.is_empty(), "the client is gone");
        content.extend(line);
    }
    content
}

fn session(client: TcpStream, queue: &Sender<Mail>) {
    let mut lines = BufReader::new(client.try_clone().unwrap());
    let say = |words: &str| (&client).write_all(format!("{words}\r\n").as_bytes());
    let mut envelope = Vec::new();
    say("220 queue.load.test").unwrap();
    loop {
        let command = line(&mut lines);
        // The other end may be gone before it reads the last word.
        let _gone = match &command[..command.len().min(4)] {
            b"" => return,
            b"DATA" => {
                say("354 go on").unwrap();
                queue.send((std::mem::take(&mut envelope), content(&mut lines))).unwrap();
                say("250 2.0.0 queued")
            }
            b"QUIT" => say("221 2.0.0 bye"),
            verb => {
                if verb == b"MAIL" || verb == b"RCPT" {
                    envelope.push(command);
                }
                say("250 2.0.0 well")
            }
        };
    }
}

/// Sends one message over a connection of its own; false: nobody took it.
fn forward(next_hop: SocketAddr, (envelope, content): &Mail) -> bool {
    let Ok(hop) = TcpStream::connect(next_hop) else { return false };
    let mut lines = BufReader::new(hop.try_clone().unwrap());
    let commands = [&[b"HELO queue.load.test\r\n".to_vec()][..], envelope, &[b"DATA\r\n".to_vec(), content.clone()]].concat();
    let mut reply = line(&mut lines);
    for command in commands {
        if !matches!(reply.first(), Some(b'2' | b'3')) || (&hop).write_all(&command).is_err() {
            return false;
        }
        reply = line(&mut lines);
    }
    reply.starts_with(b"250")
}

/// With `again` the last message is sent on once more when nothing has come for so long.
fn start_server(next_hop: SocketAddr, again: Option<Duration>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (queue, queued): (Sender<Mail>, Receiver<Mail>) = channel();
    spawn(move || {
        for client in listener.incoming() {
            let (client, queue) = (client.unwrap(), queue.clone());
            spawn(move || session(client, &queue));
        }
    });
    spawn(move || {
        let send_on = |mail: &Mail| {
            while !forward(next_hop, mail) {
                sleep(AGAIN);
            }
        };
        let mut last = None;
        loop {
            match queued.recv_timeout(again.unwrap_or(Duration::from_secs(3600))) {
                Ok(mail) => send_on(last.insert(mail)),
                Err(RecvTimeoutError::Timeout) => last.take().iter().filter(|_| again.is_some()).for_each(send_on),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    });
    address
}

/// What happened: the next hop listened in scenarios that look at it, so that the mail of the others waited in the server until one of those
/// came, went before its own, and was foreign there; as many messages had come as were accepted, and its own were lost. And mail that went
/// on in the background was foreign.
#[test]
fn every_scenarios_mail_is_taken_and_what_waited_in_the_server_is_not_taken_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let next_hop = free_port().unwrap();
    let to = start_server(next_hop, None).to_string();
    let load = |arguments: &[&str]| Command::new(env!("CARGO_BIN_EXE_ringpost-load")).args(arguments).output().unwrap();
    // An earlier run's, which nobody has taken.
    assert!(load(&["source", "--to", &to, "--messages", "30", "--quiet"]).status.success());
    for (name, more) in [("first", "[background]\nmessages = 20\n"), ("second", "[sink]\n")] {
        let text = format!("name = \"{name}\"\nabout = \"Short.\"\nseconds = 20\n[load]\nmessages = 25\n{more}");
        std::fs::write(path(&format!("{name}.toml")), text).unwrap();
    }
    let hop = next_hop.to_string();
    let run = ["run", &path("first.toml"), &path("second.toml"), "--to", &to, "--next-hop", &hop];
    let output = load(&[&run[..], &["--output", &path("results"), "--folder", &path("")]].concat());
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let difference = |name: &str| {
        let result = RunResult::read(Path::new(&path(&format!("results/{name}.json")))).unwrap();
        let of = |field: &str| result.settings["difference"][field].as_u64();
        assert_eq!(result.emails_sent, 25, "{said}");
        (of("lost"), of("foreign"), of("duplicated"))
    };
    assert_eq!(difference("first"), (Some(0), Some(30), Some(0)), "{said}");
    assert_eq!(difference("second"), (Some(0), Some(0), Some(0)), "{said}");
}

/// What happened: the next hop ended the moment that all was there, so that no server was ever seen to send anything twice behind that.
#[test]
fn what_a_server_sends_twice_behind_the_last_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let next_hop = free_port().unwrap();
    let to = start_server(next_hop, Some(Duration::from_millis(200))).to_string();
    let text = "name = \"twice\"\nabout = \"Short.\"\nseconds = 20\n[load]\nmessages = 5\n[sink]\n[expect]\nquiet_s = 3\n";
    std::fs::write(path("twice.toml"), text).unwrap();
    let arguments =
        ["run", &path("twice.toml"), "--to", &to, "--next-hop", &next_hop.to_string(), "--output", &path("results"), "--folder", &path("")];
    let output = Command::new(env!("CARGO_BIN_EXE_ringpost-load")).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let result = RunResult::read(Path::new(&path("results/twice.json"))).unwrap();
    let of = |field: &str| result.settings["difference"][field].as_u64();
    assert_eq!((of("lost"), of("delivered"), of("duplicated"), output.status.code()), (Some(0), Some(5), Some(1), Some(1)), "{said}");
}

/// What happened: what was drawn could not be had again, though the page on trust said that the seed is in the result: the next hop and the
/// background had seeds that stood nowhere, and `run` took none.
#[test]
fn a_run_of_the_same_seed_draws_the_same_sizes_and_faults() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let load =
        "[load]\nmessages = 40\nsize = \"lognormal:2000:1\"\npipelining = false\n[sink]\nfault = [\"mail:451:0.5\", \"dot:452:0.3\"]\n";
    let text = format!("name = \"drawn\"\nabout = \"Short.\"\nseconds = 60\n{load}[expect]\nquiet_s = 0\n");
    std::fs::write(path("drawn.toml"), text).unwrap();
    let drawn = |seed: &str| {
        let next_hop = free_port().unwrap();
        let to = start_server(next_hop, None).to_string();
        let arguments = ["run", &path("drawn.toml"), "--to", &to, "--next-hop", &next_hop.to_string(), "--seed", seed];
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
        let output = command.args(arguments).args(["--output", &path("results"), "--folder", &path("")]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{said}");
        let result = RunResult::read(Path::new(&path("results/drawn.json"))).unwrap();
        assert_eq!(result.settings["seed"].to_string(), seed);
        let refusals = result.settings["sinks"][0]["refusals"].to_string();
        assert!(refusals.contains("451") && refusals.contains("452"), "{refusals}");
        (result.acknowledged_bytes, refusals, result.settings["seeds"].clone())
    };
    let (first, again, other) = (drawn("7"), drawn("7"), drawn("8"));
    assert_eq!(first, again);
    assert!(first.0 != other.0 && first.1 != other.1 && first.2 != other.2, "{first:?} {other:?}");
}
