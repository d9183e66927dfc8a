//! Becoming the workload: identity, capabilities, filter, and exec.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, chdir, getpid, getsid, setgroups, setresgid, setresuid, setsid};

use super::confine;
use super::passwd::{self, Identity};
use crate::channel::{Channel, Context, Fault, Listen};
use crate::plan::{self, Workload};
use crate::sys::process::{self, Forked};
use crate::sys::{fd, tty};
use crate::ulimit;

/// No file of users is longer than this many bytes.
const LONGEST_FILE: u64 = 16 << 20;

/// Looks up as whom `workload` runs, in the files of the root this process has.
///
/// # Errors
/// A fault that names the missing user or group.
pub fn identity(workload: &Workload) -> Result<Identity, Fault> {
    let read = |path: &str| -> String {
        // A missing file has no users in it; numbers need none. A FIFO or a
        // terminal in its place must not keep us waiting.
        let mut bytes = Vec::new();
        let read = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .and_then(|file| {
                let regular = file.metadata()?.is_file();
                if regular { file.take(LONGEST_FILE).read_to_end(&mut bytes) } else { Ok(0) }
            });
        if read.is_err() {
            return String::new();
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let user = workload.user.as_deref();
    let identity = passwd::identity(user, &read("/etc/passwd"), &read("/etc/group"))
        .map_err(|unknown| Fault::said(unknown.to_string()))?;
    if workload.single_id && (identity.uid, identity.gid) != (0, 0) {
        return Err(Fault::said(format!(
            "only root exists in this container, not user {}:{}; ask the administrator for \
             subordinate ids (usermod --add-subuids and --add-subgids)",
            identity.uid, identity.gid
        )));
    }
    Ok(identity)
}

/// The system call filter, and who answers what it asks.
#[derive(Debug)]
pub struct Filter<'a> {
    /// Instructions; none: no filter.
    pub code: &'a [u8],
    /// To the stage that keeps owners.
    pub owners: Option<Channel>,
}

/// Forks and executes the workload in the child, which sees this process under
/// the number `parent` (0: not at all) and dies with it.
///
/// Returns the child's number once the program has been executed. The fault
/// has the exit code: 127 when it was not found, 126 when it could not be
/// executed, 125 for what is ours.
///
/// # Errors
/// As said.
pub fn start(
    workload: &Workload,
    identity: &Identity,
    filter: Filter<'_>,
    slave: Option<OwnedFd>,
    parent: i32,
) -> Result<i32, Fault> {
    let (mut failed, mut tell_failed) = io::pipe().context(|| "cannot make a pipe")?;
    match process::fork().context(|| "cannot fork the workload")? {
        Forked::Child => {
            drop(failed);
            let fault = become_workload(workload, identity, &filter, slave.as_ref(), parent);
            let code = fault.code;
            // Without a listener only the exit code can tell.
            let told = serde_json::to_vec(&fault)
                .map_err(io::Error::from)
                .and_then(|bytes| tell_failed.write_all(&bytes));
            process::exit_now(if told.is_ok() { code } else { 125 });
        }
        Forked::Parent(pid) => {
            drop((tell_failed, slave, filter));
            let mut bytes = Vec::new();
            failed.read_to_end(&mut bytes).context(|| "cannot hear of the workload")?;
            if bytes.is_empty() {
                return Ok(pid);
            }
            // Reaped by nobody else in time: where the process is another's child
            // afterwards, it would keep the PID namespace from ending.
            process::reap(pid);
            Err(serde_json::from_slice(&bytes)
                .unwrap_or_else(|_| Fault::said("the workload failed in an unknown way")))
        }
    }
}

/// Executes the workload in place of the container's first process. Returns only
/// on failure.
pub fn become_first(
    workload: &Workload,
    identity: &Identity,
    filter: &Filter<'_>,
    slave: Option<&OwnedFd>,
) -> Fault {
    // Its parent, the monitor, lies outside of its pid namespace: number 0.
    become_workload(workload, identity, filter, slave, 0)
}

fn become_workload(
    workload: &Workload,
    identity: &Identity,
    filter: &Filter<'_>,
    slave: Option<&OwnedFd>,
    parent: i32,
) -> Fault {
    match prepare(workload, identity, filter, slave.map(AsFd::as_fd), parent) {
        Ok((argv, env)) => execute(workload, &argv, &env),
        Err(fault) => fault,
    }
}

type Strings = Vec<CString>;

fn prepare(
    workload: &Workload,
    identity: &Identity,
    filter: &Filter<'_>,
    slave: Option<BorrowedFd<'_>>,
    parent: i32,
) -> Result<(Strings, Strings), Fault> {
    let c_strings = |strings: Vec<String>| -> Result<Strings, Fault> {
        strings
            .into_iter()
            .map(CString::new)
            .collect::<Result<_, _>>()
            .context(|| "an argument or a variable contains a NUL")
    };
    let argv = c_strings(workload.command.clone())?;
    let env = c_strings(environment(&workload.env, identity))?;
    // A session of its own: it has no way to the caller's terminal (TIOCSTI),
    // and a key pressed there reaches it once, through the monitor.
    // The container's first process leads one already.
    if getsid(None) != Ok(getpid()) {
        setsid().context(|| "cannot make a session")?;
    }
    if let Some(slave) = slave {
        tty::make_controlling(slave).context(|| "cannot take the pseudo-terminal")?;
        nix::unistd::fchown(slave, Some(Uid::from_raw(identity.uid)), None)
            .context(|| "cannot give the pseudo-terminal to the user")?;
        for number in 0..=2 {
            fd::become_standard(slave, number).context(|| "cannot use the pseudo-terminal")?;
        }
    }
    fd::close_all_on_exec().context(|| "cannot mark descriptors close-on-exec")?;
    let rules = workload.confinement.landlock.as_ref().map(confine::ruleset).transpose()?;
    ulimit::set(&workload.ulimits)?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    if !workload.single_id {
        let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
        setgroups(&groups).context(|| "cannot set the groups")?;
    }
    // setresuid(2): EINVAL for an id that the user namespace does not have.
    let refused = |what: String, errno: Errno| {
        let hint = match errno {
            Errno::EINVAL => " (the container has no such id: see IDMappings in 'coracle inspect')",
            _ => "",
        };
        Fault::new(what + hint, errno)
    };
    setresgid(gid, gid, gid).map_err(|e| refused(format!("cannot become group {gid}"), e))?;
    setresuid(uid, uid, uid).map_err(|e| refused(format!("cannot become user {uid}"), e))?;
    // After the change of identity, which forgets the request.
    process::die_with_parent(parent).context(|| "the container's init is gone")?;
    let keep = if uid.is_root() { workload.capabilities } else { 0 };
    process::set_capabilities(keep).context(|| "cannot give up capabilities")?;
    if let Err(errno) = chdir(&workload.workdir) {
        let what = format!("cannot change to the directory {}", workload.workdir.display());
        return Err(Fault { code: 126, ..Fault::new(what, errno) });
    }
    process::reset_signals();
    nix::sys::prctl::set_no_new_privs().context(|| "cannot set no_new_privs")?;
    if let Some(rules) = rules {
        rules.restrict().context(|| "cannot put the Landlock rules into force")?;
    }
    load(filter)?;
    Ok((argv, env))
}

fn load(filter: &Filter<'_>) -> Result<(), Fault> {
    let what = || "cannot load the system call filter";
    match &filter.owners {
        _ if filter.code.is_empty() => Ok(()),
        None => process::load_filter(filter.code).context(what),
        Some(owners) => {
            let device = nix::sys::stat::stat("/").context(|| "cannot look at the root")?.st_dev;
            let listener = process::load_filter_with_listener(filter.code).context(what)?;
            owners
                .send(&Listen { device }, &[listener.as_fd()])
                .context(|| "cannot reach the stage that keeps owners")
        }
    }
}

/// `NAME=VALUE` of every variable; HOME is the user's unless given.
fn environment(given: &BTreeMap<String, String>, identity: &Identity) -> Vec<String> {
    let mut all: Vec<String> =
        given.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if !given.contains_key("HOME") {
        all.push(format!("HOME={}", identity.home.display()));
    }
    all
}

fn execute(workload: &Workload, argv: &[CString], env: &[CString]) -> Fault {
    let name = workload.command.first().map_or("", String::as_str);
    let path = workload.env.get("PATH").map_or(plan::PATH, String::as_str);
    let mut worst = Errno::ENOENT;
    for candidate in candidates(name, path) {
        let Ok(candidate) = super::storage::c_path(&candidate) else { continue };
        let Err(errno) = nix::unistd::execve(&candidate, argv, env);
        match errno {
            Errno::ENOENT | Errno::ENOTDIR => {}
            // Perhaps there is one further on that may be executed.
            Errno::EACCES => worst = errno,
            _ => {
                worst = errno;
                break;
            }
        }
    }
    let code = if worst == Errno::ENOENT { 127 } else { 126 };
    Fault { code, ..Fault::new(format!("cannot execute '{name}'"), worst) }
}

/// Has the kernel read the beginning of the workload's program, while the rest is done.
/// To be called in the container's root. That it comes to nothing is no failure: who
/// executes the program says why.
pub fn read_ahead(workload: &Workload) {
    /// Bytes: what a program reads of itself as it starts is in there, most of the time. More
    /// costs more than it brings.
    const MOST: i64 = 256 << 10;
    let name = workload.command.first().map_or("", String::as_str);
    let path = workload.env.get("PATH").map_or(plan::PATH, String::as_str);
    // Whatever lies there in the program's place: it is not waited for, and nothing is done to it.
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let absolute = candidates(name, path).into_iter().filter(|candidate| candidate.is_absolute());
    for candidate in absolute {
        match nix::fcntl::open(&candidate, flags, Mode::empty()) {
            Ok(program) => {
                let advice = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
                posix_fadvise(&program, 0, MOST, advice).ok();
                return;
            }
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(_) => return,
        }
    }
}

/// Where a program may be: itself when it has a slash, else below each
/// directory of the search path (an empty one is the working directory).
fn candidates(name: &str, path: &str) -> Vec<PathBuf> {
    if name.is_empty() {
        return Vec::new();
    }
    if name.contains('/') {
        return vec![name.into()];
    }
    path.split(':')
        .map(|dir| if dir.is_empty() { Path::new(".") } else { Path::new(dir) })
        .map(|dir| dir.join(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_for_in_order() {
        let list = |name, path| -> Vec<String> {
            candidates(name, path).iter().map(|p| p.display().to_string()).collect()
        };
        assert_eq!(list("sh", "/a:/b::c"), ["/a/sh", "/b/sh", "./sh", "c/sh"]);
        assert_eq!(list("/x/sh", "/a"), ["/x/sh"]);
        assert_eq!(list("./sh", "/a"), ["./sh"]);
        assert!(list("", "/a").is_empty());
    }

    #[test]
    fn home_is_the_users_unless_given() {
        let identity = Identity { uid: 0, gid: 0, groups: vec![], home: "/root".into() };
        let mut given = BTreeMap::from([("A".to_owned(), "b=c".to_owned())]);
        assert_eq!(environment(&given, &identity), ["A=b=c", "HOME=/root"]);
        given.insert("HOME".to_owned(), "/x".to_owned());
        assert_eq!(environment(&given, &identity), ["A=b=c", "HOME=/x"]);
    }
}
