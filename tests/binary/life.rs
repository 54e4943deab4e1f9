//! Start, drain, sudden end and start again.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::client::Client;
use crate::early_answer::large;
use crate::next_hop::NextHop;
use crate::node::{Node, PATIENCE, Setup};
use crate::shards::on_one_core;

#[test]
fn a_message_goes_in_and_comes_out_byte_by_byte() {
    let hop = NextHop::start();
    let node = Node::start(&Setup::to(hop.address));
    let body = "Subject: hello\r\n\r\nfirst\r\n..a dot\r\n.. \r\n\u{fc}ber\r\n\r\nlast";
    let mut client = Client::greeted(node.address);
    client.must("MAIL FROM:<a@x.test> BODY=8BITMIME", "250 2.1.0");
    client.must("RCPT TO:<b@y.test>", "250 2.1.5");
    client.must("RCPT TO:<c@y.test>", "250 2.1.5");
    client.must("DATA", "354");
    client.must(&format!("{body}\r\n."), "250 2.0.0 ");
    client.must("QUIT", "221");
    let messages = hop.wait_for(1);
    let message = &messages[0];
    assert_eq!(message.sender, "a@x.test");
    let mut reached: Vec<&str> = messages.iter().flat_map(|message| message.recipients.iter().map(String::as_str)).collect();
    reached.sort_unstable();
    assert_eq!(reached, ["b@y.test", "c@y.test"]);
    let text = message.text();
    assert!(text.ends_with(&format!("{body}\r\n")), "{text}");
    let received = &text[..text.len() - body.len() - 2];
    assert!(received.starts_with("Received: from client.x.test"), "{received}");
    for part in ["127.0.0.1", "by mx1.example.test", "with ESMTP", " id "] {
        assert!(received.contains(part), "{part:?} is not in {received:?}");
    }
    node.wait_for_queue(<[_]>::is_empty);
}

#[test]
fn an_acknowledged_message_survives_kill_9() {
    let hop = NextHop::start();
    let mut node = Node::start(&Setup::new());
    let id = Client::greeted(node.address).deliver("b@y.test", "Subject: kept\r\n\r\nkept");
    node.kill();
    node.restart();
    let queue = node.wait_for_queue(|queue| !queue.is_empty());
    assert_eq!(queue[0]["id"], id.as_str());
    node.kill();
    // A hold by route lasts while the route says so.
    node.reconfigure(&Setup { address: node.address, ..Setup::to(hop.address) });
    node.restart();
    assert!(hop.wait_for(1)[0].text().ends_with("Subject: kept\r\n\r\nkept\r\n"));
    node.wait_for_queue(<[_]>::is_empty);
}

#[test]
fn what_was_delivered_before_kill_9_is_not_delivered_again() {
    let hop = NextHop::start();
    let mut node = Node::start(&Setup::to(hop.address));
    for number in 0..20 {
        Client::greeted(node.address).deliver("b@y.test", &format!("Subject: {number}\r\n\r\nonce"));
    }
    hop.wait_for(20);
    node.wait_for_queue(<[_]>::is_empty);
    // Outcomes ride on the next batch, at most 5 ms later; the queue is empty and a second later all of them are on disk.
    std::thread::sleep(Duration::from_secs(1));
    node.kill();
    node.restart();
    Client::greeted(node.address).deliver("b@y.test", "Subject: after\r\n\r\nonce");
    let messages = hop.wait_for(21);
    node.wait_for_queue(<[_]>::is_empty);
    assert_eq!(messages.len(), 21);
    assert_eq!(hop.messages().len(), 21);
}

#[test]
fn sigterm_dismisses_idle_sessions_and_finishes_data_in_progress() {
    let hop = NextHop::start();
    let mut node = Node::start(&Setup::to(hop.address));
    let mut idle = Client::greeted(node.address);
    let mut busy = Client::greeted(node.address);
    busy.must("MAIL FROM:<a@x.test>", "250");
    busy.must("RCPT TO:<b@y.test>", "250");
    busy.must("DATA", "354");
    busy.send(b"Subject: in progress\r\n\r\nhalf");
    let began = Instant::now();
    node.signal(Signal::TERM);
    let farewell = idle.reply();
    assert!(farewell.starts_with("421 4."), "{farewell:?}");
    assert_eq!(idle.reply(), "");
    busy.must(" whole\r\n.", "250 2.0.0 ");
    assert!(node.wait().success(), "{}", node.log());
    assert!(began.elapsed() < Duration::from_secs(30));
    node.restart();
    assert!(hop.wait_for(1)[0].text().contains("half whole"));
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut node = Node::start(&Setup::new());
    let mut busy = Client::greeted(node.address);
    let id = Client::greeted(node.address).deliver("b@y.test", "Subject: kept\r\n\r\nkept");
    busy.must("MAIL FROM:<a@x.test>", "250");
    busy.must("RCPT TO:<b@y.test>", "250");
    busy.must("DATA", "354");
    let began = Instant::now();
    node.signal(Signal::TERM);
    while !node.log().contains("drain") && began.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(5));
    }
    node.signal(Signal::TERM);
    node.wait();
    assert!(began.elapsed() < Duration::from_secs(10), "the second signal did not end it: {}", node.log());
    node.restart();
    assert_eq!(node.wait_for_queue(|queue| !queue.is_empty())[0]["id"], id.as_str());
}

/// A node that drains with so many shards, one of which waits for the answer of its next hop about this message.
fn draining(hop: &NextHop, shards: u32) -> (Node, String) {
    hop.hold_content(true);
    let node = Node::start(&on_one_core(Setup::to(hop.address), shards));
    let id = Client::greeted(node.address).deliver("b@y.test", "Subject: x\r\n\r\nx");
    hop.wait_for_contents(1);
    let began = Instant::now();
    node.signal(Signal::TERM);
    while node.log().matches("shard drains").count() < shards as usize {
        assert!(began.elapsed() < PATIENCE, "{}", node.log());
        std::thread::sleep(Duration::from_millis(5));
    }
    (node, id)
}

/// What a next hop had not answered when the time of a drain was over is deferred, and said to be so by us and not by it; and as long as that
/// lasts commands are answered.
#[test]
fn an_attempt_that_a_drain_cuts_off_is_deferred_in_our_words_and_commands_are_answered_meanwhile() {
    let hop = NextHop::start();
    let (mut node, id) = draining(&hop, 1);
    // A store that hung was found out when the 20 s were over, in the mail log.
    let log = node.log();
    let line = log.lines().find(|line| line.contains("shard drains")).unwrap();
    assert!(line.contains(" attempts=1 at=[\"*\"]"), "{line}");
    let why = node.ask(&["queue", "why", &id]);
    let said = String::from_utf8_lossy(&why.stdout).into_owned();
    assert!(why.status.success() && said.starts_with("Is being attempted at \"*\" right now, attempt 1"), "{why:?}");
    for words in [&["stats"][..], &["queue", "ls"], &["queue", "summary"], &["queue", "set-expiry", &id, "2d"]] {
        let output = node.ask(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(node.is_running(), "all that was said while it drained");
    assert!(node.wait().success(), "{}", node.log());
    let log = node.wait_for_mail_log("outcome=deferred");
    let line = log.lines().find(|line| line.contains("outcome=deferred")).unwrap();
    assert!(line.contains(&id) && line.contains("dsn=4.3.0") && line.contains("delivery=unknown"), "{line}");
    assert!(line.contains("reply=\"451 4.3.0 the attempt was given up\""), "{line}");
    assert!(node.ask(&["stats"]).status.code() == Some(69), "nobody answers any more");
    hop.hold_content(false);
    node.restart();
    node.wait_for_mail_log("outcome=delivered");
}

/// A shard that had drained took no request any more and did not say so: while another one still delivered, no command was answered.
#[test]
fn while_one_shard_drains_commands_do_not_wait_for_those_that_have_ended() {
    let hop = NextHop::start();
    let (mut node, id) = draining(&hop, 2);
    let why = node.ask(&["queue", "why", &id]);
    assert!(why.status.success() && String::from_utf8_lossy(&why.stdout).starts_with("Is being attempted at \"*\""), "{why:?}");
    let began = Instant::now();
    // The other one is about to end.
    let listed = loop {
        let listed = node.ask(&["queue", "ls", "--json"]);
        if !listed.status.success() {
            break listed;
        }
        assert!(began.elapsed() < PATIENCE);
    };
    let (said, told) = (String::from_utf8_lossy(&listed.stdout).into_owned(), String::from_utf8_lossy(&listed.stderr).into_owned());
    assert!(said.contains(&id) && told.contains("1 of its 2 shards have ended"), "{said} {told}");
    let held = node.ask(&["queue", "hold", "--all"]);
    assert!(
        !held.status.success() && String::from_utf8_lossy(&held.stderr).contains("some of its shards have ended: nothing was changed"),
        "{held:?}"
    );
    assert!(node.is_running());
    hop.hold_content(false);
    assert!(node.wait().success());
}

/// How often the threads of a process have gone to sleep.
fn sleeps(pid: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let statuses = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("status")).ok());
    let counts = statuses.filter_map(|status| {
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        line.trim().parse::<u64>().ok()
    });
    counts.sum()
}

/// CPU time of a process, in the kernel's ticks of 10 ms (proc(5)).
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// One shard alone looked at the end of what others had of it, which was none and at 0 at once, for ever.
#[test]
fn an_idle_node_takes_no_cpu_time_however_many_shards_it_has() {
    for shards in [1, 2] {
        let hop = NextHop::start();
        let node = Node::start(&on_one_core(Setup::to(hop.address), shards));
        Client::greeted(node.address).deliver("b@y.test", "Subject: x\r\n\r\nx");
        hop.wait_for(1);
        let began = Instant::now();
        loop {
            let before = ticks(node.pid());
            std::thread::sleep(Duration::from_secs(1));
            // What a start has left to do, such as preparing segments, is no idleness.
            if ticks(node.pid()) - before < 20 {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "it is never idle: {}", node.log());
        }
    }
}

/// A shard that slept without a time of its own ended as late as the time of its drain.
#[test]
fn a_node_that_has_long_been_idle_ends_at_once() {
    let mut node = Node::start(&Setup::new());
    let (began, mut since, mut known) = (Instant::now(), Instant::now(), sleeps(node.pid()));
    while since.elapsed() < Duration::from_secs(1) {
        assert!(began.elapsed() < PATIENCE, "it is never idle: {}", node.log());
        std::thread::sleep(Duration::from_millis(20));
        let now = sleeps(node.pid());
        if now != known {
            (since, known) = (Instant::now(), now);
        }
    }
    let asked = Instant::now();
    node.signal(Signal::TERM);
    assert!(node.wait().success(), "{}", node.log());
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}: {}", asked.elapsed(), node.log());
}

#[test]
fn a_next_hop_that_is_down_defers_and_gets_all_when_it_is_back() {
    let hop = NextHop::start();
    let address = hop.address;
    drop(hop);
    let node = Node::start(&Setup::to(address));
    Client::greeted(node.address).deliver("b@y.test", "Subject: later\r\n\r\nlater");
    // Nothing was said about the message: it stays ready, and the next hop is asked again now and then.
    let tried = |message: &serde_json::Value| message["reason"].as_str().is_some_and(|reason| reason.contains("refused"));
    let queue = node.wait_for_queue(|queue| queue.first().is_some_and(tried));
    assert_eq!(queue.len(), 1);
    let hop = NextHop::start_at(address);
    assert!(hop.wait_for(1)[0].text().contains("later"));
    node.wait_for_queue(<[_]>::is_empty);
}

#[test]
fn a_next_hop_that_is_busy_defers_and_the_reply_is_shown() {
    let hop = NextHop::start();
    hop.set_busy(true);
    let node = Node::start(&Setup::to(hop.address));
    Client::greeted(node.address).deliver("b@y.test", "Subject: later\r\n\r\nlater");
    let queue = node.wait_for_queue(|queue| queue.first().is_some_and(|message| message["recipients"][0]["state"] == "deferred"));
    let recipient = &queue[0]["recipients"][0];
    assert!(recipient["last_reply"].as_str().is_some_and(|reply| reply.contains("450 4.2.1 Busy")), "{recipient}");
    assert!(recipient["next_attempt"].is_string() && recipient["attempts"].as_u64() >= Some(1), "{recipient}");
    hop.set_busy(false);
    hop.wait_for(1);
    node.wait_for_queue(<[_]>::is_empty);
}

#[test]
fn the_log_tells_the_life_of_a_message_by_its_id() {
    let hop = NextHop::start();
    let mut node = Node::start(&Setup::to(hop.address));
    let id = Client::greeted(node.address).deliver("b@y.test", "Subject: told\r\n\r\ntold");
    hop.wait_for(1);
    node.wait_for_queue(<[_]>::is_empty);
    node.signal(Signal::TERM);
    assert!(node.wait().success());
    let log = std::fs::read_to_string(node.folder.path().join("mail.log")).unwrap();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(&id)).collect();
    assert!(lines.len() >= 2, "one line per accepted message and per attempt: {log}");
    assert!(lines.iter().any(|line| line.contains("to=<b@y.test>") && line.contains("outcome=delivered")), "{log}");
}

/// With a full disk behind standard error, or its reader gone, the first line that could not be written ended the node: that was to be said on
/// standard error, too, which panics.
#[test]
fn a_log_that_takes_nothing_stops_no_mail() {
    let hop = NextHop::start();
    let mut node = Node::start(&Setup::to(hop.address));
    node.kill();
    node.restart_logging_to(File::options().write(true).open("/dev/full").unwrap());
    assert!(node.ask(&["reload"]).status.success());
    Client::greeted(node.address).deliver("b@y.test", "Subject: unlogged\r\n\r\nx");
    hop.wait_for(1);
    node.signal(Signal::TERM);
    assert!(node.wait().success());
}

/// Waits until Linux probes the window of whoever is connected to this port: it has taken all that it has room for, and more is to be sent.
fn wait_for_closed_window(port: u16) {
    let began = Instant::now();
    let probes = |line: &str| {
        let mut words = line.split_whitespace().skip(2);
        let (to, mut timer) = (words.next().unwrap_or_default(), words.skip(2));
        to.ends_with(&format!(":{port:04X}")) && timer.next().is_some_and(|timer| timer.starts_with("04:"))
    };
    while !std::fs::read_to_string("/proc/net/tcp").unwrap().lines().any(probes) {
        assert!(began.elapsed() < PATIENCE, "the content was taken whole");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The deadline of a send was reckoned when it began: a next hop that stopped reading before the drain did kept it for three seconds beyond its time, and
/// the attempt was recorded nowhere.
#[test]
fn a_drain_ends_in_time_though_a_next_hop_has_stopped_reading_content() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut node = Node::start(&Setup::to(listener.local_addr().unwrap()));
    Client::greeted(node.address).deliver("b@y.test", &large());
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    for reply in ["220 hop.test ESMTP", "250 hop.test", "250 2.1.0 Ok", "250 2.1.5 Ok", "354 Go on"] {
        stream.write_all(format!("{reply}\r\n").as_bytes()).unwrap();
        // Each of its commands, and the first line of the content.
        reader.read_line(&mut String::new()).unwrap();
    }
    wait_for_closed_window(listener.local_addr().unwrap().port());
    let began = Instant::now();
    node.signal(Signal::TERM);
    assert!(node.wait().success(), "{}", node.log());
    assert!(began.elapsed() < Duration::from_secs(22), "{:?}", began.elapsed());
    let log = node.wait_for_mail_log("outcome=deferred");
    assert!(log.contains("reply=\"451 4.3.0 the attempt was given up"), "{log}");
}

/// They came out of a table in no order, all as if they had just come: old mail had to wait behind newer.
#[test]
fn mail_of_an_earlier_run_goes_in_the_order_in_which_it_came() {
    let hop = NextHop::start();
    let mut node = Node::start(&Setup { retries: "[delivery]\nconnections_max = 1\nwindow_initial = 1\n", ..Setup::to(hop.address) });
    assert!(node.ask(&["queue", "pause", "--all"]).status.success());
    let mut client = Client::greeted(node.address);
    let subjects: Vec<String> = (0..50).map(|number| format!("Subject: {number}\r\n")).collect();
    subjects.iter().for_each(|subject| drop(client.deliver("b@y.test", &format!("{subject}\r\nx"))));
    node.kill();
    node.restart();
    node.wait_for_queue(|queue| queue.len() == subjects.len());
    assert!(node.ask(&["queue", "resume", "--all"]).status.success());
    let messages = hop.wait_for(subjects.len());
    for (message, subject) in messages.iter().zip(&subjects) {
        assert!(message.text().contains(subject.as_str()), "{subject} is at another place");
    }
}
