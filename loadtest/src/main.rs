//! The `ringpost-load` command. What each call does is in the library module it names.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use ringpost_loadtest::{
    cli::{Cli, Failure},
    leash, signals,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    leash::kill_on_panic();
    let outlives = signals::outlive_file_size_limit().map_err(|error| Failure::io("signals", error));
    match outlives.and_then(|()| Cli::read().run()) {
        Ok(code) => code,
        Err(failure) => {
            failure.say();
            failure.exit_code()
        }
    }
}
