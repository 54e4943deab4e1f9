//! The small sender, sink and fault rigs behind ./dev.
