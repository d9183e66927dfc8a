//! The network stack: frames of the guest on one side, commands to and events
//! from host sockets on the other. Pure: no file descriptor, no clock, no log.
//!
//! # Theory of operation
//!
//! Bytes in, bytes out. A turn of the driver is:
//!
//! 1. [`Netstack::handle_frame`] for every frame read from the TAP,
//! 2. [`Netstack::poll_host`] until None, executing each command; its results
//!    come back as [`Netstack::handle_host`],
//! 3. [`Netstack::poll_frame`] until None, writing each frame to the TAP,
//! 4. [`Netstack::poll_timeout`] says how long to sleep at most; when it has
//!    passed, [`Netstack::handle_timeout`].
//!
//! Time is a [`Duration`] since a moment of the driver's choice; it never goes
//! backwards.
pub mod frame;

use std::time::Duration;

use crate::config::Config;
use crate::tap::Offloads;

/// The whole stack of one guest.
#[derive(Debug)]
pub struct Netstack {
    config: Config,
    offloads: Offloads,
}

impl Netstack {
    /// A stack without flows. `seed` must be unpredictable to the guest's peers:
    /// initial sequence numbers and ports are derived from it.
    pub fn new(config: Config, offloads: Offloads, seed: u64) -> Netstack {
        let _ = seed;
        Netstack { config, offloads }
    }

    /// Takes one frame from the guest: virtio-net header (when `Offloads::vnet`)
    /// and Ethernet frame. Bad frames are counted and dropped.
    pub fn handle_frame(&mut self, now: Duration, frame: &[u8]) {
        let _ = (now, frame, &self.config, self.offloads);
    }
}
