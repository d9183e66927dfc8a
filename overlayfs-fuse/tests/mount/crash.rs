//! A crash at every step: the server is killed at its n-th changing system call,
//! for every n that an operation has, and the mount made again.
//!
//! What is then seen is the tree before the operation or the tree after it, never
//! a mixture, and nothing is left in the work directory, nor in the index of hard links.
//!
//! Left out of the comparison: times of directories, and the link count of a
//! copied-up hard link, which a crash may leave one off (the object and its count
//! cannot change in one step).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lab::{Mounted, sh};
use crate::step::crash;

/// Most steps that an operation may have.
const MOST: u32 = 80;

const BEFORE: &str = "mkdir -p lower/d/sub lower/e lower/gone; for f in f g d/x d/y e/z; do
    printf old-$f >lower/$f; done; chmod 4711 lower/f; chown 3:4 lower/f
    setfattr -n user.note -v kept lower/f; touch -d @1000000000.5 lower/f
    ln -s target lower/link; mkfifo lower/fifo; ln lower/g lower/g2
    for f in h k l; do printf old-$f >lower/$f; ln lower/$f lower/${f}2; done
    chmod 2775 lower/d; mkdir lower/nodir";

/// What was done to the upper before.
const PREPARED: &str =
    "printf changed >u/d/x; rm u/d/y; rmdir u/gone; mkdir u/own; printf o >u/own/o
    rm u/e/z; mkdir u/empty
    for f in h k l; do printf +$f >>u/$f; done; rm u/h u/k2 u/l";

/// Each changes the mount by one system call (opened to append is not changed yet).
const OPERATIONS: &[&str] = &[
    "printf more >>u/f",
    "chmod 600 u/f",
    ": >u/f",
    "mv u/f u/f2",
    "rm u/f",
    "rm u/d/x",
    "rm u/g2",
    "rm u/h2",
    "rm u/k",
    "mv u/f u/k",
    "mv u/f u/l2",
    ": >u/d/y",
    "mkdir u/gone",
    "mkdir u/new",
    "rmdir u/e",
    "rmdir u/empty",
    "mv u/d/x u/moved",
    "mv -T u/own u/own2",
    "mv -T u/own u/gone",
    "mv -T u/own u/empty",
    "mv -T u/d u/renamed",
    "mv -T u/d/sub u/empty",
    "mv u/nodir u/own/moved",
    "mv -T u/d u/gone",
    "mv u/f u/g",
    "printf more >>u/g2",
    "ln u/f u/d/y",
    "mv u/link u/link2",
    "chmod 600 u/fifo",
    "ln -s s u/gone",
    "setfattr -n user.a -v b u/d/sub",
    "python3 -c 'import ctypes; ctypes.CDLL(None).renameat2(-100, b\"u/f\", -100, b\"u/d/x\", 2)'",
];

fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    fn walk(root: &Path, at: &Path, out: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(root.join(at)).unwrap() {
            let at = at.join(entry.unwrap().file_name());
            let path = root.join(&at);
            let m = fs::symlink_metadata(&path).unwrap();
            let mut line = format!("{:o} {}:{}", m.mode(), m.uid(), m.gid());
            if m.is_symlink() {
                line += &format!(" -> {}", fs::read_link(&path).unwrap().display());
            } else if m.is_file() {
                line += &format!(" {:?}", fs::read_to_string(&path).unwrap());
                let note = Command::new("getfattr")
                    .args(["-d", "--absolute-names"])
                    .arg(&path)
                    .output()
                    .unwrap();
                line += &String::from_utf8_lossy(&note.stdout).replace('\n', " ");
            } else {
                assert!(m.is_dir() || m.file_type().is_fifo());
            }
            out.insert(at.clone(), line);
            if m.is_dir() {
                walk(root, &at, out);
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(root, Path::new(""), &mut out);
    out
}

/// The copies that the index of hard links has.
fn index() -> Vec<std::ffi::OsString> {
    let names = fs::read_dir("work/links.coracle").unwrap().map(|e| e.unwrap().file_name());
    let mut copies: Vec<_> = names
        // Not notes about them.
        .filter(|name| {
            let name = name.to_str().unwrap();
            name.contains('-') && !name.contains('.')
        })
        .collect();
    copies.sort();
    copies
}

/// Layers in their state before the operation.
fn reset() {
    // By one cp: the index has hard links to what is in the upper.
    sh("chmod -R u+rwx upper work 2>/dev/null || true; rm -rf upper work
        cp -a prepared/upper prepared/work .; mkdir -p u");
}

pub(crate) fn at_every_step() {
    let crashes = every_step(BEFORE, PREPARED, OPERATIONS);
    assert!(crashes > 100, "only {crashes} crashes");
}

/// Directories that nobody may write, where that matters.
const BARRED_BEFORE: &str = "mkdir -p lower/d/sub lower/d/gone lower/e lower/k
    for f in d/f d/sub/g d/sub/h d/x e/y k/z; do printf old-$f >lower/$f; done
    ln lower/d/x lower/x2; chmod 444 lower/d/x
    chmod 555 lower/d lower/d/sub lower/e lower/k; chmod 2555 lower/d/gone";
const BARRED_PREPARED: &str =
    "chmod 700 u/e; rm u/e/y; chmod 555 u/e; rmdir u/e; mkdir u/own; touch u/own/o; chmod 555 u/own
    chmod 755 u/k; rm u/k/z; chmod 555 u/k; chmod 755 u/d/sub; printf + >>u/d/sub/h; chmod 555 u/d/sub";
const BARRED_OPERATIONS: &[&str] = &[
    "chmod 755 u/d",
    "chmod 700 u/d/sub",
    "chmod 755 u/d/gone",
    "printf more >>u/d/f",
    "printf more >>u/d/sub/g",
    "touch -d @5 u/d/f",
    "chmod 644 u/d/x",
    "chmod 644 u/x2",
    "python3 -c 'import os; os.mkdir(\"u/e\", 0o555)'",
    "rmdir u/k",
    "mv -T u/own u/k",
    "mv -T u/own u/e",
    "mv -T u/d u/renamed",
];

pub(crate) fn at_every_step_past_modes() {
    let crashes = every_step(BARRED_BEFORE, BARRED_PREPARED, BARRED_OPERATIONS);
    assert!(crashes > 60, "only {crashes} crashes");
}

/// The number of crashes.
fn every_step(lower: &str, prepared: &str, operations: &[&str]) -> u32 {
    sh(lower);
    sh("mkdir upper work");
    let options = "lowerdir=lower,upperdir=upper,workdir=work,redirect_dir=on";
    {
        let _union = Mounted::new(options, "u");
        sh(prepared);
    }
    sh("mkdir prepared; cp -a upper work prepared");
    let shown = || tree(&Mounted::new(options, "u").0);
    let before = (shown(), index());
    let mut crashes = 0;
    for operation in operations {
        reset();
        {
            let _union = Mounted::new(options, "u");
            sh(operation);
        }
        let after = (shown(), index());
        for n in 1..=MOST {
            assert!(n < MOST, "{operation}: does it never end?");
            reset();
            if !crash(options, operation, n) {
                assert!(n > 1, "{operation}: it changes nothing?");
                break;
            }
            crashes += 1;
            let found = shown();
            if found != before.0 && found != after.0 {
                let old = &before.0;
                let odd: Vec<_> = found.iter().filter(|(p, l)| old.get(*p) != Some(l)).collect();
                let lost: Vec<_> = old.keys().filter(|p| !found.contains_key(*p)).collect();
                panic!(
                    "{operation}: killed at change {n}: neither old nor new: {odd:?}, gone {lost:?}"
                );
            }
            // A copy that is not seen yet may be in the index, but none that is not any more.
            let copies = index();
            assert!(copies == after.1 || copies == before.1, "{operation}: {n}: {copies:?}");
            if found != before.0 {
                assert_eq!(copies, after.1, "{operation}: killed at change {n}");
            }
            assert_eq!(fs::read_dir("work/work").unwrap().count(), 0, "{operation}: {n}");
        }
    }
    println!("{crashes} crashes");
    crashes
}
