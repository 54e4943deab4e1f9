//! Next hops that read slowly, over sockets that hold little: what is sent has its time block by block, and what is answered counts though more is
//! on its way.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use crate::client::Client;
use crate::node::{Node, Setup};
use crate::reports::send;

/// In Python, since a small segment has to be asked for before the connection is there: with large ones a loopback socket holds megabytes.
/// `slow` reads 32 KiB of content a second; `late` answers content and reads on half a second later.
const HOP: &str = r#"
import socket, sys, threading, time
listener = socket.socket()
# With these the sockets of both sides hold 140 and 50 KB.
segment, buffer = (536, 4096) if sys.argv[1] == "slow" else (1400, 1)
listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
listener.bind(("127.0.0.1", 0))
listener.listen()
print(listener.getsockname()[1], flush=True)

def serve(stream):
    rest = b""
    def read():
        nonlocal rest
        piece = stream.recv(512)
        if not piece:
            raise EOFError
        rest += piece
    def take(end):
        nonlocal rest
        while end not in rest:
            read()
            if end != b"\r\n" and sys.argv[1] == "slow":
                time.sleep(len(rest[-512:]) / 32768)
        line, rest = rest.split(end, 1)
        return line
    try:
        stream.sendall(b"220 hop.test ESMTP\r\n")
        while True:
            line = take(b"\r\n").upper()
            if line.startswith(b"EHLO"):
                stream.sendall(b"250-hop.test\r\n250-PIPELINING\r\n250-DSN\r\n250 SIZE 100000000\r\n")
            elif line.startswith(b"DATA"):
                stream.sendall(b"354 Go on\r\n")
                take(b"\r\n.\r\n")
                stream.sendall(b"250 2.0.0 Taken\r\n")
                if sys.argv[1] == "late":
                    time.sleep(0.5)
            else:
                stream.sendall(b"250 2.0.0 Ok\r\n")
    except (EOFError, OSError):
        stream.close()

while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"#;

struct SlowHop {
    python: Child,
    address: SocketAddr,
}

impl SlowHop {
    fn start(manner: &str) -> Self {
        let mut python =
            Command::new("python3").args(["-c", HOP, manner]).stdout(Stdio::piped()).spawn().expect("these tests need python3");
        let mut port = String::new();
        BufReader::new(python.stdout.take().unwrap()).read_line(&mut port).unwrap();
        SlowHop { python, address: SocketAddr::from(([127, 0, 0, 1], port.trim().parse().unwrap())) }
    }
}

impl Drop for SlowHop {
    fn drop(&mut self) {
        let _gone = self.python.kill();
        let _reaped = self.python.wait();
    }
}

/// The time of a block was that of a whole piece of content, up to 144 KiB, and what went on meanwhile did not count: a message over a slow line
/// was tried until its time was over.
#[test]
fn a_message_that_goes_on_block_by_block_is_delivered() {
    let hop = SlowHop::start("slow");
    let retries = "[queue]\nretry_base = \"1h\"\nretry_cap = \"1h\"\n[delivery]\nblock_timeout = \"2s\"\n";
    let node = Node::start(&Setup { retries, ..Setup::to(hop.address) });
    let line = "0123456789012345678901234567890123456789012345678901234567890123456789\r\n";
    Client::greeted(node.address).deliver("b@y.test", &format!("Subject: large\r\n\r\n{}", line.repeat((300 << 10) / line.len())));
    let log = node.wait_for_mail_log("to=<b@y.test>");
    assert!(log.contains("outcome=delivered") && !log.contains("outcome=deferred"), "{log}");
}

/// The end of content was in one send with the commands of the message behind it. Where the socket had no room for those, the content was answered
/// before the send had ended, the answer was none to it, and the message was sent again.
#[test]
fn an_answer_counts_though_the_commands_behind_its_content_are_not_all_sent() {
    let hop = SlowHop::start("late");
    let retries = "[queue]\nretry_base = \"1h\"\nretry_cap = \"1h\"\n[delivery]\nconnections_max = 1\nwindow_initial = 1\n";
    let node = Node::start(&Setup { retries, extra: "[shards]\nper_core = 1\ncores = \"0\"\n", ..Setup::to(hop.address) });
    assert!(node.ask(&["queue", "pause", "--all"]).status.success());
    let mut client = Client::greeted(node.address);
    // Nothing is chained before a first content was answered.
    for path in ["<first@z.test>", "<second@z.test>"] {
        send(&mut client, "MAIL FROM:<a@x.test>", &[path], "Subject: x\r\n\r\nx");
    }
    // As many as there are in one transaction, with commands as long as they can be.
    let (label, original) = ("l".repeat(55), "o".repeat(480));
    let rcpt = |number: u16| format!("<{number}@{label}.{label}.{label}.{label}.z.test> NOTIFY=FAILURE ORCPT=rfc822;{original}");
    let many: Vec<String> = (0..100).map(rcpt).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    send(&mut client, "MAIL FROM:<a@x.test>", &many, "Subject: x\r\n\r\nx");
    node.wait_for_queue(|queue| queue.len() == 3);
    assert!(node.ask(&["queue", "resume", "--all"]).status.success());
    let log = node.wait_for_mail_log("to=<second@z.test>");
    assert!(log.matches("outcome=delivered").count() >= 2 && !log.contains("outcome=deferred"), "{log}");
    assert_eq!(crate::shards::counter(&node, "chained"), 1);
}
