//! A random number of each start, by which the mail that was accepted since is called in the cluster's queue.
//!
//! ```text
//! spool/cluster/starts   <boot number> <16 hexadecimal digits>      a line for each start
//! ```
//! Two nodes with copies of one spool and one `cluster.node_id`, as machines made from one image are, can give one `QueueId` to two messages:
//! boot numbers are seconds. By one name in the queue either would take the completion of the other's mail for that of its own. What both have
//! from before they were copied is the same mail, and keeps one name.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, ErrorKind},
    path::PathBuf,
};

use ringpost_cluster::{
    durable_file::{make_folder, replace},
    valkey::random_u64,
};
use tracing::warn;

use super::{HandOverNode, offer_mark::Noted};

/// The last so many starts. Mail that is older is called as that of the first of them: what the queue has of it under its own name is delivered
/// a second time.
const STARTS_MAX: usize = 4096;

/// What mail of each start is called by. A node that does not share starts without being able to note it.
pub(super) fn of_this_start(node: &HandOverNode) -> io::Result<StartNumbers> {
    // As an earlier version has offered it.
    let before = (node.mark.read()? != Noted::Nothing).then_some(node.spool);
    let (numbers, noted) = StartsFile::new(node.mark.beside("starts")).begin(node.boot, random_u64(), before);
    match noted {
        Err(reason) if !node.shares => {
            warn!(%reason, "how mail of this start is called in the cluster's queue cannot be noted in the spool: after a drain that is interrupted \
                what is left is offered a second time");
        }
        noted => noted?,
    }
    Ok(numbers)
}

/// By boot number.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct StartNumbers(BTreeMap<u64, u64>);

impl StartNumbers {
    /// Mail of all boots has one number.
    #[cfg(test)]
    pub(super) fn one(number: u64) -> StartNumbers {
        StartNumbers(BTreeMap::from([(u64::MAX, number)]))
    }

    #[cfg(test)]
    pub(super) fn of_two(first: (u64, u64), second: (u64, u64)) -> StartNumbers {
        StartNumbers(BTreeMap::from([first, second]))
    }

    /// The number of mail of a boot. A boot that noted none (of an earlier version, or without a cluster) has that of the next that did: by it
    /// such mail is offered first.
    pub(super) fn of(&self, boot: u64) -> u64 {
        self.0.range(boot..).next().or_else(|| self.0.last_key_value()).map_or(0, |(_, number)| *number)
    }

    /// With the number of one more start. `before`: that of all mail which a version offered that noted none.
    fn begin(&mut self, boot: u64, number: u64, before: Option<u64>) {
        if self.0.is_empty()
            && let (Some(before), Some(last)) = (before, boot.checked_sub(1))
        {
            self.0.insert(last, before);
        }
        self.0.entry(boot).or_insert(number);
        while self.0.len() > STARTS_MAX {
            self.0.pop_first();
        }
    }

    fn text(&self) -> String {
        self.0.iter().map(|(boot, number)| format!("{boot} {number:016x}\n")).collect()
    }

    /// What is no line of this form is left out.
    fn parse(text: &str) -> StartNumbers {
        let line = |line: &str| {
            let (boot, number) = line.split_once(' ')?;
            Some((boot.parse().ok()?, u64::from_str_radix(number, 16).ok()?))
        };
        StartNumbers(text.lines().filter_map(line).collect())
    }
}

/// The file's place.
#[derive(Clone, Debug)]
pub(super) struct StartsFile(PathBuf);

impl StartsFile {
    /// In the folder of what the node knows of the cluster.
    pub(super) fn new(path: PathBuf) -> StartsFile {
        StartsFile(path)
    }

    /// The numbers of all starts, with this one; see [`StartNumbers::begin`]. Durable when it returns, before anything is offered by it. Where it
    /// cannot be noted the numbers hold for this run, and the reason is told.
    pub(super) fn begin(&self, boot: u64, number: u64, before: Option<u64>) -> (StartNumbers, io::Result<()>) {
        let (mut numbers, read) = match fs::read_to_string(&self.0) {
            Ok(text) => (StartNumbers::parse(&text), Ok(())),
            Err(error) if error.kind() == ErrorKind::NotFound => (StartNumbers::default(), Ok(())),
            Err(error) => (StartNumbers::default(), Err(error)),
        };
        numbers.begin(boot, number, before);
        let noted = read.and_then(|()| {
            make_folder(self.0.parent().expect("it is in a folder"))?;
            replace(&self.0, numbers.text().as_bytes())
        });
        (numbers, noted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_start_has_its_number_and_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = StartsFile::new(folder.path().join("cluster/starts"));
        let (first, noted) = file.begin(7, 0xa, None);
        noted.unwrap();
        assert_eq!([0, 6, 7].map(|boot| first.of(boot)), [0xa; 3]);
        let (second, noted) = file.begin(9, 0xb, None);
        noted.unwrap();
        assert_eq!([6, 7, 8, 9].map(|boot| second.of(boot)), [0xa, 0xa, 0xb, 0xb]);
        // Started once more under its number, which a spool does not do.
        assert_eq!(file.begin(9, 0xc, None).0, second);
    }

    #[test]
    fn what_an_earlier_version_offered_keeps_the_spools_number() {
        let folder = tempfile::tempdir().unwrap();
        let file = StartsFile::new(folder.path().join("cluster/starts"));
        file.begin(7, 0xa, Some(1)).1.unwrap();
        let (numbers, _) = file.begin(8, 0xb, Some(1));
        assert_eq!([5, 6, 7, 8].map(|boot| numbers.of(boot)), [1, 1, 0xa, 0xb]);
    }

    #[test]
    fn numbers_are_bounded_and_damage_costs_its_line_alone() {
        let mut numbers = StartNumbers::default();
        (1..=5000).for_each(|boot| numbers.begin(boot, boot * 16, None));
        assert_eq!(numbers.0.len(), STARTS_MAX);
        assert_eq!(numbers.of(5000), 80_000);
        let damaged = numbers.text().replacen("5000 ", "5000x", 1);
        assert_eq!(StartNumbers::parse(&damaged).0.len(), STARTS_MAX - 1);
    }

    #[test]
    fn what_cannot_be_noted_is_told() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cluster"), "").unwrap();
        let (numbers, noted) = StartsFile::new(folder.path().join("cluster/starts")).begin(7, 0xa, None);
        assert!(noted.is_err());
        assert_eq!(numbers.of(7), 0xa);
    }
}
