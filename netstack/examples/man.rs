//! Writes the manual pages into the directory given (`cargo xtask man`).

use std::ffi::OsString;

fn main() -> std::io::Result<()> {
    let dir = std::env::args_os().nth(1).unwrap_or_else(|| OsString::from("."));
    clap_mangen::generate_to(netstack::cli::command(), dir)
}
