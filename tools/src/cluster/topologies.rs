//! Every kind of Valkey that a node can be given: Valkey 8, Redis 7, Sentinels, a cluster of servers, TLS with a CA of its own. Over each,
//! three nodes share mail, an operator uses every command, and where there is somebody to take over, the primary is killed under load.

use std::{
    ffi::OsStr,
    fmt::Write as _,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    Place,
    nodes::{self, NodeSetup, leader, wait_for},
    operator,
    report::Report,
};
use crate::{
    engine::{Engine, Route},
    traffic::{difference, next_hop, texts},
    valkey_server::{ValkeyOptions, ValkeyServer, installed},
    volume::run as run_program,
};
use ringpost_loadtest::{
    schedule::Rate,
    sink::Sink,
    source::{Source, SourceOptions},
};

/// Octets of a message.
const SIZE: &str = "2KiB";
/// Messages a second for the node that only offers.
const RATE: f64 = 50.0;
const PASSWORD: &str = "not a secret";
/// The time without an answer after which a server is taken for dead, here as in production.
const DOWN_AFTER_MS: u32 = 1000;

/// Servers, and how nodes are told of them.
struct Topology {
    servers: Vec<ValkeyServer>,
    url: String,
    /// Further lines of `[cluster]`.
    lines: String,
    /// The server to kill, where another takes over.
    victim: Option<usize>,
}

type Build = fn(&Path) -> io::Result<Topology>;

pub(super) fn run(place: &Place<'_>, report: &mut Report) -> io::Result<()> {
    let all: [(&str, Option<String>, Build); 5] = [
        ("valkey", installed(&["valkey-server"]), |folder| single(folder, "valkey-server")),
        ("redis", installed(&["redis-server"]), |folder| single(folder, "redis-server")),
        ("tls", installed(&["openssl"]), tls),
        ("sentinel", Some(String::new()), sentinel),
        ("cluster", installed(&["openssl"]), cluster),
    ];
    for (name, program, build) in all {
        if place.is_smoke && name != "tls" {
            continue;
        }
        if program.is_none() {
            report.figure(&format!("{name}_left_out"), "its program is not installed");
            continue;
        }
        let folder = place.folder.join(name);
        fs::create_dir_all(&folder)?;
        let seen = build(&folder).and_then(|topology| over(place, name, &folder, topology, report));
        if let Err(error) = seen {
            report.must(false, format!("{name}: {error}"));
        }
        report.note(&format!("{name} done"));
    }
    Ok(())
}

/// Mail flows and every command works.
fn over(place: &Place<'_>, name: &str, folder: &Path, mut topology: Topology, report: &mut Report) -> io::Result<()> {
    let (received, sent_to) = (folder.join("received"), folder.join("sent"));
    let sink = Sink::start(next_hop(Some(received.clone()))?)?;
    let setup = NodeSetup::new(place.engine, folder, topology.url.clone(), Route::Smarthost(sink.address));
    let (mut cluster, admins) = start(&NodeSetup { is_shared: true, cluster: topology.lines.clone(), ..setup }, folder)?;
    report.figure(&format!("{name}_server"), topology.servers[0].version());
    let options =
        SourceOptions { sessions: 4, rate: Some(Rate::Fixed(RATE)), ledger: Some(sent_to.clone()), ..texts(cluster[0].address, SIZE)? };
    let source = Source::start(options)?;
    leader(&cluster, None)?;
    wait_for("three healthy nodes", || {
        Ok(nodes::status(&cluster[0]).filter(|status| status["healthy_nodes"].as_u64() == Some(3)).map(drop))
    })?;
    let used = [operator::commands(&cluster, folder)?, operator::work(&cluster)?, operator::addresses(&cluster, &admins)?];
    for wrong in used.concat() {
        report.must(false, format!("{name}: {wrong}"));
    }
    wait_for("mail through other nodes", || Ok((sink.messages() >= 20).then_some(())))?;
    if let Some(victim) = topology.victim {
        let epoch = nodes::status(&cluster[0]).map_or(0, |status| status["epoch"].as_u64().unwrap_or(0));
        topology.servers[victim].kill();
        let began = Instant::now();
        // Its servers need a second at least to notice, so nobody leads by the old one's word for long.
        wait_for("a leader by the new primary", || {
            let led = nodes::leading(&cluster, 0..3).and_then(|node| nodes::status(&cluster[node]));
            Ok(led.filter(|status| status["epoch"].as_u64().is_some_and(|now| now > epoch) && status["valkey_available"] == true).map(drop))
        })?;
        report.figure(&format!("{name}_leader_after_failover_ms"), began.elapsed().as_millis() as u64);
        let before = sink.messages();
        wait_for("mail after the failover", || Ok((sink.messages() > before + 20).then_some(())))?;
        report.figure(&format!("{name}_mail_after_failover_ms"), began.elapsed().as_millis() as u64);
    }
    source.stop();
    let accepted = source.join()?;
    if let Some(wrong) = operator::drain(&cluster[0])? {
        report.must(false, format!("{name}: {wrong}"));
    }
    for node in &mut cluster {
        node.drain(super::CLAIMS_DECIDED, || sink.messages())?;
        node.terminate(Duration::from_secs(30))?;
    }
    sink.stop();
    sink.join()?;
    let result = difference(&[&sent_to], &received)?;
    report.figure(&format!("{name}_delivered"), result.delivered);
    report.figure(&format!("{name}_lost"), result.lost);
    report.figure(&format!("{name}_duplicates"), result.duplicated);
    report.must(result.is_intact() && result.accepted > 0, format!("{name}: lost {}, damaged {}", result.lost, result.damaged));
    let turned_away = accepted.refused + accepted.unknown;
    report.must(turned_away == 0, format!("{name}: {turned_away} turned away: {}", accepted.last_trouble.unwrap_or_default()));
    report.must(topology.victim.is_some() || result.duplicated == 0, format!("{name}: {} duplicates", result.duplicated));
    Ok(())
}

/// n1 offers only, n2 and n3 deliver. Each with the address of its admin listener.
fn start(setup: &NodeSetup, folder: &Path) -> io::Result<(Vec<Engine>, Vec<SocketAddr>)> {
    let token = folder.join("token");
    fs::write(&token, operator::TOKEN)?;
    let (mut nodes, mut admins) = (Vec::new(), Vec::new());
    for number in 1..=3 {
        let (mut options, admin) = (setup.node(number, number > 1)?, crate::machine::free_port()?);
        options.lines.push(("admin", format!("address = \"{admin}\"\ntoken_file = {token:?}\n")));
        let mut node = Engine::new(options)?;
        node.start()?;
        nodes.push(node);
        admins.push(admin);
    }
    Ok((nodes, admins))
}

fn server(folder: &Path, name: &str, arguments: &[String]) -> io::Result<ValkeyServer> {
    let folder = folder.join(name);
    fs::create_dir_all(&folder)?;
    let mut options = ValkeyOptions::new(&folder)?;
    options.arguments = arguments.to_vec();
    ValkeyServer::start(options)
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn single(folder: &Path, program: &str) -> io::Result<Topology> {
    let server = ValkeyServer::start(ValkeyOptions { program: program.to_owned(), ..ValkeyOptions::new(folder)? })?;
    Ok(Topology { url: server.url(), servers: vec![server], lines: String::new(), victim: None })
}

/// A server that speaks TLS alone, wants a user's password, and has a certificate of an authority made here.
fn tls(folder: &Path) -> io::Result<Topology> {
    let openssl = |arguments: &[&str]| run_program("openssl", &arguments.iter().map(OsStr::new).collect::<Vec<_>>());
    let file = |name: &str| -> PathBuf { folder.join(name) };
    let path = |name: &str| file(name).display().to_string();
    let (ca, ca_key, key, request, certificate, names) =
        (path("ca.pem"), path("ca.key"), path("server.key"), path("server.csr"), path("server.pem"), path("names"));
    let new_key = ["-newkey", "rsa:2048", "-nodes"];
    openssl(&[&["req", "-x509", "-days", "2", "-subj", "/CN=ringpost rig"], &new_key[..], &["-keyout", &ca_key, "-out", &ca]].concat())?;
    openssl(&[&["req", "-subj", "/CN=127.0.0.1"], &new_key[..], &["-keyout", &key, "-out", &request]].concat())?;
    fs::write(file("names"), "subjectAltName = IP:127.0.0.1\n")?;
    let sign = ["x509", "-req", "-days", "1", "-in", &request, "-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial"];
    openssl(&[&sign[..], &["-out", &certificate, "-extfile", &names]].concat())?;
    let acl = file("users.acl");
    fs::write(&acl, format!("user default off\nuser ringpost on #{} {}\n", sha256_of_password(folder)?, documented_rights()))?;
    fs::write(file("password"), PASSWORD)?;
    let mut options = ValkeyOptions::new(folder)?;
    // The usual port is for TLS; the argument that comes later wins.
    let port = crate::machine::free_port()?.port();
    let arguments = format!(
        "--tls-cert-file {certificate} --tls-key-file {key} --tls-ca-cert-file {ca} --tls-auth-clients no --aclfile {} --tls-port {port}",
        acl.display()
    );
    options.arguments = words(&arguments);
    let server = ValkeyServer::start(options)?;
    let lines = format!("valkey_ca_file = \"{ca}\"\nvalkey_password_file = \"{}\"\n", path("password"));
    Ok(Topology { url: format!("valkeys://ringpost@127.0.0.1:{port}"), servers: vec![server], lines, victim: None })
}

/// What docs/cluster.md gives a node's user.
fn documented_rights() -> &'static str {
    let text = include_str!("../../../docs/cluster.md");
    let rights = text.split_once("`ACL SETUSER ringpost on >PASSWORD ").and_then(|(_, rights)| rights.split('`').next());
    rights.expect("docs/cluster.md says how a user is made")
}

/// As ACL files want it; spaces in a password cannot be written in them.
fn sha256_of_password(folder: &Path) -> io::Result<String> {
    let plain = folder.join("plain");
    fs::write(&plain, PASSWORD)?;
    let said = run_program("openssl", &["dgst".as_ref(), "-sha256".as_ref(), "-r".as_ref(), plain.as_ref()])?;
    Ok(said.split_whitespace().next().unwrap_or_default().to_owned())
}

/// A primary, two replicas, three Sentinels.
fn sentinel(folder: &Path) -> io::Result<Topology> {
    let primary = server(folder, "primary", &[])?;
    let port = primary.address.port();
    let mut servers = vec![primary];
    for number in 1..=2 {
        servers.push(server(folder, &format!("replica-{number}"), &words(&format!("--replicaof 127.0.0.1 {port}")))?);
    }
    let mut hosts = String::new();
    for number in 1..=3 {
        let config = folder.join(format!("sentinel-{number}.conf"));
        let mut text = format!("bind 127.0.0.1\nprotected-mode no\ndir {}\n", folder.display());
        write!(text, "sentinel monitor mail 127.0.0.1 {port} 2\nsentinel down-after-milliseconds mail {DOWN_AFTER_MS}\n")
            .expect("writing to a string does not fail");
        text += "sentinel failover-timeout mail 5000\n";
        fs::write(&config, text)?;
        let mut options = ValkeyOptions::new(folder)?;
        options.arguments = vec![config.display().to_string(), "--sentinel".into()];
        let sentinel = ValkeyServer::start(options)?;
        write!(hosts, "{}{}", if hosts.is_empty() { "" } else { "," }, sentinel.address).expect("writing to a string does not fail");
        servers.push(sentinel);
    }
    wait_for("Sentinels that know each other", || {
        let knows = |server: &ValkeyServer| -> io::Result<bool> {
            let fields: std::collections::HashMap<String, String> = server.ask(&["SENTINEL", "MASTER", "mail"])?;
            Ok(fields.get("num-slaves").is_some_and(|count| count == "2")
                && fields.get("num-other-sentinels").is_some_and(|count| count == "2"))
        };
        let all = servers[3..].iter().map(knows).collect::<io::Result<Vec<bool>>>()?;
        Ok(all.into_iter().all(|knows| knows).then_some(()))
    })?;
    Ok(Topology { url: format!("valkey+sentinel://{hosts}/mail"), servers, lines: String::new(), victim: Some(0) })
}

/// Three primaries with a replica each.
fn cluster(folder: &Path) -> io::Result<Topology> {
    let acl = folder.join("users.acl");
    // The servers talk to each other, and the rig to them, as the default user.
    let users = format!("user default on nopass ~* &* +@all\nuser ringpost on #{} {}\n", sha256_of_password(folder)?, documented_rights());
    fs::write(&acl, users)?;
    fs::write(folder.join("password"), PASSWORD)?;
    let arguments = words(&format!(
        "--cluster-enabled yes --cluster-node-timeout {DOWN_AFTER_MS} --cluster-replica-validity-factor 0 --aclfile {}",
        acl.display()
    ));
    let servers = (0..6).map(|number| server(folder, &format!("s{number}"), &arguments)).collect::<io::Result<Vec<_>>>()?;
    for (number, server) in servers.iter().enumerate() {
        let () = server.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()])?;
        if number < 3 {
            let (from, to) = (number * 16384 / 3, (number + 1) * 16384 / 3 - 1);
            let () = server.ask(&["CLUSTER", "ADDSLOTSRANGE", &from.to_string(), &to.to_string()])?;
        }
        let first = servers[0].address;
        let () = server.ask(&["CLUSTER", "MEET", &first.ip().to_string(), &first.port().to_string()])?;
    }
    let says = |server: &ValkeyServer, what: &str| -> io::Result<bool> { Ok(server.ask::<String>(&["CLUSTER", "INFO"])?.contains(what)) };
    wait_for("a cluster of six", || {
        let all = servers.iter().map(|server| says(server, "cluster_known_nodes:6")).collect::<io::Result<Vec<bool>>>()?;
        Ok(all.into_iter().all(|knows| knows).then_some(()))
    })?;
    for (number, replica) in servers[3..].iter().enumerate() {
        let id: String = servers[number].ask(&["CLUSTER", "MYID"])?;
        // It may not have heard of that server's slots yet.
        wait_for("a replica's place", || Ok(replica.ask::<()>(&["CLUSTER", "REPLICATE", &id]).ok()))?;
    }
    wait_for("a whole cluster", || {
        let up = servers.iter().map(|server| says(server, "cluster_state:ok")).collect::<io::Result<Vec<bool>>>()?;
        let follows = |server: &ValkeyServer| -> io::Result<bool> {
            Ok(server.ask::<String>(&["INFO", "replication"])?.contains("master_link_status:up"))
        };
        let replicated = servers[3..].iter().map(follows).collect::<io::Result<Vec<bool>>>()?;
        Ok(up.into_iter().chain(replicated).all(|good| good).then_some(()))
    })?;
    let hosts: Vec<String> = servers.iter().map(|server| server.address.to_string()).collect();
    // The one that has the lease's slot, so that its leader is lost with it.
    let slot: usize = servers[0].ask(&["CLUSTER", "KEYSLOT", "{ringpost:cluster:c}:leader"])?;
    let victim = (0..3).find(|number| slot < (number + 1) * 16384 / 3);
    let lines = format!("valkey_password_file = \"{}\"\n", folder.join("password").display());
    Ok(Topology { url: format!("valkey+cluster://ringpost@{}", hosts.join(",")), servers, lines, victim })
}
