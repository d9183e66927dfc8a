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
    /// Requests are to come through io_uring.
    pub(crate) rings: bool,
    /// The kernel is to read files by itself.
    pub(crate) passthrough: bool,
    /// What is written may stay in the kernel's cache for a while.
    pub(crate) writeback: bool,
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

/// What the kernel offers in INIT, and the version it speaks. `None`: no message of that.
fn offer(body: &mut Body<'_>) -> Option<Offer> {
    let (major, minor, max_readahead) = (body.u32()?, body.u32()?, body.u32()?);
    let mut flags = u64::from(body.u32()?);
    if flags & init::INIT_EXT != 0 {
        flags |= u64::from(body.u32()?) << 32;
    }
    Some(Offer { major, minor, max_readahead, flags })
}

struct Offer {
    major: u32,
    minor: u32,
    max_readahead: u32,
    flags: u64,
}

/// Whether the kernel would send requests through io_uring: its root has switched it on.
pub(crate) fn offers_rings(mut body: Body<'_>) -> bool {
    offer(&mut body).is_some_and(|offer| offer.flags & init::OVER_IO_URING != 0)
}

/// Answers INIT. `None`: the message makes no sense, or speaks another major
/// version (there has been no other since 2005).
pub(crate) fn answer(body: &mut Body<'_>, wishes: Wishes, answer: &mut Answer) -> Option<Granted> {
    let Offer { major, minor, max_readahead, flags: offered } = offer(body)?;
    if major != wire::MAJOR {
        return None;
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
    if wishes.writeback {
        wanted |= init::WRITEBACK_CACHE;
    }
    if wishes.rings {
        wanted |= init::OVER_IO_URING;
    }
    if wishes.passthrough {
        wanted |= init::PASSTHROUGH;
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
    // How deep in the stack of file systems the mount is to be, where it reads from others:
    // one above those that are on none, so that one more can be put on top.
    answer.u32(u32::from(flags & init::PASSTHROUGH != 0));
    answer.put(&[0; 24]);
    Some(Granted { flags })
}

#[cfg(test)]
mod tests {
    use super::super::wire::Request;
    use super::super::wire::tests::message;
    use super::*;

    fn ask(minor: u32, flags: u32, more: u32, rings: bool) -> (Granted, Vec<u8>) {
        ask_for(
            minor,
            flags,
            more,
            Wishes { acl: false, rings, passthrough: rings, writeback: false },
        )
    }

    fn ask_for(minor: u32, flags: u32, more: u32, wishes: Wishes) -> (Granted, Vec<u8>) {
        let body: Vec<u8> =
            [7, minor, 131_072, flags, more].iter().flat_map(|n: &u32| n.to_ne_bytes()).collect();
        let message = message(wire::op::INIT, 0, &body);
        let mut request = Request::parse(&message).unwrap();
        let mut out = Answer::default();
        out.clear();
        let granted = answer(&mut request.body, wishes, &mut out).unwrap();
        (granted, out.finish(1, 0).to_vec())
    }

    #[test]
    fn only_what_is_offered_is_taken() {
        let (granted, answer) = ask(31, u32::MAX, 0, false);
        assert!(granted.has(init::SETXATTR_EXT) && !granted.has(init::POSIX_ACL));
        assert_eq!(answer.len(), 16 + 64);
        assert_eq!(answer[20..24], 31u32.to_ne_bytes());
        let (granted, answer) = ask(99, 0, 0, false);
        assert_eq!(granted, Granted::default());
        assert_eq!(answer[20..24], wire::MINOR.to_ne_bytes());
    }

    #[test]
    fn passthrough_says_how_deep_the_mount_is() {
        let bits = 1 << (37 - 32) | 1 << (41 - 32);
        for (more, wish, want) in [(bits, true, 1), (bits, false, 0), (1 << (41 - 32), true, 0)] {
            let (granted, answer) = ask(42, 1 << 30, more, wish);
            assert_eq!(granted.has(init::PASSTHROUGH), want != 0, "{more} {wish}");
            assert_eq!(answer[52..56], u32::to_ne_bytes(want), "{more} {wish}");
        }
    }

    #[test]
    fn writing_back_takes_an_offer_and_a_wish() {
        let bit = 1 << 16;
        for (flags, writeback, want) in [(bit, true, true), (bit, false, false), (0, true, false)] {
            let wishes = Wishes { acl: false, rings: false, passthrough: false, writeback };
            let (granted, answer) = ask_for(42, flags, 0, wishes);
            assert_eq!(granted.has(init::WRITEBACK_CACHE), want, "{flags} {writeback}");
            let said = u32::from_ne_bytes(answer[28..32].try_into().unwrap());
            assert_eq!(said & bit != 0, want, "{flags} {writeback}");
        }
    }

    #[test]
    fn rings_take_an_offer_and_a_wish() {
        let bit = 1 << (41 - 32);
        for (ext, more, wish, want) in [
            (true, bit, true, true),
            (true, bit, false, false),
            (true, 0, true, false),
            // The second word means nothing.
            (false, bit, true, false),
        ] {
            let flags = if ext { 1 << 30 } else { 0 };
            let (granted, answer) = ask(42, flags, more, wish);
            assert_eq!(granted.has(init::OVER_IO_URING), want, "{ext} {more} {wish}");
            let said = u32::from_ne_bytes(answer[48..52].try_into().unwrap());
            assert_eq!(said & bit != 0, want, "{ext} {more} {wish}");
            let mut body = [7, 42, 131_072, flags, more].map(u32::to_ne_bytes).concat();
            body = message(wire::op::INIT, 0, &body);
            let offered = offers_rings(Request::parse(&body).unwrap().body);
            assert_eq!(offered, ext && more != 0);
        }
        let short = message(wire::op::INIT, 0, &[0; 12]);
        assert!(!offers_rings(Request::parse(&short).unwrap().body));
    }
}
