//! The container's first process: makes its network and its mounts, starts the
//! workload, reaps, forwards signals, and ends as the workload does.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, umount2};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, SFlag, fstat, umask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, chdir, fchdir, pivot_root, sethostname, setsid, symlinkat};

use super::in_root::{InRoot, Make};
use super::nest;
use super::secrets;
use super::storage::{self, c_path, empty_directory};
use super::tap;
use super::workload::{self, Filter};
use crate::channel::{Channel, Context, Fault, ToMonitor, ToStage};
use crate::plan::{InitStep, Kind, Plan};
use crate::sys::pages::Rest;
use crate::sys::{fd, mount, net, process, tty};

/// The group of terminals on Debian and everywhere else.
const TTY_GROUP: u32 = 5;
/// CAP_KILL: all that init needs once the workload runs, which may belong to
/// any user.
const ONLY_KILL: u64 = 1 << 5;

/// Goes on as the container's first process. `mounted` gives a byte when the
/// root is mounted; `owners` leads to the stage that keeps owners, if there is
/// one. Returns the exit code.
pub fn main(
    channel: &Channel,
    plan: &Plan,
    filter: &[u8],
    mounted: io::PipeReader,
    owners: Option<Channel>,
) -> u8 {
    let started = set_up(channel, plan, mounted)
        .and_then(|ready| start(channel, plan, Filter { code: filter, owners }, ready));
    match started {
        Ok(workload) => supervise(channel, workload),
        Err(fault) => {
            let code = fault.code;
            match channel.send(&ToMonitor::Failed(fault), &[]) {
                Ok(()) => code,
                // The monitor is gone, and so is everything else.
                Err(_) => 125,
            }
        }
    }
}

/// What [`start`] goes on with.
struct Ready {
    slave: Option<OwnedFd>,
    nest: Option<nest::Helper>,
}

fn set_up(channel: &Channel, plan: &Plan, mounted: io::PipeReader) -> Result<Ready, Fault> {
    // Its parent, the monitor, lies outside of its pid namespace: number 0. If
    // it has died already, the channel has hung up, which is looked at below.
    process::die_with_parent(0).context(|| "the monitor is gone")?;
    nix::sys::prctl::set_dumpable(false).context(|| "cannot hide the container's init")?;
    nix::sys::prctl::set_name(c"coracle-init").context(|| "cannot name the process")?;
    setsid().context(|| "cannot make a session")?;
    // Its own control group is the root of what it sees: it has been in it from the start.
    let mut namespaces = CloneFlags::CLONE_NEWCGROUP;
    namespaces.set(CloneFlags::CLONE_NEWIPC, !plan.shares.ipc);
    namespaces.set(CloneFlags::CLONE_NEWUTS, !plan.shares.uts);
    namespaces.set(CloneFlags::CLONE_NEWNET, plan.own_network);
    unshare(namespaces).context(|| "cannot make the container's namespaces")?;
    umask(Mode::from_bits_truncate(0o022));
    let mut stage = Stage {
        channel,
        plan,
        mounted,
        root: None,
        made: BTreeMap::new(),
        empty: None,
        null: None,
        hides: false,
        slave: None,
        nest: None,
    };
    for step in &plan.init {
        stage.carry_out(step)?;
    }
    process::new_session_keyring().context(|| "cannot make a keyring")?;
    Ok(Ready { slave: stage.slave, nest: stage.nest })
}

fn start(
    channel: &Channel,
    plan: &Plan,
    filter: Filter<'_>,
    Ready { slave, nest }: Ready,
) -> Result<i32, Fault> {
    let identity = workload::identity(&plan.workload)?;
    secrets::hand_over(&plan.init, &identity)?;
    // Blocked from here on, so that none is lost between two reads of the signalfd.
    SigSet::all().thread_set_mask().context(|| "cannot block signals")?;
    if let Some(nest) = nest {
        nest.enter()?;
        // Credentials have changed, which may have cost the request.
        process::die_with_parent(0).context(|| "the monitor is gone")?;
    }
    process::bound_capabilities(plan.workload.capabilities)
        .context(|| "cannot give up capabilities")?;
    channel.send(&ToMonitor::Ready, &[]).context(|| "cannot reach the monitor")?;
    // There is nobody else to be ready.
    if plan.has_netstack() {
        match channel.receive().context(|| "cannot reach the monitor")? {
            Some((ToStage::Go, _)) => {}
            _ => return Err(Fault::said("the monitor is gone")),
        }
    }
    if plan.workload.no_init {
        let fault = workload::become_first(&plan.workload, &identity, &filter, slave.as_ref());
        return Err(fault);
    }
    let pid = workload::start(&plan.workload, &identity, filter, slave, 1)?;
    settle()?;
    channel.send(&ToMonitor::Started, &[]).context(|| "cannot reach the monitor")?;
    Ok(pid)
}

/// Gives up what is not needed to watch over a workload that runs.
///
/// # Errors
/// When the kernel refuses.
pub fn settle() -> Result<(), Fault> {
    process::set_capabilities(ONLY_KILL).context(|| "cannot give up capabilities")?;
    nix::sys::prctl::set_no_new_privs().context(|| "cannot set no_new_privs")?;
    release_standard().context(|| "cannot open /dev/null")
}

/// Lets go of the caller's input and output: whoever reads the workload's
/// output shall see its end.
fn release_standard() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    for number in 0..=2 {
        fd::become_standard(null.as_fd(), number)?;
    }
    Ok(())
}

/// Reaps and forwards until the workload ends; then its exit code.
pub fn supervise(channel: &Channel, workload: i32) -> u8 {
    let Ok(signals) = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC) else {
        return 125;
    };
    let workload = Pid::from_raw(workload);
    let mut rest = Rest::begin();
    // One may have ended before the descriptor was there.
    if let Some(code) = reap(workload) {
        return code;
    }
    loop {
        let mut fds = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(channel.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, rest.timeout()) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return 125,
        }
        // The monitor sends nothing any more: this is its end.
        if fds[1].any().unwrap_or(true) {
            // ESRCH: it has just ended by itself.
            drop(kill(workload, Signal::SIGKILL).map_err(io::Error::from));
            process::reap(workload.as_raw());
            return 137;
        }
        if !fds[0].any().unwrap_or(true) {
            continue;
        }
        let Ok(Some(info)) = signals.read_signal() else { continue };
        match Signal::try_from(info.ssi_signo as i32) {
            Ok(Signal::SIGCHLD) => {
                if let Some(code) = reap(workload) {
                    return code;
                }
            }
            // ESRCH: it has just ended, and SIGCHLD is on its way.
            Ok(signal) => match kill(workload, signal) {
                Ok(()) | Err(_) => {}
            },
            Err(_) => {}
        }
    }
}

fn reap(workload: Pid) -> Option<u8> {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == workload => code = Some(status as u8),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == workload => {
                code = Some(128u8.saturating_add(signal as u8));
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return code,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return code,
        }
    }
}

struct Stage<'a> {
    channel: &'a Channel,
    plan: &'a Plan,
    /// Gives a byte when the overlay is mounted.
    mounted: io::PipeReader,
    root: Option<InRoot>,
    /// Mounts that have not been put in their places yet, by these.
    made: BTreeMap<PathBuf, OwnedFd>,
    /// The directory that hides others, and the device that hides files.
    empty: Option<OwnedFd>,
    null: Option<OwnedFd>,
    /// The empty directory is in a place.
    hides: bool,
    slave: Option<OwnedFd>,
    nest: Option<nest::Helper>,
}

impl Stage<'_> {
    fn root(&self) -> Result<&InRoot, Fault> {
        self.root.as_ref().ok_or_else(|| Fault::said("the plan has no root before its mounts"))
    }

    fn carry_out(&mut self, step: &InitStep) -> Result<(), Fault> {
        match step {
            InitStep::Loopback => net::Devices::open()
                .and_then(|devices| devices.up("lo"))
                .context(|| "cannot bring up the loopback device")?,
            InitStep::Tap { ipv6, queues } => {
                let taps = tap::make(*ipv6, *queues)?;
                let taps: Vec<_> = taps.iter().map(AsFd::as_fd).collect();
                self.channel.send(&ToMonitor::Tap, &taps).context(|| "cannot reach the monitor")?;
            }
            InitStep::Root(path) => self.take_root(path)?,
            InitStep::Mount { target, .. } => self.mount(target)?,
            InitStep::HostSysfs => {
                let attributes = mount::RDONLY | mount::NOSUID | mount::NODEV | mount::NOEXEC;
                self.bind(c"/sys", "/sys".as_ref(), Make::Directory, true, attributes)
                    .context(|| "cannot show the host's /sys")?;
            }
            InitStep::HostIpc => {
                for path in ["/dev/shm", "/dev/mqueue"].map(Path::new) {
                    if path.is_dir() {
                        self.volume(path, path, false)?;
                    }
                }
            }
            InitStep::Device(name) => self.device(name)?,
            InitStep::Link { path, target } => {
                let what = || format!("cannot make the link {}", path.display());
                let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                    return Err(Fault::new(what(), Errno::EINVAL));
                };
                let parent = self.root()?.ensure(parent, Make::Directory).context(what)?;
                symlinkat(target, &parent, name).context(what)?;
            }
            InitStep::Console => self.console()?,
            InitStep::Volume { source, target, read_only } => {
                self.volume(source, target, *read_only)?;
            }
            InitStep::Secret { source, name } => secrets::put(self.root()?, source, name)?,
            InitStep::File { source, target } => {
                let attributes = mount::NOSUID | mount::NODEV | mount::NOEXEC;
                c_path(source)
                    .and_then(|s| self.bind(&s, target, Make::File, false, attributes))
                    .context(|| format!("cannot provide {}", target.display()))?;
            }
            InitStep::FileBeside { source, target } => {
                let parent = target.parent().unwrap_or(target);
                if self.root()?.open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY).is_ok() {
                    let (source, target) = (source.clone(), target.clone());
                    self.carry_out(&InitStep::File { source, target })?;
                }
            }
            InitStep::Directory(path) => {
                self.root()?
                    .ensure(path, Make::Directory)
                    .context(|| format!("cannot make the directory {}", path.display()))?;
            }
            InitStep::PingGroups(last) => {
                let path = "/proc/sys/net/ipv4/ping_group_range";
                fs::write(path, format!("0 {last}")).context(|| format!("cannot write {path}"))?;
            }
            InitStep::LowPorts => {
                let path = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
                fs::write(path, "0").context(|| format!("cannot write {path}"))?;
            }
            InitStep::Hostname(name) => {
                sethostname(name).context(|| format!("cannot set the host name {name}"))?;
            }
            InitStep::Pivot => {
                self.pivot()?;
                workload::read_ahead(&self.plan.workload);
            }
            InitStep::Hide(path) => self.hide(path)?,
            InitStep::Protect(path) => self.protect(path)?,
            InitStep::RootReadOnly => InRoot::open_root("/".as_ref())
                .and_then(|root| mount::restrict(root.as_fd(), mount::RDONLY, false))
                .context(|| "cannot make the root read-only")?,
        }
        Ok(())
    }

    /// Makes what can be made without the root, while the overlay starts.
    fn make_ahead(&mut self) -> Result<(), Fault> {
        if self.plan.workload.confinement.nested {
            self.nest = Some(nest::Helper::start(&self.plan.map)?);
        }
        for step in &self.plan.init {
            let (target, made) = match step {
                InitStep::Mount { kind, target } => {
                    (target.clone(), self.new_mount(*kind, target)?)
                }
                InitStep::Device(name) => {
                    let source = Path::new("/dev").join(name);
                    let device = host_device(&source)?;
                    (source, device)
                }
                _ => continue,
            };
            self.made.insert(target, made);
        }
        self.empty = Some(empty_directory(0o755).context(|| "cannot make an empty directory")?);
        Ok(())
    }

    fn take_root(&mut self, path: &Path) -> Result<(), Fault> {
        self.make_ahead()?;
        // The overlay says itself what kept it from mounting.
        self.mounted.read_exact(&mut [0]).map_err(|_| Fault::said(storage::NO_ROOT))?;
        unshare(CloneFlags::CLONE_NEWNS).context(|| "cannot make a mount namespace")?;
        let root = InRoot::open_root(path)
            .context(|| format!("cannot open the root at {}", path.display()))?;
        // no_new_privs keeps such bits from giving anything, but the kernel still
        // refuses to execute a file whose capabilities (as those of Debian's
        // ping) are outside the bounding set: without them it runs.
        mount::restrict(root.as_fd(), mount::NOSUID, false)
            .context(|| "cannot restrict the root mount")?;
        self.root = Some(root);
        Ok(())
    }

    /// A file system of the container's own, not in its place yet.
    fn new_mount(&self, kind: Kind, target: &Path) -> Result<OwnedFd, Fault> {
        use mount::{NODEV, NOEXEC, NOSUID, RDONLY};
        let number = |text: String| CString::new(text).expect("digits have no NUL");
        let (mode, size);
        let (name, options, attributes): (&CStr, Vec<(&CStr, Option<&CStr>)>, u64) = match kind {
            Kind::Proc => (c"proc", vec![], NOSUID | NODEV | NOEXEC),
            Kind::Sysfs => (c"sysfs", vec![], RDONLY | NOSUID | NODEV | NOEXEC),
            Kind::Dev => {
                (c"tmpfs", vec![(c"mode", Some(c"0755")), (c"size", Some(c"64m"))], NOSUID | NOEXEC)
            }
            Kind::Devpts => {
                let mut options = vec![(c"ptmxmode", Some(c"0666")), (c"mode", Some(c"0620"))];
                if self.plan.map.has_gid(TTY_GROUP) {
                    options.push((c"gid", Some(c"5")));
                }
                (c"devpts", options, NOSUID | NOEXEC)
            }
            Kind::Mqueue => (c"mqueue", vec![], NOSUID | NODEV | NOEXEC),
            Kind::Tmpfs(options) => {
                mode = number(format!("{:o}", options.mode));
                let mut given = vec![(c"mode", Some(mode.as_c_str()))];
                if let Some(bytes) = options.size {
                    size = number(bytes.to_string());
                    given.push((c"size", Some(size.as_c_str())));
                }
                let read_only = if options.read_only { RDONLY } else { 0 };
                let programs = if options.programs { 0 } else { NOEXEC };
                (c"tmpfs", given, NOSUID | NODEV | read_only | programs)
            }
            Kind::Secrets => (c"ramfs", vec![(c"mode", Some(c"0755"))], NOSUID | NODEV | NOEXEC),
        };
        mount::new(name, &options, attributes)
            .context(|| format!("cannot mount {} at {}", name.to_string_lossy(), target.display()))
    }

    /// What was made ahead for this place.
    fn take_made(&mut self, target: &Path) -> Result<OwnedFd, Fault> {
        let made = self.made.remove(target);
        made.ok_or_else(|| Fault::said(format!("nothing was made for {}", target.display())))
    }

    fn mount(&mut self, target: &Path) -> Result<(), Fault> {
        let what = || format!("cannot mount at {}", target.display());
        let made = self.take_made(target)?;
        let root = self.root()?;
        root.ensure(target, Make::Directory).context(what)?;
        // A root that has a link in place of /proc or /sys could put them where
        // its programs do not expect them: refused.
        let place = root.open_plain(target, OFlag::O_PATH | OFlag::O_DIRECTORY).context(what)?;
        mount::attach(made.as_fd(), place.as_fd()).context(what)
    }

    /// Shows what is at `source`, seen from the host, at `target` in the root.
    fn bind(
        &self,
        source: &CStr,
        target: &Path,
        make: Make,
        recursive: bool,
        attributes: u64,
    ) -> io::Result<()> {
        let root = self.root.as_ref().ok_or(Errno::ENOTDIR)?;
        let place = root.ensure(target, make)?;
        show(source, &place, recursive, attributes)
    }

    fn device(&mut self, name: &str) -> Result<(), Fault> {
        let target = Path::new("/dev").join(name);
        let what = || format!("cannot show {}", target.display());
        let made = self.take_made(&target)?;
        let place = self.root()?.ensure(&target, Make::File).context(what)?;
        mount::attach(made.as_fd(), place.as_fd()).context(what)
    }

    fn console(&mut self) -> Result<(), Fault> {
        let what = || "cannot open a pseudo-terminal";
        let root = self.root()?;
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY;
        let master = root.open("/dev/pts/ptmx".as_ref(), flags).context(what)?;
        let (number, slave) = tty::open_slave(master.as_fd()).context(what)?;
        let path = Path::new("/dev/pts").join(number.to_string());
        let shown = root.open(&path, OFlag::O_PATH).context(what)?;
        let shown = mount::copy(shown.as_fd(), c"", false).context(what)?;
        let place = root.ensure("/dev/console".as_ref(), Make::File).context(what)?;
        mount::attach(shown.as_fd(), place.as_fd()).context(what)?;
        self.channel
            .send(&ToMonitor::Console, &[master.as_fd()])
            .context(|| "cannot reach the monitor")?;
        self.slave = Some(slave);
        Ok(())
    }

    fn volume(&self, source: &Path, target: &Path, read_only: bool) -> Result<(), Fault> {
        let what =
            || format!("cannot show the volume {} at {}", source.display(), target.display());
        let make = match fs::metadata(source).context(what)?.is_dir() {
            true => Make::Directory,
            false => Make::File,
        };
        let place = self.root()?.ensure(target, make).context(what)?;
        let kind =
            SFlag::from_bits_truncate(fstat(&place).context(what)?.st_mode & SFlag::S_IFMT.bits());
        match (make, kind == SFlag::S_IFDIR) {
            (Make::File, true) => {
                return Err(Fault::said(format!(
                    "{}: the former is a file, the latter a directory of the container; give the \
                     file a name in there, as {}",
                    what(),
                    target.join(source.file_name().unwrap_or_default()).display()
                )));
            }
            (Make::Directory, false) => {
                return Err(Fault::said(format!(
                    "{}: the former is a directory, the latter a file of the container; name a \
                     directory, or what is not there yet",
                    what()
                )));
            }
            _ => {}
        }
        let mut attributes = mount::NOSUID | mount::NODEV;
        if read_only {
            attributes |= mount::RDONLY;
        }
        let source = c_path(source).context(what)?;
        show(&source, &place, true, attributes).context(what)
    }

    fn pivot(&self) -> Result<(), Fault> {
        let what = || "cannot change the root";
        fchdir(self.root()?).context(what)?;
        // The old root lands on top of the new one, and is taken off it again.
        pivot_root(".", ".").context(what)?;
        umount2(".", MntFlags::MNT_DETACH).context(what)?;
        chdir("/").context(what)
    }

    fn hide(&mut self, path: &Path) -> Result<(), Fault> {
        let what = || format!("cannot hide {}", path.display());
        let Some(place) = existing(path).context(what)? else { return Ok(()) };
        let kind = fstat(&place).context(what)?.st_mode & SFlag::S_IFMT.bits();
        if kind != SFlag::S_IFDIR.bits() {
            if self.null.is_none() {
                let null = null_device().context(|| "cannot find /dev/null, which hides files")?;
                self.null = Some(null);
            }
            let null = self.null.as_ref().ok_or_else(|| Fault::said(what()))?;
            let cover = mount::copy(null.as_fd(), c"", false).context(what)?;
            return mount::attach(cover.as_fd(), place.as_fd()).context(what);
        }
        // The first is put in its place, and copied to the others from there.
        let empty = self.empty.as_ref().ok_or_else(|| Fault::said(what()))?;
        if self.hides {
            let cover = mount::copy(empty.as_fd(), c"", false).context(what)?;
            return mount::attach(cover.as_fd(), place.as_fd()).context(what);
        }
        mount::attach(empty.as_fd(), place.as_fd()).context(what)?;
        self.hides = true;
        Ok(())
    }

    fn protect(&self, path: &Path) -> Result<(), Fault> {
        let what = || format!("cannot protect {}", path.display());
        let Some(place) = existing(path).context(what)? else { return Ok(()) };
        let copy = mount::copy(place.as_fd(), c"", true).context(what)?;
        let attributes = mount::RDONLY | mount::NOSUID | mount::NODEV | mount::NOEXEC;
        mount::restrict(copy.as_fd(), attributes, true).context(what)?;
        mount::attach(copy.as_fd(), place.as_fd()).context(what)
    }
}

/// Shows what is at `source`, seen from the host, at `place`.
fn show(source: &CStr, place: &OwnedFd, recursive: bool, attributes: u64) -> io::Result<()> {
    let copy = mount::copy_path(source, recursive)?;
    if attributes != 0 {
        mount::restrict(copy.as_fd(), attributes, recursive)?;
    }
    mount::attach(copy.as_fd(), place.as_fd())
}

/// A device of the host's, not in its place yet.
fn host_device(source: &Path) -> Result<OwnedFd, Fault> {
    let what = || format!("cannot show {}", source.display());
    let copy = c_path(source).and_then(|s| mount::copy_path(&s, false)).context(what)?;
    let kind = fstat(&copy).context(what)?.st_mode;
    if kind & SFlag::S_IFMT.bits() != SFlag::S_IFCHR.bits() {
        return Err(Fault::said(format!("{} is no device on this host", source.display())));
    }
    Ok(copy)
}

/// The null device. What a volume has put in its place is refused: all that is
/// hidden would show it.
fn null_device() -> io::Result<OwnedFd> {
    let null = InRoot::open_root("/".as_ref())?.open_plain("/dev/null".as_ref(), OFlag::O_PATH)?;
    let stat = fstat(&null)?;
    let device = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits();
    // linux/Documentation/admin-guide/devices.txt
    if device && stat.st_rdev == nix::sys::stat::makedev(1, 3) {
        Ok(null)
    } else {
        Err(Errno::ENXIO.into())
    }
}

/// What is at `path` (after the pivot), free of links; `None` when nothing is.
fn existing(path: &Path) -> io::Result<Option<OwnedFd>> {
    let root = InRoot::open_root("/".as_ref())?;
    match root.open_plain(path, OFlag::O_PATH) {
        Ok(place) => Ok(Some(place)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
