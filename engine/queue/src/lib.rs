//! The life of a queued message as pure rules.
