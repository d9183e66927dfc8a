//! The only `unsafe` of the crate: system calls that neither std nor nix wraps
//! safely, and descriptors that arrive as numbers on the command line.
#![allow(unsafe_code, reason = "the one place for system calls without a safe wrapper")]

pub(crate) mod ring;

use std::ffi::{CStr, CString, OsStr, OsString};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::time::TimeSpec;

/// `FICLONE` of linux/fs.h: `_IOW(0x94, 9, int)`.
const FICLONE: libc::c_ulong = 0x4004_9409;
/// _IOW(229, 1, 16 bytes) and _IOW(229, 2, 4 bytes).
const BACKING_OPEN: libc::c_ulong = 0x4010_e501;
const BACKING_CLOSE: libc::c_ulong = 0x4004_e502;

/// The path by which the kernel reaches whatever `fd` refers to, also an
/// `O_PATH` descriptor and also a symbolic link (proc(5): a magic link jumps to
/// the object itself and is not followed further).
pub(crate) fn fd_path(fd: BorrowedFd<'_>) -> CString {
    CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("digits hold no NUL")
}

fn c_string(name: &OsStr) -> nix::Result<CString> {
    CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)
}

/// getxattr(2) of the object behind `fd` (any descriptor, `O_PATH` included).
pub(crate) fn getxattr(fd: BorrowedFd<'_>, name: &OsStr) -> nix::Result<Vec<u8>> {
    read_xattr(libc::getxattr, &fd_path(fd), name)
}

/// getxattr(2) of `file` in the directory behind `dir`, not followed.
pub(crate) fn getxattr_at(dir: BorrowedFd<'_>, file: &OsStr, name: &OsStr) -> nix::Result<Vec<u8>> {
    let (path, attribute) = (c_string(file)?, c_string(name)?);
    let mut value = [0u8; 256];
    let args = XattrArgs {
        value: value.as_mut_ptr().expose_provenance() as u64,
        size: value.len() as u32,
        flags: 0,
    };
    // SAFETY: both strings are NUL-terminated; `args` has the kernel's layout and
    // length, and describes a buffer that is valid for the length it says.
    let got = xattr_at_call(|| unsafe {
        libc::syscall(
            SYS_GETXATTRAT,
            dir.as_raw_fd(),
            path.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            attribute.as_ptr(),
            &raw const args,
            size_of::<XattrArgs>(),
        )
    });
    match got {
        Some(Ok(n)) => Ok(value[..n].to_vec()),
        Some(Err(errno)) if errno != Errno::ERANGE => Err(errno),
        _ => read_xattr(libc::lgetxattr, &path_at(dir, file)?, name),
    }
}

/// `struct xattr_args` of linux/xattr.h.
#[repr(C)]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

// Since Linux 6.13, the same numbers on every architecture.
const SYS_GETXATTRAT: libc::c_long = 464;
const SYS_LISTXATTRAT: libc::c_long = 465;

/// Makes one of the calls that take a directory and a name, which spare the way
/// through /proc. `None`: it has to be gone; the kernel or a filter lacks the call.
fn xattr_at_call(call: impl FnOnce() -> libc::c_long) -> Option<nix::Result<usize>> {
    static LACKING: AtomicBool = AtomicBool::new(false);
    if LACKING.load(Ordering::Relaxed) {
        return None;
    }
    match Errno::result(call()) {
        Err(Errno::ENOSYS) => {
            LACKING.store(true, Ordering::Relaxed);
            None
        }
        // Filters of containers say so of what they do not know.
        Err(Errno::EPERM) => None,
        other => Some(other.map(|n| usize::try_from(n).unwrap_or(0))),
    }
}

fn path_at(dir: BorrowedFd<'_>, file: &OsStr) -> nix::Result<CString> {
    let mut path = fd_path(dir).into_bytes();
    path.push(b'/');
    path.extend_from_slice(file.as_bytes());
    CString::new(path).map_err(|_| Errno::EINVAL)
}

type GetXattr = unsafe extern "C" fn(
    *const libc::c_char,
    *const libc::c_char,
    *mut libc::c_void,
    libc::size_t,
) -> libc::ssize_t;

fn read_xattr(call: GetXattr, path: &CStr, name: &OsStr) -> nix::Result<Vec<u8>> {
    let name = c_string(name)?;
    let mut value = vec![0u8; 256];
    loop {
        // SAFETY: both strings are NUL-terminated; the buffer is valid for its length.
        let n =
            unsafe { call(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        match Errno::result(n) {
            Ok(n) => {
                value.truncate(n.cast_unsigned());
                return Ok(value);
            }
            // XATTR_SIZE_MAX is 64 KiB: one growth is enough, a second ERANGE is true.
            Err(Errno::ERANGE) if value.len() < 65536 => value.resize(65536, 0),
            Err(e) => return Err(e),
        }
    }
}

/// listxattr(2) of the object behind `fd`.
pub(crate) fn listxattr(fd: BorrowedFd<'_>) -> nix::Result<Vec<OsString>> {
    list_xattrs(libc::listxattr, &fd_path(fd))
}

/// listxattr(2) of `file` in the directory behind `dir`, not followed.
pub(crate) fn listxattr_at(dir: BorrowedFd<'_>, file: &OsStr) -> nix::Result<Vec<OsString>> {
    let path = c_string(file)?;
    let mut list = [0u8; 512];
    // SAFETY: the path is NUL-terminated; the buffer is valid for its length.
    let got = xattr_at_call(|| unsafe {
        libc::syscall(
            SYS_LISTXATTRAT,
            dir.as_raw_fd(),
            path.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            list.as_mut_ptr(),
            list.len(),
        )
    });
    match got {
        Some(Ok(n)) => Ok(split_names(&list[..n])),
        Some(Err(errno)) if errno != Errno::ERANGE => Err(errno),
        _ => list_xattrs(libc::llistxattr, &path_at(dir, file)?),
    }
}

fn split_names(list: &[u8]) -> Vec<OsString> {
    let names = list.split(|b| *b == 0).filter(|n| !n.is_empty());
    names.map(|n| OsString::from_vec(n.to_vec())).collect()
}

type ListXattr =
    unsafe extern "C" fn(*const libc::c_char, *mut libc::c_char, libc::size_t) -> libc::ssize_t;

fn list_xattrs(call: ListXattr, path: &CStr) -> nix::Result<Vec<OsString>> {
    let mut list = vec![0u8; 512];
    loop {
        // SAFETY: the path is NUL-terminated; the buffer is valid for its length.
        let n = unsafe { call(path.as_ptr(), list.as_mut_ptr().cast(), list.len()) };
        match Errno::result(n) {
            Ok(n) => {
                list.truncate(n.cast_unsigned());
                break;
            }
            Err(Errno::ERANGE) if list.len() < 65536 => list.resize(65536, 0),
            Err(e) => return Err(e),
        }
    }
    Ok(split_names(&list))
}

/// setxattr(2) of the object behind `fd`; `flags` is 0, `XATTR_CREATE` or `XATTR_REPLACE`.
pub(crate) fn setxattr(
    fd: BorrowedFd<'_>,
    name: &OsStr,
    value: &[u8],
    flags: i32,
) -> nix::Result<()> {
    let path = fd_path(fd);
    let name = c_string(name)?;
    // SAFETY: both strings are NUL-terminated; the value is valid for its length.
    let r = unsafe {
        libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags)
    };
    Errno::result(r).map(drop)
}

/// fsetxattr(2); `flags` as [`setxattr`].
pub(crate) fn fsetxattr(
    fd: BorrowedFd<'_>,
    name: &OsStr,
    value: &[u8],
    flags: i32,
) -> nix::Result<()> {
    let name = c_string(name)?;
    // SAFETY: the name is NUL-terminated; the value is valid for its length.
    let r = unsafe {
        libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags)
    };
    Errno::result(r).map(drop)
}

/// removexattr(2) of the object behind `fd`.
pub(crate) fn removexattr(fd: BorrowedFd<'_>, name: &OsStr) -> nix::Result<()> {
    let path = fd_path(fd);
    let name = c_string(name)?;
    // SAFETY: both strings are NUL-terminated.
    let r = unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) };
    Errno::result(r).map(drop)
}

/// utimensat(2) of whatever `fd` refers to, `O_PATH` descriptors and symbolic links
/// included.
pub(crate) fn set_times(fd: BorrowedFd<'_>, atime: &TimeSpec, mtime: &TimeSpec) -> nix::Result<()> {
    let times = [*atime.as_ref(), *mtime.as_ref()];
    let call = |dir: RawFd, path: &CStr, flags| {
        // SAFETY: the path is NUL-terminated; `times` are the two the call reads.
        let r = unsafe { libc::utimensat(dir, path.as_ptr(), times.as_ptr(), flags) };
        Errno::result(r).map(drop)
    };
    match call(fd.as_raw_fd(), c"", libc::AT_EMPTY_PATH) {
        // Before Linux 5.8.
        Err(Errno::EINVAL) => call(libc::AT_FDCWD, &fd_path(fd), 0),
        other => other,
    }
}

/// Makes `dst` share the blocks of `src` (ioctl_ficlone(2)).
pub(crate) fn reflink(src: BorrowedFd<'_>, dst: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: FICLONE takes a descriptor number by value and touches no memory of ours.
    let r = unsafe { libc::ioctl(dst.as_raw_fd(), FICLONE, src.as_raw_fd()) };
    Errno::result(r).map(drop)
}

/// Has the kernel know a file that it is to read by itself (`FUSE_DEV_IOC_BACKING_OPEN`,
/// linux/fuse.h); the number it has there.
///
/// # Errors
/// EPERM where the mount or this process may not, ELOOP where it is on a file system that
/// stands on others.
pub(crate) fn backing_open(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> nix::Result<u32> {
    // `struct fuse_backing_map`: descriptor, flags, and room.
    let map: [i32; 4] = [file.as_raw_fd(), 0, 0, 0];
    // SAFETY: `map` has the layout and length that the command says, and is only read.
    let id = unsafe { libc::ioctl(device.as_raw_fd(), BACKING_OPEN, map.as_ptr()) };
    Errno::result(id).map(i32::cast_unsigned)
}

/// Takes that back (`FUSE_DEV_IOC_BACKING_CLOSE`); those who have it open keep it.
pub(crate) fn backing_close(device: BorrowedFd<'_>, id: u32) -> nix::Result<()> {
    // SAFETY: the command reads one number of 32 bits.
    let r = unsafe { libc::ioctl(device.as_raw_fd(), BACKING_CLOSE, &raw const id) };
    Errno::result(r).map(drop)
}

/// Takes over a descriptor named on the command line, and keeps it from being
/// inherited. Called once for each number, before the process opens anything.
///
/// # Errors
/// EBADF when no such descriptor is open.
pub(crate) fn adopt_fd(number: RawFd) -> nix::Result<OwnedFd> {
    if number < 0 {
        return Err(Errno::EBADF);
    }
    // SAFETY: only borrowed to ask whether it is open; a closed one gives EBADF.
    let probe = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(probe, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: open (checked above), and ours by the contract of --ready-fd and
    // --exit-fd: nothing else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Receives a descriptor from another process; `None` when it sent none.
pub(crate) fn receive_fd(
    socket: &UnixStream,
    byte: &mut IoSliceMut<'_>,
) -> nix::Result<Option<OwnedFd>> {
    let mut space = nix::cmsg_space!(RawFd);
    let mut parts = [IoSliceMut::new(byte)];
    let message = loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part
            && let Some(fd) = fds.first()
        {
            // SAFETY: the kernel has just made this descriptor for this process
            // (unix(7), SCM_RIGHTS); nothing else owns it.
            return Ok(Some(unsafe { OwnedFd::from_raw_fd(*fd) }));
        }
    }
    Ok(None)
}

/// What [`fork`] returned as.
pub(crate) enum Forked {
    /// In the parent.
    Parent,
    /// In the child.
    Child,
}

/// fork(2) of a process that has only this thread.
pub(crate) fn fork() -> nix::Result<Forked> {
    // SAFETY: called before any thread is started (session.rs), so the child
    // may go on to use the allocator and every lock.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { .. } => Ok(Forked::Parent),
        nix::unistd::ForkResult::Child => Ok(Forked::Child),
    }
}

/// Duplicates `fd` onto 0, 1 and 2.
pub(crate) fn replace_standard_streams(fd: &OwnedFd) -> nix::Result<()> {
    nix::unistd::dup2_stdin(fd.as_fd())?;
    nix::unistd::dup2_stdout(fd.as_fd())?;
    nix::unistd::dup2_stderr(fd.as_fd())
}

/// Lets all threads allocate from one heap, as the library's default gives each one
/// of its own: these grow by a page a system call and give nothing back. Called
/// before any thread is started. Elsewhere than with glibc there is nothing to do.
pub(crate) fn one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes two numbers and touches no memory of ours.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
