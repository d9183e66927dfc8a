//! Writes the completions of bash, zsh and fish into the directory given (`cargo xtask
//! dist`).

use std::ffi::OsString;

use clap_complete::{Generator, Shell};

fn main() -> std::io::Result<()> {
    let dir = std::env::args_os().nth(1).unwrap_or_else(|| OsString::from("."));
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let file = std::path::Path::new(&dir).join(shell.file_name("coracle"));
        std::fs::write(file, launcher::cli::completion::script(shell))?;
    }
    Ok(())
}
