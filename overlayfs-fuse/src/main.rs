//! Entry point: parse, wire, exit.

use std::process::ExitCode;

use overlayfs_fuse::cli::{self, Command};
use overlayfs_fuse::{fuse, session};

fn main() -> ExitCode {
    let outcome = match cli::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => {
            print!("{}", cli::USAGE);
            Ok(())
        }
        Ok(Command::Version) => {
            println!("overlayfs-fuse: version {}", env!("CARGO_PKG_VERSION"));
            println!("using FUSE kernel interface version {}", fuse::version());
            Ok(())
        }
        Ok(Command::Mount(mount)) => session::run(*mount),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("overlayfs-fuse: {error:#}");
            ExitCode::FAILURE
        }
    }
}
