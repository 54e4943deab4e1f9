//! What an owner asks of its items, and has done with them: where they are, what became of them, that they leave the queue.

#[cfg(doc)]
use super::{Completed, IDS_PER_CALL, ITEMS_PER_CALL};
use super::{Ending, Known, QueueError, WorkQueue, generation_of_new_data};
use crate::{
    completion::{RECORD_BYTES_MAX, result_of},
    reply::{Reply, number},
    restraint::KEY_MARK,
    valkey_error::ValkeyError,
    withdrawal::{Withdrawal, is_ended},
    work_item::{ItemError, is_item_id},
};

impl WorkQueue {
    /// Where up to [`IDS_PER_CALL`] items of one partition are. One that was in no place any more, where no worker would ever meet it, is put back.
    pub async fn known(&self, partition: u16, ids: &[&str]) -> Result<(String, Vec<Known>), QueueError> {
        let new_data = generation_of_new_data();
        let mut args: Vec<&[u8]> = vec![new_data.as_bytes()];
        args.extend(ids.iter().map(|id| id.as_bytes()));
        let mut reply = Reply::new(self.run("queue_known", partition, &args).await?)?;
        let generation = reply.text()?;
        let (mut answers, mut put_back) = (Vec::with_capacity(ids.len()), 0);
        for id in ids {
            let mut answer = reply.bytes()?;
            if let [state @ (b'r' | b's' | b'l' | b'd'), ..] = answer.as_mut_slice() {
                state.make_ascii_uppercase();
                put_back += 1;
            }
            answers.push(match answer.as_slice() {
                b"" => Known::Unknown,
                [b'R' | b'S', reason @ ..] if reason.ends_with(self.unread_by_mine().as_bytes()) => Known::Unreadable,
                [b'R' | b'S', ..] => Known::Waiting,
                b"L" => Known::Leased,
                b"D" => Known::Dead,
                [b'W', record @ ..] if record.len() <= RECORD_BYTES_MAX => {
                    if is_ended(record) || (Withdrawal { queue: &self.name, id }).signed_moment(&self.key, record).is_some() {
                        Known::Withdrawn
                    } else {
                        Known::Unsigned(record.to_vec())
                    }
                }
                [b'X', record @ ..] if record.len() <= RECORD_BYTES_MAX => match result_of(&self.key, &self.name, id, record) {
                    Some(result) => Known::Completed(result.to_owned()),
                    None => Known::Unproven(record.to_vec()),
                },
                _ => return Err(ValkeyError::Malformed("a state").into()),
            });
        }
        self.tell_restored(partition, put_back);
        Ok((generation, answers))
    }

    /// How the reason ends that a worker with this node's key gives who could not read an item.
    fn unread_by_mine(&self) -> String {
        format!(" ({KEY_MARK} {})", self.key.mark())
    }

    /// Why an item is not used, as [`WorkQueue::fail`] is to have it: by it an owner tells that the item is not signed with the key that it has.
    pub fn unread(&self, reason: &ItemError) -> String {
        match reason {
            ItemError::NotOurs => format!("{reason}{}", self.unread_by_mine()),
            ItemError::Id(_) | ItemError::TooLarge(_) | ItemError::Newer | ItemError::Damaged(_) => reason.to_string(),
        }
    }

    /// Replaces up to [`ITEMS_PER_CALL`] records that are [`Known::Unproven`] or [`Known::Unsigned`] by this node's signed word that it has these
    /// items; it can enqueue them again. True: it is gone; false: there is another record by now, to be asked for.
    pub async fn refuse(&self, partition: u16, records: &[(String, Vec<u8>)]) -> Result<Vec<bool>, QueueError> {
        let owner = self.me.node().as_str();
        let word = |(id, record): &(String, Vec<u8>)| Withdrawal { queue: &self.name, id }.sign(&self.key, owner, record);
        let words: Vec<String> = records.iter().map(word).collect();
        let with_words = records.iter().zip(&words);
        let args: Vec<&[u8]> = with_words.flat_map(|((id, record), word)| [id.as_bytes(), record.as_slice(), word.as_bytes()]).collect();
        let mut reply = Reply::new(self.run("queue_refuse", partition, &args).await?)?;
        records.iter().map(|_| Ok(reply.number()? == 1)).collect()
    }

    /// Names of items that begin with `prefix`, which is in the form of an item's id, a part at a time: from `cursor` (`"0"`: the beginning)
    /// on. Returns where to go on (`"0"`: that was all) and up to a few hundred names, some of them perhaps twice.
    pub async fn names(&self, partition: u16, cursor: &str, prefix: &str) -> Result<(String, Vec<String>), QueueError> {
        if !is_item_id(prefix) {
            return Err(ItemError::Id(prefix.chars().take(128).collect()).into());
        }
        // Such names hold nothing that a pattern would mean.
        let pattern = format!("{prefix}*");
        let mut reply = Reply::new(self.run("queue_names", partition, &[cursor.as_bytes(), pattern.as_bytes()]).await?)?;
        let next = reply.text()?;
        let mut names = Vec::new();
        while !reply.is_empty() {
            // What is no name is nobody's, and leaves the queue when it is met by whoever leases.
            names.extend(String::from_utf8(reply.bytes()?).ok().filter(|name| is_item_id(name)));
        }
        Ok((next, names))
    }

    /// This node has settled what was completed, or has ended what it withdrew: the outcomes are forgotten. Returns how many there were.
    pub async fn settled(&self, partition: u16, ids: &[&str]) -> Result<u64, QueueError> {
        let forgotten = number(self.with_ids("queue_settled", partition, &[self.me.node().as_str()], ids).await?)?;
        Ok(u64::try_from(forgotten).unwrap_or(0))
    }

    /// Takes this node's items back. True for each that is out of the queue; false: it is leased.
    pub async fn withdraw(&self, partition: u16, ids: &[&str]) -> Result<Vec<bool>, QueueError> {
        let mut reply = Reply::new(self.with_ids("queue_withdraw", partition, &[self.me.node().as_str(), "withdrawn"], ids).await?)?;
        ids.iter().map(|_| Ok(reply.number()? != 0)).collect()
    }

    /// Takes out what this node has settled, and the queue has again since it went back in time: a worker that asks for it is told
    /// [`Completed::Settled`] from then on.
    pub async fn end(&self, partition: u16, ids: &[&str]) -> Result<Vec<Ending>, QueueError> {
        let mut reply = Reply::new(self.with_ids("queue_withdraw", partition, &[self.me.node().as_str(), "ended"], ids).await?)?;
        let mut answers = Vec::with_capacity(ids.len());
        for _ in ids {
            answers.push(match reply.number()? {
                1 | -1 => Ending::Out,
                0 => Ending::Leased,
                2 => Ending::Stays,
                _ => return Err(ValkeyError::Malformed("a code of withdraw").into()),
            });
        }
        Ok(answers)
    }
}
