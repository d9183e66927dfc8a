//! Writing archives: ustar headers, and PAX records for what these cannot hold.

use std::io::{self, Write};

use super::header::BLOCK;
use super::{Kind, Member, Time, padding};

/// Largest number in a field of seven octal digits.
const SEVEN: u64 = 0o777_7777;
/// Largest number in a field of eleven octal digits.
const ELEVEN: u64 = 0o777_7777_7777;

/// Writes an archive. The data of a member, exactly [`Member::size`] bytes of
/// them, are written between its header and [`Writer::pad`].
#[derive(Debug)]
pub struct Writer<W> {
    output: W,
}

impl<W: Write> Writer<W> {
    /// Begins an archive.
    pub fn new(output: W) -> Self {
        Self { output }
    }

    /// Writes the headers of a member, without its sparse parts.
    ///
    /// # Errors
    /// As of the output.
    pub fn header(&mut self, member: &Member) -> io::Result<()> {
        let records = records(member);
        if !records.is_empty() {
            let name = b"PaxHeaders/records";
            let header = block(b'x', name, b"", 0o644, 0, 0, records.len() as u64, 0);
            self.output.write_all(&header)?;
            self.output.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        let flag = match member.kind {
            Kind::File => b'0',
            Kind::HardLink => b'1',
            Kind::Symlink => b'2',
            Kind::CharDevice => b'3',
            Kind::BlockDevice => b'4',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
        };
        let seconds = u64::try_from(member.mtime.seconds).unwrap_or(0);
        let header = block(
            flag,
            &member.name,
            &member.link,
            member.mode,
            member.uid,
            member.gid,
            member.size,
            seconds,
        );
        self.output.write_all(&header)
    }

    /// Writes data of a member.
    ///
    /// # Errors
    /// As of the output.
    pub fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)
    }

    /// Fills the last block of `size` bytes of data.
    ///
    /// # Errors
    /// As of the output.
    pub fn pad(&mut self, size: u64) -> io::Result<()> {
        let zeros = [0; BLOCK];
        self.output.write_all(&zeros[..padding(size) as usize])
    }

    /// A small file, whole.
    ///
    /// # Errors
    /// As of the output.
    pub fn file(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        self.header(&Member {
            name: name.as_bytes().to_vec(),
            link: Vec::new(),
            kind: Kind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            size: content.len() as u64,
            xattrs: Vec::new(),
            parts: Vec::new(),
        })?;
        self.data(content)?;
        self.pad(content.len() as u64)
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// As of the output.
    pub fn finish(mut self) -> io::Result<W> {
        self.output.write_all(&[0; 2 * BLOCK])?;
        self.output.flush()?;
        Ok(self.output)
    }
}

/// What the header's fields cannot hold.
fn records(member: &Member) -> Vec<u8> {
    let mut records = Vec::new();
    let mut add = |key: &[u8], value: &[u8]| {
        // The length counts its own digits.
        let rest = key.len() + value.len() + 3;
        let digits = |n: usize| n.to_string().len();
        let mut length = rest + digits(rest);
        if rest + digits(length) != length {
            length = rest + digits(length);
        }
        records.extend(length.to_string().as_bytes());
        records.push(b' ');
        records.extend(key);
        records.push(b'=');
        records.extend(value);
        records.push(b'\n');
    };
    if member.name.len() > 100 {
        add(b"path", &member.name);
    }
    if member.link.len() > 100 {
        add(b"linkpath", &member.link);
    }
    for (key, value, most) in [
        (&b"size"[..], member.size, ELEVEN),
        (b"uid", member.uid, SEVEN),
        (b"gid", member.gid, SEVEN),
    ] {
        if value > most {
            add(key, value.to_string().as_bytes());
        }
    }
    let Time { seconds, nanoseconds } = member.mtime;
    let plain = nanoseconds == 0 && u64::try_from(seconds).is_ok_and(|s| s <= ELEVEN);
    if !plain {
        let text = match (seconds < 0, nanoseconds) {
            (true, 1..) => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
            (_, 0) => format!("{seconds}"),
            (false, _) => format!("{seconds}.{nanoseconds:09}"),
        };
        add(b"mtime", text.as_bytes());
    }
    for (name, value) in &member.xattrs {
        add(&[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    records
}

#[expect(clippy::too_many_arguments, reason = "they are the header's fields")]
fn block(
    flag: u8,
    name: &[u8],
    link: &[u8],
    mode: u32,
    uid: u64,
    gid: u64,
    size: u64,
    seconds: u64,
) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    // What does not fit stands in a record.
    let cut = |text: &'_ [u8]| text.len().min(100);
    block[..cut(name)].copy_from_slice(&name[..cut(name)]);
    block[157..157 + cut(link)].copy_from_slice(&link[..cut(link)]);
    let mut octal = |at: usize, digits: usize, value: u64| {
        let text = format!("{value:0digits$o}");
        block[at..at + digits].copy_from_slice(text.as_bytes());
    };
    let or_zero = |value, most| if value <= most { value } else { 0 };
    octal(100, 7, u64::from(mode & 0o7777));
    octal(108, 7, or_zero(uid, SEVEN));
    octal(116, 7, or_zero(gid, SEVEN));
    octal(124, 11, or_zero(size, ELEVEN));
    octal(136, 11, or_zero(seconds, ELEVEN));
    block[156] = flag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}
