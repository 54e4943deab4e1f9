//! SMTP as pure rules: bytes in, actions out.
//!
//! Nothing here has a socket, a clock or a task. The server side starts at [`server::Session`], the client side at
//! [`client`]. Both are driven: give them the bytes that arrived, do what the returned action says, tell them the result.
//!
//! The path of a received message: [`mod@line`] finds the command line, [`command`] takes it apart, [`address`] and
//! [`extension`] read its arguments straight into the [`envelope`] (which is its own persisted form), [`content`] scans
//! what follows `DATA` or `BDAT`, and [`header`] writes the `Received` field in front of it.
#![forbid(unsafe_code)]

pub mod address;
pub mod client;
pub mod command;
pub mod content;
pub mod decimal;
pub mod envelope;
pub mod extension;
pub mod header;
pub mod line;
pub mod part_headers;
mod plain;
pub mod reply;
pub mod report;
pub mod server;
pub mod shown;
pub mod stuffing;
