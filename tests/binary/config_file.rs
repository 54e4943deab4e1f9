//! What the binary says about its config file and its surroundings before it serves.

use std::net::TcpListener;
use std::process::Output;

use crate::node::{Node, Setup, ringpost, write_config};

/// sysexits EX_CONFIG.
const CONFIG_IS_WRONG: i32 = 78;

/// The file of the documentation, as an operator would write it.
const GOOD: &str = r#"hostname = "mx1.example.test"
[shards]
cores = "0"
[spool]
path = "spool"
[control]
socket = "ringpost.sock"
[[listener]]
address = "127.0.0.1:2525"
[relay]
networks = ["127.0.0.0/8", "::1/128"]
[[domain]]
name = "y.test"
recipients = ["b", "c"]
[[route]]
domain = "*"
via = "smarthost"
hosts = ["127.0.0.1:2600"]
"#;

fn check(text: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), text);
    ringpost().args(["check", "-c"]).arg(config).output().unwrap()
}

/// Replaces `from` by `to` in the good file; the complaint must name the file, the line and each of `words`.
fn is_refused(from: &str, to: &str, line: usize, words: &[&str]) {
    assert!(GOOD.contains(from), "{from:?} is not in the good file");
    let output = check(&GOOD.replace(from, to));
    let words_said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(CONFIG_IS_WRONG), "{to:?}: {words_said}");
    assert!(words_said.contains(&format!("ringpost.toml:{line}")), "{to:?}: no file and line {line} in {words_said:?}");
    for word in words {
        assert!(words_said.contains(word), "{to:?}: {word:?} is not in {words_said:?}");
    }
}

#[test]
fn the_file_of_the_documentation_is_accepted() {
    let output = check(GOOD);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn unknown_keys_are_named_with_file_and_line() {
    is_refused("path = \"spool\"", "paht = \"spool\"", 5, &["paht"]);
    is_refused("[spool]", "[spoool]", 4, &["spoool"]);
    is_refused("via = \"smarthost\"", "via = \"smarthost\"\nhost = \"127.0.0.1\"", 18, &["host"]);
}

#[test]
fn wrong_values_are_named_with_what_is_allowed() {
    is_refused("via = \"smarthost\"", "via = \"smart\"", 17, &["via", "smart", "hold", "discard"]);
    is_refused("address = \"127.0.0.1:2525\"", "address = \"127.0.0.1\"", 9, &["address", "127.0.0.1"]);
    is_refused("networks = [\"127.0.0.0/8\", \"::1/128\"]", "networks = [\"127.0.0.0/80\"]", 11, &["networks", "127.0.0.0/80"]);
    is_refused("cores = \"0\"", "cores = \"5-2\"", 3, &["cores", "5-2"]);
    is_refused("path = \"spool\"", "path = \"spool\"\nsegment_bytes = \"12 parsecs\"", 6, &["segment_bytes", "parsecs"]);
    is_refused("cores = \"0\"", "cores = 7", 3, &["cores"]);
}

#[test]
fn contradictions_are_named() {
    is_refused("hosts = [\"127.0.0.1:2600\"]\n", "", 15, &["hosts"]);
    is_refused("name = \"y.test\"", "name = \"y.test\"\n[[domain]]\nname = \"Y.TEST\"", 15, &["Y.TEST"]);
}

#[test]
fn text_that_is_not_toml_is_named_with_its_line() {
    is_refused("hostname = \"mx1.example.test\"", "hostname = mx1 example", 1, &[]);
}

#[test]
fn a_missing_file_is_named() {
    let output = ringpost().args(["check", "-c", "/nonexistent/ringpost.toml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(CONFIG_IS_WRONG));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent/ringpost.toml"));
}

/// A file with a secret that was not there, or empty, was once good for the check, and the start then failed.
#[test]
fn a_secret_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (secret, empty) = (folder.path().join("secret"), folder.path().join("empty"));
    std::fs::write(&secret, "a secret of some length\n").unwrap();
    std::fs::write(&empty, "\n").unwrap();
    let admin = "[admin]\naddress = \"127.0.0.1:0\"\n";
    let cluster = "[cluster]\nenabled = true\nvalkey_url = \"valkey://127.0.0.1:6379\"\n";
    let config = |section: &str, key: &str, file: &std::path::Path| format!("{GOOD}{section}{key} = \"{}\"\n", file.display());
    for (section, key) in [(admin, "token_file"), (cluster, "key_file"), (cluster, "valkey_password_file")] {
        let output = check(&config(section, key, &secret));
        assert!(output.status.success(), "{key}: {}", String::from_utf8_lossy(&output.stderr));
        for (file, reason) in [(&empty, "empty"), (&folder.path().join("none"), "No such file")] {
            let output = check(&config(section, key, file));
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(CONFIG_IS_WRONG), "{key}: {said}");
            let words = [key, &file.display().to_string(), reason];
            assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
        }
    }
}

/// Any first line that was not empty was a key.
#[test]
fn a_clusters_key_that_is_too_short_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    let config = format!("{GOOD}[cluster]\nenabled = true\nvalkey_url = \"valkey://127.0.0.1:6379\"\nkey_file = \"{}\"\n", key.display());
    std::fs::write(&key, "fifteen bytes..\nand a second line\n").unwrap();
    let output = check(&config);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(CONFIG_IS_WRONG), "{said}");
    let words = ["cluster.key_file", &key.display().to_string(), "has 15 bytes", "at least 16", "openssl rand -hex 32"];
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
    std::fs::write(&key, "sixteen bytes...\n").unwrap();
    let output = check(&config);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn serve_refuses_what_check_refuses() {
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), &GOOD.replace("[spool]", "[spoool]"));
    let output = ringpost().args(["serve", "-c"]).arg(config).output().unwrap();
    assert_eq!(output.status.code(), Some(CONFIG_IS_WRONG));
    assert!(String::from_utf8_lossy(&output.stderr).contains("spoool"));
    assert!(!folder.path().join("spool").exists(), "nothing is made for a config that is refused");
}

/// Whoever had broken the file could not look into the queue of the engine that ran with the one before, and ended with 78.
#[test]
fn commands_find_the_running_engine_by_a_file_in_which_something_else_is_wrong() {
    let node = Node::start(&Setup::new());
    let file = node.folder.path().join("ringpost.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    let break_with = |bytes: &[u8]| std::fs::write(&file, [good.as_bytes(), bytes].concat()).unwrap();
    for (wrong, named) in [(&b"\n[queeue]\n"[..], "queeue"), (b"\n[queue\n", "is not TOML"), (b"\n# gr\xfcn\n", "is not UTF-8")] {
        break_with(wrong);
        for words in [&["queue", "ls"][..], &["queue", "hold", "--all"], &["stats"]] {
            let output = node.ask(words);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{words:?}: {said}");
            assert!(said.starts_with("ringpost: warning: ") && said.contains(named), "{words:?}: {said}");
        }
        assert!(!node.ask(&["reload"]).status.success(), "the engine reads all of it");
    }
    std::fs::write(&file, good.replace("socket = \"", "soket = \"")).unwrap();
    let output = node.ask(&["queue", "ls"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(CONFIG_IS_WRONG) && said.contains("control.soket"), "{said}");
}

#[test]
fn the_embedded_defaults_are_a_good_file() {
    let output = ringpost().args(["config", "default"]).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("[spool]") && check(&text).status.success());
}

#[test]
fn each_command_has_a_manual_page() {
    let folder = tempfile::tempdir().unwrap();
    assert!(ringpost().args(["man", "--dir"]).arg(folder.path()).status().unwrap().success());
    for page in ["ringpost.1", "ringpost-serve.1", "ringpost-spool-verify.1", "ringpost-queue-ls.1"] {
        let text = std::fs::read_to_string(folder.path().join(page)).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{page}");
    }
}

#[test]
fn the_version_names_the_commit() {
    let output = ringpost().arg("--version").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("ringpost ") && text.contains('(') && text.contains(')'), "{text}");
}

#[test]
fn a_port_in_use_is_said_with_its_address() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let text = GOOD.replace("127.0.0.1:2525", &address).replace("[spool]", "[spool]\nallow_unsafe_spool = true");
    let config = write_config(folder.path(), &text);
    let output = ringpost().args(["serve", "-c"]).arg(config).output().unwrap();
    let words = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success());
    assert!(words.contains(&address) && words.contains("in use"), "{words}");
}

#[test]
fn a_second_engine_on_the_same_spool_is_refused() {
    let setup = Setup::new();
    let mut node = Node::start(&setup);
    let other = Setup::new();
    let text = std::fs::read_to_string(node.folder.path().join("ringpost.toml")).unwrap();
    let second = node.folder.path().join("second.toml");
    let text = text.replace(&setup.address.to_string(), &other.address.to_string()).replace("ringpost.sock", "second.sock");
    std::fs::write(&second, text).unwrap();
    let output = ringpost().args(["serve", "-c"]).arg(second).output().unwrap();
    let words = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success() && words.contains("spool"), "{words}");
    assert!(node.is_running());
}

#[test]
fn topology_names_the_cores() {
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), GOOD);
    let output = ringpost().args(["topology", "-c"]).arg(&config).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("core"));
    let output = ringpost().args(["topology", "--json", "-c"]).arg(&config).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{text}");
}

#[test]
fn a_limit_below_the_number_of_shards_is_a_warning() {
    let output = check(&format!("{GOOD}\n[smtp]\nsessions_per_address = 2\n").replace("[shards]", "[shards]\nper_core = 4"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("smtp.sessions_per_address = 2 is less than the number of shards"), "{said}");
}
