//! PAX records: `LENGTH KEY=VALUE\n`, LENGTH counting all of it, in decimal.

use super::{MOST_PARTS, MOST_RECORDS, MOST_XATTRS, Part, Time};

/// What the records of a member, and those before it, say.
#[derive(Debug, Clone, Default)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Sparse,
}

/// What they say of a sparse member.
#[derive(Debug, Clone, Default)]
pub(super) struct Sparse {
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    major: Option<u64>,
    minor: Option<u64>,
    /// Numbers of the map, of formats 0.0 and 0.1.
    map: Option<Vec<u64>>,
}

impl Records {
    /// Takes over all records of a header.
    pub(super) fn read(&mut self, mut text: &[u8]) -> Result<(), &'static str> {
        const FORM: &str = "an extended header that is no list of records";
        // A list of numbers replaces that of an earlier header.
        let mut numbers: Option<Vec<u64>> = None;
        while !text.is_empty() {
            let space = text.iter().position(|byte| *byte == b' ').ok_or(FORM)?;
            let length = natural(&text[..space]).and_then(|n| usize::try_from(n).ok());
            let length = length.filter(|n| *n > space + 1 && *n <= text.len()).ok_or(FORM)?;
            let record = text[space + 1..length].strip_suffix(b"\n").ok_or(FORM)?;
            text = &text[length..];
            let equals = record.iter().position(|byte| *byte == b'=').ok_or(FORM)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            self.one(key, value, &mut numbers)?;
        }
        if numbers.is_some() {
            self.sparse.map = numbers;
        }
        Ok(())
    }

    fn one(
        &mut self,
        key: &[u8],
        value: &[u8],
        numbers: &mut Option<Vec<u64>>,
    ) -> Result<(), &'static str> {
        const NUMBER: &str = "an extended header with a number that is none";
        let number = || natural(value).ok_or(NUMBER);
        let optional = || if value.is_empty() { Ok(None) } else { number().map(Some) };
        let text = || {
            // A name that ends early means another one to the kernel.
            if value.contains(&0) {
                return Err("an extended header with a NUL in a name");
            }
            Ok(Some(value.to_vec()).filter(|value| !value.is_empty()))
        };
        match key {
            b"path" => self.path = text()?,
            b"linkpath" => self.link = text()?,
            b"size" => self.size = optional()?,
            b"uid" => self.uid = optional()?,
            b"gid" => self.gid = optional()?,
            b"mtime" => self.mtime = if value.is_empty() { None } else { Some(time(value)?) },
            b"GNU.sparse.name" => self.sparse.name = text()?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.real_size = Some(number()?),
            b"GNU.sparse.major" => self.sparse.major = Some(number()?),
            b"GNU.sparse.minor" => self.sparse.minor = Some(number()?),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let numbers = numbers.get_or_insert_default();
                // They come in pairs.
                if numbers.len().is_multiple_of(2) != (key == b"GNU.sparse.offset") {
                    return Err("a sparse member's map that is no list of pairs");
                }
                numbers.push(number()?);
                if numbers.len() > 2 * MOST_PARTS {
                    return Err("a sparse member of too many parts");
                }
            }
            b"GNU.sparse.map" => {
                let list: Option<Vec<u64>> = value.split(|b| *b == b',').map(natural).collect();
                *numbers = Some(if value.is_empty() { Vec::new() } else { list.ok_or(NUMBER)? });
            }
            _ => {
                let name = key.strip_prefix(b"SCHILY.xattr.").filter(|name| !name.is_empty());
                if let Some(name) = name {
                    self.xattrs.retain(|(other, _)| other != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                    // Headers add up until the member comes, and global ones for ever.
                    let bytes: usize = self.xattrs.iter().map(|(n, v)| n.len() + v.len()).sum();
                    if self.xattrs.len() > MOST_XATTRS || bytes as u64 > MOST_RECORDS {
                        return Err("a member of too many extended attributes");
                    }
                }
            }
        }
        Ok(())
    }
}

impl Sparse {
    /// The map stands before the data.
    pub(super) fn is_1_0(&self) -> bool {
        (self.major, self.minor) == (Some(1), Some(0))
    }

    /// The map is in the records.
    pub(super) fn is_0(&self) -> bool {
        self.map.is_some()
    }

    pub(super) fn parts(&self) -> Result<Vec<Part>, &'static str> {
        let map = self.map.as_deref().unwrap_or_default();
        if map.len() > 2 * MOST_PARTS || !map.len().is_multiple_of(2) {
            return Err("a sparse member's map that is no list of pairs");
        }
        let part = |pair: &[u64]| Part { offset: pair[0], length: pair[1] };
        Ok(map.chunks_exact(2).map(part).collect())
    }
}

/// A decimal number without a sign.
fn natural(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, byte| match byte {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// Seconds since 1970, perhaps with a sign and a fraction, rounded down.
fn time(text: &[u8]) -> Result<Time, &'static str> {
    const FORM: &str = "an extended header with a time that is none";
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut halves = text.splitn(2, |byte| *byte == b'.');
    let whole = halves.next().and_then(natural).and_then(|n| i64::try_from(n).ok()).ok_or(FORM)?;
    let fraction = halves.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(FORM);
    }
    let digit = |place: usize| fraction.get(place).map_or(0, |byte| u32::from(byte - b'0'));
    let nanoseconds = (0..9).fold(0, |value, place| value * 10 + digit(place));
    Ok(match (negative, nanoseconds) {
        (false, nanoseconds) => Time { seconds: whole, nanoseconds },
        (true, 0) => Time { seconds: -whole, nanoseconds: 0 },
        (true, nanoseconds) => {
            Time { seconds: -whole - 1, nanoseconds: 1_000_000_000 - nanoseconds }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_every_kind() {
        let mut records = Records::default();
        records
            .read(b"14 path=a\nb/c\n15 size=123456\n23 mtime=12.5000000009\n18 mtime=-1.25000\n23 SCHILY.xattr.u.a==b\n9 uid=77\n")
            .unwrap();
        assert_eq!(records.path.as_deref(), Some(&b"a\nb/c"[..]));
        assert_eq!((records.size, records.uid), (Some(123_456), Some(77)));
        assert_eq!(records.mtime, Some(Time { seconds: -2, nanoseconds: 750_000_000 }));
        assert_eq!(records.xattrs, [(b"u.a".to_vec(), b"=b".to_vec())]);
    }

    #[test]
    fn attributes_of_many_headers_are_bounded_together() {
        let record = |name: &str, value: &str| {
            let rest = format!(" SCHILY.xattr.{name}={value}\n");
            let digits = (rest.len() + 7).to_string().len();
            let length = rest.len() + digits;
            assert_eq!(length.to_string().len(), digits, "a length that counts itself");
            format!("{length}{rest}")
        };
        let large = "x".repeat(500_000);
        let mut records = Records::default();
        for name in ["user.a", "user.b"] {
            records.read(record(name, &large).as_bytes()).unwrap();
        }
        // The same one again takes no more room.
        records.read(record("user.a", &large).as_bytes()).unwrap();
        assert!(records.read(record("user.c", &large).as_bytes()).is_err());
        let mut records = Records::default();
        for number in 0..MOST_XATTRS {
            records.read(record(&format!("user.{number}"), "").as_bytes()).unwrap();
        }
        assert!(records.read(record("user.more", "").as_bytes()).is_err());
    }

    #[test]
    fn broken_records_are_refused() {
        for text in [
            &b"x"[..],
            b"5 a=b",
            b"6 a=b\n7 a=b",
            b"99 a=b\n",
            b"0 a=b\n",
            b"2 \n",
            b"6 a=bc",
            b"7 a.bc\n",
            b"99999999999999999999 a=b\n",
            b"12 path=a\0b\n",
            b"10 size=x\n",
            b"11 mtime=-\n",
            b"25 GNU.sparse.numbytes=1\n",
        ] {
            assert!(Records::default().read(text).is_err(), "{:?}", String::from_utf8_lossy(text));
        }
    }
}
