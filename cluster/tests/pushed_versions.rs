//! Versions of the pushed config, as they are read by number, with the cluster's key and without.

use std::time::Duration;

use ringpost_cluster::{
    control_plane::{CONFIG_POLL_MAX, CONFIG_POLL_MIN, ControlPlane, Fetched, Heartbeat, Published},
    identity::{Epoch, Incarnation, Role},
    keyspace::Keyspace,
    membership::NodeRecord,
    script::Scripts,
    target::Target,
    valkey::Valkey,
    valkey_error::ValkeyError,
    work_item::ItemKey,
};
use ringpost_valkey_server::{Durability, Server};

fn control(server: &Server) -> ControlPlane {
    ControlPlane::new(
        Valkey::with_scripts(Target::parse(&server.url(), None, None).unwrap(), Scripts::shipped(), Duration::from_secs(2)),
        Keyspace::new("ringpost:test").unwrap(),
    )
}

/// `config show N` and `config rollback N` took whatever lay under that number: an old text in the place of another, published again by the
/// operator's own hand.
#[test]
fn a_version_that_lies_under_anothers_number_is_not_read() {
    let server = Server::start(Durability::None);
    let configs = Keyspace::new("ringpost:test").unwrap().configs();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let control = control(&server).with_key(ItemKey::new(b"the cluster's key"));
        for (version, text) in [(1, "a = 1\n"), (2, "a = 2\n"), (3, "a = 3\n")] {
            assert_eq!(control.publish_config(text, "ann", 0, 0, None).await.unwrap(), Published::Version(version));
        }
        let text = async |version| match control.read_config(Some(version), "").await {
            Ok(Fetched::Config(_, text)) => Ok(text),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error),
        };
        assert_eq!(text(2).await.unwrap(), "a = 2\n");
        let run = |script: &str| {
            let answer = server.command(&format!("EVAL \"{script}\" 1 {configs}"));
            assert!(answer.starts_with(':'), "{answer}");
        };
        run("return redis.call('HSET', KEYS[1], 'v2', redis.call('HGET', KEYS[1], 'v1'))");
        assert!(matches!(text(2).await, Err(ValkeyError::Malformed(_))), "version 1 as version 2");
        assert_eq!(text(1).await.unwrap(), "a = 1\n");
        run("return redis.call('HDEL', KEYS[1], 's1')");
        assert!(matches!(text(1).await, Err(ValkeyError::Malformed(_))), "unsigned");
        assert_eq!(text(3).await.unwrap(), "a = 3\n");
    });
}

#[test]
fn without_a_key_every_version_is_read() {
    let server = Server::start(Durability::None);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let control = control(&server);
        control.publish_config("a = 1\n", "ann", 0, 0, None).await.unwrap();
        control.publish_config("a = 2\n", "ann", 0, 0, None).await.unwrap();
        assert!(matches!(control.read_config(Some(1), "").await.unwrap(), Fetched::Config(_, text) if text == "a = 1\n"));
    });
}

/// The message comes last, and Valkey refused it: a push that every node ran was told as failed.
#[test]
fn a_push_that_no_message_may_tell_of_is_no_failure() {
    let server = Server::start(Durability::None);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let control = control(&server).with_key(ItemKey::new(b"the cluster's key"));
        assert_eq!(control.publish_config("a = 1\n", "ann", 0, 0, None).await.unwrap(), Published::Version(1));
        server.command("ACL SETUSER default resetchannels");
        assert_eq!(control.publish_config("a = 2\n", "ann", 0, 1, None).await.unwrap(), Published::Untold(2));
        assert!(matches!(control.read_config(None, "").await.unwrap(), Fetched::Config(_, text) if text == "a = 2\n"));
        assert_eq!(control.restore_config(3, "a = 3\n").await.unwrap(), Published::Untold(3));
    });
}

/// What somebody wrote into Valkey was taken as it was: nodes asked each millisecond, or in an age.
#[test]
fn how_often_nodes_ask_is_within_its_limits_whatever_valkey_says() {
    let server = Server::start(Durability::None);
    let configs = Keyspace::new("ringpost:test").unwrap().configs();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let control = control(&server);
        let me = Incarnation::new("n1".parse().unwrap(), 7);
        let poll = async || {
            let record = NodeRecord::new(&me, Role::Master);
            match control.heartbeat(&me, Epoch(0), &record, Duration::ZERO).await.unwrap() {
                Heartbeat::Taken(pulse) => pulse.poll,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(poll().await, None);
        for (said, taken) in [("1", CONFIG_POLL_MIN), ("2000", Duration::from_secs(2)), ("9007199254740991", CONFIG_POLL_MAX)] {
            server.command(&format!("HSET {configs} poll_ms {said}"));
            assert_eq!(poll().await, Some(taken), "{said}");
        }
        // Given back, it takes nobody's place.
        control.restore_config_poll(Duration::from_secs(5)).await.unwrap();
        assert_eq!(poll().await, Some(CONFIG_POLL_MAX));
        server.command(&format!("HDEL {configs} poll_ms"));
        control.restore_config_poll(Duration::from_secs(5)).await.unwrap();
        assert_eq!(poll().await, Some(Duration::from_secs(5)));
    });
}
