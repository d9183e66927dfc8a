//! The only place with `unsafe`: system calls that neither the standard library
//! nor `nix` offers, as safe functions.
#![allow(unsafe_code, reason = "system calls without a safe wrapper elsewhere")]

pub mod fd;
pub(crate) mod ifreq;
pub(crate) mod landlock;
pub(crate) mod mmsg;
pub(crate) mod netlink;
pub(crate) mod ns;
pub(crate) mod process;
pub(crate) mod random;
pub(crate) mod tun;
