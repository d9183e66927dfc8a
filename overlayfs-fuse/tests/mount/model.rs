//! Random operations through us and through something that is known to be right:
//! every errno and the whole tree must be the same, while mounted and after a
//! remount. What is right is
//! * the kernel's overlay on the same layers, as root of a user namespace
//!   (`userxattr`); each one's upper is mounted by the other as well;
//! * the same as root of the machine, which alone may have `redirect_dir=on`;
//! * a plain directory that holds what the layers together show. It knows neither
//!   EXDEV nor hard links that break, which the kernel's overlay has without its
//!   index; so these lowers have some.
//!
//! `CORACLE_MODEL_SEQUENCES` says how many sequences (20), `CORACLE_MODEL_SEED`
//! with which to start (1).

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::lab::{Mounted, errno, sh};

/// xorshift64*: good enough, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }

    fn name(&mut self) -> &'static str {
        ["a", "b", "c", "d", "e"][usize::try_from(self.below(5)).unwrap()]
    }

    fn path(&mut self) -> PathBuf {
        (0..=self.below(3)).map(|_| self.name()).collect()
    }
}

#[derive(Debug)]
enum Step {
    Write(PathBuf, u64, bool),
    Make(PathBuf),
    MakeDir(PathBuf, u32),
    Remove(PathBuf),
    RemoveDir(PathBuf),
    RemoveAll(PathBuf),
    Rename(PathBuf, PathBuf, u32),
    Link(PathBuf, PathBuf),
    Symlink(PathBuf, PathBuf),
    Mode(PathBuf, u32),
    Owner(PathBuf, u32),
    Fifo(PathBuf),
    Truncate(PathBuf, u64),
    Attribute(PathBuf, u64),
    List(PathBuf),
}

impl Step {
    /// `barred`: owners may be denied to write by a mode.
    fn random(r: &mut Random, barred: bool) -> Self {
        match r.below(18) {
            0 | 1 => Self::Write(r.path(), r.below(5000), r.below(3) == 0),
            2 => Self::Make(r.path()),
            3 => {
                let mode = [0o755, 0o700, 0o2775][usize::try_from(r.below(3)).unwrap()];
                Self::MakeDir(r.path(), if barred { mode & 0o7555 } else { mode })
            }
            4 => Self::Remove(r.path()),
            5 => Self::RemoveDir(r.path()),
            6 => Self::RemoveAll(r.path()),
            7..=9 => {
                let flags = [0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE];
                Self::Rename(r.path(), r.path(), flags[usize::try_from(r.below(4)).unwrap()])
            }
            10 => Self::Link(r.path(), r.path()),
            11 => Self::Symlink(r.path(), r.path()),
            12 => {
                let owners = if barred { 0o500 } else { 0o700 };
                Self::Mode(r.path(), u32::try_from(r.below(0o10000)).unwrap() | owners)
            }
            13 => Self::Owner(r.path(), u32::try_from(r.below(5)).unwrap()),
            14 => Self::Fifo(r.path()),
            15 => Self::Truncate(r.path(), r.below(3000)),
            16 => Self::Attribute(r.path(), r.below(100)),
            _ => Self::List(r.path()),
        }
    }

    /// Whether it renames one name of a file to another of its names.
    fn renames_to_itself(&self, root: &Path) -> bool {
        let Self::Rename(from, to, 0 | libc::RENAME_EXCHANGE) = self else { return false };
        let ino = |path: &Path| fs::symlink_metadata(root.join(path)).ok().map(|m| m.ino());
        ino(from).is_some() && ino(from) == ino(to)
    }

    /// Does it below `root`; what came of it, for comparison.
    fn run(&self, root: &Path) -> String {
        let errno = |e: nix::errno::Errno| std::io::Error::from(e);
        let done = match self {
            Self::Write(path, len, append) => {
                let mut options = OpenOptions::new();
                options.write(true).append(*append);
                // Only what is a file: a FIFO would wait for a reader.
                let path = root.join(path);
                match fs::symlink_metadata(&path) {
                    Ok(m) if m.is_file() => options
                        .open(&path)
                        .and_then(|mut f| f.write_all(&vec![b'w'; usize::try_from(*len).unwrap()])),
                    Ok(_) => Ok(()),
                    Err(e) => Err(e),
                }
            }
            Self::Make(path) => File::create_new(root.join(path)).map(drop),
            Self::MakeDir(path, mode) => fs::create_dir(root.join(path)).and_then(|()| {
                fs::set_permissions(root.join(path), fs::Permissions::from_mode(*mode))
            }),
            Self::Remove(path) => fs::remove_file(root.join(path)),
            Self::RemoveDir(path) => fs::remove_dir(root.join(path)),
            Self::RemoveAll(path) => match fs::symlink_metadata(root.join(path)) {
                Ok(m) if m.is_dir() => fs::remove_dir_all(root.join(path)),
                Ok(_) => Ok(()),
                Err(e) => Err(e),
            },
            Self::Rename(from, to, flags) => {
                let flags = RenameFlags::from_bits_truncate(*flags);
                renameat2(AT_FDCWD, &root.join(from), AT_FDCWD, &root.join(to), flags)
                    .map_err(errno)
            }
            Self::Link(from, to) => fs::hard_link(root.join(from), root.join(to)),
            Self::Symlink(target, at) => symlink(target, root.join(at)),
            Self::Mode(path, mode) => match fs::symlink_metadata(root.join(path)) {
                Ok(m) if m.is_symlink() => Ok(()),
                Ok(_) => fs::set_permissions(root.join(path), fs::Permissions::from_mode(*mode)),
                Err(e) => Err(e),
            },
            Self::Owner(path, id) => {
                std::os::unix::fs::lchown(root.join(path), Some(*id), Some(*id + 1))
            }
            Self::Fifo(path) => nix::unistd::mkfifo(
                &root.join(path),
                nix::sys::stat::Mode::from_bits_truncate(0o640),
            )
            .map_err(errno),
            Self::Truncate(path, len) => match fs::symlink_metadata(root.join(path)) {
                Ok(m) if m.is_file() => OpenOptions::new()
                    .write(true)
                    .open(root.join(path))
                    .and_then(|f| f.set_len(*len)),
                Ok(_) => Ok(()),
                Err(e) => Err(e),
            },
            Self::Attribute(path, value) => {
                let out = Command::new("setfattr")
                    .args(["-h", "-n", "user.model", "-v", &value.to_string()])
                    .arg(root.join(path))
                    .output()
                    .unwrap();
                return format!("attribute {:?}", out.status.code());
            }
            Self::List(path) => {
                return match fs::read_dir(root.join(path)) {
                    Ok(dir) => {
                        // As in `tree`: what is listed and not found is not there.
                        let there = |p: &PathBuf| fs::symlink_metadata(p).is_ok();
                        let mut names: Vec<_> = dir
                            .map(|e| e.unwrap().path())
                            .filter(there)
                            .map(|p| p.file_name().unwrap().to_owned())
                            .collect();
                        names.sort();
                        format!("{names:?}")
                    }
                    Err(e) => format!("{:?}", e.raw_os_error()),
                };
            }
        };
        format!("{:?}", done.map_err(|e| e.raw_os_error()))
    }
}

/// Everything about a tree that both must agree on.
fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    fn walk(root: &Path, at: &Path, out: &mut BTreeMap<PathBuf, String>) {
        let path = root.join(at);
        let m = match fs::symlink_metadata(&path) {
            // The kernel's overlay lists a whiteout in a directory that is in one
            // layer only, and then does not find it.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return,
            other => other.unwrap_or_else(|e| panic!("{}: {e}", path.display())),
        };
        let mut line = format!("{:o} {}:{}", m.mode(), m.uid(), m.gid());
        if m.is_symlink() {
            line += &format!(" -> {}", fs::read_link(&path).unwrap().display());
        } else if m.is_file() {
            let mut content = Vec::new();
            File::open(&path).unwrap().read_to_end(&mut content).unwrap();
            let sum: u64 = content.iter().fold(7, |s, b| s * 31 % 1_000_003 + u64::from(*b));
            line += &format!(" links {} size {} sum {sum}", m.nlink(), m.len());
        }
        out.insert(at.to_owned(), line);
        if m.is_dir() {
            for entry in fs::read_dir(&path).unwrap() {
                walk(root, &at.join(entry.unwrap().file_name()), out);
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(root, Path::new(""), &mut out);
    // One process for all: what it says of a file ends with an empty line.
    let said = Command::new("getfattr").args(["-Rdh", "."]).current_dir(root).output().unwrap();
    for file in String::from_utf8_lossy(&said.stdout).split("\n\n").filter(|f| !f.is_empty()) {
        let (name, values) = file.split_once('\n').unwrap();
        let name = name.strip_prefix("# file: ").unwrap().trim_start_matches("./");
        let name = Path::new(if name == "." { "" } else { name });
        out.get_mut(name).unwrap().push_str(values);
    }
    out
}

/// Which names are one file: each is told the first of them.
fn with_links(root: &Path, mut tree: BTreeMap<PathBuf, String>) -> BTreeMap<PathBuf, String> {
    let mut first = BTreeMap::new();
    for (path, line) in &mut tree {
        let m = fs::symlink_metadata(root.join(path)).unwrap();
        if !m.is_dir() {
            let first = first.entry(m.ino()).or_insert(path.clone());
            *line += &format!(" links {} is {}", m.nlink(), first.display());
        }
    }
    tree
}

fn same(what: &str, seed: u64, log: &[String], ours: &Path, right: &Path, links: bool) {
    let (mut one, mut other) = (tree(ours), tree(right));
    if links {
        (one, other) = (with_links(ours, one), with_links(right, other));
    }
    if one != other {
        for path in one.keys().chain(other.keys()) {
            if one.get(path) != other.get(path) {
                eprintln!(
                    "{}: ours {:?}, right {:?}",
                    path.display(),
                    one.get(path),
                    other.get(path)
                );
            }
        }
        panic!("seed {seed}: trees differ {what}, after\n{}", log.join("\n"));
    }
}

struct Kernel(PathBuf);

impl Kernel {
    fn new(options: &str, at: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        mount(Some("overlay"), at, Some("overlay"), MsFlags::empty(), Some(options))
            .unwrap_or_else(|e| panic!("kernel overlay {options}: {e}"));
        Self(fs::canonicalize(at).unwrap())
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        let result = umount2(&self.0, MntFlags::empty());
        if !std::thread::panicking() {
            result.unwrap();
        }
    }
}

fn number(key: &str, default: u64) -> u64 {
    std::env::var(key).map_or(default, |v| v.parse().unwrap())
}

/// Random lowers, made by random steps and a few whiteouts.
fn lowers(r: &mut Random, dir: &str, right: Right) -> String {
    let links = right.is_plain();
    let space = if right == Right::KernelWithRedirects { "trusted" } else { "user" };
    let n = 1 + r.below(5);
    let mut names = Vec::new();
    for i in 0..n {
        let root = PathBuf::from(format!("{dir}/l{i}"));
        fs::create_dir_all(&root).unwrap();
        for _ in 0..25 {
            let step = match r.below(6) {
                // Only at the top, where no other layer hides one of the names: what is
                // hidden still counts as a link.
                3 if links && i == 0 => {
                    let from = r.path();
                    if fs::symlink_metadata(root.join(&from)).is_ok_and(|m| !m.is_dir()) {
                        Step::Link(from, r.path())
                    } else {
                        Step::Make(from)
                    }
                }
                0 | 1 => Step::MakeDir(r.path(), 0o755),
                2 => Step::Symlink(r.path(), r.path()),
                3 => Step::Fifo(r.path()),
                _ => Step::Make(r.path()),
            };
            step.run(&root);
        }
        for _ in 0..3 {
            let at = root.join(r.path());
            let whiteout = nix::sys::stat::SFlag::S_IFCHR;
            // It fails where something is in the way; then there is none.
            nix::sys::stat::mknod(&at, whiteout, nix::sys::stat::Mode::empty(), 0).ok();
        }
        if r.below(2) == 0 {
            sh(&format!(
                "d={}/{}; test ! -d $d || setfattr -n {space}.overlay.opaque -v y $d",
                root.display(),
                r.name()
            ));
        }
        sh(&format!("find {} -type f -exec sh -c 'echo {i} $1 >$1' - {{}} \\;", root.display()));
        if right == Right::PlainBarred {
            for _ in 0..6 {
                Step::Mode(r.path(), 0o555).run(&root);
            }
        }
        names.push(root.display().to_string());
    }
    names.join(":")
}

/// What our mounts are compared with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Right {
    Kernel,
    KernelWithRedirects,
    Plain,
    /// Of files that their owner, who is also the one who serves, may not write.
    PlainBarred,
}

impl Right {
    fn is_plain(self) -> bool {
        matches!(self, Self::Plain | Self::PlainBarred)
    }
}

pub(crate) fn random_operations() {
    sequences(Right::Kernel);
}

pub(crate) fn redirects() {
    sequences(Right::KernelWithRedirects);
}

pub(crate) fn plain_directory() {
    sequences(Right::Plain);
}

/// Runs without the capabilities by which modes do not matter.
pub(crate) fn plain_directory_by_its_modes() {
    assert_eq!(errno(File::open(sh("f=$(mktemp -p .); chmod 0 $f; echo $f"))), libc::EACCES);
    sequences(Right::PlainBarred);
}

/// The mount or directory that is right.
enum Reference {
    Kernel(Kernel),
    Plain(PathBuf),
}

impl Reference {
    fn new(right: Right, layers: &str, dir: &str) -> Self {
        match right {
            Right::Kernel => Self::Kernel(Kernel::new(&format!("userxattr,{layers}"), "kernel")),
            Right::KernelWithRedirects => {
                Self::Kernel(Kernel::new(&format!("redirect_dir=on,{layers}"), "kernel"))
            }
            Right::Plain | Right::PlainBarred => {
                Self::Plain(fs::canonicalize(dir).unwrap().join("plain"))
            }
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Kernel(kernel) => &kernel.0,
            Self::Plain(path) => path,
        }
    }
}

fn sequences(right: Right) {
    let first = number("CORACLE_MODEL_SEED", 1);
    let ours_only = if right == Right::Kernel { "" } else { ",redirect_dir=on" };
    let (links, barred) = (right.is_plain(), right == Right::PlainBarred);
    for seed in first..first + number("CORACLE_MODEL_SEQUENCES", 20) {
        let mut r = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let dir = format!("s{seed}");
        let lower = lowers(&mut r, &dir, right);
        sh(&format!("mkdir {dir}/u1 {dir}/w1 {dir}/u2 {dir}/w2"));
        let ours_at = format!("lowerdir={lower},upperdir={dir}/u1,workdir={dir}/w1");
        let right_at = format!("lowerdir={lower},upperdir={dir}/u2,workdir={dir}/w2");
        let ours_now = || Mounted::new(&(ours_at.clone() + ours_only), "ours");
        if right.is_plain() {
            let shown = Mounted::new(&format!("lowerdir={lower}"), "ours");
            sh(&format!("cp -a {} {dir}/plain", shown.0.display()));
        }
        let mut log = Vec::new();
        for round in 0..3 {
            let ours = ours_now();
            let reference = Reference::new(right, &right_at, &dir);
            for _ in 0..40 {
                let step = Step::random(&mut r, barred);
                let idle = step.renames_to_itself(&ours.0);
                let (a, mut b) = (step.run(&ours.0), step.run(reference.path()));
                // One name of a file replaces or changes places with another: nothing happens
                // (rename(2)), but the kernel's overlay says ESTALE where a FIFO
                // was copied up and linked, and the two have different inodes.
                if idle && b == format!("{:?}", Err::<(), _>(Some(libc::ESTALE))) {
                    b = "Ok(())".to_owned();
                }
                log.push(format!("{step:?}: {a}"));
                assert_eq!(a, b, "seed {seed}: ours, right; after\n{}", log.join("\n"));
            }
            same("while mounted", seed, &log, &ours.0, reference.path(), links);
            drop((ours, reference));
            assert_eq!(fs::read_dir(format!("{dir}/w1/work")).unwrap().count(), 0, "seed {seed}");
            log.push(format!("-- remount {round}"));
            let (ours, reference) = (ours_now(), Reference::new(right, &right_at, &dir));
            same("after a remount", seed, &log, &ours.0, reference.path(), links);
        }
        // Each one's upper, mounted by the other.
        if !right.is_plain() {
            let ours = Mounted::new(&right_at, "ours");
            let reference = Reference::new(right, &ours_at, &dir);
            same("with exchanged uppers", seed, &log, &ours.0, reference.path(), links);
        }
        sh(&format!("chmod -R u+rwx {dir}; rm -rf {dir}"));
    }
}
