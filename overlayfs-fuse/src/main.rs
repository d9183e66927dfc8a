//! Entry point: parse, wire, exit.

use std::io::{self, Write};
use std::process::ExitCode;

use overlayfs_fuse::cli::{self, Command};
use overlayfs_fuse::{fuse, session};

fn main() -> ExitCode {
    let outcome = match cli::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => return say(cli::USAGE),
        Ok(Command::Version) => {
            return say(&format!(
                "overlayfs-fuse: version {}\nusing FUSE kernel interface version {}\n",
                env!("CARGO_PKG_VERSION"),
                fuse::version()
            ));
        }
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

/// Prints.
fn say(text: &str) -> ExitCode {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever was reading has seen enough: as if by SIGPIPE.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 141.into(),
        Err(error) => {
            session::say(&format!("cannot write to standard output: {error}"));
            ExitCode::FAILURE
        }
    }
}
