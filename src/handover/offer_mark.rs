//! A file that says that mail of this spool may be in the cluster's queue, and how it is called there: a run that does not share takes it
//! back first.
//!
//! ```text
//! spool/cluster/offers   mail of this spool may be in the cluster's queue
//!                        node=<cluster.node_id> partitions=<cluster.queue_partitions> named_since=<boot number> spread_since=<boot number>
//! ```
//! The second line is missing where a version wrote it that gave names without the spool, `spread_since` where one did that put the spool
//! before the message.

use std::{
    fs::{self, File},
    io,
    path::PathBuf,
};

use ringpost_cluster::floor_file::replace;

const FIRST_LINE: &str = "mail of this spool may be in the cluster's queue";

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
}

impl Offering {
    fn text(&self) -> String {
        let Offering { node, partitions, named_since, spread_since } = self;
        let spread = spread_since.map_or_else(String::new, |boot| format!(" spread_since={boot}"));
        format!("{FIRST_LINE}\nnode={node} partitions={partitions} named_since={named_since}{spread}\n")
    }

    fn parse(text: &str) -> Option<Offering> {
        let mut values = text.lines().nth(1)?.split(' ').map(|word| word.split_once('='));
        let mut value = |name: &str| values.next()?.filter(|(key, _)| *key == name).map(|(_, value)| value);
        let (node, partitions, named_since) = (value("node")?, value("partitions")?, value("named_since")?);
        let spread_since = value("spread_since").map(str::parse).transpose().ok()?;
        let (partitions, named_since) = (partitions.parse().ok()?, named_since.parse().ok()?);
        Some(Offering { node: node.to_owned(), partitions, named_since, spread_since })
    }
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

    /// What it says.
    pub fn read(&self) -> io::Result<Noted> {
        match fs::read_to_string(&self.path) {
            Ok(text) => Ok(Offering::parse(&text).map_or(Noted::Unnamed, Noted::Offered)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Noted::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Durable when it returns: before the first mail is offered.
    pub fn set(&self, offering: &Offering) -> io::Result<()> {
        if self.read()? == Noted::Offered(offering.clone()) {
            return Ok(());
        }
        let folder = self.path.parent().expect("it is in a folder");
        fs::create_dir_all(folder)?;
        if let Some(spool) = folder.parent() {
            File::open(spool)?.sync_all()?;
        }
        replace(&self.path, offering.text().as_bytes())
    }

    /// Nothing is there any more. If that is not durable the next start looks once more.
    pub fn clear(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// The mark of a node that runs: who has taken back what earlier runs had offered clears it, unless the node is being emptied.
#[derive(Debug)]
pub struct Marking {
    mark: OfferMark,
    is_kept: bool,
}

impl Marking {
    /// Not kept so far.
    pub fn new(mark: OfferMark) -> Marking {
        Marking { mark, is_kept: false }
    }

    /// The node is being emptied: as [`OfferMark::set`], and stays for this process's life.
    pub fn keep(&mut self, offering: &Offering) -> io::Result<()> {
        self.mark.set(offering)?;
        self.is_kept = true;
        Ok(())
    }

    /// As [`OfferMark::clear`]; false: it is kept.
    pub fn clear_unless_kept(&mut self) -> io::Result<bool> {
        if !self.is_kept {
            self.mark.clear()?;
        }
        Ok(!self.is_kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offering(named_since: u64) -> Offering {
        Offering { node: "n1".to_owned(), partitions: 4, named_since, spread_since: Some(named_since) }
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

    /// It was cleared while a drain began, by what had taken back an earlier run's mail: the next start would have delivered what was in the
    /// queue by then.
    #[test]
    fn a_mark_is_kept_while_the_node_is_emptied() {
        let folder = tempfile::tempdir().unwrap();
        let mark = OfferMark::new(folder.path().join("cluster"));
        let mut marking = Marking::new(mark.clone());
        mark.set(&offering(0)).unwrap();
        assert!(marking.clear_unless_kept().unwrap() && !mark.is_set());
        marking.keep(&offering(0)).unwrap();
        assert!(!marking.clear_unless_kept().unwrap() && mark.is_set(), "kept");
        // What could not be noted is not kept.
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let mut marking = Marking::new(OfferMark::new(file));
        assert!(marking.keep(&offering(0)).is_err() && !marking.is_kept);
    }

    #[test]
    fn a_mark_of_a_version_without_names_is_told_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let mark = OfferMark::new(folder.path().join("cluster"));
        fs::create_dir(folder.path().join("cluster")).unwrap();
        fs::write(folder.path().join("cluster/offers"), format!("{FIRST_LINE}\n")).unwrap();
        assert!(mark.is_set());
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
        let earlier = Offering { spread_since: None, ..offering(7) };
        assert_eq!(mark.read().unwrap(), Noted::Offered(earlier.clone()));
        let now = Offering { spread_since: Some(9), ..earlier };
        mark.set(&now).unwrap();
        assert_eq!(mark.read().unwrap(), Noted::Offered(now));
    }
}
