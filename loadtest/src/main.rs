//! The `ringpost-load` command. What each call does is in the library module it names.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use ringpost_loadtest::{cli::Cli, leash};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    leash::kill_on_panic();
    match Cli::read().run() {
        Ok(code) => code,
        Err(failure) => {
            failure.say();
            failure.exit_code()
        }
    }
}
