//! What one worker has for another.
//!
//! # Theory of operation
//!
//! A queue behind a lock, and a counter (eventfd(2)) that wakes its owner. Used for
//! what is rare: frames that reached the wrong worker, and news of the host. Frames
//! beyond [`FRAMES_MAX`], or [`BYTES_MAX`] of them together, are dropped, as by a full
//! device queue, and counted.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::driver::Error;
use crate::metrics::Traffic;
use crate::stack::report::Report;

/// Frames that wait at most.
const FRAMES_MAX: usize = 1024;
/// Their bytes at most: a guest chooses where it sends its longest.
const BYTES_MAX: usize = 4 << 20;

/// One message.
#[derive(Debug)]
pub(crate) enum Message {
    /// A frame of the guest that came to another worker.
    Frame(Vec<u8>),
    /// The host's name servers or search list have changed.
    NameServers(crate::resolv::Hosts),
    /// What a worker has is wanted, with its flows one by one or not.
    Report {
        /// Of which collection.
        number: u64,
        /// Whether flows are listed.
        list: bool,
    },
    /// What a worker has.
    Reported {
        /// For which collection.
        number: u64,
        /// It.
        answer: Box<(Report, Traffic)>,
    },
    /// A worker cannot go on.
    Failed(Error),
}

/// Messages to one worker.
#[derive(Debug)]
pub(crate) struct Inbox {
    contents: Mutex<Contents>,
    wake: EventFd,
}

/// What waits in an [`Inbox`].
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) messages: VecDeque<Message>,
    /// Of frames.
    bytes: usize,
    /// Frames there was no place for.
    pub(crate) dropped: u64,
}

impl Inbox {
    pub(crate) fn new() -> Result<Inbox, Errno> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Inbox { contents: Mutex::default(), wake })
    }

    /// Becomes readable when there is a message.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    pub(crate) fn send(&self, message: Message) {
        let mut contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Message::Frame(frame) = &message {
            let bytes = contents.bytes + frame.len();
            if contents.messages.len() >= FRAMES_MAX || bytes > BYTES_MAX {
                contents.dropped += 1;
                return;
            }
            contents.bytes = bytes;
        }
        contents.messages.push_back(message);
        if contents.messages.len() == 1 {
            // Fails only when the counter is full, and then its owner is awake.
            self.wake.write(1).ok();
        }
    }

    /// Takes all messages, and the count of what was dropped before.
    pub(crate) fn take(&self) -> Contents {
        // Before the queue is emptied: whoever comes later arms it again.
        self.wake.read().ok();
        std::mem::take(&mut *self.contents.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_bounded_and_news_is_not() {
        let inbox = Inbox::new().unwrap();
        for n in 0..2000_u32 {
            inbox.send(Message::Frame(n.to_ne_bytes().to_vec()));
        }
        inbox.send(Message::NameServers(Default::default()));
        let all = inbox.take();
        assert_eq!((all.messages.len(), all.dropped), (FRAMES_MAX + 1, 2000 - 1024));
        assert!(matches!(all.messages.back(), Some(Message::NameServers(_))));
        let none = inbox.take();
        assert!(none.messages.is_empty() && none.dropped == 0);
        for _ in 0..100 {
            inbox.send(Message::Frame(vec![0; 65_536]));
        }
        let large = inbox.take();
        assert_eq!((large.messages.len(), large.dropped), (64, 36));
        assert_eq!(inbox.wake.read(), Err(Errno::EAGAIN), "nobody is woken for nothing");
    }
}
