//! Messages enter the queue: accepted ones, and those of earlier runs.

use ringpost_queue::{
    DestinationId, Mail, MessageKey, NewMessage, NewRecipient, Notify, Offered, Queue, QueueId, Recovered, Settled, TAGS_MAX,
};
use ringpost_smtp::{address::Path, envelope::EnvelopeView, extension::ByMode};
use tracing::warn;

use crate::{
    envelope_times::{deliver_by_ms, release_at_ms},
    shard::Shard,
    tags,
};

/// Recipients of an envelope with their destinations.
#[derive(Clone)]
struct Recipients<'a> {
    envelope: ringpost_smtp::envelope::Recipients<'a>,
    routes: std::slice::Iter<'a, DestinationId>,
}

impl<'a> Iterator for Recipients<'a> {
    type Item = NewRecipient<'a>;

    fn next(&mut self) -> Option<NewRecipient<'a>> {
        let (recipient, destination) = (self.envelope.next()?, *self.routes.next()?);
        Some(NewRecipient { address: recipient.path.as_str().as_bytes(), destination, notify: notify_of(recipient.notify) })
    }
}

/// NOTIFY as the queue keeps it.
fn notify_of(notify: ringpost_smtp::extension::Notify) -> Notify {
    use ringpost_smtp::extension::Notify as Said;
    let conditions =
        [(Said::NEVER, Notify::NEVER), (Said::SUCCESS, Notify::SUCCESS), (Said::FAILURE, Notify::FAILURE), (Said::DELAY, Notify::DELAY)];
    conditions.into_iter().filter(|(said, _)| notify.has(*said)).fold(Notify::UNSAID, |set, (_, condition)| set.with(condition))
}

/// One recipient of mail that is being accepted.
#[derive(Clone, Copy)]
pub(crate) struct Leg<'a> {
    pub(crate) from: Path<'a>,
    pub(crate) to: Path<'a>,
}

/// What the header, the listener and the cluster said of a message.
#[derive(Clone, Copy, Default)]
pub(crate) struct Stated<'a> {
    /// Another node has accepted it.
    pub(crate) elsewhere: bool,
    /// 0 to 9.
    pub(crate) priority: Option<u8>,
    /// In the form of `tags.rs`.
    pub(crate) tags: &'a [u8],
}

/// What the queue is told of a message beside its envelope.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub(crate) id: QueueId,
    pub(crate) size: u64,
    pub(crate) accepted_at: u64,
    pub(crate) stated: Stated<'a>,
    pub(crate) offered: Offered,
}

impl Shard {
    /// Queues a message whose record is durable.
    pub(crate) fn enqueue(&self, id: QueueId, envelope: &EnvelopeView<'_>, size: u64, accepted_at: u64, stated: Stated<'_>) {
        let entry = Entry { id, size, accepted_at, stated, offered: self.offered(size, false) };
        self.enqueue_entry(envelope, entry);
        if entry.offered != Offered::No {
            self.offer_soon(id);
        }
        self.delivery.kick();
    }

    /// Queues a message whose record is durable and whose place is known.
    pub(crate) fn enqueue_entry(&self, envelope: &EnvelopeView<'_>, entry: Entry<'_>) -> MessageKey {
        let now = self.now_ms();
        self.with_message(envelope, entry, |queue, message, recipients| queue.enqueue(message, recipients, now))
    }

    /// Queues a message found in the spool, with the state that its recipients had, if any.
    pub(crate) fn requeue(
        &self,
        id: QueueId,
        envelope: &EnvelopeView<'_>,
        size: u64,
        accepted_at: u64,
        stated: Stated<'_>,
        state: Option<&[u8]>,
    ) -> Result<(), String> {
        if self.queue.borrow().key_of(id).is_some() {
            return Ok(());
        }
        let now = self.now_ms();
        let entry = Entry { id, size, accepted_at, stated, offered: self.offered(size, true) };
        let recovered =
            self.with_message(envelope, entry, |queue, message, recipients| queue.recover(message, recipients, state.into_iter(), now));
        let Recovered { key, done, lost_route } = recovered.map_err(|reason| reason.to_string())?;
        if let Some(route) = lost_route {
            warn!(queue_id = %id, route, "this message, or a part of it, was re-routed to a route that the config no longer has: that goes the way of its domains");
        }
        if done {
            self.persist(key, Settled::Done);
            return Ok(());
        }
        let is_untouched = self.queue.borrow().show(key).filter(|view| view.is_given_out()).map(|view| view.is_untouched());
        match is_untouched {
            Some(is_untouched) => self.found_offered(id, size, is_untouched),
            None => self.keeps(id),
        }
        Ok(())
    }

    fn with_message<R>(
        &self,
        envelope: &EnvelopeView<'_>,
        entry: Entry<'_>,
        put: impl FnOnce(&mut Queue, &NewMessage<'_>, Recipients<'_>) -> R,
    ) -> R {
        let Entry { id, size, accepted_at, stated, offered } = entry;
        let mut queue = self.queue.borrow_mut();
        let facts = envelope.content();
        let mut tag_list = [&[][..]; TAGS_MAX];
        tag_list.iter_mut().zip(tags::each(stated.tags)).for_each(|(place, tag)| *place = tag);
        // RFC 2852 4.1: with R the message goes back when its time is over; with N it goes on, and only a report says so.
        let by = deliver_by_ms(envelope, accepted_at);
        let at_mode = |wanted| by.filter(|(_, mode)| *mode == wanted).map(|(at, _)| at);
        let mut routes = self.routes_scratch.borrow_mut();
        routes.clear();
        let reverse_path = envelope.reverse_path().as_str().as_bytes();
        routes.extend(envelope.recipients().map(|recipient| {
            let domain = recipient.path.domain().unwrap_or(&self.hostname).as_bytes();
            queue.route_mail(Mail { reverse_path, domain })
        }));
        let priority = stated
            .priority
            .unwrap_or_else(|| self.priorities.borrow().of_routes(routes.iter().map(|destination| queue.route_of(*destination))));
        let message = NewMessage {
            id,
            size,
            accepted_at,
            accepted_elsewhere: stated.elsewhere,
            eight_bit: facts.eight_bit_header || facts.eight_bit_body,
            eight_bit_header: facts.eight_bit_header,
            smtputf8: envelope.smtputf8(),
            not_before: release_at_ms(envelope, accepted_at),
            expires_at: at_mode(ByMode::Return),
            warn_at: at_mode(ByMode::Notify),
            traced: envelope.deliver_by().is_some_and(|by| by.trace),
            extended: envelope.is_extended(),
            reverse_path,
            priority,
            offered,
            tags: if stated.tags.is_empty() { &[] } else { &tag_list },
        };
        put(&mut queue, &message, Recipients { envelope: envelope.recipients(), routes: routes.iter() })
    }

    /// Is there a route for this recipient of mail with this reverse-path?
    pub(crate) fn has_route(&self, Leg { from, to }: Leg<'_>) -> bool {
        let domain = to.domain().unwrap_or(&self.hostname).as_bytes();
        self.queue.borrow().has_route(Mail { reverse_path: from.as_str().as_bytes(), domain })
    }
}
