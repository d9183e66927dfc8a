//! Answers that are a range of a file, handed to the kernel without passing through
//! this program.
//!
//! # Theory of operation
//! The header is written into a pipe, the pages of the file are spliced behind it, and
//! all of it is spliced to the device, which copies them to where they are wanted: one
//! copy in place of two. The pages are not moved (`SPLICE_F_MOVE`): a lower's belong to
//! the page cache of whoever else reads it.
//!
//! The header says how long the answer is before the pages are known to be there. When
//! they are not (the file became shorter, its file system cannot splice, there are no
//! descriptors left for a pipe) the pipe is given up with what is in it, and the answer
//! is read and written as any other.

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::{pipe2, write};

use super::wire;

/// Pages that an answer should fit into; what may not be had is not insisted on.
const PIPE: i32 = 1 << 20;
/// From so many bytes on it pays: three system calls in place of two.
pub(crate) const LEAST: usize = 32 << 10;
/// A slot of the pipe holds a part of one page.
const PAGE: usize = 4096;

/// A thread's pipe. Empty between two answers.
#[derive(Debug)]
pub(crate) struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    /// So many bytes of a file fit in any case, wherever they start in a page.
    room: usize,
}

impl Pipe {
    fn new() -> nix::Result<Self> {
        let (out, into) = pipe2(OFlag::O_CLOEXEC)?;
        // Refused, it has the usual size.
        fcntl(&into, FcntlArg::F_SETPIPE_SZ(PIPE)).ok();
        let size = usize::try_from(fcntl(&into, FcntlArg::F_GETPIPE_SZ)?).unwrap_or(0);
        Ok(Self { out, into, room: (size / PAGE).saturating_sub(3) * PAGE })
    }
}

/// Answers with up to `size` bytes of `file` from `offset` on; `false` when it has to be
/// done otherwise. `pipe` is the thread's, made when it is first wanted.
pub(crate) fn answer(
    device: BorrowedFd<'_>,
    unique: u64,
    file: BorrowedFd<'_>,
    offset: u64,
    size: usize,
    pipe: &mut Option<Pipe>,
) -> bool {
    let whole = nix::sys::stat::fstat(file).map_or(0, |stat| stat.st_size.cast_unsigned());
    let left = usize::try_from(whole.saturating_sub(offset)).unwrap_or(usize::MAX);
    let (Ok(mut at), len) = (i64::try_from(offset), size.min(left)) else { return false };
    if len < LEAST {
        return false;
    }
    let Some(own) = pipe.take().or_else(|| Pipe::new().ok()) else { return false };
    if len > own.room {
        *pipe = Some(own);
        return false;
    }
    let header = wire::out_header(len, unique, 0);
    if write(&own.into, &header) != Ok(header.len()) {
        return false;
    }
    let mut done = 0;
    while done < len {
        let none = SpliceFFlags::empty();
        match splice(file, Some(&mut at), &own.into, None, len - done, none) {
            Ok(n) if n > 0 => done += n,
            _ => return false,
        }
    }
    let all = header.len() + len;
    let sent = splice(&own.out, None, device, None, all, SpliceFFlags::empty()) == Ok(all);
    if sent {
        *pipe = Some(own);
    }
    sent
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_header_and_a_range_or_nothing() {
        let mut file = tempfile::tempfile().unwrap();
        let data: Vec<u8> = (0..100_000u32).map(|n| n.to_le_bytes()[1]).collect();
        file.write_all(&data).unwrap();
        let (device, mut kernel) = UnixStream::pair().unwrap();
        let mut pipe = None;
        for (offset, size, want) in
            [(0, 65_536, 65_536), (5000, 1 << 20, 95_000), (67_232, LEAST, LEAST)]
        {
            assert!(answer(device.as_fd(), 7, file.as_fd(), offset, size, &mut pipe));
            let mut got = vec![0; 16 + want];
            kernel.read_exact(&mut got).unwrap();
            let len = u32::try_from(16 + want).unwrap().to_ne_bytes();
            assert_eq!(
                (&got[..4], &got[4..8], &got[8..16]),
                (&len[..], &[0; 4][..], &7u64.to_ne_bytes()[..])
            );
            let start = usize::try_from(offset).unwrap();
            assert!(got[16..] == data[start..start + want]);
        }
        // Too little, past the end, more than the pipe holds, not a file.
        let mut ask = |file: BorrowedFd<'_>, offset, size| {
            answer(device.as_fd(), 7, file, offset, size, &mut pipe)
        };
        assert!(!ask(file.as_fd(), 0, LEAST - 1));
        assert!(!ask(file.as_fd(), 200_000, LEAST));
        assert!(!ask(file.as_fd(), u64::MAX, LEAST));
        file.set_len(8 << 20).unwrap();
        assert!(!ask(file.as_fd(), 0, 4 << 20));
        assert!(!ask(kernel.as_fd(), 0, LEAST));
        // Nothing of it has come.
        kernel.set_nonblocking(true).unwrap();
        assert!(kernel.read(&mut [0]).is_err());
    }
}
