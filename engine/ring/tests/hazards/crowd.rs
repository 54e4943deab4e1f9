//! Many connections and deadlines, and what they cost while nothing happens. On glommio, as a shard runs.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io::{Read, Write},
    net::TcpStream,
    os::fd::AsRawFd,
    process::Stdio,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use crate::fixture::*;
use ringpost_ring::{PREEMPT_TIMER, Ring, RingConfig};

fn on_glommio<F: Future<Output = ()> + 'static>(config: RingConfig, main: impl FnOnce(Ring) -> F + Send + 'static) {
    let executor = glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound).io_memory(1 << 20).preempt_timer(PREEMPT_TIMER);
    let run = move || async move {
        let ring = Ring::start(config).unwrap();
        ring.watch(main(ring.clone())).await;
        ring.shutdown();
        assert_eq!(ring.armed(), 0);
    };
    executor.spawn(run).unwrap().join().unwrap();
}

/// As many descriptors as this process may have.
fn raise_descriptors() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit is valid for both calls.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
    }
    limit.rlim_cur
}

const CROWD: usize = 10_000;

/// The clients are a child process. Each says one line and hears it back; between two rounds all are idle.
#[test]
fn ten_thousand_connections_are_served_and_cost_a_kibibyte_each_while_idle() {
    let _alone = alone();
    if let Some(address) = child_argument() {
        return crowd_of_clients(&address);
    }
    let crowd = CROWD.min(raise_descriptors() as usize - 500);
    let (socket, address) = loopback();
    // SAFETY: a system call without memory. It lengthens the queue of those who wait to be accepted, or they would try again for seconds.
    assert_eq!(unsafe { libc::listen(socket.as_raw_fd(), 4096) }, 0);
    on_glommio(RingConfig::default(), move |ring| async move {
        let listener = ring.listen(socket);
        let mut child =
            child("crowd::ten_thousand_connections_are_served_and_cost_a_kibibyte_each_while_idle", &format!("{address} {crowd}"))
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
        let before = resident_bytes();
        let (echoed, open) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        for _ in 0..crowd {
            let conn = listener.accept().await.unwrap();
            let (echoed, open, ring) = (echoed.clone(), open.clone(), ring.clone());
            open.set(open.get() + 1);
            let spawner = ring.clone();
            spawner
                .spawn(async move {
                    let idle = ring.deadline();
                    while let Some(received) = conn.read().await.unwrap() {
                        idle.set(ring.now() + Duration::from_secs(300));
                        let mut reply = ring.take_vec();
                        reply.extend_from_slice(&received);
                        echoed.set(echoed.get() + 1);
                        conn.send(reply).unwrap();
                    }
                    open.set(open.get() - 1);
                })
                .detach();
        }
        let mut go = child.stdin.take().unwrap();
        let mut round = |n: usize| {
            go.write_all(&[b'0' + n as u8]).unwrap();
        };
        pause(&ring, 200).await;
        let accepted = resident_bytes().saturating_sub(before);
        assert_eq!(ring.buffers_free(), ring.buffers(), "an idle connection holds no buffer");
        for n in 1..=2 {
            round(n);
            until(&ring, "a line of each", || echoed.get() == n * crowd).await;
        }
        pause(&ring, 300).await;
        let served = resident_bytes().saturating_sub(before);
        println!("{crowd} connections: {} bytes each when accepted, {} after two lines, arena included", accepted / crowd, served / crowd);
        assert_eq!(ring.buffers_free(), ring.buffers());
        assert!(accepted <= crowd * 1024, "{} bytes per connection", accepted / crowd);
        // The arena's 16 MiB may have been touched, and the task with its deadline counts, too.
        assert!(served <= crowd * 1536 + (16 << 20), "{} bytes per connection", served / crowd);
        let cpu = thread_cpu();
        pause(&ring, 1000).await;
        let cpu = thread_cpu() - cpu;
        println!("an idle second with {crowd} connections and deadlines: {cpu:?} of CPU");
        assert!(cpu < Duration::from_millis(2), "{cpu:?}");
        drop(go);
        until(&ring, "the end of all", || open.get() == 0).await;
        assert!(child.wait().unwrap().success());
    });
}

fn crowd_of_clients(argument: &str) {
    raise_descriptors();
    let (address, crowd) = argument.split_once(' ').unwrap();
    let mut clients: Vec<_> = (0..crowd.parse().unwrap()).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut go = [0];
    while std::io::stdin().read(&mut go).unwrap() == 1 {
        clients.iter_mut().for_each(|client| client.write_all(b"NOOP\r\n").unwrap());
        for client in &mut clients {
            let mut line = [0; 6];
            client.read_exact(&mut line).unwrap();
            assert_eq!(&line, b"NOOP\r\n");
        }
    }
}

#[test]
fn an_idle_ring_uses_no_cpu() {
    let _alone = alone();
    on_glommio(RingConfig::default(), |ring| async move {
        let deadlines: Vec<_> = (0..10_000).map(|_| ring.deadline()).collect();
        deadlines.iter().enumerate().for_each(|(i, d)| d.set(ring.now() + Duration::from_millis(100_000 + i as u64)));
        let (socket, _) = loopback();
        let listener = ring.listen(socket);
        assert!(!polled(&ring, 2, listener.accept()).await);
        pause(&ring, 50).await;
        let cpu = thread_cpu();
        pause(&ring, 1000).await;
        let cpu = thread_cpu() - cpu;
        println!("an idle second: {cpu:?} of CPU");
        assert!(cpu < Duration::from_millis(2), "{cpu:?}");
    });
}

#[test]
fn deadlines_come_in_time_on_an_idle_shard_and_on_a_busy_one() {
    let _alone = alone();
    on_glommio(RingConfig::default(), |ring| async move {
        for busy in [false, true] {
            let working = Rc::new(Cell::new(busy));
            let (keeps_busy, yielding) = (working.clone(), ring.clone());
            let worker = ring.spawn(async move {
                while keeps_busy.get() {
                    yielding.yield_now().await;
                }
            });
            let mut late = Vec::new();
            for i in 1..=40 {
                let at = Instant::now() + Duration::from_micros(i * 250);
                ring.sleep_until(at).await;
                let now = Instant::now();
                assert!(now >= at, "never early");
                late.push(now - at);
            }
            working.set(false);
            worker.await;
            late.sort();
            println!("busy {busy}: half of the deadlines at most {:?} late, all {:?}", late[20], late[39]);
            assert!(late[20] < Duration::from_millis(5));
        }
        // An earlier one set after a later one, a moved one, and one that is taken back.
        let (first, second, third) = (ring.deadline(), ring.deadline(), ring.deadline());
        let start = Instant::now();
        first.set(start + Duration::from_secs(100));
        second.set(start + Duration::from_millis(30));
        third.set(start + Duration::from_millis(10));
        third.clear();
        first.set(start + Duration::from_millis(20));
        first.expired().await;
        let after_first = start.elapsed();
        second.set(start + Duration::from_millis(60));
        second.expired().await;
        assert!(after_first < Duration::from_millis(59) && start.elapsed() >= Duration::from_millis(60));
        assert_eq!(third.at(), None);
    });
}

/// Other threads ring while the shard sleeps, and while it is busy.
#[test]
fn the_bell_wakes_a_sleeping_shard_and_is_heard_by_a_busy_one() {
    let _alone = alone();
    on_glommio(RingConfig::default(), |ring| async move {
        for busy in [false, true] {
            let working = Rc::new(Cell::new(busy));
            let (keeps_busy, yielding) = (working.clone(), ring.clone());
            let worker = ring.spawn(async move {
                while keeps_busy.get() {
                    yielding.yield_now().await;
                }
            });
            let (bell, sent) = (ring.bell(), Arc::new(AtomicU64::new(0)));
            let counter = sent.clone();
            let ringer = thread::spawn(move || {
                for _ in 0..200 {
                    thread::sleep(Duration::from_micros(200));
                    counter.fetch_add(1, Ordering::Release);
                    bell.ring();
                }
            });
            let mut heard = 0;
            while sent.load(Ordering::Acquire) < 200 {
                let waited = Instant::now();
                ring.bell_rung().await;
                assert!(waited.elapsed() < Duration::from_secs(1));
                heard += 1;
            }
            ringer.join().unwrap();
            working.set(false);
            worker.await;
            println!("busy {busy}: heard {heard} times");
            assert!(heard > 20);
            // What was rung before it was waited for is not lost.
            let _ = futures_lite::future::poll_once(ring.bell_rung()).await;
            ring.bell().ring();
            ring.bell_rung().await;
        }
    });
}

/// Until several tasks could hear the bell, the one that asked last took every ring, and the other slept on its lane.
#[test]
fn every_task_that_hears_the_bell_looks_after_each_ring() {
    let _alone = alone();
    on_glommio(RingConfig::default(), |ring| async move {
        let sent = Arc::new(AtomicU64::new(0));
        let hearers: Vec<_> = (0..3)
            .map(|_| {
                let (hears, sent) = (ring.clone(), sent.clone());
                ring.spawn(async move {
                    for wanted in 1..=200 {
                        let come = std::future::poll_fn(|_| match sent.load(Ordering::Acquire) >= wanted {
                            true => std::task::Poll::Ready(()),
                            false => std::task::Poll::Pending,
                        });
                        hears.hear(come).await;
                    }
                })
            })
            .collect();
        let bell = ring.bell();
        let ringer = thread::spawn(move || {
            for _ in 0..200 {
                thread::sleep(Duration::from_micros(200));
                sent.fetch_add(1, Ordering::Release);
                bell.ring();
            }
        });
        let began = Instant::now();
        for hearer in hearers {
            hearer.await;
        }
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        ringer.join().unwrap();
    });
}

/// The ring sleeps only when no task can run: here each step is woken by the one before it, and by nothing of the ring.
#[test]
fn tasks_that_wake_each_other_are_not_slept_through() {
    let _alone = alone();
    on_glommio(RingConfig::default(), |ring| async move {
        let steps: Rc<[Step; 50]> = Rc::new(std::array::from_fn(|_| Step::default()));
        for at in 1..steps.len() {
            let steps = steps.clone();
            ring.spawn(async move {
                steps[at - 1].reached().await;
                // Another round through the queue of tasks, alone.
                futures_lite::future::yield_now().await;
                steps[at].reach();
            })
            .detach();
        }
        let began = Instant::now();
        // Ends a wrong sleep, late.
        let (alarm, end) = (ring.clone(), began + Duration::from_millis(200));
        ring.spawn(async move { alarm.sleep_until(end).await }).detach();
        steps[0].reach();
        steps[steps.len() - 1].reached().await;
        assert!(began.elapsed() < Duration::from_millis(20), "{:?}", began.elapsed());
    });
}

/// Who watches shards took silence for sleep, while one was busy with a long task.
#[test]
fn an_observer_is_told_of_sleep_and_of_its_end_before_a_task_runs() {
    let _alone = alone();
    on_glommio(RingConfig::default(), |ring| async move {
        let pulses = Rc::new(RefCell::new(Vec::new()));
        let told = pulses.clone();
        ring.observe(move |pulse| told.borrow_mut().push(pulse));
        for _ in 0..3 {
            pulses.borrow_mut().clear();
            ring.sleep_until(ring.now() + Duration::from_millis(5)).await;
            let pulses = pulses.borrow();
            assert!(pulses.iter().any(|pulse| pulse.sleeps), "{pulses:?}");
            assert!(pulses.last().is_some_and(|pulse| !pulse.sleeps), "a task runs: {pulses:?}");
        }
    });
}

/// Something that one task waits for and another reaches.
#[derive(Default)]
struct Step {
    is_reached: Cell<bool>,
    waiter: RefCell<Option<Waker>>,
}

impl Step {
    fn reach(&self) {
        self.is_reached.set(true);
        if let Some(waiter) = self.waiter.take() {
            waiter.wake();
        }
    }

    async fn reached(&self) {
        poll_fn(|cx| {
            if self.is_reached.get() {
                return Poll::Ready(());
            }
            self.waiter.replace(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}
