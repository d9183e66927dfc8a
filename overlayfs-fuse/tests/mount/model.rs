//! Random operations on the same layers through us and through the kernel's
//! overlay (`userxattr`): every errno and the whole tree must be the same, while
//! mounted, after a remount, and with each one's upper mounted by the other.
//!
//! `CORACLE_MODEL_SEQUENCES` says how many sequences (20), `CORACLE_MODEL_SEED`
//! with which to start (1). Lower hard links are left out: without its index the
//! kernel's overlay breaks them, we do not (`corners::hard_links_are_one_inode`).

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::lab::{Mounted, sh};

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
    List(PathBuf),
}

impl Step {
    fn random(r: &mut Random) -> Self {
        match r.below(17) {
            0 | 1 => Self::Write(r.path(), r.below(5000), r.below(3) == 0),
            2 => Self::Make(r.path()),
            3 => Self::MakeDir(
                r.path(),
                [0o755, 0o700, 0o2775][usize::try_from(r.below(3)).unwrap()],
            ),
            4 => Self::Remove(r.path()),
            5 => Self::RemoveDir(r.path()),
            6 => Self::RemoveAll(r.path()),
            7..=9 => {
                let flags = [0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE];
                Self::Rename(r.path(), r.path(), flags[usize::try_from(r.below(4)).unwrap()])
            }
            10 => Self::Link(r.path(), r.path()),
            11 => Self::Symlink(r.path(), r.path()),
            12 => Self::Mode(r.path(), u32::try_from(r.below(0o10000)).unwrap() | 0o700),
            13 => Self::Owner(r.path(), u32::try_from(r.below(5)).unwrap()),
            14 => Self::Fifo(r.path()),
            15 => Self::Truncate(r.path(), r.below(3000)),
            _ => Self::List(r.path()),
        }
    }

    /// Whether it makes two names of one file change places.
    fn exchanges_links(&self, root: &Path) -> bool {
        let Self::Rename(from, to, libc::RENAME_EXCHANGE) = self else { return false };
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
    out
}

fn same(what: &str, seed: u64, log: &[String], ours: &Path, kernel: &Path) {
    let (ours, kernel) = (tree(ours), tree(kernel));
    if ours != kernel {
        for path in ours.keys().chain(kernel.keys()) {
            if ours.get(path) != kernel.get(path) {
                eprintln!(
                    "{}: ours {:?}, kernel {:?}",
                    path.display(),
                    ours.get(path),
                    kernel.get(path)
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
        let options = format!("userxattr,{options}");
        mount(Some("overlay"), at, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
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
fn lowers(r: &mut Random, dir: &str) -> String {
    let n = 1 + r.below(4);
    let mut names = Vec::new();
    for i in 0..n {
        let root = PathBuf::from(format!("{dir}/l{i}"));
        fs::create_dir_all(&root).unwrap();
        for _ in 0..25 {
            let step = match r.below(6) {
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
                "d={}/{}; test ! -d $d || setfattr -n user.overlay.opaque -v y $d",
                root.display(),
                r.name()
            ));
        }
        sh(&format!("find {} -type f -exec sh -c 'echo {i} $1 >$1' - {{}} \\;", root.display()));
        names.push(root.display().to_string());
    }
    names.join(":")
}

pub(crate) fn random_operations() {
    let first = number("CORACLE_MODEL_SEED", 1);
    for seed in first..first + number("CORACLE_MODEL_SEQUENCES", 20) {
        let mut r = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let dir = format!("s{seed}");
        let lower = lowers(&mut r, &dir);
        sh(&format!("mkdir {dir}/u1 {dir}/w1 {dir}/u2 {dir}/w2"));
        let ours_at = format!("lowerdir={lower},upperdir={dir}/u1,workdir={dir}/w1");
        let kernel_at = format!("lowerdir={lower},upperdir={dir}/u2,workdir={dir}/w2");
        let mut log = Vec::new();
        for round in 0..3 {
            let ours = Mounted::new(&ours_at, "ours");
            let kernel = Kernel::new(&kernel_at, "kernel");
            for _ in 0..40 {
                let step = Step::random(&mut r);
                let idle = step.exchanges_links(&ours.0);
                let (a, mut b) = (step.run(&ours.0), step.run(&kernel.0));
                // Two names of one file that change places: nothing happens
                // (rename(2)), but the kernel's overlay says ESTALE where a FIFO
                // was copied up and linked, and the two have different inodes.
                if idle && b == format!("{:?}", Err::<(), _>(Some(libc::ESTALE))) {
                    b = "Ok(())".to_owned();
                }
                log.push(format!("{step:?}: {a}"));
                assert_eq!(a, b, "seed {seed}: ours, kernel; after\n{}", log.join("\n"));
            }
            same("while mounted", seed, &log, &ours.0, &kernel.0);
            drop((ours, kernel));
            assert_eq!(fs::read_dir(format!("{dir}/w1/work")).unwrap().count(), 0, "seed {seed}");
            log.push(format!("-- remount {round}"));
            let (ours, kernel) =
                (Mounted::new(&ours_at, "ours"), Kernel::new(&kernel_at, "kernel"));
            same("after a remount", seed, &log, &ours.0, &kernel.0);
        }
        // Each one's upper, mounted by the other.
        let (ours, kernel) = (Mounted::new(&kernel_at, "ours"), Kernel::new(&ours_at, "kernel"));
        same("with exchanged uppers", seed, &log, &ours.0, &kernel.0);
        drop((ours, kernel));
        sh(&format!("chmod -R u+rwx {dir}; rm -rf {dir}"));
    }
}
