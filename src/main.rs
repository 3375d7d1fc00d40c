//! The command line: parse, run.

use std::process::ExitCode;

use causeway::cli::Arguments;
use clap::Parser;

/// A step of a small model makes thousands of small tensors, on several threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match Arguments::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("causeway: {error:#}");
            ExitCode::FAILURE
        }
    }
}
