//! The FUSE protocol: how the kernel asks, and how it is answered.
//!
//! [`wire`] is the messages, [`init`] what is agreed on, [`adapter`] decodes,
//! calls the union and replies; [`server`] moves messages from and to /dev/fuse, [`splice`]
//! those that are much of a file, [`passthrough`] has the kernel do without. Only the last
//! three do I/O.
//!
//! The kernel is the cache: every change goes through it and lowers do not
//! change, so names, attributes, missing names and directory contents are good
//! for ever, and data in its page cache stays.

mod adapter;
pub mod counters;
mod init;
mod passthrough;
pub mod server;
mod splice;
mod wire;

pub use adapter::Adapter;

/// The protocol spoken, for `--version`.
#[must_use]
pub fn version() -> String {
    format!("{}.{}", wire::MAJOR, wire::MINOR)
}
