//! Next hops by name and by weight, with a name server that a test changes.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::name_server::NameServer;
use crate::next_hop::NextHop;
use crate::node::{Node, PATIENCE, Setup, free_port};
use crate::pools::close_at_mail;
use crate::shards::{counter, two_shards};

/// Mail goes to these hosts; each message over a connection of its own, so that connections are counted by messages.
fn setup(names: &NameServer, hosts: &str) -> Setup {
    let extra = format!("[dns]\nservers = [\"{}\"]\n", names.address).leak();
    let route = format!("via = \"smarthost\"\nhosts = {hosts}\nmessages_per_connection = 1");
    Setup { route, extra, ..Setup::new() }
}

fn at(host: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, host], port))
}

#[test]
fn named_hosts_share_the_connections_by_weight_and_the_living_take_over() {
    const MESSAGES: usize = 300;
    let names = NameServer::start();
    names.set("one.smart.test", &[[127, 0, 0, 2]], 300);
    names.set("two.smart.test", &[[127, 0, 0, 3]], 300);
    let port = free_port();
    let (one, two, backup) = (NextHop::start_at(at(2, port)), NextHop::start_at(at(3, port)), NextHop::start_at(at(4, port)));
    let hosts = format!(
        "[{{ host = \"one.smart.test:{port}\", weight = 3 }}, {{ host = \"Two.Smart.Test:{port}\", weight = 1 }}, \
         {{ host = \"127.0.0.4:{port}\", backup = true }}]"
    );
    let node = Node::start(&setup(&names, &hosts));
    let mut client = Client::greeted(node.address);
    (0..MESSAGES).for_each(|_| drop(client.deliver("b@y.test", "Subject: x\r\n\r\nx")));
    node.wait_for_queue(<[_]>::is_empty);
    let counts = [one.messages().len(), two.messages().len(), backup.messages().len()];
    assert_eq!((counts.iter().sum::<usize>(), counts[2]), (MESSAGES, 0), "{counts:?}");
    // 225 of 300, and four standard deviations of a draw; half of them would be 150.
    assert!((195..=255).contains(&counts[0]), "{counts:?}");
    assert_eq!((names.asked("one.smart.test"), names.asked("two.smart.test")), (1, 1), "asked once while the answer holds");
    let log = node.wait_for_mail_log("relay=two.smart.test[127.0.0.3]");
    assert!(log.contains("relay=one.smart.test[127.0.0.2]"), "{log}");

    drop(one);
    (0..20).for_each(|_| drop(client.deliver("b@y.test", "Subject: x\r\n\r\nx")));
    node.wait_for_queue(<[_]>::is_empty);
    assert_eq!((two.messages().len(), backup.messages().len()), (counts[1] + 20, 0), "the other of the same rank");
    drop(two);
    client.deliver("b@y.test", "Subject: x\r\n\r\nx");
    backup.wait_for(1);
}

#[test]
fn a_name_without_address_defers_and_new_addresses_are_followed() {
    let names = NameServer::start();
    let port = free_port();
    let (old, new) = (NextHop::start_at(at(2, port)), NextHop::start_at(at(3, port)));
    let node = Node::start(&setup(&names, &format!("[\"smart.test:{port}\"]")));
    let mut client = Client::greeted(node.address);
    let id = client.deliver("b@y.test", "Subject: x\r\n\r\nx");
    let queue = node.wait_for_queue(|queue| queue.first().is_some_and(|message| message["reason"] != "waits for DNS of smart.test"));
    assert_eq!((&queue[0]["id"], &queue[0]["reason"]), (&id.as_str().into(), &"address of smart.test: there is none".into()));
    let log = node.wait_for_mail_log("outcome=");
    assert!(log.contains("relay=none") && log.contains("dsn=4.4.3 outcome=deferred") && !log.contains("outcome=bounced"), "{log}");

    // The name is there, for a second.
    names.set("smart.test", &[[127, 0, 0, 2]], 1);
    let began = Instant::now();
    while old.messages().is_empty() {
        // A "no" is remembered for its own time: asked too early, the command changes nothing.
        assert!(node.ask(&["queue", "retry", "--all"]).status.success());
        assert!(began.elapsed() < PATIENCE, "{:?}", node.queue());
    }
    node.wait_for_queue(<[_]>::is_empty);
    // The host moves. Mail is taken at the old address as long as that holds, then at the new one, and never twice.
    names.set("smart.test", &[[127, 0, 0, 3]], 1);
    let (began, mut sent) = (Instant::now(), 1);
    while new.messages().is_empty() {
        client.deliver("b@y.test", "Subject: x\r\n\r\nx");
        sent += 1;
        node.wait_for_queue(<[_]>::is_empty);
        assert!(began.elapsed() < PATIENCE, "{} messages at the old address", old.messages().len());
    }
    let at_old = old.messages().len();
    assert_eq!(at_old + new.messages().len(), sent);
    // DNS has nothing any more: the last addresses are used.
    let asked = names.asked("smart.test");
    names.set("smart.test", &[], 1);
    let began = Instant::now();
    let mut after = 0;
    while after < 3 {
        after += usize::from(names.asked("smart.test") > asked);
        client.deliver("b@y.test", "Subject: x\r\n\r\nx");
        sent += 1;
        node.wait_for_queue(<[_]>::is_empty);
        assert!(began.elapsed() < PATIENCE, "nobody asked again");
    }
    assert_eq!((old.messages().len(), new.messages().len()), (at_old, sent - at_old));
}

/// Connections to a host that was taken out stayed: an idle one took the next message there, a busy one all that waited.
#[test]
fn a_host_that_was_removed_gets_no_further_message() {
    let (old, new) = (NextHop::start(), NextHop::start());
    let to = |hop: &NextHop| {
        let route = format!("via = \"smarthost\"\nhosts = [\"{}\"]\nconnections_max = 1", hop.address);
        Setup { route, retries: "[delivery]\nidle_timeout = \"1h\"\n", ..Setup::new() }
    };
    let first = to(&old);
    let address = first.address;
    let node = Node::start(&first);
    let lead_to = |hop| {
        node.reconfigure(&Setup { address, ..to(hop) });
        assert!(node.ask(&["reload"]).status.success(), "{}", node.log());
    };
    let mut client = Client::greeted(address);
    let mut send = || drop(client.deliver("b@y.test", "Subject: x\r\n\r\nx"));
    send();
    old.wait_for(1);
    node.wait_for_queue(<[_]>::is_empty);
    lead_to(&new);
    send();
    node.wait_for_queue(<[_]>::is_empty);
    assert_eq!((old.messages().len(), new.messages().len()), (1, 1), "from an idle connection");
    // One is being sent, one may be chained behind it, and others wait for the only connection.
    new.hold_content(true);
    (0..6).for_each(|_| send());
    node.wait_for_queue(|queue| queue.iter().any(|message| message["recipients"][0]["state"] == "active"));
    lead_to(&old);
    new.hold_content(false);
    node.wait_for_queue(<[_]>::is_empty);
    let counts = (old.messages().len(), new.messages().len());
    assert!(counts.0 + counts.1 == 8 && counts.1 <= 3, "from a busy connection: {counts:?}");
}

#[test]
fn wrong_hosts_are_named_with_what_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let many: Vec<String> = (1..=33).map(|number| format!("\"h{number}.test\"")).collect();
    let cases = [
        ("[]".to_owned(), "names no host"),
        ("[\"a_b!.test\"]".to_owned(), "is neither an address nor a host name"),
        ("[{ host = \"a.test\", weight = 0 }]".to_owned(), "a weight is 1 to 1000"),
        ("[{ host = \"a.test\", weight = -3 }]".to_owned(), "a weight is 1 to 1000"),
        ("[{ host = \"a.test\", weight = \"3\" }]".to_owned(), "is a string, not a whole number"),
        ("[{ host = \"a.test\", weight = 3 }, \"b.test:587\"]".to_owned(), "gives b.test:587 no weight, but others have one"),
        ("[{ weight = 3 }]".to_owned(), "route[1].hosts[1].host"),
        ("[{ host = \"a.test\", wieght = 3 }]".to_owned(), "did you mean weight?"),
        ("[{ host = \"a.test\", backup = true }]".to_owned(), "has nothing but backups"),
        ("[\"b.test\", { host = \"a.test\", backup = true, weight = 2 }]".to_owned(), "is not used by a backup"),
        ("[\"a.test\", \"A.test:25\"]".to_owned(), "names a.test:25 twice"),
        (format!("[{}]", many.join(", ")), "has more than 32 hosts"),
    ];
    for (hosts, sentence) in cases {
        let text = format!("[[route]]\ndomain = \"*\"\nvia = \"smarthost\"\nhosts = {hosts}\n");
        let config = crate::node::write_config(folder.path(), &text);
        let output = crate::node::ringpost().args(["check", "-c"]).arg(config).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{hosts}: {said}");
        assert!(said.contains(sentence) && said.contains("ringpost.toml:4"), "{hosts}: {said}");
    }
}

/// Mail waited for a host that put it off again and again, until it expired, while another would have taken it.
#[test]
fn mail_that_one_host_puts_off_goes_to_the_next_within_the_attempt() {
    const MESSAGES: usize = 30;
    let (first, second) = (NextHop::start(), NextHop::start());
    let hosts = format!("[\"{}\", {{ host = \"{}\", backup = true }}]", first.address, second.address);
    let node = Node::start(&Setup {
        route: format!("via = \"smarthost\"\nhosts = {hosts}"),
        retries: "[queue]\nretry_base = \"1h\"\nretry_cap = \"1h\"\n",
        ..Setup::new()
    });
    let mut client = Client::greeted(node.address);
    first.set_busy(true);
    for _ in 0..MESSAGES {
        client.deliver("b@y.test", "Subject: x\r\n\r\nx");
    }
    node.wait_for_queue(<[_]>::is_empty);
    assert_eq!((first.messages().len(), second.messages().len()), (0, MESSAGES));
    let log = node.wait_for_mail_log("outcome=delivered");
    let by = |hop: &NextHop, outcome: &str| {
        let words = (format!("relay={} ", hop.address), format!("outcome={outcome}"));
        log.lines().filter(|line| line.contains(&words.0) && line.contains(&words.1)).count()
    };
    assert!(by(&first, "deferred") > 0 && by(&first, "delivered") == 0, "{log}");

    // What only some recipients are put off for goes on for those; it is one attempt, and by the word of the last host.
    first.set_busy(false);
    client.deliver("b@y.test", "Subject: x\r\n\r\nx");
    client.must("MAIL FROM:<a@x.test>", "250 2.1.0");
    for recipient in ["c@z.test", "no-a@z.test", "later-b@z.test"] {
        client.must(&format!("RCPT TO:<{recipient}>"), "250 2.1.5");
    }
    client.must("DATA", "354");
    client.must("Subject: x\r\n\r\nmixed\r\n.", "250 2.0.0");
    let queue = node.wait_for_queue(|queue| queue.len() == 1 && queue[0]["recipients"][2]["state"] == "deferred");
    assert_eq!(queue[0]["recipients"][2]["attempts"], 1, "{queue:?}");
    let taken = |hop: &NextHop| hop.messages().iter().filter(|message| message.recipients == ["c@z.test"]).count();
    assert_eq!(taken(&first) + taken(&second), 1);
    let by = |hop: &NextHop| node.wait_for_mail_log(&format!("to=<later-b@z.test> relay={} ", hop.address));
    let log = [&first, &second].map(by).into_iter().max_by_key(String::len).unwrap();
    let put_off = log.lines().filter(|line| line.contains("to=<later-b@z.test>") && line.contains("outcome=deferred")).count();
    assert_eq!(put_off, 2, "a line for each host: {log}");
}

/// The connection was closed before its QUIT was sent, which nobody waited for (RFC 5321 4.1.1.10).
#[test]
fn a_host_that_put_mail_off_hears_quit_before_the_connection_ends() {
    const MESSAGES: usize = 20;
    let (first, second) = (NextHop::start(), NextHop::start());
    let hosts = format!("[\"{}\", {{ host = \"{}\", backup = true }}]", first.address, second.address);
    let node = Node::start(&Setup { route: format!("via = \"smarthost\"\nhosts = {hosts}"), ..Setup::new() });
    first.set_busy(true);
    // Nor is its answer waited for.
    first.hold_quit(true);
    let mut client = Client::greeted(node.address);
    (0..MESSAGES).for_each(|_| drop(client.deliver("b@y.test", "Subject: x\r\n\r\nx")));
    second.wait_for(MESSAGES);
    first.hold_quit(false);
    let began = Instant::now();
    while first.connections_open() > 0 {
        assert!(began.elapsed() < PATIENCE, "{} connections to the first host do not end", first.connections_open());
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(first.connections_made() > 0);
    assert_eq!(first.quits(), first.connections_made());
}

/// The home of the destination has it from another shard, which has the rest.
#[test]
fn mail_of_another_shard_goes_to_the_next_host_within_the_attempt() {
    const MESSAGES: usize = 100;
    let (first, second) = (NextHop::start(), NextHop::start());
    let hosts = format!("[\"{}\", {{ host = \"{}\", backup = true }}]", first.address, second.address);
    let node = Node::start(&two_shards(Setup {
        route: format!("via = \"smarthost\"\nhosts = {hosts}\nconnections_max = 1"),
        retries: "[queue]\nretry_base = \"1h\"\nretry_cap = \"1h\"\n",
        ..Setup::new()
    }));
    first.set_busy(true);
    let mut clients: Vec<Client> = (0..10).map(|_| Client::greeted(node.address)).collect();
    for number in 0..MESSAGES {
        clients[number % 10].deliver("b@y.test", "Subject: x\r\n\r\nx");
    }
    node.wait_for_queue(<[_]>::is_empty);
    assert_eq!((first.messages().len(), second.messages().len()), (0, MESSAGES));
    assert!(counter(&node, "dispatched_to_homes") > 0 && counter(&node, "tried_elsewhere") > 0);

    // What is decided of a message is not decided again: another shard's goes on whole or not at all.
    first.set_busy(false);
    for number in 0..MESSAGES {
        let client = &mut clients[number % 10];
        client.must("MAIL FROM:<>", "250 2.1.0");
        for recipient in ["c@z.test", "no-a@z.test", "later-b@z.test"] {
            client.must(&format!("RCPT TO:<{recipient}>"), "250 2.1.5");
        }
        client.must("DATA", "354");
        client.must("Subject: x\r\n\r\nx\r\n.", "250 2.0.0");
    }
    node.wait_for_queue(|queue| {
        let is_decided = |message: &serde_json::Value| message["recipients"][2]["state"] == "deferred";
        queue.len() == MESSAGES && queue.iter().all(is_decided)
    });
    let taken = |hop: &NextHop| hop.messages().iter().filter(|message| message.recipients == ["c@z.test"]).count();
    assert_eq!(taken(&first) + taken(&second), MESSAGES);
    assert_eq!(counter(&node, "failed"), MESSAGES as u64);
}

/// A message that `first` puts off and `backup`, the only other host, does not take: deferred once, by the word of the first.
fn put_off(first: &NextHop, backup: SocketAddr) -> Node {
    let hosts = format!("[\"{}\", {{ host = \"{backup}\", backup = true }}]", first.address);
    let node = Node::start(&Setup {
        route: format!("via = \"smarthost\"\nhosts = {hosts}"),
        retries: "[queue]\nretry_base = \"1h\"\nretry_cap = \"1h\"\n",
        ..Setup::new()
    });
    first.set_busy(true);
    Client::greeted(node.address).deliver("b@y.test", "Subject: x\r\n\r\nx");
    let queue = node.wait_for_queue(|queue| queue.first().is_some_and(|message| message["recipients"][0]["state"] == "deferred"));
    assert_eq!((&queue[0]["recipients"][0]["attempts"], &queue[0]["reason"]), (&1.into(), &"450 4.2.1 Busy".into()));
    node
}

/// A next hop that greets and ends at the first MAIL says nothing of the message.
#[test]
fn a_host_that_says_nothing_leaves_the_word_of_the_one_before() {
    let (first, silent) = (NextHop::start(), TcpListener::bind("127.0.0.1:0").unwrap());
    let address = silent.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in silent.incoming() {
            std::thread::spawn(move || stream.and_then(close_at_mail));
        }
    });
    let _node = put_off(&first, address);
    assert_eq!(first.connections_made(), 1, "it is not asked again at once");
}

#[test]
fn a_host_that_cannot_be_asked_leaves_the_word_of_the_one_before() {
    let log = put_off(&NextHop::start(), at(1, free_port())).wait_for_mail_log("outcome=deferred");
    assert_eq!(log.matches("outcome=deferred").count(), 1, "{log}");
}
