//! Bounds of each process (getrlimit(2)).

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

use crate::channel::{Context, Fault};
use crate::spec::Ulimit;

/// What bounds are called on the command line.
const NAMES: [(&str, Resource); 16] = [
    ("as", Resource::RLIMIT_AS),
    ("core", Resource::RLIMIT_CORE),
    ("cpu", Resource::RLIMIT_CPU),
    ("data", Resource::RLIMIT_DATA),
    ("fsize", Resource::RLIMIT_FSIZE),
    ("locks", Resource::RLIMIT_LOCKS),
    ("memlock", Resource::RLIMIT_MEMLOCK),
    ("msgqueue", Resource::RLIMIT_MSGQUEUE),
    ("nice", Resource::RLIMIT_NICE),
    ("nofile", Resource::RLIMIT_NOFILE),
    ("nproc", Resource::RLIMIT_NPROC),
    ("rss", Resource::RLIMIT_RSS),
    ("rtprio", Resource::RLIMIT_RTPRIO),
    ("rttime", Resource::RLIMIT_RTTIME),
    ("sigpending", Resource::RLIMIT_SIGPENDING),
    ("stack", Resource::RLIMIT_STACK),
];

/// All names.
pub fn names() -> impl Iterator<Item = &'static str> {
    NAMES.iter().map(|(name, _)| *name)
}

/// Sets bounds of this process and those it makes.
///
/// # Errors
/// A fault that says which one, and how far the host lets it be raised.
pub fn set(all: &[Ulimit]) -> Result<(), Fault> {
    for Ulimit { name, soft, hard } in all {
        let known = NAMES.iter().find(|(known, _)| known == name);
        let Some((_, resource)) = known else {
            return Err(Fault::said(format!("there is no bound named {name}")));
        };
        let value = |bound: &Option<u64>| bound.unwrap_or(RLIM_INFINITY);
        setrlimit(*resource, value(soft), value(hard)).context(|| {
            let most = getrlimit(*resource).map_or(RLIM_INFINITY, |(_, hard)| hard);
            let most = if most == RLIM_INFINITY { "unlimited".into() } else { most.to_string() };
            format!("cannot set --ulimit {name} (this user's hard limit is {most})")
        })?;
    }
    Ok(())
}
