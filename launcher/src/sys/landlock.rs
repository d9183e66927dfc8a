//! Landlock (landlock(7)): a process, and all it starts, gives up files and ports for
//! good, without privilege.
#![allow(unsafe_code, reason = "the C library has no wrappers for these calls")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::check;

const CREATE_RULESET_VERSION: libc::c_uint = 1;
const RULE_PATH_BENEATH: libc::c_int = 1;
const RULE_NET_PORT: libc::c_int = 2;
/// `LANDLOCK_ACCESS_NET_BIND_TCP`
const BIND_TCP: u64 = 1;
/// `LANDLOCK_ACCESS_NET_CONNECT_TCP`
const CONNECT_TCP: u64 = 2;
/// `LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET`
const ABSTRACT_UNIX_SOCKET: u64 = 1;

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

/// `struct landlock_net_port_attr`.
#[repr(C)]
struct Port {
    access: u64,
    port: u64,
}

/// The version of the kernel's interface; `None` when it has none, or it is off.
#[must_use]
pub fn version() -> Option<u32> {
    // SAFETY: with this flag the call reads no memory: the attributes are null and their
    // size 0, as landlock_create_ruleset(2) asks.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<Attributes>(),
            0usize,
            CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(version).ok().filter(|version| *version > 0)
}

/// Rules that are being put together.
#[derive(Debug)]
pub struct Ruleset(OwnedFd);

impl Ruleset {
    /// Begins with nothing allowed of the rights `files`, and, with `bind` and `connect`,
    /// of TCP ports; with `own_sockets` nothing of others' abstract UNIX sockets. What
    /// `version` does not know is left out.
    ///
    /// # Errors
    /// As of landlock_create_ruleset(2).
    pub fn new(
        version: u32,
        files: u64,
        bind: bool,
        connect: bool,
        own_sockets: bool,
    ) -> io::Result<Self> {
        let net = if bind { BIND_TCP } else { 0 } | if connect { CONNECT_TCP } else { 0 };
        let scoped = if own_sockets { ABSTRACT_UNIX_SOCKET } else { 0 };
        let attributes = Attributes { access_fs: files, access_net: net, scoped };
        let size: usize = match version {
            ..4 => 8,
            4 | 5 => 16,
            _ => 24,
        };
        // SAFETY: the structure is at least `size` bytes long and is only read.
        let raw = check(unsafe {
            libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attributes, size, 0u32)
        })?;
        // SAFETY: the kernel has just made this descriptor for us; nobody else has it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(raw as RawFd) }))
    }

    /// Allows the rights `access` of what `parent` is, and of all below it.
    ///
    /// # Errors
    /// As of landlock_add_rule(2): EBADFD for what is in no file system of files (a pipe,
    /// a socket), which is never denied.
    pub fn allow_beneath(&self, parent: BorrowedFd<'_>, access: u64) -> io::Result<()> {
        let beneath = Beneath { access, parent: parent.as_raw_fd() };
        self.add(RULE_PATH_BENEATH, (&raw const beneath).cast())
    }

    /// Allows a TCP port to be connected to, or to be listened on.
    ///
    /// # Errors
    /// As of landlock_add_rule(2).
    pub fn allow_port(&self, port: u16, connect: bool) -> io::Result<()> {
        let access = if connect { CONNECT_TCP } else { BIND_TCP };
        let port = Port { access, port: port.into() };
        self.add(RULE_NET_PORT, (&raw const port).cast())
    }

    fn add(&self, kind: libc::c_int, rule: *const libc::c_void) -> io::Result<()> {
        // SAFETY: the callers hand in the structure of this kind of rule, which outlives
        // the call and is only read.
        check(unsafe {
            libc::syscall(libc::SYS_landlock_add_rule, self.0.as_raw_fd(), kind, rule, 0u32)
        })?;
        Ok(())
    }

    /// From now on they hold for the calling process and all it starts. Needs
    /// no_new_privs.
    ///
    /// # Errors
    /// As of landlock_restrict_self(2).
    pub fn restrict(&self) -> io::Result<()> {
        // SAFETY: a descriptor and flags only.
        check(unsafe {
            libc::syscall(libc::SYS_landlock_restrict_self, self.0.as_raw_fd(), 0u32)
        })?;
        Ok(())
    }
}
