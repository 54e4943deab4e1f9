//! What the owner of the items does: offer, ask, take back, settle, and offer again what was lost.

use ringpost_cluster::{
    work_item::NewItem,
    work_queue::{Completed, Enqueued, Known, Purged},
};

use super::{HOUR_MS, Item, OWNER, State, WORKERS, World, text};

impl World {
    pub(super) async fn enqueue(&mut self) -> Result<(), String> {
        // Sometimes an id that is known: it must be there once.
        let known: Vec<String> = self.items.keys().cloned().collect();
        let id = match self.random.pick(&known) {
            Some(id) if self.random.below(8) == 0 => id,
            // Or one that has ended and of which somebody may come for the copy.
            _ if !self.past.is_empty() && self.random.below(16) == 0 => {
                let ended: Vec<String> = self.past.keys().cloned().collect();
                self.random.pick(&ended).expect("there is one")
            }
            _ => {
                self.next_id += 1;
                format!("item-{}", self.next_id)
            }
        };
        let (priority, max_attempts) = (self.random.below(10) as u8, 1 + self.random.below(4) as u32);
        let delay_ms = if self.random.below(24) == 0 { HOUR_MS } else { 0 };
        let data = vec![priority; self.random.below(3000) as usize];
        let item =
            NewItem { id: id.clone(), owner: "n1".parse().expect("a node id"), priority, max_attempts, delay_ms, expires_in_ms: 0, data };
        let (_, answers) = self.queues[0].enqueue(0, &[item]).await.map_err(text)?;
        let expected = match self.items.get(&id).map(|item| &item.state) {
            None => Enqueued::Added,
            Some(State::Done(_)) => Enqueued::Completed,
            Some(_) => Enqueued::Present,
        };
        ensure!(answers == [expected], "enqueue {id}: {answers:?}, the model says {expected:?}");
        if expected == Enqueued::Added {
            let state = if delay_ms > 0 { State::Scheduled(false) } else { State::Ready };
            let was_left = self.past.remove(&id).is_some();
            self.items.insert(id.clone(), Item { state, priority, attempts: 0, max_attempts, was_left, enqueued_at: String::new() });
            self.ledger.insert(id, (priority, max_attempts));
            self.report.enqueued += 1;
        }
        Ok(())
    }

    pub(super) async fn settle(&mut self) -> Result<(), String> {
        let done = self.ids(|state| matches!(state, State::Done(_)));
        let ids: Vec<&str> = done.iter().map(String::as_str).take(128).collect();
        let forgotten = self.queues[0].settled(0, &ids).await.map_err(text)?;
        ensure!(forgotten == ids.len() as u64, "settled {forgotten} of {}", ids.len());
        for id in ids {
            self.items.remove(id);
            self.ledger.remove(id);
            self.report.settled += 1;
        }
        Ok(())
    }

    pub(super) async fn withdraw(&mut self) -> Result<(), String> {
        let ids: Vec<String> = self.items.keys().cloned().collect();
        let Some(id) = self.random.pick(&ids) else { return Ok(()) };
        let out = self.queues[0].withdraw(0, &[&id]).await.map_err(text)?;
        let is_leased = matches!(self.items[&id].state, State::Leased { .. });
        ensure!(out == [!is_leased], "withdraw {id} ({:?}): {out:?}", self.items[&id].state);
        if !is_leased && !matches!(self.items[&id].state, State::Done(_)) {
            let (_, known) = self.queues[0].known(0, &[&id]).await.map_err(text)?;
            let [Known::Unsigned(record)] = &known[..] else { return Err(format!("withdrawn {id}: {known:?}")) };
            // A worker that had it once is refused, whatever it held; only its owner's signature says that it is its owner's.
            let (_, late) = self.queues[1].complete(0, &[(&id, "0123456789abcdef:1", "n2 late")]).await.map_err(text)?;
            ensure!(late == [Completed::Unproven], "complete of withdrawn {id}: {late:?}");
            let mut by = String::new();
            if self.random.below(2) == 0 {
                let signed = self.queues[0].refuse(0, &[(id.clone(), record.clone())]).await.map_err(text)?;
                ensure!(signed == [true], "sign {id}: {signed:?}");
                let (_, late) = self.queues[1].complete(0, &[(&id, "0123456789abcdef:1", "n2 late")]).await.map_err(text)?;
                ensure!(late == [Completed::Stale], "complete of withdrawn {id}: {late:?}");
                by = format!("{OWNER}{}", self.items[&id].enqueued_at);
            }
            let forgotten = self.queues[0].settled(0, &[&id]).await.map_err(text)?;
            ensure!(forgotten == 1, "withdrawn {id} was forgotten {forgotten} times");
            self.ended(&id, &by);
            self.items.remove(&id);
            self.ledger.remove(&id);
        }
        Ok(())
    }

    pub(super) async fn requeue(&mut self) -> Result<(), String> {
        let dead = self.ids(|state| *state == State::Dead);
        let letters = self.queues[0].dead(0, 0, 128).await.map_err(text)?;
        ensure!(letters.len() == dead.len().min(128), "{} dead letters listed, the model has {}", letters.len(), dead.len());
        for letter in &letters {
            let attempts = self.items.get(&letter.id).map(|item| item.attempts);
            ensure!(attempts == Some(letter.attempts), "dead {}: {} attempts, the model says {attempts:?}", letter.id, letter.attempts);
        }
        let Some(id) = self.random.pick(&dead) else { return Ok(()) };
        if self.random.below(2) == 0 {
            let removed = self.queues[0].purge(0, &[&id]).await.map_err(text)?;
            ensure!(removed == Purged { letters: 1, unread: 0 }, "purge {id}: {removed:?}");
            self.ended(&id, "");
            self.items.remove(&id);
            self.ledger.remove(&id);
        } else {
            let moved = self.queues[0].requeue(0, &[&id]).await.map_err(text)?;
            ensure!(moved == 1, "requeue {id}: {moved}");
            let item = self.items.get_mut(&id).expect("chosen");
            (item.state, item.attempts) = (State::Ready, 0);
        }
        Ok(())
    }

    pub(super) async fn ask(&mut self) -> Result<(), String> {
        let mut ids: Vec<&str> = self.items.keys().map(String::as_str).take(100).collect();
        ids.push("never-heard-of");
        let (_, answers) = self.queues[0].known(0, &ids).await.map_err(text)?;
        for (id, answer) in ids.iter().zip(answers) {
            let expected = match self.items.get(*id).map(|item| &item.state) {
                None => Known::Unknown,
                Some(State::Ready | State::Scheduled(_)) => Known::Waiting,
                Some(State::Leased { .. }) => Known::Leased,
                Some(State::Dead) => Known::Dead,
                Some(State::Done(_)) => Known::Completed("n1:done".to_owned()),
            };
            ensure!(answer == expected, "known {id}: {answer:?}, the model says {expected:?}");
        }
        Ok(())
    }

    /// After a loss of data: the owner asks for all it has and offers again what is unknown.
    pub(super) async fn reconcile(&mut self) -> Result<(), String> {
        self.items.clear();
        self.past.clear();
        let ledger: Vec<(String, (u8, u32))> = self.ledger.iter().map(|(id, kept)| (id.clone(), *kept)).collect();
        for chunk in ledger.chunks(64) {
            let ids: Vec<&str> = chunk.iter().map(|(id, _)| id.as_str()).collect();
            let (_, known) = self.queues[0].known(0, &ids).await.map_err(text)?;
            ensure!(known.iter().all(|known| *known == Known::Unknown), "something survived the loss");
            let items: Vec<NewItem> = chunk
                .iter()
                .map(|(id, (priority, max_attempts))| NewItem {
                    id: id.clone(),
                    owner: "n1".parse().expect("a node id"),
                    priority: *priority,
                    max_attempts: *max_attempts,
                    delay_ms: 0,
                    expires_in_ms: 0,
                    data: vec![*priority; 10],
                })
                .collect();
            let (_, answers) = self.queues[0].enqueue(0, &items).await.map_err(text)?;
            ensure!(answers.iter().all(|answer| *answer == Enqueued::Added), "offered again: {answers:?}");
            for (id, (priority, max_attempts)) in chunk {
                let (priority, max_attempts) = (*priority, *max_attempts);
                let item = Item { state: State::Ready, priority, attempts: 0, max_attempts, was_left: false, enqueued_at: String::new() };
                self.items.insert(id.clone(), item);
                self.report.offered_again += 1;
            }
        }
        self.turns = 0;
        Ok(())
    }

    /// Everything the owner ever accepted and did not take back is completed and settled in the end: nothing is lost.
    pub(super) async fn drain(&mut self) -> Result<(), String> {
        for worker in 0..WORKERS {
            self.queues[worker].renew(0, 0).await.map_err(text)?;
        }
        self.recover_expecting(|_, state| matches!(state, State::Leased { timed: false, .. })).await?;
        for id in self.ids(|state| matches!(state, State::Leased { .. })) {
            let State::Leased { token, .. } = self.items[&id].state.clone() else { continue };
            self.queues[0].extend(&id, &token, 0).await.map_err(text)?;
        }
        self.recover_expecting(|_, _| true).await?;
        for _ in 0..100 {
            while self.queues[0].requeue(0, &[]).await.map_err(text)? > 0 {}
            for item in self.items.values_mut().filter(|item| item.state == State::Dead) {
                (item.state, item.attempts) = (State::Ready, 0);
            }
            let (_, leased) = self.queues[0].lease(0, 64, HOUR_MS, 0, 1 << 20).await.map_err(text)?;
            if leased.is_empty() {
                break;
            }
            for got in leased {
                let (_, answers) = self.queues[0].complete(0, &[(&got.id, &got.token, "n1:done")]).await.map_err(text)?;
                ensure!(answers == [Completed::Done], "complete {}: {answers:?}", got.id);
                ensure!(self.items.contains_key(&got.id), "{} is not in the model", got.id);
                self.ended(&got.id, &got.token);
                self.items.get_mut(&got.id).expect("as just checked").state = State::Done(got.token);
            }
        }
        while !self.ids(|state| matches!(state, State::Done(_))).is_empty() {
            self.settle().await?;
        }
        let late = self.ids(|state| *state == State::Scheduled(false)).len();
        ensure!(self.ledger.len() == late, "{} of the owner's items are lost", self.ledger.len() - late);
        Ok(())
    }
}
