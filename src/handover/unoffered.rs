//! Mail that is to be offered and that no call has brought into the queue yet, or that no worker could read there: that it waits, and for what.

use ringpost_cluster::boot_time::BootTime;
use ringpost_engine::control::MessageView;
use ringpost_queue::{OFFERED_REASON, QueueId};

use super::{Driver, SharedDelivery};

/// What keeps mail that is to be offered from being taken by another node.
pub enum Unoffered {
    /// It is not in the queue yet: why, as far as is known.
    Waits(String),
    /// No worker could read its item: what comes next.
    Unread(&'static str),
}

impl Unoffered {
    /// As `queue ls` and `queue show` say it.
    fn reason(&self) -> String {
        match self {
            Unoffered::Waits(reason) => format!("waits to be offered to the nodes of the cluster: {reason}"),
            Unoffered::Unread(next) => format!("its item in the cluster's queue could not be read: {next}"),
        }
    }

    /// As `queue why` says it, but for the end of the sentence.
    pub fn sentence(&self) -> String {
        match self {
            Unoffered::Waits(reason) => format!("Waits to be offered to the nodes of the cluster, and stays with this node: {reason}"),
            Unoffered::Unread(next) => format!(
                "Stays with this node, as the worker that leased its item in the cluster's queue could not read it (it was signed with another \
                 cluster.key_file, or damaged): {next}"
            ),
        }
    }
}

impl SharedDelivery {
    /// What keeps offered mail from being taken; `None`: it is in the queue, by the queue's last word, and can be read, as far as is known.
    pub fn unoffered(&self, id: QueueId) -> Option<Unoffered> {
        self.0.unoffered(id)
    }

    /// Says so in views of messages that are said to be offered.
    pub fn correct(&self, views: &mut [MessageView]) {
        for view in views.iter_mut().filter(|view| view.reason == OFFERED_REASON) {
            if let Some(unoffered) = view.id.parse().ok().and_then(|id| self.unoffered(id)) {
                view.reason = unoffered.reason();
            }
        }
    }
}

impl Driver {
    fn unoffered(&self, id: QueueId) -> Option<Unoffered> {
        let (item, queue, valkey) = (self.item(id), &self.node.queue, &self.node.valkey);
        let partition = queue.partition(&item);
        let (away, is_slow) = {
            let offers = self.offers();
            if let Some(next) = offers.unread_next(&item) {
                return Some(Unoffered::Unread(next));
            }
            if offers.was_brought_in(&item) {
                return None;
            }
            // One call that came late is no outage.
            let away = offers.is_away(partition).map(|since| BootTime::now().since(since).as_secs()).filter(|seconds| *seconds > 0);
            (away, offers.tries(&item) > 0)
        };
        let outage = || Some(format!("Valkey is away: {}", valkey.outage()?));
        let refusal = || Some(format!("Valkey answers, and refuses what this node asks: {}", valkey.refusal()?));
        let away = || Some(format!("its partition of the queue, {partition}, has not answered, or taken nothing, for {} s", away?));
        let refused = || {
            self.refused().contains(&partition).then(|| format!("its partition of the queue, {partition}, takes no mail; the log says why"))
        };
        let slow = || queue.slowness().filter(|_| is_slow);
        let crowded = || queue.crowded_in(partition);
        let reason = queue.difference().or_else(outage).or_else(refusal).or_else(refused).or_else(away).or_else(slow).or_else(crowded);
        Some(Unoffered::Waits(reason.unwrap_or_else(|| "it is its turn at once".to_owned())))
    }
}
