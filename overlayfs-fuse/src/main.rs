//! Entry point: parse, wire, exit.

use std::io::{self, Write};
use std::process::ExitCode;

use overlayfs_fuse::cli::{self, Command};
use overlayfs_fuse::{fuse, session};

fn main() -> ExitCode {
    let outcome = match cli::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => say(cli::USAGE),
        Ok(Command::Version) => say(&format!(
            "overlayfs-fuse: version {}\nusing FUSE kernel interface version {}\n",
            env!("CARGO_PKG_VERSION"),
            fuse::version()
        )),
        Ok(Command::Mount(mount)) => session::run(*mount),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            session::say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Prints; that nobody reads on is no error (`--version | head -1`).
fn say(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
