//! What this spool is known to have settled: by its shards, and by a file that earlier runs have left.
//!
//! ```text
//! spool/cluster/settled   the ids, as `ringpost_engine::settled_ids` writes them
//! ```
//! Nothing else takes mail out of the cluster's queue that no shard has. The file is behind by one round at most; what it lacks the logs say, as
//! long as the segments of that mail are not used again.

use std::{
    fs,
    io::{self, ErrorKind},
    path::PathBuf,
    sync::Arc,
};

use ringpost_cluster::durable_file::{make_folder, replace};
use ringpost_engine::{
    control::{Answer, HandOver, Missing},
    settled_ids::SettledIds,
};
use ringpost_queue::QueueId;
use tokio::time::sleep;
use tracing::warn;

use super::{Driver, Ended, RECONCILE_EVERY};

/// The file's place.
#[derive(Clone, Debug)]
pub(super) struct SettledFile(PathBuf);

impl SettledFile {
    /// In the folder of what the node knows of the cluster.
    pub(super) fn new(path: PathBuf) -> SettledFile {
        SettledFile(path)
    }

    /// What earlier runs have noted. A file that cannot be read says of no mail that it is settled.
    pub(super) fn read(&self) -> SettledIds {
        let text = match fs::read_to_string(&self.0) {
            Err(error) if error.kind() == ErrorKind::NotFound => return SettledIds::default(),
            text => text,
        };
        let read = text.and_then(|text| SettledIds::parse(&text).ok_or_else(|| io::Error::from(ErrorKind::InvalidData)));
        read.unwrap_or_else(|reason| {
            warn!(path = %self.0.display(), %reason, "what earlier runs have settled cannot be read: of that, what is still in the cluster's queue is \
                left there, and delivered a second time perhaps");
            SettledIds::default()
        })
    }

    /// Durable when it returns.
    fn write(&self, text: &str) -> io::Result<()> {
        make_folder(self.0.parent().expect("it is in a folder"))?;
        replace(&self.0, text.as_bytes())
    }
}

impl Driver {
    /// Of one shard's mail what it does not have; [`Ended`] also where it cannot say.
    pub(super) async fn missing(&self, shard: usize, ids: Vec<QueueId>) -> Result<Missing, Ended> {
        let Answer::Missing(mut missing) = self.ask(shard, HandOver::Missing(ids)).await? else {
            warn!(shard, "a shard cannot say which mail it has");
            return Err(Ended);
        };
        let (settled, unknown) = missing.unknown.into_iter().partition::<Vec<_>, _>(|id| self.settled_before.contains(*id));
        missing.settled.extend(settled);
        Ok(Missing { unknown, ..missing })
    }

    /// Notes what is settled for the runs to come, as long as mail of this node may be in the queue.
    pub(super) async fn note_settlements(self: Arc<Self>) {
        let (mut noted, mut is_said) = (String::new(), false);
        loop {
            if self.is_active() {
                let Ok(text) = self.settlements().await else { return };
                if text != noted {
                    let (file, content) = (self.settled_file.clone(), text.clone());
                    let written = tokio::task::spawn_blocking(move || file.write(&content)).await;
                    match written.unwrap_or_else(|_| Err(io::Error::other("given up"))) {
                        Ok(()) => (noted, is_said) = (text, false),
                        Err(reason) if !is_said => {
                            is_said = true;
                            warn!(path = %self.settled_file.0.display(), %reason, "what this node has settled cannot be noted in the spool: a later \
                                start may leave some of it in the cluster's queue, if Valkey goes back in time meanwhile. Let the engine's user write \
                                that file and its folder, and give the disk room; it is tried again each ten seconds");
                        }
                        Err(_) => {}
                    }
                }
            }
            sleep(RECONCILE_EVERY).await;
        }
    }

    async fn settlements(&self) -> Result<String, Ended> {
        let mut settled = self.settled_before.clone();
        for shard in 0..self.shards.len() {
            if let Answer::SettledIds(of_shard) = self.ask(shard, HandOver::SettledIds).await? {
                settled.extend(&of_shard);
            }
        }
        Ok(settled.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_read_again_and_a_damaged_note_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cluster/settled");
        let file = SettledFile::new(path.clone());
        assert_eq!(file.read(), SettledIds::default());
        let mut settled = SettledIds::default();
        settled.insert(QueueId { boot: 7, shard: 1, sequence: 3 });
        file.write(&settled.text()).unwrap();
        assert_eq!(file.read(), settled);
        fs::write(&path, settled.text().replace("7 1 3 3", "7 1 3 9")).unwrap();
        assert_eq!(file.read(), SettledIds::default());
    }
}
