//! Published ports and the listeners behind them.

use std::net::SocketAddr;

use crate::config::{Proto, Publish};

/// Why a port could not be published or withdrawn.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The listener could not be made.
    #[error("cannot publish {addr}/{proto}: {source}")]
    Bind {
        /// The host's address and port.
        addr: SocketAddr,
        /// Its transport.
        proto: Proto,
        /// Why it failed.
        source: std::io::Error,
    },
    /// No published port has this id.
    #[error("no published port has id {0}")]
    NoSuchId(u64),
}

/// The published ports, as the control socket sees them. Implemented by the
/// driver.
pub trait Forwards {
    /// Binds and listens; gives the id, counted from 1.
    ///
    /// # Errors
    /// The address is in use, or may not be bound.
    fn add(&mut self, publish: Publish) -> Result<u64, Error>;
    /// Stops listening. Connections that were accepted stay.
    ///
    /// # Errors
    /// Unknown id.
    fn remove(&mut self, id: u64) -> Result<(), Error>;
    /// All of them, in the order of their ids.
    fn list(&self) -> Vec<(u64, Publish)>;
}
