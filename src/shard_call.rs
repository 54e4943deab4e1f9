//! Calls from the coordinator to shards. A lane that is full for a moment, with an operator's requests or answers of the resolver, is tried
//! again: it is neither a shard that hangs nor a reason to leave a change half done.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ringpost_engine::{
    control::{Answer, Command},
    request_lane::{RequestLane, RequestRefused},
};
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{sleep, timeout},
};

/// A full lane to a shard is tried again after this.
const LANE_RETRY: Duration = Duration::from_millis(5);

/// A shard that has come to its end answers nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ShardGone {
    /// It heard nothing of the call.
    #[error("a shard has ended")]
    Before,
    /// It may have done a part of what it was asked for.
    #[error("a shard ended before it answered")]
    Meanwhile,
}

/// The shard's answer, however long it takes.
pub async fn answer_of(shard: &RequestLane, command: &Command) -> Result<Answer, ShardGone> {
    loop {
        let (sender, receiver) = oneshot::channel();
        match shard.send(command.clone(), Box::new(move |answer| drop(sender.send(answer)))) {
            Ok(()) => return receiver.await.map_err(|_| ShardGone::Meanwhile),
            Err(RequestRefused::Full) => sleep(LANE_RETRY).await,
            Err(RequestRefused::Ended) => return Err(ShardGone::Before),
        }
    }
}

/// Asks all at once. Each is asked whether or not its answer is waited for.
pub fn ask_all(shards: &[Arc<RequestLane>], command: &Command) -> Vec<JoinHandle<Result<Answer, ShardGone>>> {
    let ask = |shard: &Arc<RequestLane>| {
        let (shard, command) = (shard.clone(), command.clone());
        tokio::spawn(async move { answer_of(&shard, &command).await })
    };
    shards.iter().map(ask).collect()
}

/// The same, and waits for all of them: the first refusal.
pub async fn ask_each(shards: &[Arc<RequestLane>], command: &Command) -> Result<(), String> {
    let mut refused = Ok(());
    for asked in ask_all(shards, command) {
        let answer = asked.await.map_err(|reason| reason.to_string())?.map_err(|gone| gone.to_string());
        if let Ok(Answer::Failed(reason)) | Err(reason) = answer
            && refused.is_ok()
        {
            refused = Err(reason);
        }
    }
    refused
}

/// Each shard's counters; None for one that has not answered within `patience`.
pub async fn counters(shards: &[Arc<RequestLane>], patience: Duration) -> Vec<Option<Vec<(&'static str, u64)>>> {
    let until = Instant::now() + patience;
    let asked: Vec<_> = ask_all(shards, &Command::Stats);
    let mut all = Vec::with_capacity(asked.len());
    for mut call in asked {
        let answer = timeout(until.saturating_duration_since(Instant::now()), &mut call).await;
        // One that hangs is not to be asked for ever by everybody who looked.
        call.abort();
        all.push(match answer {
            Ok(Ok(Ok(Answer::Stats(counters)))) => Some(counters),
            _ => None,
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use ringpost_engine::request_lane::{RequestReceiver, request_lane};

    use super::*;

    /// Fills a lane to its last place, so that the next call is refused for want of room.
    fn filled() -> (Vec<Arc<RequestLane>>, RequestReceiver) {
        let (lane, receiver) = request_lane();
        while lane.send(Command::FollowRoutes, Box::new(|_| ())) != Err(RequestRefused::Full) {}
        (vec![Arc::new(lane)], receiver)
    }

    /// Answers counters, and empties the lane, as a shard does that comes to it late.
    fn answer(receiver: &mut RequestReceiver) {
        while let Some(request) = receiver.take() {
            (request.answer)(Answer::Stats(vec![("sessions", 1)]));
        }
    }

    /// A shard that worked up many answers of the resolver at once was told to hang, and a node's health was 503.
    #[tokio::test]
    async fn a_lane_that_is_full_for_a_moment_is_asked_again() {
        let (lanes, mut receiver) = filled();
        let asked = tokio::spawn(async move { counters(&lanes, Duration::from_secs(60)).await });
        // It has found the lane full before there is room.
        tokio::task::yield_now().await;
        while !asked.is_finished() {
            answer(&mut receiver);
            tokio::task::yield_now().await;
        }
        assert_eq!(asked.await.unwrap(), [Some(vec![("sessions", 1)])]);
    }

    #[tokio::test]
    async fn a_shard_that_does_not_answer_has_no_counters_and_is_asked_no_longer() {
        let (lanes, mut receiver) = filled();
        assert_eq!(counters(&lanes, Duration::from_millis(20)).await, [None]);
        while receiver.take().is_some() {}
        // What was ended is gone with the scheduler's next turn, and its hold on the lane with it.
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&lanes[0]), 1);
    }
}
