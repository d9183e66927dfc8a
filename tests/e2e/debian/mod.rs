//! A Debian root file system as a lower, in which a day's work is done: the same comes
//! out as in a plain directory.
//!
//! Takes an archive that `prepare.sh` makes once, since packages must be downloaded for
//! it: `CORACLE_DEBIAN_ROOT=FILE cargo xtask test debian-root`. FILE is not below /tmp or
//! a home, which are covered in the lab.

mod package;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::harness::{Test, World, skip};

pub(crate) const TESTS: &[Test] = &[
    Test::new("overlay/debian-root", debian_root).lab().subordinate_ids().seconds(900),
    package::TEST,
];

/// Before the archive is unpacked, twice; what is below `mnt` is `$1`, then.
const SCRIPT: &str = r#"
mkdir -p plain lower upper work mnt
tar --numeric-owner -xpf debian.tar -C plain
tar --numeric-owner -xpf debian.tar -C lower
rm debian.tar
before=$(list lower)
# Of a process in the background, and through a mount: the same for both.
for of in plain union; do
    if [ $of = union ]; then
        "$OVL" -o "lowerdir=lower,upperdir=upper,workdir=work" mnt
    else
        mount --bind plain mnt
    fi
    mount -t proc proc mnt/proc
    mount --rbind /dev mnt/dev
    cp inside.sh mnt/root/
    chroot mnt sh /root/inside.sh >said.$of 2>&1 </dev/null || { cat said.$of; exit 1; }
    umount -l mnt/dev mnt/proc
    list mnt >tree.$of
    umount mnt
done
# And after a remount.
"$OVL" -o "lowerdir=lower,upperdir=upper,workdir=work" mnt
list mnt >tree.remounted
umount mnt
[ "$before" = "$(list lower)" ] || echo 'the lower has changed'
"#;

/// Names, kinds, owners, modes, sizes, links, content, but for what tells times or inode
/// numbers by its content: logs, caches of apt, man, ldconfig and debconf, git's index.
const LIST: &str = r#"
list() { (
    cd "$1"
    leave='-path ./proc -o -path ./dev -o -path ./var/log -o -path ./var/cache -o -path ./var/lib/apt'
    find . -mindepth 1 \( $leave \) -prune -o -type d -printf '%P %y %m %U %G\n' \
        -o -printf '%P %y %m %U %G %s %n %l\n' | sort
    find . \( $leave -o -path ./srv/repo/.git/index \) -prune -o -type f -print0 | sort -z | xargs -0 sha256sum
) }
"#;

fn debian_root(world: &World<'_>) -> Result<()> {
    let Some(archive) = std::env::var_os("CORACLE_DEBIAN_ROOT") else {
        return Err(skip(
            "CORACLE_DEBIAN_ROOT names no archive (tests/e2e/debian/prepare.sh makes one)",
        ));
    };
    let there = world.dir().join("debian.tar");
    fs::copy(&archive, &there).with_context(|| archive.display().to_string())?;
    fs::set_permissions(&there, fs::Permissions::from_mode(0o644))?;
    world.write("inside.sh", include_str!("inside.sh"))?;
    let said = world
        .cmd("unshare")
        .args(["--map-root-user", "--map-auto", "--mount", "--pid", "--fork", "--kill-child"])
        .args(["sh", "-euc", &format!("{LIST}{SCRIPT}")])
        .env("OVL", world.lab.bin.join("overlayfs-fuse"))
        .limit(Duration::from_secs(800))
        .run()?
        .ok()?;
    ensure!(said.stdout.is_empty(), "{}", said.describe());
    let read = |name: &str| fs::read_to_string(world.dir().join(name)).context(name.to_owned());
    let steps = read("said.plain")?;
    for step in ["install", "verify", "git", "build", "mandb", "remove"] {
        ensure!(steps.contains(&format!("== {step}\n")), "no step {step}\n{steps}");
    }
    ensure!(steps.contains("build-essential 12"), "nothing was installed\n{steps}");
    for (plain, union) in [
        ("said.plain", "said.union"),
        ("tree.plain", "tree.union"),
        ("tree.plain", "tree.remounted"),
    ] {
        let diff = world.cmd("diff").args(["-U0", plain, union]).run()?;
        ensure!(diff.code == 0, "{plain} and {union} differ:\n{}", diff.describe());
    }
    Ok(())
}
