//! What goes wrong at the edges: tasks dropped, peers that misbehave, memory and descriptors that run out, and the end of the ring.

use std::{
    cell::{Cell, RefCell},
    fs,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::Path,
    rc::Rc,
    time::{Duration, Instant},
};

use ringpost_ring::{Conn, File, Ring, RingConfig, local};

use crate::fixture::*;

/// Each kind of future is polled so and so often and dropped; afterwards nothing is armed, lent or open that was not before.
#[test]
fn futures_dropped_at_every_await_point_leave_nothing_behind() {
    let _alone = alone();
    for config in both_ways() {
        for polls in 0..4 {
            local::run(config, |ring, _| async move {
                turns(&ring).await;
                let before = (descriptors(), ring.armed(), ring.buffers_free());
                drop_one_of_each(&ring, polls).await;
                until(&ring, "the end of all requests", || ring.armed() == before.1).await;
                turns(&ring).await;
                assert_eq!((descriptors(), ring.armed(), ring.buffers_free()), before, "after {polls} polls");
            })
            .unwrap();
        }
    }
}

async fn drop_one_of_each(ring: &Ring, polls: usize) {
    let (socket, address) = loopback();
    let listener = ring.listen(socket);
    polled(ring, polls, listener.accept()).await;
    polled(ring, polls, ring.connect(address, Some("127.0.0.1".parse().unwrap()))).await;
    // Nobody answers there: the connection attempt is pending when it is dropped.
    let (full, address) = (pair(), "127.0.0.1:1".parse().unwrap());
    polled(ring, polls, ring.connect(address, None)).await;
    let (conn, mut peer) = (ring.adopt(full.0), full.1);
    polled(ring, polls, conn.read()).await;
    peer.write_all(b"hello").unwrap();
    polled(ring, polls, conn.read()).await;
    conn.send(vec![7; 50_000_000]).unwrap();
    assert!(!polled(ring, polls, conn.flush()).await, "the peer reads nothing");
    polled(ring, polls, ring.sleep_until(Instant::now() + Duration::from_secs(100))).await;
    polled(ring, polls, ring.bell_rung()).await;
    let file = File::from(tempfile::tempfile().unwrap());
    polled(ring, polls, ring.fsync(&file, false)).await;
    polled(ring, polls, ring.write_at(&file, ring.take_pages(4096).freeze(), 4096, 0)).await;
    polled(ring, polls, ring.read_at(&file, ring.take_pages(4096), 4096, 0)).await;
    polled(ring, polls, ring.write_synced(&file, ring.take_pages(4096).freeze(), 4096, 0)).await;
    polled(ring, polls, ring.open("/dev/null".as_ref(), libc::O_RDONLY, 0)).await;
}

#[test]
fn a_ring_that_ends_with_everything_armed_lets_go_of_all_of_it() {
    let _alone = alone();
    let before = descriptors();
    for config in both_ways() {
        for explicit in [false, true] {
            let (mut drained, writer) = std::io::pipe().unwrap();
            local::run(config, |ring, spawner| async move {
                let (socket, _) = loopback();
                let listener = ring.listen(socket);
                let ends: Vec<_> = (0..20).map(|_| pair()).collect();
                let ended = Rc::new(Cell::new(0));
                for (ours, mut peer) in ends {
                    let (conn, ended) = (ring.adopt(ours), ended.clone());
                    spawner.spawn(async move {
                        conn.send(vec![1; 50_000_000]).unwrap();
                        let kept = conn.read().await;
                        assert!(conn.read().await.is_err());
                        assert!(conn.flush().await.is_err() && conn.send(b"x").is_err());
                        drop(kept);
                        ended.set(ended.get() + 1);
                    });
                    peer.write_all(b"hello").unwrap();
                    spawner.spawn(async move {
                        std::future::pending::<()>().await;
                        drop(peer);
                    });
                }
                let accepting = ring.clone();
                let accepted = ended.clone();
                spawner.spawn(async move {
                    assert!(listener.accept().await.is_err());
                    accepted.set(accepted.get() + 1);
                    assert!(accepting.connect("127.0.0.1:9".parse().unwrap(), None).await.is_err());
                });
                let file = File::new(writer.into());
                let full = ring.write_synced(&file, ring.take_pages(1 << 20).freeze(), 1 << 20, 0);
                let asleep = ring.clone();
                spawner.spawn(async move { pause(&asleep, 100_000).await });
                pause(&ring, 20).await;
                assert!(ring.armed() > 40, "{} armed", ring.armed());
                if explicit {
                    ring.shutdown();
                    assert_eq!(ring.armed(), 0);
                    assert!(full.await.is_err());
                    while ended.get() < 21 {
                        futures_lite::future::yield_now().await;
                    }
                }
            })
            .unwrap();
            drained.read_to_end(&mut Vec::new()).unwrap();
        }
    }
    assert_eq!(descriptors(), before);
}

/// Readers that hold what they received take the arena; the others wait, and go on when it comes back.
#[test]
fn readers_wait_while_the_arena_is_taken_and_go_on_when_it_comes_back() {
    let _alone = alone();
    for config in both_ways() {
        let config = RingConfig { buffers: 4, buffer_bytes: 1024, window_bytes: 2048, ..config };
        local::run(config, |ring, spawner| async move {
            let ends: Vec<_> = (0..40).map(|_| pair()).collect();
            let (held, got) = (Rc::new(RefCell::new(Vec::new())), Rc::new(Cell::new(0)));
            let release = Rc::new(Cell::new(false));
            let mut peers = Vec::new();
            for (ours, peer) in ends {
                let (conn, held, got, release) = (ring.adopt(ours), held.clone(), got.clone(), release.clone());
                spawner.spawn(async move {
                    while let Some(received) = conn.read().await.unwrap() {
                        got.set(got.get() + received.len());
                        if !release.get() {
                            held.borrow_mut().push(received);
                        }
                    }
                });
                peers.push(peer);
            }
            peers.iter_mut().for_each(|peer| peer.write_all(&[1; 3000]).unwrap());
            until(&ring, "an empty arena", || ring.buffers_free() == 0).await;
            pause(&ring, 20).await;
            assert_eq!(held.borrow().len(), 4);
            release.set(true);
            held.borrow_mut().clear();
            until(&ring, "the rest", || got.get() == 40 * 3000).await;
            drop(peers);
            until(&ring, "all buffers", || ring.buffers_free() == 4).await;
        })
        .unwrap();
    }
}

/// What connections had unread stayed in the arena while their tasks waited for something else: some of them held all of it, and nobody else
/// was heard.
#[test]
fn who_does_not_read_takes_no_buffer_from_those_who_do() {
    let _alone = alone();
    const BYTES: usize = 4096;
    let sent: Rc<[u8]> = (0..4_u8).flat_map(|number| [number; BYTES / 4]).collect();
    let windowed = both_ways()[0];
    let config = RingConfig { buffers: 8, buffer_bytes: 1024, window_bytes: BYTES as u32, heap_bytes_max: 80 << 10, ..windowed };
    local::run(config, move |ring, spawner| async move {
        let (heard, ended, goes_on) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
        let mut peers = Vec::new();
        for _ in 0..16 {
            let (ours, peer) = pair();
            let (conn, ring, sent) = (ring.adopt(ours), ring.clone(), sent.clone());
            let (heard, ended, goes_on) = (heard.clone(), ended.clone(), goes_on.clone());
            spawner.spawn(async move {
                let mut got = conn.read().await.unwrap().expect("it begins").to_vec();
                heard.set(heard.get() + 1);
                until(&ring, "the word to go on", || goes_on.get()).await;
                while got.len() < BYTES {
                    got.extend_from_slice(&conn.read().await.unwrap().expect("it goes on"));
                }
                assert!(got[..] == sent[..], "in its order");
                assert_eq!(conn.unread_bytes(), 0);
                ended.set(ended.get() + 1);
                // What comes now goes unread with its connection.
                assert!(!polled(&ring, 1, conn.read()).await);
                until(&ring, "the end", || !goes_on.get()).await;
                pause(&ring, 50).await;
            });
            peers.push(peer);
        }
        turns(&ring).await;
        peers.iter_mut().for_each(|peer| peer.write_all(&sent).unwrap());
        until(&ring, "a word of each", || heard.get() == 16).await;
        until(&ring, "buffers", || ring.buffers_free() >= 2).await;
        assert!((1..=80 << 10).contains(&ring.heap_bytes()), "{}", ring.heap_bytes());
        let (ours, mut peer) = pair();
        let conn = ring.adopt(ours);
        for _ in 0..100 {
            peer.write_all(&[b'x'; 1000]).unwrap();
            let mut got = 0;
            while got < 1000 {
                got += conn.read().await.unwrap().expect("it goes on").len();
            }
        }
        goes_on.set(true);
        until(&ring, "all of it", || ended.get() == 16).await;
        assert_eq!((ring.heap_bytes(), ring.buffers_free()), (0, 8));
        goes_on.set(false);
        peers.iter_mut().for_each(|peer| peer.write_all(&sent).unwrap());
        pause(&ring, 100).await;
        drop(peers);
        until(&ring, "what went with its connection", || (ring.heap_bytes(), ring.buffers_free()) == (0, 8)).await;
    })
    .unwrap();
}

#[test]
fn what_nobody_reads_is_bounded_by_the_window_however_small_its_pieces() {
    let _alone = alone();
    for config in both_ways() {
        local::run(config, |ring, _| async move {
            let (ours, mut peer) = pair();
            peer.set_nodelay(true).unwrap();
            peer.set_nonblocking(true).unwrap();
            let conn = ring.adopt(ours);
            assert!(!polled(&ring, 1, conn.read()).await);
            for _ in 0..2000 {
                peer.write_all(b"x").unwrap();
                futures_lite::future::yield_now().await;
            }
            pause(&ring, 20).await;
            let taken = ring.buffers() - ring.buffers_free();
            assert!(taken <= 1, "{taken} buffers for single bytes");
            // Now as much as the sockets take.
            let mut sent = 2000;
            let flood = vec![b'x'; 100_000];
            while let Ok(bytes) = peer.write(&flood) {
                sent += bytes;
                pause(&ring, 2).await;
            }
            let (unread, taken) = (conn.unread_bytes(), ring.buffers() - ring.buffers_free());
            assert!(unread <= (64 << 10) + (16 << 10) && taken <= 9, "{unread} bytes in {taken} buffers");
            peer.shutdown(std::net::Shutdown::Write).unwrap();
            let mut got = 0;
            while let Some(received) = conn.read().await.unwrap() {
                got += received.len();
                while let Some(Ok(Some(more))) = conn.try_read() {
                    got += more.len();
                }
            }
            assert_eq!(got, sent);
            assert_eq!(ring.buffers(), ring.buffers_free());
        })
        .unwrap();
    }
}

#[test]
fn a_peer_that_has_closed_its_half_is_still_sent_to() {
    let _alone = alone();
    for config in both_ways() {
        local::run(config, |ring, _| async move {
            let (ours, mut peer) = pair();
            peer.write_all(b"last words").unwrap();
            peer.shutdown(std::net::Shutdown::Write).unwrap();
            let conn = ring.adopt(ours);
            assert_eq!(&*conn.read().await.unwrap().unwrap(), b"last words");
            for _ in 0..3 {
                assert!(conn.read().await.unwrap().is_none(), "and again");
            }
            conn.send(b"reply").unwrap();
            conn.send(vec![b'!'; 3]).unwrap();
            conn.flush().await.unwrap();
            conn.shutdown_write().unwrap();
            let mut got = String::new();
            peer.read_to_string(&mut got).unwrap();
            assert_eq!(got, "reply!!!");
            assert_eq!((conn.unsent_bytes(), conn.unread_bytes()), (0, 0));
        })
        .unwrap();
    }
}

#[test]
fn a_connection_that_is_aborted_is_reset_and_a_dropped_one_is_ended() {
    let _alone = alone();
    local::run(RingConfig::default(), |ring, _| async move {
        for abort in [true, false] {
            let (ours, mut peer) = pair();
            let conn = ring.adopt(ours);
            assert!(!polled(&ring, 2, conn.read()).await);
            if abort {
                conn.abort()
            } else {
                drop(conn)
            }
            turns(&ring).await;
            let ended = peer.read(&mut [0; 8]);
            assert!(if abort { ended.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset) } else { ended.unwrap() == 0 });
        }
        let (ours, peer) = pair();
        let conn = ring.adopt(ours);
        drop(peer);
        conn.send(b"to nobody").unwrap();
        conn.flush().await.unwrap();
        until(&ring, "the reset", || conn.try_read().is_some() || pending_read(&conn)).await;
        conn.send(b"to nobody again").unwrap();
        assert!(conn.flush().await.is_err() && conn.send(b"x").is_err(), "an error ends sending for good");
    })
    .unwrap();
}

/// Arms a receive and tells whether it has ended.
fn pending_read(conn: &Conn) -> bool {
    let mut read = Box::pin(conn.read());
    !pending(&mut read)
}

#[test]
fn a_listener_survives_running_out_of_descriptors() {
    let _alone = alone();
    if child_argument().is_none() {
        let status = child("edges::a_listener_survives_running_out_of_descriptors", "yes").status().unwrap();
        return assert!(status.success());
    }
    // The kernel notes the limit when a request is armed, so it is set before.
    let limit = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
    // SAFETY: the limit is valid for the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    local::run(RingConfig::default(), |ring, _| async move {
        let (socket, address) = loopback();
        let nodelay = |fd: i32| {
            let (mut value, mut len) = (0i32, 4);
            // SAFETY: the value and its length are valid for the call.
            unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, (&raw mut value).cast(), &mut len) };
            value
        };
        let listener = ring.listen(socket);
        let mut clients = vec![TcpStream::connect(address).unwrap()];
        let first = listener.accept().await.unwrap();
        assert_eq!(nodelay(first.as_raw_fd()), 1);
        assert_eq!(first.peer_addr().unwrap(), clients[0].local_addr().unwrap());
        assert_eq!(first.local_addr().unwrap(), address);
        clients.extend((0..5).map(|_| TcpStream::connect(address).unwrap()));
        turns(&ring).await;
        let accepted: Vec<_> = futures_lite::future::or(
            async {
                let mut accepted = Vec::new();
                while accepted.len() < 5 {
                    accepted.push(listener.accept().await.unwrap());
                }
                accepted
            },
            async {
                pause(&ring, 5000).await;
                panic!("five clients were waiting");
            },
        )
        .await;
        // Every descriptor is taken when the next client comes: each accept fails, until some are free again.
        let (client, mut fillers) = connect_with_the_last_descriptor(address);
        for _ in 0..3 {
            assert!(listener.accept().await.is_err_and(|e| e.raw_os_error() == Some(libc::EMFILE)));
        }
        fillers.clear();
        drop(accepted);
        let after = loop {
            match listener.accept().await {
                Ok(conn) => break conn,
                Err(_) => pause(&ring, 5).await,
            }
        };
        assert_eq!(after.peer_addr().unwrap(), client.local_addr().unwrap());
    })
    .unwrap();
}

/// The socket is made first, then all other descriptors are taken, and then it connects.
fn connect_with_the_last_descriptor(address: std::net::SocketAddr) -> (TcpStream, Vec<OwnedFd>) {
    let std::net::SocketAddr::V4(to) = address else { unreachable!("loopback is version 4") };
    let raw = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(to.ip().octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: the address is valid for the call, and the descriptor is fresh and ours.
    unsafe {
        let socket = TcpStream::from_raw_fd(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0));
        let fillers = std::iter::from_fn(|| fs::File::open("/dev/null").ok().map(OwnedFd::from)).collect();
        assert_eq!(libc::connect(socket.as_raw_fd(), (&raw const raw).cast(), size_of_val(&raw) as u32), 0);
        (socket, fillers)
    }
}

/// 200 connections complete at once on a completion queue of 16.
#[test]
fn completions_beyond_the_queue_are_not_lost() {
    let _alone = alone();
    for config in both_ways() {
        let config = RingConfig { entries: 2, buffers: 512, buffer_bytes: 512, window_bytes: 1024, ..config };
        local::run(config, |ring, spawner| async move {
            let got = Rc::new(Cell::new(0));
            let mut peers = Vec::new();
            for _ in 0..200 {
                let (ours, peer) = pair();
                let (conn, got) = (ring.adopt(ours), got.clone());
                spawner.spawn(async move {
                    while let Ok(Some(received)) = conn.read().await {
                        got.set(got.get() + received.len());
                        conn.send(b"ok").unwrap();
                    }
                });
                peers.push(peer);
            }
            pause(&ring, 10).await;
            for round in 1..=5 {
                peers.iter_mut().for_each(|peer| peer.write_all(&[1; 700]).unwrap());
                until(&ring, "all of the round", || got.get() == round * 200 * 700).await;
            }
            drop(peers);
            until(&ring, "the end", || ring.armed() == 0).await;
        })
        .unwrap();
    }
}

/// A slow reader with small buffers: thousands of pieces leave in order, in sends that stop and go on.
#[test]
fn a_long_gather_arrives_whole_and_in_order_and_its_vectors_come_back() {
    let _alone = alone();
    local::run(RingConfig::default(), |ring, _| async move {
        let (ours, mut peer) = pair();
        let conn = ring.adopt(ours);
        let mut pages = ring.take_pages(256 << 10);
        pages.iter_mut().enumerate().for_each(|(i, b)| *b = (i % 253) as u8);
        let pages = pages.freeze();
        let (mut gather, mut expected) = (ring.gather(), Vec::new());
        for i in 0..5000usize {
            let (at, len) = (i * 37 % (200 << 10), i * 131 % 3000);
            gather.push_pages(pages.slice(at..at + len));
            gather.push_static(b".");
            gather.push_vec(vec![i as u8; i % 5]);
            expected.extend_from_slice(&pages[at..at + len]);
            expected.push(b'.');
            expected.resize(expected.len() + i % 5, i as u8);
        }
        assert_eq!((gather.bytes(), gather.pieces()), (expected.len(), 15_000));
        conn.send(gather).unwrap();
        conn.send(b"end").unwrap();
        expected.extend_from_slice(b"end");
        assert_eq!(conn.unsent_bytes(), expected.len());
        let reader = std::thread::spawn(move || {
            let (mut got, mut part) = (Vec::new(), vec![0; 50_000]);
            while !got.ends_with(b"end") {
                let bytes = peer.read(&mut part).unwrap();
                got.extend_from_slice(&part[..bytes]);
                std::thread::sleep(Duration::from_micros(100));
            }
            got
        });
        conn.flush().await.unwrap();
        assert_eq!(conn.unsent_bytes(), 0);
        assert!(reader.join().unwrap() == expected);
    })
    .unwrap();
}

#[test]
fn a_local_socket_is_connected_to_by_its_path() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lmtp.sock");
    local::run(RingConfig::default(), move |ring, _| async move {
        let missing = ring.connect_unix(&path).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        let listener = UnixListener::bind(&path).unwrap();
        let conn = ring.connect_unix(&path).await.unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        conn.send(b"LHLO").unwrap();
        conn.flush().await.unwrap();
        let mut said = [0; 4];
        peer.read_exact(&mut said).unwrap();
        peer.write_all(b"250").unwrap();
        assert_eq!((&said, &conn.read().await.unwrap().unwrap()[..]), (b"LHLO", &b"250"[..]));
        drop(listener);
        assert!(ring.connect_unix(&path).await.is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused));
        for name in ["", &"x".repeat(108), "nul\0"] {
            assert!(ring.connect_unix(Path::new(name)).await.is_err_and(|e| e.kind() == ErrorKind::InvalidInput), "{name:?}");
        }
    })
    .unwrap();
}

#[test]
fn a_connection_is_refused_where_nobody_listens_and_made_where_somebody_does() {
    let _alone = alone();
    local::run(RingConfig::default(), |ring, _| async move {
        let (socket, address) = loopback();
        let listener = ring.listen(socket);
        let conn = ring.connect(address, Some("127.0.0.9".parse().unwrap())).await.unwrap();
        let accepted = listener.accept().await.unwrap();
        assert_eq!(accepted.peer_addr().unwrap().ip().to_string(), "127.0.0.9");
        assert_eq!(conn.peer_addr().unwrap(), address);
        drop(listener);
        turns(&ring).await;
        assert!(ring.connect(address, None).await.is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused));
        assert!(ring.connect(address, Some("192.0.2.1".parse().unwrap())).await.is_err());
    })
    .unwrap();
}

#[test]
fn numbers_that_the_kernel_would_refuse_are_refused_with_their_names() {
    let _alone = alone();
    let refused = |config| Box::new(local::run(config, |_, _| async {}).unwrap_err()).to_string();
    assert!(refused(RingConfig { entries: 1, ..RingConfig::default() }).contains("entries"));
    assert!(refused(RingConfig { buffers: 100, ..RingConfig::default() }).contains("power of two"));
    assert!(refused(RingConfig { window_bytes: 100, ..RingConfig::default() }).contains("window_bytes"));
    assert!(local::run(RingConfig { iowq_core: Some(0), ..RingConfig::default() }, |_, _| async {}).is_ok());
    assert!(fs::exists("/proc/self/fd").unwrap());
}
