//! A walk over a shard's whole queue, page by page between its other tasks. It ends where the queue ended when it began: mail that comes as fast as it goes
//! on does not prolong it. A time would not do: mail of other nodes keeps the time at which they accepted it, by their clocks.

use ringpost_queue::{Cursor, CursorLost, Filter, MessageView, Queue, QueueId};

use crate::control::Rest;

/// Where the walk stands, and what it is for.
pub(crate) struct QueueWalk {
    filter: Filter,
    /// As in [`Rest`].
    older_than: QueueId,
    next: Option<Cursor>,
}

impl QueueWalk {
    /// Along what matches `filter`. `upcoming` is the number that the shard's next message gets ([`Shard::upcoming_id`](crate::shard::Shard::upcoming_id)).
    pub(crate) fn begin(filter: Filter, upcoming: QueueId) -> QueueWalk {
        QueueWalk::along(filter, upcoming, Cursor::default())
    }

    /// Goes on with an earlier one of the same filter.
    pub(crate) fn resume(filter: Filter, Rest { at, older_than }: Rest) -> QueueWalk {
        QueueWalk::along(filter, older_than, Cursor::at(at))
    }

    fn along(filter: Filter, older_than: QueueId, next: Cursor) -> QueueWalk {
        QueueWalk { filter: Filter { older_than: Some(older_than), ..filter }, older_than, next: Some(next) }
    }

    /// What it goes along.
    pub(crate) fn filter(&self) -> &Filter {
        &self.filter
    }

    /// What is left of it; `None` at its end.
    pub(crate) fn rest(&self) -> Option<Rest> {
        self.next.map(|next| Rest { at: next.position(), older_than: self.older_than })
    }

    /// Visits up to `limit` messages, perhaps none before the end. False: it had ended before. Err: too many others were begun since.
    pub(crate) fn page(&mut self, queue: &mut Queue, limit: usize, visit: impl FnMut(MessageView<'_>)) -> Result<bool, CursorLost> {
        let Some(at) = self.next else { return Ok(false) };
        self.next = queue.page(&self.filter, at, limit, visit)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use ringpost_queue::{NewMessage, NewRecipient, Notify, QueueSettings, RetryPolicy, Route, Routes, Via};

    use super::*;

    const BEFORE: u64 = 1000;
    const PAGE: usize = 100;

    fn id(sequence: u64) -> QueueId {
        QueueId { boot: 1, shard: 0, sequence }
    }

    fn enqueue(queue: &mut Queue, id: QueueId) {
        let destination = queue.route(b"y.test");
        let recipient = NewRecipient { address: b"b@y.test", destination, notify: Notify::UNSAID };
        let message = NewMessage { id, accepted_at: 1, reverse_path: b"a@x.test", ..NewMessage::default() };
        queue.enqueue(&message, std::iter::once(recipient), 1);
    }

    /// A drain into the cluster, and mail that followed other routes, went along what came meanwhile, and ended because that came more slowly.
    #[test]
    fn a_walk_ends_where_the_queue_ended_when_it_began() {
        let listed = Filter { sender_domain: Some("x.test".to_owned()), ..Filter::default() };
        for filter in [Filter::default(), listed] {
            let route = Route { pattern: "*".into(), via: Via::Hold, retry: RetryPolicy::default(), limits: Default::default() };
            let mut queue = Queue::new(QueueSettings::default(), Routes::new(vec![route]).unwrap(), 1, 1);
            (1..=BEFORE).for_each(|sequence| enqueue(&mut queue, id(sequence)));
            // Another life's, of which numbers say nothing.
            enqueue(&mut queue, QueueId { boot: 0, ..id(2 * BEFORE) });
            let (mut walk, mut met, mut pages, mut upcoming) =
                (QueueWalk::begin(filter.clone(), id(BEFORE + 1)), Vec::new(), 0, BEFORE + 1);
            // What is left of it can be told to others and go on from there.
            while let Some(rest) = walk.rest() {
                walk = QueueWalk::resume(filter.clone(), rest);
                assert!(walk.page(&mut queue, PAGE, |view| met.push(view.envelope().id)).unwrap());
                for _ in 0..2 * PAGE {
                    enqueue(&mut queue, id(upcoming));
                    upcoming += 1;
                }
                pages += 1;
                assert!(pages <= 2 * BEFORE as usize / PAGE, "{} met of {BEFORE}", met.len());
            }
            assert!(!walk.page(&mut queue, PAGE, |_| panic!("it has ended")).unwrap());
            met.sort_unstable_by_key(|id| (id.boot, id.sequence));
            let expected: Vec<QueueId> = std::iter::once(QueueId { boot: 0, ..id(2 * BEFORE) }).chain((1..=BEFORE).map(id)).collect();
            assert_eq!(met, expected);
        }
    }
}
