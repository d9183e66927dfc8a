//! Landlock (landlock(7)): a process that gives up files for good, without privilege.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// linux/landlock.h: `LANDLOCK_ACCESS_FS_READ_FILE` and `_READ_DIR`.
pub(crate) const READ: u64 = 1 << 2 | 1 << 3;
/// The same: `LANDLOCK_ACCESS_FS_REMOVE_FILE`.
pub(crate) const REMOVE: u64 = 1 << 5;
const CREATE_RULESET_VERSION: u32 = 1;
const RULE_PATH_BENEATH: i32 = 1;

/// `struct landlock_ruleset_attr`; older kernels know a shorter one.
#[repr(C)]
struct Attributes {
    access_fs: u64,
    access_net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct Beneath {
    access: u64,
    parent: i32,
}

/// The version of the kernel's interface; None when it has none, or it is off.
pub(crate) fn version() -> Option<i32> {
    // SAFETY: with this flag the call reads no memory: the attributes are null and
    // their size 0, as landlock_create_ruleset(2) asks.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<Attributes>(),
            0usize,
            CREATE_RULESET_VERSION,
        )
    };
    Errno::result(version).ok().map(|version| version as i32).filter(|version| *version > 0)
}

/// From now on the calling thread, and those it starts, reach no file by a path, but
/// that they may do what is said below these directories. Open descriptors stay as they
/// are. Where the kernel can, abstract UNIX sockets and signals to other processes are
/// given up as well. Needs no_new_privs.
pub(crate) fn restrict(version: i32, below: &[(OwnedFd, u64)]) -> Result<(), Errno> {
    // Rights by the version that brought them: 13, then refer, truncate, ioctl.
    let rights = match version {
        1 => 13,
        2 => 14,
        3 | 4 => 15,
        _ => 16,
    };
    let attributes = Attributes { access_fs: (1 << rights) - 1, access_net: 0, scoped: 3 };
    let size: usize = match version {
        ..4 => 8,
        4 | 5 => 16,
        _ => 24,
    };
    // SAFETY: the structure is at least `size` bytes long and is only read.
    let raw = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attributes, size, 0u32)
    };
    let raw = Errno::result(raw)? as i32;
    // SAFETY: the kernel has just made this descriptor for us; nobody else has it.
    let rules = unsafe { OwnedFd::from_raw_fd(raw) };
    for (top, access) in below {
        let beneath = Beneath { access: *access, parent: top.as_fd().as_raw_fd() };
        // SAFETY: the structure is that of this kind of rule and is only read.
        let result = unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                rules.as_raw_fd(),
                RULE_PATH_BENEATH,
                &raw const beneath,
                0u32,
            )
        };
        Errno::result(result)?;
    }
    // SAFETY: the call takes a descriptor and flags only.
    let result =
        unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0u32) };
    Errno::result(result).map(drop)
}
