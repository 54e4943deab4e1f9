//! Every command and every address of a node of a cluster, as an operator would use them; each call says what is not as it should be.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use serde_json::Value;

use super::nodes::{self, leader, wait_for};
use crate::engine::Engine;

/// What writing over HTTP needs, in each node's `admin.token_file`.
pub(super) const TOKEN: &str = "an operator's token";
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Exit code, and output with errors. An operator whose call says that Valkey did not answer in its 50 ms calls again.
fn ask(node: &Engine, words: &[&str]) -> io::Result<(Option<i32>, String)> {
    wait_for("an answer of Valkey", || {
        let output = node.call(words)?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let is_slow = text.contains("Valkey cannot be reached") || text.contains("Valkey is left alone");
        Ok((!is_slow).then_some((output.status.code(), text)))
    })
}

/// `ringpost cluster …` but for work of one's own.
pub(super) fn commands(cluster: &[Engine], folder: &Path) -> io::Result<Vec<String>> {
    let mut wrong = Vec::new();
    let (first, second) = (folder.join("push-1.toml"), folder.join("push-2.toml"));
    let bad = folder.join("push-bad.toml");
    fs::write(&first, "[smtp]\nrecipients_max = 500\n")?;
    fs::write(&second, "[smtp]\nrecipients_max = 600\n")?;
    fs::write(&bad, "[smtp]\nrecipients_max = 0\n")?;
    let shown = |path: &Path| path.display().to_string();
    let (first, second, bad) = (shown(&first), shown(&second), shown(&bad));
    // Words, exit code, and what must stand in its output or errors.
    let calls: [(usize, &[&str], i32, &str); 24] = [
        (0, &["status"], 0, "epoch"),
        (1, &["status", "--json"], 0, "\"total_nodes\":3"),
        (2, &["nodes"], 0, "n3"),
        (0, &["nodes", "--json"], 0, "\"id\":\"n2\""),
        (1, &["leader"], 0, "n"),
        (0, &["queue", "stats"], 0, "pending"),
        (2, &["queue", "stats", "--json"], 0, "\"pending\":"),
        (0, &["queue", "dead", "--json"], 0, ""),
        (1, &["queue", "requeue", "--all"], 0, "0"),
        (1, &["queue", "purge", "--all"], 0, "0"),
        (2, &["queue", "partitions", "4"], 0, "4 partitions"),
        (0, &["queue", "partitions", "5"], 1, "cluster.queue_partitions = 5"),
        (0, &["config", "push", &first, "--dry-run"], 0, ""),
        (0, &["config", "push", &bad], 1, "smtp.recipients_max"),
        (0, &["config", "push", &first, "--author", "ann"], 0, "version 1"),
        (1, &["config", "push", &second, "--author", "bob"], 0, "version 2"),
        (2, &["config", "history"], 0, "bob"),
        (0, &["config", "show", "1"], 0, "recipients_max = 500"),
        (1, &["config", "diff"], 1, "+recipients_max = 600"),
        (2, &["config", "rollback"], 0, "version 3"),
        (0, &["config", "show"], 0, "recipients_max = 500"),
        (1, &["config", "poll", "5s"], 0, ""),
        (2, &["handover"], 0, ""),
        (0, &["status"], 0, ""),
    ];
    for (node, words, code, expected) in calls {
        let (status, text) = ask(&cluster[node], &[&["cluster"], words].concat())?;
        if status != Some(code) || !text.contains(expected) {
            wrong.push(format!("cluster {}: {status:?}, {:?}", words.join(" "), text.trim()));
        }
    }
    let runs_third = |node: &Engine| nodes::status(node).is_some_and(|status: Value| status["config_version"].as_u64() == Some(3));
    wait_for("version 3 on all nodes", || Ok(cluster.iter().all(runs_third).then_some(())))?;
    leader(cluster, None)?;
    Ok(wrong)
}

/// `ringpost cluster queue --name …`: one item through all that can become of it.
pub(super) fn work(cluster: &[Engine]) -> io::Result<Vec<String>> {
    let mut wrong = Vec::new();
    let mut token = String::new();
    // "TOKEN" is that of the last lease.
    let calls: [(usize, &[&str], &str); 18] = [
        (0, &["enqueue", "w1", "some data"], "added"),
        (1, &["enqueue", "w1", "some data"], "present"),
        (2, &["stats"], "pending"),
        (1, &["lease", "--lease", "60s", "--json"], "some data"),
        (1, &["extend", "w1", "TOKEN"], "extended"),
        (1, &["fail", "w1", "TOKEN", "--delay", "0s"], "waits"),
        (2, &["lease", "--json"], "\"attempts\":2"),
        (2, &["fail", "w1", "TOKEN", "--no-retry", "--reason", "no use"], "dead"),
        (0, &["dead"], "no use"),
        (1, &["requeue", "w1"], "1 done"),
        (2, &["lease", "--json"], "w1"),
        (2, &["complete", "w1", "TOKEN", "--result", "all went well"], "completed"),
        (0, &["settle", "w1"], "completed all went well"),
        (0, &["enqueue", "w2", "more"], "added"),
        (1, &["lease", "--json"], "w2"),
        (1, &["fail", "w2", "TOKEN", "--no-retry"], "dead"),
        (0, &["purge", "--all"], "1 done"),
        (2, &["recover"], "0 taken back"),
    ];
    for (node, words, expected) in calls {
        let said: Vec<&str> = words.iter().map(|word| if *word == "TOKEN" { token.as_str() } else { *word }).collect();
        let (status, text) = ask(&cluster[node], &[&["cluster", "queue", "--name", "report"], &said[..]].concat())?;
        if status != Some(0) || !text.contains(expected) {
            wrong.push(format!("cluster queue --name report {}: {status:?}, {:?}", words.join(" "), text.trim()));
        }
        if words[0] == "lease" {
            let item: Value = text.lines().next().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
            token = item["token"].as_str().unwrap_or_default().to_owned();
        }
    }
    Ok(wrong)
}

/// What `admin.address` of each node answers.
pub(super) fn addresses(cluster: &[Engine], admins: &[SocketAddr]) -> io::Result<Vec<String>> {
    let mut wrong = Vec::new();
    let mut judge = |node: usize, what: &str, head: &str, code: u16, expected: &str| -> io::Result<()> {
        let answer = http(admins[node], what, head)?;
        if !answer.starts_with(&format!("HTTP/1.1 {code} ")) || !answer.contains(expected) {
            wrong.push(format!("{what} of n{}: {:?}", node + 1, answer.chars().take(400).collect::<String>()));
        }
        Ok(())
    };
    let calls: [(&str, u16, &str); 8] = [
        ("GET /health", 200, "\"status\":\"ok\""),
        ("GET /ready", 200, "\"ready\":true"),
        ("GET /metrics", 200, "mta_cluster_nodes{status=\"healthy\"} 3"),
        ("GET /api/cluster/stats", 200, "\"total_nodes\":3"),
        ("GET /api/cluster/nodes", 200, "\"id\":\"n2\""),
        ("GET /api/queue/stats", 200, "\"pending\":"),
        ("GET /api/queue/stats", 200, "\"local\":"),
        ("POST /api/cluster/handover", 401, ""),
    ];
    for node in 0..admins.len() {
        for (what, code, expected) in calls {
            judge(node, what, "", code, expected)?;
        }
    }
    let before = leader(cluster, None)?;
    judge(0, "POST /api/cluster/handover", &format!("Authorization: Bearer {TOKEN}\r\n"), 202, "")?;
    leader(cluster, Some(before))?;
    Ok(wrong)
}

/// One request, and the answer as it came.
fn http(address: SocketAddr, what: &str, head: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    write!(stream, "{what} HTTP/1.1\r\nHost: localhost\r\n{head}Content-Length: 0\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// `ringpost drain --to-cluster` ends once the node has no mail.
pub(super) fn drain(node: &Engine) -> io::Result<Option<String>> {
    let (status, text) = ask(node, &["drain", "--to-cluster"])?;
    Ok((status != Some(0)).then(|| format!("drain --to-cluster: {status:?}, {:?}", text.trim())))
}
