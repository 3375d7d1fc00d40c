//! The command line: parse, run.

use std::io::Write;
use std::process::ExitCode;

use causeway::cli::{Arguments, exit_code};
use clap::Parser;

fn main() -> ExitCode {
    match Arguments::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where there is no room for it either, the code still says what it was.
            let _ = writeln!(std::io::stderr(), "causeway: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}
