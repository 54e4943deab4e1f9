//! Each option of the connection pool, at a next hop that counts.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::next_hop::{NextHop, content};
use crate::node::{Node, PATIENCE, Setup};
use crate::shards::{counter, on_one_core};

/// One shard whose connections to `hop` are kept as these lines say, and not tested unless they say so.
fn node(hop: &NextHop, keys: &[&str]) -> Node {
    let mut lines = vec!["dead_destination = \"1s\""];
    lines.extend(keys);
    for (key, off) in [("test_on_borrow", "test_on_borrow = false"), ("test_while_idle", "test_while_idle = false")] {
        if !lines.iter().any(|line| line.starts_with(key)) {
            lines.push(off);
        }
    }
    let retries = format!("[queue]\nretry_base = \"1s\"\nretry_cap = \"2s\"\n[delivery]\n{}\n", lines.join("\n"));
    Node::start(&on_one_core(Setup { retries: retries.leak(), ..Setup::to(hop.address) }, 1))
}

fn send(node: &Node, count: usize) {
    let mut client = Client::greeted(node.address);
    for _ in 0..count {
        client.deliver("b@y.test", "Subject: x\r\n\r\nx");
    }
}

fn wait(what: &str, node: &Node, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "{what} does not come: {}", String::from_utf8_lossy(&node.ask(&["stats"]).stdout));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn min_idle_connections_are_made_stay_beyond_the_idle_timeout_and_are_replaced_at_the_end_of_their_life() {
    let hop = NextHop::start();
    let kept = ["min_idle = 3", "idle_timeout = \"1s\"", "test_while_idle = true", "test_interval = \"1s\""];
    let node = self::node(&hop, &kept);
    send(&node, 1);
    // Three tests of each: three seconds of idleness.
    wait("the third test", &node, || hop.tests() >= 9);
    assert_eq!((hop.connections_open(), hop.connections_made()), (3, 3));
    assert_eq!((counter(&node, "pool_idle"), counter(&node, "pool_idle_timeouts")), (3, 0));
    drop(node);
    // The same without: the one that was made ends by its time.
    let hop = NextHop::start();
    let node = self::node(&hop, &kept[1..]);
    send(&node, 1);
    wait("an end by idleness", &node, || counter(&node, "pool_idle_timeouts") == 1 && hop.connections_open() == 0);
    assert_eq!(hop.connections_made(), 1);
    drop(node);
    let hop = NextHop::start();
    let node = self::node(&hop, &["min_idle = 2", "idle_timeout = \"1h\"", "max_lifetime = \"1s\""]);
    send(&node, 1);
    wait("the third generation", &node, || hop.connections_made() >= 6);
    assert!(counter(&node, "pool_lifetime_expired") >= 4);
    wait("two idle ones", &node, || hop.connections_open() == 2);
}

#[test]
fn max_active_bounds_connections_below_connections_max() {
    for (keys, expected) in [(&["max_active = 2"][..], 2), (&[][..], 5)] {
        let hop = NextHop::start();
        hop.hold_content(true);
        let node = self::node(&hop, keys);
        send(&node, 20);
        wait("a full window", &node, || {
            let queue = node.queue();
            let ready = queue.iter().filter(|message| message["recipients"][0]["state"] == "ready").count();
            hop.connections_open() == expected && queue.len() == 20 && ready >= 20 - 2 * expected
        });
        // What is ready may be chained behind an open attempt between the two questions: then another one is asked for.
        let full = format!("{expected} of {expected} attempts at a time are open");
        wait("a message that says what it waits for", &node, || {
            let queue = node.queue();
            let ready = queue.iter().find(|one| one["recipients"][0]["state"] == "ready");
            ready.is_some_and(|one| {
                String::from_utf8_lossy(&node.ask(&["queue", "why", one["id"].as_str().unwrap()]).stdout).contains(&full)
            })
        });
        assert_eq!(counter(&node, "pool_active"), expected as u64);
        hop.hold_content(false);
        hop.wait_for(20);
        node.wait_for_queue(<[_]>::is_empty);
        // With success the window grows, up to the limit.
        assert!(hop.connections_most() == 2 || expected > 2, "{}", hop.connections_most());
    }
}

#[test]
fn more_idle_connections_than_max_idle_are_closed() {
    for (keys, expected) in [(&["max_idle = 1", "idle_timeout = \"1h\""][..], 1), (&["idle_timeout = \"1h\""][..], 5)] {
        let hop = NextHop::start();
        hop.hold_content(true);
        let node = self::node(&hop, keys);
        send(&node, 5);
        wait("five connections", &node, || hop.connections_open() == 5);
        hop.hold_content(false);
        hop.wait_for(5);
        wait("the others' end", &node, || hop.connections_open() == expected && counter(&node, "pool_idle") == expected as u64);
    }
}

#[test]
fn a_connection_ends_by_idleness_or_age() {
    for (keys, counted, least) in [
        (&["idle_timeout = \"1s\""][..], "pool_idle_timeouts", 1),
        (&["idle_timeout = \"1h\"", "max_lifetime = \"2s\""][..], "pool_lifetime_expired", 2),
    ] {
        let hop = NextHop::start();
        let node = self::node(&hop, keys);
        let began = Instant::now();
        send(&node, 1);
        hop.wait_for(1);
        wait("its end", &node, || hop.connections_open() == 0);
        assert!(began.elapsed() >= Duration::from_secs(least), "{counted}: {:?}", began.elapsed());
        wait("its count", &node, || counter(&node, counted) == 1);
        send(&node, 1);
        hop.wait_for(2);
        assert_eq!(hop.connections_made(), 2);
    }
}

#[test]
fn an_attempt_waits_for_a_connection_no_longer_than_wait_timeout_and_goes_when_one_is_free() {
    let hop = NextHop::start();
    hop.hold_quit(true);
    let node = self::node(&hop, &["connections_max = 1", "messages_per_connection = 1", "wait_timeout = \"1s\"", "quit_timeout = \"60s\""]);
    send(&node, 1);
    hop.wait_for(1);
    // The connection is not gone yet, so there is no room for a second one.
    let began = Instant::now();
    send(&node, 1);
    wait("the end of its wait", &node, || counter(&node, "pool_acquire_failed") > 0);
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!((node.queue().len(), hop.messages().len(), hop.connections_made()), (1, 1, 1));
    hop.hold_quit(false);
    hop.wait_for(2);
    assert_eq!(hop.connections_most(), 1);
    assert!(counter(&node, "pool_wait_count") > 0);
}

/// Mail that is chained behind the one before went past an attempt that waited in the pool: while a QUIT was not answered, one message was
/// passed by all that came after it.
#[test]
fn what_waits_for_a_connection_is_not_passed_by_all_that_comes_later() {
    let hop = NextHop::start();
    let node = self::node(&hop, &["max_active = 2", "max_idle = 1", "idle_timeout = \"1h\"", "quit_timeout = \"60s\""]);
    // One of two connections says goodbye and is not answered; the other is idle.
    hop.hold_content(true);
    hop.hold_quit(true);
    send(&node, 2);
    wait("two connections", &node, || hop.connections_open() == 2);
    hop.hold_content(false);
    hop.wait_for(2);
    wait("an idle one", &node, || counter(&node, "pool_idle") == 1);
    hop.hold_content(true);
    let mut client = Client::greeted(node.address);
    for number in 0..60 {
        client.deliver("b@y.test", &format!("Subject: x\r\n\r\n{number:03}"));
    }
    hop.hold_content(false);
    let messages = hop.wait_for(62);
    hop.hold_quit(false);
    let order: Vec<usize> = messages[2..].iter().map(|message| message.body().trim().parse().unwrap()).collect();
    let passed = |(at, number): (usize, &usize)| order[..at].iter().filter(|other| *other > number).count();
    let most = order.iter().enumerate().map(passed).max();
    assert!(most <= Some(5), "{order:?}");
}

/// All connections that there may be served one destination for as long as it had mail.
#[test]
fn other_destinations_have_their_turn_while_one_has_mail_for_all_connections() {
    let (busy, other) = (NextHop::start(), NextHop::start());
    // 64 a second, so that a busy machine has not emptied the queue before the other destination's mail comes.
    busy.take_time(Duration::from_secs(1));
    let extra = format!("[[route]]\ndomain = \"y.test\"\nvia = \"smarthost\"\nhosts = [\"{}\"]\n", other.address);
    let setup = Setup {
        retries: "[delivery]\nconnections_max = 100\nwindow_initial = 100\n",
        extra: extra.leak(),
        // Of which 64 are for outbound connections.
        open_files: Some(1280),
        ..Setup::to(busy.address)
    };
    let node = Node::start(&on_one_core(setup, 1));
    let count = 2000;
    // A session may bring a thousand.
    for _ in 0..4 {
        let mut client = Client::greeted(node.address);
        for _ in 0..count / 4 {
            client.deliver("b@busy.test", "Subject: x\r\n\r\nx");
        }
    }
    wait("all connections", &node, || counter(&node, "pool_total") == 64);
    send(&node, 1);
    other.wait_for(1);
    let served = busy.messages().len();
    assert!(served < count * 3 / 4, "{served} of {count} went first");
    assert!(counter(&node, "pool_gave_way") > 0);
    busy.take_time(Duration::ZERO);
    node.wait_for_queue(<[_]>::is_empty);
}

#[test]
fn connections_are_tested_before_use_or_after_it_as_they_are_told() {
    let hop = NextHop::start();
    let node = self::node(&hop, &["idle_timeout = \"1h\"", "test_on_borrow = true", "probe_after = \"0s\""]);
    send(&node, 1);
    hop.wait_for(1);
    wait("idleness", &node, || counter(&node, "pool_idle") == 1);
    assert_eq!(hop.tests(), 0, "it is new");
    send(&node, 1);
    hop.wait_for(2);
    assert_eq!((hop.tests(), hop.connections_made()), (1, 1));
    drop(node);

    let hop = NextHop::start();
    let node = self::node(&hop, &["idle_timeout = \"1h\"", "test_on_return = true"]);
    send(&node, 1);
    wait("a test without further mail", &node, || hop.tests() == 1 && counter(&node, "pool_idle") == 1);
    send(&node, 1);
    wait("a test of the same connection", &node, || hop.tests() == 2 && counter(&node, "pool_idle") == 1);
    assert_eq!((hop.messages().len(), hop.connections_made()), (2, 1));
    drop(node);

    let hop = NextHop::start();
    let node = self::node(&hop, &["idle_timeout = \"2s\""]);
    for count in 1..=2 {
        send(&node, 1);
        hop.wait_for(count);
        wait("idleness", &node, || counter(&node, "pool_idle") == 1);
    }
    wait("its end", &node, || hop.connections_open() == 0);
    assert_eq!((hop.tests(), hop.connections_made()), (0, 1), "nobody asked for a test");
}

/// Greets, and goes at MAIL without a word.
pub(crate) fn close_at_mail(stream: TcpStream) -> std::io::Result<()> {
    let (mut writer, reader) = (stream.try_clone()?, BufReader::new(stream));
    writer.write_all(b"220 hop.test ESMTP\r\n")?;
    for line in reader.lines() {
        if line?.starts_with("MAIL") {
            return Ok(());
        }
        writer.write_all(b"250 hop.test\r\n")?;
    }
    Ok(())
}

/// The first connection has all it wants; each further one is ended as soon as it has said EHLO.
fn keep_the_first(stream: TcpStream, is_first: bool, tests: &AtomicUsize) -> std::io::Result<()> {
    let (mut writer, mut reader) = (stream.try_clone()?, BufReader::new(stream));
    writer.write_all(b"220 hop.test ESMTP\r\n")?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        let reply = match &line[..4] {
            "DATA" => {
                writer.write_all(b"354 go on\r\n")?;
                content(&mut reader)?;
                "250 2.0.0 ok\r\n"
            }
            "RSET" => {
                tests.fetch_add(1, Ordering::SeqCst);
                "250 2.0.0 ok\r\n"
            }
            _ => "250 hop.test\r\n",
        };
        writer.write_all(reply.as_bytes())?;
        if !is_first {
            return Ok(());
        }
        line.clear();
    }
    Ok(())
}

/// A host that ends connections without mail was called again at once, some thousand times a second, for five minutes after each message.
#[test]
fn a_host_that_keeps_no_idle_connections_is_not_called_again_and_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, made, tests) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, tested) = (made.clone(), tests.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (is_first, tested) = (counted.fetch_add(1, Ordering::SeqCst) == 0, tested.clone());
            // A connection that breaks is the business of the test, not of its next hop.
            std::thread::spawn(move || stream.and_then(|stream| keep_the_first(stream, is_first, &tested)));
        }
    });
    let retries = "[delivery]\nmin_idle = 4\ntest_while_idle = true\ntest_interval = \"1s\"\n";
    let node = Node::start(&on_one_core(Setup { retries, ..Setup::to(address) }, 1));
    send(&node, 1);
    wait("the third test", &node, || tests.load(Ordering::SeqCst) >= 3);
    // One that has the mail, a few that were made together, and one or two later.
    assert!((2..10).contains(&made.load(Ordering::SeqCst)), "{} connections", made.load(Ordering::SeqCst));
    assert_eq!(counter(&node, "breakers_opened"), 0, "the host is well");
}

/// A usual way to keep a sender out. It said nothing about the host nor about the message, so that each message made three connections
/// in a row, and all of them again at each retry.
#[test]
fn a_host_that_greets_and_closes_at_mail_is_left_alone() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, made) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = made.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            counted.fetch_add(1, Ordering::SeqCst);
            // A connection that breaks is the business of the test, not of its next hop.
            std::thread::spawn(move || stream.and_then(close_at_mail));
        }
    });
    let node = Node::start(&on_one_core(Setup { retries: "[delivery]\ndead_destination = \"1m\"\n", ..Setup::to(address) }, 1));
    send(&node, 40);
    wait("an open breaker", &node, || counter(&node, "breakers_opened") > 0);
    // As many as it takes to see a share, and those that were open then.
    assert!(made.load(Ordering::SeqCst) < 40, "{} connections", made.load(Ordering::SeqCst));
}

/// A reload that shortened `idle_timeout`, or wanted no idle connections any more, reached those that came later alone.
#[test]
fn a_reload_of_the_pool_is_for_connections_that_are_idle_already() {
    for (before, after) in [
        (["min_idle = 2", "idle_timeout = \"1s\""], ["min_idle = 0", "idle_timeout = \"1s\""]),
        (["min_idle = 0", "idle_timeout = \"200s\""], ["min_idle = 0", "idle_timeout = \"1s\""]),
        (["min_idle = 0", "max_lifetime = \"200s\""], ["min_idle = 0", "max_lifetime = \"1s\""]),
    ] {
        let hop = NextHop::start();
        let node = self::node(&hop, &before);
        send(&node, 1);
        wait("an idle connection", &node, || counter(&node, "pool_idle") > 0);
        let text = std::fs::read_to_string(&node.config).unwrap();
        let (min_idle, other) = (text.replace(before[0], after[0]), before[1]);
        std::fs::write(&node.config, min_idle.replace(other, after[1])).unwrap();
        let reloaded = node.ask(&["reload"]);
        assert!(reloaded.status.success(), "{reloaded:?}");
        wait("its end", &node, || hop.connections_open() == 0);
    }
}
