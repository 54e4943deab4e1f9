//! Peers that are broken or mean it: a clear reply or a closed connection, and the node goes on.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::next_hop::NextHop;
use crate::node::{Node, PATIENCE, Setup};
use crate::shards::{counter, on_one_core};

/// The node still takes mail and passes it on.
fn is_well(node: &mut Node, hop: &NextHop) {
    assert!(node.is_running(), "{}", node.log());
    let before = hop.messages().len();
    Client::greeted(node.address).deliver("b@y.test", "Subject: well\r\n\r\nwell");
    hop.wait_for(before + 1);
}

#[test]
fn nonsense_gets_an_answer_and_no_more() {
    let hop = NextHop::start();
    let mut node = Node::start(&Setup::to(hop.address));
    let lines: &[&[u8]] = &[
        b"\r\n",
        b"\0\0\0\r\n",
        b"EHLO\r\n",
        b"EHLO \0\r\n",
        b"MAIL FROM:<a@x.test>\r\n",
        b"RCPT TO:<b@y.test>\r\n",
        b"MAIL\r\n",
        b"MAIL FROM:<a\r\n",
        b"NOOP \xff\xfe\xfd\r\n",
        b"X-UNKNOWN\r\n",
        b"HELP me\r\n",
        b"BDAT -1\r\n",
        b"BDAT 99999999999999999999\r\n",
    ];
    for line in lines {
        let mut client = Client::connect(node.address);
        client.send(line);
        let reply = client.reply();
        assert!(reply.is_empty() || reply.as_bytes()[0].is_ascii_digit(), "{line:?}: {reply:?}");
        assert!(!reply.starts_with("354"), "{line:?}: {reply:?}");
    }
    is_well(&mut node, &hop);
}

#[test]
fn a_line_of_a_megabyte_is_refused_and_the_session_goes_on_or_ends() {
    let hop = NextHop::start();
    let mut node = Node::start(&Setup::to(hop.address));
    let mut client = Client::greeted(node.address);
    client.send(&vec![b'A'; 1 << 20]);
    client.send(b"\r\n");
    let reply = client.reply();
    assert!(reply.starts_with("500 5.5.2") || reply.starts_with("421") || reply.is_empty(), "{reply:?}");
    is_well(&mut node, &hop);
}

#[test]
fn other_protocols_are_sent_away() {
    let hop = NextHop::start();
    let mut node = Node::start(&Setup::to(hop.address));
    for words in [
        "GET / HTTP/1.1\r\nHost: x\r\n\r\nMAIL FROM:<a@x.test>\r\n",
        "POST / HTTP/1.1\r\n\r\n",
        "CONNECT x:25 HTTP/1.0\r\n\r\n",
        "\u{16}\u{3}\u{1}\r\n",
    ] {
        let mut client = Client::connect(node.address);
        client.send(words.as_bytes());
        let reply = client.reply();
        assert!(reply.is_empty() || reply.starts_with('5') || reply.starts_with("421"), "{words:?}: {reply:?}");
        assert_eq!(client.reply(), "", "{words:?} must end the session");
    }
    is_well(&mut node, &hop);
}

#[test]
fn input_behind_a_command_that_ends_a_group_ends_the_session() {
    let hop = NextHop::start();
    let mut node = Node::start(&Setup::to(hop.address));
    for words in ["EHLO x\r\nMAIL FROM:<a@x.test>\r\n", "NOOP\r\nNOOP\r\n", "VRFY b\r\nNOOP\r\n"] {
        let mut client = Client::connect(node.address);
        client.send(words.as_bytes());
        let mut replies = String::new();
        loop {
            let reply = client.reply();
            if reply.is_empty() {
                break;
            }
            replies.push_str(&reply);
        }
        assert!(replies.contains("554 5.5.0"), "{words:?}: {replies:?}");
    }
    is_well(&mut node, &hop);
}

#[test]
fn a_pipelined_group_is_answered_in_order() {
    let hop = NextHop::start();
    let node = Node::start(&Setup::to(hop.address));
    let mut client = Client::greeted(node.address);
    client.send(b"RSET\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<nobody@y.test>\r\nRCPT TO:<b@y.test>\r\nRCPT TO:<c@y.test>\r\nDATA\r\n");
    // Loopback is trusted here, so the unknown local part is not refused for relaying but for not existing.
    for expected in ["250 2.0.0", "250 2.1.0", "550 5.1.1", "250 2.1.5", "250 2.1.5", "354"] {
        let reply = client.reply();
        assert!(reply.starts_with(expected), "{reply:?}, not {expected}");
    }
    client.send(b"Subject: x\r\n\r\nx\r\n.\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n");
    for expected in ["250 2.0.0", "250 2.1.0", "250 2.1.5", "354"] {
        let reply = client.reply();
        assert!(reply.starts_with(expected), "{reply:?}, not {expected}");
    }
    client.must("Subject: y\r\n\r\ny\r\n.", "250 2.0.0");
}

#[test]
fn a_peer_that_half_closes_after_the_dot_is_answered() {
    let hop = NextHop::start();
    let node = Node::start(&Setup::to(hop.address));
    let mut client = Client::greeted(node.address);
    client.must("MAIL FROM:<a@x.test>", "250");
    client.must("RCPT TO:<b@y.test>", "250");
    client.must("DATA", "354");
    client.send(b"Subject: x\r\n\r\nx\r\n.\r\n");
    client.half_close();
    let reply = client.reply();
    assert!(reply.starts_with("250 2.0.0"), "{reply:?}");
    hop.wait_for(1);
}

#[test]
fn connections_cut_in_every_state_leave_nothing_behind() {
    let hop = NextHop::start();
    let mut node = Node::start(&Setup::to(hop.address));
    let dialogue: &[&[u8]] = &[
        b"EHLO client.x.test\r\n",
        b"MAIL FROM:<a@x.test>\r\n",
        b"RCPT TO:<b@y.test>\r\n",
        b"DATA\r\n",
        b"Subject: never\r\n\r\nnever\r\n",
    ];
    for reset in [false, true] {
        for steps in 0..=dialogue.len() {
            let mut client = Client::connect(node.address);
            for (at, words) in dialogue[..steps].iter().enumerate() {
                client.send(words);
                if at + 1 < dialogue.len() {
                    client.reply();
                }
            }
            if reset {
                // Unread input makes close(2) send a reset.
                let _may_be_gone = client.stream.write_all(b"NOOP\r\n");
            }
        }
    }
    is_well(&mut node, &hop);
    assert_eq!(hop.messages().len(), 1, "content without its end is no message");
    node.wait_for_queue(<[_]>::is_empty);
}

#[test]
fn content_beyond_the_limit_is_refused_to_its_true_end() {
    let hop = NextHop::start();
    let node = Node::start(&Setup { extra: "[smtp]\ncontent_max = \"64 KiB\"", ..Setup::to(hop.address) });
    let mut client = Client::greeted(node.address);
    client.must("MAIL FROM:<a@x.test> SIZE=70000", "552 5.3.4");
    client.must("MAIL FROM:<a@x.test>", "250");
    client.must("RCPT TO:<b@y.test>", "250");
    client.must("DATA", "354");
    let line = "x".repeat(70) + "\r\n";
    client.send(b"Subject: large\r\n\r\n");
    client.send(line.repeat(2000).as_bytes());
    client.must(".", "552 5.3.4");
    client.deliver("b@y.test", "Subject: small\r\n\r\nsmall");
    assert!(hop.wait_for(1)[0].text().contains("Subject: small"));
}

#[test]
fn a_large_message_passes_unchanged() {
    let hop = NextHop::start();
    let node = Node::start(&Setup::to(hop.address));
    let mut body = String::from("Subject: large\r\n\r\n");
    for number in 0..80_000 {
        body.push_str(&format!("{number} {}\r\n", "0123456789".repeat(number % 12)));
    }
    let mut client = Client::greeted(node.address);
    client.deliver("b@y.test", body.trim_end_matches("\r\n"));
    let messages = hop.wait_for(1);
    assert!(messages[0].wire.ends_with(body.as_bytes()), "{} octets came, {} went", messages[0].wire.len(), body.len());
}

#[test]
fn a_flood_of_half_open_sessions_does_not_stop_mail() {
    let hop = NextHop::start();
    let mut node = Node::start(&Setup::to(hop.address));
    let mut dribblers: Vec<Client> = (0..200)
        .map(|_| {
            let mut client = Client::greeted(node.address);
            client.must("MAIL FROM:<a@x.test>", "250");
            client.must("RCPT TO:<b@y.test>", "250");
            client.must("DATA", "354");
            client
        })
        .collect();
    for turn in 0..3 {
        for client in &mut dribblers {
            client.send(if turn == 0 { b"S" } else { b"x" });
        }
        let began = Instant::now();
        is_well(&mut node, &hop);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
}

/// Connects and speaks while the node stands still, so that the bytes are there before its banner.
#[test]
fn whoever_speaks_before_the_banner_is_sent_away() {
    let hop = NextHop::start();
    let mut node = Node::start(&Setup::to(hop.address));
    node.signal(rustix::process::Signal::STOP);
    let mut early = Client::silent(node.address);
    early.send(b"EHLO early.test\r\n");
    let mut patient = Client::silent(node.address);
    node.signal(rustix::process::Signal::CONT);
    let reply = early.reply();
    assert!(reply.starts_with("554 5.5.0"), "{reply}");
    let banner = patient.reply();
    assert!(banner.starts_with("220 "), "{banner}");
    is_well(&mut node, &hop);
}

#[test]
fn fewer_sessions_than_shards_are_no_more_than_was_said() {
    let hop = NextHop::start();
    let setup = Setup { extra: "[shards]\ncores = \"0\"\nper_core = 4\n[smtp]\nsessions_max = 1\n", ..Setup::to(hop.address) };
    let node = Node::start(&setup);
    // The session that saw the banner at the start may not have ended yet.
    let began = Instant::now();
    let mut only = Client::silent(node.address);
    while !only.reply().starts_with("220 ") {
        assert!(began.elapsed() < Duration::from_secs(30), "nobody is let in");
        only = Client::silent(node.address);
    }
    for _ in 0..10 {
        for _ in 0..10 {
            let refusal = Client::silent(node.address).reply();
            assert!(refusal.starts_with("421 4.7.0 "), "{refusal:?}");
        }
        only.must("QUIT", "221");
        assert_eq!(only.reply(), "", "its place is free when the connection ends");
        // Whichever shard the kernel chooses has room.
        only = Client::connect(node.address);
    }
}

/// Sessions that wait for something else than input, here the delay behind bad commands, kept what had come behind it in the shard's receive buffers: some
/// 170 of them held all, and nobody else was heard, the next hop neither.
#[test]
fn clients_that_wait_for_their_delay_take_no_buffer_from_others() {
    let hop = NextHop::start();
    let mut node = Node::start(&on_one_core(Setup::to(hop.address), 1));
    let mut other = Client::greeted(node.address);
    let nonsense = |lines| b"X-NONSENSE of no use\r\n".repeat(lines);
    let mut clients: Vec<Client> = (0..250).map(|_| Client::greeted(node.address)).collect();
    for client in &mut clients {
        // The eleventh is followed by a delay of a second, and each of those behind it: nine in all.
        client.send(&nonsense(19));
        (0..11).for_each(|_| assert!(client.reply().starts_with("500 5.5.1")));
    }
    clients.iter_mut().for_each(|client| client.send(&nonsense((64 << 10) / 22)));
    let began = Instant::now();
    while counter(&node, "receive_buffers_free") > 0 && counter(&node, "receive_heap_bytes") == 0 {
        assert!(began.elapsed() < PATIENCE, "they take less than a shard has");
    }
    let asked = Instant::now();
    other.must("EHLO client.x.test", "250");
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    other.deliver("b@y.test", "Subject: meanwhile\r\n\r\nmeanwhile");
    hop.wait_for(1);
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    drop(clients);
    is_well(&mut node, &hop);
}

/// Envelopes counted nowhere: sessions with many recipients took as much memory as they liked.
#[test]
fn envelopes_count_and_beyond_the_memory_recipients_are_put_off() {
    let hop = NextHop::start();
    let setup = Setup { extra: "[memory]\nmax_memory = \"64 MiB\"\n", ..Setup::to(hop.address) };
    let mut node = Node::start(&on_one_core(setup, 1));
    let path = |number: usize| format!("{number:0>60}@{}.{}.test", "d".repeat(60), "e".repeat(50));
    let mut group = b"MAIL FROM:<a@x.test>\r\n".to_vec();
    (0..700).for_each(|number| group.extend_from_slice(format!("RCPT TO:<{}>\r\n", path(number)).as_bytes()));
    let mut refused = 0;
    let mut clients = Vec::new();
    // A quarter of the sessions that would take the eighth of the memory that is there, and then more of them than fit.
    for number in 0..90 {
        let mut client = Client::greeted(node.address);
        client.send(&group);
        assert!(client.reply().starts_with("250 2.1.0"));
        for _ in 0..700 {
            let reply = client.reply();
            assert!(reply.starts_with("250 2.1.5") || reply.starts_with("452 4.3.1"), "{reply}");
            refused += usize::from(reply.starts_with("452 4.3.1"));
        }
        assert!(refused == 0 || number > 20, "{number} sessions fill the memory");
        clients.push(client);
    }
    assert!(refused > 0, "no recipient was put off");
    assert!(counter(&node, "staging_bytes") <= 8 << 20);
    for (number, mut client) in clients.into_iter().enumerate() {
        match number % 3 {
            0 => drop(client.must("RSET", "250")),
            1 => drop(client.must("EHLO again.x.test", "250")),
            _ => {}
        }
    }
    let began = Instant::now();
    while counter(&node, "staging_bytes") > 0 {
        assert!(began.elapsed() < PATIENCE, "{} bytes stay taken", counter(&node, "staging_bytes"));
    }
    is_well(&mut node, &hop);
}
