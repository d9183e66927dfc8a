//! One header block: ustar, GNU's, and what came before both.

use super::{Kind, Part};

/// Length of a block, in bytes.
pub const BLOCK: usize = 512;

/// The fields of a header that count.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Raw {
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) kind: u8,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) size: u64,
    pub(super) mtime: i64,
    pub(super) sparse: RawSparse,
}

/// GNU's old form of a sparse member.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct RawSparse {
    pub(super) parts: Vec<Part>,
    pub(super) extended: bool,
    pub(super) real_size: u64,
}

/// What a type flag stands for.
pub(super) fn kind(flag: u8) -> Option<Kind> {
    Some(match flag {
        // 7: a contiguous file, for whoever knows what that is.
        b'0' | 0 | b'7' | b'S' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        _ => return None,
    })
}

impl Raw {
    pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Self, &'static str> {
        let told = number(&block[148..156]).ok_or("a header whose checksum is no number")?;
        let byte = |i: usize| if (148..156).contains(&i) { b' ' } else { block[i] };
        let unsigned: i64 = (0..BLOCK).map(|i| i64::from(byte(i))).sum();
        // Some old writers took bytes for signed numbers.
        let signed: i64 = (0..BLOCK).map(|i| i64::from(byte(i) as i8)).sum();
        if told != unsigned && told != signed {
            return Err("a header whose checksum is wrong");
        }
        let natural =
            |field: &[u8], what| number(field).and_then(|n| u64::try_from(n).ok()).ok_or(what);
        let gnu = &block[257..265] == b"ustar  \0";
        let posix = &block[257..263] == b"ustar\0";
        let mut name = string(&block[..100]);
        if posix && block[345] != 0 {
            let mut whole = string(&block[345..500]);
            whole.push(b'/');
            whole.extend(name);
            name = whole;
        }
        let kind = block[156];
        let mut sparse = RawSparse::default();
        if kind == b'S' {
            if !gnu {
                return Err("a sparse member in an archive that is not GNU's");
            }
            sparse_parts(&block[386..482], &mut sparse.parts)?;
            sparse.extended = block[482] != 0;
            sparse.real_size = natural(&block[483..495], "a sparse member without a size")?;
        }
        let bits = number(&block[100..108]).ok_or("a mode that is no number")?;
        Ok(Self {
            name,
            link: string(&block[157..257]),
            kind,
            mode: (bits & 0o7777) as u32,
            uid: natural(&block[108..116], "a user id that is no number")?,
            gid: natural(&block[116..124], "a group id that is no number")?,
            size: natural(&block[124..136], "a size that is no number")?,
            mtime: number(&block[136..148]).ok_or("a time that is no number")?,
            sparse,
        })
    }
}

/// One more block of a sparse member's map; whether another follows.
pub(super) fn sparse_extension(
    block: &[u8; BLOCK],
    parts: &mut Vec<Part>,
) -> Result<bool, &'static str> {
    sparse_parts(&block[..504], parts)?;
    Ok(block[504] != 0)
}

fn sparse_parts(fields: &[u8], parts: &mut Vec<Part>) -> Result<(), &'static str> {
    for field in fields.chunks_exact(24) {
        if field[0] == 0 || field[12] == 0 {
            break;
        }
        let natural = |field| number(field).and_then(|n| u64::try_from(n).ok());
        match (natural(&field[..12]), natural(&field[12..])) {
            (Some(offset), Some(length)) => parts.push(Part { offset, length }),
            _ => return Err("a sparse member's map that is no list of numbers"),
        }
    }
    Ok(())
}

/// Octal digits between blanks, or GNU's base 256: the first bit set, the rest
/// a big-endian number in two's complement. An empty field is 0.
fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = i128::from(field[0] & 0x3f);
        if negative {
            value -= 0x40;
        }
        for byte in &field[1..] {
            value = value.checked_mul(256)?.checked_add(i128::from(*byte))?;
        }
        return i64::try_from(value).ok();
    }
    let blank = |byte: &u8| *byte == b' ' || *byte == 0;
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(blank).unwrap_or(digits.len());
    digits[..end].iter().try_fold(0i64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })
}

fn string(field: &[u8]) -> Vec<u8> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    field[..end].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"777777777777", Some((1 << 36) - 1)),
            (b"\x80\0\0\0\0\0\0\x02\0\0\0\0", Some(8 << 30)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"12x\0\0\0\0\0", None),
            (b"-1\0\0\0\0\0\0", None),
            (b"888\0\0\0\0\0", None),
        ] {
            assert_eq!(number(field), value, "{field:?}");
        }
    }
}
