//! From a dispatch to a connection: the hosts of its destination are tried in turn until one greets.

use std::{future::Future, future::poll_fn, io, pin::pin, rc::Rc, task::Poll};

use ringpost_queue::{Dispatch, HostAddress, HostsTried, NextHop};
use ringpost_ring::Conn;
use ringpost_smtp::client::{ClientSettings, Timeouts};
use tracing::debug;

use crate::{outbound::Outbound, shard::Shard};

/// Brings one dispatch to a host of its destination, over a new connection that then serves others.
pub(crate) async fn deliver(shard: Rc<Shard>, mut dispatch: Dispatch) {
    let destination = dispatch.destination();
    let mut tried = HostsTried::default();
    let settings = client_settings(&shard);
    loop {
        if shard.is_ending() {
            return shard.attempt_abandoned(dispatch);
        }
        let host = shard.queue.borrow_mut().next_host(destination, &mut tried, shard.now_ms());
        let Some(host) = host else {
            return shard.attempt_unreachable(dispatch);
        };
        // Its hosts may have changed since.
        let Some(NextHop { name, address, .. }) = shard.queue.borrow().host_address(destination, host).cloned() else { continue };
        match connect(&shard, &address).await {
            Ok(conn) => {
                shard.metrics.connects.increment();
                match Outbound::new(&shard, conn, &settings, destination, host, name).run(dispatch).await {
                    None => return,
                    // It did not come to a greeting: another host may be of a better mind.
                    Some(back) => dispatch = back,
                }
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

fn client_settings(shard: &Shard) -> ClientSettings {
    let delivery = &shard.config.delivery;
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
    ClientSettings { helo_name: shard.hostname.clone(), timeouts, ..ClientSettings::default() }
}

fn connect_reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "refused".to_owned(),
        io::ErrorKind::TimedOut => "timed out".to_owned(),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "unreachable".to_owned(),
        _ => error.to_string(),
    }
}

async fn connect(shard: &Shard, address: &HostAddress) -> io::Result<Conn> {
    let HostAddress::Tcp(to) = *address else {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "not over TCP"));
    };
    let deadline = shard.ring.deadline();
    deadline.set(shard.ring.now() + shard.config.delivery.connect_timeout);
    let mut connecting = pin!(shard.ring.connect(to, None));
    let mut registered = None;
    let result = poll_fn(|cx| {
        if let Poll::Ready(result) = connecting.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        registered.get_or_insert_with(|| shard.remember_waiter(cx.waker().clone()));
        if deadline.poll_expired(cx).is_ready() || shard.is_ending() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    })
    .await;
    if let Some(key) = registered {
        shard.forget_waiter(key);
    }
    result
}
