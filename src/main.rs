//! The command line: parse, run.

use std::process::ExitCode;

use causeway::cli::Arguments;
use clap::Parser;

fn main() -> ExitCode {
    match Arguments::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("causeway: {error:#}");
            ExitCode::FAILURE
        }
    }
}
