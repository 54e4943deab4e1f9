//! Routes for some senders only: chosen at acceptance, at a reload and at a restart.

use crate::client::Client;
use crate::next_hop::NextHop;
use crate::node::{Node, Setup, ringpost, write_config};

fn deliver(node: &Node, sender: &str, recipient: &str) -> String {
    let mut client = Client::greeted(node.address);
    client.must(&format!("MAIL FROM:<{sender}>"), "250");
    client.must(&format!("RCPT TO:<{recipient}>"), "250");
    client.must("DATA", "354");
    let reply = client.say("Subject: x\r\n\r\nx\r\n.");
    reply.trim_end().rsplit_once("id=").unwrap().1.to_owned()
}

fn smarthost(domain: &str, sender: &str, hop: &NextHop) -> String {
    format!("[[route]]\ndomain = \"{domain}\"\n{sender}\nvia = \"smarthost\"\nhosts = [\"{}\"]\n", hop.address)
}

/// Senders and first recipients, in order.
fn seen(hop: &NextHop) -> Vec<(String, String)> {
    let mut seen: Vec<_> = hop.messages().into_iter().map(|message| (message.sender, message.recipients[0].clone())).collect();
    seen.sort();
    seen
}

fn reload(node: &Node) -> String {
    let output = node.ask(&["reload"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_sender_chooses_among_routes_for_the_same_domain() {
    let (all, news, domain, reports, own) = (NextHop::start(), NextHop::start(), NextHop::start(), NextHop::start(), NextHop::start());
    let extra = [
        smarthost("*", "sender = \"News@X.test\"", &news),
        smarthost("*", "sender_domain = [\"x.test\", \"*.x.test\"]", &domain),
        smarthost("*", "sender = \"\"", &reports),
        smarthost("y.test", "", &own),
        "[[route]]\ndomain = \"only.test\"\nsender = \"bob@q.test\"\nvia = \"hold\"\n".to_owned(),
    ];
    let node = Node::start(&Setup { extra: extra.concat().leak(), ..Setup::to(all.address) });
    let cases = [
        ("a@q.test", "b@z.test", &all),
        ("news@x.test", "b@z.test", &news),
        ("a@x.test", "b@z.test", &domain),
        ("a@sub.x.test", "b@z.test", &domain),
        ("", "b@z.test", &reports),
        // Mail for an exact domain goes there, whoever sends it.
        ("news@x.test", "b@y.test", &own),
        ("", "c@y.test", &own),
        // The only route for the domain is another sender's.
        ("a@q.test", "b@only.test", &all),
        ("news@x.test", "b@only.test", &news),
    ];
    for (sender, recipient, _) in &cases {
        deliver(&node, sender, recipient);
    }
    let held = deliver(&node, "bob@q.test", "b@only.test");
    let queue = node.wait_for_queue(|queue| queue.len() == 1);
    assert_eq!((&queue[0]["id"], &queue[0]["recipients"][0]["route"]), (&held.as_str().into(), &"only.test from bob@q.test".into()));
    for hop in [&all, &news, &domain, &reports, &own] {
        let mut expected: Vec<_> = cases
            .iter()
            .filter(|(_, _, to)| std::ptr::eq(*to, hop))
            .map(|(sender, recipient, _)| ((*sender).to_owned(), (*recipient).to_owned()))
            .collect();
        expected.sort();
        assert_eq!(seen(hop), expected);
    }
    let why = node.ask(&["queue", "why", &held]);
    assert!(String::from_utf8_lossy(&why.stdout).contains("Held by the route \"only.test from bob@q.test\""), "{why:?}");
}

#[test]
fn wrong_senders_and_mail_without_a_route_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let all = "[[route]]\ndomain = \"*\"\nvia = \"hold\"\n";
    let of = |lines: &str| format!("[[route]]\ndomain = \"*\"\n{lines}\nvia = \"hold\"\n");
    let cases = [
        (of("sender = \"a@x.test\""), "ringpost.toml:1: route: lacks one for \"*\""),
        (format!("{all}{}", of("sender = \"x.test\"")), "route[2].sender: \"x.test\" is not an address"),
        (format!("{all}{}", of("sender_domain = \"a@x.test\"")), "route[2].sender_domain: \"a@x.test\" is not a domain"),
        (format!("{all}{}", of("sender = []")), "route[2].sender: [] names no sender"),
        (format!("{all}{}{}", of("sender = \"\""), of("sender = \"<>\"")), "repeats * from <>, which has a route already, see line 5"),
        (format!("{all}{}", of("sender = [\"a@x.test\", \"A@X.test\"]")), "repeats * from a@x.test"),
    ];
    for (text, sentence) in cases {
        let config = write_config(folder.path(), &text);
        let output = ringpost().args(["check", "-c"]).arg(config).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{text}: {said}");
        assert!(said.contains(sentence), "{text}: {said}");
    }
}

#[test]
fn a_restart_a_reload_and_a_command_choose_by_the_sender_again() {
    let (all, news, backup) = (NextHop::start(), NextHop::start(), NextHop::start());
    news.set_busy(true);
    all.set_busy(true);
    let slow = "[queue]\nretry_base = \"1h\"\nretry_cap = \"2h\"\n";
    let by_sender = smarthost("*", "sender = \"news@x.test\"", &news);
    let of_backup = smarthost("*", "sender_domain = \"backup.test\"", &backup);
    let both: &'static str = format!("{by_sender}{of_backup}").leak();
    let setup = Setup { retries: slow, extra: both, ..Setup::to(all.address) };
    let address = setup.address;
    let mut node = Node::start(&setup);
    let mail = [deliver(&node, "news@x.test", "one@z.test"), deliver(&node, "news@x.test", "two@z.test")];
    let other = deliver(&node, "a@x.test", "three@z.test");
    let routes = |node: &Node| {
        let queue = node.wait_for_queue(|queue| queue.len() == 3 && queue.iter().all(|one| one["recipients"][0]["state"] != "active"));
        let route = |id: &str| queue.iter().find(|one| one["id"] == id).unwrap()["recipients"][0]["route"].as_str().unwrap().to_owned();
        [route(&mail[0]), route(&mail[1]), route(&other)]
    };
    assert_eq!(routes(&node), ["* from news@x.test", "* from news@x.test", "*"]);
    node.kill();
    node.restart();
    assert_eq!(routes(&node), ["* from news@x.test", "* from news@x.test", "*"]);

    // By command, and still so after a restart.
    backup.set_busy(true);
    let moved = node.ask(&["queue", "reroute", &mail[1], "--to", "* from @backup.test"]);
    assert!(moved.status.success(), "{moved:?}");
    let unknown = node.ask(&["queue", "reroute", &mail[1], "--to", "* from @nobody.test"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("is no route of the config"), "{unknown:?}");
    node.kill();
    node.restart();
    assert_eq!(routes(&node), ["* from news@x.test", "* from @backup.test", "*"]);

    // The sender's route goes: its mail follows the route for all; and comes back with it.
    let without: &'static str = of_backup.clone().leak();
    node.reconfigure(&Setup { retries: slow, extra: without, address, ..Setup::to(all.address) });
    assert!(reload(&node).contains("taken over: "));
    assert_eq!(routes(&node), ["*", "* from @backup.test", "*"]);
    node.reconfigure(&Setup { retries: slow, extra: both, address, ..Setup::to(all.address) });
    reload(&node);
    assert_eq!(routes(&node), ["* from news@x.test", "* from @backup.test", "*"]);

    for hop in [&all, &news, &backup] {
        hop.set_busy(false);
    }
    assert!(node.ask(&["queue", "retry", "--all"]).status.success());
    node.wait_for_queue(<[_]>::is_empty);
    let one = |sender: &str, recipient: &str| vec![(sender.to_owned(), recipient.to_owned())];
    assert_eq!(seen(&news), one("news@x.test", "one@z.test"));
    assert_eq!(seen(&backup), one("news@x.test", "two@z.test"));
    assert_eq!(seen(&all), one("a@x.test", "three@z.test"));
}

/// It looked at routes for all senders only, and showed hosts of DNS for mail that is held. Without a sender it asked for one where no
/// route names any, and named no route where some do.
#[test]
fn dns_says_where_mail_goes_by_the_route_for_its_sender() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ringpost.toml");
    let routes = [
        ("\"*\"", "via = \"hold\""),
        ("\"*\"\nsender = \"\"", "via = \"discard\""),
        ("\"*\"\nsender = \"news@x.test\"", "via = \"smarthost\"\nhosts = [\"127.0.0.9:26\", { host = \"127.0.0.8:25\", backup = true }]"),
        ("\"own.test\"", "via = \"maildir\"\npath = \"/srv/mail/{domain}/{local}\""),
        ("\"box.test\"", "via = \"lmtp\"\nhosts = [\"unix:/run/lmtp.sock\"]"),
    ];
    let text: String = routes.iter().map(|(domain, via)| format!("[[route]]\ndomain = {domain}\n{via}\n")).collect();
    std::fs::write(&file, text).unwrap();
    let dns = |words: &[&str]| {
        let output = ringpost().arg("dns").args(words).arg("-c").arg(&file).output().unwrap();
        (output.status.code(), format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
    };
    for (words, code, said) in [
        (
            &["z.test"][..],
            1,
            "mail for z.test is held: it stays in the queue\nby route \"*\" (via = \"hold\"), for senders that no route names; for others:\n  \
             route \"* from <>\" (via = \"discard\")\n  route \"* from news@x.test\" (via = \"smarthost\")\n--sender ADDRESS says where ",
        ),
        (&["z.test", "--json"], 1, "\"for_senders\":[{\"route\":\"* from <>\",\"via\":\"discard\"},{"),
        (&["z.test", "--sender", ""], 0, "mail for z.test from <> is discarded: "),
        (&["Z.test.", "--sender", "News@x.test"], 0, "from News@x.test goes to the first of these that answers:\n     0  127.0.0.9:26\n"),
        (&["z.test", "--sender", "news@x.test"], 0, "by route \"* from news@x.test\" (via = \"smarthost\")\nread from "),
        (
            &["own.test"],
            0,
            "mail for own.test is written into /srv/mail/{domain}/{local}\nby route \"own.test\" (via = \"maildir\")\nread from ",
        ),
        (&["box.test", "--json"], 0, "\"outcome\":\"site\",\"hosts\":[{\"preference\":0,\"name\":\"unix:/run/lmtp.sock\""),
        (&["a@z.test"], 2, "invalid value 'a@z.test' for '<DOMAIN>': is a mail address: write a domain"),
        (&[""], 2, "write a domain"),
        (&["z.test", "--sender", "x.test"], 2, "is no sender address"),
    ] {
        let (got, text) = dns(words);
        assert!(got == Some(code) && text.contains(said), "{words:?}: {got:?} {text}");
    }
}
