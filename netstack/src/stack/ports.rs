//! Which of several stacks has which UDP port of the guest.
//!
//! # Theory of operation
//!
//! All datagrams of a port of the guest leave from one host socket, whatever queue of
//! the device they come through. So the port is one stack's: that of the first to see
//! it, until its flow ends. A port that clients reach from outside is the main one's
//! from then on, because that has their addresses.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The owners of all ports in use, by their index.
#[derive(Debug, Default)]
pub struct Ports(Mutex<HashMap<SocketAddr, usize>>);

impl Ports {
    fn owners(&self) -> MutexGuard<'_, HashMap<SocketAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose `port` is, if anybody's.
    pub(super) fn owner(&self, port: SocketAddr) -> Option<usize> {
        self.owners().get(&port).copied()
    }

    /// Whose `port` is. It becomes `stack`'s if it was nobody's.
    pub(super) fn claim(&self, port: SocketAddr, stack: usize) -> usize {
        *self.owners().entry(port).or_insert(stack)
    }

    /// Makes `port` that of `stack`, whose ever it was.
    pub(super) fn take(&self, port: SocketAddr, stack: usize) {
        self.owners().insert(port, stack);
    }

    /// The flow of `stack` has ended.
    pub(super) fn release(&self, port: SocketAddr, stack: usize) {
        let mut owners = self.owners();
        if owners.get(&port) == Some(&stack) {
            owners.remove(&port);
        }
    }
}
