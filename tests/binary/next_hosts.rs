//! What one host of a destination puts off goes to the next one within the attempt, whatever the route and wherever the dialogue ends.

use std::net::SocketAddr;

use serde_json::Value;

use crate::client::Client;
use crate::faulty_hop::{Fault, FaultyHop, Script};
use crate::name_server::NameServer;
use crate::next_hop::NextHop;
use crate::node::{Node, Setup, free_port};
use crate::shards::{counter, on_one_core, two_shards};
use crate::store::Store;

/// No second attempt, and a silence of a few seconds: longer than a busy machine takes to answer.
const ONE_ATTEMPT: &str = "[queue]\nretry_base = \"1h\"\nretry_cap = \"1h\"\n[delivery]\nconnections_max = 1\nconnect_timeout = \"5s\"\n\
    banner_timeout = \"5s\"\nehlo_timeout = \"5s\"\nmail_timeout = \"5s\"\nrcpt_timeout = \"5s\"\ndata_timeout = \"5s\"\n\
    block_timeout = \"5s\"\ndot_timeout = \"5s\"\n";

fn at(host: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, host], port))
}

fn says(point: &'static str, line: &'static str) -> Script {
    Script { point, fault: Fault::Says(line), pipelining: true }
}

const CLOSES_AT_MAIL: Script = Script { point: "mail", fault: Fault::Drop, pipelining: true };

fn deliver(node: &Node, recipient: &str) {
    Client::greeted(node.address).deliver(recipient, "Subject: x\r\n\r\nx");
}

/// What only a host that offers 8BITMIME takes.
fn deliver_eight_bits(node: &Node, recipient: &str) {
    let mut client = Client::greeted(node.address);
    client.must("MAIL FROM:<a@x.test> BODY=8BITMIME", "250 2.1.0");
    client.must(&format!("RCPT TO:<{recipient}>"), "250 2.1.5");
    client.must("DATA", "354");
    client.must("Subject: x\r\n\r\n\u{e9}\r\n.", "250 2.0.0");
}

fn is_deferred(message: &Value) -> bool {
    message["recipients"][0]["state"] == "deferred"
}

/// All mail goes to these in turn.
fn smarthosts(hosts: &[SocketAddr]) -> Setup {
    let hosts: Vec<_> = (0..).zip(hosts).map(|(number, host)| format!("{{ host = \"{host}\", backup = {} }}", number > 0)).collect();
    Setup { route: format!("via = \"smarthost\"\nhosts = [{}]", hosts.join(", ")), retries: ONE_ATTEMPT, ..Setup::new() }
}

/// One that greeted and closed at MAIL had the mail again and again until it expired, and the next one was never asked.
#[test]
fn wherever_the_first_host_fails_before_the_content_is_there_the_next_one_has_the_mail() {
    let good = NextHop::start();
    let mut scripts = Vec::new();
    for point in ["connect", "ehlo", "mail", "rcpt", "data", "dot"] {
        for fault in
            [Fault::Drop, Fault::Silence, Fault::Says("451 4.3.0 Later"), Fault::Says("450 4.2.1 Busy"), Fault::Says("421 4.3.2 Closing")]
        {
            scripts.extend([true, false].map(|pipelining| Script { point, fault, pipelining }));
        }
    }
    // Whoever has the whole content may keep it.
    let may_have_it = |script: &Script| script.point == "dot" && !matches!(script.fault, Fault::Says(_));
    let hops: Vec<_> = scripts.iter().map(|&script| FaultyHop::start(script)).collect();
    let route = |(number, hop): (usize, &FaultyHop)| {
        let hosts = format!("[\"{}\", {{ host = \"{}\", backup = true }}]", hop.address, good.address);
        format!("[[route]]\ndomain = \"c{number}.test\"\nvia = \"smarthost\"\nhosts = {hosts}\n")
    };
    let extra: String = hops.iter().enumerate().map(route).collect();
    let node = Node::start(&two_shards(Setup { retries: ONE_ATTEMPT, extra: extra.leak(), ..Setup::new() }));
    // Over several connections, so that shards have mail for each other's destinations.
    let mut clients: Vec<Client> = (0..6).map(|_| Client::greeted(node.address)).collect();
    for number in 0..scripts.len() {
        clients[number % 6].deliver(&format!("b@c{number}.test"), "Subject: x\r\n\r\nx");
    }
    let kept = scripts.iter().filter(|script| may_have_it(script)).count();
    let queue = node.wait_for_queue(|queue| queue.len() == kept && queue.iter().all(is_deferred));
    assert!(queue.iter().all(|message| message["recipients"][0]["attempts"] == 1), "{queue:?}");
    let messages = good.messages();
    for (number, (script, hop)) in scripts.iter().zip(&hops).enumerate() {
        let address = format!("b@c{number}.test");
        let copies = messages.iter().filter(|message| message.recipients == [address.as_str()]).count();
        assert_eq!((copies, hop.connections()), (usize::from(!may_have_it(script)), 1), "{script:?}: {}", node.log());
    }
    assert_eq!(counter(&node, "deliveries_unknown"), kept as u64);
    assert!(counter(&node, "dispatched_to_homes") > 0);
}

#[test]
fn content_that_breaks_off_in_the_middle_goes_to_the_next_host() {
    let (first, second) = (FaultyHop::start(Script { point: "content", ..CLOSES_AT_MAIL }), NextHop::start());
    let node = Node::start(&smarthosts(&[first.address, second.address]));
    // More than the buffers of both sides hold.
    let body = "0123456789abcdef0123456789abcdef\r\n".repeat(400_000);
    Client::greeted(node.address).deliver("b@y.test", &format!("Subject: x\r\n\r\n{body}"));
    let messages = second.wait_for(1);
    assert!(messages[0].body().starts_with(&body), "{} octets", messages[0].wire.len());
    node.wait_for_queue(<[_]>::is_empty);
    assert_eq!((first.connections(), second.messages().len()), (1, 1));
}

/// All hosts of a domain had the same number, as if they were addresses of one.
#[test]
fn a_domains_exchanges_are_asked_by_preference_and_once_for_all_their_addresses() {
    let names = NameServer::start();
    let port = free_port();
    names.set_exchanges("y.test", &["mx1.y.test".to_owned(), "mx2.y.test".to_owned()]);
    names.set("mx1.y.test", &[[127, 0, 0, 2], [127, 0, 0, 3]], 300);
    names.set("mx2.y.test", &[[127, 0, 0, 4]], 300);
    names.set_exchanges("z.test", &["mx3.z.test".to_owned()]);
    names.set("mx3.z.test", &[[127, 0, 0, 5], [127, 0, 0, 6]], 300);
    let busy = [2, 3].map(|host| FaultyHop::start_at(at(host, port), says("rcpt", "450 4.2.1 Busy")));
    let closing = FaultyHop::start_at(at(5, port), CLOSES_AT_MAIL);
    let (second, other) = (NextHop::start_at(at(4, port)), NextHop::start_at(at(6, port)));
    let extra = format!("[dns]\nservers = [\"{}\"]\nallow_private = true\n", names.address).leak();
    let route = format!("via = \"mx\"\nport = {port}\nmessages_per_connection = 1");
    let node = Node::start(&on_one_core(Setup { route, extra, retries: ONE_ATTEMPT, ..Setup::new() }, 1));
    deliver(&node, "b@y.test");
    node.wait_for_queue(<[_]>::is_empty);
    assert_eq!((busy.iter().map(FaultyHop::connections).sum::<usize>(), second.messages().len()), (1, 1));
    let log = node.wait_for_mail_log("relay=mx2.y.test[127.0.0.4]");
    assert!(log.contains("relay=mx1.y.test[127.0.0."), "{log}");

    // An address that just ends is not all of its host. One of two is drawn each time.
    for _ in 0..20 {
        deliver(&node, "b@z.test");
    }
    node.wait_for_queue(<[_]>::is_empty);
    assert_eq!(other.messages().len(), 20);
    assert!(closing.connections() > 0);
}

/// It was deferred until it expired, because no more than sixteen hosts were ever asked for.
#[test]
fn a_domain_whose_first_sixteen_exchanges_are_dead_gets_its_mail_by_a_later_one() {
    let names = NameServer::start();
    let port = free_port();
    let hosts: Vec<String> = (0..20).map(|number| format!("m{number}.y.test")).collect();
    names.set_exchanges("y.test", &hosts);
    (0..).zip(&hosts).for_each(|(number, host)| names.set(host, &[[127, 0, 0, 20 + number]], 300));
    let last_but_one = NextHop::start_at(at(38, port));
    let extra = format!("[dns]\nservers = [\"{}\"]\nallow_private = true\n", names.address).leak();
    let route = format!("via = \"mx\"\nport = {port}");
    let node = Node::start(&on_one_core(Setup { route, extra, retries: ONE_ATTEMPT, ..Setup::new() }, 1));
    deliver(&node, "b@y.test");
    last_but_one.wait_for(1);
    node.wait_for_queue(<[_]>::is_empty);
    let log = node.wait_for_mail_log("relay=m18.y.test[127.0.0.38]");
    assert!(!log.contains("event=bounced"), "{log}");
}

#[test]
fn a_store_that_fails_leaves_the_mail_to_the_next_one_recipient_by_recipient() {
    let (store, stored) = Store::over_tcp();
    let scripts = [
        CLOSES_AT_MAIL,
        Script { point: "data", ..CLOSES_AT_MAIL },
        says("rcpt", "452 4.3.1 Disk full"),
        says("dot", "452 4.2.2 Over quota"),
    ];
    let hops = scripts.map(FaultyHop::start);
    let (first, first_at) = Store::over_tcp();
    first.answer("c@mixed.test", "452 4.2.2 over quota");
    let firsts = hops.iter().map(|hop| hop.address).enumerate().map(|(number, address)| (format!("c{number}.test"), address));
    let route = |(domain, address)| format!("[[route]]\ndomain = \"{domain}\"\nvia = \"lmtp\"\nhosts = [\"{address}\", \"{stored}\"]\n");
    let extra: String = firsts.chain([("mixed.test".to_owned(), first_at)]).map(route).collect();
    let node = Node::start(&on_one_core(Setup { retries: ONE_ATTEMPT, extra: extra.leak(), ..Setup::new() }, 1));
    (0..scripts.len()).for_each(|number| deliver(&node, &format!("b@c{number}.test")));
    node.wait_for_queue(<[_]>::is_empty);
    assert_eq!(hops.map(|hop| hop.connections()), [1; 4]);
    let recipients = |store: &Store| store.saved().into_iter().map(|(recipient, _)| recipient).collect::<Vec<_>>();
    assert_eq!(recipients(&store), ["b@c0.test", "b@c1.test", "b@c2.test", "b@c3.test"]);

    Client::greeted(node.address).deliver_to(&["b@mixed.test", "c@mixed.test", "d@mixed.test"], "Subject: x\r\n\r\nx");
    node.wait_for_queue(<[_]>::is_empty);
    assert_eq!(recipients(&first), ["b@mixed.test", "d@mixed.test"]);
    assert_eq!(recipients(&store)[4..], ["c@mixed.test"]);
}

/// Mail of the other shard went on at its next attempt only, an hour later, where its first host had decided some of its recipients.
#[test]
fn the_rest_of_a_message_of_another_shard_goes_to_the_next_host_too() {
    let ((first, first_at), (second, second_at)) = (Store::over_tcp(), Store::over_tcp());
    first.answer("c@mixed.test", "452 4.2.2 over quota");
    let extra = format!("[[route]]\ndomain = \"mixed.test\"\nvia = \"lmtp\"\nhosts = [\"{first_at}\", \"{second_at}\"]\n");
    let node = Node::start(&two_shards(Setup { retries: ONE_ATTEMPT, extra: extra.leak(), ..Setup::new() }));
    let mut clients: Vec<Client> = (0..10).map(|_| Client::greeted(node.address)).collect();
    for client in &mut clients {
        client.deliver_to(&["b@mixed.test", "c@mixed.test", "d@mixed.test"], "Subject: x\r\n\r\nx");
    }
    node.wait_for_queue(<[_]>::is_empty);
    assert!(counter(&node, "dispatched_to_homes") > 0, "both shards have mail");
    let count = |store: &Store, local: &str| store.saved().iter().filter(|(recipient, _)| recipient.starts_with(local)).count();
    let counts = ["b", "c", "d"].map(|local| (count(&first, local), count(&second, local)));
    assert_eq!((counts[0].0 + counts[0].1, counts[1], counts[2].0 + counts[2].1), (10, (0, 10), 10), "each once: {counts:?}");
}

/// Of mail that another shard delivers the mail log had what the last host of an attempt said, and of those before it nothing.
#[test]
fn each_host_of_an_attempt_has_its_line_whichever_shard_makes_it() {
    let first = FaultyHop::start(says("rcpt", "451 4.7.1 Greylisted"));
    let (second, other) = (NextHop::start(), FaultyHop::start(says("rcpt", "452 4.2.2 Over quota")));
    let route = |domain: &str, last: SocketAddr| {
        let hosts = format!("[\"{}\", {{ host = \"{last}\", backup = true }}]", first.address);
        format!("[[route]]\ndomain = \"{domain}\"\nvia = \"smarthost\"\nhosts = {hosts}\nmessages_per_connection = 1\n")
    };
    let extra = route("taken.test", second.address) + &route("kept.test", other.address);
    let node = Node::start(&two_shards(Setup { retries: ONE_ATTEMPT, extra: extra.leak(), ..Setup::new() }));
    // Each shard has mail for both.
    let mut clients: Vec<Client> = (0..6).map(|_| Client::greeted(node.address)).collect();
    for client in &mut clients {
        ["b@taken.test", "b@kept.test"].iter().for_each(|to| drop(client.deliver(to, "Subject: x\r\n\r\nx")));
    }
    node.wait_for_queue(|queue| queue.len() == 6 && queue.iter().all(is_deferred));
    assert!(counter(&node, "dispatched_to_homes") > 0, "both shards have mail");
    let lines = |log: &str, to: &str, relay: SocketAddr| {
        let (to, relay) = (format!("to=<{to}>"), format!("relay={relay} "));
        log.lines().filter(|line| line.contains("event=attempt") && line.contains(&to) && line.contains(&relay)).count()
    };
    let are_all_there = |log: &str| {
        let [kept, taken] = ["b@kept.test", "b@taken.test"].map(|to| lines(log, to, first.address));
        (kept, taken, lines(log, "b@kept.test", other.address), lines(log, "b@taken.test", second.address)) == (6, 6, 6, 6)
    };
    let log = node.wait_for_mail_log_that("a line of each host for each message", are_all_there);
    assert_eq!(log.lines().filter(|line| line.contains("event=attempt")).count(), 24, "{log}");
    assert_eq!((counter(&node, "deferred"), counter(&node, "delivered")), (18, 6));
}

#[test]
fn an_attempt_asks_three_hosts_and_is_one() {
    let hops: Vec<_> = (0..5).map(|_| FaultyHop::start(says("rcpt", "450 4.2.1 Busy"))).collect();
    let node = Node::start(&smarthosts(&hops.iter().map(|hop| hop.address).collect::<Vec<_>>()));
    deliver(&node, "b@y.test");
    let queue = node.wait_for_queue(|queue| queue.iter().any(is_deferred));
    assert_eq!(queue[0]["recipients"][0]["attempts"], 1);
    assert_eq!(hops.iter().map(FaultyHop::connections).sum::<usize>(), 3);
}

/// A host that put it off would have had it in five minutes, but the next one offers less: it failed for good.
#[test]
fn what_the_next_host_does_not_offer_decides_nothing_that_the_first_put_off() {
    let (first, second) = (FaultyHop::start(says("rcpt", "450 4.7.1 Greylisted")), NextHop::start());
    second.offer_seven_bits();
    let node = Node::start(&smarthosts(&[first.address, second.address]));
    deliver_eight_bits(&node, "b@y.test");
    let queue = node.wait_for_queue(|queue| queue.iter().any(is_deferred));
    assert_eq!((queue.len(), &queue[0]["reason"]), (1, &"450 4.7.1 Greylisted".into()));
    assert_eq!(second.connections_made(), 1, "it was asked");
}

/// Of three, the last two of which offer less, the word of the first was forgotten, and it failed for good.
#[test]
fn what_two_further_hosts_do_not_offer_decides_nothing_that_the_first_put_off() {
    let (first, others) = (FaultyHop::start(says("rcpt", "450 4.7.1 Greylisted")), [NextHop::start(), NextHop::start()]);
    others.iter().for_each(NextHop::offer_seven_bits);
    let node = Node::start(&smarthosts(&[first.address, others[0].address, others[1].address]));
    deliver_eight_bits(&node, "b@y.test");
    let queue = node.wait_for_queue(|queue| queue.iter().any(is_deferred));
    let log = node.wait_for_mail_log("to=<b@y.test> relay=");
    assert_eq!(
        (queue.len(), &queue[0]["recipients"][0]["address"], &queue[0]["reason"]),
        (1, &"b@y.test".into(), &"450 4.7.1 Greylisted".into()),
        "{queue:?} {log}"
    );
    assert_eq!(others.map(|hop| hop.connections_made()), [1, 1], "they were asked");
}

/// The 421 of the first host was the destination's where the next one lacked what a single message needs, and all mail waited.
#[test]
fn what_one_host_asks_for_keeps_no_mail_from_another_one_that_takes_it() {
    let (busy, second) = (FaultyHop::start(says("mail", "421 4.3.2 Busy")), NextHop::start());
    second.offer_seven_bits();
    let node = Node::start(&on_one_core(smarthosts(&[busy.address, second.address]), 1));
    deliver_eight_bits(&node, "b@y.test");
    let queue = node.wait_for_queue(|queue| queue.iter().any(is_deferred));
    assert_eq!(queue[0]["reason"], "421 4.3.2 Busy");
    // The second host had no line.
    let log = node.wait_for_mail_log(&format!("relay={}", second.address));
    assert!(log.contains(&format!("relay={}", busy.address)) && log.contains("does not offer 8BITMIME"), "{log}");
    deliver(&node, "c@y.test");
    second.wait_for(1);
    assert_eq!(counter(&node, "throttled"), 0, "{}", node.log());
}

#[test]
fn a_destination_whose_hosts_all_ask_for_less_is_left_alone() {
    let hops = [(); 2].map(|()| FaultyHop::start(says("mail", "421 4.3.2 Busy")));
    let node = Node::start(&smarthosts(&hops.each_ref().map(|hop| hop.address)));
    deliver(&node, "b@y.test");
    node.wait_for_queue(|queue| queue.iter().any(is_deferred));
    assert_eq!((counter(&node, "throttled"), hops.map(|hop| hop.connections())), (1, [1, 1]), "{}", node.log());
}

/// What a host put off of a message that it takes in parts stayed with that host for all parts but the last.
#[test]
fn each_part_of_a_message_that_a_host_takes_in_parts_goes_to_the_next_one_when_it_is_put_off() {
    let (first, second) = (NextHop::start(), FaultyHop::start(Script { point: "", ..CLOSES_AT_MAIL }));
    first.offer(&["LIMITS RCPTMAX=2"]);
    let node = Node::start(&two_shards(smarthosts(&[first.address, second.address])));
    for _ in 0..4 {
        let mut client = Client::greeted(node.address);
        client.must("MAIL FROM:<a@x.test>", "250 2.1.0");
        for local in ["later-a", "later-b", "later-c", "d", "later-e"] {
            client.must(&format!("RCPT TO:<{local}@z.test>"), "250 2.1.5");
        }
        client.must("DATA", "354");
        client.must("Subject: x\r\n\r\nx\r\n.", "250 2.0.0");
    }
    node.wait_for_queue(<[_]>::is_empty);
    assert!(first.messages().iter().all(|message| message.recipients == ["d@z.test"]), "{:?}", first.messages());
}

/// What an operator was told to be held, on another way, at its end or paused was delivered a moment later by the next host.
#[test]
fn what_a_command_has_stopped_is_not_brought_to_the_next_host() {
    let silent = FaultyHop::start(Script { point: "mail", fault: Fault::Silence, pipelining: true });
    let (second, other) = (NextHop::start(), NextHop::start());
    let hosts = format!("[\"{}\", {{ host = \"{}\", backup = true }}]", silent.address, second.address);
    let names = ["held", "rerouted", "expired", "paused", "purged", "plain"];
    let route = |name: &str| format!("[[route]]\ndomain = \"{name}.test\"\nvia = \"smarthost\"\nhosts = {hosts}\n");
    let mut extra: String = names.iter().map(|name| route(name)).collect();
    extra += &format!("[[route]]\ndomain = \"other.test\"\nvia = \"smarthost\"\nhosts = [\"{}\"]\n", other.address);
    let retries =
        "[queue]\nretry_base = \"1h\"\nretry_cap = \"1h\"\n[delivery]\nconnections_max = 8\nwindow_initial = 8\nmail_timeout = \"15s\"\n";
    let node = Node::start(&two_shards(Setup { retries, extra: extra.leak(), ..Setup::new() }));
    // Each shard has mail for destinations that the other one delivers to.
    let mut clients: Vec<Client> = (0..3).map(|_| Client::greeted(node.address)).collect();
    for client in &mut clients {
        names.iter().for_each(|name| drop(client.deliver(&format!("b@{name}.test"), "Subject: x\r\n\r\nx")));
    }
    let is_active = |message: &Value| message["recipients"][0]["state"] == "active";
    node.wait_for_queue(|queue| queue.len() == 18 && queue.iter().all(is_active) && silent.faults() == 18);
    for (words, told) in [
        (&["hold", "--domain", "held.test"][..], "3 messages held"),
        (&["reroute", "--domain", "rerouted.test", "--to", "other.test"], "3 messages re-routed"),
        (&["set-expiry", "--domain", "expired.test", "0s"], "3 messages given another end of life"),
        (&["purge", "--domain", "purged.test"], "3 messages purged"),
        (&["pause", "paused.test"], "paused: paused.test"),
    ] {
        let output = node.ask(&[&["queue"], words].concat());
        assert!(String::from_utf8_lossy(&output.stdout).starts_with(told), "{words:?}: {output:?}");
    }
    assert_eq!(second.messages().len(), 0, "the hosts are still silent");
    second.wait_for(3);
    // At once, whatever the retries of where it was.
    other.wait_for(3);
    let queue = node.wait_for_queue(|queue| !queue.iter().any(is_active) && queue.len() == 9);
    let of = |name: &str| queue.iter().filter(|message| message["recipients"][0]["address"] == format!("b@{name}.test")).count();
    assert_eq!((of("held"), of("paused")), (3, 3), "and three reports: {queue:?}");
    let to = |hop: &NextHop| hop.messages().into_iter().flat_map(|message| message.recipients).collect::<Vec<_>>();
    assert_eq!((to(&second), to(&other)), (vec!["b@plain.test".to_owned(); 3], vec!["b@rerouted.test".to_owned(); 3]));
    assert!(counter(&node, "dispatched_to_homes") > 0, "both shards have mail");
}

/// Whom no command was for had to wait for the next attempt, an hour later, because it shared a message with one who was purged.
#[test]
fn whom_no_command_was_for_goes_on_to_the_next_host() {
    let silent = FaultyHop::start(Script { point: "mail", fault: Fault::Silence, pipelining: true });
    let mute = FaultyHop::start(Script { point: "connect", fault: Fault::Silence, pipelining: true });
    let (second, other) = (NextHop::start(), NextHop::start());
    let route = |domain: &str, hosts: &[SocketAddr]| {
        let hosts: Vec<_> = (0..).zip(hosts).map(|(at, host)| format!("{{ host = \"{host}\", backup = {} }}", at > 0)).collect();
        format!("[[route]]\ndomain = \"{domain}\"\nvia = \"smarthost\"\nhosts = [{}]\n", hosts.join(", "))
    };
    let extra = route("other.test", &[other.address])
        + &route("*.said.test", &[silent.address, second.address])
        + &route("*.unsaid.test", &[mute.address, second.address]);
    let retries = "[queue]\nretry_base = \"1h\"\nretry_cap = \"1h\"\n[delivery]\nconnections_max = 8\nwindow_initial = 8\n\
        mail_timeout = \"12s\"\nbanner_timeout = \"12s\"\n";
    let node = Node::start(&two_shards(Setup { retries, extra: extra.leak(), ..Setup::new() }));
    // Each shard has mail for destinations that the other one delivers to.
    let mut clients: Vec<Client> = (0..3).map(|_| Client::greeted(node.address)).collect();
    for client in &mut clients {
        for hop in ["said", "unsaid"] {
            let to = ["plain", "purged", "rerouted"].map(|to| format!("b@{to}.{hop}.test"));
            client.deliver_to(&to.each_ref().map(String::as_str), "Subject: x\r\n\r\nx");
        }
        client.deliver("b@held.unsaid.test", "Subject: x\r\n\r\nx");
    }
    // Of the one it has come to MAIL, and of the other to nothing.
    node.wait_for_queue(|queue| queue.len() == 9 && silent.faults() == 3 && mute.faults() == 6);
    for (words, told) in [
        (&["purge", "--domain", "purged.said.test"][..], "3 messages purged"),
        (&["purge", "--domain", "purged.unsaid.test"], "3 messages purged"),
        (&["reroute", "--domain", "rerouted.said.test", "--to", "other.test"], "3 messages re-routed"),
        (&["reroute", "--domain", "rerouted.unsaid.test", "--to", "other.test"], "3 messages re-routed"),
        // Nothing was put off yet: no host has so much as greeted.
        (&["hold", "--domain", "held.unsaid.test"], "3 messages held"),
    ] {
        let output = node.ask(&[&["queue"], words].concat());
        assert!(String::from_utf8_lossy(&output.stdout).starts_with(told), "{words:?}: {output:?}");
    }
    // Whom a command was for leaves a host that has not greeted at once, and alone.
    let gone = other.wait_for(3);
    assert!(gone.iter().all(|message| message.recipients == ["b@rerouted.unsaid.test"]), "{gone:?}");
    assert_eq!(second.messages().len(), 0, "the hosts are still silent");
    second.wait_for(6);
    other.wait_for(6);
    let queue = node.wait_for_queue(|queue| queue.len() == 3 && queue.iter().all(|message| message["recipients"][0]["state"] == "held"));
    assert!(queue.iter().all(|message| message["recipients"][0]["address"] == "b@held.unsaid.test"), "{queue:?}");
    let to = |hop: &NextHop, what: &str| hop.messages().iter().filter(|message| message.recipients == [what]).count();
    let counts = ["said", "unsaid"].map(|hop| (to(&second, &format!("b@plain.{hop}.test")), to(&other, &format!("b@rerouted.{hop}.test"))));
    assert_eq!((counts, second.messages().len(), other.messages().len()), ([(3, 3); 2], 6, 6), "and nobody else");
    assert!(counter(&node, "dispatched_to_homes") > 0, "both shards have mail");
}

/// And one that offers less than the next one is no reason to fail.
#[test]
fn what_the_first_host_does_not_offer_the_next_one_may() {
    let (first, second) = (NextHop::start(), NextHop::start());
    first.offer_seven_bits();
    let node = Node::start(&smarthosts(&[first.address, second.address]));
    deliver_eight_bits(&node, "b@y.test");
    node.wait_for_queue(<[_]>::is_empty);
    assert_eq!((first.messages().len(), second.messages().len()), (0, 1));
}

/// What a living host did not offer failed the message for good, although a dead one beside it might have offered it.
#[test]
fn what_a_host_does_not_offer_decides_nothing_while_another_one_cannot_be_asked() {
    let (dead, seven) = (at(1, free_port()), NextHop::start());
    seven.offer_seven_bits();
    let setup = Setup { retries: "[queue]\nretry_base = \"1s\"\nretry_cap = \"1s\"\n", ..smarthosts(&[dead, seven.address]) };
    let node = Node::start(&setup);
    deliver_eight_bits(&node, "b@y.test");
    let queue = node.wait_for_queue(|queue| queue.iter().any(is_deferred));
    let words = "451 4.6.3 the next hop does not offer 8BITMIME, which this message needs; not every host could be asked";
    assert_eq!(queue[0]["reason"], words);
    let log = node.wait_for_mail_log("outcome=deferred");
    assert!(log.contains("dsn=4.6.3 outcome=deferred"), "{log}");
    let back = NextHop::start_at(dead);
    back.wait_for(1);
    node.wait_for_queue(<[_]>::is_empty);
    assert_eq!(seven.messages().len(), 0);
}

/// Three hosts were asked and no more, whatever they said.
#[test]
fn a_host_behind_the_third_may_offer_what_none_before_it_does() {
    let hops: Vec<_> = (0..5).map(|_| NextHop::start()).collect();
    hops[..4].iter().for_each(NextHop::offer_seven_bits);
    let node = Node::start(&smarthosts(&hops.iter().map(|hop| hop.address).collect::<Vec<_>>()));
    deliver_eight_bits(&node, "b@y.test");
    hops[4].wait_for(1);
    node.wait_for_queue(<[_]>::is_empty);
    assert_eq!(hops.iter().map(NextHop::connections_made).collect::<Vec<_>>(), [1; 5]);
}

#[test]
fn what_no_host_offers_fails_once_all_were_asked() {
    let hops: Vec<_> = (0..5).map(|_| NextHop::start()).collect();
    hops.iter().for_each(NextHop::offer_seven_bits);
    let node = Node::start(&smarthosts(&hops.iter().map(|hop| hop.address).collect::<Vec<_>>()));
    deliver_eight_bits(&node, "b@y.test");
    let log = node.wait_for_mail_log("outcome=bounced");
    assert!(log.contains("dsn=5.6.3 outcome=bounced reply=\"554 5.6.3 the next hop does not offer 8BITMIME"), "{log}");
    assert_eq!(hops.iter().map(NextHop::connections_made).filter(|&made| made > 0).count(), 5);
}

/// One that closes behind the final dot each time, or has closed for this message alone, had it again and again until it expired.
#[test]
fn a_message_that_one_host_left_open_is_brought_to_another_the_next_time() {
    let dropping = FaultyHop::start(Script { point: "dot", ..CLOSES_AT_MAIL });
    let second = NextHop::start();
    let setup = Setup { retries: "[queue]\nretry_base = \"1s\"\nretry_cap = \"1s\"\n", ..smarthosts(&[dropping.address, second.address]) };
    let node = Node::start(&two_shards(setup));
    let mut clients: Vec<Client> = (0..6).map(|_| Client::greeted(node.address)).collect();
    clients.iter_mut().for_each(|client| drop(client.deliver("b@y.test", "Subject: x\r\n\r\nx")));
    node.wait_for_queue(<[_]>::is_empty);
    // Each went to the first host by its own right.
    assert_eq!((second.messages().len(), counter(&node, "deliveries_unknown")), (6, 6));
    assert_eq!(dropping.connections(), 6);
}

/// Connections that are kept with the host would have had it again, too.
#[test]
fn a_kept_connection_is_not_given_what_its_host_left_open() {
    let (first, first_at) = Store::over_tcp();
    let (second, second_at) = Store::over_tcp();
    first.answer("b@y.test", "close");
    first.answer("b@y.test", "close");
    let setup = Setup {
        route: format!("via = \"lmtp\"\nhosts = [\"{first_at}\", \"{second_at}\"]"),
        retries: "[queue]\nretry_base = \"2s\"\nretry_cap = \"2s\"\n[delivery]\nidle_timeout = \"1h\"\n",
        ..Setup::new()
    };
    let node = Node::start(&on_one_core(setup, 1));
    deliver(&node, "b@y.test");
    node.wait_for_queue(|queue| queue.iter().any(is_deferred));
    deliver(&node, "c@y.test");
    first.wait_for(1);
    second.wait_for(1);
    node.wait_for_queue(<[_]>::is_empty);
    let recipients = |store: &Store| store.saved().into_iter().map(|(recipient, _)| recipient).collect::<Vec<_>>();
    assert_eq!((recipients(&first), recipients(&second)), (vec!["c@y.test".to_owned()], vec!["b@y.test".to_owned()]));
}
