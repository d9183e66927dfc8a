//! Which files a container's processes reach, for Landlock (landlock(7)). Pure: rights
//! and their numbers; [`crate::sys::landlock`] hands them to the kernel.
//!
//! # Theory of operation
//!
//! A rule allows something below a path; what no rule allows is denied. The container's
//! root is beneath "/", with all that is mounted in it, and nothing else is: whatever a
//! process gets hold of that lies elsewhere (a directory of the host's that came as
//! standard input, a way out through /proc) it cannot open. Mounts cannot be changed any
//! more by whoever is under such rules.
//!
//! Versions of the kernel's interface brought more rights (linux/landlock.h). What a
//! kernel does not know it does not deny. Version 1 denies moving files between
//! directories whatever the rules say, which no package manager would survive: rules are
//! used from version 2 on.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The first version of use.
pub const FIRST: u32 = 2;
/// The version that knows of TCP ports.
pub const PORTS: u32 = 4;

const EXECUTE: u64 = 1 << 0;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
/// From REMOVE_DIR (4) to MAKE_SYM (12).
const CHANGE_DIR: u64 = 0x1ff << 4;
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;
/// Rights over what is no directory.
const OF_FILES: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;

/// What may be done with files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// Files are read, directories listed, devices spoken to.
    pub read: bool,
    /// Files are written, made, moved and removed.
    pub write: bool,
    /// Programs are executed.
    pub execute: bool,
}

impl Access {
    /// Everything.
    pub const ALL: Self = Self { read: true, write: true, execute: true };

    /// The bits of it that version `version` knows; for a file those that files have.
    #[must_use]
    pub fn bits(self, version: u32, directory: bool) -> u64 {
        let mut bits = 0;
        if self.read {
            bits |= READ_FILE | READ_DIR | IOCTL_DEV;
        }
        if self.write {
            bits |= WRITE_FILE | CHANGE_DIR | REFER | TRUNCATE | IOCTL_DEV;
        }
        if self.execute {
            bits |= EXECUTE;
        }
        bits & handled(version) & if directory { u64::MAX } else { OF_FILES }
    }

    /// Both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            read: self.read || other.read,
            write: self.write || other.write,
            execute: self.execute || other.execute,
        }
    }

    /// In words, as "read and execute".
    #[must_use]
    pub fn words(self) -> String {
        let words = [(self.read, "read"), (self.write, "write"), (self.execute, "execute")];
        let held: Vec<&str> = words.iter().filter(|(held, _)| *held).map(|(_, w)| *w).collect();
        if held.is_empty() { "nothing".to_owned() } else { held.join(", ") }
    }
}

/// All rights over files of a version.
#[must_use]
pub fn handled(version: u32) -> u64 {
    let rights = match version {
        0 => 0,
        1 => 13,
        2 => 14,
        3 | 4 => 15,
        _ => 16,
    };
    (1 << rights) - 1
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beneath {
    /// Inside the container; what is not there is passed over.
    pub path: PathBuf,
    /// What may be done with it and all below it.
    pub access: Access,
}

/// The rules of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// Version of the kernel's interface, at least [`FIRST`].
    pub version: u32,
    /// Files.
    pub beneath: Vec<Beneath>,
    /// Abstract UNIX sockets of others are out of reach, where the kernel can (version 6):
    /// for containers that share the host's network.
    pub own_sockets: bool,
    /// The TCP ports that may be connected to; all when absent. From [`PORTS`] on.
    pub connect: Option<Vec<u16>>,
    /// The TCP ports that may be listened on; all when absent. From [`PORTS`] on.
    pub bind: Option<Vec<u16>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_those_a_version_knows() {
        assert_eq!(handled(2), 0x3fff);
        assert_eq!(handled(7), 0xffff);
        for version in 2..9 {
            assert_eq!(Access::ALL.bits(version, true), handled(version));
            let file = Access::ALL.bits(version, false);
            assert_eq!(file & !(OF_FILES & handled(version)), 0);
        }
        let read = Access { read: true, write: false, execute: false };
        assert_eq!(read.bits(3, true), READ_FILE | READ_DIR);
        assert_eq!(read.bits(7, false), READ_FILE | IOCTL_DEV);
        let write = Access { write: true, ..read };
        assert_eq!(write.bits(7, true) & EXECUTE, 0);
        assert_eq!(read.words(), "read");
        assert_eq!(Access::ALL.words(), "read, write, execute");
    }
}
