//! Attempts that end in maildirs of this machine: the content goes from the spool to threads that write files.

use std::{
    cell::Cell,
    future::poll_fn,
    path::PathBuf,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use ringpost_queue::{Dispatch, QueueId, UnknownMailbox};
use ringpost_ring::Deadline;
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
    deposit::Deposit,
    deposit_progress::DepositProgress,
    envelope_times::deliver_by_left,
    file_threads::NotRun,
    maildir::{Deposited, Mailbox, Missing, NAME_BYTES_MAX, SIZE_BYTES_MAX, refusal},
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
    /// So many threads hang in mailboxes of the route that no further one is to.
    Shut,
    /// The drain's time is over.
    Drained,
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
        Err(Unmade::Gone | Unmade::Drained) => return shard.attempt_abandoned(attempt.dispatch),
        Err(Unmade::Unreadable(reason)) => {
            error!(shard = shard.id, %reason, "a message cannot be read; the attempt is deferred");
            attempt.decide_all(Verdict::Deferred, Reply::local(MESSAGE_UNREADABLE));
        }
        Err(Unmade::NotRun(reason)) => {
            warn!(shard = shard.id, %reason, "no maildir is written; the attempt is deferred");
            attempt.decide_all(Verdict::Deferred, Reply::local(NO_TURN));
        }
        Err(Unmade::Shut) => {
            attempt.decide_all(Verdict::Deferred, Reply::local("451 4.3.0 the file system of these mailboxes does not answer"));
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
    if shard.file_threads.is_shut(path) {
        return Err(Unmade::Shut);
    }
    // An attempt of this run has recorded its outcome or not written; one of an earlier run may have died between the two.
    let is_repeated = id.boot != shard.boot || attempt.dispatch.attempt() > 1;
    let mut mailboxes = Vec::new();
    let mut positions = Vec::new();
    let mut decided = Vec::new();
    let mut late = Vec::new();
    {
        let queue = shard.queue.borrow();
        for (position, (number, address)) in (0..).zip(queue.recipients(&attempt.dispatch)) {
            let address = String::from_utf8_lossy(address);
            let to = Path::new(&address);
            let folder = match maildir_of(path, to.local_part(), to.domain().unwrap_or(&shard.hostname)) {
                Ok(folder) => folder,
                Err(reason) => {
                    decided.push((position, Verdict::Failed, Reply::local(&reason.to_string())));
                    continue;
                }
            };
            let name = file_name(id, number, accepted_at, &shard.hostname);
            if is_repeated && shard.late_deposits.has(&name) {
                decided.push((position, Verdict::Delivered, Reply::local(FOUND)));
                late.push(name);
            } else if shard.file_threads.hangs_at(&folder) {
                decided.push((position, Verdict::Deferred, Reply::local(HANGS)));
            } else {
                positions.push(position);
                mailboxes.push(Mailbox {
                    folder,
                    name,
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
        }
    }
    let ends = if mailboxes.is_empty() { Vec::new() } else { deposit(shard, &attempt.dispatch, id, path, mailboxes, has_lines).await? };
    // Nobody is decided before everybody is: an error above is everybody's.
    for (position, verdict, reply) in decided {
        attempt.decide(position, verdict, reply, SuccessReport::Delivered);
    }
    for name in late {
        shard.late_deposits.forget(&name);
    }
    for (position, end) in positions.into_iter().zip(ends) {
        let (verdict, reply) = match end {
            End::Came(Deposited::Written) => (Verdict::Delivered, Reply::local("250 2.0.0 written into the maildir")),
            End::Came(Deposited::Found) => (Verdict::Delivered, Reply::local(FOUND)),
            End::Came(Deposited::Failed(error)) => {
                let line = refusal(&error);
                (if line.starts_with('5') { Verdict::Failed } else { Verdict::Deferred }, Reply::local(&line))
            }
            End::Unsaid(verdict, line) => (verdict, Reply::local(line)),
        };
        attempt.decide(position, verdict, reply, SuccessReport::Delivered);
    }
    Ok(())
}

/// What the log and the queue say of a mailbox that was found to have the message.
const FOUND: &str = "250 2.0.0 in the maildir already";
/// Of one in which a thread hangs, since this attempt or an earlier one.
const HANGS: &str = "451 4.3.0 writing the mailbox: its file system does not answer";
/// Of one whose turn comes after that.
const BEHIND: &str = "451 4.3.0 the file system of another mailbox of this message does not answer";
const NO_TURN: &str = "451 4.3.2 too many mailboxes are being written";

/// What came of one mailbox.
enum End {
    Came(Deposited),
    /// Nothing by the end of the time.
    Unsaid(Verdict, &'static str),
}

/// Hands the content to the threads, piece by piece; what came of each mailbox, in their order.
async fn deposit(
    shard: &Rc<Shard>,
    dispatch: &Dispatch,
    id: QueueId,
    lane: &str,
    mailboxes: Vec<Mailbox>,
    has_lines: bool,
) -> Result<Vec<End>, Unmade> {
    let content = MessageContent::open(shard, dispatch, id).await?;
    let first = content.piece(0).await?;
    let last = content.pieces() - 1;
    let progress = DepositProgress::new(&mailboxes, shard.late_deposits.clone());
    let patience = Patience::new(shard, lane, &progress);
    let theirs = progress.clone();
    let begin = move || {
        let mut deposit = Deposit::begin(mailboxes, has_lines, theirs);
        deposit.write(&first);
        deposit
    };
    let mut is_ending = last == 0;
    let result = if is_ending {
        // The usual message is one piece: one step.
        patience.step(false, move || begin().finish()).await
    } else {
        match patience.step(false, begin).await {
            Ok(mut deposit) => 'pieces: {
                for index in 1..=last {
                    let piece = match content.piece(index).await {
                        Ok(piece) => piece,
                        Err(error) => {
                            progress.give_up();
                            shard.file_threads.leave(lane, move || deposit.discard());
                            return Err(error.into());
                        }
                    };
                    let write = move || {
                        deposit.write(&piece);
                        deposit
                    };
                    deposit = match patience.step(true, write).await {
                        Ok(deposit) => deposit,
                        Err(error) => break 'pieces Err(error),
                    };
                }
                is_ending = true;
                patience.step(true, move || deposit.finish()).await
            }
            Err(error) => Err(error),
        }
    };
    let is_drained = patience.is_cut_short();
    let (ends, at) = progress.give_up();
    let hangs = matches!(result, Err(NotRun::Stuck));
    match result {
        _ if ends.iter().any(Option::is_some) => {}
        Err(_) if is_drained => return Err(Unmade::Drained),
        Err(reason) if !hangs => return Err(reason.into()),
        _ => {}
    }
    if hangs && !is_drained {
        shard.metrics.maildirs_unanswered.increment();
        warn!(
            shard = shard.id,
            folder = %progress.folder().display(),
            timeout_s = shard.config().delivery.maildir_timeout.as_secs(),
            "a maildir does not answer; its mail is deferred until it does"
        );
    }
    let unsaid = |position: usize| match (is_drained, hangs) {
        (true, _) => End::Unsaid(Verdict::Untried, HANGS),
        // The rename may be under way.
        (false, true) if position == at => End::Unsaid(if is_ending { Verdict::Unknown } else { Verdict::Deferred }, HANGS),
        (false, true) => End::Unsaid(Verdict::Deferred, BEHIND),
        (false, false) => End::Unsaid(Verdict::Deferred, NO_TURN),
    };
    Ok(ends.into_iter().enumerate().map(|(position, end)| end.map_or_else(|| unsaid(position), End::Came)).collect())
}

/// How long a shard waits for the threads: for each mailbox of a step the time that is set, and never longer than a drain.
struct Patience<'s> {
    shard: &'s Shard,
    lane: &'s str,
    progress: &'s DepositProgress,
    deadline: Deadline,
    due: Cell<Instant>,
    life: Cell<Option<usize>>,
}

impl<'s> Patience<'s> {
    fn new(shard: &'s Shard, lane: &'s str, progress: &'s DepositProgress) -> Self {
        let (deadline, due) = (shard.ring.deadline(), Cell::new(shard.ring.now()));
        Patience { shard, lane, progress, deadline, due, life: Cell::new(None) }
    }

    async fn step<R: Send + 'static>(&self, goes_on: bool, work: impl FnOnce() -> R + Send + 'static) -> Result<R, NotRun> {
        let timeout: Duration = self.shard.config().delivery.maildir_timeout;
        self.progress.has_moved();
        self.due.set(self.shard.ring.now() + timeout);
        self.deadline.set(self.shard.before_drain_ends(self.due.get()));
        let over = poll_fn(|cx| {
            if self.life.get().is_none() {
                self.life.set(Some(self.shard.remember_waiter(cx.waker().clone())));
            }
            if self.shard.is_ending() {
                self.deadline.set(self.shard.before_drain_ends(self.due.get()));
            }
            while self.deadline.poll_expired(cx).is_ready() {
                if self.shard.ring.now() < self.due.get() || !self.progress.has_moved() {
                    return Poll::Ready(());
                }
                self.due.set(self.shard.ring.now() + timeout);
                self.deadline.set(self.shard.before_drain_ends(self.due.get()));
            }
            Poll::Pending
        });
        let Shard { file_threads, ring, .. } = self.shard;
        file_threads.run(ring, self.lane, goes_on, work, over, || self.progress.folder()).await
    }

    /// Was it the drain's time that was over, and not that of the last step?
    fn is_cut_short(&self) -> bool {
        self.shard.is_ending() && self.shard.ring.now() < self.due.get()
    }
}

impl Drop for Patience<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.life.get() {
            self.shard.forget_waiter(key);
        }
    }
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
    use crate::maildir::tests::deliver;

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
            assert!(matches!(deliver(&mailbox, &[b"x\r\n"], true), Deposited::Written), "no other host's is taken for it: {hostname}");
        }
        assert!(name("mx1.example.org").ends_with(".mx1.example.org") && name("a/b:c").ends_with(".a\\057b\\072c"));
        assert_eq!(name(&long("ab")), name(&long("ab")));
    }
}
