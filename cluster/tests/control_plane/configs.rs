//! Versions of the pushed config: numbers, history, signatures.

use super::*;

#[test]
fn configs_have_versions_history_and_a_way_back() {
    on_server(async |server, control| {
        assert_eq!(control.read_config(None, "").await.unwrap(), Fetched::Nothing);
        assert_eq!(control.publish_config("a = 1\n", "ann", 0, 0, None).await.unwrap(), Published::Version(1));
        assert_eq!(control.publish_config("a = 1\n", "ann", 0, 0, None).await.unwrap(), Published::Same(1));
        assert_eq!(control.publish_config("a = 2\n", "bob", 0, 1, Some(1)).await.unwrap(), Published::Version(2));
        assert_eq!(control.publish_config("a = 3\n", "eve", 0, 1, Some(1)).await.unwrap(), Published::Overtaken(2));
        let (config, text) = control.read_config(None, "").await.unwrap().config().unwrap();
        assert_eq!((config.version, config.author.as_str(), text.as_str()), (2, "bob", "a = 2\n"));
        assert_eq!(control.read_config(None, &config.hash).await.unwrap(), Fetched::Unchanged(2));
        assert_eq!(control.read_config(Some(1), "").await.unwrap().config().unwrap().1, "a = 1\n");
        assert_eq!(control.publish_config("a = 1\n", "bob", 1, 2, Some(2)).await.unwrap(), Published::Version(3));
        let (current, history) = control.config_history().await.unwrap();
        assert_eq!(
            (current, history.iter().map(|config| (config.version, config.of)).collect::<Vec<_>>()),
            (3, vec![(3, 1), (2, 0), (1, 0)])
        );
        for n in 0..40 {
            control.publish_config(&format!("n = {n}\n"), "loop", 0, 0, None).await.unwrap();
        }
        assert_eq!(control.config_history().await.unwrap().1.len(), ringpost_cluster::control_plane::CONFIG_HISTORY);
        // After a loss versions go on above what a node runs, and one can give the lost version back.
        server.command("FLUSHALL");
        assert_eq!(control.restore_config(43, "n = 39\n").await.unwrap(), Published::Version(43));
        assert_eq!(control.restore_config(42, "n = 38\n").await.unwrap(), Published::Overtaken(43));
        assert_eq!(control.publish_config("b = 1\n", "ann", 0, 50, None).await.unwrap(), Published::Version(51));
        control.set_config_poll(Duration::from_secs(9)).await.unwrap();
        let seen = pulse(&control, 1, 0, true).await;
        assert_eq!((seen.config_version, seen.poll), (51, Some(Duration::from_secs(9))));
    });
}

/// Whoever could write to Valkey ran any settings on all nodes, whatever key they shared.
#[test]
fn a_config_that_was_not_pushed_with_the_clusters_key_is_not_run() {
    on_server(async |_, stranger| {
        let keyed = |key: &[u8]| stranger.clone().with_key(ItemKey::new(key));
        let (ours, others) = (keyed(b"one of sixteen octets"), keyed(b"another of sixteen octets"));
        let open = "[relay]\nnetworks = [\"0.0.0.0/0\"]\n";
        assert_eq!(stranger.publish_config(open, "eve", 0, 0, None).await.unwrap(), Published::Version(1));
        for node in [&ours, &others] {
            assert!(matches!(node.read_config(None, "").await, Err(ValkeyError::Malformed(_))));
        }
        assert_eq!(ours.publish_config("a = 1\n", "ann", 0, 0, None).await.unwrap(), Published::Version(2));
        assert_eq!(ours.read_config(None, "").await.unwrap().config().unwrap().1, "a = 1\n");
        assert!(matches!(others.read_config(None, "").await, Err(ValkeyError::Malformed(_))));
    });
}

/// A config that a program of before had pushed has no seal. Each error said to push it again, which came to "unchanged" for the same text, so
/// that no node of this version ever took it.
#[test]
fn a_config_without_a_seal_is_mended_by_pushing_it_again_or_by_a_node_that_runs_it() {
    on_server(async |server, control| {
        let (key, control) = ("{ringpost:test:c}:configs", control.with_key(ItemKey::new(b"one of sixteen octets")));
        assert_eq!(control.publish_config("a = 1\n", "ann", 0, 0, None).await.unwrap(), Published::Version(1));
        server.command(&format!("HDEL {key} s1"));
        assert!(control.read_config(None, "").await.is_err());
        assert_eq!(control.publish_config("a = 1\n", "ann", 0, 0, None).await.unwrap(), Published::Version(2));
        assert_eq!(control.read_config(None, "").await.unwrap().config().unwrap().0.version, 2);
        assert_eq!(control.publish_config("a = 1\n", "ann", 0, 0, None).await.unwrap(), Published::Same(2));
        server.command(&format!("HDEL {key} s2"));
        for (version, text) in [(1, "a = 1\n"), (2, "a = 2\n")] {
            assert_eq!(control.restore_config(version, text).await.unwrap(), Published::Overtaken(2), "{version} {text}");
            assert!(control.read_config(None, "").await.is_err(), "that is not what is current");
        }
        assert_eq!(control.restore_config(2, "a = 1\n").await.unwrap(), Published::Version(2));
        assert_eq!(control.read_config(None, "").await.unwrap().config().unwrap().0.version, 2);
        assert_eq!(control.restore_config(2, "a = 1\n").await.unwrap(), Published::Overtaken(2), "once is enough");
    });
}

/// What had been pushed once was signed for ever: whoever could write to Valkey made it current again, under any number.
#[test]
fn a_config_is_current_under_the_number_that_it_was_pushed_with_and_no_other() {
    on_server(async |server, control| {
        let control = control.with_key(ItemKey::new(b"one of sixteen octets"));
        for (version, text) in [(1, "a = 1\n"), (2, "a = 2\n"), (3, "a = 1\n")] {
            assert_eq!(control.publish_config(text, "ann", 0, 0, None).await.unwrap(), Published::Version(version));
        }
        let current = control.read_config(None, "").await.unwrap().config().unwrap().0;
        assert_eq!(control.read_config(None, &current.hash).await.unwrap(), Fetched::Unchanged(3));
        let key = "{ringpost:test:c}:configs";
        server.command(&format!("COPY {key} kept"));
        // Under another number, with its text or without, with another's signature or none.
        for forged in [
            "eval \"return redis.call('HSET',KEYS[1],'current','9','v9',redis.call('HGET',KEYS[1],'v3'),'s9',redis.call('HGET',KEYS[1],'s3'))\" 1",
            "eval \"return redis.call('HSET',KEYS[1],'current','9','v9',redis.call('HGET',KEYS[1],'v2'))\" 1",
            "eval \"return redis.call('HDEL',KEYS[1],'s3')\" 1",
        ] {
            server.command(&format!("{forged} {key}"));
            for known in ["", current.hash.as_str()] {
                let read = control.read_config(None, known).await;
                assert!(matches!(read, Err(ValkeyError::Malformed(_))), "{forged}: {read:?}");
            }
            server.command(&format!("COPY kept {key} REPLACE"));
        }
        // An operator may ask for each that is kept.
        assert_eq!(control.read_config(Some(2), "").await.unwrap().config().unwrap().1, "a = 2\n");
        // What is no number is as good as lost.
        for damage in ["x", "-1", "1e300", "nan"] {
            server.command(&format!("HSET {key} current {damage} poll_ms {damage}"));
            let seen = pulse(&control, 1, 0, true).await;
            assert_eq!((seen.config_version, seen.poll), (0, None), "{damage}");
            assert_eq!(control.restore_config(3, "a = 1\n").await.unwrap(), Published::Version(3), "{damage}");
            assert_eq!(control.read_config(None, "").await.unwrap().config().unwrap().0.version, 3);
        }
    });
}
