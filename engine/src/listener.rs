//! Accepts connections and gives each a task, or a 421.

use std::{rc::Rc, time::Duration};

use ringpost_ring::{Accepted, Listener};
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
            listener.poll_accepted(cx).map(Some)
        })
        .await;
        match accepted {
            None => break,
            Some(Ok(accepted)) => {
                if let Some(accepted) = shard.pass_on(accepted, number) {
                    shard.serve(accepted, number);
                }
            }
            Some(Err(reason)) => {
                let config = shard.config();
                let name = &config.listeners[number].name;
                warn!(shard = shard.id, listener = %name, %reason, "accept failed; raise the limit of open files (`ulimit -n`, LimitNOFILE=) if it is reached");
                shard.ring.sleep_until(shard.ring.now() + PAUSE).await;
            }
        }
    }
    shard.forget_waiter(life);
}

impl Shard {
    /// Gives a fresh connection a session, or a 421. `listener` is the number of the `[[listener]]` it came in by.
    pub(crate) fn serve(self: &Rc<Self>, accepted: Accepted, listener: usize) {
        let Ok(peer) = accepted.peer_addr() else { return };
        let conn = self.ring.take_in(accepted);
        self.metrics.connections.increment();
        let relaying = policy::may_relay(&self.inbound.present().config, peer.ip());
        let admitted = if self.is_ending() { Err(Refusal::Ending) } else { self.admission.admit(peer.ip(), relaying, self.ring.now()) };
        let refusal = match admitted {
            Ok(admitted) => {
                self.count_sessions(1);
                self.ring.spawn(Inbound::new(self.clone(), conn, peer, relaying, listener, admitted).serve()).detach();
                return;
            }
            Err(refusal) => refusal,
        };
        self.metrics.connections_refused.increment();
        let line = match refusal {
            Refusal::Full => inbound::TOO_MANY_SESSIONS,
            Refusal::Address => inbound::TOO_MANY_FROM_ADDRESS,
            Refusal::Rate => inbound::TOO_FAST,
            Refusal::Ending => inbound::ENDING,
        };
        // The kernel's buffer of a fresh connection holds a line: nobody waits for the peer.
        let _ = conn.send(line.as_bytes());
        self.ring
            .spawn(async move {
                let _ = conn.flush().await;
            })
            .detach();
    }
}
