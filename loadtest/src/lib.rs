//! `ringpost-load`: mail as load, a next hop that keeps accounts, and results that can be trusted and compared.
//!
//! A run is measured by one [`measurement::Recorder`] per thread; a [`measurement::Measurement`] gathers their parts once a
//! second and ends as a [`run_result::RunResult`], the JSON that everything behind it reads.

pub mod cli;
pub mod encoded_histogram;
pub mod error_kind;
pub mod machine;
pub mod measurement;
pub mod phase;
pub mod process;
pub mod run_result;
