//! System calls made by another process, to see what its kernel lets it do.
//!
//! # Theory of operation
//!
//! A thread is stopped by ptrace(2) where it waits. Its registers are set to those of
//! another call, it is stepped over the `syscall` instruction that it stands behind,
//! and its registers are put back. So the call is judged by the thread's own filter,
//! its own Landlock domain and its own credentials. The call that it waited in ends
//! with EINTR.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::clock::Deadline;

/// How long a thread may be busy.
const LIMIT: Duration = Duration::from_secs(20);

/// An argument of a call.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    /// A number.
    Int(i64),
    /// The address of this text.
    Text(&'static str),
}

/// Threads of a process.
///
/// # Errors
/// It has ended.
pub fn threads(pid: i32) -> Result<Vec<i32>> {
    fs::read_dir(format!("/proc/{pid}/task"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().parse()?))
        .collect()
}

/// A stopped thread. It goes on when this is dropped.
#[derive(Debug)]
pub struct Stopped {
    thread: Pid,
    memory: File,
    saved: libc::user_regs_struct,
}

impl Stopped {
    /// Stops a thread in a system call; one that is busy is let go on until it is in one.
    ///
    /// # Errors
    /// It cannot be traced, or is never seen in a call.
    pub fn new(thread: i32) -> Result<Self> {
        let memory = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{thread}/mem"))
            .context("memory of the thread")?;
        let thread = Pid::from_raw(thread);
        ptrace::seize(thread, Options::empty()).context("PTRACE_SEIZE")?;
        let deadline = Deadline::after(LIMIT);
        loop {
            ptrace::interrupt(thread).context("PTRACE_INTERRUPT")?;
            wait(thread)?;
            let saved = ptrace::getregs(thread).context("PTRACE_GETREGS")?;
            let mut code = [0; 2];
            memory.read_exact_at(&mut code, saved.rip - 2)?;
            if code == [0x0f, 0x05] {
                return Ok(Self { thread, memory, saved });
            }
            // A network that has just been made answers its guest's first frames.
            ensure!(!deadline.passed(), "the thread is never in a system call");
            ptrace::cont(thread, None).context("PTRACE_CONT")?;
            std::thread::yield_now();
        }
    }

    /// Makes a call and gives its result.
    ///
    /// # Errors
    /// The thread ended, or was signalled.
    pub fn call(&self, number: i64, args: &[Arg]) -> Result<Result<i64, Errno>> {
        let mut regs = self.saved;
        // Below the red zone (System V ABI, section 3.2.2).
        let mut text = (regs.rsp - 4096) & !0xff;
        let mut values = [0u64; 6];
        for (value, arg) in values.iter_mut().zip(args) {
            *value = match arg {
                Arg::Int(int) => int.cast_unsigned(),
                Arg::Text(words) => {
                    let mut bytes = words.as_bytes().to_vec();
                    bytes.push(0);
                    self.memory.write_all_at(&bytes, text)?;
                    text += 256;
                    text - 256
                }
            };
        }
        regs.rip -= 2;
        regs.rax = number.cast_unsigned();
        // Not in a call any more: nothing is to be restarted.
        regs.orig_rax = u64::MAX;
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = values;
        ptrace::setregs(self.thread, regs)?;
        ptrace::step(self.thread, None)?;
        wait(self.thread)?;
        let result = ptrace::getregs(self.thread)?.rax.cast_signed();
        Ok(if (-4095..0).contains(&result) {
            Err(Errno::from_raw(-result as i32))
        } else {
            Ok(result)
        })
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // Both fail only when the thread has ended.
        ptrace::setregs(self.thread, self.saved).ok();
        ptrace::detach(self.thread, None).ok();
    }
}

fn wait(thread: Pid) -> Result<()> {
    match waitpid(thread, Some(WaitPidFlag::__WALL))? {
        WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(_, Signal::SIGTRAP) => Ok(()),
        other => bail!("instead of a stop: {other:?}"),
    }
}
