//! Running a function in a forked child that hands a descriptor back.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};

/// Longest text that comes back.
const TEXT_MAX: usize = 4096;

/// What the child gave back: descriptors and remarks, or why it failed.
pub(crate) type Outcome = Result<(Vec<OwnedFd>, String), String>;

/// Descriptors that come back at most.
pub(crate) const FDS_MAX: usize = 8;

/// A child that works on something, or is about to end. Its end is waited for when this
/// is dropped.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    answer: OwnedFd,
}

impl Child {
    /// Waits for what the work has come to. Call once.
    ///
    /// # Errors
    /// A failing system call, or a child that ended without an answer (EPROTO).
    pub(crate) fn outcome(&self) -> Result<Outcome, Errno> {
        receive(&self.answer)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Its answer says all there is to say.
        waitpid(self.pid, None).ok();
    }
}

/// Runs `work` in a child process, so that the namespaces it enters are not
/// entered by us. The process must have one thread.
///
/// # Errors
/// A failing system call.
pub(crate) fn in_child(work: impl FnOnce() -> Outcome) -> Result<Child, Errno> {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: the process has one thread (documented above), so the child finds
    // no lock held by a thread that is not there.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop(ours);
            // Unwinding must not leave this branch: it would run the parent's code.
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
                .unwrap_or_else(|_| Err("the child panicked".into()));
            let sent = answer(&theirs, outcome);
            // SAFETY: _exit takes an integer, runs no handlers and does not return.
            unsafe { libc::_exit(i32::from(sent.is_err())) }
        }
        ForkResult::Parent { child } => {
            drop(theirs);
            Ok(Child { pid: child, answer: ours })
        }
    }
}

fn answer(socket: &OwnedFd, outcome: Outcome) -> Result<(), Errno> {
    let (tag, text, fds) = match outcome {
        Ok((fds, text)) => (b"+", text, fds),
        Err(text) => (b"-", text, Vec::new()),
    };
    let text = &text.as_bytes()[..text.len().min(TEXT_MAX)];
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let parts = [IoSlice::new(tag), IoSlice::new(text)];
    sendmsg::<()>(socket.as_raw_fd(), &parts, control, MsgFlags::empty(), None).map(drop)
}

fn receive(socket: &OwnedFd) -> Result<Outcome, Errno> {
    let mut tag = [0];
    let mut text = vec![0; TEXT_MAX];
    let mut control = nix::cmsg_space!([libc::c_int; FDS_MAX]);
    let (len, fds) = {
        let mut parts = [IoSliceMut::new(&mut tag), IoSliceMut::new(&mut text)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
        let mut fds = Vec::new();
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = part {
                for raw in raw {
                    // SAFETY: the kernel has just made this descriptor for us;
                    // nobody else has it.
                    fds.push(unsafe { OwnedFd::from_raw_fd(raw) });
                }
            }
        }
        (message.bytes, fds)
    };
    let text = String::from_utf8_lossy(&text[..len.saturating_sub(1)]).into_owned();
    match (len, tag[0], fds.is_empty()) {
        (1.., b'+', false) => Ok(Ok((fds, text))),
        (1.., b'-', true) => Ok(Err(text)),
        _ => Err(Errno::EPROTO),
    }
}

/// Starts a child that has no descriptor but one end of a socket whose other end is
/// ours, does `work` with it and ends. Messages keep their bounds. The process must
/// have one thread.
///
/// # Errors
/// A failing system call.
pub(crate) fn helper(work: impl FnOnce(OwnedFd)) -> Result<(OwnedFd, Pid), Errno> {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: as in `in_child`.
    match unsafe { fork() }? {
        ForkResult::Child => {
            close_all_but(&theirs);
            let work = std::panic::AssertUnwindSafe(|| work(theirs));
            let done = std::panic::catch_unwind(work);
            // SAFETY: _exit takes an integer, runs no handlers and does not return.
            unsafe { libc::_exit(i32::from(done.is_err())) }
        }
        ForkResult::Parent { child } => Ok((ours, child)),
    }
}

/// Whatever else the process has open, the standard streams included.
fn close_all_but(kept: &OwnedFd) {
    let kept = kept.as_raw_fd().cast_unsigned();
    for (first, last) in [(0, kept.wrapping_sub(1)), (kept + 1, u32::MAX)] {
        if first <= last && kept != 0 || first > 0 {
            // SAFETY: close_range takes integers. The owners of these descriptors are
            // never dropped: the child ends with _exit.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_childs_descriptor_and_words_come_back() {
        let work = || {
            let file = std::fs::File::open("/proc/self/stat").map_err(|e| e.to_string())?;
            let null = std::fs::File::open("/dev/null").map_err(|e| e.to_string())?;
            Ok((vec![file.into(), null.into()], "a remark".into()))
        };
        let (mut fds, text) = in_child(work).unwrap().outcome().unwrap().unwrap();
        assert_eq!(fds.len(), 2);
        let fd = fds.remove(0);
        assert_eq!(text, "a remark");
        let mut stat = String::new();
        // The child is gone: reading its stat through the descriptor says so.
        assert!(std::fs::File::from(fd).read_to_string(&mut stat).is_err(), "{stat}");
    }

    #[test]
    fn a_childs_failure_is_told() {
        let refusing = in_child(|| Err("no".into())).unwrap();
        assert_eq!(refusing.outcome().unwrap().unwrap_err(), "no");
        let silent = in_child(|| {
            nix::sys::signal::raise(nix::sys::signal::SIGKILL).map_err(|e| e.to_string())?;
            Err("survived".into())
        });
        assert_eq!(silent.unwrap().outcome().unwrap_err(), Errno::EPROTO);
    }
}
