//! System calls that have no safe wrapper: the only `unsafe` of this crate.

pub mod fd;
pub mod landlock;
pub mod mount;
pub mod net;
pub mod notify;
pub mod pages;
pub mod process;
pub mod tty;
pub mod userns;
pub mod xattr;

use std::io;

/// The result of a raw system call: -1 becomes the error that errno names.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
