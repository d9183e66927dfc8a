//! What all connections together may hold.
//!
//! # Theory of operation
//!
//! A window that was told cannot be taken back, so it counts as used from then on:
//! what exceeds [`FLOOR`], which every connection has. A connection starts with
//! [`FIRST`] while the sum stays below half of `budget`, else with [`FLOOR`], and gets
//! twice as much whenever its host has taken a window's worth, up to `largest` and
//! while the sum stays below `budget`. So thousands of idle connections leave room for
//! those that move something. For the other way the pool
//! is asked what is held in fact: above `budget` a connection may hold no more than
//! one chunk. So [`super::super::FLOWS_MAX`] connections hold at most twice
//! `budget` and 32 KiB each.
//!
//! The budget also keeps the device's queue from overflowing: a frame that finds it
//! full is lost. Without segmentation offload every 1,448 bytes of window may be a
//! packet in it.

use super::endpoint::Endpoint;
use crate::stack::buffer::{CHUNK, Pool};
use crate::tap::Offloads;

/// Window of a new connection, in bytes.
const FIRST: u32 = 64 << 10;
/// The same when memory is short.
const FLOOR: u32 = CHUNK as u32;

/// Chunks in use and windows promised.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) pool: Pool,
    /// Beyond what every connection has.
    promised: usize,
    budget: usize,
    largest: u32,
}

impl Memory {
    pub(crate) fn new(offloads: Offloads) -> Memory {
        let (budget, largest) =
            if offloads.tso4 { (64 << 20, 1 << 20) } else { (1 << 20, 256 << 10) };
        Memory { pool: Pool::default(), promised: 0, budget, largest }
    }

    /// Leaves `count - 1` others as much.
    pub(crate) fn share(&mut self, count: usize) {
        self.budget /= count;
    }

    /// A window for a new connection.
    pub(crate) fn window(&mut self) -> u32 {
        let more = (FIRST - FLOOR) as usize;
        if self.promised + more > self.budget / 2 {
            return FLOOR;
        }
        self.promised += more;
        FIRST
    }

    /// Opens the window of a connection that makes use of it.
    pub(crate) fn widen(&mut self, endpoint: &mut Endpoint) {
        let (window, in_use) = endpoint.window();
        if in_use && window < self.largest && self.promised + window as usize <= self.budget {
            self.promised += window as usize;
            endpoint.widen(window);
        }
    }

    /// How much of `room` may be filled for the guest.
    pub(crate) fn room(&self, endpoint: &Endpoint) -> usize {
        let room = endpoint.room();
        if self.pool.lent() < self.budget {
            room
        } else if endpoint.has_bytes() {
            0
        } else {
            room.min(CHUNK)
        }
    }

    /// The connection is over.
    pub(crate) fn give_back(&mut self, mut endpoint: Box<Endpoint>) {
        endpoint.release(&mut self.pool);
        self.promised -= (endpoint.window().0 - FLOOR) as usize;
    }

    /// Whether nothing is in use.
    #[cfg(test)]
    pub(crate) fn is_unused(&self) -> bool {
        self.promised == 0 && self.pool.lent() == 0
    }
}
