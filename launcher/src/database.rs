//! What the machine's databases know of users and hosts (nsswitch.conf(5)): asked through
//! getent(1), a program of the C library's, so that no module of theirs runs in this
//! process. That lets it be linked statically, and takes half of what its start costs.

use std::fs;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::geteuid;

use crate::clock;

/// How long a lookup may take. A server of names that does not answer would keep a start
/// for ever.
const PATIENCE: Duration = Duration::from_secs(20);

/// A line of passwd(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its login name.
    pub name: String,
    /// Its home directory.
    pub home: PathBuf,
}

/// The caller; `None` when no database knows the number, or there is no getent to ask.
///
/// # Errors
/// When the databases do not answer.
pub fn caller() -> io::Result<Option<User>> {
    let uid = geteuid().as_raw();
    // Nearly everybody is there, and it costs no process.
    match find(passwd(), uid) {
        Some(user) => Ok(Some(user)),
        None => match getent(&["passwd", &uid.to_string()]) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            told => Ok(find(&told?, uid)),
        },
    }
}

/// Content of the host's /etc/passwd, as it was when it was first asked for; empty when there
/// is none.
#[must_use]
pub fn passwd() -> &'static str {
    static CONTENT: OnceLock<String> = OnceLock::new();
    CONTENT.get_or_init(|| fs::read_to_string("/etc/passwd").unwrap_or_default())
}

/// The addresses of a host, each once, the preferred first; none when it is unknown.
///
/// # Errors
/// When getent cannot be started, or does not answer.
pub fn addresses(host: &str) -> io::Result<Vec<IpAddr>> {
    Ok(each_once(&getent(&["ahosts", "--", host])?))
}

/// The addresses that `getent ahosts` tells, a line for each and kind of socket.
fn each_once(told: &str) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for line in told.lines() {
        // One with a scope (`fe80::1%eth0`) is for links, where no registry is.
        let address = line.split_whitespace().next().and_then(|word| word.parse().ok());
        addresses.extend(address.filter(|address| !addresses.contains(address)));
    }
    addresses
}

fn getent(args: &[&str]) -> io::Result<String> {
    let mut command = Command::new("getent");
    command.args(args);
    // What is unknown is no output, and an exit code.
    said_by(command, PATIENCE).map_err(|error| {
        let asked = args.join(" ");
        io::Error::new(error.kind(), format!("cannot ask 'getent {asked}': {error}"))
    })
}

/// What a program prints, which has `patience` to come to its end.
fn said_by(mut command: Command, patience: Duration) -> io::Result<String> {
    let deadline = clock::monotonic() + patience;
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let mut said = Vec::new();
    let heard = match &mut child.stdout {
        None => Ok(()),
        Some(stdout) => loop {
            let left = deadline.saturating_duration_since(clock::monotonic());
            let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Err(Errno::EINTR) => continue,
                Err(errno) => break Err(errno.into()),
                Ok(0) => {
                    let said = format!("no answer in {} s", patience.as_secs());
                    break Err(io::Error::new(io::ErrorKind::TimedOut, said));
                }
                Ok(_) => {}
            }
            let mut buffer = [0; 4096];
            match stdout.read(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(length) => said.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        },
    };
    if heard.is_err() {
        // It is there, and not waited for: this cannot fail.
        drop(child.kill());
    }
    child.wait()?;
    heard.map(|()| String::from_utf8_lossy(&said).into_owned())
}

fn find(passwd: &str, uid: u32) -> Option<User> {
    let number = uid.to_string();
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, found, _, _, home, ..] = fields[..] else { return None };
        (found == number).then(|| User { name: name.to_owned(), home: home.into() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nshort:x:7\n\nada:x:7:8:,,:/home/ada:/bin/sh\n";
        let ada = User { name: "ada".to_owned(), home: "/home/ada".into() };
        assert_eq!(find(passwd, 7), Some(ada));
        assert_eq!((find(passwd, 70), find("", 0)), (None, None));
    }

    #[test]
    fn who_does_not_answer_is_not_waited_for() {
        let program = |words: &[&str]| {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]);
            command
        };
        let silent = said_by(program(&["sleep", "1000"]), Duration::from_millis(20)).unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::TimedOut);
        assert_eq!(said_by(program(&["echo", "x"]), PATIENCE).unwrap(), "x\n");
        assert_eq!(said_by(program(&["false"]), PATIENCE).unwrap(), "");
        assert!(said_by(program(&["/nonesuch"]), PATIENCE).is_err());
    }

    #[test]
    fn addresses_are_told_once() {
        let told = "2001:db8::7      STREAM registry.example\n2001:db8::7      DGRAM  \n\
                    192.0.2.7        STREAM \nfe80::1%eth0     STREAM \n\n192.0.2.7        RAW    \n";
        let wanted = ["2001:db8::7", "192.0.2.7"].map(|a| a.parse::<IpAddr>().unwrap());
        assert_eq!(each_once(told), wanted);
        assert!(each_once("").is_empty());
        // A number: nobody is asked for it.
        assert_eq!(addresses("127.0.0.1").unwrap(), ["127.0.0.1".parse::<IpAddr>().unwrap()]);
    }
}
