//! What is urgent leaves first, whoever says so, and after a restart, too.

use std::net::SocketAddr;

use crate::client::Client;
use crate::next_hop::NextHop;
use crate::node::{Node, Setup, free_port};

const SETTINGS: &str = "[queue]\nretry_base = \"1s\"\n[delivery]\nconnections_max = 1\nwindow_initial = 1\ndead_destination = \"1s\"\n\
                        [smtp]\npriority_header = \"X-Queue-Priority\"\n";

fn send(client: &mut Client, name: &str, mail_parameters: &str, header: &str) {
    client.must(&format!("MAIL FROM:<a@x.test>{mail_parameters}"), "250 2.1.0");
    client.must(&format!("RCPT TO:<{name}@z.test>"), "250 2.1.5");
    client.must("DATA", "354");
    client.must(&format!("{header}Subject: {name}\r\n\r\ntext\r\n."), "250 2.0.0");
}

fn order(hop: &NextHop, count: usize) -> Vec<String> {
    hop.wait_for(count).iter().map(|message| message.recipients[0].split('@').next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn urgent_mail_overtakes_what_waited_before_it_and_a_restart_keeps_the_order() {
    // Nobody listens yet: everything waits in one ready queue.
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut node = Node::start(&Setup { retries: SETTINGS, ..Setup::to(address) });
    let mut client = Client::greeted(node.address);
    for number in 0..300 {
        send(&mut client, &format!("low{number}"), " MT-PRIORITY=-9", "");
    }
    send(&mut client, "plain", "", "");
    send(&mut client, "header", "", "X-Queue-Priority: 8\r\n");
    send(&mut client, "client", " MT-PRIORITY=9", "X-Queue-Priority: 0\r\n");
    node.kill();
    node.restart();
    let queue = node.wait_for_queue(|queue| queue.len() == 303);
    for (name, priority) in [("low7", 0), ("plain", 4), ("header", 8), ("client", 9)] {
        let is_its = |message: &&serde_json::Value| message["recipients"][0]["address"] == format!("{name}@z.test");
        let message = queue.iter().find(is_its).unwrap();
        assert_eq!(message["priority"], priority, "{name}: nothing said why one goes before another");
        let shown = node.ask(&["queue", "show", message["id"].as_str().unwrap()]).stdout;
        assert!(String::from_utf8_lossy(&shown).contains(&format!("\npriority   {priority}\n")), "{name}");
    }
    let hop = NextHop::start_at(address);
    let arrived = order(&hop, 303);
    let place = |name: &str| arrived.iter().position(|other| other == name).unwrap();
    // The one probe that was under way when the next hop came back may be anybody's, of these three as well.
    let (probe, rest) = arrived.split_first().expect("all arrived");
    let urgent: Vec<&str> = rest.iter().map(String::as_str).filter(|name| !name.starts_with("low")).collect();
    let expected: Vec<&str> = ["client", "header", "plain"].into_iter().filter(|name| probe != name).collect();
    assert_eq!(urgent, expected, "{arrived:?}");
    assert!(place("plain") <= 3, "{arrived:?}");
}

#[test]
fn a_strangers_header_is_not_looked_at() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let node = Node::start(&Setup { retries: SETTINGS, networks: "[\"192.0.2.0/24\"]", ..Setup::to(address) });
    let mut client = Client::greeted(node.address);
    let mut from_stranger = |name: &str, header: &str| {
        client.must("MAIL FROM:<a@x.test>", "250 2.1.0");
        client.must(&format!("RCPT TO:<{name}@y.test>"), "250 2.1.5");
        client.must("DATA", "354");
        client.must(&format!("{header}Subject: x\r\n\r\ntext\r\n."), "250 2.0.0");
    };
    for _ in 0..20 {
        from_stranger("b", "");
    }
    from_stranger("c", "X-Queue-Priority: 9\r\n");
    let hop = NextHop::start_at(address);
    let arrived = order(&hop, 21);
    assert_eq!(arrived.iter().position(|name| name == "c"), Some(20), "{arrived:?}");
}
