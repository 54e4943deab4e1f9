//! What the server says without being asked: messages of channels.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_lite::StreamExt;
use redis::{Value, aio::PubSub};
use tokio::{sync::mpsc, time::timeout};

use super::{
    CONNECT_DEADLINE, Valkey,
    connection::server,
    random_u64,
    stream::{MESSAGE_BYTES_MAX, Stream},
};
use crate::{breaker::GAP_MAX, valkey_error::ValkeyError};

/// Messages that wait for their reader; further ones are dropped, since everything they say is found by polling, too.
const MESSAGES_MAX: usize = 4096;
/// How soon the subscriber tries again, at least.
const SUBSCRIBE_GAP: Duration = Duration::from_millis(200);
/// A server that is asked whether it is there, and does not answer within this, is not.
const PROBE_MAX: Duration = Duration::from_secs(1);

/// A message of a channel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Where it came from.
    pub channel: String,
    /// What it says.
    pub payload: String,
}

/// What was published before is to be asked for.
fn connected() -> Message {
    Message { channel: String::new(), payload: String::new() }
}

impl Valkey {
    /// Listens to `channels` for ever, over a connection of its own that is made anew as often as it breaks.
    ///
    /// Each (new) connection says so with a message of channel `""`: what was published meanwhile is to be asked for.
    pub fn subscribe(self: &Arc<Self>, channels: Vec<String>) -> mpsc::Receiver<Message> {
        let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
        let valkey = self.clone();
        tokio::spawn(async move {
            let mut gap = SUBSCRIBE_GAP;
            while !sender.is_closed() {
                if let Ok(()) = valkey.listen(&channels, &sender).await {
                    gap = SUBSCRIBE_GAP;
                }
                let jitter = gap / 2 * u32::try_from(random_u64() % 1024).expect("below 1024") / 1024;
                tokio::select! {
                    () = tokio::time::sleep(gap / 2 + jitter) => {}
                    () = sender.closed() => return,
                }
                gap = (gap * 2).min(GAP_MAX);
            }
        });
        receiver
    }

    async fn listen(&self, channels: &[String], sender: &mpsc::Sender<Message>) -> Result<(), ValkeyError> {
        let connect = async {
            let target = self.target_now().await;
            let server = server(&target).await?;
            let stream = Stream::open(&server, target.ca(), &MESSAGE_BYTES_MAX).await;
            let stream = stream.map_err(|error| ValkeyError::of_client(&error.into()))?;
            let mut connection = PubSub::new(server.redis_settings(), stream).await.map_err(|error| ValkeyError::of_client(&error))?;
            let is_allowed = match connection.subscribe(channels).await.map_err(|error| ValkeyError::of_client(&error)) {
                Ok(()) => true,
                Err(ValkeyError::Misconfigured(_)) => false,
                Err(error) => return Err(error),
            };
            Ok::<_, ValkeyError>((connection, is_allowed))
        };
        let (connection, mut is_allowed) =
            timeout(CONNECT_DEADLINE, connect).await.map_err(|_| ValkeyError::Unreachable("no connection for messages".to_owned()))??;
        self.listens(channels, is_allowed);
        self.pass(connected(), sender);
        let (mut sink, mut messages) = connection.split();
        // A connection whose other end is gone without a word is found by asking.
        let mut probe = tokio::time::interval(Duration::from_secs(2));
        loop {
            tokio::select! {
                message = messages.next() => match message {
                    Some(message) => {
                        let payload = String::from_utf8_lossy(message.get_payload_bytes()).into_owned();
                        self.pass(Message { channel: message.get_channel_name().to_owned(), payload }, sender);
                    }
                    None => return Ok(()),
                },
                _ = probe.tick() => {
                    // Without the right to listen it still tells when the server is another.
                    if !is_allowed && timeout(PROBE_MAX, sink.subscribe(channels)).await.is_ok_and(|answer| answer.is_ok()) {
                        is_allowed = true;
                        self.listens(channels, is_allowed);
                        self.pass(connected(), sender);
                    }
                    match timeout(PROBE_MAX, sink.ping::<Value>()).await {
                        Ok(Ok(_)) => {}
                        _ => return Ok(()),
                    }
                },
                () = sender.closed() => return Ok(()),
            }
        }
    }

    fn pass(&self, message: Message, sender: &mpsc::Sender<Message>) {
        if sender.try_send(message).is_err() {
            self.counters.messages_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}
