//! The server side, driven from outside: dialogues, models, and input that means harm.

mod bare_newlines;
mod chunking;
mod content_model;
mod dialogues;
mod driver;
mod envelopes;
mod parameters;
mod sessions;
mod trace_field;
