//! What a connection is waited for until a deadline, by the source and by the sink.

use std::{future::poll_fn, io, task::Poll};

use ringpost_ring::{Conn, Deadline};

/// Lets what was said leave.
///
/// # Errors
/// What the connection says, or `TimedOut` at the deadline.
pub(crate) async fn flush(conn: &Conn, deadline: &Deadline) -> io::Result<()> {
    poll_fn(|cx| match conn.poll_flush(cx) {
        Poll::Ready(outcome) => Poll::Ready(outcome),
        Poll::Pending if deadline.poll_expired(cx).is_ready() => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        Poll::Pending => Poll::Pending,
    })
    .await
}
