//! Digests, as the OCI image specification writes them (descriptor.md): the
//! algorithm, a colon, the hash in lower-case hexadecimal. SHA-256 alone is
//! taken: it is the one that every tool must know, and is what all of them write.

use std::fmt;
use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The SHA-256 of some bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// Reads `sha256:HEX`.
    ///
    /// # Errors
    /// A reason, when it is something else.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("sha256", hex)) => Self::of_hex(hex)
                .ok_or_else(|| format!("'{text}' is not a digest: 64 lower-case hex digits")),
            Some((algorithm, _)) => Err(format!(
                "the digest '{text}' is of the kind '{algorithm}'; only sha256 is known"
            )),
            None => Err(format!("'{text}' is not a digest, as sha256:HEX")),
        }
    }

    /// Takes 64 lower-case hexadecimal digits.
    #[must_use]
    pub fn of_hex(hex: &str) -> Option<Self> {
        let sound = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (hex.len() == 64 && hex.bytes().all(sound)).then(|| Self(hex.to_owned()))
    }

    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut hash = Sha256::new();
        hash.update(bytes);
        Self::take(hash)
    }

    fn take(hash: Sha256) -> Self {
        Self(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The hash alone: a file name.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0
    }

    /// The first 12 digits, as people use them.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Passes bytes on, and knows digest and number of those that have passed.
#[derive(Debug)]
pub struct Hashing<T> {
    inner: T,
    hash: Sha256,
    bytes: u64,
}

impl<T> Hashing<T> {
    /// Nothing has passed yet.
    pub fn new(inner: T) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }

    /// How many bytes have passed.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What is behind it, the digest of all that has passed, and how many bytes that was.
    pub fn finish(self) -> (T, Digest, u64) {
        (self.inner, Digest::take(self.hash), self.bytes)
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-2, appendix B.1.
    const ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn the_digest_of_known_bytes() {
        assert_eq!(Digest::of(b"abc").to_string(), ABC);
        let mut reader = Hashing::new(&b"abc"[..]);
        io::copy(&mut reader, &mut io::sink()).unwrap();
        let (_, digest, bytes) = reader.finish();
        assert_eq!((digest.to_string().as_str(), bytes), (ABC, 3));
        assert_eq!(digest.short(), "ba7816bf8f01");
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        let hex = "a".repeat(64);
        assert!(Digest::parse(&format!("sha256:{hex}")).is_ok());
        for text in [
            String::new(),
            hex.clone(),
            format!("sha512:{hex}"),
            format!("sha256:{}", "A".repeat(64)),
            format!("sha256:{}/", "a".repeat(63)),
            format!("sha256:../../{}", "a".repeat(58)),
            format!("sha256:{hex}a"),
        ] {
            assert!(Digest::parse(&text).is_err(), "{text}");
            assert!(serde_json::from_value::<Digest>(text.clone().into()).is_err(), "{text}");
        }
    }
}
