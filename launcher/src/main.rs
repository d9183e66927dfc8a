//! Entry point: parse, wire, exit.

use std::process::ExitCode;

fn main() -> ExitCode {
    launcher::cli::main()
}
