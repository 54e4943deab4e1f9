//! A Valkey that is spoken to over TLS, whose certificate a CA of its own has signed.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use ringpost_cluster::{target::Target, valkey::Valkey, valkey_error::ValkeyError};
use ringpost_valkey_server::{Durability, Sentinel, Server};

fn openssl(words: &[&str]) {
    let status = Command::new("openssl").args(words).stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.expect("openssl is installed").success(), "{words:?}");
}

/// A CA's certificate, and one of this host with its key.
fn certificates(folder: &Path) -> [PathBuf; 3] {
    let names = ["ca.pem", "host.pem", "host.key", "ca.key", "host.csr", "names"].map(|name| folder.join(name));
    let [ca, host, key, ca_key, request, extensions] = names.each_ref().map(|path| path.to_str().unwrap());
    let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    fs::write(extensions, "subjectAltName=IP:127.0.0.1\n").unwrap();
    openssl(&[&["req", "-x509", "-days", "2", "-subj", "/CN=test"], &new_key[..], &["-keyout", ca_key, "-out", ca]].concat());
    openssl(&[&["req", "-subj", "/CN=127.0.0.1"], &new_key[..], &["-keyout", key, "-out", request]].concat());
    openssl(&[
        "x509",
        "-req",
        "-days",
        "2",
        "-in",
        request,
        "-CA",
        ca,
        "-CAkey",
        ca_key,
        "-CAcreateserial",
        "-out",
        host,
        "-extfile",
        extensions,
    ]);
    let [ca, host, key, ..] = names;
    [ca, host, key]
}

#[test]
fn calls_and_messages_come_over_tls_from_the_host_that_the_ca_names() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ([ca, host, key], [other_ca, ..]) = (certificates(folder.path()), certificates(other.path()));
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let files = [&host, &key, &ca].map(|path| path.to_str().unwrap());
    let tls = ["--tls-port", &port, "--tls-cert-file", files[0], "--tls-key-file", files[1], "--tls-ca-cert-file", files[2]];
    let _server = Server::start_with(Durability::None, &[&tls[..], &["--tls-auth-clients", "no"]].concat());
    let url = format!("valkeys://127.0.0.1:{port}");
    let valkey = |ca: Option<&Path>| Valkey::new(Target::parse(&url, None, ca.map(|ca| fs::read(ca).unwrap())).unwrap());
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let known = valkey(Some(&ca));
        let ping = redis::cmd("PING");
        known.command(&ping).await.unwrap();
        let mut messages = known.subscribe(vec!["news".to_owned()]);
        assert_eq!(messages.recv().await.unwrap().channel, "", "the subscription stands");
        known.command(redis::cmd("PUBLISH").arg("news").arg("1")).await.unwrap();
        assert_eq!(messages.recv().await.unwrap().payload, "1");
        // The system's authorities, and another CA, know nothing of that host.
        for ca in [None, Some(other_ca.as_path())] {
            let error = valkey(ca).command(&ping).await.unwrap_err().to_string();
            assert!(error.contains("certificate"), "{error}");
        }
    });
}

/// Sentinels were asked by the system's authorities, whatever `cluster.valkey_ca_file` said, and told no password: a node had no way to them.
#[test]
fn sentinels_are_asked_over_tls_by_the_same_ca_and_with_a_login_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let [ca, host, key] = certificates(folder.path());
    let port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let (server_port, sentinel_port) = (port(), port());
    let files = [&host, &key, &ca].map(|path| path.to_str().unwrap());
    let tls = ["--tls-port", &server_port, "--tls-cert-file", files[0], "--tls-key-file", files[1], "--tls-ca-cert-file", files[2]];
    let user = ["--user", "ringpost", "on", ">of-server", "~*", "&*", "+@all"];
    let _server = Server::start_with(Durability::None, &[&tls[..], &["--tls-auth-clients", "no"], &user].concat());
    let text = format!(
        "port 0\ntls-port {sentinel_port}\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\ntls-auth-clients no\n\
         tls-replication yes\nrequirepass of-sentinel\n",
        files[0], files[1], files[2]
    );
    let _sentinel = Sentinel::start(server_port.parse().unwrap(), 1, &text);
    let valkey = |ca: Option<&Path>, password: Option<&str>| {
        let url = format!("valkeys+sentinel://ringpost@127.0.0.1:{sentinel_port}/mail");
        let target = Target::parse(&url, Some("of-server"), ca.map(|ca| fs::read(ca).unwrap())).unwrap();
        Valkey::new(target.with_sentinel_login(None, password).unwrap())
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let whoami = redis::cmd("ACL").arg("WHOAMI").clone();
        let known = valkey(Some(&ca), Some("of-sentinel"));
        // It takes a while to start, and to hear of the server.
        let began = Instant::now();
        let said = loop {
            match known.command(&whoami).await {
                Ok(said) => break said,
                Err(error) => assert!(began.elapsed() < Duration::from_secs(30), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(said, redis::Value::BulkString(b"ringpost".to_vec()));
        let mut messages = known.subscribe(vec!["news".to_owned()]);
        assert_eq!(messages.recv().await.unwrap().channel, "", "the subscription stands");
        let error = valkey(None, Some("of-sentinel")).command(&whoami).await.unwrap_err().to_string();
        assert!(error.contains("certificate"), "{error}");
        let error = valkey(Some(&ca), Some("wrong")).command(&whoami).await.unwrap_err();
        assert!(matches!(error, ValkeyError::Misconfigured(_)), "{error}");
    });
}
