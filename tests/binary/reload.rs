//! A changed config file is taken over by the running engine.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::{Pid, Signal, kill_process};

use crate::client::Client;
use crate::next_hop::NextHop;
use crate::node::{Node, PATIENCE, Setup, ringpost};
use crate::shards::{counter, on_one_core};

fn reload(node: &Node) -> (bool, String) {
    let output = node.ask(&["reload"]);
    (output.status.success(), format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn routes_and_policy_change_without_a_session_ending() {
    let hop = NextHop::start();
    let setup = Setup::new();
    let node = Node::start(&setup);
    let address = setup.address;
    let mut session = Client::greeted(address);
    session.deliver("b@y.test", "Subject: held\r\n\r\nx");
    session.must("MAIL FROM:<a@x.test>", "250");
    session.must("RCPT TO:<nobody@y.test>", "550 5.1.1");
    node.reconfigure(&Setup {
        domains: "[[domain]]\nname = \"y.test\"\nrecipients = [\"b\", \"c\", \"new\"]\n",
        route: format!("via = \"smarthost\"\nhosts = [\"{}\"]", hop.address),
        extra: "[memory]\nmax_memory = \"1 GiB\"\n",
        address,
        ..Setup::new()
    });
    let (done, said) = reload(&node);
    assert!(done, "{said}");
    assert!(said.contains("taken over: domain for y.test changed: recipients, route for * changed: hosts and via\n"), "{said}");
    assert!(said.contains("changed, and counts from the next start: memory.max_memory\n"), "{said}");
    // The held message goes, and the session, in its open transaction, sees the new recipients.
    assert!(hop.wait_for(1)[0].text().contains("Subject: held"));
    session.must("RCPT TO:<new@y.test>", "250 2.1.5");
    session.must("DATA", "354");
    session.must("Subject: after\r\n\r\nx\r\n.", "250 2.0.0");
    assert!(hop.wait_for(2)[1].text().contains("Subject: after"));
    // The second one compared with the file of the first, and said that nothing was left: what waits for a restart is named each time.
    let pending = "nothing that can be taken over has changed\nchanged, and counts from the next start: memory.max_memory\n";
    assert_eq!(reload(&node), (true, pending.to_owned()));
    // What is as it runs waits for nothing.
    let config = node.folder.path().join("ringpost.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("[memory]\nmax_memory = \"1 GiB\"\n", "")).unwrap();
    assert_eq!(reload(&node), (true, "nothing that can be taken over has changed\n".to_owned()));
    // An emptied file is valid, and would hold all mail.
    let config = node.folder.path().join("ringpost.toml");
    std::fs::write(&config, "").unwrap();
    node.signal(Signal::HUP);
    let began = std::time::Instant::now();
    while !node.log().contains("there is no [[route]] in it, and all mail would be held") {
        assert!(began.elapsed() < PATIENCE, "{}", node.log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    session.deliver("new@y.test", "Subject: still\r\n\r\nx");
    assert!(hop.wait_for(3)[2].text().contains("Subject: still"));
}

/// It ended the process without a word: nobody listened for the signal before the shards ran, and the config that was read could be older than it.
#[test]
fn a_hangup_while_the_config_is_read_is_a_reload_once_the_node_runs() {
    let folder = tempfile::tempdir().unwrap();
    let (config, log) = (folder.path().join("ringpost.toml"), folder.path().join("log"));
    let text = Setup::new().text();
    let pipe = folder.path().join("pipe");
    mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).unwrap();
    std::fs::rename(&pipe, &config).unwrap();
    let output = std::fs::File::create(&log).unwrap();
    let mut child = ringpost().args(["serve", "-c"]).arg(&config).stdout(output.try_clone().unwrap()).stderr(output).spawn().unwrap();
    // Opened as soon as the node reads it.
    let mut written = OpenOptions::new().write(true).open(&config).unwrap();
    std::fs::remove_file(&config).unwrap();
    std::fs::write(&config, "").unwrap();
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), Signal::HUP).unwrap();
    written.write_all(text.as_bytes()).unwrap();
    drop(written);
    let said = || std::fs::read_to_string(&log).unwrap();
    let began = Instant::now();
    while !said().contains("the config file was read again") {
        assert_eq!(child.try_wait().unwrap(), None, "{}", said());
        assert!(began.elapsed() < PATIENCE, "{}", said());
        std::thread::sleep(Duration::from_millis(20));
    }
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success(), "{}", said());
}

/// A route that was made to hold its mail, which goes nowhere else by that, was taken over without a word of that mail.
#[test]
fn how_much_mail_a_reload_holds_is_said() {
    let hop = NextHop::start();
    hop.set_busy(true);
    let setup = Setup { retries: "[queue]\nretry_base = \"1h\"\nretry_cap = \"1h\"\n", ..Setup::to(hop.address) };
    let node = Node::start(&setup);
    let mut client = Client::greeted(setup.address);
    for domain in ["y.test", "z.test"] {
        client.deliver(&format!("b@{domain}"), "Subject: x\r\n\r\nx");
    }
    node.wait_for_queue(|queue| queue.len() == 2 && queue.iter().all(|message| message["recipients"][0]["state"] == "deferred"));
    let with =
        |route: String, extra| node.reconfigure(&Setup { route, extra, address: setup.address, retries: setup.retries, ..Setup::new() });
    with(setup.route.clone(), "[[route]]\ndomain = \"y.test\"\nvia = \"hold\"\n");
    let (done, said) = reload(&node);
    assert!(done && said.ends_with("1 queued message now leads elsewhere\n1 queued message is held from now on\n"), "{said}");
    with("via = \"hold\"".into(), "[[route]]\ndomain = \"y.test\"\nvia = \"hold\"\n");
    node.signal(Signal::HUP);
    let began = Instant::now();
    while !node.log().contains("moved=0 held=1") {
        assert!(began.elapsed() < PATIENCE, "{}", node.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    node.wait_for_queue(|queue| queue.iter().all(|message| message["recipients"][0]["state"] == "held"));
    with("via = \"hold\"".into(), "");
    let (done, said) = reload(&node);
    assert!(done && said.ends_with("1 queued message now leads elsewhere\n"), "it was held before: {said}");
}

#[test]
fn mail_follows_a_more_exact_route_and_a_wrong_file_changes_nothing() {
    let hop = NextHop::start();
    let setup = Setup::new();
    let node = Node::start(&setup);
    let mut client = Client::greeted(setup.address);
    let id = client.deliver("b@z.test", "Subject: moves\r\n\r\nx");
    client.deliver("b@y.test", "Subject: stays\r\n\r\nx");
    let config = node.folder.path().join("ringpost.toml");
    let before = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, before.replace("via = \"hold\"", "via = \"holdd\"")).unwrap();
    // The command itself says so; the engine, asked by signal, too.
    let (done, said) = reload(&node);
    assert!(!done && said.contains("ringpost.toml:") && said.contains("holdd"), "{said}");
    node.signal(Signal::HUP);
    let began = std::time::Instant::now();
    // Once for the command, once for the signal: what is written next is read by neither.
    while node.log().matches("the config file was read again and refused").count() < 2 {
        assert!(began.elapsed() < PATIENCE, "{}", node.log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    std::fs::write(&config, &before).unwrap();
    assert_eq!(node.queue().len(), 2);
    std::fs::write(&config, format!("{before}[[route]]\ndomain = \"z.test\"\nvia = \"smarthost\"\nhosts = [\"{}\"]\n", hop.address))
        .unwrap();
    // By signal this time: the log tells.
    node.signal(Signal::HUP);
    assert!(hop.wait_for(1)[0].text().contains("Subject: moves"));
    node.wait_for_queue(|queue| queue.len() == 1 && queue[0]["id"] != id.as_str());
    let began = std::time::Instant::now();
    while !node.log().contains("the config file was read again reloaded=[\"route for z.test added\"] moved=1") {
        assert!(began.elapsed() < PATIENCE, "{}", node.log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Limits that change while every connection has a message: no shard takes its part of the new one while another has more than its own.
#[test]
fn a_destination_never_sees_more_connections_than_its_limit_while_that_changes() {
    let hop = NextHop::start();
    let setup = |most: u32| {
        let retries = format!(
            "[queue]\nretry_base = \"1s\"\nretry_cap = \"1s\"\n[delivery]\nwindow_initial = {most}\nidle_timeout = \"1h\"\nconnections_max = {most}\n"
        );
        Setup { retries: retries.leak(), ..Setup::to(hop.address) }
    };
    let first = on_one_core(setup(16), 3);
    let address = first.address;
    let node = Node::start(&first);
    let reload_to = |most: u32| {
        let next = on_one_core(Setup { address, ..setup(most) }, 3);
        node.reconfigure(&next);
        let (done, said) = reload(&node);
        assert!(done && said.contains("delivery.connections_max"), "{said}");
    };
    let send = |count: usize| {
        let mut clients: Vec<Client> = (0..12).map(|_| Client::greeted(address)).collect();
        (0..count).for_each(|number| drop(clients[number % 12].deliver("b@y.test", "Subject: x\r\n\r\nx")));
    };
    let wait = |what: &str, is_so: &dyn Fn() -> bool| {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < PATIENCE, "{what}: {} open, {} most; {}", hop.connections_open(), hop.connections_most(), node.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    // Two of three shards are homes, and each has its eight connections in use.
    hop.hold_content(true);
    send(120);
    wait("sixteen in use", &|| hop.connections_open() == 16);
    // A third one is to have five, the others six.
    reload_to(17);
    send(60);
    // Whatever the third does, it does before it answers a question that comes behind.
    wait("mail that waits", &|| counter(&node, "queue_messages") == 180);
    assert_eq!(hop.connections_most(), 16, "the third waits for the others");
    hop.hold_content(false);
    hop.wait_for(180);
    node.wait_for_queue(<[_]>::is_empty);
    assert!(hop.connections_most() <= 17, "{}", hop.connections_most());
    // They have come down, so that the new limit is used to the full.
    hop.hold_content(true);
    send(120);
    wait("seventeen in use", &|| hop.connections_open() == 17);
    // Fewer: those in use end with their message, and are not made again.
    reload_to(3);
    hop.hold_content(false);
    hop.wait_for(300);
    wait("three at most", &|| hop.connections_open() <= 3);
    send(60);
    hop.wait_for(360);
    assert!(hop.connections_open() <= 3);
    assert_eq!(hop.connections_most(), 17);
    // Idle ones beyond a limit do not wait for their time.
    wait("mail is settled", &|| counter(&node, "queue_messages") == 0);
    reload_to(1);
    wait("one at most", &|| hop.connections_open() <= 1);
}
