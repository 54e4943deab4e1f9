//! Hosts that take what they are sent and never answer, as one does whose machine has lost its power.

use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use ringpost_cluster::{target::Target, valkey::Valkey};

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
