//! Hosts that take what they are sent and never answer, as one does whose machine has lost its power.

use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ringpost_cluster::{target::Target, valkey::Valkey};
use ringpost_valkey_server::{Durability, Sentinel, Server};

const PATIENCE: Duration = Duration::from_secs(20);

fn target(server: &Server) -> Target {
    Target::parse(&server.url(), None, None).unwrap()
}

/// Its port, and how many connections were made to it.
fn silent_host() -> (u16, Arc<AtomicUsize>) {
    let (listener, count) = (TcpListener::bind("127.0.0.1:0").unwrap(), Arc::new(AtomicUsize::new(0)));
    let (port, counting) = (listener.local_addr().unwrap().port(), count.clone());
    std::thread::spawn(move || {
        let mut connections = Vec::new();
        for connection in listener.incoming() {
            counting.fetch_add(1, Ordering::SeqCst);
            connections.push(connection);
        }
    });
    (port, count)
}

fn ping() -> redis::Cmd {
    redis::cmd("PING")
}

async fn answers(url: &str) {
    let (valkey, began) = (Valkey::new(Target::parse(url, None, None).unwrap()), Instant::now());
    while let Err(error) = valkey.command(&ping()).await {
        assert!(began.elapsed() < PATIENCE, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

#[test]
fn calls_that_wait_for_one_connection_end_with_its_attempt() {
    let (port, made) = silent_host();
    run(async {
        let valkey = Valkey::new(Target::parse(&format!("valkey://127.0.0.1:{port}"), None, None).unwrap());
        let calls: Vec<_> = (0..20)
            .map(|_| {
                let valkey = valkey.clone();
                tokio::spawn(async move { valkey.command(&ping()).await })
            })
            .collect();
        for call in calls {
            assert!(call.await.unwrap().is_err());
        }
    });
    assert_eq!(made.load(Ordering::SeqCst), 1, "one attempt for all");
}

#[test]
fn a_cluster_is_reached_past_a_server_that_is_silent() {
    let (silent, _) = silent_host();
    let server = Server::start_with(Durability::None, &["--cluster-enabled", "yes"]);
    assert!(server.command("CLUSTER ADDSLOTSRANGE 0 16383").starts_with("+OK"));
    let began = Instant::now();
    while !server.command("CLUSTER INFO").contains("cluster_state:ok") {
        assert!(began.elapsed() < PATIENCE, "the cluster is not whole");
        std::thread::sleep(Duration::from_millis(20));
    }
    run(answers(&format!("valkey+cluster://127.0.0.1:{silent},127.0.0.1:{}", server.port())));
}

#[test]
fn a_primary_is_found_past_a_sentinel_that_is_silent() {
    let (silent, _) = silent_host();
    let primary = Server::start(Durability::None);
    let sentinel = Sentinel::start(primary.port(), 1, "");
    run(answers(&format!("valkey+sentinel://127.0.0.1:{silent},127.0.0.1:{}/mail", sentinel.port())));
}

/// Whether something that was sent to this port is not confirmed. Linux only, as the engine.
fn is_unconfirmed(port: u16) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
    sockets.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[2].ends_with(&format!(":{port:04X}")) && !fields[4].starts_with("00000000:")
    })
}

/// An enqueue that was on its way when the network broke was carried out when it was whole again, up to two minutes later: its owner had
/// delivered the mail by then, and a worker delivered it a second time.
#[test]
fn what_a_host_does_not_take_is_given_up() {
    run(async {
        let server = Server::start(Durability::None);
        let valkey = Valkey::new(target(&server));
        while valkey.command(&ping()).await.is_err() {}
        server.pause(true);
        // More than the host's machine takes for it.
        let late = valkey.command(redis::cmd("SET").arg("late").arg(vec![b'x'; 8 << 20])).await;
        assert!(late.is_err() && is_unconfirmed(server.port()), "{late:?}");
        let began = Instant::now();
        while is_unconfirmed(server.port()) {
            assert!(began.elapsed() < PATIENCE, "it is still on its way");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server.pause(false);
        assert_eq!(server.command("EXISTS late"), ":0\r\n");
    });
}
