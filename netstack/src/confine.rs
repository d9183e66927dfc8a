//! What a running network may still ask of the kernel: an allow-list of system calls,
//! and no path of the file system.
//!
//! # Theory of operation
//!
//! The process that handles frames ([`network`]) needs neither files nor programs:
//! what it reads of the file system comes through [`crate::reader`]. So once all is
//! open it may work on its descriptors, make TCP, UDP and ping sockets, and get
//! memory that is not executable. Everything else gets EPERM: it is an answer that
//! every caller knows, and kills nobody for a call that a newer C library tries.
//! The filter is for all threads (SECCOMP_FILTER_FLAG_TSYNC), those that have been
//! started included.
//!
//! The process that reads files ([`reader`]) may open them for reading, and has no
//! sockets but the one it was given. Where sockets of ours have files it may remove what
//! lies in their directories, too.
//!
//! Landlock closes the file system in a second way, where the kernel has it: by a
//! filter's arguments nobody can see a path.
//!
//! Arguments are compared by their low 32 bits where the kernel takes an `int`: it
//! ignores the others, and a comparison of all would be passed by setting them.

use std::collections::BTreeMap;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, sock_filter,
};

use crate::clients::SocketFile;
use crate::sys::landlock;

/// What could not be given up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is not what the kernel or the machine takes.
    #[error("cannot limit system calls: {0}")]
    Filter(#[from] seccompiler::Error),
    /// The filter cannot be made.
    #[error("cannot make the filter of system calls: {0}")]
    Backend(#[from] seccompiler::BackendError),
    /// A call of ours failed.
    #[error("{what}: {errno}")]
    Os {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        errno: Errno,
    },
}

fn os(what: &'static str) -> impl FnOnce(Errno) -> Error {
    move |errno| Error::Os { what, errno }
}

/// Neither this thread nor those it starts reach a file by a path any more. Does
/// nothing where the kernel has no Landlock. Sets no_new_privs.
///
/// # Errors
/// The kernel refuses.
pub fn files() -> Result<(), Error> {
    restrict(&[])
}

/// `below`: directories, and what may be done in them.
fn restrict(below: &[(&Path, u64)]) -> Result<(), Error> {
    nix::sys::prctl::set_no_new_privs().map_err(os("cannot set no_new_privs"))?;
    let Some(version) = landlock::version() else { return Ok(()) };
    let mut rules = Vec::new();
    for (path, access) in below {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let top = open(*path, flags, Mode::empty()).map_err(os("cannot open a directory"))?;
        rules.push((top, *access));
    }
    landlock::restrict(version, &rules).map_err(os("cannot give up files (Landlock)"))
}

/// Limits the system calls of all threads to those of a running network. Sets
/// no_new_privs.
///
/// # Errors
/// The kernel refuses, or the processor is none that the filter is written for.
pub fn network() -> Result<(), Error> {
    let mut rules: Rules = NETWORK.iter().map(|call| (*call, Vec::new())).collect();
    rules.extend(socket_rules()?);
    rules.extend(memory_rules()?);
    apply(rules)
}

/// The reading process: files may be read, and those that `files` lie beside removed;
/// all else is limited further than in [`network`]. Sets no_new_privs.
///
/// # Errors
/// As there.
pub fn reader(files: &[SocketFile]) -> Result<(), Error> {
    let removable = files.iter().map(|file| (file.directory(), landlock::REMOVE));
    let below: Vec<_> = [(Path::new("/"), landlock::READ)].into_iter().chain(removable).collect();
    restrict(&below)?;
    let mut rules: Rules = READER.iter().map(|call| (*call, Vec::new())).collect();
    if !files.is_empty() {
        // Which path, Landlock decides.
        rules.insert(libc::SYS_unlinkat, vec![rule(&[is(2, 0)?])?]);
        #[cfg(target_arch = "x86_64")]
        rules.insert(libc::SYS_unlink, Vec::new());
    }
    rules.extend(memory_rules()?);
    // O_PATH and O_DIRECTORY do no harm; what writes, makes or truncates does.
    let writing = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND;
    rules.insert(libc::SYS_openat, vec![rule(&[masked(2, writing, 0)?])?]);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, vec![rule(&[masked(1, writing, 0)?])?]);
    apply(rules)
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn apply(rules: Rules) -> Result<(), Error> {
    Ok(seccompiler::apply_filter_all_threads(&program(rules)?)?)
}

/// Calls in a part of the filter.
const PART: usize = 8;

/// A filter in parts, before which the call's number chooses one. Otherwise it would be
/// compared with all of them in a row, by the kernel too, which tries every number there
/// is when the filter is put in place (kernel/seccomp.c, `seccomp_cache_prepare`): that
/// took 0.2 ms of a start of 3.
fn program(rules: Rules) -> Result<BpfProgram, Error> {
    let rules: Vec<_> = rules.into_iter().collect();
    let mut parts = Vec::new();
    for part in rules.chunks(PART) {
        let first = part.first().map_or(0, |(call, _)| *call);
        parts.push((first as u32, whole(part.iter().cloned().collect())?));
    }
    // struct seccomp_data begins with the number.
    let mut program = vec![instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    // Behind the last part's choice comes the first part.
    let mut behind: usize = parts.iter().map(|(_, part)| part.len()).sum();
    for (nth, (first, part)) in parts.iter().enumerate().skip(1).rev() {
        behind -= part.len();
        program.push(instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, *first, 1));
        // Over the choices that are left, two instructions each.
        let over = 2 * (nth - 1) + behind;
        program.push(instruction(libc::BPF_JMP | libc::BPF_JA, over as u32, 0));
    }
    parts.into_iter().for_each(|(_, part)| program.extend(part));
    Ok(program)
}

fn whole(rules: Rules) -> Result<BpfProgram, Error> {
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let machine = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, refuse, SeccompAction::Allow, machine)?;
    Ok(filter.try_into()?)
}

/// `otherwise`: how many to pass over where a comparison fails.
fn instruction(code: u32, k: u32, otherwise: u8) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: otherwise, k }
}

/// Allowed whatever their arguments: they work on descriptors that are open, and on
/// the process itself.
const NETWORK: &[i64] = &[
    // Frames, bytes and datagrams.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_close,
    // The files of a capture, which begin anew.
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    // Sockets that are there.
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_shutdown,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_clock_gettime,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    // A thread's beginning and end, and the process's.
    libc::SYS_sigaltstack,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_wait4,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Memory, which stays what it is; for more of it see `memory_rules`.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_getrandom,
];

const READER: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_close,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_futex,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_getrandom,
];

/// Memory is never made executable; signals go to ourselves.
fn memory_rules() -> Result<Rules, Error> {
    let plain = || Ok::<_, Error>(vec![rule(&[masked(2, libc::PROT_EXEC, 0)?])?]);
    let own = is(0, std::process::id().cast_signed())?;
    Ok(BTreeMap::from([
        (libc::SYS_mmap, plain()?),
        (libc::SYS_mprotect, plain()?),
        // What a panic or a failed allocation ends with.
        (libc::SYS_tgkill, vec![rule(&[own])?]),
    ]))
}

/// TCP, UDP and ping sockets, and what is done to them.
fn socket_rules() -> Result<Rules, Error> {
    let kind = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let mut sockets = Vec::new();
    for (family, ping) in
        [(libc::AF_INET, libc::IPPROTO_ICMP), (libc::AF_INET6, libc::IPPROTO_ICMPV6)]
    {
        for (kind_wanted, protocol) in [
            (libc::SOCK_STREAM, 0),
            (libc::SOCK_STREAM, libc::IPPROTO_TCP),
            (libc::SOCK_DGRAM, 0),
            (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
            (libc::SOCK_DGRAM, ping),
        ] {
            let of_kind = masked(1, !kind, kind_wanted)?;
            sockets.push(rule(&[is(0, family)?, of_kind, is(2, protocol)?])?);
        }
    }
    // Options of these levels, without those that load a program, put another protocol
    // on top of TCP, or speak to netfilter (IP_TABLES and its like begin at 64).
    let options = vec![
        rule(&[
            is(1, libc::SOL_SOCKET)?,
            is_not(2, libc::SO_ATTACH_FILTER)?,
            is_not(2, libc::SO_ATTACH_BPF)?,
            is_not(2, libc::SO_ATTACH_REUSEPORT_CBPF)?,
            is_not(2, libc::SO_ATTACH_REUSEPORT_EBPF)?,
        ])?,
        rule(&[is(1, libc::IPPROTO_TCP)?, is_not(2, libc::TCP_ULP)?])?,
        rule(&[is(1, libc::IPPROTO_UDP)?])?,
        rule(&[is(1, libc::IPPROTO_IP)?, condition(2, Op::Lt, 64)?])?,
        // IP6T_SO_SET_REPLACE is 64, IPV6_TCLASS 67, IPV6_RECVERR 25.
        rule(&[is(1, libc::IPPROTO_IPV6)?, condition(2, Op::Lt, 64)?])?,
        rule(&[is(1, libc::IPPROTO_IPV6)?, is(2, libc::IPV6_TCLASS)?])?,
    ];
    let control = [libc::F_GETFL, libc::F_SETFL, libc::F_GETFD, libc::F_SETFD]
        .map(|command| rule(&[is(1, command)?]));
    let ioctls = [libc::FIONBIO, libc::FIONREAD, libc::TIOCOUTQ]
        .map(|request| rule(&[condition(1, Op::Eq, request)?]));
    let name = rule(&[is(0, libc::PR_SET_NAME)?])?;
    Ok(BTreeMap::from([
        (libc::SYS_socket, sockets),
        (libc::SYS_setsockopt, options),
        (libc::SYS_fcntl, control.into_iter().collect::<Result<_, _>>()?),
        (libc::SYS_ioctl, ioctls.into_iter().collect::<Result<_, _>>()?),
        // A new thread's.
        (libc::SYS_prctl, vec![name]),
    ]))
}

fn rule(conditions: &[SeccompCondition]) -> Result<SeccompRule, Error> {
    Ok(SeccompRule::new(conditions.to_vec())?)
}

fn condition(index: u8, op: Op, value: u64) -> Result<SeccompCondition, Error> {
    Ok(SeccompCondition::new(index, Len::Dword, op, value)?)
}

/// An `int` argument as the filter sees it.
fn low(value: i32) -> u64 {
    u64::from(value.cast_unsigned())
}

fn is(index: u8, value: i32) -> Result<SeccompCondition, Error> {
    condition(index, Op::Eq, low(value))
}

fn is_not(index: u8, value: i32) -> Result<SeccompCondition, Error> {
    condition(index, Op::Ne, low(value))
}

/// The bits of `mask` are those of `value`.
fn masked(index: u8, mask: i32, value: i32) -> Result<SeccompCondition, Error> {
    condition(index, Op::MaskedEq(low(mask)), low(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel does with a program (classic BPF, as seccompiler writes it); and
    /// how many instructions that took.
    fn run(program: &[sock_filter], data: &[u8; 64]) -> (u32, usize) {
        let (mut at, mut value, mut steps) = (0, 0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at].clone();
            at += 1;
            steps += 1;
            let holds = match u32::from(code) {
                // LD W ABS, ALU AND K, RET K, JMP JA.
                0x20 => {
                    let bytes = &data[k as usize..k as usize + 4];
                    value = u32::from_ne_bytes(bytes.try_into().unwrap());
                    continue;
                }
                0x54 => {
                    value &= k;
                    continue;
                }
                0x06 => return (k, steps),
                0x05 => {
                    at += k as usize;
                    continue;
                }
                0x15 => value == k,
                0x25 => value > k,
                0x35 => value >= k,
                other => panic!("instruction {other:#x}"),
            };
            at += usize::from(if holds { jt } else { jf });
        }
    }

    #[test]
    fn parts_say_what_the_whole_would_in_fewer_steps() {
        let mut rules: Rules = NETWORK.iter().map(|call| (*call, Vec::new())).collect();
        rules.extend(socket_rules().unwrap());
        rules.extend(memory_rules().unwrap());
        let machine = if cfg!(target_arch = "x86_64") { 0xc000_003e_u32 } else { 0xc000_00b7 };
        let (parts, whole) = (program(rules.clone()).unwrap(), whole(rules.clone()).unwrap());
        let (mut steps, mut allowed) = ([0, 0], 0);
        // Those of x32, which are others, have a high bit.
        let numbers = (0..600).chain([0x4000_0000, 0x4000_0029, u32::MAX]);
        let arguments = [0, 1, 2, 3, 6, 10, 17, 41, 4096, 0x5421, u64::MAX];
        for number in numbers {
            for first in arguments {
                for second in arguments {
                    let mut data = [0; 64];
                    data[..4].copy_from_slice(&number.to_ne_bytes());
                    data[4..8].copy_from_slice(&machine.to_ne_bytes());
                    for (at, value) in [(16, first), (24, second), (32, first)] {
                        data[at..at + 8].copy_from_slice(&value.to_ne_bytes());
                    }
                    let (a, b) = (run(&parts, &data), run(&whole, &data));
                    assert_eq!(a.0, b.0, "{number}({first}, {second})");
                    (steps[0], steps[1]) = (steps[0] + a.1, steps[1] + b.1);
                    allowed += usize::from(a.0 == libc::SECCOMP_RET_ALLOW);
                }
            }
        }
        assert!(allowed > 2 * rules.len() && steps[0] * 3 < steps[1], "{allowed} {steps:?}");
        // Another machine's numbers mean other calls.
        assert_eq!(run(&parts, &[0; 64]).0, libc::SECCOMP_RET_KILL_PROCESS);
    }
}
