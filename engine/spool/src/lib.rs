//! The durable log as pure rules.
