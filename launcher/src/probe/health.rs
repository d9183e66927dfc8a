//! How healthy this host is for containers: everything that can be in the way, looked at
//! and tried. What to make of it is `doctor`'s, which is pure.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::sys::statfs::statfs;
use nix::unistd::{AccessFlags, access, geteuid};

use super::HostCaps;
use crate::database;
use crate::idmap::IdMap;
use crate::image::attributes::OPAQUE;
use crate::spawn;
use crate::store::Store;
use crate::sys::userns::enter_with_map;
use crate::sys::xattr;

/// A program that writes id maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Helper {
    /// Not in $PATH.
    Missing,
    /// Without set-user-id bit or file capabilities it can do nothing.
    Powerless(PathBuf),
    /// As it should be.
    There,
}

/// A device file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// It can be opened.
    Usable,
    /// It is not there.
    Missing,
    /// It is there, and cannot be opened, for this reason.
    Closed(String),
}

/// Cgroups of version 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cgroup {
    /// None are mounted, or this process is in none.
    None,
    /// This process's own cgroup, which belongs to somebody else.
    NotDelegated(PathBuf),
    /// It is the caller's, with these controllers.
    Delegated(Vec<String>),
}

/// The directory in which containers are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its path; empty when nothing says where it is.
    pub path: PathBuf,
    /// What kind of file system it is on, when that is one of a network.
    pub network: Option<&'static str>,
    /// What could not be done with files in there.
    pub trouble: Option<String>,
}

/// All that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// What runs depend on.
    pub caps: HostCaps,
    /// The caller's name, or number.
    pub user: String,
    /// As /etc/subuid grants them, and /etc/subgid: how many ids.
    pub granted: [u64; 2],
    /// newuidmap and newgidmap.
    pub helpers: [Helper; 2],
    /// Why no user namespace can be made and mounted in.
    pub namespace: Option<String>,
    /// Why one with all the caller's ids cannot.
    pub mapped: Option<String>,
    /// Of user.max_user_namespaces.
    pub most_namespaces: Option<u64>,
    /// Of kernel.unprivileged_userns_clone, where it exists.
    pub clone_allowed: Option<bool>,
    /// Of kernel.apparmor_restrict_unprivileged_userns, where it exists.
    pub apparmor_restricts: Option<bool>,
    /// /dev/fuse.
    pub fuse: Device,
    /// /dev/net/tun.
    pub tun: Device,
    /// net.ipv4.ping_group_range has the caller's group.
    pub ping: bool,
    /// The lowest port the caller may listen on.
    pub lowest_port: Option<u16>,
    /// Where limits could be set.
    pub cgroup: Cgroup,
    /// Where containers are kept.
    pub place: Place,
    /// XDG_RUNTIME_DIR; why it is of no use otherwise.
    pub runtime_dir: Result<PathBuf, String>,
}

/// Looks, and tries.
pub fn health() -> Health {
    let caps = super::probe(super::id_map(), true);
    let single = IdMap { uids: caps.map.uids[..1].to_vec(), gids: caps.map.gids[..1].to_vec() };
    let namespace = enter_with_map(&single, namespaces).err().map(|error| in_words(&error));
    // Without namespaces there is nothing to be told of their ids.
    let mapped = match (&namespace, caps.map.is_single()) {
        (None, false) => enter_with_map(&caps.map, namespaces).err().map(|error| in_words(&error)),
        _ => None,
    };
    let user = database::caller().ok().flatten();
    let user = user.map_or_else(|| geteuid().to_string(), |user| user.name);
    let works = if namespace.is_none() && mapped.is_none() { Some(&caps.map) } else { None };
    Health {
        granted: super::granted_ids(),
        helpers: ["newuidmap", "newgidmap"].map(helper),
        most_namespaces: number("/proc/sys/user/max_user_namespaces"),
        clone_allowed: number("/proc/sys/kernel/unprivileged_userns_clone").map(|n| n != 0),
        apparmor_restricts: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
            .map(|n| n != 0),
        fuse: device("/dev/fuse"),
        tun: device("/dev/net/tun"),
        ping: may_ping(),
        lowest_port: number("/proc/sys/net/ipv4/ip_unprivileged_port_start")
            .and_then(|port| u16::try_from(port).ok()),
        cgroup: cgroup(),
        place: place(works),
        runtime_dir: runtime_dir(),
        user,
        namespace,
        mapped,
        caps,
    }
}

fn in_words(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Mounting is what a profile of AppArmor's forbids, and not the namespace.
fn namespaces() -> Result<Vec<u8>, String> {
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .map_err(|errno| format!("cannot mount in it: {}", errno.desc()))?;
    Ok(Vec::new())
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn helper(name: &str) -> Helper {
    let Some(path) = spawn::find_in_path(name) else { return Helper::Missing };
    let set_id = fs::metadata(&path)
        .is_ok_and(|meta| meta.uid() == 0 && meta.permissions().mode() & libc::S_ISUID != 0);
    let capable = xattr::get(&path, c"security.capability").is_ok_and(|value| value.is_some());
    if set_id || capable || geteuid().is_root() { Helper::There } else { Helper::Powerless(path) }
}

fn device(path: &str) -> Device {
    match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Device::Usable,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Device::Missing,
        Err(error) => Device::Closed(error.to_string()),
    }
}

/// By trying: which of the caller's groups counts is the kernel's to say.
fn may_ping() -> bool {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
    let flags = SockFlag::SOCK_CLOEXEC;
    socket(AddressFamily::Inet, SockType::Datagram, flags, SockProtocol::Icmp).is_ok()
}

fn cgroup() -> Cgroup {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let own = read("/proc/self/cgroup");
    let Some(own) = own.lines().find_map(|line| line.strip_prefix("0::")) else {
        return Cgroup::None;
    };
    let mounts = read("/proc/self/mounts");
    // The last of them may lie over the others.
    let mounted = mounts.lines().rev().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let at = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(at))
    });
    let Some(mounted) = mounted else { return Cgroup::None };
    let dir = mounted.join(own.trim_start_matches('/'));
    let ours = access(&dir, AccessFlags::W_OK).is_ok()
        && access(&dir.join("cgroup.procs"), AccessFlags::W_OK).is_ok();
    if !ours {
        return Cgroup::NotDelegated(dir);
    }
    let controllers = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    Cgroup::Delegated(controllers.split_whitespace().map(str::to_owned).collect())
}

/// `map`: the ids that can be given to files.
fn place(map: Option<&IdMap>) -> Place {
    let store = match Store::open() {
        Ok(store) => store,
        Err(error) => {
            let trouble = Some(in_words(&error));
            return Place { path: PathBuf::new(), network: None, trouble };
        }
    };
    let path = store.root().to_owned();
    let network = statfs(&path).ok().and_then(|found| network(found.filesystem_type().0 as u64));
    let trial = path.join(format!("trial-{}", std::process::id()));
    let tried = map.map_or(Ok(Vec::new()), |map| {
        enter_with_map(map, || {
            let tried = try_files(&trial, map);
            // What was made of it goes, whatever came of it.
            let removed = fs::remove_dir_all(&trial);
            tried?;
            removed.map_err(|error| format!("files cannot be removed: {error}"))?;
            Ok(Vec::new())
        })
    });
    Place { path, network, trouble: tried.err().map(|error| in_words(&error)) }
}

/// What an upper layer needs.
fn try_files(dir: &Path, map: &IdMap) -> Result<(), String> {
    let failed = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    fs::create_dir(dir).map_err(failed("no directory can be made"))?;
    let file = dir.join("file");
    fs::write(&file, "x").map_err(failed("no file can be written"))?;
    let name = std::ffi::CString::new(file.as_os_str().as_encoded_bytes())
        .map_err(|_| "its path has a NUL".to_owned())?;
    xattr::set(&name, OPAQUE, b"n").map_err(failed("extended attributes cannot be kept"))?;
    if !map.is_single() {
        std::os::unix::fs::chown(&file, Some(1), Some(1))
            .map_err(failed("files cannot belong to subordinate ids"))?;
    }
    let mode = Mode::from_bits_truncate(0o600);
    mknod(&dir.join("whiteout"), SFlag::S_IFCHR, mode, 0)
        .or_else(|errno| match errno {
            // Then a file marks what was removed.
            nix::errno::Errno::EPERM | nix::errno::Errno::EOPNOTSUPP => Ok(()),
            other => Err(other),
        })
        .map_err(|errno| failed("what was removed cannot be marked")(errno.into()))
}

/// Kinds of file systems that other machines serve, by statfs(2)'s number
/// (linux/magic.h).
fn network(magic: u64) -> Option<&'static str> {
    Some(match magic {
        0x6969 => "NFS",
        0x517B | 0xFF53_4D42 | 0xFE53_4D42 => "SMB",
        0x5346_414F => "AFS",
        0x0102_1997 => "9P",
        0x00C3_6400 => "Ceph",
        0x0BD0_0BD0 => "Lustre",
        _ => return None,
    })
}

fn runtime_dir() -> Result<PathBuf, String> {
    let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) else {
        return Err("XDG_RUNTIME_DIR is not set".to_owned());
    };
    let dir = PathBuf::from(dir);
    let meta = fs::metadata(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    if meta.uid() != geteuid().as_raw() {
        return Err(format!("{} belongs to somebody else", dir.display()));
    }
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_known() {
        assert_eq!(network(0x6969), Some("NFS"));
        assert_eq!(network(0xEF53), None);
    }
}
