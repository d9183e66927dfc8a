//! The system call filter: the default one, or a [profile] of the caller's own.
//!
//! # Theory of operation
//!
//! A filter is one program of classic BPF in two parts. First come the
//! [guards](guard): calls that depend on an argument. What they do not answer
//! goes on to the list, which libseccomp makes from [names](calls): allowed,
//! refused (EPERM), or not there (ENOSYS).
//!
//! On x86-64 the filter covers 64-bit and 32-bit calls; x32 calls (numbers from
//! 0x40000000) and any other architecture get ENOSYS. A 32-bit call is judged
//! by the same names under its own numbers.
//!
//! What is not covered: the family of a socket made by `socketcall`, which
//! 32-bit x86 programs use, lies in memory, where no filter can look.
//!
//! With CAP_SYS_ADMIN, which somebody must have asked for, mounts and namespaces
//! are not refused: the capability would be good for nothing.
//!
//! A profile of the caller's takes the place of guards and list. Without any filter
//! (`unconfined`) there is nothing, or, with a single id, its guards alone.
//!
//! # A single id
//!
//! Where the host grants no subordinate ids, a container's user namespace knows
//! one user and one group, 0. The kernel then refuses every other id (EINVAL,
//! or EPERM for setgroups(2)) before any file system is asked, and so package
//! managers and servers that drop their privileges fail. With `single_id`,
//! calls that set an owner or an id other than 0 and -1 are answered with
//! success and do nothing, as fakeroot(1) does. Nothing is lost by it: all
//! ids of such a container would be the caller's one id anyway, so that there
//! is no lesser privilege to drop to. Programs that check afterwards whether
//! they have become someone else notice.
//!
//! # Cache
//!
//! Making the list takes milliseconds, reading it from a file microseconds:
//! [`Source::cached`] keeps it, under a name and with a first line made of all
//! that it depends on.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use libseccomp::{ScmpAction, ScmpArch, ScmpFilterContext, ScmpSyscall, ScmpVersion};

use super::PolicyError;
use crate::image::digest::Digest;
use crate::spec::Seccomp;
use guard::{Answer, Arch, Guard, Test};
use profile::Kernel;

mod calls;
mod guard;
pub mod profile;

/// asm/ioctls.h: what is typed on a terminal, put there by a program.
const TIOCSTI: u32 = 0x5412;
/// asm/ioctls.h: the same by way of a console's selection.
const TIOCLINUX: u32 = 0x541c;
/// linux/socket.h: sockets to the hypervisor; no namespace separates them.
const AF_VSOCK: u32 = 40;
/// linux/sched.h: all CLONE_NEW* that clone(2) knows; each opens code of the
/// kernel that is otherwise out of reach without privilege.
const NAMESPACES: u32 = 0x7e02_0000;
/// linux/sched.h: CLONE_NEWTIME, to unshare(2) only (a signal to clone(2)).
const NEW_TIME: u32 = 0x80;
/// sys/personality.h: PER_LINUX and PER_LINUX32, with and without UNAME26, and
/// the question for the present one. Others weaken memory protection.
const PERSONALITIES: &[u32] = &[0, 8, 0x2_0000, 0x2_0008, u32::MAX];

const REFUSED: Answer = Answer::Errno(libc::EPERM as u16);
const PRETENDED: Answer = Answer::Errno(0);

/// For everybody but CAP_SYS_ADMIN.
const NAMESPACE_GUARDS: &[Guard] = &[
    Guard { calls: &["clone"], tests: &[(0, Test::AnyOf(NAMESPACES))], answer: REFUSED },
    Guard {
        calls: &["unshare"],
        tests: &[(0, Test::AnyOf(NAMESPACES | NEW_TIME))],
        answer: REFUSED,
    },
];

const GUARDS: &[Guard] = &[
    Guard { calls: &["ioctl"], tests: &[(1, Test::In(&[TIOCSTI, TIOCLINUX]))], answer: REFUSED },
    Guard { calls: &["socket"], tests: &[(0, Test::In(&[AF_VSOCK]))], answer: REFUSED },
    Guard { calls: &["personality"], tests: &[(0, Test::NotIn(PERSONALITIES))], answer: REFUSED },
];

/// An id that does not exist where 0 is the only one; -1 means "no change".
const OTHER: Test = Test::NotIn(&[0, u32::MAX]);
const OTHER16: Test = Test::NotIn16(&[0, u16::MAX]);

/// With a single id, on every architecture.
const SINGLE_ID: &[Guard] = &[
    Guard { calls: &["fchownat"], tests: &[(2, OTHER), (3, OTHER)], answer: Answer::Ask },
    Guard { calls: &["setgroups", "setgroups32"], tests: &[(0, Test::Always)], answer: PRETENDED },
];

/// With a single id, where ids have 32 bits: these names on 64-bit machines,
/// those with a suffix on 32-bit x86.
const SINGLE_ID_WIDE: [&[Guard]; 2] = [
    &[
        Guard {
            calls: &["chown", "fchown", "lchown"],
            tests: &[(1, OTHER), (2, OTHER)],
            answer: Answer::Ask,
        },
        Guard {
            calls: &["setuid", "setgid", "setfsuid", "setfsgid"],
            tests: &[(0, OTHER)],
            answer: PRETENDED,
        },
        Guard {
            calls: &["setreuid", "setregid"],
            tests: &[(0, OTHER), (1, OTHER)],
            answer: PRETENDED,
        },
        Guard {
            calls: &["setresuid", "setresgid"],
            tests: &[(0, OTHER), (1, OTHER), (2, OTHER)],
            answer: PRETENDED,
        },
    ],
    &[
        Guard {
            calls: &["chown32", "fchown32", "lchown32"],
            tests: &[(1, OTHER), (2, OTHER)],
            answer: Answer::Ask,
        },
        Guard {
            calls: &["setuid32", "setgid32", "setfsuid32", "setfsgid32"],
            tests: &[(0, OTHER)],
            answer: PRETENDED,
        },
        Guard {
            calls: &["setreuid32", "setregid32"],
            tests: &[(0, OTHER), (1, OTHER)],
            answer: PRETENDED,
        },
        Guard {
            calls: &["setresuid32", "setresgid32"],
            tests: &[(0, OTHER), (1, OTHER), (2, OTHER)],
            answer: PRETENDED,
        },
    ],
];

/// With a single id, the calls of 32-bit x86 whose ids have 16 bits.
const SINGLE_ID_NARROW: &[Guard] = &[
    Guard {
        calls: &["chown", "fchown", "lchown"],
        tests: &[(1, OTHER16), (2, OTHER16)],
        answer: Answer::Ask,
    },
    Guard {
        calls: &["setuid", "setgid", "setfsuid", "setfsgid"],
        tests: &[(0, OTHER16)],
        answer: PRETENDED,
    },
    Guard {
        calls: &["setreuid", "setregid"],
        tests: &[(0, OTHER16), (1, OTHER16)],
        answer: PRETENDED,
    },
    Guard {
        calls: &["setresuid", "setresgid"],
        tests: &[(0, OTHER16), (1, OTHER16), (2, OTHER16)],
        answer: PRETENDED,
    },
];

// linux/audit.h
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH_NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH_NATIVE: u32 = 0xc000_00b7;

/// `socket` on 32-bit x86, for which libseccomp gives a number of its own.
const SOCKET_I386: u32 = 359;

/// linux/bpf_common.h: BPF_MAXINSNS, instructions of a filter at most.
const LONGEST: usize = 4096;
/// CAP_SYS_ADMIN, number 21 (linux/capability.h).
const ADMIN: u64 = 1 << 21;

/// All that a filter is made from.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Which one is asked for.
    pub seccomp: &'a Seccomp,
    /// The capabilities of the container's root.
    pub capabilities: u64,
    /// Calls that the default filter refuses besides.
    pub deny: &'a [String],
    /// Only user and group 0 exist.
    ///
    /// The calls that change to ids which do not exist then pretend to succeed, and
    /// those that change owners to such ids are asked about: the filter needs a
    /// listener ([`crate::stage::owners`]).
    pub single_id: bool,
}

impl Source<'_> {
    fn admin(&self) -> bool {
        self.capabilities & ADMIN != 0
    }

    /// The filter, as an array of `struct sock_filter` in the machine's byte order;
    /// empty for none.
    ///
    /// # Errors
    /// [`PolicyError`] when libseccomp refuses, or the profile makes no sense.
    pub fn compile(&self) -> Result<Vec<u8>, PolicyError> {
        let guards: &[&[Guard]] = match self.seccomp {
            Seccomp::Default if self.admin() => &[GUARDS],
            Seccomp::Default => &[GUARDS, NAMESPACE_GUARDS],
            Seccomp::Unconfined if !self.single_id => return Ok(Vec::new()),
            Seccomp::Unconfined | Seccomp::Profile { .. } => &[],
        };
        let mut program = guard::assemble(&arches(guards, self.single_id)).concat();
        program.extend(match self.seccomp {
            Seccomp::Default => list(self.admin(), self.deny)?,
            Seccomp::Unconfined => guard::ALLOW.to_vec(),
            Seccomp::Profile { path, text } => profile::parse(text)
                .and_then(|profile| profile.filter(self.capabilities, kernel()))
                .and_then(|filter| export(&filter).map_err(|error| error.to_string()))
                .map_err(|why| PolicyError::Profile { path: path.clone(), why })?,
        });
        match (program.len() / size_of::<guard::Insn>(), self.seccomp) {
            (instructions, Seccomp::Profile { path, .. }) if instructions > LONGEST => {
                let why = format!(
                    "it makes a filter of {instructions} instructions, of which the kernel takes {LONGEST}"
                );
                Err(PolicyError::Profile { path: path.clone(), why })
            }
            _ => Ok(program),
        }
    }

    /// [`compile`](Self::compile), from a file in `dir` when it has been made before
    /// with all the same ingredients. The directory is made when missing.
    ///
    /// # Errors
    /// As [`compile`](Self::compile). A cache that cannot be read or written is done
    /// without.
    pub fn cached(&self, dir: &Path) -> Result<Vec<u8>, PolicyError> {
        let ingredients = self.ingredients()?;
        let path = dir.join(format!("seccomp-{:016x}", fnv(ingredients.as_bytes())));
        if let Ok(program) = read_cached(&path, &ingredients) {
            return Ok(program);
        }
        let program = self.compile()?;
        let mut file = ingredients.into_bytes();
        file.extend(fnv(&program).to_ne_bytes());
        file.extend(&program);
        let written = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        if let Err(error) = written.and_then(|()| crate::store::replace(&path, &file)) {
            tracing::debug!("cannot keep the system call filter in {}: {error}", path.display());
        }
        Ok(program)
    }

    /// All that the filter depends on, as one line.
    fn ingredients(&self) -> Result<String, PolicyError> {
        let library = ScmpVersion::current().map_err(refused)?;
        let data = format!(
            "{:?}",
            (
                (calls::ALLOWED, calls::ADMIN, calls::DENIED),
                (GUARDS, NAMESPACE_GUARDS, SINGLE_ID, SINGLE_ID_WIDE, SINGLE_ID_NARROW),
            )
        );
        let which = match self.seccomp {
            Seccomp::Default => format!("default admin={} without {:?}", self.admin(), self.deny),
            Seccomp::Unconfined => "unconfined".to_owned(),
            // Its rules may depend on capabilities and kernel.
            Seccomp::Profile { text, .. } => format!(
                "profile {} for {:x} on {:?}",
                Digest::of(text.as_bytes()),
                self.capabilities,
                kernel()
            ),
        };
        Ok(format!(
            "coracle {} {:016x} libseccomp {library} {} {which} single_id={}\n",
            env!("CARGO_PKG_VERSION"),
            fnv(data.as_bytes()),
            std::env::consts::ARCH,
            self.single_id,
        ))
    }
}

/// The kernel that runs; one that does not tell is older than all others.
fn kernel() -> Kernel {
    let name = nix::sys::utsname::uname().ok();
    let release = name.as_ref().map(|name| name.release().to_string_lossy());
    release.and_then(|release| Kernel::parse(&release)).unwrap_or_default()
}

fn read_cached(path: &Path, ingredients: &str) -> io::Result<Vec<u8>> {
    let file = fs::read(path)?;
    let stale = || io::Error::from(io::ErrorKind::InvalidData);
    let rest = file.strip_prefix(ingredients.as_bytes()).ok_or_else(stale)?;
    let (sum, program) = rest.split_first_chunk().ok_or_else(stale)?;
    if u64::from_ne_bytes(*sum) != fnv(program) {
        return Err(stale());
    }
    Ok(program.to_owned())
}

/// Fowler, Noll, Vo, variant 1a, 64 bits: tells accidents, not attacks.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Numbers of the guarded calls on the architectures of the filter.
fn arches(guards: &[&'static [Guard]], single_id: bool) -> Vec<Arch> {
    let of = |arch, token, ids: &[&'static [Guard]]| {
        let ids = ids.iter().copied().flatten().filter(|_| single_id);
        let guarded = guards.iter().copied().flatten().chain(ids).flat_map(|guard| {
            guard.calls.iter().filter_map(move |call| Some((number(call, arch)?, *guard)))
        });
        Arch { token, guarded: guarded.collect() }
    };
    let mut arches = vec![of(ScmpArch::Native, AUDIT_ARCH_NATIVE, &[SINGLE_ID, SINGLE_ID_WIDE[0]])];
    if cfg!(target_arch = "x86_64") {
        let ids = [SINGLE_ID, SINGLE_ID_WIDE[1], SINGLE_ID_NARROW];
        arches.push(of(ScmpArch::X86, AUDIT_ARCH_I386, &ids));
    }
    arches
}

/// The number of a call; `None` where the architecture does not have it.
fn number(call: &str, arch: ScmpArch) -> Option<u32> {
    if arch == ScmpArch::X86 && call == "socket" {
        return Some(SOCKET_I386);
    }
    let number = ScmpSyscall::from_name_by_arch(call, arch).ok()?.as_raw_syscall();
    u32::try_from(number).ok()
}

/// The list of calls, by libseccomp.
fn list(admin: bool, refuse: &[String]) -> Result<Vec<u8>, PolicyError> {
    let missing = ScmpAction::Errno(libc::ENOSYS);
    let mut filter = ScmpFilterContext::new(missing).map_err(refused)?;
    filter.set_act_badarch(missing).map_err(refused)?;
    // A binary search in place of a walk.
    filter.set_ctl_optimize(2).map_err(refused)?;
    if cfg!(target_arch = "x86_64") {
        filter.add_arch(ScmpArch::X86).map_err(refused)?;
    }
    let allowed = calls::ALLOWED.iter().copied().flatten().map(|call| (call, ScmpAction::Allow));
    let eperm = ScmpAction::Errno(libc::EPERM);
    let mounts = if admin { ScmpAction::Allow } else { eperm };
    let denied = calls::DENIED.iter().map(|call| (call, eperm));
    let mounts = calls::ADMIN.iter().map(|call| (call, mounts));
    for (call, action) in allowed.chain(denied).chain(mounts) {
        let action = if refuse.iter().any(|name| name == call) { eperm } else { action };
        // A name this libseccomp does not know is a call younger than it: it
        // stays unknown to the container as well.
        if let Ok(call) = ScmpSyscall::from_name(call) {
            filter.add_rule(action, call).map_err(refused)?;
        }
    }
    export(&filter)
}

/// What libseccomp has put together, as the kernel takes it.
fn export(filter: &ScmpFilterContext) -> Result<Vec<u8>, PolicyError> {
    let program = || -> io::Result<Vec<u8>> {
        let mut file = File::from(nix::sys::memfd::memfd_create(
            c"seccomp",
            nix::sys::memfd::MFdFlags::MFD_CLOEXEC,
        )?);
        filter.export_bpf(&file).map_err(io::Error::other)?;
        let mut program = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut program)?;
        Ok(program)
    };
    program().map_err(refused)
}

fn refused(error: impl std::fmt::Display) -> PolicyError {
    PolicyError::Seccomp(error.to_string())
}

#[cfg(test)]
mod tests;
