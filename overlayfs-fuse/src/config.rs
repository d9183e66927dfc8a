//! What was asked for, as plain data; and the text of mount options.
//!
//! # Option text
//! Options are separated by commas. `\,` and octal escapes (`\054`) put any byte
//! into a value. `lowerdir` is a list separated by colons; `\:` and `\\:` both
//! are a colon inside a path. A quoted `context="…"` may hold commas.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::overlay::xattr::Permissions;
use crate::overlay::{IdMap, Options, RedirectDir};

/// Most lower directories that are accepted, as with the peers.
pub const MAX_LOWERS: usize = 500;

/// The upper directory and its work directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpperDirs {
    /// Where changes go.
    pub upper: PathBuf,
    /// On the same file system, for what is being made.
    pub work: PathBuf,
}

/// Flags of the mount itself; `None` where nothing was said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountFlags {
    /// `ro` or `rw`.
    pub read_only: bool,
    /// `dev` or `nodev`.
    pub dev: Option<bool>,
    /// `suid` or `nosuid`.
    pub suid: Option<bool>,
    /// `exec` or `noexec`.
    pub exec: Option<bool>,
    /// `allow_other`.
    pub allow_other: bool,
    /// Not to mount, but to change the flags of the mount that is there.
    pub remount: bool,
}

/// How long the server may look for the next request before it sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpinTime {
    /// As suits the machine.
    #[default]
    Auto,
    /// At most this long, microseconds; 0 for never.
    Micros(u32),
}

/// A validated wish for a mount.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Lower directories, topmost first.
    pub lowers: Vec<PathBuf>,
    /// Upper and work directory; read-only without.
    pub upper: Option<UpperDirs>,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// How the union behaves.
    pub options: Options,
    /// Flags of the mount.
    pub flags: MountFlags,
    /// How long to spin.
    pub spin: SpinTime,
    /// Through io_uring, where the machine's root has switched it on.
    pub rings: bool,
    /// The kernel is to read files by itself.
    pub passthrough: bool,
    /// Where SIGUSR1 writes the counters; stderr without.
    pub stats: Option<PathBuf>,
    /// The source shown in /proc/mounts.
    pub source: Option<String>,
    /// Options nobody knows, to be named on stderr.
    pub ignored: Vec<String>,
}

/// Why options cannot be used. One line each, naming the option.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// No layers.
    #[error("no lowerdir given: use -o lowerdir=DIR[:DIR…]")]
    NoLower,
    /// Only one of two that belong together.
    #[error("upperdir is given without workdir: both are needed, on the same file system")]
    NoWork,
    /// Too many layers.
    #[error("{0} lower directories are given, at most {MAX_LOWERS} can be joined")]
    TooManyLowers(usize),
    /// A value that makes no sense.
    #[error("option {option}: {reason}")]
    Value {
        /// The option.
        option: String,
        /// What is wrong.
        reason: String,
    },
}

/// Options that peers and kernels know and that change nothing here, or are
/// promises we keep anyway.
const ACCEPTED: [&str; 27] = [
    "timeout",
    "threaded",
    "fast_ino",
    "static_nlink",
    "xino",
    "ino32_t",
    "context",
    "fscontext",
    "defcontext",
    "rootcontext",
    "plugins",
    "max_write",
    "max_read",
    // As /proc/mounts shows them, from where mount(8) takes what it does not change.
    "user_id",
    "group_id",
    "atime",
    "noatime",
    "relatime",
    "default_permissions",
    "auto_unmount",
    "async",
    "sync",
    "user",
    "nofail",
    "userxattr",
    "index",
    "metacopy",
];

impl Config {
    /// Adds the options of one `-o` argument.
    ///
    /// # Errors
    /// Names the first option whose value cannot be used.
    pub fn apply(&mut self, text: &[u8]) -> Result<(), ConfigError> {
        for option in split_options(text) {
            if !option.is_empty() {
                self.apply_one(option)?;
            }
        }
        Ok(())
    }

    fn apply_one(&mut self, option: &[u8]) -> Result<(), ConfigError> {
        let (key, value) = match option.iter().position(|b| *b == b'=') {
            Some(at) => (&option[..at], Some(&option[at + 1..])),
            None => (option, None),
        };
        let key = String::from_utf8_lossy(key).into_owned();
        let bad =
            |reason: &str| ConfigError::Value { option: key.clone(), reason: reason.to_owned() };
        let text = || {
            let value = value.filter(|v| !v.is_empty()).ok_or_else(|| bad("it needs a value"))?;
            String::from_utf8(unescape(value)).map_err(|_| bad("the value is not text"))
        };
        let number = || {
            text()?
                .parse::<u32>()
                .map_err(|_| bad("the value is not a number from 0 to 4294967295"))
        };
        let path = || {
            let value = value.filter(|v| !v.is_empty()).ok_or_else(|| bad("it needs a path"))?;
            Ok::<_, ConfigError>(PathBuf::from(OsString::from_vec(unescape_path(value))))
        };
        let owners = &mut self.options.owners;
        match key.as_str() {
            "lowerdir" => self.lowers = split_paths(value.unwrap_or_default()),
            "upperdir" => {
                let upper = path()?;
                self.upper_dirs().upper = upper;
            }
            "workdir" => {
                let work = path()?;
                self.upper_dirs().work = work;
            }
            "uidmapping" => owners.uids = IdMap::parse(&text()?).map_err(|e| bad(&e))?,
            "gidmapping" => owners.gids = IdMap::parse(&text()?).map_err(|e| bad(&e))?,
            "squash_to_root" => {
                (owners.squash_uid, owners.squash_gid) = (Some(0), Some(0));
            }
            "squash_to_uid" => owners.squash_uid = Some(number()?),
            "squash_to_gid" => owners.squash_gid = Some(number()?),
            "unmapped_root" => owners.unmapped_root = true,
            "kept_owners" => owners.kept_only = true,
            "public_lower" => self.options.public_lower = true,
            "xattr_permissions" => {
                self.options.permissions = match number()? {
                    0 => Permissions::Inode,
                    1 => Permissions::Privileged,
                    2 => Permissions::User,
                    _ => return Err(bad("the value is 0, 1 or 2")),
                };
            }
            "spin" => {
                self.spin = match text()?.as_str() {
                    "auto" => SpinTime::Auto,
                    "off" => SpinTime::Micros(0),
                    _ => SpinTime::Micros(number()?),
                };
            }
            "uring" => {
                self.rings = match text()?.as_str() {
                    "on" => true,
                    "off" => false,
                    _ => return Err(bad("the value is on or off")),
                };
            }
            "passthrough" => {
                self.passthrough = match text()?.as_str() {
                    "on" => true,
                    "off" => false,
                    _ => return Err(bad("the value is on or off")),
                };
            }
            "stats" => self.stats = Some(path()?),
            "upper_quota" => {
                let size = text()?;
                let bad = || bad("the value is a number of bytes, or one with K, M, G or T");
                self.options.upper_quota = Some(parse_size(&size).ok_or_else(bad)?);
            }
            "writeback" => {
                self.options.writeback = match value {
                    None | Some(b"1") => true,
                    Some(b"0") => false,
                    Some(_) => return Err(bad("the value is 0 or 1")),
                };
            }
            "volatile" => self.options.volatile = true,
            "fsync" => self.options.volatile = number()? == 0,
            "noacl" => self.options.no_acl = true,
            "noxattrs" => self.options.no_xattrs = value != Some(b"0"),
            "redirect_dir" => match text()?.as_str() {
                "on" => self.options.redirect_dir = RedirectDir::On,
                "off" | "follow" => self.options.redirect_dir = RedirectDir::Follow,
                "nofollow" => self.options.redirect_dir = RedirectDir::NoFollow,
                _ => return Err(bad("the value is on, off, follow or nofollow")),
            },
            "ro" => self.flags.read_only = true,
            "rw" => self.flags.read_only = false,
            "remount" => self.flags.remount = true,
            "dev" => self.flags.dev = Some(true),
            "nodev" => self.flags.dev = Some(false),
            "suid" => self.flags.suid = Some(true),
            "nosuid" => self.flags.suid = Some(false),
            "exec" => self.flags.exec = Some(true),
            "noexec" => self.flags.exec = Some(false),
            "allow_other" => self.flags.allow_other = true,
            "fsname" => self.source = Some(text()?),
            _ if ACCEPTED.contains(&key.as_str()) => {}
            _ => self.ignored.push(String::from_utf8_lossy(option).into_owned()),
        }
        Ok(())
    }

    fn upper_dirs(&mut self) -> &mut UpperDirs {
        self.upper.get_or_insert_with(|| UpperDirs { upper: PathBuf::new(), work: PathBuf::new() })
    }

    /// Checks what can be checked without touching the disk.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn check(mut self) -> Result<Self, ConfigError> {
        if self.flags.remount {
            // The layers are what they are.
            return Ok(self);
        }
        if self.lowers.is_empty() {
            return Err(ConfigError::NoLower);
        }
        if self.lowers.len() > MAX_LOWERS {
            return Err(ConfigError::TooManyLowers(self.lowers.len()));
        }
        if self.options.redirect_dir == RedirectDir::On && self.options.public_lower {
            return Err(ConfigError::Value {
                option: "redirect_dir".to_owned(),
                reason: "on cannot be combined with public_lower".to_owned(),
            });
        }
        if let Some(dirs) = &self.upper {
            if dirs.upper.as_os_str().is_empty() {
                // A work directory alone is of no use, and does no harm.
                self.upper = None;
            } else if dirs.work.as_os_str().is_empty() {
                return Err(ConfigError::NoWork);
            }
        }
        if self.passthrough && self.upper.is_some() {
            return Err(ConfigError::Value {
                option: "passthrough".to_owned(),
                reason: "on is for mounts without upperdir".to_owned(),
            });
        }
        // That there is no room left is to be told with the write.
        self.options.writeback &= self.upper.is_some() && self.options.upper_quota.is_none();
        if self.options.upper_quota.is_some() && self.upper.is_none() {
            return Err(ConfigError::Value {
                option: "upper_quota".to_owned(),
                reason: "there is no upperdir to bound".to_owned(),
            });
        }
        Ok(self)
    }
}

/// Bytes: a positive number, with K, M, G or T in units of 1024, 1024² …
fn parse_size(text: &str) -> Option<u64> {
    let (number, shift) = match text.as_bytes().last()?.to_ascii_uppercase() {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        b'T' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    // parse() would take a sign.
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    let number: u64 = if digits { number.parse().ok()? } else { return None };
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0)
}

/// Splits at commas that are neither escaped nor inside a quoted context.
fn split_options(text: &[u8]) -> Vec<&[u8]> {
    let mut out = Vec::new();
    let (mut start, mut at) = (0, 0);
    let mut quoted = false;
    while at < text.len() {
        match text[at] {
            b'\\' => at += 1,
            b'"' if quoted => quoted = false,
            b'"' if text[start..at].ends_with(b"context=") => quoted = true,
            b',' if !quoted => {
                out.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
        at += 1;
    }
    out.push(&text[start.min(text.len())..]);
    out
}

/// Takes back escapes: `\NNN` is a byte in octal, `\x` any other byte as it is.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'\\' {
            out.push(byte);
            rest = tail;
            continue;
        }
        let octal = tail.get(..3).and_then(|digits| {
            let text = std::str::from_utf8(digits).ok()?;
            if !text.bytes().all(|b| (b'0'..=b'7').contains(&b)) {
                return None;
            }
            u8::from_str_radix(text, 8).ok()
        });
        match (octal, tail.split_first()) {
            (Some(byte), _) => {
                out.push(byte);
                rest = &tail[3..];
            }
            (None, Some((&byte, tail))) => {
                out.push(byte);
                rest = tail;
            }
            (None, None) => {
                out.push(b'\\');
                rest = tail;
            }
        }
    }
    out
}

/// As [`unescape`]; besides, `\\:` is a colon.
fn unescape_path(text: &[u8]) -> Vec<u8> {
    split_paths_raw(text, false).into_iter().next().unwrap_or_default()
}

fn split_paths(text: &[u8]) -> Vec<PathBuf> {
    split_paths_raw(text, true)
        .into_iter()
        .filter(|p| !p.is_empty())
        .map(|p| PathBuf::from(OsString::from_vec(p)))
        .collect()
}

/// Splits at colons that no backslash precedes, if asked to; takes escapes back.
fn split_paths_raw(text: &[u8], split: bool) -> Vec<Vec<u8>> {
    let mut parts: Vec<Vec<u8>> = vec![Vec::new()];
    let mut raw: Vec<u8> = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with(b"\\\\:") {
            raw.extend_from_slice(b"\\:");
            at += 3;
        } else if rest[0] == b'\\' {
            raw.extend_from_slice(&rest[..rest.len().min(2)]);
            at += 2;
        } else if rest[0] == b':' && split {
            if let Some(last) = parts.last_mut() {
                *last = unescape(&raw);
            }
            raw.clear();
            parts.push(Vec::new());
            at += 1;
        } else {
            raw.push(rest[0]);
            at += 1;
        }
    }
    if let Some(last) = parts.last_mut() {
        *last = unescape(&raw);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(text: &str) -> Config {
        let mut config = Config::default();
        config.apply(text.as_bytes()).unwrap();
        config
    }

    #[test]
    fn lower_lists() {
        for (text, want) in [
            ("/a", vec!["/a"]),
            ("/a:/b:/c", vec!["/a", "/b", "/c"]),
            (r"/a\:b:/c", vec!["/a:b", "/c"]),
            (r"/a\\:b:/c", vec!["/a:b", "/c"]),
            (r"/a\054b", vec!["/a,b"]),
            (r"/a\,b:/c", vec!["/a,b", "/c"]),
            (r"/a\072b", vec!["/a:b"]),
            (r"/a\\b", vec![r"/a\b"]),
            ("/a::/b:", vec!["/a", "/b"]),
            (r"/a\", vec![r"/a\"]),
        ] {
            let got = config(&format!("lowerdir={text}")).lowers;
            assert_eq!(got, want.iter().map(PathBuf::from).collect::<Vec<_>>(), "{text}");
        }
    }

    #[test]
    fn upper_paths_take_colons_as_they_are() {
        let c = config(r"upperdir=/u:1\:2\\:3,workdir=/w\0541");
        assert_eq!(c.upper, Some(UpperDirs { upper: "/u:1:2:3".into(), work: "/w,1".into() }));
    }

    #[test]
    fn what_podman_sends() {
        let c = config(
            "lowerdir=/l/A:/l/B,upperdir=/d,workdir=/w,,volatile,\
             context=\"system_u:object_r:container_file_t:s0:c1,c2\",\
             uidmapping=:0:100000:65536,gidmapping=0:100000:65536:65536:1000:1,xattr_permissions=2",
        );
        assert_eq!(c.ignored, Vec::<String>::new());
        assert!(c.options.volatile);
        assert_eq!(c.options.owners.uids.shown(1), 100_001);
        assert_eq!(c.options.owners.gids.shown(65536), 1000);
        assert_eq!(c.options.permissions, Permissions::User);
    }

    #[test]
    fn sizes() {
        for (text, want) in [
            ("1", 1),
            ("4096", 4096),
            ("3k", 3 << 10),
            ("64M", 64 << 20),
            ("2G", 2 << 30),
            ("1T", 1 << 40),
        ] {
            let c = config(&format!("upper_quota={text}"));
            assert_eq!(c.options.upper_quota, Some(want), "{text}");
        }
        let error = config("lowerdir=/a,upper_quota=1M").check().unwrap_err().to_string();
        assert!(error.contains("upperdir"), "{error}");
    }

    #[test]
    fn a_remount_names_flags_and_no_layers() {
        let c = config("rw,nodev,noatime,remount,user_id=0,group_id=0,default_permissions,ro");
        let c = c.check().unwrap();
        assert!(c.flags.remount && c.flags.read_only && c.ignored.is_empty());
        assert!(!config("ro,remount,rw").check().unwrap().flags.read_only);
    }

    #[test]
    fn writing_back_takes_an_upper_without_a_bound() {
        let layers = "lowerdir=/a,upperdir=/u,workdir=/w";
        for (text, want) in [
            (layers.to_owned(), false),
            (format!("{layers},writeback"), true),
            (format!("{layers},writeback=1"), true),
            (format!("{layers},writeback=1,writeback=0"), false),
            (format!("writeback=1,{layers}"), true),
            (format!("writeback=1,upper_quota=1M,{layers}"), false),
            ("lowerdir=/a,writeback".to_owned(), false),
        ] {
            assert_eq!(config(&text).check().unwrap().options.writeback, want, "{text}");
        }
    }

    #[test]
    fn rings_are_asked_for() {
        for (text, want) in [("", false), ("uring=on", true), ("uring=on,uring=off", false)] {
            assert_eq!(config(text).rings, want, "{text}");
        }
    }

    #[test]
    fn unknown_options_are_kept_for_naming() {
        let c = config("lowerdir=/a,frobnicate=1,nosuchthing");
        assert_eq!(c.ignored, ["frobnicate=1", "nosuchthing"]);
    }

    #[test]
    fn wrong_values_are_refused_by_name() {
        for text in [
            "uidmapping=1:2",
            "gidmapping=x",
            "squash_to_uid=-1",
            "xattr_permissions=3",
            "upperdir=",
            "fsync",
            "redirect_dir=maybe",
            "uring=auto",
            "uring",
            "passthrough=auto",
            "passthrough",
            "writeback=",
            "writeback=2",
            "writeback=yes",
            "upper_quota=",
            "upper_quota=0",
            "upper_quota=-1",
            "upper_quota=1X",
            "upper_quota=M",
            "upper_quota=99999999999999T",
        ] {
            let error = Config::default().apply(text.as_bytes()).unwrap_err().to_string();
            let key = text.split('=').next().unwrap();
            assert!(error.contains(key), "{text}: {error}");
        }
        assert_eq!(config("upperdir=/u").check().unwrap_err(), ConfigError::NoLower);
        let both = config("lowerdir=/a,redirect_dir=on,public_lower").check().unwrap_err();
        assert!(both.to_string().contains("redirect_dir"), "{both}");
        let both = config("lowerdir=/a,upperdir=/u,workdir=/w,passthrough=on").check().unwrap_err();
        assert!(both.to_string().contains("passthrough"), "{both}");
        assert!(config("lowerdir=/a,workdir=/w,passthrough=on").check().unwrap().passthrough);
        assert_eq!(config("lowerdir=/a,upperdir=/u").check().unwrap_err(), ConfigError::NoWork);
        let many = vec!["/l"; MAX_LOWERS + 1].join(":");
        assert!(config(&format!("lowerdir={many}")).check().is_err());
        let most = vec!["/l"; MAX_LOWERS].join(":");
        assert!(config(&format!("lowerdir={most}")).check().is_ok());
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text: Vec<u8>) {
            drop(Config::default().apply(&text));
        }

        #[test]
        fn any_option_like_text_is_survived(
            text in "((lowerdir|upperdir|uidmapping|context|fsync)=?[\\\\:,\"0-9a-z/]{0,12},?){0,5}"
        ) {
            drop(Config::default().apply(text.as_bytes()));
        }

        /// Whatever the path holds, escaping its separators brings it back.
        #[test]
        fn escaped_paths_come_back(paths in proptest::collection::vec("/[ -~]{1,12}", 1..4)) {
            let escaped: Vec<String> = paths.iter().map(|p| p.bytes().map(|b| match b {
                b',' | b':' | b'\\' => format!("\\{b:03o}"),
                _ => char::from(b).to_string(),
            }).collect()).collect();
            let got = config(&format!("lowerdir={}", escaped.join(":"))).lowers;
            prop_assert_eq!(got, paths.iter().map(PathBuf::from).collect::<Vec<_>>());
        }
    }
}
