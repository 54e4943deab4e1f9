//! Who may send where: never an open relay.

use std::net::SocketAddr;

use crate::client::Client;
use crate::next_hop::NextHop;
use crate::node::{Node, Setup, free_port};

/// Nobody on loopback is trusted: these tests come as strangers.
fn strangers() -> Setup {
    Setup { networks: "[\"192.0.2.0/24\"]", ..Setup::new() }
}

/// Forward-paths a stranger must not reach anybody with: somebody else's domain, dressed up.
const FOREIGN: &[&str] = &[
    "<user@ext.test>",
    "<USER@EXT.TEST>",
    "<user@ext.test.>",
    "<user@sub.y.test>",
    "<user@xy.test>",
    "<user@y.test.ext.test>",
    "<user%y.test@ext.test>",
    "<\"b@y.test\"@ext.test>",
    "<y.test!user@ext.test>",
    "<@y.test:user@ext.test>",
    "<@y.test,@mx1.example.test:user@ext.test>",
    "<@ext.test:user@ext.test>",
    "<postmaster@ext.test>",
    "<postmaster@sub.y.test>",
    "<user@[127.0.0.1]>",
    "<postmaster@[127.0.0.1]>",
    "<user@[10.0.0.1]>",
    "<user@[IPv6:::1]>",
    "<postmaster@[IPv6:::1]>",
    "<user@[IPv6:::ffff:127.0.0.1]>",
    "<user@localhost>",
    "<user@mx1.example.test>",
    "<user@xn--bcher-kva.test>",
];

/// Forward-paths of the own domain with a local part that would be sent on by an old mailer. There is no such recipient.
const ROUTED_THROUGH_LOCAL: &[&str] = &[
    "<user%ext.test@y.test>",
    "<\"user@ext.test\"@y.test>",
    "<ext.test!user@y.test>",
    "<@ext.test:nobody@y.test>",
    "<\"user%ext.test\"@y.test>",
    "<user%ext.test%y.test@y.test>",
];

/// Forward-paths that are no forward-paths.
const MALFORMED: &[&str] = &[
    "<user@ext.test@y.test>",
    "<b@y.test@ext.test>",
    "<user@ext.test y.test>",
    "<user@ext.test\0.y.test>",
    "<b@y.test\0.ext.test>",
    "user@ext.test b@y.test",
    "<user@>",
    "<@y.test>",
    "<>",
    "<user@ext..test>",
    "<user@-ext.test>",
    "<user@[999.0.0.1]>",
    "<user@[IPv6:zz]>",
];

#[test]
fn a_stranger_reaches_no_foreign_address() {
    let node = Node::start(&strangers());
    for sender in ["<a@x.test>", "<>", "<b@y.test>", "<user@ext.test>", "<postmaster@y.test>"] {
        let mut client = Client::greeted(node.address);
        client.must(&format!("MAIL FROM:{sender}"), "250 2.1.0");
        for path in FOREIGN {
            client.must(&format!("RCPT TO:{path}"), "550 5.7.1 ");
        }
        client.must("DATA", "5");
    }
    assert!(FOREIGN.len() + ROUTED_THROUGH_LOCAL.len() + MALFORMED.len() >= 25);
    assert!(node.queue().is_empty());
}

#[test]
fn an_own_domain_sends_nothing_on_for_its_local_parts() {
    let node = Node::start(&strangers());
    let mut client = Client::greeted(node.address);
    client.must("MAIL FROM:<a@x.test>", "250 2.1.0");
    for path in ROUTED_THROUGH_LOCAL {
        client.must(&format!("RCPT TO:{path}"), "550 5.");
    }
}

#[test]
fn what_is_no_forward_path_is_refused() {
    let node = Node::start(&strangers());
    for path in MALFORMED {
        // One session each: bad commands are counted.
        let mut client = Client::greeted(node.address);
        client.must("MAIL FROM:<a@x.test>", "250 2.1.0");
        let reply = client.say(&format!("RCPT TO:{path}"));
        assert!(reply.starts_with('5'), "{path:?} was answered {reply:?}");
    }
}

#[test]
fn the_own_domain_takes_its_recipients_and_postmaster() {
    let node = Node::start(&strangers());
    let mut client = Client::greeted(node.address);
    client.must("MAIL FROM:<a@x.test>", "250 2.1.0");
    for path in ["<b@y.test>", "<B@Y.Test>", "<c@y.test>", "<postmaster@y.test>", "<PostMaster@Y.TEST>", "<Postmaster>", "<POSTMASTER>"] {
        client.must(&format!("RCPT TO:{path}"), "250 2.1.5");
    }
    client.must("RCPT TO:<nobody@y.test>", "550 5.1.1");
}

#[test]
fn a_domain_without_list_takes_every_local_part() {
    let node = Node::start(&Setup { domains: "[[domain]]\nname = \"y.test\"\n", ..strangers() });
    let mut client = Client::greeted(node.address);
    client.must("MAIL FROM:<a@x.test>", "250 2.1.0");
    client.must("RCPT TO:<whoever@y.test>", "250 2.1.5");
    client.must("RCPT TO:<whoever@ext.test>", "550 5.7.1 ");
}

#[test]
fn nothing_a_stranger_says_makes_it_trusted() {
    let node = Node::start(&strangers());
    for words in ["XCLIENT ADDR=192.0.2.7", "XFORWARD ADDR=192.0.2.7", "PROXY TCP4 192.0.2.7 192.0.2.8 1234 25"] {
        let mut client = Client::greeted(node.address);
        let reply = client.say(words);
        assert!(reply.starts_with('5'), "{words:?} was answered {reply:?}");
        if client.say("MAIL FROM:<a@x.test>").starts_with('2') {
            client.must("RCPT TO:<user@ext.test>", "550 5.7.1 ");
        }
    }
    let mut client = Client::connect(node.address);
    client.must("EHLO [192.0.2.7]", "250");
    client.must("MAIL FROM:<a@[192.0.2.7]>", "250");
    client.must("RCPT TO:<user@ext.test>", "550 5.7.1 ");
    let mut early = Client::silent(node.address);
    early.send(b"PROXY TCP4 192.0.2.7 192.0.2.8 1234 25\r\nEHLO x\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<user@ext.test>\r\nDATA\r\n");
    loop {
        let reply = early.reply();
        assert!(!reply.starts_with("250 2.1.5") && !reply.starts_with("354"), "{reply:?}");
        if reply.is_empty() || reply.starts_with('5') {
            break;
        }
    }
}

#[test]
fn a_trusted_peer_relays() {
    let hop = NextHop::start();
    let node = Node::start(&Setup::to(hop.address));
    Client::greeted(node.address).deliver("user@ext.test", "Subject: out\r\n\r\nout");
    assert_eq!(hop.wait_for(1)[0].recipients, ["user@ext.test"]);
}

#[test]
fn trust_is_in_the_address_family_of_the_peer() {
    // An IPv4 network does not trust an IPv6 peer, whatever its last octets look like.
    for (networks, expected) in [
        ("[\"::1/128\"]", "250 2.1.5"),
        ("[\"127.0.0.0/8\"]", "550 5.7.1 "),
        ("[\"0.0.0.0/0\"]", "550 5.7.1 "),
        ("[\"::ffff:0:0/96\"]", "550 5.7.1 "),
    ] {
        let address = SocketAddr::from(([0u16, 0, 0, 0, 0, 0, 0, 1], free_port()));
        let node = Node::start(&Setup { networks, address, ..Setup::new() });
        let mut client = Client::greeted(node.address);
        client.must("MAIL FROM:<a@x.test>", "250");
        client.must("RCPT TO:<user@ext.test>", expected);
    }
}

/// It went the way of mail for the host's name: refused where only own domains have a route, and sent to ourselves where DNS led there.
#[test]
fn a_postmaster_without_a_domain_is_the_own_domains_whatever_the_host_is_called() {
    let hop = NextHop::start();
    let setup = Setup {
        networks: "[]",
        domains: "[[domain]]\nname = \"own.test\"\nrecipients = [\"b\"]\n[[domain]]\nname = \"a.test\"\n",
        route: format!("via = \"smarthost\"\nhosts = [\"{}\"]", hop.address),
        ..Setup::new()
    };
    // Host and domain have different names, and no other domain has a route.
    let text = setup.text().replace("domain = \"*\"", "domain = [\"own.test\", \"a.test\"]");
    let node = Node::start_with(&setup, &text);
    Client::greeted(node.address).deliver("PostMaster", "Subject: x\r\n\r\nx");
    assert_eq!(hop.wait_for(1)[0].recipients, ["postmaster@own.test"]);
    let text = text.replace("[[listener]]", "[smtp]\npostmaster = \"b@own.test\"\n[[listener]]");
    crate::node::write_config(node.folder.path(), &text);
    let output = node.ask(&["reload"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Client::greeted(node.address).deliver("postmaster", "Subject: x\r\n\r\nx");
    assert_eq!(hop.wait_for(2)[1].recipients, ["b@own.test"]);
}
