//! What is sent to a cluster of servers and has no answer is not sent again by the client, on a real Valkey behind a host that breaks connections.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ringpost_cluster::{
    identity::Incarnation,
    keyspace::Keyspace,
    script::Scripts,
    target::Target,
    valkey::Valkey,
    valkey_error::ValkeyError,
    work_item::{ItemKey, NewItem},
    work_queue::{Completed, QueueBounds, QueueError, WorkQueue},
};
use ringpost_valkey_server::{Durability, Server, cluster};

const PATIENCE: Duration = Duration::from_secs(20);

/// Passes everything on, until it is told to break the connection in place of the next answer.
struct Host {
    port: u16,
    breaks: Arc<AtomicBool>,
}

impl Host {
    /// Listens at once; connections wait until there is a server.
    fn open() -> (Host, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        (Host { port, breaks: Arc::default() }, listener)
    }

    fn serve(&self, listener: TcpListener, server: u16) {
        let breaks = self.breaks.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(("127.0.0.1", server)).unwrap());
                let (to_server, to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                let breaks = breaks.clone();
                std::thread::spawn(move || pass(client, to_server, || false));
                std::thread::spawn(move || pass(server, to_client, || breaks.swap(false, Ordering::SeqCst)));
            }
        });
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, breaks: impl Fn() -> bool) {
    let mut bytes = [0; 16384];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if breaks() || to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// The client of a cluster sent a completion again when its connection broke, done or not. If a failover had lost it meanwhile, the worker heard of its
/// first completion, as far as it knew, that the item was there under another lease, and dropped its copy: its owner, which had believed the
/// completion, had given up its own.
#[test]
fn a_completion_without_an_answer_is_not_sent_again() {
    let (host, listener) = Host::open();
    let port = host.port.to_string();
    let options = ["--cluster-enabled", "yes", "--cluster-announce-ip", "127.0.0.1", "--cluster-announce-port", &port];
    let server = Server::start_with(Durability::None, &options);
    host.serve(listener, server.port());
    cluster::form(std::slice::from_ref(&server));
    let began = Instant::now();
    let target = Target::parse(&format!("valkey+cluster://127.0.0.1:{port}"), None, None).unwrap();
    let valkey = Valkey::with_scripts(target, Scripts::shipped(), Duration::from_secs(5));
    let bounds = QueueBounds { partitions: 1, capacity: 100, dead_max: 10 };
    let me = Incarnation::new("n1".parse().unwrap(), 7);
    let queue = WorkQueue::new(valkey.clone(), Keyspace::new("ringpost:test").unwrap(), "mail", bounds, ItemKey::new(b"k"), me).unwrap();
    let (owner, data) = ("n1".parse().unwrap(), b"x".to_vec());
    let item = NewItem { id: "n1:a".to_owned(), owner, priority: 5, max_attempts: 3, delay_ms: 0, expires_in_ms: 0, data };
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        while let Err(error) = queue.enqueue(0, std::slice::from_ref(&item)).await {
            assert!(began.elapsed() < PATIENCE, "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let leased = queue.lease(0, 1, 60_000, 60_000, 1000).await.unwrap().1.remove(0);
        let complete = async || queue.complete(0, &[("n1:a", leased.token.as_str(), "n1 0001")]).await;
        // Its script is there: what is broken is the answer to the completion, not to the question for its script.
        queue.complete(0, &[("n1:b", "t", "n1 0001")]).await.unwrap();
        host.breaks.store(true, Ordering::SeqCst);
        let broken = complete().await;
        assert!(matches!(broken, Err(QueueError::Valkey(ValkeyError::Unreachable(_)))), "{broken:?}");
        assert_eq!(queue.stats().await.unwrap().counters["completed"], 1, "it was done");
        assert_eq!(complete().await.unwrap().1, [Completed::DoneBefore], "over another connection");

        // Whatever the call is.
        host.breaks.store(true, Ordering::SeqCst);
        assert!(valkey.command(redis::cmd("INCR").arg("count")).await.is_err());
        assert!(server.command("GET count").contains("\r\n1\r\n"), "once");
    });
}
