//! Writes the completions of bash, zsh and fish into the directory given (`cargo xtask
//! dist`).

use std::ffi::OsString;

use clap_complete::{Shell, generate_to};

fn main() -> std::io::Result<()> {
    let dir = std::env::args_os().nth(1).unwrap_or_else(|| OsString::from("."));
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut netstack::cli::command(), "netstack", &dir)?;
    }
    Ok(())
}
