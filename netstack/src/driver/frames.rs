//! Frames between the TAP and the stack.

use std::io::IoSlice;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::{Driver, Error, TAP, Turn, os};
use crate::inbox::Message;
use crate::stack::Elsewhere;

/// Frames taken from the guest in one turn, if they are small: the stack's batch
/// ends sooner with large ones.
const BATCH: usize = 64;

impl Driver {
    /// Takes a batch of frames. Gives whether there may be more.
    pub(super) fn read_frames(&mut self, now: Duration) -> Result<(Turn, bool), Error> {
        for _ in 0..BATCH {
            let room = self.stack.frame_room();
            if room.is_empty() {
                break;
            }
            match nix::unistd::read(&self.tap, room) {
                Ok(0) => return Ok((Turn::End, false)),
                Ok(len) => {
                    self.moved += len;
                    self.traffic.frames_in += 1;
                    self.traffic.bytes_in += self.seen.see(now, &[IoSlice::new(&room[..len])], len);
                    if let Some(Elsewhere { stack, frame }) = self.stack.handle_frame(now, len) {
                        self.inboxes[stack].send(Message::Frame(frame.to_vec()));
                    }
                }
                Err(Errno::EAGAIN) => return Ok((Turn::GoOn, false)),
                Err(Errno::EINTR) => {}
                // The device was deleted, its namespace or the peer is gone.
                Err(Errno::EBADFD | Errno::ENODEV | Errno::ECONNRESET) => {
                    return Ok((Turn::End, false));
                }
                // The link is down: wait for it to come up.
                Err(Errno::EIO) => return Ok((Turn::GoOn, false)),
                Err(errno) => return Err(os("reading from the TAP")(errno)),
            }
        }
        Ok((Turn::GoOn, true))
    }

    pub(super) fn write_frames(&mut self, now: Duration) -> Result<(), Error> {
        if self.tap_full.is_some() {
            return Ok(());
        }
        while let Some(frame) = self.stack.poll_frame(now) {
            self.traffic.frames_out += 1;
            self.traffic.bytes_out += self.seen.see(now, frame.as_slices(), frame.len());
            match nix::sys::uio::writev(&self.tap, frame.as_slices()) {
                Ok(len) => self.moved += len,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    self.tap_full = Some(frame.to_vec());
                    return self.watch_tap(EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT);
                }
                // Link down, device gone, no memory, or a frame the kernel finds
                // wrong: lost, as on a wire. Reading tells when the device is gone.
                Err(_) => {}
            }
        }
        Ok(())
    }

    pub(super) fn tap_writable(&mut self) -> Result<(), Error> {
        let Some(frame) = self.tap_full.take() else { return Ok(()) };
        if nix::unistd::write(&self.tap, &frame) == Err(Errno::EAGAIN) {
            self.tap_full = Some(frame);
            return Ok(());
        }
        self.watch_tap(EpollFlags::EPOLLIN)
    }

    fn watch_tap(&self, flags: EpollFlags) -> Result<(), Error> {
        let mut event = EpollEvent::new(flags, TAP);
        self.epoll.modify(&self.tap, &mut event).map_err(os("watching the TAP"))
    }
}
