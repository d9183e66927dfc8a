//! Questions about namespaces (ioctl_ns(2)).

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// The user namespace that owns the namespace `ns`.
///
/// # Errors
/// EPERM when the owner is neither ours nor below it.
pub(crate) fn owner(ns: impl AsFd) -> Result<OwnedFd, Errno> {
    // SAFETY: NS_GET_USERNS takes no argument and returns a descriptor.
    let raw = Errno::result(unsafe { libc::ioctl(ns.as_fd().as_raw_fd(), libc::NS_GET_USERNS) })?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Makes the mount at `path` and all below it read-only, without devices, set-id
/// programs or programs at all (mount_setattr(2)). Only ever adds restrictions, so
/// that mounts locked by another user namespace do not stand in the way.
pub(crate) fn restrict_mounts(path: &std::ffi::CStr) -> Result<(), Errno> {
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns: u64,
    }
    // MOUNT_ATTR_RDONLY | NOSUID | NODEV | NOEXEC of linux/mount.h.
    let attr = MountAttr { set: 1 | 2 | 4 | 8, clear: 0, propagation: 0, userns: 0 };
    // SAFETY: the path is a terminated string, the structure and its size are
    // those of mount_setattr's first version (32 bytes); neither is kept.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    Errno::result(result).map(drop)
}
