//! The command line: parse, load settings, run.

fn main() {}
