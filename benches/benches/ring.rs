//! What does an exchange (64 octets there and back) cost on the engine's ring, beside raw io_uring? Expected: the same system calls, so
//! within a tenth of raw; the executor and a task each connection cost some hundred nanoseconds of about 3.5 us.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ringpost_benches::{Run, nanoseconds};
use ringpost_ring::{Conn, Ring, RingConfig, local};
use rustix::time::{ClockId, clock_gettime};

const OCTETS: usize = 64;

/// CPU time of the calling thread; kernel workers have none in an exchange.
fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

async fn echo(conn: Conn, ring: Ring) -> u64 {
    let mut octets = 0;
    while let Ok(Some(received)) = conn.read().await {
        let mut reply = ring.take_vec();
        reply.extend_from_slice(&received);
        octets += received.len() as u64;
        drop(received);
        if conn.send(reply).is_err() || conn.flush().await.is_err() {
            break;
        }
    }
    octets
}

/// A server that takes so many connections, and gives its CPU time when they have ended.
type Server = fn(TcpListener, usize) -> JoinHandle<Duration>;

fn raw(listener: TcpListener, connections: usize) -> JoinHandle<Duration> {
    thread::spawn(move || {
        ringpost_floor::echo::serve(&listener, connections).expect("the echo serves");
        thread_cpu()
    })
}

fn on_local(listener: TcpListener, connections: usize) -> JoinHandle<Duration> {
    thread::spawn(move || {
        local::run(RingConfig::default(), |ring, spawner| async move {
            let listener = ring.listen(listener.into());
            let ended = std::rc::Rc::new(std::cell::Cell::new(0));
            for _ in 0..connections {
                let (conn, ring, ended) = (listener.accept().await.expect("connections come"), ring.clone(), ended.clone());
                spawner.spawn(async move {
                    echo(conn, ring).await;
                    ended.set(ended.get() + 1);
                });
            }
            while ended.get() < connections {
                ring.sleep_until(Instant::now() + Duration::from_millis(5)).await;
            }
        })
        .expect("the ring works");
        thread_cpu()
    })
}

fn on_glommio(listener: TcpListener, connections: usize) -> JoinHandle<Duration> {
    thread::spawn(move || {
        let executor = glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound)
            .preempt_timer(ringpost_ring::PREEMPT_TIMER)
            .io_memory(1 << 20)
            .make()
            .expect("glommio starts");
        executor.run(async move {
            let ring = Ring::start(RingConfig::default()).expect("the ring works");
            let serve = {
                let ring = ring.clone();
                async move {
                    let listener = ring.listen(listener.into());
                    let mut tasks = Vec::new();
                    for _ in 0..connections {
                        let conn = listener.accept().await.expect("connections come");
                        tasks.push(ring.spawn(echo(conn, ring.clone())));
                    }
                    for task in tasks {
                        task.await;
                    }
                }
            };
            ring.watch(serve).await;
            ring.shutdown();
        });
        thread_cpu()
    })
}

/// Writes to every connection, then reads from every one, again and again: each round is so many exchanges.
fn exchange(to: SocketAddr, connections: usize, rounds: usize) -> (hdrhistogram::Histogram<u64>, Duration, u64) {
    let connect = |_| {
        let stream = TcpStream::connect(to).expect("the server listens");
        stream.set_nodelay(true).expect("a socket of TCP");
        stream
    };
    let mut streams: Vec<TcpStream> = (0..connections).map(connect).collect();
    let (mut histogram, mut sum, mut octets) = (nanoseconds(), 0u64, [0; OCTETS]);
    let begun = Instant::now();
    for round in 0..rounds {
        let round_begun = Instant::now();
        let sent = [round as u8; OCTETS];
        streams.iter_mut().for_each(|stream| stream.write_all(&sent).expect("the peer reads"));
        for stream in &mut streams {
            stream.read_exact(&mut octets).expect("the peer answers");
            assert_eq!(octets, sent, "an echo");
            sum = sum.rotate_left(1) ^ u64::from(octets[0]);
        }
        histogram.saturating_record(round_begun.elapsed().as_nanos() as u64 / connections as u64);
    }
    (histogram, begun.elapsed(), sum)
}

fn main() {
    let mut run = Run::begin("ring", include_str!("ring.rs"));
    let rounds = run.of(3, 1);
    for connections in run.of([1, 64, 1000].as_slice(), &[4]) {
        let exchanges = run.of(100_000, 400).max(*connections);
        let servers: [(&str, Server); 3] =
            [("raw io_uring", raw), ("engine's ring, small executor", on_local), ("engine's ring, glommio", on_glommio)];
        for round in 0..rounds {
            for (name, server) in servers {
                let name = format!("{name}, {connections} connections");
                if !run.wants(&name) {
                    continue;
                }
                let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
                let to = listener.local_addr().expect("it is bound");
                let server = server(listener, *connections);
                let (histogram, took, sum) = exchange(to, *connections, exchanges / connections);
                let cpu = server.join().expect("the server ends in order");
                let each_us = cpu.as_secs_f64() * 1e6 / exchanges as f64;
                run.report(&format!("{name} ({round})"), None, &histogram, (exchanges / connections * connections) as u64, took, sum);
                println!("    {each_us:6.2} us of the server's CPU an exchange");
            }
        }
    }
    run.end();
}
