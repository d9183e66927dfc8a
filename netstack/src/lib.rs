//! User-mode networking for a network namespace: a TAP device inside, ordinary
//! sockets outside.
//!
//! [`stack`] decides (pure: no file descriptor, no clock, no log), [`driver`],
//! [`host`] and [`forward`] act, [`tap`] makes the device. See ARCHITECTURE.md.
pub mod cli;
pub mod clients;
pub mod config;
pub mod confine;
pub mod control;
pub mod driver;
pub mod egress;
pub mod forward;
pub mod host;
mod inbox;
pub mod metrics;
pub mod outbound;
pub mod pcap;
pub mod reader;
pub mod report;
pub mod resolv;
pub mod sandbox;
mod spin;
pub mod stack;
pub use sys::fd;
mod sys;
pub mod tap;
