//! What the cases share: a scratch tmpfs, mounts, and small conveniences.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A tmpfs of this case alone becomes the working directory.
pub(crate) fn enter() {
    let scratch = "/mnt";
    mount(Some("scratch"), scratch, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
    std::env::set_current_dir(scratch).unwrap();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
}

/// Options that all mounts of the case have besides.
static BESIDES: OnceLock<String> = OnceLock::new();

/// From now on mounts have these options, too.
pub(crate) fn besides(options: String) {
    BESIDES.set(options).unwrap();
}

/// Options of a mount, with those of the case.
pub(crate) fn with_besides(options: &str) -> String {
    format!("{},{options}", BESIDES.get().map_or("", |besides| besides))
}

/// Exit code of a case that cannot be run here.
pub(crate) const SKIPPED: i32 = 77;

/// Ends the case: the machine lacks something.
pub(crate) fn skip(why: &str) {
    println!("skipped: {why}");
    std::process::exit(SKIPPED);
}

/// The program under test.
pub(crate) fn program() -> PathBuf {
    std::env::current_exe().unwrap().with_file_name("overlayfs-fuse")
}

/// Our program, mounted; unmounted on drop.
pub(crate) struct Mounted(pub(crate) PathBuf);

impl Mounted {
    pub(crate) fn new(options: &str, at: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        let options = &with_besides(options);
        let out = Command::new(program()).args(["-o", options, at]).output().unwrap();
        assert!(out.status.success(), "{options}: {}", text(&out));
        Self(fs::canonicalize(at).unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let result = umount2(&self.0, MntFlags::empty());
        // A failing case may leave files open; its own message counts more.
        if !std::thread::panicking() {
            result.unwrap();
        }
    }
}

/// `lower`, `upper`, `work` below the working directory.
pub(crate) fn layers() -> String {
    for dir in ["lower", "upper", "work"] {
        fs::create_dir_all(dir).unwrap();
    }
    "lowerdir=lower,upperdir=upper,workdir=work".to_owned()
}

pub(crate) fn text(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout)
}

/// Runs a shell command, which must succeed; gives its output.
pub(crate) fn sh(script: &str) -> String {
    let out = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(out.status.success(), "{script}: {}", text(&out));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

pub(crate) fn stat(path: impl AsRef<Path>) -> fs::Metadata {
    let path = path.as_ref();
    fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub(crate) fn mode(path: impl AsRef<Path>) -> u32 {
    stat(path).mode() & 0o7777
}

pub(crate) fn times(path: impl AsRef<Path>) -> (i64, i64) {
    let stat = stat(path);
    (stat.mtime(), stat.mtime_nsec())
}

pub(crate) fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}
