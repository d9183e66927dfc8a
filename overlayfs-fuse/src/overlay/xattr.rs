//! Extended attributes of our own: which are hidden, and what they hold.
//!
//! | attribute | holds |
//! | --- | --- |
//! | `{user,trusted}.overlay.*` | as in the kernel's overlay; all hidden |
//! | `….overlay.coracle.origin` | the lower file an upper file was copied from |
//! | `….overlay.coracle.nlink` | names of it that exist only in lower layers |
//! | `user.containers.override_stat` … | owner, mode and type, with `xattr_permissions` |

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Whether an attribute is bookkeeping and must neither be shown nor set.
#[must_use]
pub fn is_private(name: &OsStr) -> bool {
    const PREFIXES: [&[u8]; 3] = [b"user.overlay.", b"trusted.overlay.", b"user.fuseoverlayfs."];
    const NAMES: [&[u8]; 2] =
        [b"user.containers.override_stat", b"security.fuseoverlayfs.override_stat"];
    let name = name.as_bytes();
    PREFIXES.iter().any(|p| name.starts_with(p)) || NAMES.contains(&name)
}

/// The capabilities of a file (capabilities(7)).
pub const CAPABILITY: &str = "security.capability";

/// The access control list of a file (acl(5)).
pub const ACL_ACCESS: &str = "system.posix_acl_access";

/// The permission bits that an access control list of owner, group and others
/// only stands for; None for any other list. Little-endian, after
/// include/uapi/linux/posix_acl_xattr.h: a version (2, 4 bytes), then entries of
/// tag (2 bytes), permissions (2) and id (4).
#[must_use]
pub fn minimal_acl(value: &[u8]) -> Option<u32> {
    let (version, entries) = value.split_at_checked(4)?;
    if version != [2, 0, 0, 0] || entries.len() != 24 {
        return None;
    }
    let mut mode = 0;
    // ACL_USER_OBJ, ACL_GROUP_OBJ, ACL_OTHER.
    for (entry, (tag, shift)) in entries.chunks_exact(8).zip([(0x01, 6), (0x04, 3), (0x20, 0)]) {
        if u16::from_le_bytes([entry[0], entry[1]]) != tag || entry[2] > 7 || entry[3] != 0 {
            return None;
        }
        mode |= u32::from(entry[2]) << shift;
    }
    Some(mode)
}

/// The list that new entries of a directory get (acl(5)).
pub const ACL_DEFAULT: &str = "system.posix_acl_default";

/// An attribute's value with the ids inside it mapped: those of named users and
/// groups in an access control list, and the user that a capability belongs to
/// (`rootid` of `struct vfs_ns_cap_data`, include/uapi/linux/capability.h). Values
/// of any other attribute, or of another form, stay as they are.
///
/// # Errors
/// What `user` and `group` say.
pub fn map_ids<E>(
    name: &OsStr,
    value: &mut [u8],
    user: impl Fn(u32) -> Result<u32, E>,
    group: impl Fn(u32) -> Result<u32, E>,
) -> Result<(), E> {
    let id = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    if name == ACL_ACCESS || name == ACL_DEFAULT {
        let Some((version, entries)) = value.split_at_mut_checked(4) else { return Ok(()) };
        if version != [2, 0, 0, 0] {
            return Ok(());
        }
        for entry in entries.chunks_exact_mut(8) {
            let mapped = match u16::from_le_bytes([entry[0], entry[1]]) {
                // ACL_USER, ACL_GROUP; the others name nobody.
                0x02 => user(id(&entry[4..]))?,
                0x08 => group(id(&entry[4..]))?,
                _ => continue,
            };
            entry[4..].copy_from_slice(&mapped.to_le_bytes());
        }
    } else if name == CAPABILITY && value.len() == 24 && value[3] == 3 {
        // VFS_CAP_REVISION_3: the id is the last of six words.
        let mapped = user(id(&value[20..]))?;
        value[20..].copy_from_slice(&mapped.to_le_bytes());
    }
    Ok(())
}

/// Owner, mode and type that an attribute holds in place of the inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverrideStat {
    /// User id, as on disk (before mapping).
    pub uid: u32,
    /// Group id, as on disk (before mapping).
    pub gid: u32,
    /// Permission bits, set-id and sticky bits.
    pub mode: u32,
    /// `S_IFMT` bits, where the attribute names a type.
    pub kind: Option<u32>,
    /// Device number, of a device.
    pub rdev: u64,
}

impl OverrideStat {
    /// Parses `uid:gid:mode[:type[-major-minor]]`, mode in octal.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?.trim_end_matches('\0');
        let mut fields = text.split(':');
        let uid = fields.next()?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let mode = u32::from_str_radix(fields.next()?, 8).ok()? & 0o7777;
        let (mut kind, mut rdev) = (None, 0);
        if let Some(kind_text) = fields.next() {
            let mut parts = kind_text.split('-');
            kind = Some(match parts.next()? {
                "file" => libc::S_IFREG,
                "dir" => libc::S_IFDIR,
                "symlink" => libc::S_IFLNK,
                "pipe" => libc::S_IFIFO,
                "socket" => libc::S_IFSOCK,
                "block" => libc::S_IFBLK,
                "char" => libc::S_IFCHR,
                _ => return None,
            });
            if let Some(major) = parts.next() {
                // Nothing else has a device number.
                kind.filter(|kind| [libc::S_IFBLK, libc::S_IFCHR].contains(kind))?;
                let major: u32 = major.parse().ok()?;
                let minor: u32 = parts.next()?.parse().ok()?;
                rdev = libc::makedev(major, minor);
            }
            if parts.next().is_some() {
                return None;
            }
        }
        if fields.next().is_some() {
            return None;
        }
        Some(Self { uid, gid, mode, kind, rdev })
    }

    /// The attribute's value.
    #[must_use]
    pub fn format(&self) -> String {
        let Self { uid, gid, mode, kind, rdev } = *self;
        let base = format!("{uid}:{gid}:0{mode:o}");
        let device = || format!("-{}-{}", libc::major(rdev), libc::minor(rdev));
        match kind {
            None => base,
            Some(libc::S_IFDIR) => base + ":dir",
            Some(libc::S_IFLNK) => base + ":symlink",
            Some(libc::S_IFIFO) => base + ":pipe",
            Some(libc::S_IFSOCK) => base + ":socket",
            Some(libc::S_IFBLK) => base + ":block" + &device(),
            Some(libc::S_IFCHR) => base + ":char" + &device(),
            Some(_) => base + ":file",
        }
    }
}

/// The attribute by which an owner is set that the kernel cannot pass on.
pub const OWNER: &str = "user.containers.override_stat";

/// Parses `uid:gid`, of which an empty one stands for no change.
#[must_use]
pub fn parse_owner(value: &[u8]) -> Option<(Option<u32>, Option<u32>)> {
    let (uid, gid) = std::str::from_utf8(value).ok()?.split_once(':')?;
    // -1 is the kernel's way to say "no change", and nobody's id.
    let id = |text: &str| match text {
        "" => Some(None),
        text => text.parse().ok().filter(|id| *id != u32::MAX).map(Some),
    };
    Some((id(uid)?, id(gid)?))
}

/// Which attributes hold owner and mode; the value of `xattr_permissions`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Permissions {
    /// None: the inode does.
    #[default]
    Inode,
    /// `xattr_permissions=1`: an attribute only real privilege can write.
    Privileged,
    /// `xattr_permissions=2`: an attribute of the user.
    User,
}

impl Permissions {
    /// The attribute that is written, and those that are read, first match wins.
    #[must_use]
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::Inode => &[],
            Self::Privileged => &["security.fuseoverlayfs.override_stat"],
            Self::User => &["user.containers.override_stat", "user.fuseoverlayfs.override_stat"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_that_are_modes() {
        let entry = |tag: u8, perm: u8| [tag, 0, perm, 0, 255, 255, 255, 255];
        let acl = |entries: &[[u8; 8]]| [&[2, 0, 0, 0][..], entries.as_flattened()].concat();
        let minimal = acl(&[entry(1, 6), entry(4, 4), entry(32, 0)]);
        assert_eq!(minimal_acl(&minimal), Some(0o640));
        assert_eq!(minimal_acl(&acl(&[entry(1, 6), entry(2, 7), entry(4, 4)])), None);
        assert_eq!(minimal_acl(&acl(&[entry(1, 6), entry(4, 8), entry(32, 0)])), None);
        assert_eq!(minimal_acl(&minimal[..27]), None);
        assert_eq!(minimal_acl(b"\x02"), None);
    }

    #[test]
    fn ids_inside_are_mapped() {
        let entry = |tag: u8, id: u8| [tag, 0, 7, 0, id, 0, 0, 0];
        let acl = |ids: [u8; 2]| {
            let entries = [entry(1, 255), entry(2, ids[0]), entry(8, ids[1]), entry(32, 255)];
            [&[2, 0, 0, 0][..], entries.as_flattened()].concat()
        };
        let plus = |n: u32| move |id: u32| if id < 200 { Ok(id + n) } else { Err(()) };
        let map = |name: &str, mut value: Vec<u8>| {
            map_ids(OsStr::new(name), &mut value, plus(1), plus(2)).map(|()| value)
        };
        assert_eq!(map(ACL_ACCESS, acl([5, 6])), Ok(acl([6, 8])));
        assert_eq!(map(ACL_DEFAULT, acl([5, 6])), Ok(acl([6, 8])));
        assert_eq!(map(ACL_ACCESS, acl([5, 201])), Err(()));
        assert_eq!(map("user.other", acl([5, 6])), Ok(acl([5, 6])));
        let mut capability = vec![0; 24];
        (capability[3], capability[20]) = (3, 9);
        let mut mapped = capability.clone();
        mapped[20] = 10;
        assert_eq!(map(CAPABILITY, capability.clone()), Ok(mapped));
        // Version 2 names no user.
        let old = [&[1, 0, 0, 2][..], &[9; 16]].concat();
        assert_eq!(map(CAPABILITY, old.clone()), Ok(old));
    }

    #[test]
    fn override_table() {
        let file = OverrideStat { uid: 1, gid: 2, mode: 0o4755, kind: None, rdev: 0 };
        for (text, want) in [
            ("1:2:4755", Some(file)),
            ("1:2:04755", Some(file)),
            ("1:2:104755", Some(file)),
            ("1:2:4755:dir", Some(OverrideStat { kind: Some(libc::S_IFDIR), ..file })),
            (
                "1:2:4755:block-8-1",
                Some(OverrideStat { kind: Some(libc::S_IFBLK), rdev: libc::makedev(8, 1), ..file }),
            ),
            ("1:2:4755:pipe", Some(OverrideStat { kind: Some(libc::S_IFIFO), ..file })),
            ("", None),
            ("1:2", None),
            ("1:2:9", None),
            ("1:2:7:what", None),
            ("1:2:7:block-8", None),
            ("1:2:7:block-8-1-1", None),
            ("-1:2:7", None),
            ("1:2:7:file:x", None),
            // Found by fuzzing: a device number of what is no device.
            ("24:2:22:symlink-0-15", None),
        ] {
            assert_eq!(OverrideStat::parse(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn owners_to_set() {
        for (text, want) in [
            ("33:34", Some((Some(33), Some(34)))),
            (":34", Some((None, Some(34)))),
            ("33:", Some((Some(33), None))),
            ("4294967295:0", None),
            ("33", None),
            ("33:34:0644", None),
            ("-1:0", None),
        ] {
            assert_eq!(parse_owner(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn private_names() {
        for (name, want) in [
            ("user.overlay.opaque", true),
            ("trusted.overlay.origin", true),
            ("user.containers.override_stat", true),
            ("security.fuseoverlayfs.override_stat", true),
            ("user.fuseoverlayfs.opaque", true),
            ("user.overlayish", false),
            ("security.capability", false),
            ("user.containers.other", false),
        ] {
            assert_eq!(is_private(OsStr::new(name)), want, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_value_is_survived(value: Vec<u8>) {
            for name in [ACL_ACCESS, CAPABILITY] {
                let same = |id: u32| Ok::<_, ()>(id);
                let mut mapped = value.clone();
                prop_assert!(map_ids(OsStr::new(name), &mut mapped, same, same).is_ok());
                prop_assert_eq!(&mapped, &value);
            }
            if let Some(stat) = OverrideStat::parse(&value) {
                prop_assert!(stat.mode <= 0o7777);
            }
        }

        #[test]
        fn what_is_written_is_read_back(
            uid: u32, gid: u32, mode in 0u32..0o10000, k in 0usize..7, major in 0u32..4096, minor in 0u32..256
        ) {
            let kind = [libc::S_IFREG, libc::S_IFDIR, libc::S_IFLNK, libc::S_IFIFO,
                libc::S_IFSOCK, libc::S_IFBLK, libc::S_IFCHR][k];
            let rdev = if k >= 5 { libc::makedev(major, minor) } else { 0 };
            let stat = OverrideStat { uid, gid, mode, kind: Some(kind), rdev };
            prop_assert_eq!(OverrideStat::parse(stat.format().as_bytes()), Some(stat));
        }
    }
}
