//! One core's engine: sessions, committer, queue, delivery.
