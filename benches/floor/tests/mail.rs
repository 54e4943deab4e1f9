//! Real mail through the floor: what is acknowledged arrives whole.

use std::io::{self, BufRead, BufReader, PipeWriter, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ringpost_floor::server::{Counts, Options, Server};
use ringpost_loadtest::sink::Sink;
use ringpost_loadtest::source::SourceOptions;
use ringpost_tools::disk::Disk;
use ringpost_tools::flushes::flushed_before_250;
use ringpost_tools::machine::free_port;
use ringpost_tools::traffic::{Sent, next_hop, texts};
use ringpost_tools::volume::{Volume, fresh_ext4, must_be_possible};

/// A floor in a thread.
struct Floor {
    address: SocketAddr,
    /// Its end ends the floor.
    end: PipeWriter,
    thread: JoinHandle<Counts>,
}

impl Floor {
    fn start(options: Options) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (ended, end) = std::io::pipe().unwrap();
        let thread = thread::spawn(move || Server::new(&options).unwrap().run(&listener, ended, io::sink()).unwrap());
        Self { address, end, thread }
    }

    fn end(self) -> Counts {
        drop(self.end);
        self.thread.join().unwrap()
    }
}

/// Sends 500 messages of mixed sizes through a floor, and gives what it and the next hop counted.
fn through(folder: &Path, relayed: bool, chained: bool, pipelining: bool, per_connection: Option<u32>) -> (Counts, u64, u64) {
    let sink = Sink::start(next_hop(None).unwrap()).unwrap();
    let relay = relayed.then_some(sink.address);
    let floor = Floor::start(Options { log: folder.join("log"), log_bytes: 8 << 20, relay, connections: 3, chained });
    let load = texts(floor.address, "300..70000").unwrap();
    let sent = Sent::run(SourceOptions { sessions: 20, messages: Some(500), pipelining, per_connection, ..load }).unwrap();
    assert_eq!((sent.acknowledged, sent.refused, sent.unknown), (500, 0, 0), "{}", sent.last_trouble);
    let began = Instant::now();
    while relayed && sink.messages() < sent.acknowledged {
        assert!(began.elapsed() < Duration::from_secs(20), "{} of {}", sink.messages(), sent.acknowledged);
        thread::yield_now();
    }
    let counts = floor.end();
    sink.stop();
    let (arrived, _) = sink.join().unwrap();
    assert_eq!((arrived.damaged_all(), arrived.foreign), (0, 0));
    assert_eq!(counts.accepted, sent.acknowledged);
    (counts, sent.acknowledged, arrived.messages)
}

#[test]
fn every_message_is_accepted() {
    for (pipeline, per_connection) in [(true, None), (false, None), (false, Some(1))] {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let (counts, sent, _) = through(folder.path(), false, true, pipeline, per_connection);
        assert!(counts.batches > 0 && counts.batches <= sent);
    }
}

/// What happened: the floor told its counts at its end only, so that those of one load could not be told from those of the next.
#[test]
fn asked_by_a_line_it_tells_what_it_did_so_far_and_goes_on() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let address = free_port().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-floor"));
    command.args(["--listen", &address.to_string(), "--log-mib", "4", "--log"]).arg(folder.path().join("log"));
    let mut floor = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, mut said) = (floor.stdin.take().unwrap(), BufReader::new(floor.stdout.take().unwrap()).lines());
    let began = Instant::now();
    while TcpStream::connect(address).is_err() {
        assert!(began.elapsed() < Duration::from_secs(20) && floor.try_wait().unwrap().is_none());
        thread::yield_now();
    }
    let send = |messages| Sent::run(SourceOptions { messages: Some(messages), ..texts(address, "300").unwrap() }).unwrap().acknowledged;
    assert_eq!(send(20), 20);
    input.write_all(b"\n").unwrap();
    // One session: a flush for each message.
    assert!(said.next().unwrap().unwrap().starts_with(r#"{"accepted":20,"delivered":0,"batches":20,"#));
    assert_eq!(send(30), 30);
    input.write_all(b"\n").unwrap();
    assert!(said.next().unwrap().unwrap().starts_with(r#"{"accepted":50,"delivered":0,"batches":50,"#));
    drop(input);
    assert!(said.next().unwrap().unwrap().starts_with(r#"{"accepted":50,"delivered":0,"batches":50,"#));
    assert!(said.next().is_none() && floor.wait().unwrap().success());
}

/// What happened: that each 250 of the floor follows its flush was taken from the floor's own counters, which stay as they are when nothing is
/// flushed. Here the disk says it.
#[test]
fn every_250_follows_a_flush_of_the_disk_behind_the_messages_last_write() {
    if let Err(error) = must_be_possible() {
        eprintln!("every_250_follows_a_flush_of_the_disk_behind_the_messages_last_write could not run: {error}");
        return;
    }
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let disk = Disk::mount(fresh_ext4(32, folder.path()).unwrap(), &folder.path().join("disk"), Duration::ZERO).unwrap();
    let volume = Volume::mount(&disk.file(), &folder.path().join("fs")).unwrap();
    let floor = Floor::start(Options { log: folder.path().join("fs/log"), log_bytes: 4 << 20, relay: None, connections: 0, chained: true });
    assert_eq!(flushed_before_250(floor.address, &disk.control(), 30, Duration::ZERO).unwrap(), 30);
    assert_eq!(floor.end().accepted, 30);
    volume.unmount().unwrap();
}

#[test]
fn every_message_reaches_the_next_hop_undamaged() {
    for chained in [true, false] {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let (_, sent, arrived) = through(folder.path(), true, chained, true, None);
        assert_eq!(arrived, sent);
    }
}
