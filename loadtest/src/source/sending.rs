//! How what a session says leaves: at once, or at a slow sender's pace; and whether a content has left.

use std::{io, time::Instant};

use ringpost_ring::{Conn, Deadline};

use crate::{
    deadlines::flush,
    source::{
        client::Client,
        core::Core,
        outbox::Piece,
        pace::{Pace, Step},
    },
};

/// Content of this size and more is waited for until it has left, so that its sending is not taken for the server's time.
const FLUSHED_BYTES_MIN: usize = 64 << 10;

/// What was queued on a connection, and where in it the last content ends.
#[derive(Debug, Default)]
pub(super) struct Queued {
    octets: u64,
    content_end: u64,
    /// A reply came while a slow sender's content was on its way, and its end was still to be sent.
    heard_early: bool,
}

impl Queued {
    fn add(&mut self, octets: usize, content_end: Option<usize>) {
        if let Some(end) = content_end {
            (self.content_end, self.heard_early) = (self.octets + end as u64, false);
        }
        self.octets += octets as u64;
    }

    /// Whether some of that content is here where the kernel has not taken so many of the octets. It posts that it took them before it posts
    /// what the peer said of them.
    pub(super) fn content_waits(&self, unsent: usize) -> bool {
        self.heard_early || self.octets - (unsent as u64) < self.content_end
    }
}

/// Sends what is in the outbox, which was put there at `put` or later.
pub(super) async fn send(
    core: &Core,
    conn: &Conn,
    client: &mut Client,
    put: Instant,
    (pace, queued): (&mut Option<Pace>, &mut Queued),
    deadline: &Deadline,
) -> io::Result<()> {
    let mut bytes = 0;
    let content_end;
    let mut slow = Vec::new();
    {
        let mut outbox = core.outbox.borrow_mut();
        if outbox.is_empty() {
            return Ok(());
        }
        let (pieces, end) = outbox.drain();
        content_end = end;
        for piece in pieces {
            let sent = match piece {
                Piece::Bytes(vec) if pace.is_some() => {
                    slow.extend_from_slice(&vec);
                    Ok(())
                }
                Piece::Body(form, body) if pace.is_some() => {
                    slow.extend_from_slice(&core.body(form, body));
                    Ok(())
                }
                Piece::Bytes(vec) => {
                    bytes += vec.len();
                    conn.send(vec)
                }
                Piece::Body(form, body) => {
                    bytes += body.range.len();
                    conn.send(core.body(form, body))
                }
            };
            sent?;
        }
        outbox.refill(4, || core.ring.take_vec());
    }
    queued.add(bytes + slow.len(), content_end);
    if let Some(pace) = pace {
        let mut rest = slow.as_slice();
        // Between the dot and the end of QUIT a reply is a rightful one.
        let early_before = content_end.filter(|_| client.awaits_content_reply()).unwrap_or(0);
        let listen = |left: usize| queued.heard_early |= left < early_before && conn.unread_bytes() > 0;
        let sent = send_slowly(core, conn, &mut rest, pace, deadline, listen).await;
        // Nothing but QUIT stands behind a slow sender's content.
        if content_end.is_some() && rest.len() > b"QUIT\r\n".len() {
            client.content_stays();
        }
        sent?;
        client.left(put, Instant::now());
    } else if content_end.is_some() && bytes >= FLUSHED_BYTES_MIN {
        flush(conn, deadline).await?;
        client.content_left(Instant::now());
    }
    Ok(())
}

/// Sends in steps and takes off `octets` what was sent; it is over when the last octet has left, or nothing is waited for any more: then
/// [`io::ErrorKind::Other`]. `before` each step the caller may look, and is told how many of the octets have left.
async fn send_slowly(
    core: &Core,
    conn: &Conn,
    octets: &mut &[u8],
    pace: &mut Pace,
    deadline: &Deadline,
    mut before: impl FnMut(usize),
) -> io::Result<()> {
    let all = octets.len();
    while let Some(step) = pace.step(octets, Instant::now()) {
        match step {
            Step::Wait(until) => {
                deadline.set(core.at_most(until));
                deadline.expired().await;
                if core.held.get() {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                if core.is_past_its_limit(Instant::now()) {
                    return Err(io::Error::other(format!("{} octets had not left when the load was over", octets.len())));
                }
            }
            Step::Send(part) => {
                before(all - octets.len() - part.len());
                conn.send(part.to_vec())?;
            }
        }
    }
    deadline.set(core.patience(Instant::now()));
    flush(conn, deadline).await
}
