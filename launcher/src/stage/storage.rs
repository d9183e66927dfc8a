//! The storage stage: born in the user namespace, it puts the layers together,
//! makes the container's first process, and goes on as the overlay.

use std::env;
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::monitor::Streams;
use super::{STAGE, init, owners};
use crate::channel::{Channel, Context, Fault, ToMonitor, ToStage};
use crate::plan::{Plan, StorageStep};
use crate::spawn::{Service, Theirs};
use crate::sys::process::{self, Forked};
use crate::sys::{fd, mount as tree};

/// What is said when the overlay failed; it knows better why.
pub const NO_ROOT: &str = "overlayfs-fuse could not mount the container's root";

/// Goes on as the storage stage, in a process freshly forked from the monitor
/// (whose number is `monitor`), with these standard streams. Does not return.
pub fn enter(monitor: i32, streams: &Streams, own: &Channel, init: &Channel) -> ! {
    let fault = match prepare(monitor, streams, own, init) {
        Ok(never) => match never {},
        Err(fault) => fault,
    };
    // When nobody listens any more there is nobody to tell.
    let code = match own.send(&ToMonitor::Failed(fault), &[]) {
        Ok(()) => 125,
        Err(_) => 1,
    };
    process::exit_now(code)
}

fn prepare(
    monitor: i32,
    streams: &Streams,
    own: &Channel,
    init: &Channel,
) -> Result<std::convert::Infallible, Fault> {
    process::die_with_parent(monitor).context(|| "the monitor is gone")?;
    fd::close_all_on_exec().context(|| "cannot mark descriptors close-on-exec")?;
    for (number, stream) in [(0, &streams.input), (1, &streams.output), (2, &streams.output)] {
        if let Some(stream) = stream {
            fd::become_standard(stream.as_fd(), number)
                .context(|| "cannot replace standard input and output")?;
        }
    }
    let program = unwritable_self().context(|| "cannot copy the running program")?;
    fd::set_inherited(own.as_fd(), true).context(|| "cannot pass on the channel")?;
    fd::set_inherited(init.as_fd(), true).context(|| "cannot pass on the channel")?;
    // Whether it is root yet when it comes to that is for the helpers to say.
    process::hand_on_capabilities().context(|| "cannot hand on capabilities")?;
    let numbers = [monitor, own.as_fd().as_raw_fd(), init.as_fd().as_raw_fd()];
    let error = execute_self(program.as_fd(), "storage", &numbers);
    Err(Fault::new("cannot execute the running program anew", error))
}

/// Executes `program`, which is this one, as the stage `name`, with an empty
/// environment. Returns only on failure.
pub fn execute_self(program: BorrowedFd<'_>, name: &str, numbers: &[i32]) -> io::Error {
    let words = [STAGE.to_owned(), name.to_owned()];
    let argv: Result<Vec<CString>, _> =
        words.into_iter().chain(numbers.iter().map(i32::to_string)).map(CString::new).collect();
    match argv {
        Ok(argv) => {
            let argv: Vec<&CStr> = argv.iter().map(CString::as_c_str).collect();
            process::exec_fd(program, &argv, &[])
        }
        Err(error) => error.into(),
    }
}

/// This program, in a form that a container which gets hold of it through
/// `/proc/PID/exe` cannot write to: through a read-only mount of its own, or,
/// when it has no path any more, a sealed copy in memory.
fn unwritable_self() -> io::Result<OwnedFd> {
    const SELF: &str = "/proc/self/exe";
    let running = fs::metadata(SELF)?;
    let path = env::current_exe()?;
    let same = fs::metadata(&path)
        .is_ok_and(|found| (found.dev(), found.ino()) == (running.dev(), running.ino()));
    if same {
        let copy = tree::copy_path(&c_path(&path)?, false)?;
        tree::restrict(copy.as_fd(), tree::RDONLY, false)?;
        return Ok(copy);
    }
    sealed(c"coracle", &mut File::open(SELF)?)
}

/// A file in memory that nobody can change any more.
///
/// # Errors
/// As of memfd_create(2), write(2).
pub fn sealed(name: &CStr, content: &mut impl Read) -> io::Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(name, flags)?);
    io::copy(content, &mut file)?;
    file.flush()?;
    file.rewind()?;
    let seals = SealFlag::F_SEAL_SEAL
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

/// The storage stage, executed anew: its own channel and init's were inherited
/// under the numbers `own` and `init`.
pub fn main(monitor: i32, own: RawFd, init: RawFd) -> u8 {
    let Ok(own) = Channel::adopt(own) else { return 125 };
    let Ok(init) = Channel::adopt(init) else { return 125 };
    let mut own = Some(own);
    let fault = match work(monitor, &mut own, init) {
        Ok(Kind::Other(code)) => return code,
        Ok(Kind::Overlay(why)) => Fault::new("cannot start overlayfs-fuse", why),
        Err(fault) => fault,
    };
    match own.map(|own| own.send(&ToMonitor::Failed(fault), &[])) {
        Some(Ok(())) => 125,
        Some(Err(_)) | None => 1,
    }
}

/// Which process came out of [`work`].
enum Kind {
    /// One that it made; its exit code.
    Other(u8),
    /// The overlay, but for what kept it from being executed.
    Overlay(io::Error),
}

fn work(monitor: i32, shared: &mut Option<Channel>, init_channel: Channel) -> Result<Kind, Fault> {
    let Some(own) = shared.as_ref() else { return Err(Fault::said("no channel")) };
    process::keep_capabilities().context(|| "cannot keep capabilities")?;
    process::die_with_parent(monitor).context(|| "the monitor is gone")?;
    // Nothing that is mounted here may show in the host's mount namespace.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context(|| "cannot make mounts private")?;
    let (plan, filter, pipes, group) = receive_plan(own)?;
    // Before, the map helpers could not have told whose it is.
    nix::sys::prctl::set_dumpable(false).context(|| "cannot hide the storage stage")?;
    for step in &plan.storage {
        carry_out(step)?;
    }
    let mut listening = None;
    if plan.map.is_single() {
        let (theirs, ours) = Channel::pair().context(|| "cannot make a channel")?;
        match process::fork_sibling(0, None).context(|| "cannot fork")? {
            Forked::Child => {
                // The overlay's alone: their hang-up tells.
                drop((ours, pipes, init_channel, filter));
                shared.take();
                return Ok(Kind::Other(owners::main(monitor, &theirs)));
            }
            Forked::Parent(pid) => {
                own.send(&ToMonitor::Owners(pid), &[]).context(|| "cannot reach the monitor")?;
                listening = Some(ours);
            }
        }
    }
    let (mounted, mut tell_mounted) = io::pipe().context(|| "cannot make a pipe")?;
    // Its other namespaces it makes itself, while the overlay starts.
    let forked = process::fork_sibling(libc::CLONE_NEWPID, group.as_ref().map(AsFd::as_fd))
        .context(|| "cannot make the container's PID namespace")?;
    match forked {
        Forked::Child => {
            drop((tell_mounted, pipes, group));
            // The monitor must see the end of storage's channel with storage.
            shared.take();
            Ok(Kind::Other(init::main(&init_channel, &plan, &filter, mounted, listening)))
        }
        Forked::Parent(pid) => {
            own.send(&ToMonitor::Init(pid), &[]).context(|| "cannot reach the monitor")?;
            drop((init_channel, mounted, listening));
            let Some((program, arguments, dir)) = overlay(&plan) else {
                own.send(&ToMonitor::Done, &[]).context(|| "cannot reach the monitor")?;
                tell_mounted.write_all(&[0]).context(|| "cannot reach init")?;
                return Ok(Kind::Other(0));
            };
            own.send(&ToMonitor::Overlay, &[]).context(|| "cannot reach the monitor")?;
            let service = Service { program, arguments: &arguments, dir, inherited: &[] };
            Ok(Kind::Overlay(service.execute(monitor, &pipes, tell_mounted.as_fd())))
        }
    }
}

/// The overlay's program, arguments and directory.
pub fn overlay(plan: &Plan) -> Option<(&Path, [String; 4], &Path)> {
    plan.storage.iter().find_map(|step| match step {
        StorageStep::Overlay { program, options, dir, target } => {
            let arguments = ["-f", "-o", options, &target.to_string_lossy()].map(str::to_owned);
            Some((program.as_path(), arguments, dir.as_path()))
        }
        _ => None,
    })
}

type Received = (Plan, Vec<u8>, Theirs, Option<OwnedFd>);

fn receive_plan(own: &Channel) -> Result<Received, Fault> {
    let Some((ToStage::Plan, mut fds)) = own.receive().context(|| "cannot reach the monitor")?
    else {
        return Err(Fault::said("the monitor sent no plan"));
    };
    let group = if fds.len() == 5 { fds.pop() } else { None };
    let Ok([plan, filter, exit, stderr]) = <[OwnedFd; 4]>::try_from(fds) else {
        return Err(Fault::said("the monitor's plan lacks a descriptor"));
    };
    let plan = serde_json::from_reader(io::BufReader::new(File::from(plan)))
        .map_err(io::Error::from)
        .context(|| "cannot read the plan")?;
    let mut bytes = Vec::new();
    File::from(filter).read_to_end(&mut bytes).context(|| "cannot read the filter")?;
    Ok((plan, bytes, Theirs { exit, stderr }, group))
}

/// Carries out one step; the overlay, whose process is another in each case, is left to
/// the caller.
///
/// # Errors
/// What failed, and why.
pub fn carry_out(step: &StorageStep) -> Result<(), Fault> {
    match step {
        StorageStep::BindTree { source, target } => {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(source), target, None::<&str>, flags, None::<&str>)
                .context(|| format!("cannot show {} in the container", source.display()))?;
        }
        StorageStep::Hide { path, mode } => hide(path, *mode)?,
        StorageStep::Scratch(path) => {
            // Files in there can be written by the container's root: not without bound.
            let options = [(c"mode", Some(c"0755")), (c"size", Some(c"16m"))];
            tree::new(c"tmpfs", &options, tree::NOSUID | tree::NODEV | tree::NOEXEC)
                .and_then(|memory| attach_at(&memory, path))
                .context(|| format!("cannot mount memory at {}", path.display()))?;
        }
        StorageStep::ScratchDirectory(path) => fs::create_dir(path)
            .and_then(|()| public(path, 0o755))
            .context(|| format!("cannot make the directory {}", path.display()))?,
        StorageStep::ScratchFile { path, content } => fs::write(path, content)
            .and_then(|()| public(path, 0o644))
            .context(|| format!("cannot write {}", path.display()))?,
        StorageStep::Ram { target, size } => {
            let size = size.map(|size| CString::new(size.to_string()));
            let size = size.transpose().map_err(io::Error::from).context(|| "bad size")?;
            let mut options = vec![(c"mode", Some(c"0755"))];
            if let Some(size) = &size {
                options.push((c"size", Some(size.as_c_str())));
            }
            let ram = tree::new(c"tmpfs", &options, tree::NODEV)
                .context(|| "cannot make a file system in memory")?;
            attach_at(&ram, target)
                .context(|| format!("cannot mount memory at {}", target.display()))?;
        }
        StorageStep::MakeDirectory(path) => {
            fs::create_dir_all(path)
                .context(|| format!("cannot make the directory {}", path.display()))?;
        }
        StorageStep::Overlay { .. } => {}
        StorageStep::KernelOverlay { options, dir, target, stale } => {
            let what = || format!("cannot mount the kernel's overlay with {options}");
            if let Some(stale) = stale {
                match fs::remove_dir_all(stale) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                    _ => Ok(()),
                }
                .context(|| format!("cannot remove {}", stale.display()))?;
            }
            nix::unistd::chdir(dir).context(what)?;
            let kind = Some("overlay");
            mount(kind, target, kind, MsFlags::empty(), Some(options.as_str())).context(what)?;
            nix::unistd::chdir("/").context(what)?;
        }
    }
    Ok(())
}

/// Whatever the caller's umask says.
fn public(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn hide(path: &Path, mode: u32) -> Result<(), Fault> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Fault::new(format!("cannot look at {}", path.display()), e)),
    };
    // A link leads to something that is hidden itself, if it is to be.
    if !metadata.is_dir() {
        return Ok(());
    }
    empty_directory(mode)
        .and_then(|empty| attach_at(&empty, path))
        .context(|| format!("cannot hide {}", path.display()))
}

/// A detached, empty, read-only directory.
///
/// # Errors
/// As of fsopen(2).
pub fn empty_directory(mode: u32) -> io::Result<OwnedFd> {
    let mode = CString::new(format!("{mode:o}"))?;
    let options = [(c"mode", Some(mode.as_c_str())), (c"size", Some(c"4k"))];
    let attributes = tree::RDONLY | tree::NOSUID | tree::NODEV | tree::NOEXEC;
    tree::new(c"tmpfs", &options, attributes)
}

fn attach_at(mount: &OwnedFd, path: &Path) -> io::Result<()> {
    use nix::fcntl::{OFlag, open};
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let target = open(path, flags, nix::sys::stat::Mode::empty())?;
    tree::attach(mount.as_fd(), target.as_fd())
}

/// A path as the kernel takes it.
///
/// # Errors
/// InvalidInput when it contains a NUL.
pub fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
