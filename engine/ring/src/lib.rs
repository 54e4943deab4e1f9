//! A shard's own io_uring beside its glommio executor.
