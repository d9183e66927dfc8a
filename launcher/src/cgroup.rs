//! Control groups of version 2, as far as they are delegated to the caller
//! (cgroups(7), Documentation/admin-guide/cgroup-v2.rst).
//!
//! A group for containers can be made below any group that the caller may write
//! to and that holds this process, too. Freezing and killing need no more. Limits
//! need controllers, which a group passes on only while no process is in it: so
//! the nearest ancestor that can is taken, which in a user's session is a slice,
//! or this process, when it is alone in its group, moves one level down.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{AccessFlags, access};

use crate::clock;
use crate::probe::Place;

/// How long the kernel may take to freeze or empty a group.
const PATIENCE: Duration = Duration::from_secs(10);

/// Looks for places, the nearest first.
#[must_use]
pub fn places() -> Vec<Place> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let found = find(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"));
    // A mount may lie below another one, out of sight.
    let seen = found.into_iter().find(|(_, own)| own.join("cgroup.procs").exists());
    let Some((mount, own)) = seen else { return Vec::new() };
    let writable = |path: &Path| access(path, AccessFlags::W_OK).is_ok();
    let mut places = Vec::new();
    for dir in own.ancestors().take_while(|dir| dir.starts_with(&mount)) {
        // Moving a process takes the right to write at the nearest common ancestor.
        if !writable(dir) || !writable(&dir.join("cgroup.procs")) {
            break;
        }
        let words = |file: &str| -> Vec<String> {
            let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
            text.split_whitespace().map(str::to_owned).collect()
        };
        let inside = words("cgroup.procs");
        let alone = inside == [std::process::id().to_string()];
        let mut controllers = words("cgroup.subtree_control");
        // The root of a hierarchy passes on even while processes are in it.
        let free = inside.is_empty() || alone || !dir.join("cgroup.type").exists();
        let mut leave = false;
        if free && writable(&dir.join("cgroup.subtree_control")) {
            let more = words("cgroup.controllers");
            leave = alone && more.iter().any(|controller| !controllers.contains(controller));
            controllers = more;
        }
        places.push(Place { dir: dir.to_owned(), controllers, leave });
    }
    places
}

/// Where the hierarchy is mounted, and the directory of this process's group, by
/// each mount.
fn find(mounts: &str, groups: &str) -> Vec<(PathBuf, PathBuf)> {
    let Some(group) = groups.lines().find_map(|line| line.strip_prefix("0::")) else {
        return Vec::new();
    };
    let by_mount = mounts.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        if right.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = left.split(' ').skip(3);
        let (root, mount) = (fields.next()?, PathBuf::from(fields.next()?));
        let below = Path::new(group).strip_prefix(root).ok()?;
        let own = mount.join(below);
        Some((mount, own))
    });
    by_mount.collect()
}

/// Has this process leave the group `dir` for one below it.
///
/// # Errors
/// As of mkdir(2), write(2).
pub fn leave(dir: &Path) -> io::Result<()> {
    let below = dir.join("coracle");
    match fs::create_dir(&below) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    put(&below.join("cgroup.procs"), "0")
}

/// Makes a group. A dead one of the same name is replaced.
///
/// # Errors
/// As of mkdir(2); EBUSY when somebody is in the old one.
pub fn make(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_dir(dir)?;
            fs::create_dir(dir)
        }
        result => result,
    }
}

/// Has a group pass these controllers on.
///
/// # Errors
/// As of write(2).
pub fn enable(dir: &Path, controllers: &[String]) -> io::Result<()> {
    if controllers.is_empty() {
        return Ok(());
    }
    let words: Vec<String> = controllers.iter().map(|name| format!("+{name}")).collect();
    put(&dir.join("cgroup.subtree_control"), &words.join(" "))
}

/// Writes into one of a group's files, which must be there.
///
/// # Errors
/// As of open(2), write(2).
pub fn put(path: &Path, value: &str) -> io::Result<()> {
    File::options().write(true).open(path)?.write_all(value.as_bytes())
}

/// A descriptor of a group, to make a process in it.
///
/// # Errors
/// As of open(2).
pub fn open(dir: &Path) -> io::Result<OwnedFd> {
    Ok(File::open(dir)?.into())
}

/// Puts a process into a group.
///
/// # Errors
/// As of write(2).
pub fn enter(dir: &Path, pid: i32) -> io::Result<()> {
    put(&dir.join("cgroup.procs"), &pid.to_string())
}

/// Ends all processes of a group and removes it. One that is not there is none.
///
/// # Errors
/// When somebody stays in it.
pub fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // Somebody is in it.
        Err(_) => {}
    }
    put(&dir.join("cgroup.kill"), "1")?;
    wait_for(dir, "populated", false)?;
    fs::remove_dir(dir)
}

/// Whether a group is frozen.
#[must_use]
pub fn is_frozen(dir: &Path) -> bool {
    says(dir, "frozen") == Some(true)
}

/// Waits until nobody else freezes a group, or lets it go on, for as long as what this
/// gives is held.
///
/// # Errors
/// As of open(2), flock(2).
pub fn lock(dir: &Path) -> io::Result<File> {
    let file = File::open(dir)?;
    loop {
        match file.lock() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            locked => return locked.map(|()| file),
        }
    }
}

/// Freezes a group, or lets it go on, and waits until it is so.
///
/// # Errors
/// As of write(2); TimedOut.
pub fn freeze(dir: &Path, frozen: bool) -> io::Result<()> {
    put(&dir.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
    wait_for(dir, "frozen", frozen)
}

/// What `cgroup.events` says under this name.
fn says(dir: &Path, name: &str) -> Option<bool> {
    event(&fs::read_to_string(dir.join("cgroup.events")).ok()?, name)
}

fn event(text: &str, name: &str) -> Option<bool> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        (key == name).then_some(value == "1")
    })
}

fn wait_for(dir: &Path, name: &str, wanted: bool) -> io::Result<()> {
    let deadline = clock::monotonic() + PATIENCE;
    // Opened before the first look: a change after that look wakes us.
    let events = File::open(dir.join("cgroup.events"))?;
    loop {
        if says(dir, name) == Some(wanted) {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(clock::monotonic());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // Each read through the descriptor arms it anew.
        let mut file = &events;
        io::Seek::rewind(&mut file)?;
        let mut text = String::new();
        io::Read::read_to_string(&mut file, &mut text)?;
        if event(&text, name) == Some(wanted) {
            return Ok(());
        }
        let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found() {
        let place = |mounts: &str, groups: &str| {
            find(mounts, groups)
                .pop()
                .map(|(mount, own)| (mount.display().to_string(), own.display().to_string()))
        };
        let unified = "24 30 0:22 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(
            place(unified, "0::/user.slice/x.scope\n"),
            Some(("/sys/fs/cgroup".into(), "/sys/fs/cgroup/user.slice/x.scope".into()))
        );
        // Both versions, and a mount of a part.
        let hybrid = "24 30 0:22 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                      25 30 0:23 /a /mnt/u rw - cgroup2 none rw\n";
        assert_eq!(
            place(hybrid, "9:pids:/\n0::/a/b\n"),
            Some(("/mnt/u".into(), "/mnt/u/b".into()))
        );
        assert_eq!(place(hybrid, "0::/elsewhere\n"), None);
        assert_eq!(place(unified, "9:pids:/\n"), None);
        assert_eq!(place("", "0::/\n"), None);
    }

    #[test]
    fn events_are_read_by_name() {
        let text = "populated 1\nfrozen 0\n";
        assert_eq!(event(text, "populated"), Some(true));
        assert_eq!(event(text, "frozen"), Some(false));
        assert_eq!(event(text, "other"), None);
    }
}
