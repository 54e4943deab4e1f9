//! Attempts that end in maildirs of this machine: the content goes from the spool to threads that write files.

use std::{path::PathBuf, rc::Rc};

use ringpost_queue::{Dispatch, QueueId, UnknownMailbox};
use ringpost_smtp::{
    address::Path,
    client::{MESSAGE_UNREADABLE, SuccessReport, Verdict},
    extension::{Body, ByMode},
    reply::Reply,
};
use tracing::{error, warn};

use crate::{
    attempt::Attempt,
    content::MessageContent,
    deposit::{Deposit, Deposited},
    envelope_times::deliver_by_left,
    file_threads::NotRun,
    maildir::{Mailbox, Missing, NAME_BYTES_MAX, SIZE_BYTES_MAX, refusal},
    maildir_path::{base_of, maildir_of},
    random::random_u64,
    shard::Shard,
    stored_envelope::RecordError,
};

/// How the mail log calls it.
const RELAY: &str = "maildir";

/// Why an attempt came to nothing for all of its recipients.
enum Unmade {
    /// The message has left the queue.
    Gone,
    Unreadable(RecordError),
    NotRun(NotRun),
    /// RFC 2852: it was to be delivered before now.
    TooLate,
}

impl From<RecordError> for Unmade {
    fn from(error: RecordError) -> Self {
        Unmade::Unreadable(error)
    }
}

impl From<NotRun> for Unmade {
    fn from(error: NotRun) -> Self {
        Unmade::NotRun(error)
    }
}

/// Writes the message into the maildir of each recipient; `path` is the route's, and what it says of those that are not there.
pub(crate) async fn deliver(shard: Rc<Shard>, dispatch: Dispatch, path: PathBuf, unknown: UnknownMailbox) {
    let mut attempt = Attempt::new(dispatch, shard.delivery.storage());
    attempt.storage.recipients.extend(shard.queue.borrow().recipients(&attempt.dispatch).map(|(number, _)| number));
    match write(&shard, &mut attempt, &path.to_string_lossy(), unknown).await {
        Ok(()) => {}
        Err(Unmade::Gone) => return shard.attempt_abandoned(attempt.dispatch),
        Err(Unmade::Unreadable(reason)) => {
            error!(shard = shard.id, %reason, "a message cannot be read; the attempt is deferred");
            attempt.decide_all(Verdict::Deferred, Reply::local(MESSAGE_UNREADABLE));
        }
        Err(Unmade::NotRun(reason)) => {
            warn!(shard = shard.id, %reason, "no maildir is written; the attempt is deferred");
            attempt.decide_all(Verdict::Deferred, Reply::local("451 4.3.2 too many mailboxes are being written"));
        }
        Err(Unmade::TooLate) => {
            attempt.decide_all(Verdict::Failed, Reply::local("554 5.4.7 the time that the sender gave is over"));
        }
    }
    shard.settle_attempt(attempt, RELAY);
}

async fn write(shard: &Rc<Shard>, attempt: &mut Attempt, path: &str, unknown: UnknownMailbox) -> Result<(), Unmade> {
    let (id, accepted_at, extended, sender) = {
        let queue = shard.queue.borrow();
        let envelope = queue.envelope(attempt.dispatch.key()).ok_or(Unmade::Gone)?;
        (envelope.id, envelope.accepted_at, envelope.extended, envelope.reverse_path.to_vec())
    };
    let mut has_lines = true;
    if extended {
        let stored = shard.stored_envelope(&attempt.dispatch, id).await?;
        let view = stored.view();
        has_lines = view.body() != Body::BinaryMime;
        let left = deliver_by_left(&view, accepted_at, shard.now_ms());
        if left.is_some_and(|by| by.mode == ByMode::Return && by.seconds <= 0) {
            return Err(Unmade::TooLate);
        }
    }
    // An attempt of this run has recorded its outcome or not written; one of an earlier run may have died between the two.
    let is_repeated = id.boot != shard.boot || attempt.dispatch.attempt() > 1;
    let mut mailboxes = Vec::new();
    let mut positions = Vec::new();
    let mut refused = Vec::new();
    {
        let queue = shard.queue.borrow();
        for (position, (number, address)) in (0..).zip(queue.recipients(&attempt.dispatch)) {
            let address = String::from_utf8_lossy(address);
            let to = Path::new(&address);
            match maildir_of(path, to.local_part(), to.domain().unwrap_or(&shard.hostname)) {
                Ok(folder) => {
                    positions.push(position);
                    mailboxes.push(Mailbox {
                        folder,
                        name: file_name(id, number, accepted_at, &shard.hostname),
                        attempt: random_u64(),
                        head: head(&sender, address.as_bytes()),
                        is_repeated,
                        missing: match unknown {
                            UnknownMailbox::Create => Missing::Make,
                            UnknownMailbox::Defer => Missing::Wait,
                            UnknownMailbox::Refuse => Missing::Refuse { base: base_of(path) },
                        },
                    });
                }
                Err(reason) => refused.push((position, reason)),
            }
        }
    }
    let ends = if mailboxes.is_empty() { Vec::new() } else { deposit(shard, &attempt.dispatch, id, mailboxes, has_lines).await? };
    // Nobody is decided before everybody is: an error above is everybody's.
    for (position, reason) in refused {
        attempt.decide(position, Verdict::Failed, Reply::local(&reason.to_string()), SuccessReport::Delivered);
    }
    for (position, end) in positions.into_iter().zip(ends) {
        let (verdict, reply) = match end {
            Deposited::Written => (Verdict::Delivered, Reply::local("250 2.0.0 written into the maildir")),
            Deposited::Found => (Verdict::Delivered, Reply::local("250 2.0.0 in the maildir already")),
            Deposited::Failed(error) => {
                let line = refusal(&error);
                (if line.starts_with('5') { Verdict::Failed } else { Verdict::Deferred }, Reply::local(&line))
            }
        };
        attempt.decide(position, verdict, reply, SuccessReport::Delivered);
    }
    Ok(())
}

/// Hands the content to the threads, piece by piece; what came of each mailbox, in their order.
async fn deposit(
    shard: &Rc<Shard>,
    dispatch: &Dispatch,
    id: QueueId,
    mailboxes: Vec<Mailbox>,
    has_lines: bool,
) -> Result<Vec<Deposited>, Unmade> {
    let content = MessageContent::open(shard, dispatch, id).await?;
    let (threads, ring) = (&shard.file_threads, &shard.ring);
    let first = content.piece(0).await?;
    let last = content.pieces() - 1;
    let begin = move || {
        let mut deposit = Deposit::begin(mailboxes, has_lines);
        deposit.write(&first);
        deposit
    };
    if last == 0 {
        // The usual message is one piece: one step.
        return Ok(threads.run(ring, move || begin().finish()).await?);
    }
    let mut deposit = threads.run(ring, begin).await?;
    for index in 1..=last {
        let piece = content.piece(index).await?;
        deposit = threads
            .run(ring, move || {
                deposit.write(&piece);
                deposit
            })
            .await?;
    }
    Ok(threads.run(ring, move || deposit.finish()).await?)
}

/// The same for every attempt, and no other recipient's.
fn file_name(id: QueueId, recipient: u16, accepted_at_ms: u64, hostname: &str) -> String {
    // Neither can be in a host name; the convention asks for it all the same.
    let host = hostname.replace('/', "\\057").replace(':', "\\072");
    let mut name = format!("{}.Q{id}R{recipient}.", accepted_at_ms / 1000);
    let room = NAME_BYTES_MAX - SIZE_BYTES_MAX - name.len();
    if host.len() <= room {
        name.push_str(&host);
    } else {
        // Hosts whose names begin alike may deliver into the same maildirs, and number their mail alike.
        let sum = format!("-{:08x}", crc32c::crc32c(host.as_bytes()));
        name.push_str(&host[..host.floor_char_boundary(room - sum.len())]);
        name.push_str(&sum);
    }
    name
}

/// What final delivery adds in front (RFC 5321 4.4).
fn head(sender: &[u8], recipient: &[u8]) -> Vec<u8> {
    [b"Return-Path: <", sender, b">\r\nDelivered-To: ", recipient, b"\r\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: QueueId = QueueId { boot: u32::MAX, shard: 1023, sequence: u64::MAX >> 24 };

    /// Each message for a maildir failed for good where the name of the host was so long that its file could have no name.
    #[test]
    fn a_message_has_a_file_also_where_the_hosts_name_is_as_long_as_one_can_be() {
        let long = |last: &str| format!("{}.{last}", vec!["n".repeat(61); 4].join("."));
        assert!(long("ab").len() <= 255 && long("ab").len() >= 250);
        let name = |hostname: &str| file_name(ID, u16::MAX, u64::MAX, hostname);
        let folder = tempfile::tempdir().unwrap();
        for hostname in ["mx1.example.org", &long("ab"), &long("ac")] {
            let mailbox = Mailbox {
                folder: folder.path().join("b"),
                name: name(hostname),
                attempt: 1,
                head: Vec::new(),
                is_repeated: true,
                missing: Missing::Make,
            };
            assert!(name(hostname).len() + SIZE_BYTES_MAX <= NAME_BYTES_MAX);
            let mut deposit = Deposit::begin(vec![mailbox], true);
            deposit.write(b"x\r\n");
            assert!(matches!(deposit.finish()[..], [Deposited::Written]), "no other host's is taken for it: {hostname}");
        }
        assert!(name("mx1.example.org").ends_with(".mx1.example.org") && name("a/b:c").ends_with(".a\\057b\\072c"));
        assert_eq!(name(&long("ab")), name(&long("ab")));
    }
}
