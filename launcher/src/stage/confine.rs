//! Putting a workload's Landlock rules together: see [`crate::policy::landlock`].

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{FileStat, SFlag, fstat};

use crate::channel::{Context, Fault};
use crate::policy::landlock::{Access, Rules, handled};
use crate::sys::landlock::Ruleset;

/// The rules, of paths in the root that this process has. Made while it may still look
/// everywhere; put into force later.
///
/// # Errors
/// When the kernel refuses.
pub fn ruleset(rules: &Rules) -> Result<Ruleset, Fault> {
    let version = rules.version;
    let what = || "cannot make the Landlock rules";
    let (bind, connect) = (rules.bind.is_some(), rules.connect.is_some());
    let set =
        Ruleset::new(version, handled(version), bind, connect, rules.own_sockets).context(what)?;
    for rule in &rules.beneath {
        let what = || format!("cannot make the Landlock rule for {}", rule.path.display());
        let file = match File::options().read(true).custom_flags(libc::O_PATH).open(&rule.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file.context(what)?,
        };
        let bits = rule.access.bits(version, is_directory(&fstat(&file).context(what)?));
        if bits != 0 {
            set.allow_beneath(file.as_fd(), bits).context(what)?;
        }
    }
    for (ports, connect) in [(&rules.bind, false), (&rules.connect, true)] {
        for port in ports.iter().flatten() {
            set.allow_port(*port, connect)
                .context(|| format!("cannot make the Landlock rule for port {port}"))?;
        }
    }
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    for stream in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        allow_stream(&set, version, stream).context(what)?;
    }
    Ok(set)
}

/// Input and output may lie anywhere. Programs that open /dev/stdout mean this one file,
/// in the way it was opened; of a directory nothing.
fn allow_stream(set: &Ruleset, version: u32, stream: BorrowedFd<'_>) -> io::Result<()> {
    let (Ok(stat), Ok(flags)) = (fstat(stream), fcntl(stream, FcntlArg::F_GETFL)) else {
        // It is closed.
        return Ok(());
    };
    if is_directory(&stat) {
        return Ok(());
    }
    let mode = OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE;
    let access =
        Access { read: mode != OFlag::O_WRONLY, write: mode != OFlag::O_RDONLY, execute: false };
    match set.allow_beneath(stream, access.bits(version, false)) {
        // A pipe or a socket: nothing that Landlock looks at.
        Err(error) if error.raw_os_error() == Some(Errno::EBADFD as i32) => Ok(()),
        result => result,
    }
}

fn is_directory(stat: &FileStat) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits()
}
