//! The mount calls that work on descriptors: fsopen(2), fsmount(2),
//! open_tree(2), move_mount(2), mount_setattr(2).
//!
//! A mount is made detached and attached to a descriptor, never to a path, so
//! that nothing in the container's file system can redirect it.
#![allow(unsafe_code, reason = "the C library and nix have no wrappers for these calls")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::check;

/// Set-user-id bits and file capabilities are ignored.
pub const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
/// Device files are not devices.
pub const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
/// Nothing can be executed.
pub const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
/// Nothing can be changed.
pub const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;

const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;

fn new_fd(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the callers pass the result of a call that made a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Makes a new file system of type `kind` with `options` (a value of `None`:
/// a flag), as a detached mount with the attributes `attributes`.
///
/// # Errors
/// As of fsopen(2), fsconfig(2), fsmount(2).
pub fn new(
    kind: &CStr,
    options: &[(&CStr, Option<&CStr>)],
    attributes: u64,
) -> io::Result<OwnedFd> {
    // SAFETY: `kind` ends in NUL; the result is a new descriptor.
    let context = new_fd(unsafe {
        libc::syscall(libc::SYS_fsopen, kind.as_ptr(), 1 /* FSOPEN_CLOEXEC */)
    })?;
    // What mount(8) and /proc/self/mounts show as the device.
    let source = (c"source", Some(kind));
    for (key, value) in [&source].into_iter().chain(options) {
        let command = if value.is_some() { FSCONFIG_SET_STRING } else { FSCONFIG_SET_FLAG };
        let value = value.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: key and value end in NUL and outlive the call.
        check(unsafe {
            libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key.as_ptr(), value, 0)
        })?;
    }
    // SAFETY: this command takes no key and no value.
    check(unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            std::ptr::null::<libc::c_char>(),
            std::ptr::null::<libc::c_char>(),
            0,
        )
    })?;
    // SAFETY: integers only; the result is a new descriptor.
    new_fd(unsafe {
        libc::syscall(
            libc::SYS_fsmount,
            context.as_raw_fd(),
            1, /* FSMOUNT_CLOEXEC */
            attributes as libc::c_uint,
        )
    })
}

/// A detached copy of the mount at `path` below `dir` (empty path: of what
/// `dir` itself is), with the mounts below it when `recursive`.
///
/// # Errors
/// As of open_tree(2).
pub fn copy(dir: BorrowedFd<'_>, path: &CStr, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint;
    flags |= libc::AT_EMPTY_PATH as libc::c_uint;
    if recursive {
        flags |= libc::AT_RECURSIVE as libc::c_uint;
    }
    // SAFETY: `path` ends in NUL; the result is a new descriptor.
    new_fd(unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), path.as_ptr(), flags) })
}

/// As [`copy`], of an absolute path.
///
/// # Errors
/// As of open_tree(2).
pub fn copy_path(path: &CStr, recursive: bool) -> io::Result<OwnedFd> {
    // SAFETY: the borrowed "descriptor" is AT_FDCWD, which lives for ever and
    // is ignored for an absolute path.
    copy(unsafe { BorrowedFd::borrow_raw(libc::AT_FDCWD) }, path, recursive)
}

/// Attaches the detached mount `mount` on top of what `target` is.
///
/// # Errors
/// As of move_mount(2).
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    const T_EMPTY_PATH: libc::c_uint = 0x40;
    // SAFETY: two open descriptors and two empty strings.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH | T_EMPTY_PATH,
        )
    })?;
    Ok(())
}

/// Adds `attributes` to a mount, and to all below it when `recursive`. Others
/// stay as they are.
///
/// # Errors
/// As of mount_setattr(2).
pub fn restrict(mount: BorrowedFd<'_>, attributes: u64, recursive: bool) -> io::Result<()> {
    let attr = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: `attr` is a mount_attr and its size is passed along.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &attr as *const libc::mount_attr,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}
