//! Whole files that are read: the examples, the defaults, every key.

mod written;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringpost_config::{
    BareNewline, ByteRate, ByteSize, Config, CoordinatorCore, Cores, DEFAULT_TOML, IoWq, LogFormat, LogLevel, MailLog, MailOutput,
    OnDiskFailure, Percent, Smt, StoreAddress, TextLine, UnknownMailbox, Via,
};

use written::{assert_refused, parse};

#[test]
fn the_first_mail_file_is_read() {
    let config = parse(include_str!("../examples/first-mail.toml"));
    assert_eq!(config.hostname.as_deref(), Some("mx1.example.test"));
    assert_eq!(config.shards.cores, Cores::List("0".parse().unwrap()));
    assert_eq!(config.spool.path, PathBuf::from("/etc/ringpost/spool"));
    assert_eq!(config.control.socket, PathBuf::from("/etc/ringpost/ringpost.sock"));
    assert_eq!(config.listeners.len(), 1);
    assert_eq!(config.listeners[0].address, "127.0.0.1:2525".parse().unwrap());
    let loopback: IpAddr = "::ffff:127.0.0.1".parse().unwrap();
    assert!(config.relay.allows(loopback));
    assert!(!config.relay.allows("192.0.2.1".parse().unwrap()));
    let domain = config.domains.get("Y.Test").unwrap();
    assert!(domain.accepts("b") && domain.accepts("C") && domain.accepts("postmaster") && !domain.accepts("d"));
    let route = config.routes.get("anywhere.example").unwrap();
    assert_eq!(route.via, Via::Smarthost { hosts: vec!["127.0.0.1:2600".parse().unwrap()] });
    assert_eq!(route.retry, config.queue.retry);
    assert_eq!(route.connections_max(&config.delivery), 20);
}

#[test]
fn the_other_examples_are_read() {
    let store = parse(include_str!("../examples/store-relay.toml"));
    assert!(store.relay.networks.is_empty());
    assert!(store.domains.get("lists.example.org").unwrap().accepts("anything"));
    assert_eq!(store.routes.get("example.org").unwrap().retry.cap, Duration::from_secs(1800));
    assert_eq!(store.routes.get("example.org").unwrap().retry.base, Duration::from_secs(300));
    // Reports go to whoever sent the mail.
    assert_eq!(store.routes.get("elsewhere.test").unwrap().via, Via::Mx { port: 25 });

    let outbound = parse(include_str!("../examples/outbound.toml"));
    assert_eq!(outbound.routes.get("a.invalid").unwrap().via, Via::Discard);
    let route = outbound.routes.get("example.com").unwrap();
    assert_eq!(route.connections_max(&outbound.delivery), 100);
    let Via::Smarthost { hosts } = &route.via else { panic!("{:?}", route.via) };
    assert_eq!(hosts[0], "198.51.100.1:25".parse().unwrap());
    assert_eq!(outbound.log.mail_output, MailOutput::File(PathBuf::from("/var/log/ringpost/mail.log")));
}

#[test]
fn the_documented_defaults_are_those_of_the_code() {
    let documented = Config::parse(DEFAULT_TOML, Path::new("default.toml")).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(documented, Config::default());
    assert_eq!(Config::parse("", Path::new("empty.toml")).unwrap(), Config::default());
}

#[test]
fn every_commented_example_of_the_defaults_is_a_right_value() {
    // The keys without a default are commented out: with them in, only what they contradict may be said.
    let mut text = String::new();
    for line in DEFAULT_TOML.lines() {
        let key = line.strip_prefix("# ").filter(|rest| rest.starts_with("[[domain]]") || rest.split(' ').nth(1) == Some("="));
        // Of maildirs, of routes by mx and of routes for some senders only: the route becomes one by smarthost, for all.
        let key = key.filter(|key| !["path = ", "unknown_mailbox = ", "port = ", "sender"].iter().any(|only| key.starts_with(only)));
        text.push_str(key.unwrap_or(line));
        text.push('\n');
    }
    let text = text.replace("via = \"hold\"", "via = \"smarthost\"");
    let config = parse(&text);
    assert_eq!(config.hostname.as_deref(), Some("mx1.example.org"));
    assert_eq!(config.listeners[0].name, "public");
    assert_eq!(config.domains.get("example.org").unwrap().recipients().map(<[String]>::len), Some(2));
    let route = &config.routes.as_slice()[0];
    assert_eq!(route.overrides.messages_per_connection, Some(Some(1000)));
    assert_eq!(route.retry, config.queue.retry);
}

#[test]
fn routes_into_mailboxes_name_stores_and_paths() {
    let route = |lines: &str| Config::parse(&format!("[[route]]\ndomain = \"*\"\n{lines}"), Path::new("/etc/ringpost/ringpost.toml"));
    let via = |lines: &str| route(lines).unwrap_or_else(|errors| panic!("{errors}")).routes.as_slice()[0].via.clone();
    let stores = via("via = \"lmtp\"\nhosts = [\"127.0.0.1:24\", \"unix:/run/lmtp.sock\", \"unix:lmtp.sock\"]");
    let expected = vec![
        StoreAddress::Tcp("127.0.0.1:24".parse().unwrap()),
        StoreAddress::Unix("/run/lmtp.sock".into()),
        StoreAddress::Unix("/etc/ringpost/lmtp.sock".into()),
    ];
    assert_eq!(stores, Via::Lmtp { hosts: expected });
    for (path, expected) in [("/m/{domain}/{local}", "/m/{domain}/{local}"), ("{local}", "/etc/ringpost/{local}")] {
        assert_eq!(
            via(&format!("via = \"maildir\"\npath = \"{path}\"")),
            Via::Maildir { path: expected.into(), unknown: UnknownMailbox::Create }
        );
    }
    let refusing = via("via = \"maildir\"\npath = \"/m/{local}\"\nunknown_mailbox = \"refuse\"");
    assert_eq!(refusing, Via::Maildir { path: "/m/{local}".into(), unknown: UnknownMailbox::Refuse });
    for (lines, sentence) in [
        ("via = \"maildir\"\npath = \"/m/{local}\"\nunknown_mailbox = \"bounce\"", "is not allowed"),
        ("via = \"discard\"\nunknown_mailbox = \"refuse\"", "is used by via = \"maildir\" only"),
        ("via = \"lmtp\"", "is missing"),
        ("via = \"lmtp\"\nhosts = []", "names no host"),
        ("via = \"lmtp\"\nhosts = [\"127.0.0.1:25\"]", "has port 25, which is SMTP's"),
        ("via = \"lmtp\"\nhosts = [\"127.0.0.1\"]", "is not an address with a port"),
        ("via = \"lmtp\"\nhosts = [\"unix:\"]", "names no socket"),
        ("via = \"lmtp\"\nhosts = [\"unix:/a\", \"unix:/a\"]", "twice"),
        ("via = \"lmtp\"\nhosts = [\"127.0.0.1:24\"]\npath = \"/m\"", "is used by via = \"maildir\" only"),
        ("via = \"maildir\"", "is missing"),
        ("via = \"maildir\"\npath = \"/m\"", "has no {local}"),
        ("via = \"maildir\"\npath = \"/m/{user}/{local}\"", "another word"),
        ("via = \"maildir\"\npath = \"{local}\"\nhosts = [\"127.0.0.1:24\"]", "is not used by via = \"maildir\""),
        ("via = \"hold\"\npath = \"{local}\"", "is used by via = \"maildir\" only"),
    ] {
        let errors = route(lines).unwrap_err().to_string();
        assert!(errors.contains(sentence), "{lines}: {errors}");
    }
    let long = format!("via = \"lmtp\"\nhosts = [\"unix:/{}\"]", "x".repeat(107));
    assert!(route(&long).unwrap_err().to_string().contains("longer than the 107 bytes"));
}

#[test]
fn every_key_takes_effect() {
    let config = parse(
        r#"
        shards = { cores = "1-2", per_core = 2, pass_connections = false, smt = "use", coordinator_core = 3, io_wq = "shard" }
        spool = { path = "/s", segment_bytes = "1 MiB", prepared_segments = 3, min_free_bytes = "3 MiB",
                  min_free_inodes = 5, open_max = "4 MiB", on_disk_failure = "stop-accepting", allow_unsafe_spool = true }
        [smtp]
        content_max = "1 MiB"
        recipients_max = 101
        messages_per_connection = 2
        command_line_max = "3 KiB"
        local_part_max = "65 B"
        path_max = "257 B"
        bare_newline = "normalize"
        text_line = "strict"
        header_max = "17 KiB"
        header_lines_max = 101
        received_max = 11
        sessions_max = 12
        sessions_per_address = 13
        connections_per_minute = 14
        messages_per_minute = 15
        recipients_per_minute = 16
        idle_timeout = "17s"
        command_timeout = "18s"
        data_timeout = "19s"
        data_rate_min = "20 B/s"
        bad_commands_soft = 21
        bad_command_delay = "22s"
        bad_commands_max = 23
        junk_commands_max = 24
        [queue]
        retry_base = "1m"
        retry_cap = "2m"
        retry_jitter = "3 %"
        expiry = "4m"
        [delivery]
        connections_max = 6
        window_initial = 4
        messages_per_connection = 7
        idle_timeout = "8s"
        max_lifetime = "9s"
        probe_after = "10s"
        dead_destination = "11s"
        connect_timeout = "12s"
        banner_timeout = "13s"
        ehlo_timeout = "14s"
        mail_timeout = "15s"
        rcpt_timeout = "16s"
        data_timeout = "17s"
        block_timeout = "18s"
        dot_timeout = "19s"
        quit_timeout = "20s"
        maildir_timeout = "21s"
        [log]
        format = "json"
        level = "debug"
        mail = "required"
        mail_output = "mail.log"
        [memory]
        max_memory = "1 GiB"
        "#,
    );
    assert_eq!((config.shards.per_core, config.shards.pass_connections), (2, false));
    assert_eq!((config.shards.smt, config.shards.coordinator_core, config.shards.io_wq), (Smt::Use, CoordinatorCore::Core(3), IoWq::Shard));
    let spool = &config.spool;
    assert_eq!((spool.segment_bytes, spool.min_free_bytes, spool.open_max), {
        let mib = ByteSize::mib;
        (mib(1), mib(3), mib(4))
    });
    assert_eq!((spool.prepared_segments, spool.min_free_inodes), (3, 5));
    assert_eq!((spool.on_disk_failure, spool.allow_unsafe_spool), (OnDiskFailure::StopAccepting, true));

    let seconds = |count| Duration::from_secs(count);
    let smtp = &config.smtp;
    assert_eq!((smtp.content_max, smtp.command_line_max), (ByteSize::mib(1), ByteSize::kib(3)));
    assert_eq!((smtp.local_part_max, smtp.path_max, smtp.header_max), (ByteSize::new(65), ByteSize::new(257), ByteSize::kib(17)));
    assert_eq!((smtp.bare_newline, smtp.text_line), (BareNewline::Normalize, TextLine::Strict));
    assert_eq!((smtp.recipients_max, smtp.messages_per_connection, smtp.header_lines_max, smtp.received_max), (101, 2, 101, 11));
    assert_eq!((smtp.sessions_max, smtp.sessions_per_address), (Some(12), 13));
    assert_eq!((smtp.connections_per_minute, smtp.messages_per_minute, smtp.recipients_per_minute), (Some(14), Some(15), Some(16)));
    assert_eq!((smtp.idle_timeout, smtp.command_timeout, smtp.data_timeout), (seconds(17), seconds(18), seconds(19)));
    assert_eq!((smtp.data_rate_min, smtp.bad_command_delay), (ByteRate::new(20), seconds(22)));
    assert_eq!((smtp.bad_commands_soft, smtp.bad_commands_max, smtp.junk_commands_max), (21, 23, 24));

    let retry = config.queue.retry;
    assert_eq!((retry.base, retry.cap, retry.jitter), (seconds(60), seconds(120), Percent::new(3)));
    assert_eq!(retry.expiry, seconds(240));
    // Absent, the only route holds, with the retries of this file.
    assert_eq!(config.routes.get("a.test").map(|route| route.retry), Some(retry));

    let delivery = &config.delivery;
    assert_eq!((delivery.connections_max, delivery.window_initial, delivery.messages_per_connection), (6, 4, Some(7)));
    let pool = &delivery.policy.pool;
    let times = [pool.idle_timeout, pool.max_lifetime, pool.probe_after, delivery.dead_destination, delivery.connect_timeout];
    assert_eq!(times, [8, 9, 10, 11, 12].map(seconds));
    let replies = [delivery.banner_timeout, delivery.ehlo_timeout, delivery.mail_timeout, delivery.rcpt_timeout, delivery.data_timeout];
    assert_eq!(replies, [13, 14, 15, 16, 17].map(seconds));
    let others = [delivery.block_timeout, delivery.dot_timeout, delivery.quit_timeout, delivery.maildir_timeout];
    assert_eq!(others, [18, 19, 20, 21].map(seconds));

    let log = &config.log;
    assert_eq!((log.format, log.level, log.mail), (LogFormat::Json, LogLevel::Debug, MailLog::Required));
    assert_eq!(log.mail_output, MailOutput::File(PathBuf::from("/etc/ringpost/mail.log")));
    assert_eq!(config.memory.max_memory, Some(ByteSize::gib(1)));
}

#[test]
fn a_route_says_how_its_destinations_are_treated_and_delivery_says_the_rest() {
    let config = parse(
        r#"
        [[route]]
        domain = "a.test"
        via = "smarthost"
        hosts = ["192.0.2.1"]
        rate = "1000/min"
        breaker_failure_ratio = "30 %"
        max_idle = 3
        [[route]]
        domain = "*"
        via = "smarthost"
        hosts = ["192.0.2.2"]
        rate = "off"
        test_on_return = true
        [delivery]
        rate = "5/s"
        rate_burst = 4
        throttle_pause = "3s"
        breaker_max_requests = 2
        breaker_interval = "30s"
        breaker_timeout = "2s"
        breaker_minimum = 7
        min_idle = 1
        max_active = 9
        wait_timeout = "4s"
        test_on_borrow = false
        test_while_idle = false
        test_interval = "6s"
        "#,
    );
    let seconds = |count| Duration::from_secs(count);
    let first = config.routes.get("a.test").unwrap().policy(&config.delivery);
    assert_eq!((first.rate, first.rate_burst, first.throttle_pause), (Some("1000/min".parse().unwrap()), 4, seconds(3)));
    let breaker = first.breaker;
    assert_eq!((breaker.max_requests, breaker.minimum, breaker.failure_ratio), (2, 7, Percent::new(30)));
    assert_eq!((breaker.interval, breaker.timeout), (seconds(30), seconds(2)));
    let pool = first.pool;
    assert_eq!((pool.min_idle, pool.max_idle, pool.max_active, pool.wait_timeout), (1, 3, 9, seconds(4)));
    assert_eq!((pool.test_on_borrow, pool.test_on_return, pool.test_while_idle, pool.test_interval), (false, false, false, seconds(6)));
    let second = config.routes.get("b.test").unwrap().policy(&config.delivery);
    assert_eq!((second.rate, second.pool.test_on_return, second.pool.max_idle), (None, true, 50));
    assert_eq!(config.delivery.policy.rate, Some("5/s".parse().unwrap()));

    assert_refused(
        "[delivery]\nrate = \"fast\"\nmin_idle = 60\nbreaker_failure_ratio = \"0 %\"\nmax_active = 0\n",
        &[
            "ringpost.toml:2: delivery.rate: \"fast\" is not a rate: write for instance \"100/s\", \"1000/min\", \"500/h\" or \"2000/d\", or \"off\"",
            "ringpost.toml:3: delivery.min_idle: 60 contradicts itself: min_idle is 60, max_idle is 50",
            "ringpost.toml:4: delivery.breaker_failure_ratio: \"0 %\" is out of bounds: allowed is \"1 %\" to \"100 %\"",
            "ringpost.toml:5: delivery.max_active: 0 is out of bounds: allowed is 1 to 10000",
        ],
    );
}

#[test]
fn smarthosts_go_in_turn_or_by_weight_and_backups_last() {
    let hosts = |written: &str| {
        let config = parse(&format!("[[route]]\ndomain = \"*\"\nvia = \"smarthost\"\nhosts = {written}\n"));
        let Via::Smarthost { hosts } = config.routes.as_slice()[0].via.clone() else { panic!("another route") };
        hosts.iter().map(|host| (host.address.to_string(), host.preference, host.weight)).collect::<Vec<_>>()
    };
    let of =
        |list: &[(&str, u32, u16)]| -> Vec<_> { list.iter().map(|(host, turn, weight)| ((*host).to_owned(), *turn, *weight)).collect() };
    let backup = "{ host = \"c.test\", backup = true }";
    assert_eq!(hosts("[\"a.test\", \"192.0.2.1:26\"]"), of(&[("a.test:25", 0, 1), ("192.0.2.1:26", 1, 1)]));
    assert_eq!(
        hosts(&format!("[{backup}, \"a.test\", {{ host = \"b.test\" }}]")),
        of(&[("a.test:25", 0, 1), ("b.test:25", 1, 1), ("c.test:25", 2, 1)])
    );
    let weighted = format!("[{{ host = \"a.test:587\", weight = 3 }}, {backup}, {{ host = \"b.test\", weight = 1000 }}]");
    assert_eq!(hosts(&weighted), of(&[("a.test:587", 0, 3), ("b.test:25", 0, 1000), ("c.test:25", 2, 1)]));
}

#[test]
fn ten_thousand_domains_are_read_and_found() {
    let mut text = String::from("[[route]]\ndomain = \"*\"\nvia = \"hold\"\n");
    for number in 0..10_000 {
        text.push_str(&format!("[[domain]]\nname = \"d{number}.test\"\nrecipients = [\"a\", \"b\"]\n"));
    }
    let config = parse(&text);
    assert_eq!(config.domains.len(), 10_000);
    assert!(config.domains.get("D9999.test").is_some_and(|domain| domain.accepts("b")));
    text.push_str("[[domain]]\nname = \"d5000.test\"\n");
    assert_refused(&text, &["ringpost.toml:30005: domain[10001].name: \"d5000.test\" has a [[domain]] already, see line 15005"]);
}

#[test]
fn a_node_that_only_offers_takes_no_more_than_can_be_offered() {
    let front = "[cluster]\nenabled = true\n[delivery]\nmode = \"shared\"\ndeliver = false\n";
    assert_eq!(parse(front).smtp.content_max, ringpost_config::OFFERED_CONTENT_MAX);
    assert_eq!(parse(&format!("{front}[smtp]\ncontent_max = \"1 MiB\"\n")).smtp.content_max, ByteSize::mib(1));
    assert_refused(
        &format!("{front}[smtp]\ncontent_max = \"5 MiB\"\n"),
        &[
            "ringpost.toml:7: smtp.content_max: \"5 MiB\" does not fit: with delivery.deliver = false all mail is handed to other nodes, and content \
           above 4 MiB cannot be; leave it out or write \"4 MiB\" at most",
        ],
    );
    assert_eq!(parse("").smtp.content_max, ByteSize::mib(50));
}

#[test]
fn own_hosts_are_names_and_addresses() {
    let parse = |list: &str| Config::parse(&format!("[dns]\nown_hosts = {list}\n"), Path::new("r.toml"));
    let dns = parse("[\"MX2.example.org\", \"203.0.113.25\", \"2001:db8::25\"]").unwrap().dns;
    assert_eq!(dns.own_names, ["mx2.example.org"]);
    assert_eq!(dns.own_addresses, ["203.0.113.25".parse::<IpAddr>().unwrap(), "2001:db8::25".parse().unwrap()]);
    for wrong in ["[\"203.0.113.25:25\"]", "[\"\"]", "[\"a b\"]"] {
        let said = parse(wrong).unwrap_err().to_string();
        assert!(said.contains("is neither a host's name nor an address"), "{wrong}: {said}");
    }
}

/// It was refused, so that no route could undo a limit that [delivery] sets.
#[test]
fn a_route_undoes_a_limit_of_messages_per_connection() {
    let text = "hostname = \"mx1.example.test\"\n[delivery]\nmessages_per_connection = 7\n\
        [[route]]\ndomain = \"a.test\"\nvia = \"mx\"\nmessages_per_connection = \"off\"\n\
        [[route]]\ndomain = \"b.test\"\nvia = \"mx\"\nmessages_per_connection = 2\n[[route]]\ndomain = \"*\"\nvia = \"mx\"\n";
    let config = parse(text);
    let of_routes: Vec<_> = config.routes.as_slice().iter().map(|route| route.messages_per_connection(&config.delivery)).collect();
    assert_eq!(of_routes, [None, Some(2), Some(7)]);
}

/// `breaker_timeout` and `throttle_pause` of a route doubled up to the time of all routes, and a route of two connections at most began with as many as the others.
#[test]
fn a_route_says_with_how_many_connections_it_begins_and_how_long_it_leaves_a_destination_alone() {
    let config = parse(
        "[delivery]\nwindow_initial = 6\ndead_destination = \"2m\"\n\
         [[route]]\ndomain = \"a.test\"\nvia = \"mx\"\nwindow_initial = 9\ndead_destination = \"1h\"\n\
         [[route]]\ndomain = \"b.test\"\nvia = \"mx\"\nconnections_max = 3\n[[route]]\ndomain = \"*\"\nvia = \"mx\"\n",
    );
    let of = |domain: &str| {
        let route = config.routes.get(domain).unwrap();
        (route.window_initial(&config.delivery), route.dead_destination(&config.delivery).as_secs())
    };
    assert_eq!((of("a.test"), of("b.test"), of("c.test")), ((9, 3600), (3, 120), (6, 120)));
    assert_refused(
        "[[route]]\ndomain = \"*\"\nvia = \"mx\"\nconnections_max = 3\nwindow_initial = 4\ndead_destination = \"25h\"\n",
        &[
            "ringpost.toml:5: route[1].window_initial: 4 is more than connections_max of this route, which is 3",
            "ringpost.toml:6: route[1].dead_destination: \"25h\" is out of bounds: allowed is \"1s\" to \"1d\"",
        ],
    );
}

/// Of `MT-Priority: 0`, which is the middle, it made the last, and `-3` it did not understand.
#[test]
fn the_field_of_rfc_6758_is_no_priority_header() {
    for name in ["MT-Priority", "mt-priority"] {
        let expected = format!(
            "ringpost.toml:2: smtp.priority_header: \"{name}\" has values from -9 to 9 (RFC 6758), and not from 0 to 9: take a field of your own"
        );
        assert_refused(&format!("[smtp]\npriority_header = \"{name}\"\n"), &[&expected]);
    }
}
