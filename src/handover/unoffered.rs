//! Mail that is to be offered and that no call has brought into the queue yet: that it waits for that, and for what.

use ringpost_cluster::boot_time::BootTime;
use ringpost_engine::control::MessageView;
use ringpost_queue::{OFFERED_REASON, QueueId};

use super::{Driver, SharedDelivery};

impl SharedDelivery {
    /// Why mail that is to be offered is not in the queue yet, as far as is known, in words for an operator; `None`: it is, by the queue's last word.
    pub fn waits_for(&self, id: QueueId) -> Option<String> {
        self.0.waits_for(id)
    }

    /// Says so in views of messages that are said to be offered.
    pub fn correct(&self, views: &mut [MessageView]) {
        for view in views.iter_mut().filter(|view| view.reason == OFFERED_REASON) {
            if let Some(reason) = view.id.parse().ok().and_then(|id| self.waits_for(id)) {
                view.reason = format!("waits to be offered to the nodes of the cluster: {reason}");
            }
        }
    }
}

impl Driver {
    fn waits_for(&self, id: QueueId) -> Option<String> {
        let (item, queue, valkey) = (self.item(id), &self.node.queue, &self.node.valkey);
        let partition = queue.partition(&item);
        let away = {
            let offers = self.offers();
            if offers.was_brought_in(&item) {
                return None;
            }
            offers.is_away(partition).map(|since| BootTime::now().since(since).as_secs())
        };
        let outage = || Some(format!("Valkey is away: {}", valkey.outage()?));
        let refusal = || Some(format!("Valkey answers, and refuses what this node asks: {}", valkey.refusal()?));
        let away = || Some(format!("its partition of the queue, {partition}, has not answered, or taken nothing, for {} s", away?));
        let refused = || {
            self.refused().contains(&partition).then(|| format!("its partition of the queue, {partition}, takes no mail; the log says why"))
        };
        let crowded = || queue.crowded_in(partition);
        let reason = queue.difference().or_else(outage).or_else(refusal).or_else(refused).or_else(away).or_else(crowded);
        Some(reason.unwrap_or_else(|| "it is its turn at once".to_owned()))
    }
}
