//! Running one more program in a container that runs already.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

use crate::attach;
use crate::cgroup;
use crate::channel::{Channel, ToMonitor, ToStage};
use crate::plan;
use crate::policy::seccomp::Source;
use crate::run::{RunError, spoken};
use crate::spec::{Exec, Network};
use crate::stage::join::Joining;
use crate::stage::monitor::say;
use crate::stage::storage::{execute_self, sealed};
use crate::store::State;
use crate::sys::fd;
use crate::sys::process::{self, Forked};
use crate::terminal::Relay;

/// Runs `exec` in the running container described by `state`, and returns its
/// exit code as [`crate::run::run`] does. `cache` is where the compiled filter is kept.
///
/// Must be called by a single-threaded process.
///
/// # Errors
/// [`RunError`] when the container cannot be joined.
pub fn exec(state: &State, exec: &Exec, cache: &Path) -> Result<u8, RunError> {
    spoken(join(state, exec, cache))
}

fn join(state: &State, exec: &Exec, cache: &Path) -> Result<u8, RunError> {
    let init = state.init.ok_or(RunError::NotRunning)?;
    let target = process::pidfd_open(init.pid).map_err(|_| RunError::NotRunning)?;
    let program = File::options()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(format!("/proc/{}/exe", init.pid))
        .map_err(RunError::os("cannot open the container's init"))?;
    let users = File::open(format!("/proc/{}/ns/user", init.pid))
        .map_err(RunError::os("cannot open the container's user namespace"))?;
    // Looked at after both were opened: they are the right process's.
    if !init.exists() {
        return Err(RunError::NotRunning);
    }
    let outer: OwnedFd = if state.confinement.nested {
        process::parent_namespace(users.as_fd())
            .map_err(RunError::os("cannot find the container's outer user namespace"))?
    } else {
        users.into()
    };
    let term = std::env::var("TERM").ok();
    let confinement = state.confinement.clone();
    let joining = Joining {
        workload: plan::joined(&state.spec, exec, term, state.map.is_single(), confinement),
        own_network: state.spec.network != Network::Host,
        shares: state.spec.shares,
    };
    let payload = serde_json::to_vec(&joining)
        .map_err(io::Error::from)
        .map_err(RunError::os("cannot write down what to run"))?;
    let security = &state.spec.security;
    let source = Source {
        seccomp: &security.seccomp,
        capabilities: security.capabilities,
        deny: &security.deny,
        single_id: state.map.is_single(),
    };
    let filter = source.cached(cache)?;
    let (signals, old) = attach::take_signals()?;
    let (channel, theirs) = Channel::pair().map_err(RunError::os("cannot make a channel"))?;
    let null = File::open("/dev/null").map_err(RunError::os("cannot open /dev/null"))?;
    let own = std::process::id() as i32;
    let child = match process::fork().map_err(RunError::os("cannot fork"))? {
        Forked::Child => {
            let prepare = || {
                process::die_with_parent(own)?;
                fd::close_all_on_exec()?;
                if exec.tty || !exec.interactive {
                    fd::become_standard(null.as_fd(), 0)?;
                }
                fd::set_inherited(theirs.as_fd(), true)
            };
            let failed = match prepare() {
                Ok(()) => {
                    let numbers = [own, theirs.as_fd().as_raw_fd()];
                    execute_self(program.as_fd(), "join", &numbers)
                }
                Err(error) => error,
            };
            let fault = crate::channel::Fault::new("cannot execute the running program", failed);
            drop(theirs.send(&ToMonitor::Failed(fault), &[]));
            process::exit_now(125)
        }
        Forked::Parent(pid) => pid,
    };
    drop(theirs);
    let memory = |bytes: &[u8]| {
        sealed(c"coracle-join", &mut &bytes[..])
            .map_err(RunError::os("cannot make a file in memory"))
    };
    let (payload, filter) = (memory(&payload)?, memory(&filter)?);
    if let Some(group) = &state.group
        && let Err(error) = cgroup::enter(group, child)
    {
        say(&format!(
            "warning: the program is not in the container's control group {}: {error}",
            group.display()
        ));
    }
    let child =
        process::pidfd_open(child).map_err(RunError::os("cannot watch the joining process"))?;
    channel
        .send(&ToStage::Join, &[payload.as_fd(), filter.as_fd(), target.as_fd(), outer.as_fd()])
        .map_err(RunError::os("cannot reach the joining process"))?;
    let mut joined =
        Joined { channel: Some(channel), child, signals, relay: None, input: exec.interactive };
    let mut code = joined.watch();
    if code.is_err() {
        // Its own end is on its way, or must come; left behind, it would be
        // somebody else's zombie.
        drop(process::pidfd_signal(joined.child.as_fd(), libc::SIGKILL));
        while waitid(Id::PIDFd(joined.child.as_fd()), WaitPidFlag::WEXITED) == Err(Errno::EINTR) {}
    }
    if let Some(relay) = &mut joined.relay {
        relay.drain(&joined.signals);
        if let (Ok(_), Some(errno)) = (&code, attach::lost(&relay.caller)) {
            code = Err(attach::unprinted(errno));
        }
    }
    drop(joined);
    old.thread_set_mask().map_err(RunError::os("cannot restore the signal mask"))?;
    code
}

struct Joined {
    channel: Option<Channel>,
    child: OwnedFd,
    signals: SignalFd,
    relay: Option<Relay>,
    input: bool,
}

impl Joined {
    fn watch(&mut self) -> Result<u8, RunError> {
        loop {
            let [signal, message, end, output, input, room] = self.wait()?;
            if signal {
                self.take_signals()?;
            }
            if message {
                self.hear()?;
            }
            if let Some(relay) = &mut self.relay {
                if output {
                    relay.take_output();
                }
                if input {
                    relay.take_input();
                }
                if room {
                    relay.caller.flush();
                }
            }
            if end {
                while self.channel.is_some() {
                    self.hear()?;
                }
                let status = waitid(Id::PIDFd(self.child.as_fd()), WaitPidFlag::WEXITED)
                    .map_err(RunError::os("cannot wait for the joining process"))?;
                return Ok(match status {
                    WaitStatus::Exited(_, code) => code as u8,
                    WaitStatus::Signaled(_, signal, _) => 128u8.saturating_add(signal as u8),
                    _ => 125,
                });
            }
        }
    }

    /// Which of: signals, channel, child, terminal, input, room for output.
    fn wait(&self) -> Result<[bool; 6], RunError> {
        let (stdin, stdout) = (io::stdin(), io::stdout());
        let mut slots = vec![0, 2];
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.child.as_fd(), PollFlags::POLLIN),
        ];
        if let Some(channel) = &self.channel {
            slots.push(1);
            fds.push(PollFd::new(channel.as_fd(), PollFlags::POLLIN));
        }
        if let Some((master, flags)) = self.relay.as_ref().and_then(Relay::master) {
            slots.push(3);
            fds.push(PollFd::new(master, flags));
        }
        if self.relay.as_ref().is_some_and(Relay::wants_input) {
            slots.push(4);
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        if self.relay.as_ref().is_some_and(|relay| relay.caller.is_full()) {
            slots.push(5);
            fds.push(PollFd::new(stdout.as_fd(), PollFlags::POLLOUT));
        }
        attach::happened(slots, fds)
    }

    fn take_signals(&mut self) -> Result<(), RunError> {
        while let Some(info) =
            self.signals.read_signal().map_err(RunError::os("cannot read a signal"))?
        {
            let number = info.ssi_signo as i32;
            if number != libc::SIGWINCH {
                // ESRCH: it has just ended, which the next turn sees.
                drop(process::pidfd_signal(self.child.as_fd(), number));
            } else if let Some(relay) = &mut self.relay {
                relay.resize();
            }
        }
        Ok(())
    }

    fn hear(&mut self) -> Result<(), RunError> {
        let Some(channel) = &self.channel else { return Ok(()) };
        let message = channel
            .receive::<ToMonitor>()
            .map_err(RunError::os("cannot hear the joining process"))?;
        match message {
            None => self.channel = None,
            Some((ToMonitor::Console, mut fds)) => {
                if let Some(master) = fds.pop() {
                    let relay = Relay::new(master, self.input)
                        .map_err(RunError::os("cannot use the terminal"))?;
                    self.relay = Some(relay);
                }
            }
            Some((ToMonitor::Started, _)) => {}
            Some((ToMonitor::Failed(fault), _)) => {
                return Err(RunError::Stage(fault));
            }
            Some(_) => return Err(RunError::StageDied("joining process")),
        }
        Ok(())
    }
}
