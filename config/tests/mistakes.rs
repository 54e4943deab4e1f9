//! What is said about files that are wrong: each mistake, with its line and what would be right.

mod written;

use std::path::Path;

use ringpost_config::{Config, DEFAULT_TOML};
use written::{assert_refused, parse, refused};

#[test]
fn all_mistakes_are_said_at_once_in_the_order_of_their_lines() {
    assert_refused(
        r#"hostname = "mx 1"
[shards]
cores = "0-"
[relay]
networks = [
  "127.0.0.0/8",
  "10.0.0.0/33",
  7,
]
[spool]
segmnet_bytes = "64 MiB"
segment_bytes = 67108864
colour = "red"
[smpt]
size = 1
"#,
        &[
            "ringpost.toml:1: hostname: \"mx 1\" is not a domain name, for instance \"example.org\"",
            "ringpost.toml:3: shards.cores: \"0-\" is not a list of cores: write for instance \"0,2-5\", numbers up to 8191; or \"auto\"",
            "ringpost.toml:7: relay.networks: \"10.0.0.0/33\" is not a network: the prefix length is 0 to 32",
            "ringpost.toml:8: relay.networks: 7 is an integer, not a string",
            "ringpost.toml:11: spool.segmnet_bytes: unknown key; did you mean segment_bytes?",
            "ringpost.toml:12: spool.segment_bytes: 67108864 is an integer, not a size in quotes with its unit, for instance \"25 MiB\", \
             \"64 KiB\" or \"512 B\"",
            "ringpost.toml:13: spool.colour: unknown key; allowed here: path, segment_bytes, prepared_segments, min_free_bytes, \
             min_free_inodes, open_max, on_disk_failure, allow_unsafe_spool",
            "ringpost.toml:14: smpt: unknown key; did you mean smtp?",
        ],
    );
}

#[test]
fn text_that_is_not_toml_names_its_line() {
    let said = refused("hostname = \"a\"\n[spool\npath = \"x\"\n");
    assert!(said[0].starts_with("ringpost.toml:2: "), "{said:?}");
    assert!(said[0].contains("is not TOML"), "{said:?}");
    let said = refused("[spool]\npath = \"a\"\npath = \"b\"\n");
    assert!(said[0].starts_with("ringpost.toml:3: ") && said[0].contains("duplicate key"), "{said:?}");
}

#[test]
fn values_out_of_bounds_name_the_bounds() {
    assert_refused(
        "[spool]\nsegment_bytes = \"2 GiB\"\n[smtp]\nrecipients_max = 10\nsessions_max = \"many\"\nmessages_per_minute = 0\n\
         [queue]\nretry_jitter = \"60 %\"\nexpiry = \"1s\"\n",
        &[
            "ringpost.toml:2: spool.segment_bytes: \"2 GiB\" is out of bounds: allowed is \"1 MiB\" to \"1 GiB\"",
            "ringpost.toml:4: smtp.recipients_max: 10 is out of bounds: allowed is 100 to 2000",
            "ringpost.toml:5: smtp.sessions_max: \"many\" is a string, not a whole number, or \"auto\"",
            "ringpost.toml:6: smtp.messages_per_minute: 0 is out of bounds: allowed is 1 to 10000000, or \"off\"",
            "ringpost.toml:8: queue.retry_jitter: \"60 %\" is out of bounds: allowed is \"0 %\" to \"50 %\"",
            "ringpost.toml:9: queue.expiry: \"1s\" is out of bounds: allowed is \"1m\" to \"30d\"",
        ],
    );
    assert_refused(
        "[spool]\nsegment_bytes = \"1500 KiB\"\n",
        &["ringpost.toml:2: spool.segment_bytes: \"1500 KiB\" is not a multiple of 1 MiB"],
    );
}

#[test]
fn words_that_are_not_allowed_name_those_that_are() {
    assert_refused(
        "[smtp]\nbare_newline = \"rejct\"\n[log]\nlevel = \"loud\"\n[spool]\non_disk_failure = true\n",
        &[
            "ringpost.toml:2: smtp.bare_newline: \"rejct\" is not allowed: write \"reject\" or \"normalize\"; did you mean \"reject\"?",
            "ringpost.toml:4: log.level: \"loud\" is not allowed: write \"error\" or \"warn\" or \"info\" or \"debug\" or \"trace\"",
            "ringpost.toml:6: spool.on_disk_failure: true is a boolean, not a word in quotes",
        ],
    );
}

#[test]
fn a_route_that_is_not_whole_says_what_is_missing() {
    assert_refused("[[route]]\nvia = \"hold\"\n", &["ringpost.toml:1: route[1].domain: is missing: write for instance domain = \"*\""]);
    assert_refused(
        "[[route]]\ndomain = \"*\"\n",
        &["ringpost.toml:1: route[1].via: is missing: write via = \"mx\", \"smarthost\", \"lmtp\", \"maildir\", \"discard\" or \"hold\""],
    );
    assert_refused(
        "[[route]]\ndomain = \"*\"\nvia = \"smarthost\"\n",
        &["ringpost.toml:1: route[1].hosts: is missing: via = \"smarthost\" needs hosts = [\"smart.example.net:587\"] or \
           [\"192.0.2.1:25\"]"],
    );
    assert_refused(
        "[[route]]\ndomain = \"*\"\nvia = \"hold\"\nhosts = [\"192.0.2.1\"]\n",
        &["ringpost.toml:4: route[1].hosts: [\"192.0.2.1\"] is not used by via = \"hold\": only smarthost and lmtp have hosts"],
    );
    assert_refused(
        "[[route]]\ndomain = []\nvia = \"smarthost\"\nhosts = []\n",
        &[
            "ringpost.toml:2: route[1].domain: [] names no domain: write for instance domain = \"*\"",
            "ringpost.toml:4: route[1].hosts: [] names no host: write for instance [\"smart.example.net:587\"]",
        ],
    );
    assert_refused(
        "[[route]]\ndomain = \"*\"\nvia = \"smarthost\"\nhosts = [\"192.0.2.1\", \"192.0.2.1:25\"]\n",
        &["ringpost.toml:4: route[1].hosts: [\"192.0.2.1\", \"192.0.2.1:25\"] names 192.0.2.1:25 twice"],
    );
}

#[test]
fn mail_that_could_be_accepted_must_have_a_route() {
    let said = refused("[[route]]\ndomain = \"example.org\"\nvia = \"discard\"\n");
    assert_eq!(said.len(), 1);
    assert!(said[0].starts_with("ringpost.toml:1: route: lacks one for \"*\""), "{said:?}");
    assert_refused(
        "[relay]\nnetworks = []\n[[domain]]\nname = \"a.test\"\n[[domain]]\nname = \"b.test\"\n[[route]]\ndomain = \"*.a.test\"\nvia = \"hold\"\n\
         [[route]]\ndomain = \"b.test\"\nvia = \"hold\"\n",
        &["ringpost.toml:4: domain[1].name: \"a.test\" has no route: add a [[route]] for it or for \"*\""],
    );
}

#[test]
fn what_stands_twice_names_both_lines() {
    assert_refused(
        "[[listener]]\naddress = \"127.0.0.1:25\"\n[[listener]]\naddress = \"127.0.0.1:25\"\n",
        &["ringpost.toml:4: listener[2].address: \"127.0.0.1:25\" is listened on already, see line 2"],
    );
    assert_refused(
        "[[domain]]\nname = \"a.test\"\n[[domain]]\nname = \"A.test\"\n",
        &["ringpost.toml:4: domain[2].name: \"A.test\" has a [[domain]] already, see line 2"],
    );
    assert_refused(
        "[[route]]\ndomain = \"*\"\nvia = \"hold\"\n[[route]]\ndomain = [\"a.test\", \"*\"]\nvia = \"hold\"\n",
        &["ringpost.toml:5: route[2].domain: [\"a.test\", \"*\"] repeats *, which has a route already, see line 2"],
    );
}

#[test]
fn contradictions_between_sections_name_the_key_that_is_in_the_file() {
    assert_refused(
        "[smtp]\ncontent_max = \"1 GiB\"\nbad_commands_soft = 30\n[spool]\nopen_max = \"512 MiB\"\n\
         [queue]\nretry_base = \"5h\"\n[delivery]\nconnections_max = 2\nwindow_initial = 3\n",
        &[
            "ringpost.toml:3: smtp.bad_commands_soft: 30 is a contradiction: smtp.bad_commands_max (20) is less than \
             smtp.bad_commands_soft (30)",
            "ringpost.toml:5: spool.open_max: \"512 MiB\" does not fit: spool.open_max (512 MiB) holds the content of open transactions, \
             smtp.content_max (1 GiB) is one of them",
            "ringpost.toml:7: queue.retry_base: \"5h\" is a contradiction: retry_base (5h) is more than retry_cap (4h)",
            "ringpost.toml:10: delivery.window_initial: 3 is more than delivery.connections_max, which is 2",
        ],
    );
    assert_eq!(parse("[delivery]\nconnections_max = 2\n").delivery.window_initial, 2);
    assert_refused(
        "[[route]]\ndomain = \"*\"\nvia = \"hold\"\nretry_cap = \"1m\"\n",
        &["ringpost.toml:4: route[1].retry_cap: \"1m\" is a contradiction: retry_base (5m) is more than retry_cap (1m)"],
    );
    let listeners = |second: &str| {
        format!(
            "[[listener]]\naddress = \"127.0.0.1:25\"\ntag = \"a\"\ncluster_messages_per_minute = 5\n\
             [[listener]]\naddress = \"127.0.0.1:26\"\ntag = \"{second}\"\ncluster_messages_per_minute = 6\n"
        )
    };
    assert_refused(
        &listeners("a"),
        &[
            "ringpost.toml:8: listener[2].cluster_messages_per_minute: 6 is another limit than line 4 has for the tag \"a\": a tag is one tenant \
           with one limit",
        ],
    );
    parse(&listeners("b"));
}

/// `check` found them good, and `serve` ended with them.
#[test]
fn a_keyspace_that_keys_cannot_begin_with_is_refused() {
    for wrong in ["", "a{b}c", "a b", "a\\n", &"x".repeat(129)] {
        let said = refused(&format!("[cluster]\nenabled = true\nvalkey_keyspace = \"{wrong}\"\n"));
        // A long value is cut.
        let shown = &wrong[..wrong.len().min(20)];
        assert!(said[0].starts_with(&format!("ringpost.toml:3: cluster.valkey_keyspace: \"{shown}")), "{said:?}");
        assert!(said[0].contains(" is not 1 to 128 letters"), "{said:?}");
    }
    parse(&format!("[cluster]\nvalkey_keyspace = \"Mail-1.a_b:{}\"\n", "x".repeat(117)));
}

#[test]
fn sections_and_lists_of_the_wrong_kind_are_refused() {
    assert_refused(
        "spool = 1\nlistener = { address = \"127.0.0.1:25\" }\nroute = [1]\nrelay = { networks = \"127.0.0.1\" }\n",
        &[
            "ringpost.toml:1: spool: 1 is an integer, not a section: write [spool]",
            "ringpost.toml:2: listener: can stand more than once: write [[listener]]",
            "ringpost.toml:3: route[1]: 1 is an integer, not a section: write [[route]]",
            "ringpost.toml:4: relay.networks: \"127.0.0.1\" is a string, not a list in brackets",
        ],
    );
    assert_refused("[[listener]]\n", &["ringpost.toml:1: listener[1].address: is missing: write for instance address = \"0.0.0.0:25\""]);
    assert_refused(
        "[[listener]]\naddress = \"127.0.0.1\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n",
        &[
            "ringpost.toml:2: listener[1].address: \"127.0.0.1\" is not an address and port: write for instance \"0.0.0.0:25\" or \"[::]:25\"",
            "ringpost.toml:4: listener[2].address: \"127.0.0.1:0\" has no port: it is 1 to 65535",
        ],
    );
}

#[test]
fn a_later_check_names_the_line_too() {
    let config = parse("[shards]\ncores = \"9\"\n[[listener]]\naddress = \"127.0.0.1:25\"\n");
    let machine = ringpost_config::topology::Machine::new(Vec::new());
    let error = ringpost_config::topology::Plan::new(&machine, &config.shards).unwrap_err();
    let said = config.error_at(error.key, error.message).to_string();
    assert!(said.starts_with("/etc/ringpost/ringpost.toml:2: shards.cores: \"9\" core 9 is not on this machine"), "{said}");
    let said = config.error_at("listener[1].address", "is in use").to_string();
    assert_eq!(said, "/etc/ringpost/ringpost.toml:4: listener[1].address: \"127.0.0.1:25\" is in use");
    // A key that is not in the file is said at its section.
    assert_eq!(config.error_at("shards.io_wq", "is odd").line, Some(1));
    assert_eq!(config.error_at("memory.max_memory", "is odd").line, None);
}

#[test]
fn random_damage_to_the_defaults_is_refused_or_read_but_never_a_panic() {
    let seed = 0x5eed_c0f1u64;
    println!("seed {seed:#x}");
    let mut state = seed;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let (mut read, mut refused) = (0, 0);
    for _ in 0..2000 {
        let mut bytes = DEFAULT_TOML.as_bytes().to_vec();
        for _ in 0..=random(4) {
            let at = random(bytes.len());
            match random(3) {
                0 => bytes[at] = b"0\"[]={}\n.-,#a\xc3"[random(14)],
                1 => drop(bytes.remove(at)),
                // Never empty: four rounds at most take a byte each.
                _ => bytes.truncate(at.max(4)),
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        match Config::parse(&text, Path::new("damaged.toml")) {
            Ok(_) => read += 1,
            Err(errors) => {
                refused += 1;
                assert!(!errors.0.is_empty());
                assert!(errors.0.iter().all(|error| error.line.is_none_or(|line| line as usize <= text.lines().count() + 1)), "{errors}");
            }
        }
    }
    assert!(read > 0 && refused > 0, "{read} read, {refused} refused");
}
