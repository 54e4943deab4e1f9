//! From a dispatch to a connection: the hosts of its destination are tried in turn until one greets.

use std::{
    future::{Future, poll_fn},
    io,
    pin::pin,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use ringpost_queue::{DestinationId, Dispatch, HostAddress, HostsTried, NextHop, Via};
use ringpost_ring::Conn;
use ringpost_smtp::client::{ClientSettings, Protocol, Timeouts};
use tracing::debug;

use crate::{
    attempt::Words,
    outbound::{Ended, Outbound},
    pool::{Seat, SoonIdle, Waiting},
    shard::Shard,
    ungreeted::Ungreeted,
};

/// Brings one dispatch to a host of its destination, over a new connection that then serves others.
pub(crate) async fn deliver(shard: Rc<Shard>, dispatch: Dispatch, seat: Seat<Dispatch>) {
    // That of another shard has waited for its turn here.
    let has_waited = dispatch.is_guest();
    bring(shard, dispatch, seat, has_waited).await;
}

async fn bring(shard: Rc<Shard>, dispatch: Dispatch, seat: Seat<Dispatch>, has_waited: bool) {
    let destination = dispatch.destination();
    let used = shard.ring.now();
    match dial(&shard, destination, Some(dispatch), has_waited, None, used).await {
        Dialed::Served => {}
        Dialed::NoHost(Some(dispatch)) => {
            shard.metrics.pool_acquire_failed.increment();
            // Before the seat, so that who waits for it finds the breaker as it is now.
            shard.attempt_unreachable(dispatch);
        }
        Dialed::PutOff(Some(dispatch)) => {
            shard.metrics.pool_acquire_failed.increment();
            shard.attempt_put_off(dispatch);
        }
        Dialed::NoHost(None) | Dialed::PutOff(None) => {}
        Dialed::Ending(dispatch) => {
            if let Some(dispatch) = dispatch {
                shard.attempt_abandoned(dispatch);
            }
        }
    }
    drop(seat);
}

/// Waits for a connection to become free, or for the right to make one; not longer than the destination's `wait_timeout`, nor after a command has come for
/// all of it or its life is over.
pub(crate) async fn wait_and_deliver(shard: Rc<Shard>, waiting: Rc<Waiting<Dispatch>>, patience: Duration) {
    let began = shard.ring.now();
    let due = began + patience;
    let deadline = shard.ring.deadline();
    deadline.set(waiting.with(|dispatch| shard.ends_waiting(dispatch, due)).unwrap_or(due));
    let caller = waiting.with(|dispatch| shard.ungreeted.enter(dispatch));
    let (mut registered, mut is_stopped) = (None, false);
    let seated = poll_fn(|cx| {
        if let Poll::Ready(seated) = waiting.poll_seated(cx) {
            return Poll::Ready(seated);
        }
        registered.get_or_insert_with(|| shard.remember_waiter(cx.waker().clone()));
        let mut is_called = caller.as_ref().is_some_and(|caller| caller.poll_called(cx));
        while std::mem::take(&mut is_called) || deadline.poll_expired(cx).is_ready() || shard.is_ending() {
            if shard.ring.now() >= due || shard.is_ending() {
                return Poll::Ready(None);
            }
            match waiting.with(|dispatch| shard.may_begin(dispatch).then(|| shard.ends_waiting(dispatch, due))) {
                Some(Some(at)) => deadline.set(at),
                Some(None) | None => {
                    is_stopped = true;
                    return Poll::Ready(None);
                }
            }
        }
        Poll::Pending
    })
    .await;
    drop(caller);
    if let Some(key) = registered {
        shard.forget_waiter(key);
    }
    let waited = shard.ring.now().duration_since(began);
    shard.metrics.pool_wait_time_us.add(u64::try_from(waited.as_micros()).unwrap_or(u64::MAX));
    if let Some((dispatch, seat)) = seated {
        if !shard.is_ending() && shard.is_over(&dispatch) {
            return shard.attempt_put_off(dispatch);
        }
        return bring(shard, dispatch, seat, true).await;
    }
    if let Some(dispatch) = shard.pool.give_up(&waiting) {
        shard.metrics.pool_acquire_failed.increment();
        match is_stopped {
            true => shard.attempt_put_off(dispatch),
            false => shard.attempt_abandoned(dispatch),
        }
    }
}

/// Makes a connection that waits for mail, for a destination that was last used at `used`.
pub(crate) async fn warm(shard: Rc<Shard>, destination: DestinationId, seat: Seat<Dispatch>, soon_idle: SoonIdle<Dispatch>, used: Instant) {
    match dial(&shard, destination, None, false, Some(soon_idle), used).await {
        // It can have been given an attempt before it was greeted.
        Dialed::NoHost(Some(dispatch)) => shard.attempt_unreachable(dispatch),
        Dialed::PutOff(Some(dispatch)) => shard.attempt_put_off(dispatch),
        Dialed::Ending(Some(dispatch)) => shard.attempt_abandoned(dispatch),
        Dialed::Served | Dialed::PutOff(None) | Dialed::NoHost(None) | Dialed::Ending(None) => {}
    }
    drop(seat);
}

/// What came of dialing; an attempt that nobody had comes back.
enum Dialed {
    /// A connection was made, and has ended.
    Served,
    /// None of the hosts took it.
    NoHost(Option<Dispatch>),
    /// None of the hosts that were tried took it, and it says nothing about the message: one of them has enough connections, or others
    /// were tried just before, and it is all of them that count as an attempt; or a command has come meanwhile.
    PutOff(Option<Dispatch>),
    /// The shard drains.
    Ending(Option<Dispatch>),
}

/// An attempt that `has_waited`, where commands can have come meanwhile, is looked at before the first host, too.
async fn dial(
    shard: &Rc<Shard>,
    destination: DestinationId,
    mut dispatch: Option<Dispatch>,
    has_waited: bool,
    mut soon_idle: Option<SoonIdle<Dispatch>>,
    used: Instant,
) -> Dialed {
    let mut tried = dispatch.as_ref().map_or_else(HostsTried::default, |dispatch| shard.queue.borrow().hosts_to_try(dispatch));
    let mut is_crowded = false;
    // No port of this machine is left for one of the hosts, which says nothing of it, nor of the others.
    let mut lacks_ports: Option<String> = None;
    // Of the hosts that put `dispatch` off, the last one's.
    let mut words: Option<Words> = None;
    let settings = client_settings(shard, destination);
    // A further host is not asked after a command.
    let mut may_be_stopped = has_waited;
    loop {
        let is_stopped = |dispatch: &mut Dispatch| !shard.goes_on(dispatch, words.as_mut());
        let is_stopped = std::mem::replace(&mut may_be_stopped, true) && !shard.is_ending() && dispatch.as_mut().is_some_and(is_stopped);
        let host = if is_stopped || shard.is_ending() {
            None
        } else {
            shard.queue.borrow_mut().next_host(destination, &mut tried, shard.now_ms())
        };
        if host.is_none() {
            match (dispatch, words) {
                (Some(dispatch), Some(words)) => {
                    shard.settle_declined(dispatch, words, tried);
                    return Dialed::Served;
                }
                left => (dispatch, words) = left,
            }
        }
        if shard.is_ending() {
            return Dialed::Ending(dispatch);
        }
        if is_stopped {
            return Dialed::PutOff(dispatch);
        }
        let Some(host) = host else {
            let (mut queue, now) = (shard.queue.borrow_mut(), shard.now_ms());
            if is_crowded {
                queue.crowded(destination, shard.pool.up(destination), now);
                return Dialed::PutOff(dispatch);
            }
            if dispatch.is_none() {
                // One that was made ahead: no mail waited for it, so there is no attempt that could count, or be paused for.
                return Dialed::NoHost(None);
            }
            if let Some(reason) = lacks_ports {
                drop(queue);
                return put_off_for_shortage(shard, destination, dispatch, &reason);
            }
            return if queue.ends_round(destination, tried, now) { Dialed::NoHost(dispatch) } else { Dialed::PutOff(dispatch) };
        };
        // Its hosts may have changed since.
        let Some(NextHop { name, address, .. }) = shard.queue.borrow().host_address(destination, host).cloned() else { continue };
        if let Some(words) = &words {
            words.note.trying(&name);
        }
        let due = shard.ring.now() + shard.config().delivery.connect_timeout;
        let ungreeted = dispatch.as_ref().map(|dispatch| shard.ungreeted.enter(dispatch));
        let looks_at = dispatch.as_ref().map_or(due, |dispatch| shard.looks_at(dispatch, due));
        let look = || match &mut dispatch {
            Some(dispatch) if !shard.is_ending() => shard.goes_on(dispatch, words.as_mut()).then(|| shard.looks_at(dispatch, due)),
            _ => Some(due),
        };
        match connect(shard, &address, due, ungreeted.as_ref(), looks_at, look).await {
            // There it is put off.
            Ok(None) => {}
            Ok(Some(conn)) => {
                shard.metrics.connects.increment();
                let mut outbound = Outbound::new(shard, conn, &settings, destination, host, name, used);
                (outbound.soon_idle, outbound.ungreeted) = (soon_idle.take(), ungreeted);
                match outbound.run(dispatch, tried, words).await {
                    Ended::Served => return Dialed::Served,
                    Ended::Declined(declined) => {
                        (dispatch, words, tried) = (Some(declined.dispatch), declined.words, declined.tried);
                        is_crowded = false;
                    }
                    // It did not come to a greeting: another host may be of a better mind.
                    Ended::Ungreeted { dispatch: back, words: kept, is_crowded: crowded } => {
                        is_crowded |= crowded;
                        // It had none, or a command took it back.
                        if back.is_none() && !crowded {
                            return Dialed::NoHost(None);
                        }
                        (dispatch, words) = (back, kept);
                    }
                }
            }
            Err(reason) if is_shortage(&reason) => {
                // It would be the same at every host, and says nothing of this one.
                shard.metrics.connect_failures.increment();
                let reason = format!("connect to {name}: {reason}");
                debug!(shard = shard.id, reason, "no connection");
                return match (dispatch, words) {
                    (Some(dispatch), Some(words)) => {
                        note_shortage(shard, destination, &reason);
                        shard.settle_declined(dispatch, words, tried);
                        Dialed::Served
                    }
                    (dispatch, _) => put_off_for_shortage(shard, destination, dispatch, &reason),
                };
            }
            Err(reason) if lacks_port(&reason, &address) => {
                shard.metrics.connect_failures.increment();
                let reason = format!("connect to {name}: {reason}");
                debug!(shard = shard.id, reason, "no connection");
                lacks_ports.get_or_insert(reason);
            }
            Err(reason) => {
                shard.metrics.connect_failures.increment();
                let reason = format!("connect to {name}: {}", connect_reason(&reason));
                debug!(shard = shard.id, reason, "no connection");
                shard.queue.borrow_mut().host_failed(destination, host, &reason, shard.now_ms());
            }
        }
    }
}

/// Connections that are up go on; only where there is none the destination waits. Returns how many are up.
fn note_shortage(shard: &Shard, destination: DestinationId, reason: &str) -> u32 {
    let (up, now) = (shard.pool.up(destination), shard.now_ms());
    match up {
        0 => shard.queue.borrow_mut().shortage(destination, reason, now),
        up => shard.queue.borrow_mut().crowded(destination, up, now),
    }
    up
}

fn put_off_for_shortage(shard: &Shard, destination: DestinationId, dispatch: Option<Dispatch>, reason: &str) -> Dialed {
    let up = note_shortage(shard, destination, reason);
    match dispatch {
        Some(dispatch) if up == 0 && shard.queue.borrow_mut().tells_shortage(destination, shard.now_ms()) => Dialed::NoHost(Some(dispatch)),
        dispatch => Dialed::PutOff(dispatch),
    }
}

fn client_settings(shard: &Shard, destination: DestinationId) -> ClientSettings {
    let speaks_lmtp = matches!(shard.queue.borrow().via(destination), Via::Lmtp { .. });
    let config = shard.config();
    let delivery = &config.delivery;
    let timeouts = Timeouts {
        banner: delivery.banner_timeout,
        ehlo: delivery.ehlo_timeout,
        mail: delivery.mail_timeout,
        rcpt: delivery.rcpt_timeout,
        data: delivery.data_timeout,
        block: delivery.block_timeout,
        dot: delivery.dot_timeout,
        quit: delivery.quit_timeout,
        ..Timeouts::default()
    };
    let protocol = if speaks_lmtp { Protocol::Lmtp } else { Protocol::Smtp };
    ClientSettings { helo_name: shard.hostname.clone(), pipelining: true, timeouts, protocol }
}

/// Is it this system that has run out of what a connection takes, whichever host it is to? What a firewall of this system forbids (EPERM, EACCES)
/// it forbids for this host, and another one may be allowed.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// Is no port of this system left for this host? A system without IPv6 says the same of each IPv6 address, and those count as failed.
fn lacks_port(error: &io::Error, to: &HostAddress) -> bool {
    error.raw_os_error() == Some(libc::EADDRNOTAVAIL) && matches!(to, HostAddress::Tcp(to) if to.ip().to_canonical().is_ipv4())
}

fn connect_reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "refused".to_owned(),
        io::ErrorKind::TimedOut => "timed out".to_owned(),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "unreachable".to_owned(),
        _ => error.to_string(),
    }
}

/// Until `due`. `look` is asked at `looks_at` and when `ungreeted` is called: `Ok(None)` when it says `None`; else it says when to ask it next.
async fn connect(
    shard: &Shard,
    address: &HostAddress,
    due: Instant,
    ungreeted: Option<&Ungreeted>,
    looks_at: Instant,
    mut look: impl FnMut() -> Option<Instant>,
) -> io::Result<Option<Conn>> {
    let deadline = shard.ring.deadline();
    deadline.set(looks_at);
    let mut connecting = pin!(async {
        match address {
            #[cfg(test)]
            HostAddress::Tcp(to) if let Some(errno) = tests::refusal(*to) => Err(io::Error::from_raw_os_error(errno)),
            HostAddress::Tcp(to) => shard.ring.connect(*to, None).await,
            HostAddress::Unix(path) => shard.ring.connect_unix(path).await,
        }
    });
    let mut registered = None;
    let result = poll_fn(|cx| {
        // First: whoever is called looks, also where the connection is there by now.
        let mut is_called = ungreeted.is_some_and(|ungreeted| ungreeted.poll_called(cx));
        let was_called = is_called;
        if !was_called && let Poll::Ready(result) = connecting.as_mut().poll(cx) {
            return Poll::Ready(result.map(Some));
        }
        registered.get_or_insert_with(|| shard.remember_waiter(cx.waker().clone()));
        while std::mem::take(&mut is_called) || deadline.poll_expired(cx).is_ready() || shard.is_ending() {
            if shard.ring.now() >= due || shard.is_ending() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            match look() {
                Some(at) => deadline.set(at),
                None => return Poll::Ready(Ok(None)),
            }
        }
        if was_called { connecting.as_mut().poll(cx).map(|result| result.map(Some)) } else { Poll::Pending }
    })
    .await;
    if let Some(key) = registered {
        shard.forget_waiter(key);
    }
    result
}

#[cfg(test)]
mod tests {
    use std::{
        cell::RefCell,
        collections::HashMap,
        net::{SocketAddr, TcpListener},
        path::Path,
    };

    use ringpost_config::Config;
    use ringpost_queue::Wait;

    use super::*;
    use crate::test_shard::{accept, run_with_config};

    thread_local! {
        /// What connecting to these comes to: the kernel lacks a port only when tens of thousands are taken.
        static REFUSALS: RefCell<HashMap<SocketAddr, i32>> = RefCell::default();
    }

    pub(super) fn refusal(to: SocketAddr) -> Option<i32> {
        REFUSALS.with_borrow(|refusals| refusals.get(&to).copied())
    }

    const PORTLESS: [&str; 2] = ["192.0.2.1:25", "192.0.2.2:25"];

    /// All mail goes to these in turn; for those of [`PORTLESS`] no port is left.
    fn config(hosts: &[&str]) -> Config {
        REFUSALS.with_borrow_mut(|refusals| refusals.extend(PORTLESS.map(|host| (host.parse().unwrap(), libc::EADDRNOTAVAIL))));
        let hosts: Vec<_> = (0..).zip(hosts).map(|(at, host)| format!("{{ host = \"{host}\", backup = {} }}", at > 0)).collect();
        let route = format!("[[route]]\ndomain = \"*\"\nvia = \"smarthost\"\nhosts = [{}]\n", hosts.join(", "));
        Config::parse(&format!("[queue]\nretry_base = \"1s\"\nretry_cap = \"1s\"\n{route}"), Path::new("test.toml")).unwrap()
    }

    async fn wait_for<T>(shard: &Shard, what: &str, mut is_there: impl FnMut() -> Option<T>) -> T {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(there) = is_there() {
                return there;
            }
            assert!(Instant::now() < until, "no {what}");
            shard.ring.sleep_until(Instant::now() + Duration::from_millis(1)).await;
        }
    }

    fn wait_of(shard: &Shard) -> Wait {
        let queue = shard.queue.borrow();
        let destination = queue.destinations_named("*").next().expect("it has mail");
        queue.destination(destination, shard.now_ms()).expect("it has mail").wait
    }

    /// It was a shortage for all of the destination: mail waited, and the hosts that had ports were not asked. Before that it was the host's, whose
    /// breaker opened.
    #[test]
    fn without_a_port_for_one_host_the_next_one_is_tried_and_none_is_marked() {
        let next = TcpListener::bind("127.0.0.1:0").unwrap();
        next.set_nonblocking(true).unwrap();
        run_with_config(config(&[PORTLESS[0], &next.local_addr().unwrap().to_string()]), async |shard| {
            accept(&shard, &["b@y.test"]).await;
            let _silent = wait_for(&shard, "connection", || next.accept().ok()).await;
            let metrics = &shard.metrics;
            assert_eq!((metrics.connect_failures.get(), metrics.breakers_opened.get()), (1, 0));
        });
    }

    #[test]
    fn without_a_port_for_any_host_mail_waits_for_this_system_and_goes_when_there_is_one() {
        run_with_config(config(&PORTLESS), async |shard| {
            accept(&shard, &["b@y.test"]).await;
            wait_for(&shard, "shortage", || matches!(wait_of(&shard), Wait::Shortage { .. }).then_some(())).await;
            let metrics = &shard.metrics;
            assert_eq!((metrics.connect_failures.get(), metrics.breakers_opened.get()), (2, 0));
            // Of the second what is met next is the host's.
            REFUSALS.with_borrow_mut(|refusals| refusals.insert(PORTLESS[1].parse().unwrap(), libc::ECONNREFUSED));
            wait_for(&shard, "breaker", || (shard.metrics.breakers_opened.get() > 0).then_some(())).await;
            assert!(shard.metrics.connect_failures.get() >= 4, "each is asked again");
        });
    }

    /// A host whose ports were used up by our own connections counted as one that does not answer, and its breaker opened.
    #[test]
    fn a_system_without_ports_is_short_of_them_and_one_without_ipv6_is_not() {
        let tcp = |address: &str| HostAddress::Tcp(address.parse().unwrap());
        for (errno, to, expected) in [
            (libc::EMFILE, tcp("192.0.2.1:25"), (true, false)),
            (libc::EADDRNOTAVAIL, tcp("192.0.2.1:25"), (false, true)),
            (libc::EADDRNOTAVAIL, tcp("[2001:db8::1]:25"), (false, false)),
            (libc::EADDRNOTAVAIL, HostAddress::Unix("/run/lmtp.sock".into()), (false, false)),
            (libc::EPERM, tcp("192.0.2.1:25"), (false, false)),
            (libc::ECONNREFUSED, tcp("192.0.2.1:25"), (false, false)),
        ] {
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!((is_shortage(&error), lacks_port(&error, &to)), expected, "{errno} {to:?}");
        }
    }
}
