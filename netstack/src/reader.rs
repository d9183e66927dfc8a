//! The process that reads files for the network while it runs.
//!
//! # Theory of operation
//!
//! The host's name servers, and the policy, may change while the network runs, but
//! the process that handles frames shall not be able to open a file. So a child made
//! at the start does, and nothing else: it waits for a byte that says what to read,
//! and sends what it read as one message. It hears nothing of the guest, holds no
//! descriptor but its end of the socket, and ends when the other is closed, however the
//! network has ended. Then it removes the files of the network's sockets, which nobody
//! else could any more. Signals that end the network leave it alone.
//!
//! It is asked at most once in [`INTERVAL`] and only when the guest sends something,
//! so that an idle network is never woken for it. A file that is as it was is not
//! sent again.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
use nix::sys::time::TimeSpec;

use crate::clients::SocketFile;
use crate::confine;
use crate::resolv::{self, Hosts, Resolv};
use crate::sys::process;

/// Time between two looks at resolv.conf at least.
const INTERVAL: Duration = Duration::from_secs(1);
/// Longest file that is read, in bytes: what a message between two processes holds by
/// default, with room for the kernel's own.
pub const FILE_MAX: usize = 128 * 1024;

/// How long its end is waited for.
const END: TimeSpec = TimeSpec::new(2, 0);

const RESOLV: u8 = b'r';
const POLICY: u8 = b'p';
const FAILED: u8 = b'!';

/// What the reading process had to say.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// The host's name servers and search list have changed.
    Resolv(Hosts),
    /// The policy file's text, or why it cannot be read.
    Policy(Result<String, String>),
    /// The process is gone.
    Gone,
}

/// The network's end.
#[derive(Debug)]
pub struct Reader {
    socket: OwnedFd,
    child: nix::unistd::Pid,
    next_look: Duration,
}

impl Reader {
    /// Starts the process. `resolv` has been read once; with `confined` it may do
    /// nothing but read, and remove `files` at the end. Our process must have one thread.
    ///
    /// # Errors
    /// No further process or descriptor.
    pub fn start(
        resolv: Resolv,
        policy: Option<PathBuf>,
        files: &[SocketFile],
        confined: bool,
    ) -> Result<Reader, Errno> {
        // HUP is for the network, which has the policy read again; the others end it, and
        // reach both where they are meant for a terminal's whole job.
        let theirs: SigSet =
            [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
        let before = theirs.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let made = process::helper(move |socket| {
            // One process has the program's name: `kill $(pgrep -x netstack)` ends it.
            nix::sys::prctl::set_name(c"netstack-reader").ok();
            // Without the confinement it would be the one part that has none.
            let ready = !confined || confine::reader(files).is_ok();
            if ready {
                serve(socket, resolv, policy.as_deref());
                files.iter().for_each(SocketFile::remove);
            }
        });
        before.thread_set_mask()?;
        let (socket, child) = made?;
        Ok(Reader { socket, child, next_look: Duration::ZERO })
    }

    /// Asks for a look at resolv.conf, if the last one was long enough ago.
    pub fn look(&mut self, now: Duration) {
        if now >= self.next_look {
            self.next_look = now + INTERVAL;
            self.ask(RESOLV);
        }
    }

    /// Asks for the policy file.
    pub fn read_policy(&self) {
        self.ask(POLICY);
    }

    fn ask(&self, what: u8) {
        // It is gone, which [`Reader::receive`] tells, or has plenty to do already.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        send(self.socket.as_raw_fd(), &[what], flags).ok();
    }

    /// Takes one message; None when there is none. Call when the descriptor is
    /// readable.
    pub fn receive(&self) -> Option<News> {
        let mut message = vec![0; FILE_MAX + 2];
        match recv(self.socket.as_raw_fd(), &mut message, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => Some(News::Gone),
            Ok(len) => {
                let text = String::from_utf8_lossy(&message[1..len]);
                match message[0] {
                    RESOLV => Some(News::Resolv(resolv::parse(&text))),
                    POLICY => Some(News::Policy(Ok(text.into_owned()))),
                    _ => Some(News::Policy(Err(text.into_owned()))),
                }
            }
            Err(Errno::EAGAIN | Errno::EINTR) => None,
            Err(_) => Some(News::Gone),
        }
    }
}

/// Ends the process and waits for its end, but not for long: on a file system that
/// does not answer it ends when that does, and nobody may kill it from here.
impl Drop for Reader {
    fn drop(&mut self) {
        shutdown(self.socket.as_raw_fd(), Shutdown::Write).ok();
        let mut ended = [PollFd::new(self.socket.as_fd(), PollFlags::empty())];
        // poll(2) itself is not among the calls that are left.
        if ppoll(&mut ended, Some(END), None) == Ok(1) {
            nix::sys::wait::waitpid(self.child, None).ok();
        }
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn serve(socket: OwnedFd, mut resolv: Resolv, policy: Option<&Path>) {
    let mut what = [0];
    loop {
        match recv(socket.as_raw_fd(), &mut what, MsgFlags::empty()) {
            Ok(1) => {}
            Err(Errno::EINTR) => continue,
            _ => return,
        }
        let answer = match (what[0], policy) {
            (RESOLV, _) => {
                resolv.refresh().map(|hosts| message(RESOLV, hosts.to_string().as_bytes()))
            }
            (POLICY, Some(path)) => Some(match read(path) {
                Ok(text) => message(POLICY, &text),
                Err(why) => message(FAILED, why.as_bytes()),
            }),
            _ => None,
        };
        if let Some(answer) = answer
            && send(socket.as_raw_fd(), &answer, MsgFlags::MSG_NOSIGNAL).is_err()
        {
            return;
        }
    }
}

fn message(kind: u8, text: &[u8]) -> Vec<u8> {
    let mut message = vec![kind];
    message.extend_from_slice(&text[..text.len().min(FILE_MAX)]);
    message
}

/// Reads a file that a message can hold.
///
/// # Errors
/// As a text that names the file.
pub fn read(path: &Path) -> Result<Vec<u8>, String> {
    let text =
        std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    if text.len() > FILE_MAX {
        return Err(format!("{} is longer than {FILE_MAX} bytes", path.display()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::{Files, Listener};
    use nix::poll::{PollTimeout, poll};

    fn news(reader: &Reader) -> News {
        let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(20_000u16)), Ok(1), "no answer");
        reader.receive().unwrap()
    }

    #[test]
    fn files_are_read_by_a_confined_child_as_they_change() {
        let dir = tempfile::tempdir().unwrap();
        let (conf, policy) = (dir.path().join("resolv.conf"), dir.path().join("policy"));
        std::fs::write(&conf, "nameserver 192.0.2.1").unwrap();
        let mut resolv = Resolv::new(conf.clone());
        resolv.refresh().unwrap();
        let mut reader = Reader::start(resolv, Some(policy.clone()), &[], true).unwrap();
        reader.read_policy();
        let News::Policy(Err(why)) = news(&reader) else { panic!("there is no policy yet") };
        assert!(why.contains("policy") && why.contains("No such file"), "{why}");
        // By another name, and by a link: the directory's entry is what counts.
        std::fs::write(dir.path().join("new"), "nameserver 192.0.2.2\nsearch a.example").unwrap();
        std::fs::remove_file(&conf).unwrap();
        std::os::unix::fs::symlink("new", &conf).unwrap();
        reader.look(Duration::from_secs(5));
        let News::Resolv(hosts) = news(&reader) else { panic!("no name servers") };
        assert_eq!(hosts.servers, ["192.0.2.2:53".parse().unwrap()]);
        assert_eq!(hosts.search, ["a.example"]);
        std::fs::write(&policy, "x".repeat(FILE_MAX)).unwrap();
        reader.look(Duration::from_secs(9));
        reader.read_policy();
        assert_eq!(
            news(&reader),
            News::Policy(Ok("x".repeat(FILE_MAX))),
            "an unchanged file is not sent"
        );
        std::fs::write(&policy, "x".repeat(FILE_MAX + 1)).unwrap();
        reader.read_policy();
        assert!(matches!(news(&reader), News::Policy(Err(_))));
        let child = reader.child;
        drop(reader);
        assert_eq!(nix::sys::signal::kill(child, None), Err(Errno::ESRCH));
    }

    #[test]
    fn a_confined_child_removes_socket_files_at_the_end_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let [ours, replaced] = ["ours", "replaced"].map(|name| dir.path().join(name));
        let listeners = [&ours, &replaced].map(|path| Listener::unix(path).unwrap());
        let mut files = Files::default();
        files.extend(&listeners);
        std::fs::remove_file(&replaced).unwrap();
        std::fs::write(&replaced, "").unwrap();
        let resolv = Resolv::new("/nonexistent".into());
        let reader = Reader::start(resolv, None, files.list(), true).unwrap();
        files.forget();
        // As a terminal does, for which there is one job.
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            nix::sys::signal::kill(reader.child, signal).unwrap();
        }
        assert!(ours.exists());
        drop(reader);
        assert!(!ours.exists() && replaced.exists());
    }

    #[test]
    fn its_end_is_noticed() {
        let resolv = Resolv::new("/nonexistent".into());
        let reader = Reader::start(resolv, None, &[], false).unwrap();
        nix::sys::signal::kill(reader.child, Signal::SIGKILL).unwrap();
        assert_eq!(news(&reader), News::Gone);
        drop(reader);
    }

    #[test]
    fn one_that_hangs_is_left_behind() {
        let reader = Reader::start(Resolv::new("/nonexistent".into()), None, &[], false).unwrap();
        let child = reader.child;
        nix::sys::signal::kill(child, Signal::SIGSTOP).unwrap();
        nix::sys::wait::waitpid(child, Some(nix::sys::wait::WaitPidFlag::WUNTRACED)).unwrap();
        drop(reader);
        // It ends by itself as soon as it can.
        nix::sys::signal::kill(child, Signal::SIGCONT).unwrap();
        let end = nix::sys::wait::waitpid(child, None).unwrap();
        assert_eq!(end, nix::sys::wait::WaitStatus::Exited(child, 0));
    }
}
