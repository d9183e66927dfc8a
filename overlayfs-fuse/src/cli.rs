//! The command line, in the form all FUSE programs share.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::config::{Config, ConfigError};

/// What is printed for `--help`.
pub const USAGE: &str = "\
usage: overlayfs-fuse [OPTIONS] [SOURCE] MOUNTPOINT

Joins directories into one, copy-on-write, without privilege.

  -o OPT[,OPT…]   mount options, see below
  -f              stay in the foreground
  -d, --debug     log every failed operation on stderr; implies -f
  --ready-fd FD   write 1 to FD and close it once the mount is live
  --exit-fd FD    unmount and exit when FD hangs up
  --upper-quota SIZE
                  as the option upper_quota
  -V, --version   print the version
  -h, --help      print this

  lowerdir=A:B:…              directories to join, topmost first
  upperdir=U,workdir=W        where changes go; read-only without
  uidmapping=DISK:SHOWN:N…    show owners shifted (also gidmapping)
  squash_to_root, squash_to_uid=N, squash_to_gid=N
  xattr_permissions=1|2       keep owner and mode in an attribute
  kept_owners                 show all files as root's; owners are set, and only
                              kept, by setting the attribute
                              user.containers.override_stat to UID:GID
  unmapped_root               show owners of no user of the namespace as 0
  public_lower                show only what every user of the host may read
  redirect_dir=on|off|nofollow
                              on: directories that a lower has can be renamed; off:
                              EXDEV (tools copy instead), but what was renamed is
                              shown; nofollow: not even that
  upper_quota=SIZE            the files of the upper take at most SIZE bytes (K, M,
                              G, T: units of 1024); beyond it ENOSPC
  writeback=1|0               1: the kernel gathers small writes and hands them over when
                              a file is synced or closed, at the latest; not with
                              upper_quota
  volatile                    never sync
  remount,ro or remount,rw    change that of the mount that is there (so does mount(8))
  spin=auto|off|MICROSECONDS  how long to look for a request before sleeping
  uring=on|off                on: through io_uring where the host's root allows it;
                              not where the mount is in a namespace that may end with
                              this program
  passthrough=on|off          on: without upperdir and as the host's root, the kernel
                              reads files by itself: for few large files
  stats=FILE                  SIGUSR1 writes counters there (else to stderr)
  noacl, noxattrs             without ACLs, without extended attributes
";

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// Print the usage.
    Help,
    /// Print the version.
    Version,
    /// Mount.
    Mount(Box<Mount>),
}

/// A mount, and how the process is to behave.
#[derive(Debug)]
pub struct Mount {
    /// What to mount.
    pub config: Config,
    /// Stay in the foreground.
    pub foreground: bool,
    /// Log failed operations.
    pub debug: bool,
    /// Number of the descriptor for readiness.
    pub ready_fd: Option<RawFd>,
    /// Number of the descriptor whose end ends us.
    pub exit_fd: Option<RawFd>,
}

/// Why a command line cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Nothing says where to mount.
    #[error("no mount point given; try --help")]
    NoMountPoint,
    /// An option without its argument.
    #[error("option {0} needs an argument; try --help")]
    NoArgument(String),
    /// A descriptor that is no number.
    #[error("option {0} needs the number of an open descriptor")]
    BadDescriptor(String),
    /// A mount option.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Reads a command line, without the program's name.
///
/// # Errors
/// Says what is missing or cannot be used. Unknown flags are no error: they are
/// in the configuration's `ignored`.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, CliError> {
    let mut mount = Mount {
        config: Config::default(),
        foreground: false,
        debug: false,
        ready_fd: None,
        exit_fd: None,
    };
    let mut positional: Vec<OsString> = Vec::new();
    let mut args = args.into_iter();
    let mut only_positional = false;
    while let Some(arg) = args.next() {
        let bytes = arg.as_bytes();
        if only_positional || !bytes.starts_with(b"-") || bytes == b"-" {
            positional.push(arg);
            continue;
        }
        let text = String::from_utf8_lossy(bytes).into_owned();
        let (flag, inline) = match text.split_once('=') {
            Some((flag, value)) if flag.starts_with("--") => {
                (flag.to_owned(), Some(value.to_owned()))
            }
            _ => (text.clone(), None),
        };
        let mut descriptor = || {
            let value = match &inline {
                Some(value) => value.clone(),
                None => args
                    .next()
                    .ok_or_else(|| CliError::NoArgument(flag.clone()))?
                    .to_string_lossy()
                    .into_owned(),
            };
            value
                .parse::<RawFd>()
                .ok()
                .filter(|fd| *fd >= 0)
                .ok_or_else(|| CliError::BadDescriptor(flag.clone()))
        };
        match flag.as_str() {
            "--" => only_positional = true,
            "-f" => mount.foreground = true,
            "-d" | "--debug" => {
                mount.debug = true;
                mount.foreground = true;
            }
            // What mount(8) hands to its helpers.
            "-n" | "-s" | "-v" => {}
            "-V" | "--version" => return Ok(Command::Version),
            "-h" | "--help" => return Ok(Command::Help),
            "--ready-fd" => mount.ready_fd = Some(descriptor()?),
            "--exit-fd" => mount.exit_fd = Some(descriptor()?),
            "--upper-quota" => {
                let value = match inline {
                    Some(value) => value,
                    None => args
                        .next()
                        .ok_or(CliError::NoArgument(flag))?
                        .to_string_lossy()
                        .into_owned(),
                };
                mount.config.apply(format!("upper_quota={value}").as_bytes())?;
            }
            "-o" => {
                let value = args.next().ok_or_else(|| CliError::NoArgument("-o".to_owned()))?;
                mount.config.apply(value.as_bytes())?;
            }
            _ if bytes.starts_with(b"-o") => mount.config.apply(&bytes[2..])?,
            _ => mount.config.ignored.push(text),
        }
    }
    let mount_point = positional.pop().ok_or(CliError::NoMountPoint)?;
    mount.config.mount_point = PathBuf::from(mount_point);
    if let Some(source) = positional.pop() {
        mount.config.source.get_or_insert_with(|| source.to_string_lossy().into_owned());
    }
    mount.config = mount.config.check()?;
    Ok(Command::Mount(Box::new(mount)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(line: &str) -> Mount {
        match parse(line.split_whitespace().map(OsString::from)).unwrap() {
            Command::Mount(mount) => *mount,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn forms_of_the_command_line() {
        for line in [
            "-o lowerdir=/a,upperdir=/u,workdir=/w /mnt",
            "-olowerdir=/a,upperdir=/u,workdir=/w /mnt",
            "/mnt -o lowerdir=/a -o upperdir=/u,workdir=/w",
            "overlay /mnt -o lowerdir=/a,upperdir=/u,workdir=/w",
            "-o lowerdir=/a,upperdir=/u,workdir=/w -- /mnt",
        ] {
            let m = mount(line);
            assert_eq!(m.config.mount_point, PathBuf::from("/mnt"), "{line}");
            assert_eq!(m.config.lowers, [PathBuf::from("/a")], "{line}");
            assert!(m.config.upper.is_some() && !m.foreground, "{line}");
        }
        assert_eq!(mount("overlay /mnt -o lowerdir=/a").config.source.as_deref(), Some("overlay"));
    }

    #[test]
    fn descriptors() {
        let m = mount("-f --ready-fd 3 --exit-fd=4 -o lowerdir=/a /m");
        assert_eq!((m.ready_fd, m.exit_fd, m.foreground), (Some(3), Some(4), true));
        for line in ["--ready-fd x /m", "--ready-fd", "--exit-fd=-1 /m"] {
            assert!(parse(line.split_whitespace().map(OsString::from)).is_err(), "{line}");
        }
    }

    #[test]
    fn quota() {
        for line in ["--upper-quota 5M", "--upper-quota=5M", "-o upper_quota=5M"] {
            let m = mount(&format!("{line} -o lowerdir=/a,upperdir=/u,workdir=/w /m"));
            assert_eq!(m.config.options.upper_quota, Some(5 << 20), "{line}");
        }
        for line in ["--upper-quota", "--upper-quota x /m", "--upper-quota= /m"] {
            assert!(parse(line.split_whitespace().map(OsString::from)).is_err(), "{line}");
        }
    }

    #[test]
    fn unknown_flags_are_ignored_by_name() {
        assert_eq!(mount("--frob -o lowerdir=/a /m").config.ignored, ["--frob"]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = |line: &str| {
            parse(line.split_whitespace().map(OsString::from)).unwrap_err().to_string()
        };
        assert!(error("-o lowerdir=/a").contains("mount point"));
        assert!(error("/m").contains("lowerdir"));
        assert!(error("-o lowerdir=/a,upperdir=/u /m").contains("workdir"));
        assert!(error("/m -o").contains("-o"));
    }
}
