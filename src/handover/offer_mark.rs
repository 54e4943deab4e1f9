//! A file that says that mail of this spool may be in the cluster's queue, and how it is called there: a run that does not share takes it
//! back first. It is written before a spool's first mail is offered, or the first of others is stored: a run that did neither, as one with a wrong
//! keyspace that nobody else has, leaves nothing behind that a later one would have to look for.
//!
//! ```text
//! spool/cluster/offers   mail of this spool may be in the cluster's queue
//!                        node=<cluster.node_id> partitions=<cluster.queue_partitions> named_since=<boot number> spread_since=<boot number>
//!                        place=<database> <cluster.valkey_keyspace> <cluster.valkey_url without user and password>
//!                        drained, or: not drained
//! ```
//! The second line is missing where a version wrote it that gave names without the spool, `spread_since` where one did that put the spool
//! before the message, the third where one did that did not note the place. `drained` is there from before the first mail is offered of a node that is
//! emptied, or that delivers nothing (`delivery.deliver = false`), and until all that it offered then is settled or taken back by a later run that delivers:
//! what it had tried, and what is larger than it would share, may be in the queue as well. Earlier versions pass over it. Where neither is there a version wrote it that emptied nodes and
//! did not say so: all may be in the queue, as after a drain, and a run that delivers takes it back first.

use std::{fs, io, path::PathBuf};

use ringpost_cluster::{
    durable_file::{make_folder, replace},
    work_queue::WorkQueue,
};
use tracing::warn;

use super::HandOverNode;

const FIRST_LINE: &str = "mail of this spool may be in the cluster's queue";
const DRAINED: &str = "drained";
const NOT_DRAINED: &str = "not drained";

/// How this spool's mail is offered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offering {
    /// As which node.
    pub node: String,
    /// Over how many partitions.
    pub partitions: u16,
    /// Mail of earlier boots has names without the spool.
    pub named_since: u64,
    /// Mail of earlier boots has names with the spool before the message; `None`: all mail.
    pub spread_since: Option<u64>,
    /// `None`: a version noted it that did not say where.
    pub place: Option<Place>,
    /// A node was emptied, or delivered nothing: all that it had may be there, but for what was held or too large.
    pub drained: bool,
}

/// Which queue it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The number of the database.
    pub database: i64,
    /// `cluster.valkey_keyspace`.
    pub keyspace: String,
    /// `cluster.valkey_url`, without user and password. Another can lead to the same data.
    pub url: String,
}

impl Place {
    fn of(queue: &WorkQueue) -> Place {
        let (keyspace, target) = queue.place();
        Place { database: target.database(), keyspace: keyspace.to_string(), url: target.to_string() }
    }

    /// Whether both are one queue where their URLs lead to one server.
    fn is_queue_of(&self, other: &Place) -> bool {
        (self.database, &self.keyspace) == (other.database, &other.keyspace)
    }

    fn parse(line: &str) -> Option<Place> {
        let mut words = line.strip_prefix("place=")?.splitn(3, ' ');
        let (database, keyspace, url) = (words.next()?.parse().ok()?, words.next()?.to_owned(), words.next()?.to_owned());
        Some(Place { database, keyspace, url })
    }
}

impl Offering {
    /// How this run offers mail, in view of what an earlier one noted. A warning says what that has left where this one does not look.
    pub(super) fn of(node: &HandOverNode) -> io::Result<Offering> {
        let noted = node.mark.read()?;
        let (named_since, spread_since) = match &noted {
            Noted::Nothing => (0, 0),
            Noted::Unnamed => (node.boot, node.boot),
            Noted::Offered(earlier) => (earlier.named_since, earlier.spread_since.unwrap_or(node.boot)),
        };
        let now = Offering {
            node: node.me.to_string(),
            partitions: node.queue.bounds().partitions,
            named_since,
            spread_since: Some(spread_since),
            place: Some(Place::of(&node.queue)),
            drained: offers_all(&noted, node.delivers),
        };
        if let Noted::Offered(earlier) = noted {
            match now.after(&earlier) {
                After::Same => {}
                After::AnotherQueue => warn!(
                    ?earlier,
                    ?now,
                    "mail of this spool was offered under another cluster.node_id, or over another cluster.queue_partitions: what is still in the \
                     queue there is neither taken back nor settled from here, and is delivered a second time. Empty a node (ringpost drain --to-cluster) \
                     before you change them"
                ),
                After::AnotherServer => warn!(
                    ?earlier,
                    ?now,
                    "mail of this spool was offered by way of another cluster.valkey_url: if that leads to other data than this one, what is still \
                     in the queue there is neither taken back nor settled from here, and is delivered a second time"
                ),
            }
        }
        Ok(now)
    }

    /// Whether what an earlier run has offered is found from here.
    fn after(&self, earlier: &Offering) -> After {
        let is_same = (&earlier.node, earlier.partitions) == (&self.node, self.partitions);
        match (&earlier.place, &self.place) {
            (Some(earlier), Some(now)) if !earlier.is_queue_of(now) => After::AnotherQueue,
            _ if !is_same => After::AnotherQueue,
            (Some(earlier), Some(now)) if earlier.url != now.url => After::AnotherServer,
            _ => After::Same,
        }
    }

    fn text(&self) -> String {
        let Offering { node, partitions, named_since, spread_since, place, drained } = self;
        let spread = spread_since.map_or_else(String::new, |boot| format!(" spread_since={boot}"));
        let place =
            place.as_ref().map_or_else(String::new, |Place { database, keyspace, url }| format!("place={database} {keyspace} {url}\n"));
        let drained = if *drained { DRAINED } else { NOT_DRAINED };
        format!("{FIRST_LINE}\nnode={node} partitions={partitions} named_since={named_since}{spread}\n{place}{drained}\n")
    }

    fn parse(text: &str) -> Option<Offering> {
        let mut values = text.lines().nth(1)?.split(' ').map(|word| word.split_once('='));
        let mut value = |name: &str| values.next()?.filter(|(key, _)| *key == name).map(|(_, value)| value);
        let (node, partitions, named_since) = (value("node")?, value("partitions")?, value("named_since")?);
        let spread_since = value("spread_since").map(str::parse).transpose().ok()?;
        let (partitions, named_since) = (partitions.parse().ok()?, named_since.parse().ok()?);
        let place = text.lines().nth(2).and_then(Place::parse);
        let drained = !text.lines().skip(2).any(|line| line == NOT_DRAINED);
        Some(Offering { node: node.to_owned(), partitions, named_since, spread_since, place, drained })
    }
}

/// Whether what was tried, too, may be in the queue: a run that delivers nothing offers whatever it has, and knows of no end of what another has left there.
fn offers_all(noted: &Noted, delivers: bool) -> bool {
    let was_drained = match noted {
        Noted::Nothing => false,
        // It may have been emptied.
        Noted::Unnamed => true,
        Noted::Offered(earlier) => earlier.drained,
    };
    was_drained || !delivers
}

/// Where an earlier run's mail is, as seen from this one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum After {
    Same,
    /// By other names, or under other keys.
    AnotherQueue,
    /// Perhaps.
    AnotherServer,
}

/// What an earlier run noted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Noted {
    /// Nothing of this spool's mail is in the queue.
    Nothing,
    /// Some may be, by names without the spool.
    Unnamed,
    /// Some may be.
    Offered(Offering),
}

/// The file's place.
#[derive(Clone, Debug)]
pub struct OfferMark {
    path: PathBuf,
}

impl OfferMark {
    /// In the folder of what the node knows of the cluster.
    pub fn new(folder: PathBuf) -> OfferMark {
        OfferMark { path: folder.join("offers") }
    }

    /// The place of another file of the same folder.
    pub(super) fn beside(&self, name: &str) -> PathBuf {
        self.path.with_file_name(name)
    }

    /// Whether mail may be there. What cannot be looked at counts as yes.
    pub fn is_set(&self) -> bool {
        self.path.try_exists().unwrap_or(true)
    }

    /// Whether an earlier run was emptied, or delivered nothing, and all mail may be there. What cannot be read counts as yes.
    pub fn was_drained(&self) -> bool {
        match self.read() {
            Ok(Noted::Offered(offering)) => offering.drained,
            Ok(Noted::Nothing) => false,
            Ok(Noted::Unnamed) | Err(_) => true,
        }
    }

    /// What it says.
    pub fn read(&self) -> io::Result<Noted> {
        Ok(self.text()?.map_or(Noted::Nothing, |text| Offering::parse(&text).map_or(Noted::Unnamed, Noted::Offered)))
    }

    fn text(&self) -> io::Result<Option<String>> {
        match fs::read_to_string(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            text => text.map(Some),
        }
    }

    /// Whether what earlier runs have offered is found by way of the queue at `place`, as far as they noted where that was. If not, a sentence for the
    /// operator: from here it could neither be taken back nor settled. A note that cannot be read is told by who reads it next.
    pub fn check_place(&self, place: &Place) -> Result<(), String> {
        let Ok(Noted::Offered(Offering { place: Some(earlier), .. })) = self.read() else { return Ok(()) };
        if earlier.is_queue_of(place) {
            return Ok(());
        }
        let key = if earlier.keyspace == place.keyspace { "cluster.valkey_url" } else { "cluster.valkey_keyspace" };
        Err(format!(
            "{key}: mail of this spool was offered in {} of database {}, and this is {} of database {}: what is still in the queue there \
             would be delivered a second time. Set the earlier value again and start with delivery.mode = \"local\" until the log says that nothing of \
             this node's mail is in the cluster's queue, then change it; or remove {} to leave behind what is there, as where a drain has ended with 0",
            earlier.keyspace,
            earlier.database,
            place.keyspace,
            place.database,
            self.path.display()
        ))
    }

    /// Durable when it returns: before the first mail is offered. What an earlier version wrote is replaced, also where it means the same here: that
    /// version may have another meaning for what it does not say.
    pub fn set(&self, offering: &Offering) -> io::Result<()> {
        let text = offering.text();
        if self.text()?.is_some_and(|noted| noted == text) {
            return Ok(());
        }
        make_folder(self.path.parent().expect("it is in a folder"))?;
        replace(&self.path, text.as_bytes())
    }

    /// Nothing is there any more. If that is not durable the next start looks once more.
    pub fn clear(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offering(named_since: u64) -> Offering {
        let place = Place { database: 0, keyspace: "ringpost:cluster".to_owned(), url: "valkey://127.0.0.1:6379".to_owned() };
        Offering { node: "n1".to_owned(), partitions: 4, named_since, spread_since: Some(named_since), place: Some(place), drained: false }
    }

    #[test]
    fn another_queue_is_told_from_another_way_to_it() {
        let place = |database, keyspace: &str, url: &str| Place { database, keyspace: keyspace.to_owned(), url: url.to_owned() };
        let at = |place| Offering { place, ..offering(0) };
        let now = at(Some(place(0, "k", "valkey://a")));
        assert_eq!(now.after(&now), After::Same);
        assert_eq!(now.after(&at(None)), After::Same, "nobody can tell");
        assert_eq!(now.after(&at(Some(place(1, "k", "valkey://a")))), After::AnotherQueue);
        assert_eq!(now.after(&at(Some(place(0, "l", "valkey://a")))), After::AnotherQueue);
        assert_eq!(now.after(&at(Some(place(0, "k", "valkey+sentinel://a/mail")))), After::AnotherServer);
        assert_eq!(now.after(&Offering { partitions: 5, ..at(None) }), After::AnotherQueue);
        assert_eq!(now.after(&Offering { node: "n2".to_owned(), ..now.clone() }), After::AnotherQueue);
    }

    #[test]
    fn a_mark_stays_until_it_is_cleared() {
        let folder = tempfile::tempdir().unwrap();
        let mark = OfferMark::new(folder.path().join("spool/cluster"));
        assert!(!mark.is_set());
        assert_eq!(mark.read().unwrap(), Noted::Nothing);
        fs::create_dir(folder.path().join("spool")).unwrap();
        mark.set(&offering(0)).unwrap();
        mark.set(&offering(0)).unwrap();
        let again = OfferMark::new(folder.path().join("spool/cluster"));
        assert!(again.is_set());
        assert_eq!(again.read().unwrap(), Noted::Offered(offering(0)));
        mark.clear().unwrap();
        mark.clear().unwrap();
        assert!(!mark.is_set());
    }

    /// It was told in a warning, and all that was in the queue was delivered a second time.
    #[test]
    fn mail_that_was_offered_elsewhere_keeps_a_start_from_going_on() {
        let folder = tempfile::tempdir().unwrap();
        let mark = OfferMark::new(folder.path().join("cluster"));
        let at = |database, keyspace: &str| Place { database, keyspace: keyspace.to_owned(), url: "valkey://b".to_owned() };
        assert_eq!(mark.check_place(&at(1, "k")), Ok(()), "nothing was offered");
        mark.set(&offering(0)).unwrap();
        assert_eq!(mark.check_place(&at(0, "ringpost:cluster")), Ok(()), "by another way");
        for (place, key, words) in [
            (at(1, "ringpost:cluster"), "cluster.valkey_url: ", "of database 1"),
            (at(0, "other"), "cluster.valkey_keyspace: ", "this is other"),
            (at(2, "other"), "cluster.valkey_keyspace: ", "in ringpost:cluster of database 0, and this is other of database 2"),
        ] {
            let reason = mark.check_place(&place).expect_err("it is elsewhere");
            assert!(
                reason.starts_with(key)
                    && reason.contains(words)
                    && reason.contains("delivery.mode = \"local\"")
                    && reason.contains("cluster/offers"),
                "{reason}"
            );
        }
        mark.set(&Offering { place: None, ..offering(0) }).unwrap();
        assert_eq!(mark.check_place(&at(1, "k")), Ok(()), "nobody can tell");
    }

    #[test]
    fn a_mark_says_whether_the_node_was_emptied() {
        let folder = tempfile::tempdir().unwrap();
        let mark = OfferMark::new(folder.path().join("cluster"));
        assert!(!mark.was_drained());
        for place in [offering(7).place, None] {
            for drained in [true, false] {
                let now = Offering { drained, place: place.clone(), ..offering(7) };
                mark.set(&now).unwrap();
                assert_eq!((mark.read().unwrap(), mark.was_drained()), (Noted::Offered(now), drained));
            }
        }
    }

    /// A node that was killed while an earlier version emptied it was started as this one: what it had tried was delivered at once, and by those that had
    /// taken it over.
    #[test]
    fn a_mark_of_a_version_that_did_not_say_whether_the_node_was_emptied_is_that_of_one_that_was() {
        let folder = tempfile::tempdir().unwrap();
        let mark = OfferMark::new(folder.path().join("cluster"));
        mark.set(&offering(7)).unwrap();
        let text = fs::read_to_string(folder.path().join("cluster/offers")).unwrap();
        let earlier = text.strip_suffix("not drained\n").expect("it says so");
        assert!(earlier.ends_with("valkey://127.0.0.1:6379\n"), "{earlier}");
        assert!(!mark.was_drained());
        fs::write(folder.path().join("cluster/offers"), earlier).unwrap();
        assert_eq!((mark.read().unwrap(), mark.was_drained()), (Noted::Offered(Offering { drained: true, ..offering(7) }), true));
        mark.set(&offering(7)).unwrap();
        assert!(!mark.was_drained(), "said by this version");
    }

    /// A drain that began under such a mark wrote nothing, as it meant the same: whoever went back to that version then had what was tried delivered at once,
    /// since there it means that nothing was emptied.
    #[test]
    fn a_mark_that_does_not_say_that_the_node_was_emptied_is_written_anew_with_a_drain() {
        let folder = tempfile::tempdir().unwrap();
        let (mark, file) = (OfferMark::new(folder.path().join("cluster")), folder.path().join("cluster/offers"));
        let drained = Offering { drained: true, ..offering(7) };
        mark.set(&drained).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.strip_suffix("drained\n").expect("it says so")).unwrap();
        mark.set(&drained).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
    }

    #[test]
    fn a_run_that_delivers_nothing_offers_what_was_tried() {
        let noted = |drained| Noted::Offered(Offering { drained, ..offering(0) });
        assert!([Noted::Nothing, Noted::Unnamed, noted(false), noted(true)].iter().all(|noted| offers_all(noted, false)));
        assert_eq!(
            [Noted::Nothing, Noted::Unnamed, noted(false), noted(true)].map(|noted| offers_all(&noted, true)),
            [false, true, false, true]
        );
    }

    #[test]
    fn a_mark_of_a_version_without_names_is_told_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let mark = OfferMark::new(folder.path().join("cluster"));
        fs::create_dir(folder.path().join("cluster")).unwrap();
        fs::write(folder.path().join("cluster/offers"), format!("{FIRST_LINE}\n")).unwrap();
        assert!(mark.is_set() && mark.was_drained());
        assert_eq!(mark.read().unwrap(), Noted::Unnamed);
        mark.set(&offering(7)).unwrap();
        assert_eq!(mark.read().unwrap(), Noted::Offered(offering(7)));
    }

    #[test]
    fn a_mark_of_a_version_that_put_the_spool_first_is_told_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let mark = OfferMark::new(folder.path().join("cluster"));
        fs::create_dir(folder.path().join("cluster")).unwrap();
        fs::write(folder.path().join("cluster/offers"), format!("{FIRST_LINE}\nnode=n1 partitions=4 named_since=7\n")).unwrap();
        // Nobody knows whether it was emptied.
        let earlier = Offering { spread_since: None, place: None, drained: true, ..offering(7) };
        assert_eq!(mark.read().unwrap(), Noted::Offered(earlier.clone()));
        let now = Offering { spread_since: Some(9), ..offering(7) };
        mark.set(&now).unwrap();
        assert_eq!(mark.read().unwrap(), Noted::Offered(now));
    }
}
