//! A mailbox: a bounded queue from any thread to one, between a shard and the coordinator.
//!
//! crossbeam's `ArrayQueue` with a bell on each side. Slower than a lane, and for rarer things: buffers of log lines, commands of the
//! control socket, snapshots of metrics.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::task::{Context, Poll};

use crossbeam::queue::ArrayQueue;

use crate::{Bell, Full, Listener};

struct Shared<T> {
    queue: ArrayQueue<T>,
    wants_room: AtomicBool,
    senders: AtomicUsize,
    is_receiver_gone: AtomicBool,
    full_total: AtomicU64,
    receiver_bell: Bell,
    sender_bell: Bell,
}

/// A new mailbox for `slots` items, at least one.
///
/// `receiver_bell` rings when there is something to take, `sender_bell` when a mailbox that was found full has room again, each also
/// when the other side is gone. The senders of one mailbox share a bell, so they live on one thread or take turns in listening.
pub fn mailbox<T: Send>(slots: usize, receiver_bell: Bell, sender_bell: Bell) -> (MailSender<T>, MailReceiver<T>) {
    let shared = Arc::new(Shared {
        queue: ArrayQueue::new(slots),
        wants_room: AtomicBool::new(false),
        senders: AtomicUsize::new(1),
        is_receiver_gone: AtomicBool::new(false),
        full_total: AtomicU64::new(0),
        receiver_bell,
        sender_bell,
    });
    (MailSender { shared: shared.clone() }, MailReceiver { shared })
}

/// A producer's side; clones send to the same mailbox.
pub struct MailSender<T> {
    shared: Arc<Shared<T>>,
}

impl<T: Send> MailSender<T> {
    /// Puts an item in; the receiver is woken at the next [`MailSender::flush`]. Full: the item comes back, is counted, and the
    /// senders' bell rings when there is room.
    pub fn push(&self, item: T) -> Result<(), Full<T>> {
        let Err(item) = self.shared.queue.push(item) else { return Ok(()) };
        self.shared.wants_room.store(true, Ordering::Relaxed);
        // Pairs with the fence of `MailReceiver::pop`: either this side finds the room made there, or that side sees the wish.
        fence(Ordering::SeqCst);
        self.shared.queue.push(item).map_err(|item| {
            self.shared.full_total.fetch_add(1, Ordering::Relaxed);
            Full(item)
        })
    }

    /// Wakes the receiver.
    pub fn flush(&self) {
        self.shared.receiver_bell.ring();
    }

    /// `push` and `flush`, for a single item.
    pub fn try_send(&self, item: T) -> Result<(), Full<T>> {
        self.push(item)?;
        self.flush();
        Ok(())
    }

    /// How often an item found the mailbox full.
    pub fn full_total(&self) -> u64 {
        self.shared.full_total.load(Ordering::Relaxed)
    }

    /// Whether the receiver is gone: what is sent now is never taken.
    pub fn is_closed(&self) -> bool {
        self.shared.is_receiver_gone.load(Ordering::Acquire)
    }
}

impl<T> Clone for MailSender<T> {
    fn clone(&self) -> MailSender<T> {
        self.shared.senders.fetch_add(1, Ordering::Relaxed);
        MailSender { shared: self.shared.clone() }
    }
}

impl<T> Drop for MailSender<T> {
    fn drop(&mut self) {
        if self.shared.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.receiver_bell.ring();
        }
    }
}

impl<T> fmt::Debug for MailSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MailSender").field("len", &self.shared.queue.len()).finish_non_exhaustive()
    }
}

/// The consumer's side.
pub struct MailReceiver<T> {
    shared: Arc<Shared<T>>,
}

impl<T: Send> MailReceiver<T> {
    /// Takes the oldest item; None: there is none now.
    pub fn pop(&mut self) -> Option<T> {
        let item = self.shared.queue.pop()?;
        // Pairs with the fence of `MailSender::push`.
        fence(Ordering::SeqCst);
        if self.shared.wants_room.load(Ordering::Relaxed) && self.shared.wants_room.swap(false, Ordering::AcqRel) {
            self.shared.sender_bell.ring();
        }
        Some(item)
    }

    /// Whether all senders are gone and everything they sent was taken.
    pub fn is_finished(&self) -> bool {
        // In this order: what was sent before the end is seen after it.
        self.shared.senders.load(Ordering::Acquire) == 0 && self.shared.queue.is_empty()
    }

    /// The next item, or None when all senders are gone. For a thread whose `listener` hears this mailbox only, or whose others are
    /// looked at by the same task: a ring taken here is not heard again.
    pub fn poll_recv(&mut self, listener: &mut Listener, context: &mut Context<'_>) -> Poll<Option<T>> {
        loop {
            if let Some(item) = self.pop() {
                return Poll::Ready(Some(item));
            }
            if self.is_finished() {
                return Poll::Ready(None);
            }
            if listener.poll_ring(context).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// [`MailReceiver::poll_recv`] as a future.
    pub async fn recv(&mut self, listener: &mut Listener) -> Option<T> {
        std::future::poll_fn(|context| self.poll_recv(listener, context)).await
    }
}

impl<T> Drop for MailReceiver<T> {
    fn drop(&mut self) {
        self.shared.is_receiver_gone.store(true, Ordering::Release);
        self.shared.sender_bell.ring();
    }
}

impl<T> fmt::Debug for MailReceiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MailReceiver").field("len", &self.shared.queue.len()).finish_non_exhaustive()
    }
}
