//! Where copies came from, and the index of those that have several names.
//!
//! # Theory of operation
//! A copy remembers its origin in an attribute. `WORKDIR/links.coracle` is the index
//! of copied-up hard links: an entry per inode of a lower that had several names,
//! itself one more hard link to the copy. Its name, the *key*, says which inode it was.
//! How many names exist in lowers only is kept in another attribute of the copy.
//!
//! What can have no attributes (symbolic links and special files without privilege,
//! anything on a file system that has none) is in the index even with a single name,
//! and its attributes are in a *record* (the number alone, where a file has attributes
//! that cannot be changed: its owner may not write it, and that is who serves): a symbolic link `iINO`, INO being the inode
//! number of the copy, whose target is `KEY COUNT`. As long as the entry of that key is
//! the copy the number cannot be another's; a record without such an entry is void.
//!
//! Where names were removed before anything was copied up, `KEY.lost` is a symbolic
//! link whose target is their number; an entry of that key makes it void.
//!
//! Before the last name of a copy in the index goes, its place is noted: in the work
//! directory a symbolic link `last-KEY`, whose target is the name's path in the upper
//! behind an `n`, or an `l` where only a lower has the name. Whoever finds one at the mount
//! looks whether it came to that, and then empties the place in the index.
//!
//! What is written here may be anybody's: numbers that no file system has say nothing.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, RenameFlags, readlinkat, renameat2};
use nix::sys::stat::{FileStat, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use super::object::Object;
use super::upper::Upper;
use super::whiteout::marker_name;
use crate::error::{During, Error, Result};
use crate::layer::open_beneath;
use crate::sync::Arc;
use crate::sys;

/// The lower file an upper file was copied from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// Which lower, counted from the bottom one.
    pub(crate) from_bottom: usize,
    pub(crate) ino: u64,
}

impl Origin {
    /// Its name in the index of hard links.
    pub(crate) fn key(self) -> OsString {
        format!("{}-{:x}", self.from_bottom, self.ino).into()
    }

    fn parse_key(key: &str) -> Option<Self> {
        let (layer, ino) = key.split_once('-')?;
        Some(Self { from_bottom: parse_layer(layer)?, ino: u64::from_str_radix(ino, 16).ok()? })
    }

    pub(crate) fn format(self) -> String {
        format!("{}:{}", self.from_bottom, self.ino)
    }

    pub(crate) fn parse(value: &[u8]) -> Option<Self> {
        let (layer, ino) = std::str::from_utf8(value).ok()?.split_once(':')?;
        Some(Self { from_bottom: parse_layer(layer)?, ino: ino.parse().ok()? })
    }
}

/// What a copy remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Past {
    pub(crate) origin: Origin,
    /// How many names exist in lowers only, where it is in the index.
    pub(crate) delta: Option<i64>,
    /// It is the index that remembers, by the copy's inode number.
    pub(crate) recorded: bool,
}

impl Past {
    fn parse_record(target: &OsStr) -> Option<Self> {
        let (key, delta) = target.to_str()?.split_once(' ')?;
        let delta = Some(parse_number(delta)?);
        Some(Self { origin: Origin::parse_key(key)?, delta, recorded: true })
    }
}

impl Upper {
    /// Records where a copy came from; `false` where the copy cannot hold it.
    pub(crate) fn set_origin(&self, object: &Object, origin: Origin) -> Result<bool> {
        self.set_private(object, "coracle.origin", origin.format().as_bytes())
    }

    /// Records how many names exist in lowers only, of the copy that the index has,
    /// or is to have, under `key`.
    pub(crate) fn set_nlink_delta(&self, object: &Object, key: &OsStr, delta: i64) -> Result<()> {
        const OP: &str = "record the names of a copy";
        let stat = fstat(object.as_fd()).during("stat a copy")?;
        if self.set_private(object, "coracle.nlink", delta.to_string().as_bytes())? {
            return self.remove_note(&record_name(stat.st_ino), OP);
        }
        let mut target = key.to_owned();
        target.push(format!(" {delta}"));
        self.put_note(&record_name(stat.st_ino), &target, OP)
    }

    /// Sets an attribute of ours; `false` where the object cannot have one.
    fn set_private(&self, object: &Object, name: &str, value: &[u8]) -> Result<bool> {
        match object.set_attribute(&self.attribute(name), value, 0) {
            Ok(()) => Ok(true),
            // EPERM: attributes of the user exist on files and directories only. EACCES: and
            // only who may write a file may set them.
            Err(Errno::EOPNOTSUPP | Errno::EPERM | Errno::EACCES) => Ok(false),
            Err(errno) => Err(Error::Layer { op: "record the origin of a copy", errno }),
        }
    }

    fn private_at(&self, dir: BorrowedFd<'_>, file: &OsStr, name: &str) -> Result<Option<Vec<u8>>> {
        match sys::getxattr_at(dir, file, &self.attribute(name)) {
            Ok(value) => Ok(Some(value)),
            Err(
                Errno::ENODATA | Errno::EOPNOTSUPP | Errno::EPERM | Errno::EACCES | Errno::ENOENT,
            ) => Ok(None),
            Err(errno) => Err(Error::Layer { op: "read an attribute of the upper", errno }),
        }
    }

    /// What the copy `file` of status `stat` in `dir` remembers; `None` for what was
    /// born in the upper.
    pub(crate) fn past(
        &self,
        dir: BorrowedFd<'_>,
        file: &OsStr,
        stat: &FileStat,
    ) -> Result<Option<Past>> {
        let value = self.private_at(dir, file, "coracle.origin")?;
        if let Some(origin) = value.and_then(|v| Origin::parse(&v)) {
            // Only a copied-up hard link keeps a count of names.
            let mut delta = parse_delta(self.private_at(dir, file, "coracle.nlink")?);
            if stat.st_nlink > 1 {
                delta = self.recorded_delta(&origin.key(), stat.st_ino)?.or(delta);
            }
            return Ok(Some(Past { origin, delta, recorded: false }));
        }
        // Its place in the index is one more name.
        if stat.st_nlink > 1 { self.record(stat.st_ino) } else { Ok(None) }
    }

    fn record(&self, ino: u64) -> Result<Option<Past>> {
        match readlinkat(&self.links, record_name(ino).as_os_str()) {
            Ok(target) => Ok(Past::parse_record(&target)),
            Err(Errno::ENOENT | Errno::EINVAL) => Ok(None),
            Err(errno) => Err(Error::Layer { op: "look into the link index", errno }),
        }
    }

    /// How many names exist in lowers only of the copy that the index has under `key`.
    pub(crate) fn linked_nlink_delta(&self, key: &OsStr, stat: &FileStat) -> Result<i64> {
        if let Some(delta) = self.recorded_delta(key, stat.st_ino)? {
            return Ok(delta);
        }
        let value = self.private_at(self.links.as_fd(), key, "coracle.nlink")?;
        Ok(parse_delta(value).unwrap_or(0))
    }

    /// What a record says of that: it is younger than an attribute.
    fn recorded_delta(&self, key: &OsStr, ino: u64) -> Result<Option<i64>> {
        let past = self.record(ino)?.filter(|past| *past.origin.key() == *key);
        Ok(past.and_then(|past| past.delta))
    }

    /// Whether the index of hard links has `object` under `key`.
    pub(crate) fn link_is(&self, key: &OsStr, object: (u64, u64)) -> Result<bool> {
        match fstatat(&self.links, key, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok((stat.st_dev, stat.st_ino) == object),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(Error::Layer { op: "look into the link index", errno }),
        }
    }

    /// Empties the place `key` of the index, where the copy `ino` is.
    pub(crate) fn remove_link(&self, key: &OsStr, ino: u64) -> Result<()> {
        const OP: &str = "empty a place in the link index";
        unlinkat(&self.links, key, UnlinkatFlags::NoRemoveDir).during(OP)?;
        self.remove_note(&record_name(ino), OP)
    }

    /// Notes that the last name of the copy `key`, `path` in the upper, is about to go;
    /// `named`: it is there, and not in a lower only. A path that a symbolic link cannot
    /// hold is not noted: after a crash the copy would then stay in the index.
    pub(crate) fn note_last(&self, key: &OsStr, path: &Path, named: bool) -> Result<()> {
        let mut text = OsString::from(if named { "n" } else { "l" });
        text.push(path);
        self.forget_last(key)?;
        match symlinkat(text.as_os_str(), &self.work, last_name(key).as_os_str()) {
            Ok(()) | Err(Errno::ENAMETOOLONG) => Ok(()),
            Err(errno) => Err(Error::Layer { op: "note that a last name goes", errno }),
        }
    }

    /// Takes the note back: it came to nothing, or is done.
    pub(crate) fn forget_last(&self, key: &OsStr) -> Result<()> {
        match unlinkat(&self.work, last_name(key).as_os_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(Error::Layer { op: "forget that a last name goes", errno }),
        }
    }

    /// Ends what the note `name` in the work directory says was begun, if it is one.
    pub(super) fn settle_last(&self, name: &OsStr) -> Result<()> {
        let key = name.to_str().and_then(|name| name.strip_prefix(LAST));
        let Some(key) = key.filter(|key| Origin::parse_key(key).is_some()) else { return Ok(()) };
        let Ok(text) = readlinkat(&self.work, name) else { return Ok(()) };
        let named = match text.as_bytes().first() {
            Some(b'n') => true,
            Some(b'l') => false,
            _ => return Ok(()),
        };
        let path = Path::new(OsStr::from_bytes(&text.as_bytes()[1..]));
        let key = OsStr::new(key);
        let (Ok(entry), Some(last)) =
            (fstatat(&self.links, key, AtFlags::AT_SYMLINK_NOFOLLOW), path.file_name())
        else {
            return Ok(());
        };
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => {
                match open_beneath(self.root.as_fd(), dir) {
                    Ok(dir) => Arc::new(dir),
                    Err(_) => return Ok(()),
                }
            }
            _ => Arc::clone(&self.root),
        };
        let at = |name: &OsStr| fstatat(&dir, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        let gone = match at(last) {
            Ok(stat) => (stat.st_dev, stat.st_ino) != (entry.st_dev, entry.st_ino),
            Err(Errno::ENOENT) => named || at(&marker_name(last)).is_ok(),
            Err(_) => false,
        };
        if gone { self.remove_link(key, entry.st_ino) } else { Ok(()) }
    }

    /// How many names a lower file has lost that was never copied up.
    pub(crate) fn lost_names(&self, key: &OsStr) -> Result<i64> {
        match readlinkat(&self.links, lost_name(key).as_os_str()) {
            Ok(number) => Ok(number.to_str().and_then(parse_number).unwrap_or(0).max(0)),
            Err(Errno::ENOENT | Errno::EINVAL) => Ok(0),
            Err(errno) => Err(Error::Layer { op: "look into the link index", errno }),
        }
    }

    /// Records what `number` says then; with `None` that there is nothing to record.
    pub(crate) fn set_lost_names(
        &self,
        key: &OsStr,
        number: impl FnOnce() -> Option<i64>,
    ) -> Result<()> {
        const OP: &str = "record how many names are lost";
        let _lost = self.lost.lock().expect("no panic while it is locked");
        let name = lost_name(key);
        match number() {
            Some(number) => self.put_note(&name, OsStr::new(&number.to_string()), OP),
            None => self.remove_note(&name, OP),
        }
    }

    /// Has the index say `text` under `name`, whatever it said there before.
    fn put_note(&self, name: &OsStr, text: &OsStr, op: &'static str) -> Result<()> {
        let temp = self.temp_name();
        symlinkat(text, &self.work, temp.as_os_str()).during(op)?;
        let flags = RenameFlags::empty();
        if let Err(errno) = renameat2(&self.work, temp.as_os_str(), &self.links, name, flags) {
            self.discard(&temp)?;
            return Err(Error::Layer { op, errno });
        }
        Ok(())
    }

    fn remove_note(&self, name: &OsStr, op: &'static str) -> Result<()> {
        match unlinkat(&self.links, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(Error::Layer { op, errno }),
        }
    }
}

/// What notes of last names begin with.
const LAST: &str = "last-";

fn last_name(key: &OsStr) -> OsString {
    let mut name = OsString::from(LAST);
    name.push(key);
    name
}

fn lost_name(key: &OsStr) -> OsString {
    let mut name = key.to_owned();
    name.push(".lost");
    name
}

fn record_name(ino: u64) -> OsString {
    format!("i{ino:x}").into()
}

fn parse_delta(value: Option<Vec<u8>>) -> Option<i64> {
    parse_number(std::str::from_utf8(&value?).ok()?)
}

/// A number of names: with 31 bits of it can be counted without bounds being met.
fn parse_number(text: &str) -> Option<i64> {
    text.parse::<i32>().ok().map(i64::from)
}

/// Which lower: there are at most some hundred.
fn parse_layer(text: &str) -> Option<usize> {
    text.parse::<u16>().ok().map(usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_without_bounds_say_nothing() {
        for value in ["18446744073709551615:5", "65536:5", "-1:5", "1:-5", "1", ":", "1:2:3"] {
            assert_eq!(Origin::parse(value.as_bytes()), None, "{value}");
        }
        for record in ["0-1 9223372036854775807", "0-1 -9223372036854775808", "65536-1 1", "0 1"] {
            assert_eq!(Past::parse_record(OsStr::new(record)), None, "{record}");
        }
        assert_eq!(parse_delta(Some(b"2147483648".to_vec())), None);
        assert_eq!(parse_delta(Some(b"-3".to_vec())), Some(-3));
    }

    proptest! {
        #[test]
        fn origins_round_trip(from_bottom in 0usize..500, ino: u64, delta: i32) {
            let origin = Origin { from_bottom, ino };
            prop_assert_eq!(Origin::parse(origin.format().as_bytes()), Some(origin));
            let mut record = origin.key();
            record.push(format!(" {delta}"));
            prop_assert_eq!(Past::parse_record(&record), Some(Past { origin, delta: Some(i64::from(delta)), recorded: true }));
        }

        #[test]
        fn anything_on_disk_is_survived(value: Vec<u8>) {
            if let Some(origin) = Origin::parse(&value) {
                prop_assert_eq!(Origin::parse(origin.format().as_bytes()), Some(origin));
            }
            if let Some(past) = Past::parse_record(OsStr::from_bytes(&value)) {
                prop_assert!(past.delta.is_some());
            }
            parse_delta(Some(value));
        }
    }
}
