//! The FUSE protocol's messages, after include/uapi/linux/fuse.h: pure.
//!
//! A request is a header of 40 bytes, a fixed part that its opcode decides, and
//! strings that end in NUL. An answer is a header of 16 bytes and a fixed part,
//! or bytes. All numbers are in the machine's byte order; every struct is a
//! multiple of 8 bytes long.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::overlay::Attr;

/// Protocol version that is spoken.
pub(crate) const MAJOR: u32 = 7;
/// Youngest minor version whose messages are understood (Linux 6.2).
pub(crate) const MINOR: u32 = 38;
/// `struct fuse_in_header`, bytes.
pub(crate) const HEADER: usize = 40;
/// `struct fuse_out_header`, bytes.
const OUT_HEADER: usize = 16;
/// `struct fuse_entry_out`, bytes.
const ENTRY: usize = 128;
/// `struct fuse_dirent` without its name, bytes.
const DIRENT: usize = 24;

/// "For ever", seconds: kernel jiffies hold no more than about 32 bits of them.
const FOREVER: u64 = u32::MAX as u64;

/// Defines the opcodes and their names.
macro_rules! opcodes {
    ($($name:ident = $value:literal,)*) => {
        /// Numbers of the requests (`enum fuse_opcode`).
        pub(crate) mod op {
            $(pub(crate) const $name: u32 = $value;)*
        }

        /// Name of an opcode; `None` for one that is not known here.
        pub(crate) fn name_of(opcode: u32) -> Option<&'static str> {
            match opcode {
                $($value => Some(stringify!($name)),)*
                _ => None,
            }
        }
    };
}

opcodes! {
    LOOKUP = 1,
    FORGET = 2,
    GETATTR = 3,
    SETATTR = 4,
    READLINK = 5,
    SYMLINK = 6,
    MKNOD = 8,
    MKDIR = 9,
    UNLINK = 10,
    RMDIR = 11,
    RENAME = 12,
    LINK = 13,
    OPEN = 14,
    READ = 15,
    WRITE = 16,
    STATFS = 17,
    RELEASE = 18,
    FSYNC = 20,
    SETXATTR = 21,
    GETXATTR = 22,
    LISTXATTR = 23,
    REMOVEXATTR = 24,
    FLUSH = 25,
    INIT = 26,
    OPENDIR = 27,
    READDIR = 28,
    RELEASEDIR = 29,
    FSYNCDIR = 30,
    CREATE = 35,
    INTERRUPT = 36,
    DESTROY = 38,
    IOCTL = 39,
    BATCH_FORGET = 42,
    FALLOCATE = 43,
    READDIRPLUS = 44,
    RENAME2 = 45,
    LSEEK = 46,
    COPY_FILE_RANGE = 47,
    TMPFILE = 51,
}

/// Flags of INIT, the second word's above bit 31.
pub(crate) mod init {
    pub(crate) const ASYNC_READ: u64 = 1;
    pub(crate) const BIG_WRITES: u64 = 1 << 5;
    pub(crate) const DONT_MASK: u64 = 1 << 6;
    pub(crate) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(crate) const ASYNC_DIO: u64 = 1 << 15;
    pub(crate) const WRITEBACK_CACHE: u64 = 1 << 16;
    pub(crate) const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub(crate) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(crate) const POSIX_ACL: u64 = 1 << 20;
    pub(crate) const MAX_PAGES: u64 = 1 << 22;
    pub(crate) const CACHE_SYMLINKS: u64 = 1 << 23;
    pub(crate) const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub(crate) const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    pub(crate) const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub(crate) const SETXATTR_EXT: u64 = 1 << 29;
    pub(crate) const INIT_EXT: u64 = 1 << 30;
    pub(crate) const PASSTHROUGH: u64 = 1 << 37;
    pub(crate) const OVER_IO_URING: u64 = 1 << 41;
}

/// Bits of `fuse_setattr_in.valid`.
pub(crate) mod fattr {
    pub(crate) const MODE: u32 = 1;
    pub(crate) const UID: u32 = 1 << 1;
    pub(crate) const GID: u32 = 1 << 2;
    pub(crate) const SIZE: u32 = 1 << 3;
    pub(crate) const ATIME: u32 = 1 << 4;
    pub(crate) const MTIME: u32 = 1 << 5;
    pub(crate) const ATIME_NOW: u32 = 1 << 7;
    pub(crate) const MTIME_NOW: u32 = 1 << 8;
    pub(crate) const KILL_SUIDGID: u32 = 1 << 11;
}

/// A message that answers nothing has its code where answers have their error.
const NOTIFY_INVAL_INODE: i32 = 2;
/// `FUSE_WRITE_CACHE`: the kernel hands over what was written before.
pub(crate) const WRITE_CACHE: u32 = 1;
/// `FUSE_WRITE_KILL_SUIDGID`.
pub(crate) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `FUSE_SETXATTR_ACL_KILL_SGID`.
pub(crate) const SETXATTR_ACL_KILL_SGID: u32 = 1;
/// `FUSE_FSYNC_FDATASYNC`.
pub(crate) const FSYNC_DATA: u32 = 1;
/// What CREATE and OPEN answer: keep cached pages (`FOPEN_KEEP_CACHE`), and no FLUSH
/// (`FOPEN_NOFLUSH`).
pub(crate) const OPEN_FLAGS: u32 = 1 << 1 | 1 << 5;
/// What OPEN answers where the kernel reads the file by itself: `FOPEN_PASSTHROUGH`, which
/// goes with no cached pages, and no FLUSH.
pub(crate) const PASSTHROUGH_FLAGS: u32 = 1 << 7 | 1 << 5;

/// A request, its header taken apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) opcode: u32,
    /// To be repeated in the answer.
    pub(crate) unique: u64,
    pub(crate) node: u64,
    /// Filesystem ids of the process that asks, as the mount's user namespace sees them.
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The task that asks, 0 where it has no number here or is not named.
    pub(crate) task: u32,
    pub(crate) body: Body<'a>,
}

impl<'a> Request<'a> {
    /// Takes a message apart; `None` when it is shorter than it says.
    pub(crate) fn parse(message: &'a [u8]) -> Option<Self> {
        let mut head = Body { rest: message };
        let len = usize::try_from(head.u32()?).ok()?;
        let request = Self {
            opcode: head.u32()?,
            unique: head.u64()?,
            node: head.u64()?,
            uid: head.u32()?,
            gid: head.u32()?,
            task: head.u32()?,
            body: Body { rest: message.get(HEADER..len)? },
        };
        Some(request)
    }
}

impl Request<'_> {
    /// Offset and size that a READ asks for (`struct fuse_read_in`).
    pub(crate) fn read(&self) -> Option<(u64, usize)> {
        let mut body = self.body;
        if self.opcode != op::READ {
            return None;
        }
        body.u64()?;
        Some((body.u64()?, body.u32()? as usize))
    }

    /// How many bytes a READ asks for; 0 for anything else.
    pub(crate) fn read_size(&self) -> usize {
        self.read().map_or(0, |(_, size)| size)
    }
}

/// What is left to read of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Body<'a> {
    rest: &'a [u8],
}

impl<'a> Body<'a> {
    pub(crate) fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(head)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.bytes(4)?.try_into().ok().map(u32::from_ne_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.bytes(8)?.try_into().ok().map(u64::from_ne_bytes)
    }

    /// A string up to its NUL.
    pub(crate) fn name(&mut self) -> Option<&'a OsStr> {
        let end = self.rest.iter().position(|b| *b == 0)?;
        let name = OsStr::from_bytes(&self.rest[..end]);
        self.rest = &self.rest[end + 1..];
        Some(name)
    }
}

/// An answer being written; the space for its header stays free until
/// [`Answer::finish`].
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// Only grows: what was written once need not be zeroed again.
    bytes: Vec<u8>,
    used: usize,
    /// The node whose attributes changed in a way that the kernel does not expect. It is to
    /// be told before it gets the answer ([`stale`]).
    pub(crate) stale: Option<u64>,
}

impl Answer {
    pub(crate) fn clear(&mut self) {
        self.used = 0;
        self.room(OUT_HEADER);
        self.used = OUT_HEADER;
    }

    /// The next `size` bytes; whether they count is up to the caller.
    fn room(&mut self, size: usize) -> &mut [u8] {
        let end = self.used + size;
        if self.bytes.len() < end {
            self.bytes.resize(end.next_power_of_two(), 0);
        }
        &mut self.bytes[self.used..end]
    }

    pub(crate) fn u16(&mut self, n: u16) {
        self.put(&n.to_ne_bytes());
    }

    pub(crate) fn u32(&mut self, n: u32) {
        self.put(&n.to_ne_bytes());
    }

    pub(crate) fn u64(&mut self, n: u64) {
        self.put(&n.to_ne_bytes());
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
        self.used += bytes.len();
    }

    /// Lets `fill` write up to `size` bytes and keeps as many as it says.
    pub(crate) fn fill<E>(
        &mut self,
        size: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<(), E> {
        let n = fill(self.room(size))?;
        self.used += n.min(size);
        Ok(())
    }

    /// `struct fuse_attr`.
    fn attr(&mut self, a: &Attr) {
        self.u64(a.ino);
        self.u64(a.size);
        self.u64(a.blocks);
        for (seconds, _) in [a.atime, a.mtime, a.ctime] {
            self.u64(seconds.cast_unsigned());
        }
        for (_, nanos) in [a.atime, a.mtime, a.ctime] {
            self.u32(nanos);
        }
        for field in
            [a.mode, a.nlink, a.uid, a.gid, encode_device(a.rdev), a.blksize, /* flags */ 0]
        {
            self.u32(field);
        }
    }

    /// `struct fuse_attr_out`, valid for ever.
    pub(crate) fn attr_out(&mut self, attr: &Attr) {
        self.u64(FOREVER);
        self.u64(0);
        self.attr(attr);
    }

    /// `struct fuse_entry_out`, valid for ever. Node 0: there is no such name.
    pub(crate) fn entry_out(&mut self, node: u64, attr: &Attr) {
        self.u64(node);
        // The generation: an id that is used again may only be used for what was
        // known by it before and forgotten.
        self.u64(0);
        self.u64(FOREVER);
        self.u64(FOREVER);
        self.u64(0);
        self.attr(attr);
    }

    /// One `struct fuse_dirent`, or `struct fuse_direntplus` with `plus` (the
    /// node to count a lookup on, 0 for none). `false`, and nothing is added,
    /// when the answer would hold more than `limit` bytes.
    pub(crate) fn dirent(
        &mut self,
        limit: usize,
        cookie: u64,
        name: &OsStr,
        attr: &Attr,
        plus: Option<u64>,
    ) -> bool {
        let entry = if plus.is_some() { ENTRY } else { 0 };
        let padded = (DIRENT + name.len()).next_multiple_of(8);
        if self.used - OUT_HEADER + entry + padded > limit {
            return false;
        }
        if let Some(node) = plus {
            self.entry_out(node, attr);
        }
        self.u64(attr.ino);
        self.u64(cookie);
        // A name has at most 255 bytes.
        self.u32(u32::try_from(name.len()).unwrap_or(u32::MAX));
        // DT_*: the type bits, shifted (dirent.h).
        self.u32((attr.mode & libc::S_IFMT) >> 12);
        self.put(name.as_bytes());
        self.put(&[0; 8][..padded - DIRENT - name.len()]);
        true
    }

    /// Fills in the header; the message to be written.
    pub(crate) fn finish(&mut self, unique: u64, errno: i32) -> &[u8] {
        if errno != 0 {
            self.clear();
        }
        let header = out_header(self.used - OUT_HEADER, unique, errno);
        self.bytes[..OUT_HEADER].copy_from_slice(&header);
        &self.bytes[..self.used]
    }
}

/// The message `FUSE_NOTIFY_INVAL_INODE`: the kernel is to ask for the attributes of `node`
/// before it uses them again; what it has of the data stays.
pub(crate) fn stale(node: u64) -> Vec<u8> {
    let mut message = out_header(24, 0, -NOTIFY_INVAL_INODE).to_vec();
    message.extend_from_slice(&node.to_ne_bytes());
    // An offset below zero: attributes alone.
    message.extend_from_slice(&(-1i64).to_ne_bytes());
    message.extend_from_slice(&0i64.to_ne_bytes());
    message
}

/// The header of an answer with `len` bytes behind it.
pub(crate) fn out_header(len: usize, unique: u64, errno: i32) -> [u8; OUT_HEADER] {
    // Larger answers than 32 bits can say cannot be asked for.
    let len = u32::try_from(OUT_HEADER + len).unwrap_or(u32::MAX);
    let mut header = [0; OUT_HEADER];
    header[..4].copy_from_slice(&len.to_ne_bytes());
    header[4..8].copy_from_slice(&(-errno).to_ne_bytes());
    header[8..].copy_from_slice(&unique.to_ne_bytes());
    header
}

/// Device numbers travel in 32 bits: 12 of major, 20 of minor, in the kernel's
/// `new_encode_dev` order.
fn encode_device(device: u64) -> u32 {
    let (major, minor) = (libc::major(device), libc::minor(device));
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12)
}

pub(crate) fn decode_device(device: u32) -> u64 {
    libc::makedev((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & !0xff))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A request as the kernel would send it.
    pub(crate) fn message(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes());
        out.extend_from_slice(&opcode.to_ne_bytes());
        out.extend_from_slice(&77u64.to_ne_bytes());
        out.extend_from_slice(&node.to_ne_bytes());
        out.extend_from_slice(&[0; 16]);
        out.extend_from_slice(body);
        out
    }

    #[test]
    fn attributes_are_called_stale_by_a_message_of_its_own() {
        let message = stale(7);
        let (header, body) = message.split_at(OUT_HEADER);
        assert_eq!(header, [&40u32.to_ne_bytes()[..], &2i32.to_ne_bytes(), &[0; 8]].concat());
        let want = [7i64, -1, 0].map(i64::to_ne_bytes).concat();
        assert_eq!(body, want);
    }

    #[test]
    fn sizes_are_those_of_the_header_file() {
        let attr = Attr::default();
        let len = |write: &dyn Fn(&mut Answer)| {
            let mut answer = Answer::default();
            answer.clear();
            write(&mut answer);
            answer.used - OUT_HEADER
        };
        assert_eq!(len(&|a| a.attr_out(&attr)), 104);
        assert_eq!(len(&|a| a.entry_out(1, &attr)), ENTRY);
        let name = OsStr::new("abc");
        assert_eq!(len(&|a| assert!(a.dirent(999, 1, name, &attr, None))), 32);
        assert_eq!(len(&|a| assert!(a.dirent(999, 1, name, &attr, Some(1)))), 160);
        assert_eq!(len(&|a| assert!(!a.dirent(31, 1, name, &attr, None))), 0);
    }

    #[test]
    fn an_answer_has_its_header() {
        let mut answer = Answer::default();
        answer.clear();
        answer.u64(5);
        let bytes = answer.finish(9, 0);
        assert_eq!(bytes.len(), 24);
        assert_eq!(bytes[..4], 24u32.to_ne_bytes());
        assert_eq!(bytes[8..16], 9u64.to_ne_bytes());
        // An error carries nothing else.
        answer.u64(5);
        let bytes = answer.finish(9, libc::ENOENT);
        assert_eq!(bytes.len(), 16);
        assert_eq!(bytes[4..8], (-libc::ENOENT).to_ne_bytes());
    }

    #[test]
    fn device_numbers_round_trip() {
        for (major, minor) in [(0, 0), (1, 3), (8, 1), (4095, 0xf_ffff), (259, 300)] {
            let device = libc::makedev(major, minor);
            assert_eq!(decode_device(encode_device(device)), device, "{major}:{minor}");
        }
    }

    proptest! {
        #[test]
        fn any_message_is_survived(message: Vec<u8>) {
            if let Some(mut request) = Request::parse(&message) {
                while request.body.name().is_some() {}
                prop_assert!(request.body.u64().is_none() || request.body.bytes(1 << 40).is_none());
            }
        }
    }
}
