//! Extended attributes of files in layers: which of them an image may have, and
//! what the overlay reads from its own (overlayfs-fuse, `overlay/xattr.rs`).

use std::ffi::CStr;

/// Owner and mode, where the inode cannot have them: `UID:GID:MODE`, the mode in octal.
pub const OWNER: &CStr = c"user.containers.override_stat";
/// `y`: hides the directory of the same name in the layers below.
pub const OPAQUE: &CStr = c"user.overlay.opaque";
/// Any value: an empty file with it is a whiteout.
pub const WHITEOUT: &CStr = c"user.overlay.whiteout";
/// Where in the layers below a renamed directory has its content.
pub const REDIRECT: &CStr = c"user.overlay.redirect";

/// Whether an attribute belongs to the file: what users set, and capabilities.
/// What speaks to the overlay would let an image redirect its directories or
/// give itself owners; labels are the host's.
#[must_use]
pub fn is_kept(name: &[u8]) -> bool {
    const OURS: [&[u8]; 3] = [b"user.overlay.", b"user.fuseoverlayfs.", b"user.containers."];
    name == b"security.capability"
        || name.starts_with(b"user.") && !OURS.iter().any(|prefix| name.starts_with(prefix))
}

/// User, group and mode that [`OWNER`] holds.
#[must_use]
pub fn owner(value: &[u8]) -> Option<(u32, u32, u32)> {
    let mut fields = std::str::from_utf8(value).ok()?.split(':');
    let uid = fields.next()?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let mode = u32::from_str_radix(fields.next()?, 8).ok()?;
    Some((uid, gid, mode & 0o7777))
}

/// What the file stands for that has this [`OWNER`], when it is no plain one: the
/// overlay keeps special files so where only one id exists.
#[must_use]
pub fn stands_for(value: &[u8]) -> Option<&str> {
    let kind = std::str::from_utf8(value).ok()?.trim_end_matches('\0').split(':').nth(3)?;
    Some(kind).filter(|kind| *kind != "file" && *kind != "dir")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_image_may_say() {
        for (name, kept) in [
            (&b"user.mine"[..], true),
            (b"security.capability", true),
            (b"user.overlay.redirect", false),
            (b"user.overlay.opaque", false),
            (b"user.fuseoverlayfs.opaque", false),
            (b"user.containers.override_stat", false),
            (b"trusted.overlay.opaque", false),
            (b"security.selinux", false),
            (b"system.posix_acl_access", false),
        ] {
            assert_eq!(is_kept(name), kept, "{}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn owners() {
        assert_eq!(owner(b"33:34:04755"), Some((33, 34, 0o4755)));
        assert_eq!(owner(b"33:34:0755:dir"), Some((33, 34, 0o755)));
        assert_eq!(owner(b"33:34"), None);
        assert_eq!(owner(b"-1:0:7"), None);
        assert_eq!(stands_for(b"33:34:0755:pipe"), Some("pipe"));
        assert_eq!(stands_for(b"33:34:0755:char-1-3"), Some("char-1-3"));
        assert_eq!(stands_for(b"33:34:0755:file"), None);
        assert_eq!(stands_for(b"33:34:0755"), None);
    }
}
