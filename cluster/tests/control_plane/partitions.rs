//! The number of the work queue's partitions, as heartbeats carry it.

use ringpost_cluster::partition_count::PartitionCount;

use super::*;

fn key() -> String {
    keyspace().partitions()
}

#[test]
fn the_first_nodes_number_is_kept_and_the_next_one_hears_it() {
    on_server(async |_, control| {
        let count = |own| Arc::new(PartitionCount::new(own, TTL));
        let (first, second) = (count(4), count(8));
        // One that says none, as of an earlier version, changes nothing.
        pulse(&control, 3, 0, true).await;
        let control_of = |count: &Arc<PartitionCount>| control.clone().with_partitions(count.clone());
        pulse(&control_of(&first), 1, 0, true).await;
        pulse(&control_of(&second), 2, 0, true).await;
        assert_eq!(first.difference(), None);
        assert!(second.difference().is_some_and(|text| text.contains("is 8") && text.contains("has 4")));
        pulse(&control_of(&first), 1, 0, false).await;
        assert_eq!(first.difference(), None);

        // All is lost: who was wrong says nothing before the others had the time to.
        let mut valkey = redis::cmd("DEL");
        control.valkey().command(valkey.arg(key())).await.unwrap();
        pulse(&control_of(&second), 2, 0, false).await;
        pulse(&control_of(&first), 1, 0, false).await;
        assert_eq!(first.difference(), None);
        assert!(second.difference().is_some());
    });
}

#[test]
fn what_is_no_number_of_partitions_is_as_good_as_lost() {
    on_server(async |_, control| {
        let count = Arc::new(PartitionCount::new(4, TTL));
        let control = control.with_partitions(count.clone());
        pulse(&control, 1, 0, true).await;
        let kept = async || control.valkey().command(redis::cmd("GET").arg(key())).await.unwrap();
        for damage in ["", "x", "0", "-1", "1.5", "70000", "1e400", "nan", "0x", "8.0", "+8", " 8", "8 ", "0x8", "8e0"] {
            control.valkey().command(redis::cmd("SET").arg(key()).arg(damage)).await.unwrap();
            assert_eq!(control.read_partitions().await, Ok(None), "{damage:?}");
            pulse(&control, 1, 0, false).await;
            assert_eq!(kept().await, redis::Value::BulkString(b"4".to_vec()), "{damage:?}");
        }
        control.valkey().command(redis::cmd("DEL").arg(key())).await.unwrap();
        control.valkey().command(redis::cmd("RPUSH").arg(key()).arg("4")).await.unwrap();
        pulse(&control, 1, 0, false).await;
        assert_eq!(kept().await, redis::Value::BulkString(b"4".to_vec()));
        assert_eq!(count.difference(), None);
    });
}

/// Scripts took "8.0" for eight and the command that replaces it for nothing: it said that another number had come into force meanwhile, each time.
#[test]
fn what_is_no_number_of_partitions_is_replaced_by_an_operators() {
    on_server(async |_, control| {
        let kept = async || control.valkey().command(redis::cmd("GET").arg(key())).await.unwrap();
        for damage in ["8.0", "+8", "8e0", "x"] {
            control.valkey().command(redis::cmd("SET").arg(key()).arg(damage)).await.unwrap();
            let before = control.read_partitions().await.unwrap();
            assert_eq!((before, control.set_partitions(before, 4).await), (None, Ok(true)), "{damage:?}");
            assert_eq!(kept().await, redis::Value::BulkString(b"4".to_vec()), "{damage:?}");
        }
        assert_eq!(control.read_partitions().await, Ok(Some(4)));
        assert_eq!(control.set_partitions(Some(3), 8).await, Ok(false), "another is in force");
    });
}
