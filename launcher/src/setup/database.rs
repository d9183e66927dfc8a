//! Which graph driver Podman's database pins a store to.
//!
//! # Theory of operation
//!
//! Podman writes the driver of its store into its database when it makes the two, and
//! from then on takes that one whatever storage.conf says. Podman 4 has a file of bbolt,
//! Podman 5 one of SQLite. One value is wanted of them, so both are read as the file
//! formats say (<https://www.sqlite.org/fileformat2.html>; bbolt's `page.go`), bytes →
//! driver: no library of either is linked in for it, and nothing is locked or written.
//! Every number of the file is checked before it is followed, and no more pages are
//! visited than there are.

/// Why a database cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is no database that is understood here: {0}")]
pub struct Damaged(&'static str);

type Result<T> = std::result::Result<T, Damaged>;

/// What a number of the file says is `size` bytes from `at`.
fn part(bytes: &[u8], at: usize, size: usize) -> Result<&[u8]> {
    let end = at.checked_add(size).ok_or(Damaged("a length without bounds"))?;
    bytes.get(at..end).ok_or(Damaged("it ends too early"))
}

/// An unsigned number of at most 8 bytes, the most significant first.
fn big(bytes: &[u8], at: usize, size: usize) -> Result<u64> {
    Ok(part(bytes, at, size)?.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)))
}

/// The same, the least significant byte first.
fn little(bytes: &[u8], at: usize, size: usize) -> Result<u64> {
    Ok(part(bytes, at, size)?.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)))
}

fn index(number: u64) -> Result<usize> {
    usize::try_from(number).map_err(|_| Damaged("a number without bounds"))
}

fn text(bytes: &[u8]) -> Result<String> {
    String::from_utf8(bytes.to_owned()).map_err(|_| Damaged("a name that is no text"))
}

/// What libpod's `bolt_state.db` says; `None` where it says nothing.
///
/// # Errors
/// When the file is not one of bbolt's, or is damaged.
pub fn bolt(file: &[u8]) -> Result<Option<String>> {
    if file.is_empty() {
        return Ok(None);
    }
    let bolt = Bolt::open(file)?;
    let Some(bucket) = bolt.find(Tree::Pages(bolt.root), b"runtime-config")? else {
        return Ok(None);
    };
    // A bucket is the page of its root and a counter; a small one has its only page here.
    let tree = match little(bucket, 0, 8)? {
        0 => Tree::Inline(bucket.get(16..).ok_or(Damaged("it ends too early"))?),
        root => Tree::Pages(root),
    };
    bolt.find(tree, b"graph-driver-name")?.map(text).transpose()
}

struct Bolt<'a> {
    file: &'a [u8],
    page_size: usize,
    root: u64,
}

#[derive(Clone, Copy)]
enum Tree<'a> {
    Pages(u64),
    Inline(&'a [u8]),
}

impl<'a> Bolt<'a> {
    /// The size of what stands before a page's, and of each of its, elements.
    const HEADER: usize = 16;
    const BRANCH: u64 = 1;
    const LEAF: u64 = 2;

    /// By the newer one of the two descriptions that is whole.
    fn open(file: &'a [u8]) -> Result<Self> {
        let first = Self::description(file, 0);
        let size = first.as_ref().map_or(4096, |(_, of)| of.page_size);
        let all = [first, Self::description(file, size)];
        let newest = all.into_iter().flatten().max_by_key(|(transaction, _)| *transaction);
        newest.map(|(_, bolt)| bolt).ok_or(Damaged("neither description of it is whole"))
    }

    fn description(file: &'a [u8], page: usize) -> Result<(u64, Self)> {
        const MAGIC: u64 = 0xED0C_DAED;
        let at = page + Self::HEADER;
        let sum = part(file, at, 56)?.iter().fold(0xCBF2_9CE4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3)
        });
        if little(file, at, 4)? != MAGIC || little(file, at + 4, 4)? != 2 {
            return Err(Damaged("it is not of bbolt"));
        }
        if little(file, at + 56, 8)? != sum {
            return Err(Damaged("a description that is not whole"));
        }
        let page_size = index(little(file, at + 8, 4)?)?;
        let bolt = Self { file, page_size, root: little(file, at + 16, 8)? };
        Ok((little(file, at + 48, 8)?, bolt))
    }

    /// The value of `key`: the last child that does not begin behind it, down to a leaf.
    fn find(&self, tree: Tree<'a>, key: &[u8]) -> Result<Option<&'a [u8]>> {
        let mut page = match tree {
            Tree::Pages(root) => self.page(root)?,
            Tree::Inline(page) => page,
        };
        // No tree of 64 levels has found room in a file.
        for _level in 0..64 {
            let count = index(little(page, 10, 2)?)?;
            match little(page, 8, 2)? {
                Self::LEAF => {
                    for element in (1..=count).map(|at| at * Self::HEADER) {
                        let at = element + index(little(page, element + 4, 4)?)?;
                        let key_size = index(little(page, element + 8, 4)?)?;
                        if part(page, at, key_size)? == key {
                            let size = index(little(page, element + 12, 4)?)?;
                            return part(page, at + key_size, size).map(Some);
                        }
                    }
                    return Ok(None);
                }
                Self::BRANCH => {
                    let mut child = None;
                    for element in (1..=count).map(|at| at * Self::HEADER) {
                        let at = element + index(little(page, element, 4)?)?;
                        let size = index(little(page, element + 4, 4)?)?;
                        if child.is_some() && part(page, at, size)? > key {
                            break;
                        }
                        child = Some(little(page, element + 8, 8)?);
                    }
                    page = self.page(child.ok_or(Damaged("a page without children"))?)?;
                }
                _ => return Err(Damaged("a page of another kind")),
            }
        }
        Err(Damaged("its pages have no end"))
    }

    /// From the page's begin on: values may go on in the pages behind it.
    fn page(&self, number: u64) -> Result<&'a [u8]> {
        let at = index(number)?.checked_mul(self.page_size);
        at.and_then(|at| self.file.get(at..)).ok_or(Damaged("a page that is not there"))
    }
}

/// What Podman's `db.sql` says; `None` where it says nothing.
///
/// # Errors
/// When the file is not one of SQLite's, or is damaged.
pub fn sqlite(file: &[u8]) -> Result<Option<String>> {
    if file.is_empty() {
        return Ok(None);
    }
    let sqlite = Sqlite::open(file)?;
    // The first page is the table of tables: kind, name, table, root page, SQL text.
    let mut config = None;
    sqlite.rows(1, &mut |row| {
        let is = |at: usize, word: &str| {
            row.get(at).is_some_and(|value| value.eq_ignore_ascii_case(word.as_bytes()))
        };
        if is(0, "table") && is(1, "DBConfig") {
            let (root, sql) = (row.get(3), row.get(4));
            let (root, sql) = root.zip(sql).ok_or(Damaged("a table without a place"))?;
            if root.len() > 8 {
                return Err(Damaged("a table without a place"));
            }
            config = Some((big(root, 0, root.len())?, text(sql)?));
        }
        Ok(())
    })?;
    let Some((root, sql)) = config else { return Ok(None) };
    let column = columns(&sql).position(|name| name.eq_ignore_ascii_case("GraphDriver"));
    let column = column.ok_or(Damaged("DBConfig has no GraphDriver"))?;
    let mut driver = None;
    sqlite.rows(root, &mut |row| {
        let value = row.get(column).filter(|value| !value.is_empty());
        driver = value.map(|value| text(value)).transpose()?.or(driver.take());
        Ok(())
    })?;
    Ok(driver)
}

/// The first words between the parentheses of `CREATE TABLE`, which are the columns'
/// names and, behind them, what begins a constraint.
fn columns(sql: &str) -> impl Iterator<Item = &str> {
    let inner = sql.split_once('(').map_or("", |(_, inner)| inner);
    let mut depth = 0;
    let parts = inner.split(move |letter| {
        depth += i32::from(letter == '(') - i32::from(letter == ')');
        letter == ',' && depth == 0
    });
    let quotes = ['"', '`', '[', ']', '\''];
    parts.map(move |part| part.split_whitespace().next().unwrap_or("").trim_matches(quotes))
}

struct Sqlite<'a> {
    file: &'a [u8],
    page_size: usize,
    /// Bytes of a page that are in use: some are left to extensions.
    usable: usize,
}

impl<'a> Sqlite<'a> {
    fn open(file: &'a [u8]) -> Result<Self> {
        if part(file, 0, 16)? != b"SQLite format 3\0" {
            return Err(Damaged("it is not of SQLite"));
        }
        let page_size = match big(file, 16, 2)? {
            1 => 65536,
            size => index(size)?,
        };
        let usable = page_size.checked_sub(index(big(file, 20, 1)?)?);
        let usable = usable.filter(|usable| *usable >= 480 && page_size.is_power_of_two());
        let usable = usable.ok_or(Damaged("pages of no size"))?;
        // 0: nothing is in it yet.
        if big(file, 56, 4)? > 1 {
            return Err(Damaged("its text is not UTF-8"));
        }
        Ok(Self { file, page_size, usable })
    }

    fn page(&self, number: u64) -> Result<&'a [u8]> {
        let before = index(number)?.checked_sub(1).ok_or(Damaged("a page that is not there"))?;
        let at = before.checked_mul(self.page_size).ok_or(Damaged("a page that is not there"))?;
        part(self.file, at, self.page_size)
    }

    /// Every row of the table whose tree has this root, as the bytes of its values.
    fn rows(&self, root: u64, each: &mut dyn FnMut(&[&[u8]]) -> Result<()>) -> Result<()> {
        let mut left = self.file.len() / self.page_size;
        let mut next = vec![root];
        while let Some(number) = next.pop() {
            left = left.checked_sub(1).ok_or(Damaged("its pages have no end"))?;
            let page = self.page(number)?;
            // In the first page the header of the file comes first.
            let header = if number == 1 { 100 } else { 0 };
            let cells = index(big(page, header + 3, 2)?)?;
            let (table, leaf) = match big(page, header, 1)? {
                0x05 => (header + 12, false),
                0x0D => (header + 8, true),
                _ => return Err(Damaged("a page of another kind")),
            };
            let mut children = Vec::new();
            for cell in 0..cells {
                let at = index(big(page, table + 2 * cell, 2)?)?;
                if leaf {
                    values(&self.payload(page, at)?, each)?;
                } else {
                    children.push(big(page, at, 4)?);
                }
            }
            if !leaf {
                children.push(big(page, header + 8, 4)?);
            }
            next.extend(children.into_iter().rev());
        }
        Ok(())
    }

    /// A row as it is stored: its begin in the page, the rest in a chain of others.
    fn payload(&self, page: &'a [u8], at: usize) -> Result<Vec<u8>> {
        let (size, at) = varint(page, at)?;
        let (_row, at) = varint(page, at)?;
        let size = index(size)?;
        if size > self.file.len() {
            return Err(Damaged("a row that is longer than the file"));
        }
        let most = self.usable - 35;
        let least = (self.usable - 12) * 32 / 255 - 23;
        let here = if size <= most {
            size
        } else {
            let fit = least + (size - least) % (self.usable - 4);
            if fit <= most { fit } else { least }
        };
        let mut row = part(page, at, here)?.to_owned();
        let mut next = if here < size { big(page, at + here, 4)? } else { 0 };
        // Ends: every page adds to the row, whose size is bounded.
        while row.len() < size {
            let more = self.page(next)?;
            let take = (size - row.len()).min(self.usable - 4);
            row.extend_from_slice(part(more, 4, take)?);
            next = big(more, 0, 4)?;
        }
        Ok(row)
    }
}

/// Takes a row apart: the kinds of its values, then the values.
fn values(row: &[u8], each: &mut dyn FnMut(&[&[u8]]) -> Result<()>) -> Result<()> {
    let (end, mut at) = varint(row, 0)?;
    let end = index(end)?;
    let (mut value, mut found) = (end, Vec::new());
    while at < end {
        let (kind, behind) = varint(row, at)?;
        let size = match kind {
            0 | 8 | 9 => 0,
            1..=4 => index(kind)?,
            5 => 6,
            6 | 7 => 8,
            10 | 11 => return Err(Damaged("a value of no kind")),
            // Even numbers are bytes, odd ones text.
            _ => index((kind - 12) / 2)?,
        };
        found.push(part(row, value, size)?);
        (at, value) = (behind, value + size);
    }
    each(&found)
}

/// A number of one to nine bytes, seven bits each but for the ninth; and what is behind.
fn varint(bytes: &[u8], at: usize) -> Result<(u64, usize)> {
    let mut number = 0_u64;
    let rest = bytes.get(at..).unwrap_or_default();
    for (count, byte) in rest.iter().take(9).enumerate() {
        if count == 8 {
            return Ok((number << 8 | u64::from(*byte), at + 9));
        }
        number = number << 7 | u64::from(byte & 0x7F);
        if byte & 0x80 == 0 {
            return Ok((number, at + count + 1));
        }
    }
    Err(Damaged("it ends too early"))
}

#[cfg(test)]
mod tests;
