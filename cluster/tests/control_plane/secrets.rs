//! Passwords that are changed while the node runs.

use std::sync::Mutex;

use super::*;

/// A password was read at the start alone: once Valkey wanted another no connection was made any more, until each node was started anew.
#[test]
fn a_password_that_was_changed_is_shown_with_the_next_connection() {
    let server = Server::start(Durability::None);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let password: Arc<Mutex<Result<String, String>>> = Arc::new(Mutex::new(Ok("first".to_owned())));
        assert!(server.command("CONFIG SET requirepass first").starts_with("+OK"));
        let (url, known) = (server.url(), password.clone());
        let read = move || Target::parse(&url, Some(&known.lock().unwrap().clone()?), None);
        let valkey = Valkey::with_source(read().unwrap(), Arc::new(read));
        let control = ControlPlane::new(valkey.clone(), keyspace());
        let mut messages = valkey.subscribe(vec![control.events_channel()]);
        assert_eq!(messages.recv().await.unwrap().channel, "", "connected");
        let answers = async |what: &str| {
            let began = Instant::now();
            while let Err(error) = control.members().await {
                assert!(began.elapsed() < Duration::from_secs(20), "{what}: {error}");
                tokio::task::yield_now().await;
            }
        };
        let ask = |password: &str, command: &str| server.command(&format!("AUTH {password}\r\n{command}"));
        answers("at first").await;
        for (before, after) in [("first", "second"), ("second", "third")] {
            ask(before, &format!("CONFIG SET requirepass {after}"));
            // While it is being written nobody can read it.
            *password.lock().unwrap() = Err("its first line is empty".to_owned());
            ask(after, "CLIENT KILL TYPE normal");
            ask(after, "CLIENT KILL TYPE pubsub");
            assert!(control.members().await.is_err(), "with what was read before");
            *password.lock().unwrap() = Ok(after.to_owned());
            answers(after).await;
            let next = tokio::time::timeout(Duration::from_secs(20), messages.recv()).await.expect("it listens again");
            assert_eq!(next.unwrap().channel, "", "connected anew");
        }
    });
}
