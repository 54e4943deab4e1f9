//! Connections over loopback, on the small executor and on glommio, with and without the receive window.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use ringpost_ring::{Conn, PREEMPT_TIMER, Ring, local};

use crate::fixture::*;

async fn echo(conn: Conn, ring: Ring) {
    while let Some(received) = conn.read().await.unwrap() {
        let mut reply = ring.take_vec();
        reply.extend_from_slice(&received);
        drop(received);
        conn.send(reply).unwrap();
        conn.flush().await.unwrap();
    }
}

/// A client of its own thread: sends `bytes` in one go, and checks that they come back.
fn client(address: std::net::SocketAddr, bytes: usize) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        let sent: Vec<u8> = (0..bytes).map(|i| (i % 251) as u8).collect();
        let (mut writer, expected) = (stream.try_clone().unwrap(), sent.clone());
        let writer = thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        writer.join().unwrap();
        assert!(got == expected, "{} of {} bytes came back", got.len(), expected.len());
    })
}

#[test]
fn what_is_sent_comes_back_in_order_however_it_is_received() {
    let _alone = alone();
    for config in both_ways() {
        let (socket, address) = loopback();
        let clients: Vec<_> = [1, 100, 16 << 10, 3_000_000, 1_000_001].map(|bytes| client(address, bytes)).into();
        let left = local::run(config, |ring, spawner| async move {
            let listener = ring.listen(socket);
            for _ in 0..5 {
                let conn = listener.accept().await.unwrap();
                spawner.spawn(echo(conn, ring.clone()));
            }
            while clients.iter().any(|client| !client.is_finished()) {
                ring.sleep_until(Instant::now() + Duration::from_millis(5)).await;
            }
            clients.into_iter().for_each(|client| client.join().unwrap());
            ring.buffers() - ring.buffers_free()
        });
        assert_eq!(left.unwrap(), 0, "all buffers are back");
    }
}

#[test]
fn the_same_on_glommio() {
    let _alone = alone();
    for config in both_ways() {
        let (socket, address) = loopback();
        let clients: Vec<_> = [1, 5_000_000, 100].map(|bytes| client(address, bytes)).into();
        let executor = glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound).io_memory(1 << 20).preempt_timer(PREEMPT_TIMER);
        let serve = move || async move {
            let ring = Ring::start(config).unwrap();
            let listener = ring.listen(socket);
            let spawner = ring.clone();
            ring.watch(async move {
                let mut tasks = Vec::new();
                for _ in 0..3 {
                    let conn = listener.accept().await.unwrap();
                    tasks.push(spawner.spawn(echo(conn, spawner.clone())));
                }
                for task in tasks {
                    task.await;
                }
            })
            .await;
            assert_eq!(ring.buffers_free(), ring.buffers());
            ring.shutdown();
            assert_eq!(ring.armed(), 0);
        };
        executor.spawn(serve).unwrap().join().unwrap();
        clients.into_iter().for_each(|client| client.join().unwrap());
    }
}
