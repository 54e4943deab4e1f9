//! The life of one connection after the other: connect, speak, rest, close.

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use ringpost_ring::{Conn, Deadline, Received, Ring};

use crate::{
    deadlines::flush,
    error_kind::ErrorKind,
    phase::Phase,
    source::{
        client::Client,
        connect_gate::Inside,
        core::Core,
        host::{ClientError, Flow, Host},
        opening::Opening,
        pace::Pace,
        sending::{Queued, send},
    },
};

/// After a failure a connection is tried again, first after this, then each time after twice as long, until one of the session carries an
/// acknowledged message. A banner or an EHLO is not enough for that: a server that closes behind them would be stormed.
const RECONNECT_FIRST: Duration = Duration::from_millis(10);
/// Never after longer than this.
const RECONNECT_MOST: Duration = Duration::from_secs(1);

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// As it should, or given up on purpose.
    Well,
    /// By a failure behind an acknowledged message: the next one waits for a moment.
    Broken,
    /// By a failure, and nothing came of it: the next one waits for longer than the one before it.
    Badly,
}

enum Event {
    Bytes(Received),
    /// A message is due and the session rests.
    Due,
    /// There will be no more messages and the session rests.
    Exhausted,
    /// Connections are not wanted for now.
    Held,
    TimedOut,
    /// The load is over, and banner and EHLO have not been answered on this connection: there is no message on it to wait for.
    Ungreeted,
    Failed(io::Error),
}

pub(super) async fn run(core: Rc<Core>, index: usize) {
    let deadline = core.slots.borrow()[index].deadline.clone();
    let address = match core.options.addresses[..] {
        [] => None,
        ref addresses => Some(addresses[index % addresses.len()]),
    };
    let mut pause = RECONNECT_FIRST;
    // From before it connects until it begins a message or fails.
    let mut opening = None;
    let waits_for_due = core.options.rate.is_some() && core.options.per_connection == Some(1);
    while !core.desk.borrow().is_exhausted() {
        if core.held.get() {
            released_or_over(&core, index).await;
            pause = RECONNECT_FIRST;
            continue;
        }
        if waits_for_due && !due_or_over(&core, index).await {
            break;
        }
        if opening.is_none() {
            opening = opening_or_over(&core, index).await;
            if opening.is_none() {
                continue;
            }
        }
        match connection(&core, index, address, &mut opening, &deadline).await {
            End::Well => pause = RECONNECT_FIRST,
            end => {
                // While it waits, what it was to begin is for whoever can: one behind an address that leads nowhere never will.
                opening = None;
                core.wake_for_opening();
                if core.desk.borrow().is_exhausted() {
                    break;
                }
                pass_on_what_is_due(&core);
                if core.held.get() {
                    continue;
                }
                if end == End::Broken {
                    pause = RECONNECT_FIRST;
                }
                let since = Instant::now();
                deadline.set(since + pause);
                deadline.expired().await;
                core.desk.borrow_mut().slept(since, Instant::now());
                pause = (pause * 2).min(RECONNECT_MOST);
            }
        }
        pass_on_what_is_due(&core);
    }
    core.live.set(core.live.get() - 1);
}

/// It may have been woken for a message that it could not take.
fn pass_on_what_is_due(core: &Core) {
    if core.options.rate.is_some() && core.desk.borrow().has_due() {
        core.wake_idle(1);
    }
}

/// Waits for an opening: whoever has one may fail, and give it up. None: there is nothing to begin any more, or no connection is wanted.
async fn opening_or_over(core: &Core, index: usize) -> Option<Opening<'_>> {
    poll_fn(|cx| {
        let desk = core.desk.borrow();
        if core.held.get() || desk.is_exhausted() {
            return Poll::Ready(None);
        }
        let opening = core.openings.open(desk.wanted());
        if opening.is_none() {
            core.wait_for_opening(index, cx.waker());
            return Poll::Pending;
        }
        Poll::Ready(opening)
    })
    .await
}

/// Waits until connections are wanted again.
async fn released_or_over(core: &Core, index: usize) {
    poll_fn(|cx| {
        if !core.held.get() || core.desk.borrow().is_exhausted() {
            return Poll::Ready(());
        }
        core.keep(index, cx.waker());
        Poll::Pending
    })
    .await;
}

/// Waits for a message to be due. False: there will be none.
async fn due_or_over(core: &Core, index: usize) -> bool {
    poll_fn(|cx| {
        let desk = core.desk.borrow();
        if desk.has_due() || desk.is_exhausted() {
            return Poll::Ready(());
        }
        core.rest(index, cx.waker());
        Poll::Pending
    })
    .await;
    core.leave_rest(index);
    core.desk.borrow().has_due()
}

async fn connection(core: &Rc<Core>, index: usize, address: Option<IpAddr>, opening: &mut Option<Opening<'_>>, deadline: &Deadline) -> End {
    let turn = core.connect_gate.enter().await;
    // The wait for a place may have lasted until there was nothing left to connect for.
    if core.held.get() || core.desk.borrow().is_exhausted() {
        return End::Well;
    }
    let began = Instant::now();
    deadline.set(core.patience(began));
    let connected = connect_or_over(core, index, address, deadline).await;
    let turn = core.options.gently.then_some(turn);
    let now = Instant::now();
    let conn = match connected {
        Ok(conn) => conn,
        Err(_) if core.held.get() => return End::Well,
        Err(error) if core.desk.borrow().closed && error.kind() == io::ErrorKind::Interrupted => {
            let waited = now - began;
            if waited >= core.greeting_patience() {
                let text = || format!("connect to {}: no connection in {:.1} s", core.options.to, waited.as_secs_f64());
                core.desk.borrow_mut().trouble(ErrorKind::ConnectTimeout, text);
            }
            return End::Well;
        }
        Err(error) => {
            let mut desk = core.desk.borrow_mut();
            desk.is_reached = false;
            desk.trouble(ErrorKind::from(&error), || format!("connect to {}: {error}", core.options.to));
            return End::Badly;
        }
    };
    {
        let mut desk = core.desk.borrow_mut();
        desk.is_reached = true;
        desk.observe(Phase::Connect, began, now);
    }
    core.count_connections(core.connections.get() + 1, now);
    let mut client = Client::new(&core.script, now);
    let end = speak(core, index, &conn, &mut client, turn, opening, deadline).await;
    // What is open when a connection ends by a failure; in all other cases there is nothing.
    let ended = Instant::now();
    client.broke(ended, &mut *core.desk.borrow_mut());
    core.count_connections(core.connections.get() - 1, ended);
    if end == End::Badly && client.has_delivered() { End::Broken } else { end }
}

/// Connects, until the deadline or the end of the load: then [`io::ErrorKind::Interrupted`].
async fn connect_or_over(core: &Core, index: usize, from: Option<IpAddr>, deadline: &Deadline) -> io::Result<Conn> {
    let mut connecting = std::pin::pin!(connect(&core.ring, core.options.to, from, deadline));
    poll_fn(|cx| match connecting.as_mut().poll(cx) {
        Poll::Ready(outcome) => Poll::Ready(outcome),
        Poll::Pending if core.desk.borrow().closed => Poll::Ready(Err(io::ErrorKind::Interrupted.into())),
        Poll::Pending => {
            core.keep(index, cx.waker());
            Poll::Pending
        }
    })
    .await
}

/// Connects, until the deadline.
pub(crate) async fn connect(ring: &Ring, to: SocketAddr, from: Option<IpAddr>, deadline: &Deadline) -> io::Result<Conn> {
    let mut connecting = std::pin::pin!(ring.connect(to, from));
    poll_fn(|cx| match connecting.as_mut().poll(cx) {
        Poll::Ready(outcome) => Poll::Ready(outcome),
        Poll::Pending if deadline.poll_expired(cx).is_ready() => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// `turn` is given back when the peer has spoken, `opening` when a message has begun.
async fn speak(
    core: &Rc<Core>,
    index: usize,
    conn: &Conn,
    client: &mut Client,
    mut turn: Option<Inside<'_>>,
    opening: &mut Option<Opening<'_>>,
    deadline: &Deadline,
) -> End {
    let connected = Instant::now();
    let mut pace = core.options.bytes_per_s.map(|rate| Pace::new(rate, connected));
    let mut queued = Queued::default();
    // Since when the next reply is waited for, in however many lines it comes.
    let mut waits_since = connected;
    // Somebody is there, though the banner has not come to its end.
    let mut is_heard = false;
    loop {
        deadline.set(core.patience(waits_since));
        let replies = client.replies();
        // One whose opening still counts is not to count twice.
        let resting = (opening.is_none() && client.rests()).then(|| core.openings.rest());
        let event = next_event(core, index, conn, client, deadline).await;
        let is_line = matches!(event, Event::Bytes(_));
        drop(turn.take());
        let put = Instant::now();
        let flow = match event {
            Event::Bytes(received) => {
                let now = Instant::now();
                is_heard = true;
                client.content_waits(queued.content_waits(conn.unsent_bytes()));
                let (mut desk, mut outbox) = (core.desk.borrow_mut(), core.outbox.borrow_mut());
                let mut flow = client.receive(&core.script, &received, now, &mut *desk, &mut outbox);
                drop(received);
                while let (Ok(Flow::Go), Some(Ok(Some(more)))) = (&flow, conn.try_read()) {
                    flow = client.receive(&core.script, &more, now, &mut *desk, &mut outbox);
                }
                if client.is_greeted() {
                    desk.failing_since = None;
                }
                flow
            }
            Event::Due => {
                if !core.options.think.is_zero() {
                    think(core, index, deadline).await;
                }
                let now = Instant::now();
                deadline.set(core.patience(now));
                let mut desk = core.desk.borrow_mut();
                let thinks = std::mem::replace(&mut desk.thinking, false);
                client.begin(&core.script, now, &mut *desk, &mut core.outbox.borrow_mut());
                desk.thinking = thinks;
                Ok(Flow::Go)
            }
            Event::Exhausted => {
                client.quit(Instant::now(), &mut core.outbox.borrow_mut());
                Ok(Flow::Go)
            }
            Event::Held => return End::Well,
            Event::TimedOut => {
                let waited = connected.elapsed();
                let mut desk = core.desk.borrow_mut();
                if client.awaits_banner() && !is_heard {
                    desk.report.ungreeted += 1;
                    desk.trouble(ErrorKind::NoBanner, || no_banner(waited));
                } else {
                    desk.trouble(ErrorKind::ReplyTimeout, || format!("{} did not come in time", client.awaited()));
                }
                return End::Badly;
            }
            Event::Ungreeted => {
                let waited = waits_since.elapsed();
                if waited >= core.greeting_patience() {
                    let mut desk = core.desk.borrow_mut();
                    if is_heard {
                        desk.trouble(ErrorKind::ReplyTimeout, || {
                            format!("{} did not come to its end in {:.1} s", client.awaited(), waited.as_secs_f64())
                        });
                    } else {
                        desk.report.ungreeted += 1;
                        desk.trouble(ErrorKind::NoBanner, || no_banner(waited));
                    }
                }
                return End::Well;
            }
            Event::Failed(error) => {
                core.desk.borrow_mut().trouble(ErrorKind::from(&error), || format!("while waiting for {}: {error}", client.awaited()));
                return End::Badly;
            }
        };
        drop(resting);
        if opening.is_some() && client.has_begun() {
            *opening = None;
        }
        let sent = send(core, conn, client, put, (&mut pace, &mut queued), deadline).await;
        if !is_line || client.replies() != replies {
            waits_since = Instant::now();
        }
        match (flow, sent) {
            (Ok(Flow::Go), Ok(())) => {}
            (Ok(Flow::Over), _) => return End::Well,
            (Ok(Flow::GiveUp), _) => {
                // What was said so far arrives; then the connection ends in the middle. A peer that does not read ends the wait.
                let _given_up_anyway = flush(conn, deadline).await;
                return End::Well;
            }
            (Ok(Flow::Go), Err(_)) if core.held.get() => return End::Well,
            (Ok(Flow::Go), Err(error)) => {
                core.desk.borrow_mut().trouble(ErrorKind::from(&error), || format!("sending: {error}"));
                return End::Badly;
            }
            (Err(error), _) => {
                let kind = match &error {
                    ClientError::Closing { code, .. } => ErrorKind::Reply(*code),
                    ClientError::NotAReply(_) | ClientError::Unasked(_) => ErrorKind::BrokenReply,
                    ClientError::OutOfOrder { .. } | ClientError::OutOfStep { .. } | ClientError::TooEarly { .. } => ErrorKind::OutOfOrder,
                    ClientError::NoSmtputf8 => ErrorKind::NoSmtputf8,
                };
                let mut desk = core.desk.borrow_mut();
                desk.trouble(kind, || error.to_string());
                if kind == ErrorKind::NoSmtputf8 {
                    desk.cannot_be_sent();
                }
                return End::Badly;
            }
        }
    }
}

/// Lets the pause between two messages pass, or the load end.
async fn think(core: &Core, index: usize, deadline: &Deadline) {
    deadline.set(Instant::now() + core.options.think);
    poll_fn(|cx| {
        if core.desk.borrow().closed || core.held.get() {
            return Poll::Ready(());
        }
        core.keep(index, cx.waker());
        deadline.poll_expired(cx)
    })
    .await;
}

/// What a connection without banner means; it is the server's limit more often than its end.
fn no_banner(waited: Duration) -> String {
    format!(
        "no banner in {:.1} s: the server's kernel took the connection, and none of its processes did: a limit of processes or threads \
         (Postfix: default_process_limit), or they start slowly",
        waited.as_secs_f64()
    )
}

async fn next_event(core: &Core, index: usize, conn: &Conn, client: &Client, deadline: &Deadline) -> Event {
    let (rests, lingers) = (client.rests(), client.lingers());
    let event = poll_fn(|cx| {
        if core.held.get() {
            return Poll::Ready(Event::Held);
        }
        match conn.poll_read(cx) {
            Poll::Ready(Ok(Some(received))) => return Poll::Ready(Event::Bytes(received)),
            Poll::Ready(Ok(None)) => return Poll::Ready(Event::Failed(io::ErrorKind::UnexpectedEof.into())),
            Poll::Ready(Err(error)) => return Poll::Ready(Event::Failed(error)),
            Poll::Pending => {}
        }
        if lingers {
            core.keep(index, cx.waker());
            return if core.desk.borrow().closed { Poll::Ready(Event::Exhausted) } else { Poll::Pending };
        }
        if !client.is_greeted() {
            if core.desk.borrow().closed {
                return Poll::Ready(Event::Ungreeted);
            }
            core.keep(index, cx.waker());
        }
        if !rests {
            return deadline.poll_expired(cx).map(|()| Event::TimedOut);
        }
        let desk = core.desk.borrow();
        if desk.has_due() {
            return Poll::Ready(Event::Due);
        }
        if desk.is_exhausted() {
            return Poll::Ready(Event::Exhausted);
        }
        core.rest(index, cx.waker());
        Poll::Pending
    })
    .await;
    core.leave_rest(index);
    event
}
