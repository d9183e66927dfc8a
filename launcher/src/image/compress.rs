//! Compressed streams, told apart by how they begin.

use std::io::{self, BufRead, Read};

use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

/// Most memory that a stream may ask for to be unpacked: what zstd and xz need
/// at their highest ordinary levels.
const MEMORY: u64 = 128 << 20;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// The .xz file format of the XZ utilities.
    Xz,
}

impl Compression {
    /// How a stream that begins with these bytes is compressed.
    #[must_use]
    pub fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or one that decoders pass over.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            _ => Self::None,
        }
    }
}

/// The content of a stream, however it is compressed, and how it is.
///
/// # Errors
/// As of the input.
pub fn content<'a>(
    mut input: impl BufRead + Send + 'a,
) -> io::Result<(Compression, Box<dyn Read + Send + 'a>)> {
    let compression = Compression::of(input.fill_buf()?);
    Ok((
        compression,
        match compression {
            Compression::None => Box::new(input),
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
            Compression::Zstd => Box::new(Zstd::new(input)),
            Compression::Xz => {
                let memory = (MEMORY / 1024) as u32;
                Box::new(lzma_rust2::XzReader::new_mem_limit(input, true, memory))
            }
        },
    ))
}

/// A row of frames, one after the other.
struct Zstd<R: BufRead> {
    state: State<R>,
}

#[expect(clippy::large_enum_variant, reason = "there is one of them for each stream")]
enum State<R: BufRead> {
    /// Between two frames.
    Between(R),
    Within(StreamingDecoder<R, FrameDecoder>),
    /// The end, or an error.
    Ended,
}

impl<R: BufRead> Zstd<R> {
    fn new(input: R) -> Self {
        Self { state: State::Between(input) }
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(&mut self.state, State::Ended) {
                State::Ended => return Ok(0),
                State::Between(mut input) => {
                    let start = input.fill_buf()?;
                    if start.is_empty() {
                        return Ok(0);
                    }
                    if matches!(start, [0x50..=0x5f, ..]) {
                        pass_over(&mut input)?;
                        self.state = State::Between(input);
                        continue;
                    }
                    let frame = StreamingDecoder::new_with_max_window_size(input, MEMORY).map_err(
                        |error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
                    )?;
                    self.state = State::Within(frame);
                }
                State::Within(mut frame) => match frame.read(buffer)? {
                    0 => self.state = State::Between(frame.into_inner()),
                    count => {
                        self.state = State::Within(frame);
                        return Ok(count);
                    }
                },
            }
        }
    }
}

/// Passes over a skippable frame: 4 bytes of magic, 4 of length, little-endian.
fn pass_over(input: &mut impl BufRead) -> io::Result<()> {
    let mut head = [0; 8];
    input.read_exact(&mut head)?;
    let length = u64::from(u32::from_le_bytes([head[4], head[5], head[6], head[7]]));
    if io::copy(&mut input.take(length), &mut io::sink())? == length {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// Ends with an error when more comes than was allowed.
#[derive(Debug)]
pub struct Bounded<R> {
    input: R,
    left: u64,
    most: u64,
}

impl<R> Bounded<R> {
    /// Lets `most` bytes pass.
    pub fn new(input: R, most: u64) -> Self {
        Self { input, left: most, most }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        match self.left.checked_sub(count as u64) {
            Some(left) => {
                self.left = left;
                Ok(count)
            }
            None => Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("it unpacks to more than {} bytes (see --max-size)", self.most),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    fn by(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        assert!(output.status.success());
        output.stdout
    }

    fn read(bytes: &[u8]) -> io::Result<(Compression, Vec<u8>)> {
        let (compression, mut content) = content(bytes)?;
        let mut all = Vec::new();
        content.read_to_end(&mut all)?;
        drop(content);
        Ok((compression, all))
    }

    #[test]
    fn every_compression_is_told_and_read() {
        let text: Vec<u8> =
            (0..300_000u32).flat_map(|n| (n.wrapping_mul(n) / 7).to_le_bytes()).collect();
        for (program, want) in
            [("gzip", Compression::Gzip), ("zstd", Compression::Zstd), ("xz", Compression::Xz)]
        {
            let once = by(program, &["-c"], &text);
            assert_eq!(read(&once).unwrap(), (want, text.clone()));
            // Two streams one after the other are one.
            let twice = [once.clone(), once.clone()].concat();
            assert_eq!(read(&twice).unwrap().1.len(), 2 * text.len());
            for cut in [once.len() - 1, once.len() / 2, 10] {
                assert!(read(&once[..cut]).is_err(), "{program} {cut}");
            }
        }
        assert_eq!(read(&text).unwrap(), (Compression::None, text));
        assert_eq!(read(b"").unwrap(), (Compression::None, Vec::new()));
    }

    #[test]
    fn what_would_take_much_memory_is_refused() {
        let long = by("zstd", &["-c", "--ultra", "-22", "--long=31"], &vec![7; 300 << 10]);
        // Of a stream the tool knows no length: the window is as large as asked for.
        assert!(read(&long).is_err());
        let xz = by("xz", &["-c", "--lzma2=preset=0,dict=1GiB"], b"x");
        assert!(read(&xz).is_err());
    }

    #[test]
    fn skippable_frames_are_passed_over() {
        let skipped = [&[0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9][..]].concat();
        let stream = [skipped.clone(), by("zstd", &["-c"], b"text"), skipped.clone()].concat();
        assert_eq!(read(&stream).unwrap().1, b"text");
        assert!(read(&skipped[..9]).is_err());
    }

    #[test]
    fn no_more_than_allowed_comes() {
        let read = |most| {
            let mut all = Vec::new();
            Bounded::new(&b"0123456789"[..], most).read_to_end(&mut all).map(|_| all.len())
        };
        assert_eq!(read(10).unwrap(), 10);
        assert!(read(9).unwrap_err().to_string().contains("more than 9 bytes"));
    }
}
