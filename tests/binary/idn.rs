//! One domain in two forms.

use crate::client::Client;
use crate::node::{Node, Setup};

/// What was configured in U-labels was another domain than the same one in A-labels, and relaying to that was denied.
#[test]
fn a_domain_is_ours_in_u_labels_and_in_a_labels() {
    for name in ["bücher.test", "xn--bcher-kva.test"] {
        let domains = format!("[[domain]]\nname = \"{name}\"\n");
        let node = Node::start(&Setup { domains: domains.leak(), networks: "[]", ..Setup::new() });
        let mut client = Client::greeted(node.address);
        client.must("EHLO x.test", "250");
        for form in ["bücher.test", "BÜCHER.test", "xn--bcher-kva.test", "XN--bcher-kva.TEST"] {
            client.must("MAIL FROM:<a@x.test> SMTPUTF8", "250");
            client.must(&format!("RCPT TO:<a@{form}>"), "250 2.1.5");
            client.must("RCPT TO:<a@muller.test>", "550 5.7.1");
            client.must("RSET", "250");
        }
    }
}
