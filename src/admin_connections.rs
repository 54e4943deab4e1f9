//! The connections of the admin listener: so many places, deadlines for the head of a request, and who ends when all places are taken.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{extract::connect_info::Connected, serve::IncomingStream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Notify, oneshot},
    time::{Instant, Sleep},
};

/// Connections at once; for a further one, the one that asks nothing for the longest time ends.
pub(crate) const CONNECTIONS_MAX: usize = 64;
/// A new connection has sent the head of its first request after this, or ends.
const FIRST_HEAD_MAX: Duration = Duration::from_secs(5);
/// A connection that was answered has sent the head of its next request after this, or ends.
const NEXT_HEAD_MAX: Duration = Duration::from_secs(10);
/// A connection ends after this, whatever it does: a slow client holds a place for so long at most.
const CONNECTION_MAX: Duration = Duration::from_secs(60);

/// A listener with [`CONNECTIONS_MAX`] places.
pub(crate) struct Bounded {
    listener: TcpListener,
    places: Arc<Places>,
}

impl Bounded {
    /// All places are free.
    pub(crate) fn new(listener: TcpListener) -> Bounded {
        Bounded { listener, places: Arc::default() }
    }
}

impl axum::serve::Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    let (place, told_to_end) = self.places.take().await;
                    return (Connection::new(stream, place, told_to_end), address);
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// The connections that have a place, by their number.
#[derive(Default)]
struct Places {
    taken: Mutex<Taken>,
    /// One was given back, or its connection can end now.
    changed: Notify,
}

#[derive(Default)]
struct Taken {
    next: u64,
    by_number: BTreeMap<u64, Held>,
}

/// A place that is taken.
struct Held {
    waits: Waits,
    /// Dropped, it tells the connection to end.
    _stays: oneshot::Sender<()>,
}

/// Who is to speak on a connection.
#[derive(Clone, Copy)]
enum Waits {
    /// The client: its next request has begun by `until`.
    ForHead { since: Instant, until: Instant },
    /// The client, for so many answers.
    ForAnswers(u32),
}

impl Places {
    /// A place for a new connection, and what is ready when it is to give it up.
    ///
    /// When all are taken, the connection that asks nothing for the longest time ends; when all are being answered, this waits for one.
    async fn take(self: &Arc<Places>) -> (Place, oneshot::Receiver<()>) {
        loop {
            if let Some(taken) = self.try_take(Instant::now()) {
                // The connections before this one get their turn: many that come at once do not push out one whose request is there.
                tokio::task::yield_now().await;
                return taken;
            }
            self.changed.notified().await;
        }
    }

    fn try_take(self: &Arc<Places>, now: Instant) -> Option<(Place, oneshot::Receiver<()>)> {
        let mut taken = self.lock();
        if taken.by_number.len() >= CONNECTIONS_MAX {
            let idlest = taken.by_number.iter().filter_map(|(number, held)| Some((held.waits.for_head()?.0, *number))).min();
            taken.by_number.remove(&idlest?.1);
        }
        let number = taken.next;
        taken.next += 1;
        let (stays, told_to_end) = oneshot::channel();
        taken.by_number.insert(number, Held { waits: Waits::head(now, FIRST_HEAD_MAX), _stays: stays });
        Some((Place { number, places: self.clone() }, told_to_end))
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waits {
    fn head(since: Instant, most: Duration) -> Waits {
        Waits::ForHead { since, until: since + most }
    }

    /// Since when and until when a request is waited for.
    fn for_head(self) -> Option<(Instant, Instant)> {
        match self {
            Waits::ForHead { since, until } => Some((since, until)),
            Waits::ForAnswers(_) => None,
        }
    }
}

/// The place of one connection; its handlers have it too.
#[derive(Clone)]
pub(crate) struct Place {
    number: u64,
    places: Arc<Places>,
}

impl Place {
    /// The head of a request is there: the connection stays until the answer is made.
    pub(crate) fn answer(&self) -> Answering {
        self.change(|waits| match waits {
            Waits::ForHead { .. } => Waits::ForAnswers(1),
            Waits::ForAnswers(answers) => Waits::ForAnswers(answers + 1),
        });
        Answering(self.clone())
    }

    fn change(&self, to: impl FnOnce(Waits) -> Waits) {
        if let Some(held) = self.places.lock().by_number.get_mut(&self.number) {
            held.waits = to(held.waits);
        }
    }

    /// Until when the head of a request has to be there; None while one is answered.
    fn head_until(&self) -> Option<Instant> {
        self.places.lock().by_number.get(&self.number).and_then(|held| held.waits.for_head()).map(|(_, until)| until)
    }

    fn give_back(&self) {
        self.places.lock().by_number.remove(&self.number);
        self.places.changed.notify_one();
    }
}

impl Connected<IncomingStream<'_, Bounded>> for Place {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Place {
        stream.io().place.clone()
    }
}

/// A request that is being answered.
pub(crate) struct Answering(Place);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.change(|waits| match waits {
            Waits::ForAnswers(answers @ 2..) => Waits::ForAnswers(answers - 1),
            _ => Waits::head(Instant::now(), NEXT_HEAD_MAX),
        });
        self.0.places.changed.notify_one();
    }
}

/// A connection that ends by itself.
pub(crate) struct Connection {
    stream: TcpStream,
    ends: Pin<Box<Sleep>>,
    head: Pin<Box<Sleep>>,
    told_to_end: oneshot::Receiver<()>,
    place: Place,
}

impl Connection {
    fn new(stream: TcpStream, place: Place, told_to_end: oneshot::Receiver<()>) -> Connection {
        let sleep = |most| Box::pin(tokio::time::sleep(most));
        Connection { stream, ends: sleep(CONNECTION_MAX), head: sleep(FIRST_HEAD_MAX), told_to_end, place }
    }

    /// Whether its time is over or another one got its place.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        self.ends.as_mut().poll(cx).is_ready() || Pin::new(&mut self.told_to_end).poll(cx).is_ready()
    }

    /// Whether the head of a request has not come in time.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(until) = self.place.head_until() else { return false };
        if self.head.deadline() != until {
            self.head.as_mut().reset(until);
        }
        // The timer may be a tick behind, and a client that sends octet after octet gains nothing by it.
        Instant::now() >= until || self.head.as_mut().poll(cx).is_ready()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.place.give_back();
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_over(cx) || self.is_late(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_over(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        sync::oneshot::error::TryRecvError,
        time::timeout,
    };

    use super::*;

    /// How long a test waits for what is to happen at once: less than any deadline of a connection.
    const AT_ONCE: Duration = Duration::from_secs(4);

    #[tokio::test]
    async fn a_connection_that_sends_no_head_in_time_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.write_all(b"GET /hea").await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let places = Arc::new(Places::default());
        let (place, told_to_end) = places.try_take(Instant::now() - FIRST_HEAD_MAX).unwrap();
        let mut connection = Connection::new(stream, place.clone(), told_to_end);
        let mut octets = [0; 100];
        let answering = place.answer();
        assert_eq!(connection.read(&mut octets).await.unwrap(), 8, "nothing is waited for while it is answered");
        drop(answering);
        let left = place.head_until().unwrap() - Instant::now();
        assert!(left > FIRST_HEAD_MAX && left <= NEXT_HEAD_MAX, "{left:?}");
        place.change(|_| Waits::head(Instant::now() - NEXT_HEAD_MAX, NEXT_HEAD_MAX));
        client.write_all(b"l").await.unwrap();
        let late = timeout(AT_ONCE, connection.read(&mut octets)).await.expect("ends at once");
        assert_eq!(late.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(connection);
        assert!(places.lock().by_number.is_empty());
    }

    #[test]
    fn a_connection_that_is_answered_keeps_its_place() {
        let places = Arc::new(Places::default());
        let now = Instant::now();
        let mut taken: Vec<_> = (0..CONNECTIONS_MAX).map(|_| places.try_take(now).unwrap()).collect();
        let answering: Vec<_> = taken[1..].iter().map(|(place, _)| place.answer()).collect();
        assert!(matches!(taken[0].1.try_recv(), Err(TryRecvError::Empty)));
        let newest = places.try_take(now).expect("the first asks nothing");
        assert!(matches!(taken[0].1.try_recv(), Err(TryRecvError::Closed)));
        let _newest_too = newest.0.answer();
        assert!(places.try_take(now).is_none(), "all are answered");
        assert!(taken[1..].iter_mut().all(|(_, told)| matches!(told.try_recv(), Err(TryRecvError::Empty))));
        drop(answering);
        assert!(places.try_take(now).is_some());
    }
}
