//! What waits for its turn at the home shard of its destination: the shard that owns the mail knows only that it is out, and takes it to be
//! attempted. The homes know.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ringpost_engine::{
    control::{Answer, Command, Elsewhere, MessageView},
    request_lane::RequestLane,
};
use ringpost_queue::QueueId;

use crate::control_server::ask;

/// Recipients by message.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct InTurn(BTreeMap<QueueId, BTreeSet<u16>>);

impl InTurn {
    /// Of these messages, asked of every shard; where there is one, nothing is out.
    pub async fn of(ids: Vec<QueueId>, shards: &[Arc<RequestLane>]) -> Result<InTurn, String> {
        let mut in_turn = InTurn::default();
        if ids.is_empty() || shards.len() < 2 {
            return Ok(in_turn);
        }
        for shard in shards {
            if let Answer::InTurn(found) = ask(shard, Command::InTurn(ids.clone())).await? {
                for (id, recipients) in found {
                    in_turn.0.entry(id).or_default().extend(recipients);
                }
            }
        }
        Ok(in_turn)
    }

    /// The recipients of one message.
    fn of_message(mut self, id: QueueId) -> Vec<u16> {
        self.0.remove(&id).unwrap_or_default().into_iter().collect()
    }

    /// Says of recipients that are said to be attempted, and wait, that they are ready.
    fn tell(&self, view: &mut MessageView) {
        let Some(in_turn) = view.id.parse().ok().and_then(|id: QueueId| self.0.get(&id)) else { return };
        for (number, recipient) in (0..).zip(&mut view.recipients) {
            if recipient.state == "active" && in_turn.contains(&number) {
                recipient.state = "ready".to_owned();
                if view.reason.is_empty() {
                    view.reason = format!("waits for its turn at the shard that delivers to {:?}", recipient.destination);
                }
            }
        }
    }
}

/// What the shards that deliver know of this message.
pub async fn elsewhere(id: QueueId, shards: &[Arc<RequestLane>]) -> Result<Elsewhere, String> {
    let in_turn = InTurn::of(vec![id], shards).await?.of_message(id);
    let mut said = Vec::new();
    for shard in shards {
        if let Answer::SaidBefore(of_shard) = ask(shard, Command::SaidBefore(id)).await? {
            said.extend(of_shard);
        }
    }
    Ok(Elsewhere { in_turn, said, unoffered: None })
}

/// Makes views of messages say what their homes know.
pub async fn correct(views: &mut [MessageView], shards: &[Arc<RequestLane>]) -> Result<(), String> {
    let is_out = |view: &&MessageView| view.recipients.iter().any(|recipient| recipient.state == "active");
    let ids = views.iter().filter(is_out).filter_map(|view| view.id.parse().ok()).collect();
    let in_turn = InTurn::of(ids, shards).await?;
    views.iter_mut().for_each(|view| in_turn.tell(view));
    Ok(())
}

/// Does a message have a recipient in this state, once it was corrected?
pub fn is_in_state(view: &MessageView, state: Option<&str>) -> bool {
    // The queue has another word for it.
    let state = state.map(|state| if state == "attempting" { "active" } else { state });
    state.is_none_or(|state| view.recipients.iter().any(|recipient| recipient.state == state))
}

#[cfg(test)]
mod tests {
    use ringpost_engine::control::RecipientView;

    use super::*;

    #[test]
    fn what_waits_at_its_home_is_ready_and_what_is_tried_there_is_not() {
        let id = QueueId { boot: 1, shard: 0, sequence: 7 };
        let recipient = |state: &str| RecipientView {
            address: "b@y.test".into(),
            state: state.into(),
            destination: "y.test".into(),
            route: "*".into(),
            attempts: 0,
            next_attempt: None,
            paused_by: None,
            after_attempt: None,
            expires_at: None,
            last_reply: None,
            relay: None,
        };
        let mut view = MessageView {
            id: id.to_string(),
            sender: String::new(),
            recipients: ["active", "active", "delivered"].map(recipient).into(),
            attempts: 0,
            next_attempt: None,
            size: 1,
            priority: Some(4),
            accepted_at: String::new(),
            tags: Vec::new(),
            reason: String::new(),
        };
        let in_turn = InTurn([(id, [1, 2].into())].into());
        in_turn.tell(&mut view);
        let states: Vec<&str> = view.recipients.iter().map(|recipient| &*recipient.state).collect();
        assert_eq!(states, ["active", "ready", "delivered"]);
        assert_eq!(view.reason, "waits for its turn at the shard that delivers to \"y.test\"");
        assert!(is_in_state(&view, Some("ready")) && is_in_state(&view, None) && !is_in_state(&view, Some("deferred")));
        assert_eq!(in_turn.of_message(id), [1, 2]);
    }
}
