//! A changed config file is taken over by the running engine.

use rustix::process::Signal;

use crate::client::Client;
use crate::next_hop::NextHop;
use crate::node::{Node, PATIENCE, Setup};

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
    assert!(said.contains("taken over: domain[1].recipients, route[1].hosts, route[1].via\n"), "{said}");
    assert!(said.contains("changed, and counts from the next start: memory\n"), "{said}");
    // The held message goes, and the session, in its open transaction, sees the new recipients.
    assert!(hop.wait_for(1)[0].text().contains("Subject: held"));
    session.must("RCPT TO:<new@y.test>", "250 2.1.5");
    session.must("DATA", "354");
    session.must("Subject: after\r\n\r\nx\r\n.", "250 2.0.0");
    assert!(hop.wait_for(2)[1].text().contains("Subject: after"));
    assert_eq!(reload(&node), (true, "nothing that can be taken over has changed\n".to_owned()));
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
    while !node.log().contains("the config file was read again and refused") {
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
    while !node.log().contains("the config file was read again reloaded=[\"route[2]\"] moved=1") {
        assert!(began.elapsed() < PATIENCE, "{}", node.log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
