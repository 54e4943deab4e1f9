//! Which hosts take the mail of a domain, by what a name server says.

use crate::name_server::NameServer;
use crate::node::{ringpost, write_config};

/// What `ringpost dns` says.
fn asked(names: &NameServer, domain: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "hostname = \"mx1.example.test\"\n[dns]\nservers = [\"{}\"]\nallow_private = true\n[[route]]\ndomain = \"*\"\nvia = \"mx\"\n",
        names.address
    );
    let config = write_config(folder.path(), &text);
    let output = ringpost().args(["dns", domain, "-c"]).arg(config).output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Those beyond the sixteenth were not looked at.
#[test]
fn the_seventeenth_exchange_gets_the_mail_when_none_before_it_has_an_address() {
    let names = NameServer::start();
    let hosts: Vec<String> = (0..20).map(|number| format!("m{number}.y.test")).collect();
    names.set_exchanges("y.test", &hosts);
    let said = asked(&names, "y.test");
    assert!(said.contains("waits: MX of y.test: none of its hosts has an address"), "{said}");
    names.set("m16.y.test", &[[127, 0, 0, 2]], 60);
    let said = asked(&names, "y.test");
    assert!(said.contains("m16.y.test[127.0.0.2]:25"), "{said}");
    names.set("m3.y.test", &[[127, 0, 0, 3]], 60);
    let said = asked(&names, "y.test");
    assert!(said.contains("m3.y.test[127.0.0.3]:25") && !said.contains("m16.y.test["), "{said}");
}

/// A server that puts its SOA beside a circle seemed to prove that the domain has neither MX nor address: mail failed at once.
#[test]
fn aliases_in_a_circle_are_waited_for_whatever_stands_beside_them() {
    let names = NameServer::start();
    for (name, target) in [("a.test", "b.test"), ("b.test", "a.test"), ("own.test", "own.test"), ("end.test", "none.test")] {
        names.set_alias(name, target);
    }
    (0..30).for_each(|number| names.set_alias(&format!("n{number}.test"), &format!("n{}.test", number + 1)));
    for (domain, said) in [
        ("a.test", "waits: MX of a.test: its CNAMEs go round in a circle, by a.test."),
        ("own.test", "waits: MX of own.test: its CNAMEs go round in a circle, by own.test."),
        ("n0.test", "waits: MX of n0.test: more than 16 CNAMEs in a row"),
        // One that ends in nothing is no circle.
        ("end.test", "fails: 550 5.1.2 end.test: no such domain"),
        ("none.test", "fails: 550 5.1.2 none.test: no such domain"),
    ] {
        let answer = asked(&names, domain);
        assert!(answer.contains(said), "{domain}: {answer}");
    }
}
