//! An io_uring(7) that carries one request of FUSE at a time, by the bare calls: three of
//! them, and two commands of fs/fuse/dev_uring.c.
//!
//! # Theory of operation
//! Memory is given to the kernel once (REGISTER): headers, and a payload. It puts a request
//! there and completes the command; the answer is put into the same memory, and the next
//! command (COMMIT_AND_FETCH) hands it over and asks for another request. So one call of
//! io_uring_enter(2) is a round trip.
//!
//! The kernel touches the memory only while the ring's thread is in that call
//! (`IORING_SETUP_DEFER_TASKRUN`; linux/io_uring.h), never while this code runs.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;

// linux/io_uring.h.
const SETUP_R_DISABLED: u32 = 1 << 6;
const SETUP_SQE128: u32 = 1 << 10;
const SETUP_SINGLE_ISSUER: u32 = 1 << 12;
const SETUP_DEFER_TASKRUN: u32 = 1 << 13;
const ENTER_GETEVENTS: libc::c_uint = 1;
const REGISTER_ENABLE_RINGS: libc::c_uint = 12;
const UNREGISTER_EVENTFD: libc::c_uint = 5;
const OP_URING_CMD: u8 = 46;
const OFFSET_RINGS: libc::off_t = 0;
const OFFSET_ENTRIES: libc::off_t = 0x1000_0000;
/// A submission with room for a command, bytes.
const SUBMISSION: usize = 128;
/// A completion, bytes.
const COMPLETION: usize = 16;

// linux/fuse.h, `enum fuse_uring_cmd` and `struct fuse_uring_req_header`.
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;
/// `struct fuse_in_header` of a request, and where its fixed part is.
const IN_HEADER: usize = 40;
const FIXED: usize = 128;
const FIXED_ROOM: usize = 128;
const COMMIT_ID: usize = 256 + 8;
const PAYLOAD_LEN: usize = 256 + 16;
const HEADERS: usize = 288;
/// `struct fuse_out_header`.
pub(crate) const OUT_HEADER: usize = 16;

/// The payload begins so far into the memory: what is before a message's payload is put
/// directly before it.
const PAYLOAD: usize = 4096;

/// A payload that is longer takes memory which is given back after so many that are not, and
/// not at once: taking it anew costs time.
const KEPT: usize = 256 << 10;
const AFTER: u32 = 64;

/// `struct io_uring_params`.
#[repr(C)]
#[derive(Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    thread: [u32; 2],
    features: u32,
    wq_fd: u32,
    reserved: [u32; 3],
    /// head, tail, mask, entries, flags, dropped, array and what is not used here.
    sq: [u32; 10],
    /// head, tail, mask, entries, overflow, completions and what is not used here.
    cq: [u32; 10],
}

/// Memory from mmap(2), given back with its owner.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

impl Mapping {
    /// Of a ring from `offset` on, or private and empty.
    fn new(len: usize, of: Option<(RawFd, libc::off_t)>) -> nix::Result<Self> {
        let (fd, offset) = of.unwrap_or((-1, 0));
        let flags = match of {
            Some(_) => libc::MAP_SHARED | libc::MAP_POPULATE,
            None => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, fd, offset) };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let start = NonNull::new(start.cast()).ok_or(Errno::ENOMEM)?;
        Ok(Self { start, len })
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped for as long as `self` lives, and borrowed as `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

/// Headers and payload of a ring.
#[derive(Debug)]
struct Memory {
    mapping: Mapping,
    /// Shorter payloads until what only long ones take is given back; 0 when it is.
    left: u32,
}

impl Memory {
    fn bytes(&mut self) -> &mut [u8] {
        self.mapping.bytes()
    }

    /// A payload of `len` bytes is in it, and nothing else.
    fn used(&mut self, len: usize) {
        if len > KEPT {
            self.left = AFTER;
            return;
        }
        if self.left == 0 {
            return;
        }
        self.left -= 1;
        let rest = PAYLOAD + KEPT;
        if self.left == 0 && self.mapping.len > rest {
            // SAFETY: a part of a private mapping of ours without a file, to which nobody has
            // a reference; it reads as zeros from here on. Refused, it stays as it is.
            unsafe {
                let start = self.mapping.start.as_ptr().add(rest);
                libc::madvise(start.cast(), self.mapping.len - rest, libc::MADV_DONTNEED);
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no borrow of it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// One ring, for one request at a time of one of the kernel's queues.
#[derive(Debug)]
pub(crate) struct Ring {
    // Closed first: after that the kernel has no use for the memory.
    fd: OwnedFd,
    rings: Mapping,
    entries: Mapping,
    memory: Memory,
    device: RawFd,
    queue: u16,
    sq: [u32; 10],
    cq: [u32; 10],
}

// SAFETY: the mappings are owned by the ring and have no tie to a thread; the kernel ties
// it to the one that calls `begin`, from which it is not moved (server.rs).
unsafe impl Send for Ring {}

impl Ring {
    /// A ring for requests of `queue` and payloads of up to `room` bytes. `device` is
    /// used as long as the ring is.
    ///
    /// # Errors
    /// The kernel or a filter does not allow it, or there is no memory.
    pub(crate) fn new(device: BorrowedFd<'_>, queue: u16, room: usize) -> nix::Result<Self> {
        let flags = SETUP_R_DISABLED | SETUP_SQE128 | SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN;
        let mut params = Params { flags, ..Params::default() };
        // SAFETY: `params` has the kernel's layout and length.
        let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, &raw mut params) };
        let fd = RawFd::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
        // SAFETY: the kernel has just made it for this process; it sets close-on-exec.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let raw = fd.as_raw_fd();
        // Both rings are in one mapping since Linux 5.4.
        let completions = params.cq[5] as usize + params.cq_entries as usize * COMPLETION;
        let array = params.sq[6] as usize + params.sq_entries as usize * 4;
        let rings = Mapping::new(completions.max(array), Some((raw, OFFSET_RINGS)))?;
        let len = params.sq_entries as usize * SUBMISSION;
        let entries = Mapping::new(len, Some((raw, OFFSET_ENTRIES)))?;
        let memory = Memory { mapping: Mapping::new(PAYLOAD + room, None)?, left: 0 };
        let device = device.as_raw_fd();
        Ok(Self { fd, rings, entries, memory, device, queue, sq: params.sq, cq: params.cq })
    }

    /// Whether the other two calls are allowed as well, before the ring is begun: a filter
    /// may have forgotten one.
    ///
    /// # Errors
    /// What such a call meets.
    pub(crate) fn may_begin(&self) -> nix::Result<()> {
        let (fd, none) = (self.fd.as_raw_fd(), std::ptr::null::<u8>());
        // SAFETY: the commands take no memory of ours.
        let (registered, entered) = unsafe {
            let registered =
                libc::syscall(libc::SYS_io_uring_register, fd, UNREGISTER_EVENTFD, none, 0);
            let registered = Errno::result(registered);
            let entered = libc::syscall(libc::SYS_io_uring_enter, fd, 0, 0, 0, none, 0);
            (registered, Errno::result(entered))
        };
        // What the kernel itself says: there is none to take back, and it is not begun.
        for (result, said) in [(registered, Errno::ENXIO), (entered, Errno::EBADFD)] {
            if let Err(errno) = result
                && errno != said
            {
                return Err(errno);
            }
        }
        Ok(())
    }

    /// Ties the ring to this thread and offers its memory.
    ///
    /// # Errors
    /// Those of io_uring_register(2).
    pub(crate) fn begin(&mut self) -> nix::Result<()> {
        let (fd, none) = (self.fd.as_raw_fd(), std::ptr::null::<u8>());
        // SAFETY: the command takes no memory of ours.
        let enabled = unsafe {
            libc::syscall(libc::SYS_io_uring_register, fd, REGISTER_ENABLE_RINGS, none, 0)
        };
        Errno::result(enabled)?;
        let room = self.memory.mapping.len - PAYLOAD;
        let start = self.memory.mapping.start.as_ptr().expose_provenance();
        // The two parts (`struct iovec`), said in the memory itself where nothing else is.
        let parts = [start, HEADERS, start + PAYLOAD, room];
        let said = parts.map(usize::to_ne_bytes);
        self.memory.bytes()[HEADERS..][..size_of_val(&parts)].copy_from_slice(said.as_flattened());
        self.push(REGISTER, (start + HEADERS) as u64, 2, 0);
        Ok(())
    }

    /// Hands over the answer, or the memory at first, and waits for a request.
    ///
    /// # Errors
    /// ENOTCONN, ECONNABORTED: the mount is gone. Others are those of io_uring_enter(2),
    /// or the kernel's about the command.
    pub(crate) fn next(&mut self) -> nix::Result<()> {
        loop {
            if let Some(result) = self.completed() {
                // Of a command it is the error number itself, negative.
                return if result < 0 { Err(Errno::from_raw(-result)) } else { Ok(()) };
            }
            let taken = self.word(self.sq[0]).load(Ordering::Acquire);
            let pushed = self.word(self.sq[1]).load(Ordering::Relaxed);
            let fd = self.fd.as_raw_fd();
            // SAFETY: no memory is passed but what the ring has.
            let entered = unsafe {
                libc::syscall(
                    libc::SYS_io_uring_enter,
                    fd,
                    pushed.wrapping_sub(taken),
                    1,
                    ENTER_GETEVENTS,
                    std::ptr::null::<u8>(),
                    0,
                )
            };
            match Errno::result(entered) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// The request in one piece. `None` when its lengths make no sense.
    pub(crate) fn message(&mut self) -> Option<&[u8]> {
        let payload = u32_at(self.memory.bytes(), PAYLOAD_LEN);
        self.memory.used(payload);
        join(self.memory.bytes())
    }

    /// What the request is known by, whatever else it says.
    pub(crate) fn unique(&mut self) -> u64 {
        u64_at(self.memory.bytes(), 8)
    }

    /// Where the data of an answer may be put; there is no request any more then.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.memory.bytes()[PAYLOAD..]
    }

    /// Answers with `header` and the first `len` bytes of the room.
    pub(crate) fn answer_from_room(&mut self, header: [u8; OUT_HEADER], len: usize) {
        if len > KEPT {
            self.memory.used(len);
        }
        let memory = self.memory.bytes();
        memory[..OUT_HEADER].copy_from_slice(&header);
        // Not more than the room, whose size has 32 bits.
        let len = u32::try_from(len.min(memory.len() - PAYLOAD)).unwrap_or(0);
        memory[PAYLOAD_LEN..][..4].copy_from_slice(&len.to_ne_bytes());
        let id = u64_at(memory, COMMIT_ID);
        self.push(COMMIT_AND_FETCH, 0, 0, id);
    }

    /// Answers with a whole message. One that does not fit, which the kernel cannot have
    /// asked for, is `false`.
    #[must_use]
    pub(crate) fn answer(&mut self, message: &[u8]) -> bool {
        let Some((header, body)) = message.split_first_chunk::<OUT_HEADER>() else { return false };
        let Some(room) = self.room().get_mut(..body.len()) else { return false };
        room.copy_from_slice(body);
        self.answer_from_room(*header, body.len());
        true
    }

    fn push(&mut self, command: u32, address: u64, len: u32, commit: u64) {
        let mut entry = [0; SUBMISSION];
        // `struct io_uring_sqe`, and from 48 on `struct fuse_uring_cmd_req`.
        entry[0] = OP_URING_CMD;
        entry[4..8].copy_from_slice(&self.device.to_ne_bytes());
        entry[8..12].copy_from_slice(&command.to_ne_bytes());
        entry[16..24].copy_from_slice(&address.to_ne_bytes());
        entry[24..28].copy_from_slice(&len.to_ne_bytes());
        entry[56..64].copy_from_slice(&commit.to_ne_bytes());
        entry[64..66].copy_from_slice(&self.queue.to_ne_bytes());
        // There is one place, and what was in it has been taken.
        self.entries.bytes()[..SUBMISSION].copy_from_slice(&entry);
        self.word(self.sq[6]).store(0, Ordering::Relaxed);
        self.word(self.sq[1]).fetch_add(1, Ordering::Release);
    }

    /// The result of a completion, if there is one.
    fn completed(&mut self) -> Option<i32> {
        let head = self.word(self.cq[0]).load(Ordering::Relaxed);
        if head == self.word(self.cq[1]).load(Ordering::Acquire) {
            return None;
        }
        let index = head & self.word(self.cq[2]).load(Ordering::Relaxed);
        let at = self.cq[5] as usize + index as usize * COMPLETION + 8;
        let result = self.rings.bytes().get(at..at + 4)?.try_into().map_or(0, i32::from_ne_bytes);
        self.word(self.cq[0]).store(head.wrapping_add(1), Ordering::Release);
        Some(result)
    }

    /// A counter that is shared with the kernel.
    fn word(&self, offset: u32) -> &AtomicU32 {
        // SAFETY: the kernel's offsets are inside of the mapping and multiples of 4; both
        // sides use it as an atomic number.
        unsafe { &*self.rings.start.as_ptr().add(offset as usize).cast::<AtomicU32>() }
    }
}

fn u32_at(memory: &[u8], at: usize) -> usize {
    memory[at..][..4].try_into().map_or(0, u32::from_ne_bytes) as usize
}

fn u64_at(memory: &[u8], at: usize) -> u64 {
    memory[at..][..8].try_into().map_or(0, u64::from_ne_bytes)
}

/// Puts header and fixed part of a request directly before its payload.
fn join(memory: &mut [u8]) -> Option<&[u8]> {
    let (len, payload) = (u32_at(memory, 0), u32_at(memory, PAYLOAD_LEN));
    let before = len.checked_sub(payload)?;
    let fixed = before.checked_sub(IN_HEADER).filter(|n| *n <= FIXED_ROOM)?;
    let start = PAYLOAD - before;
    let end = PAYLOAD.checked_add(payload).filter(|end| *end <= memory.len())?;
    memory.copy_within(..IN_HEADER, start);
    memory.copy_within(FIXED..FIXED + fixed, start + IN_HEADER);
    Some(&memory[start..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_long_payloads_took_is_given_back() {
        let mut memory =
            Memory { mapping: Mapping::new(PAYLOAD + (1 << 20), None).unwrap(), left: 0 };
        let edge = PAYLOAD + KEPT;
        let mut given_back = |len: usize| {
            memory.bytes()[edge - 1..][..2].fill(7);
            memory.used(len);
            assert_eq!(memory.bytes()[edge - 1], 7);
            memory.bytes()[edge] == 0
        };
        assert!((0..=AFTER).all(|_| !given_back(KEPT)));
        for long in [KEPT + 1, 1 << 20] {
            assert!(!given_back(long));
            assert!((1..AFTER).all(|_| !given_back(0)));
            assert!(!given_back(long));
            assert!((1..AFTER).all(|_| !given_back(KEPT)));
            assert!(given_back(0));
            assert!(!given_back(0));
        }
    }

    #[test]
    fn a_request_is_put_together() {
        let mut memory = vec![0; PAYLOAD + 100];
        let mut set = |len: u32, payload: u32| {
            memory[..4].copy_from_slice(&len.to_ne_bytes());
            memory[39] = 39;
            memory[FIXED..FIXED + 3].copy_from_slice(&[1, 2, 3]);
            memory[PAYLOAD..][..2].copy_from_slice(&[8, 9]);
            memory[PAYLOAD_LEN..][..4].copy_from_slice(&payload.to_ne_bytes());
            join(&mut memory).map(<[u8]>::to_vec)
        };
        let whole = set(45, 2).unwrap();
        assert_eq!((whole.len(), &whole[39..]), (45, &[39, 1, 2, 3, 8, 9][..]));
        assert_eq!(set(40, 0).unwrap().len(), 40);
        assert_eq!(set(40 + 128 + 100, 100).unwrap().len(), 268);
        // Shorter than a header, a fixed part without room, more than there is.
        for (len, payload) in [(39, 0), (41, 2), (40 + 129, 0), (141, 101), (0, u32::MAX)] {
            assert_eq!(set(len, payload), None, "{len} {payload}");
        }
    }
}
