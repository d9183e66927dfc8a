//! Making processes, addressing them by pidfd, and giving up privilege.
#![allow(unsafe_code, reason = "fork, clone3, pidfds, capset and seccomp have no safe wrapper")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::check;

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Forked {
    /// The new process.
    Child,
    /// The one that was there, with the new one's number.
    Parent(i32),
}

/// fork(2). The calling process must have one thread only.
///
/// # Errors
/// As of fork(2).
pub fn fork() -> io::Result<Forked> {
    // SAFETY: with a single thread no lock can be held by a thread that does
    // not exist in the child; Rust code may go on in both.
    match check(unsafe { libc::fork() }.into())? {
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid as i32)),
    }
}

/// Forks a child that starts in new namespaces, given as `CLONE_NEW*` flags. The calling
/// process must have one thread only.
///
/// # Errors
/// As of clone(2).
pub fn fork_into(namespaces: libc::c_int) -> io::Result<Forked> {
    // SAFETY: plain old data; all zero asks for nothing.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: there is no pointer in `args`.
    unsafe { clone(args) }
}

/// Forks a *sibling*: a child of the caller's parent (`CLONE_PARENT`), which
/// starts in new namespaces given as `CLONE_NEW*` flags, and in the control
/// group behind the descriptor `group`. The calling process must have one thread
/// only, and must not be process 1 of a pid namespace.
///
/// # Errors
/// As of clone(2).
pub fn fork_sibling(namespaces: libc::c_int, group: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    /// linux/sched.h; libc's does not fit its type.
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    // SAFETY: plain old data; all zero asks for nothing. So is the exit signal, which is
    // inherited from the caller with CLONE_PARENT.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (libc::CLONE_PARENT | namespaces) as u64;
    if let Some(group) = group {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = group.as_raw_fd() as u64;
    }
    // SAFETY: there is no pointer in `args`.
    unsafe { clone(args) }
}

/// Forks a child that gets the number `number` in this process's pid namespace, which
/// takes privilege over that. The children after it are numbered as if it were not there.
/// The calling process must have one thread only.
///
/// # Errors
/// As of clone(2); EEXIST when the number is taken.
pub fn fork_numbered(number: i32) -> io::Result<Forked> {
    // SAFETY: plain old data; all zero asks for nothing.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.exit_signal = libc::SIGCHLD as u64;
    args.set_tid = &raw const number as u64;
    args.set_tid_size = 1;
    // SAFETY: `set_tid` points to one number that outlives the call.
    unsafe { clone(args) }
}

/// # Safety
/// What `args` points to must be there. It must not ask for shared memory or a stack.
unsafe fn clone(mut args: libc::clone_args) -> io::Result<Forked> {
    // SAFETY: without CLONE_VM and with no stack given, clone3 is fork: the
    // child goes on here with a copy of the memory. One thread, as in `fork`.
    let pid = check(unsafe {
        libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>())
    })?;
    Ok(if pid == 0 { Forked::Child } else { Forked::Parent(pid as i32) })
}

/// Ends this process at once, without running anything that was registered
/// for its end (which belongs to the process it was forked from).
pub fn exit_now(code: u8) -> ! {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(code.into()) }
}

/// A pidfd of process `pid`; it is readable once the process has ended.
///
/// # Errors
/// As of pidfd_open(2).
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: integers only; the result is a new descriptor that nobody owns.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends `signal` to the process behind a pidfd.
///
/// # Errors
/// As of pidfd_send_signal(2); ESRCH when it has been waited for.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo is allowed; integers otherwise.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })?;
    Ok(())
}

/// Executes the program behind `program` (an `O_PATH` descriptor is enough).
/// Returns only on failure.
pub fn exec_fd(program: BorrowedFd<'_>, argv: &[&CStr], env: &[&CStr]) -> io::Error {
    let list = |strings: &[&CStr]| -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, env) = (list(argv), list(env));
    // SAFETY: both arrays end in a null pointer and their strings outlive the
    // call; the path is the empty string that AT_EMPTY_PATH asks for.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    io::Error::last_os_error()
}

/// Gives this process an empty session keyring of its own. Kernels without
/// keys have nothing to hide: that is no error.
///
/// # Errors
/// As of keyctl(2).
pub fn new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    let result = check(unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        )
    });
    match result {
        Err(e) if e.raw_os_error() != Some(libc::ENOSYS) => Err(e),
        _ => Ok(()),
    }
}

/// Takes every capability outside `keep` (bit n: capability n) out of the
/// bounding set, so that no program executed later can regain it.
///
/// # Errors
/// EPERM without CAP_SETPCAP.
pub fn bound_capabilities(keep: u64) -> io::Result<()> {
    for capability in 0..64 {
        if keep & (1 << capability) != 0 {
            continue;
        }
        // SAFETY: prctl with integers only.
        let result =
            check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }.into());
        match result {
            // The first number that the kernel does not know.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => break,
            Err(e) => return Err(e),
            Ok(_) => {}
        }
    }
    Ok(())
}

/// `_LINUX_CAPABILITY_VERSION_3`: 64 bits in two halves.
const CAP_VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Makes `keep` the permitted and effective capabilities; inheritable and
/// ambient ones become none.
///
/// # Errors
/// EPERM when `keep` has one that is not permitted now.
pub fn set_capabilities(keep: u64) -> io::Result<()> {
    // SAFETY: prctl with integers only.
    let cleared =
        unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    check(cleared.into())?;
    capset(keep, keep)
}

/// Makes `effective` the capabilities that count; the permitted ones, by which
/// they can be had back, become `permitted`.
///
/// # Errors
/// EPERM when `permitted` has one that is not permitted now.
pub fn capset(effective: u64, permitted: u64) -> io::Result<()> {
    put_capabilities(effective, permitted, 0)
}

fn put_capabilities(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    let half = |shift: u32| CapData {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let mut header = CapHeader { version: CAP_VERSION, pid: 0 };
    let data = [half(0), half(32)];
    // SAFETY: version 3 reads a header and two data elements, as laid out here.
    check(unsafe {
        libc::syscall(libc::SYS_capset, &mut header as *mut CapHeader, data.as_ptr())
    })?;
    Ok(())
}

/// The permitted capabilities of this process.
fn permitted_capabilities() -> io::Result<u64> {
    let mut header = CapHeader { version: CAP_VERSION, pid: 0 };
    let mut data = [CapData { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: version 3 reads a header and writes two data elements, as laid out here.
    check(unsafe {
        libc::syscall(libc::SYS_capget, &mut header as *mut CapHeader, data.as_mut_ptr())
    })?;
    Ok(u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32)
}

/// Hands the permitted capabilities on to the program executed next, as whatever user
/// (`ambient` of capabilities(7)): as root it would have them anyway.
///
/// # Errors
/// As of capset(2), prctl(2).
pub fn hand_on_capabilities() -> io::Result<()> {
    let permitted = permitted_capabilities()?;
    put_capabilities(permitted, permitted, permitted)?;
    for capability in (0..64u64).filter(|capability| permitted & (1 << capability) != 0) {
        // SAFETY: prctl with integers only.
        let raised = unsafe {
            libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, capability, 0, 0)
        };
        check(raised.into())?;
    }
    Ok(())
}

/// Undoes [`hand_on_capabilities`] for the programs after this one; the permitted
/// capabilities stay, and count.
///
/// # Errors
/// As of capset(2).
pub fn keep_capabilities() -> io::Result<()> {
    let permitted = permitted_capabilities()?;
    // What is not inheritable is not ambient either.
    put_capabilities(permitted, permitted, 0)
}

/// Puts this process (and all it will execute) under a seccomp filter, given
/// as an array of `struct sock_filter` in the machine's byte order.
/// no_new_privs must be set.
///
/// # Errors
/// EINVAL when it is no valid filter.
pub fn load_filter(filter: &[u8]) -> io::Result<()> {
    set_filter(filter, 0).map(drop)
}

/// As [`load_filter`]; returns the descriptor that answers the calls which the
/// filter asks about, see [`super::notify`]. It is closed on exec.
///
/// # Errors
/// As [`load_filter`]; EBUSY when there is a listener already.
pub fn load_filter_with_listener(filter: &[u8]) -> io::Result<OwnedFd> {
    /// linux/seccomp.h: while a call is being answered only a fatal signal
    /// interrupts it (Linux 5.19).
    const WAIT_KILLABLE_RECV: libc::c_ulong = 1 << 5;
    let fd = match set_filter(filter, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | WAIT_KILLABLE_RECV) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            set_filter(filter, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)
        }
        result => result,
    }?;
    // SAFETY: with this flag the call returns a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn set_filter(filter: &[u8], flags: libc::c_ulong) -> io::Result<libc::c_long> {
    let program: Vec<libc::sock_filter> = filter
        .chunks_exact(8)
        .map(|c| libc::sock_filter {
            code: u16::from_ne_bytes([c[0], c[1]]),
            jt: c[2],
            jf: c[3],
            k: u32::from_ne_bytes([c[4], c[5], c[6], c[7]]),
        })
        .collect();
    let len =
        u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let header = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: `header` points to `len` instructions that outlive the call; the
    // kernel copies and checks them.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &header as *const libc::sock_fprog,
        )
    })
}

/// Default actions for every signal, none blocked: what a program expects to
/// be started with. (Rust ignores SIGPIPE; exec(2) would hand that on.)
pub fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL is no code of ours; SIGKILL, SIGSTOP and the numbers
        // the C library keeps for itself are refused without effect.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    nix::sys::signal::SigSet::empty()
        .thread_set_mask()
        .expect("setting an empty signal mask takes no resources and cannot be refused");
}

/// Asks for SIGKILL when the parent dies. `parent` is the parent's number in
/// this process's pid namespace (0: it lies outside): when it is another by
/// now, the parent has died before the request, and this fails with ESRCH.
///
/// # Errors
/// ESRCH as said.
pub fn die_with_parent(parent: i32) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    if nix::unistd::getppid().as_raw() != parent {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(())
}

/// Waits for the end of a child that is known to end.
pub fn reap(pid: i32) {
    // Anything but EINTR means that there is no such child (any more).
    while nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None)
        == Err(nix::errno::Errno::EINTR)
    {}
}

/// The user namespace above the one that `namespace` is.
///
/// # Errors
/// As of ioctl_ns(2): EPERM when it is above the caller's own.
pub fn parent_namespace(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// linux/nsfs.h: `_IO(0xb7, 2)`.
    const NS_GET_PARENT: u64 = 0xb702;
    // SAFETY: this request takes nothing and gives a new descriptor that nobody owns.
    let fd = check(unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_PARENT as _) }.into())?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Joins the namespaces (`CLONE_NEW*` flags) of the process behind a pidfd, or the one
/// that a descriptor stands for.
///
/// # Errors
/// As of setns(2).
pub fn join(pidfd: impl AsFd, namespaces: libc::c_int) -> io::Result<()> {
    // SAFETY: integers and an open descriptor.
    check(unsafe { libc::setns(pidfd.as_fd().as_raw_fd(), namespaces) }.into())?;
    Ok(())
}
