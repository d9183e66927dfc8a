//! Tar archives, read and written. Pure: bytes in, members out; nothing here
//! touches a file system.
//!
//! Sources followed: pax(1) (ustar and its extended headers), GNU tar's manual
//! (long names, old and PAX forms of sparse members), star's manual
//! (`SCHILY.xattr.`), the OCI image specification's layer.md.
//!
//! # Theory of operation
//!
//! An archive is a row of 512-byte blocks. A member is a header block and its
//! data, padded to whole blocks. Some headers only speak of the next one (PAX
//! records, GNU's long names): they are read up to a bound and applied to it.
//! [`Reader::next_member`] gives a member, [`Reader::read`] its data as they
//! are stored; what is not read is passed over by the next call. A sparse
//! member's data are the stored parts one after the other, and
//! [`Member::parts`] says where they belong.
//!
//! Whatever the archive says, memory is bounded ([`MOST_RECORDS`],
//! [`MOST_XATTRS`], [`MOST_PARTS`]), numbers are checked before they are added, and nothing
//! panics. Names are handed out as they stand in the archive: whoever makes
//! files of them must not believe them.

pub mod header;
mod pax;
pub mod write;

#[cfg(test)]
mod tests;

use std::io::{self, Read};

use header::{BLOCK, Raw};
use pax::Records;

/// Longest extended header, in bytes.
pub const MOST_RECORDS: u64 = 1 << 20;
/// Most extended attributes of a member; of their names and values together at most
/// [`MOST_RECORDS`] bytes.
pub const MOST_XATTRS: usize = 1024;
/// Longest map of a sparse member, in parts.
pub const MOST_PARTS: usize = 1 << 16;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// It cannot be read at all.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It ends before it should.
    #[error("the archive ends in the middle of {0}")]
    Short(&'static str),
    /// What it says makes no sense.
    #[error("{what} at byte {at} of the archive")]
    Bad {
        /// What is wrong.
        what: &'static str,
        /// Where the header begins.
        at: u64,
    },
}

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// Another name of a file that came before: [`Member::link`].
    HardLink,
    /// A symbolic link to [`Member::link`].
    Symlink,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// A point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Time {
    /// Seconds since 1970.
    pub seconds: i64,
    /// And nanoseconds, 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// Where a part of a file's data belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Its first byte in the file.
    pub offset: u64,
    /// How many.
    pub length: u64,
}

/// A member of an archive, as it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name, unchecked.
    pub name: Vec<u8>,
    /// What a link leads to, unchecked.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    /// User id.
    pub uid: u64,
    /// Group id.
    pub gid: u64,
    /// Time of the last change of its data.
    pub mtime: Time,
    /// Length of the file, with holes, in bytes.
    pub size: u64,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the stored data belong, in order and without overlap; what no
    /// part covers is zero.
    pub parts: Vec<Part>,
}

/// Reads an archive.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    /// Bytes taken so far.
    at: u64,
    /// Stored bytes of the current member not read yet.
    left: u64,
    /// Padding after them.
    padding: u64,
    /// Records for all that follow.
    global: Records,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Reads from the beginning of an archive.
    pub fn new(input: R) -> Self {
        Self { input, at: 0, left: 0, padding: 0, global: Records::default(), ended: false }
    }

    /// Where in the archive the current member's stored data begin, when none
    /// of them has been read.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// What the archive is read from: behind its end, once that has been reached.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// The next member; `None` at the end.
    ///
    /// # Errors
    /// [`TarError`]; nothing can be read after one.
    pub fn next_member(&mut self) -> Result<Option<Member>, TarError> {
        self.pass_over()?;
        let mut records = self.global.clone();
        let mut long_name = None;
        let mut long_link = None;
        let mut announced = false;
        loop {
            if self.ended {
                return Ok(None);
            }
            let at = self.at;
            let bad = |what| TarError::Bad { what, at };
            let Some(block) = self.block()? else {
                // Some writers leave the two empty blocks at the end out.
                self.ended = true;
                return if announced { Err(TarError::Short("a member")) } else { Ok(None) };
            };
            if block.iter().all(|byte| *byte == 0) {
                self.ended = true;
                return if announced { Err(TarError::Short("a member")) } else { Ok(None) };
            }
            announced = true;
            let raw = Raw::parse(&block).map_err(bad)?;
            match raw.kind {
                b'x' => records.read(&self.text(raw.size, at)?).map_err(bad)?,
                b'g' => {
                    announced = false;
                    let text = self.text(raw.size, at)?;
                    self.global.read(&text).map_err(bad)?;
                    records.read(&text).map_err(bad)?;
                }
                b'L' => long_name = Some(c_string(self.text(raw.size, at)?)),
                b'K' => long_link = Some(c_string(self.text(raw.size, at)?)),
                _ => {
                    let member = self.member(raw, records, long_name, long_link, at)?;
                    return Ok(Some(member));
                }
            }
        }
    }

    /// Reads stored data of the current member; 0 at their end.
    ///
    /// # Errors
    /// As of the input; [`TarError::Short`] when it ends too early.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.some(&mut buffer[..most])?;
        if count == 0 {
            return Err(TarError::Short("a member's data"));
        }
        self.left -= count as u64;
        Ok(count)
    }

    fn member(
        &mut self,
        raw: Raw,
        records: Records,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
        at: u64,
    ) -> Result<Member, TarError> {
        let bad = |what| TarError::Bad { what, at };
        let mut kind = header::kind(raw.kind).ok_or(bad("a member of an unknown kind"))?;
        let name = records.path.or(long_name).unwrap_or(raw.name);
        // Before POSIX, a directory was a file whose name ends in a slash.
        if kind == Kind::File && raw.kind != b'S' && name.ends_with(b"/") {
            kind = Kind::Directory;
        }
        // What only has a header has no data, whatever size it tells.
        let stored = if kind == Kind::File { records.size.unwrap_or(raw.size) } else { 0 };
        self.left = stored;
        self.padding = padding(stored);
        let mut member = Member {
            name,
            link: records.link.or(long_link).unwrap_or(raw.link),
            kind,
            mode: raw.mode & 0o7777,
            uid: records.uid.unwrap_or(raw.uid),
            gid: records.gid.unwrap_or(raw.gid),
            mtime: records.mtime.unwrap_or(Time { seconds: raw.mtime, nanoseconds: 0 }),
            size: stored,
            xattrs: records.xattrs,
            parts: Vec::new(),
        };
        let sparse = records.sparse;
        if kind == Kind::File && sparse.is_1_0() {
            member.parts = self.map_in_data(at)?;
            member.size = sparse.real_size.ok_or(bad("a sparse member without a size"))?;
            member.name = sparse.name.unwrap_or(member.name);
        } else if kind == Kind::File && sparse.is_0() {
            member.parts = sparse.parts().map_err(bad)?;
            member.size = sparse.real_size.ok_or(bad("a sparse member without a size"))?;
            member.name = sparse.name.unwrap_or(member.name);
        } else if raw.kind == b'S' {
            let (mut parts, mut more) = (raw.sparse.parts, raw.sparse.extended);
            while more {
                let block = self.block()?.ok_or(TarError::Short("a sparse member's map"))?;
                more = header::sparse_extension(&block, &mut parts).map_err(bad)?;
                if parts.len() > MOST_PARTS {
                    return Err(bad("a sparse member of too many parts"));
                }
            }
            member.parts = parts;
            member.size = raw.sparse.real_size;
        } else {
            if stored > 0 {
                member.parts = vec![Part { offset: 0, length: stored }];
            }
            return Ok(member);
        }
        check_parts(&mut member.parts, member.size, self.left).map_err(bad)?;
        Ok(member)
    }

    /// The map of a sparse member of GNU's format 1.0: decimal numbers, each on
    /// a line, before the data, padded to whole blocks.
    fn map_in_data(&mut self, at: u64) -> Result<Vec<Part>, TarError> {
        let bad = |what| TarError::Bad { what, at };
        let mut block = Vec::new();
        let mut position = 0;
        let mut number = |reader: &mut Self| -> Result<u64, TarError> {
            let mut digits = 0;
            let mut value = 0u64;
            loop {
                if position == block.len() {
                    let mut next = [0; BLOCK];
                    if reader.left < BLOCK as u64 {
                        return Err(TarError::Short("a sparse member's map"));
                    }
                    reader.exactly(&mut next, "a sparse member's map")?;
                    reader.left -= BLOCK as u64;
                    block = next.to_vec();
                    position = 0;
                }
                let byte = block[position];
                position += 1;
                match byte {
                    b'\n' if digits > 0 => return Ok(value),
                    b'0'..=b'9' if digits < 20 => {
                        digits += 1;
                        value = value
                            .checked_mul(10)
                            .and_then(|v| v.checked_add(u64::from(byte - b'0')))
                            .ok_or(bad("a number too large in a sparse member's map"))?;
                    }
                    _ => return Err(bad("a sparse member's map that is no list of numbers")),
                }
            }
        };
        let count = number(self)?;
        if count > MOST_PARTS as u64 {
            return Err(bad("a sparse member of too many parts"));
        }
        let mut parts = Vec::new();
        for _ in 0..count {
            parts.push(Part { offset: number(self)?, length: number(self)? });
        }
        Ok(parts)
    }

    /// Passes over what is left of the current member. Some writers (umoci's
    /// `insert`) leave out the padding of the last one, too.
    fn pass_over(&mut self) -> Result<(), TarError> {
        let mut scrap = [0; 16 * BLOCK];
        for (left, needed) in
            [(std::mem::take(&mut self.left), true), (std::mem::take(&mut self.padding), false)]
        {
            let mut left = left;
            while left > 0 {
                let most = usize::try_from(left).unwrap_or(usize::MAX).min(scrap.len());
                match self.some(&mut scrap[..most])? {
                    0 if needed => return Err(TarError::Short("a member's data")),
                    0 => break,
                    count => left -= count as u64,
                }
            }
        }
        Ok(())
    }

    /// The text of an extended header.
    fn text(&mut self, size: u64, at: u64) -> Result<Vec<u8>, TarError> {
        if size > MOST_RECORDS {
            return Err(TarError::Bad { what: "an extended header that is too long", at });
        }
        let length = usize::try_from(size).unwrap_or(0);
        let mut text = vec![0; length + padding(size) as usize];
        self.exactly(&mut text, "an extended header")?;
        text.truncate(length);
        Ok(text)
    }

    /// One block; `None` at the end of the input.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let first = self.some(&mut block)?;
        if first == 0 {
            return Ok(None);
        }
        self.exactly(&mut block[first..], "a header")?;
        Ok(Some(block))
    }

    fn exactly(&mut self, mut buffer: &mut [u8], what: &'static str) -> Result<(), TarError> {
        while !buffer.is_empty() {
            match self.some(buffer)? {
                0 => return Err(TarError::Short(what)),
                count => buffer = &mut buffer[count..],
            }
        }
        Ok(())
    }

    fn some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.input.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(count) => {
                    self.at += count as u64;
                    return Ok(count);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Parts that are empty are dropped; the others are in order, inside of the
/// file, and as long together as what is stored.
fn check_parts(parts: &mut Vec<Part>, size: u64, stored: u64) -> Result<(), &'static str> {
    parts.retain(|part| part.length > 0);
    let (mut end, mut sum) = (0u64, 0u64);
    for part in parts {
        let stop = part.offset.checked_add(part.length).ok_or("a sparse member's map overflows")?;
        if part.offset < end || stop > size {
            return Err("a sparse member's map is not in order");
        }
        end = stop;
        sum += part.length;
    }
    if sum == stored { Ok(()) } else { Err("a sparse member's map that does not fit its data") }
}

fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

/// What stands before the first NUL.
fn c_string(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}
