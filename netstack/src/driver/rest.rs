//! Listeners that nothing can be accepted from for now.
//!
//! # Theory of operation
//!
//! A listener says that somebody waits until he is taken. Where that cannot be done, for
//! want of descriptors or memory, it would wake the loop again and again: so it is not
//! listened to for [`REST`].

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::{API, Driver, METRICS};
use crate::forward::{Listener, PUBLISH_TOKEN};

/// How long a listener rests.
const REST: Duration = Duration::from_millis(200);

/// Those that rest, by their tokens, and until when.
#[derive(Debug, Default)]
pub(super) struct Rest {
    tokens: Vec<u64>,
    until: Option<Duration>,
}

impl Rest {
    /// When [`Driver::rested`] has something to do.
    pub(super) fn over(&self) -> Option<Duration> {
        self.until
    }
}

/// Whether an error says that there is no descriptor left.
pub(super) fn is_exhausted(error: &std::io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE))
}

impl Driver {
    /// The listener with this token rests.
    pub(super) fn let_rest(&mut self, now: Duration, token: u64) {
        self.listen(token, EpollFlags::empty());
        self.rest.tokens.push(token);
        self.rest.until.get_or_insert(now + REST);
    }

    /// Listens again to those that have rested.
    pub(super) fn rested(&mut self, now: Duration) {
        if self.rest.until.is_some_and(|until| until <= now) {
            self.rest.until = None;
            for token in std::mem::take(&mut self.rest.tokens) {
                self.listen(token, EpollFlags::EPOLLIN);
            }
        }
    }

    fn listen(&self, token: u64, flags: EpollFlags) {
        if let Some(listener) = self.listener(token) {
            // It was added, and is in there as long as it is open.
            self.epoll.modify(listener, &mut EpollEvent::new(flags, token)).ok();
        }
    }

    fn listener(&self, token: u64) -> Option<BorrowedFd<'_>> {
        match token {
            API => self.api.as_ref().map(AsFd::as_fd),
            METRICS => self.metrics.as_ref().map(AsFd::as_fd),
            _ => self.ports.find(token & !PUBLISH_TOKEN).map(|(_, listener)| match listener {
                Listener::Tcp(tcp) => tcp.as_fd(),
                Listener::Udp(udp) => udp.as_fd(),
            }),
        }
    }
}
