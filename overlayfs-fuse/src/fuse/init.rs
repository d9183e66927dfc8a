//! What is agreed with the kernel before anything else: pure.

use super::wire::{self, Answer, Body, init};

/// Largest WRITE, bytes.
pub(crate) const MAX_WRITE: u32 = 1 << 20;
/// Asynchronous requests (read-ahead, write-back) that may be under way at once.
const MAX_BACKGROUND: u16 = 64;

/// What the union would like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wishes {
    /// Access control lists are kept.
    pub(crate) acl: bool,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Granted {
    flags: u64,
}

impl Granted {
    pub(crate) fn has(self, flag: u64) -> bool {
        self.flags & flag != 0
    }
}

/// Answers INIT. `None`: the message makes no sense, or speaks another major
/// version (there has been no other since 2005).
pub(crate) fn answer(body: &mut Body<'_>, wishes: Wishes, answer: &mut Answer) -> Option<Granted> {
    let major = body.u32()?;
    let minor = body.u32()?;
    if major != wire::MAJOR {
        return None;
    }
    let max_readahead = body.u32()?;
    let mut offered = u64::from(body.u32()?);
    if offered & init::INIT_EXT != 0 {
        offered |= u64::from(body.u32()?) << 32;
    }
    let mut wanted = init::ASYNC_READ
        | init::BIG_WRITES
        | init::DONT_MASK
        | init::DO_READDIRPLUS
        | init::ASYNC_DIO
        | init::NO_OPEN_SUPPORT
        | init::NO_OPENDIR_SUPPORT
        | init::PARALLEL_DIROPS
        | init::MAX_PAGES
        | init::CACHE_SYMLINKS
        | init::EXPLICIT_INVAL_DATA
        | init::HANDLE_KILLPRIV_V2
        | init::SETXATTR_EXT
        | init::INIT_EXT;
    if wishes.acl {
        wanted |= init::POSIX_ACL;
    }
    let flags = offered & wanted;
    answer.u32(wire::MAJOR);
    answer.u32(wire::MINOR.min(minor));
    answer.u32(max_readahead);
    answer.u32((flags & 0xffff_ffff) as u32);
    answer.u16(MAX_BACKGROUND);
    answer.u16(MAX_BACKGROUND / 4 * 3);
    answer.u32(MAX_WRITE);
    // Granularity of times, nanoseconds.
    answer.u32(1);
    // 256 pages of 4 KiB: the largest WRITE, and the kernel's own limit.
    answer.u16(256);
    answer.u16(0);
    answer.u32((flags >> 32) as u32);
    answer.put(&[0; 28]);
    Some(Granted { flags })
}

#[cfg(test)]
mod tests {
    use super::super::wire::Request;
    use super::super::wire::tests::message;
    use super::*;

    fn ask(minor: u32, flags: u32) -> (Granted, Vec<u8>) {
        let body: Vec<u8> =
            [7, minor, 131_072, flags, 0].iter().flat_map(|n: &u32| n.to_ne_bytes()).collect();
        let message = message(wire::op::INIT, 0, &body);
        let mut request = Request::parse(&message).unwrap();
        let mut out = Answer::default();
        out.clear();
        let wishes = Wishes { acl: false };
        let granted = answer(&mut request.body, wishes, &mut out).unwrap();
        (granted, out.finish(1, 0).to_vec())
    }

    #[test]
    fn only_what_is_offered_is_taken() {
        let (granted, answer) = ask(31, u32::MAX);
        assert!(granted.has(init::SETXATTR_EXT) && !granted.has(init::POSIX_ACL));
        assert_eq!(answer.len(), 16 + 64);
        assert_eq!(answer[20..24], 31u32.to_ne_bytes());
        let (granted, answer) = ask(99, 0);
        assert_eq!(granted, Granted::default());
        assert_eq!(answer[20..24], wire::MINOR.to_ne_bytes());
    }
}
