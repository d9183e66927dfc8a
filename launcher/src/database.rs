//! What the machine's databases know of users and hosts (nsswitch.conf(5)): asked through
//! getent(1), a program of the C library's, so that no module of theirs runs in this
//! process. That lets it be linked statically, and takes half of what its start costs.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::unistd::geteuid;

/// A line of passwd(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its login name.
    pub name: String,
    /// Its home directory.
    pub home: PathBuf,
}

/// The caller; `None` when no database knows the number.
#[must_use]
pub fn caller() -> Option<User> {
    let uid = geteuid().as_raw();
    // Nearly everybody is there, and it costs no process.
    let file = fs::read_to_string("/etc/passwd").unwrap_or_default();
    find(&file, uid).or_else(|| find(&getent(&["passwd", &uid.to_string()]).ok()?, uid))
}

/// The addresses of a host, each once, the preferred first; none when it is unknown.
///
/// # Errors
/// When getent cannot be started.
pub fn addresses(host: &str) -> std::io::Result<Vec<IpAddr>> {
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

fn getent(args: &[&str]) -> std::io::Result<String> {
    let output = Command::new("getent")
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(|error| {
            std::io::Error::new(error.kind(), format!("cannot start getent: {error}"))
        })?;
    // What is unknown is no output, and an exit code.
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
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
