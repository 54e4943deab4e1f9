//! Accepts connections and gives each a task, or a 421.

use std::{rc::Rc, time::Duration};

use ringpost_ring::Listener;
use tracing::warn;

use crate::{
    admission::Refusal,
    inbound::{self, Inbound},
    policy,
    shard::Shard,
};

/// After a failed accept (no descriptors left, most likely) so long is waited: a session that ends gives one back.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts until the shard ends. `number` is the `[[listener]]`'s, in the order of the config.
pub(crate) async fn accept(shard: Rc<Shard>, listener: Listener, number: usize) {
    let life = shard.life_of_task().await;
    loop {
        let accepted = std::future::poll_fn(|cx| {
            if shard.is_ending() {
                return std::task::Poll::Ready(None);
            }
            listener.poll_accept(cx).map(Some)
        })
        .await;
        match accepted {
            None => break,
            Some(Ok(conn)) => {
                let Ok(peer) = conn.peer_addr() else { continue };
                shard.metrics.connections.increment();
                let relaying = policy::may_relay(&shard.config, peer.ip());
                match shard.admission.admit(peer.ip(), relaying, shard.ring.now()) {
                    Ok(admitted) => {
                        shard.metrics.sessions.set(shard.metrics.sessions.get() + 1);
                        shard.ring.spawn(Inbound::new(shard.clone(), conn, peer, relaying, number, admitted).serve()).detach();
                    }
                    Err(refusal) => {
                        shard.metrics.connections_refused.increment();
                        let line = match refusal {
                            Refusal::Full => inbound::TOO_MANY_SESSIONS,
                            Refusal::Address => inbound::TOO_MANY_FROM_ADDRESS,
                            Refusal::Rate => inbound::TOO_FAST,
                        };
                        // The kernel's buffer of a fresh connection holds a line: nobody waits for the peer.
                        let _ = conn.send(line.as_bytes());
                        shard
                            .ring
                            .spawn(async move {
                                let _ = conn.flush().await;
                            })
                            .detach();
                    }
                }
            }
            Some(Err(reason)) => {
                let name = &shard.config.listeners[number].name;
                warn!(shard = shard.id, listener = %name, %reason, "accept failed; raise the limit of open files (`ulimit -n`, LimitNOFILE=) if it is reached");
                shard.ring.sleep_until(shard.ring.now() + PAUSE).await;
            }
        }
    }
    shard.forget_waiter(life);
}
