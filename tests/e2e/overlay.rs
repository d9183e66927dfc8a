//! `overlayfs-fuse` on its own, in a user namespace.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::command::{Cmd, Output, pipe, read_ready};
use tests::harness::{Test, World};
use tests::lab::Ids;

use crate::fixtures::deb;

pub(crate) const TESTS: &[Test] = &[
    Test::new("overlay/same-as-a-plain-directory", same_as_plain).each_user().seconds(180),
    Test::new("overlay/after-a-remount", remount).each_user(),
    Test::new("overlay/host-root-and-dpkg", host_root).each_user().seconds(120),
    Test::new("overlay/read-only", read_only).each_user(),
    Test::new("overlay/layers", layers),
    Test::new("overlay/kernel-reads-our-upper", kernel_reads_upper),
    Test::new("overlay/we-read-the-kernels-upper", reads_kernel_upper),
    Test::new("overlay/daemon", daemon),
    Test::new("overlay/ready-and-exit-fd", ready_and_exit),
    Test::new("overlay/plain-user", plain_user),
    Test::new("overlay/killed", killed),
];

const LIMIT: Duration = Duration::from_secs(20);

/// Runs a shell script as root of a user namespace with its own mounts, in the
/// test's directory; `$OVL` is the program, `$OPTS` the options the user needs.
fn in_namespace(world: &World<'_>, script: &str) -> Cmd {
    let map: &[&str] = match world.ids {
        Ids::Subordinate => &["--map-root-user", "--map-auto"],
        Ids::Single => &["--map-root-user"],
    };
    let options = match world.ids {
        Ids::Subordinate => "unmapped_root",
        Ids::Single => "unmapped_root,xattr_permissions=2",
    };
    world
        .cmd("unshare")
        .args(map)
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["sh", "-euc", script])
        .env("OVL", world.lab.bin.join("overlayfs-fuse"))
        .env("OPTS", options)
        .limit(Duration::from_secs(100))
}

/// Everything of a tree that programs can see, but for times of directories.
const LIST: &str = "list() { (cd \"$1\" && find . -mindepth 1 \\( -type d -printf '%P %y %m %U %G\\n' \\) \
    -o \\( -printf '%P %y %m %U %G %s %n %l\\n' \\) | sort; find . -type f -print0 | sort -z | xargs -0 sha256sum) }\n";

/// A day's work: every tool named in the promise. (The rename of a lower
/// directory may fail with EXDEV, as on the kernel's overlay; `shutil.move` and
/// `mv` then copy.)
const WORK: &str = "work() { cd \"$1\"; \
    export GIT_AUTHOR_DATE='2026-01-01T00:00:00Z' GIT_COMMITTER_DATE='2026-01-01T00:00:00Z' HOME=/nowhere; \
    gcc -O1 -o hello base/src/hello.c; ./hello >base/out; \
    git init -q -b main repo; cd repo; git config user.email a@b; git config user.name n; git config gc.auto 0; \
    cp -r ../base/src .; git add .; git commit -qm one; git mv src/hello.c src/world.c; git commit -qm two; \
    git checkout -q HEAD~1 2>/dev/null; git checkout -q main; git fsck >/dev/null 2>&1; rm -f .git/index; git reset -q; cd ..; rm -r repo/.git; \
    tar cf all.tar --sort=name --mtime=@0 base; mkdir untarred; tar xf all.tar -C untarred; rm all.tar; \
    python3 - <<'P'\n\
import os, shutil, tempfile, mmap\n\
shutil.move('base/dir', 'base/dir2')\n\
os.link('base/f1', 'base/f1-link')\n\
open('base/f1', 'ab').write(b'appended')\n\
assert open('base/f1-link','rb').read().endswith(b'appended')\n\
f = open('base/f2', 'r+b'); m = mmap.mmap(f.fileno(), 0); m[0:4] = b'MMAP'; m.flush(); m.close(); f.close()\n\
fd = os.open('base/f3', os.O_RDWR); os.unlink('base/f3'); os.write(fd, b'still open'); assert os.pread(fd, 10, 0) == b'still open'; os.close(fd)\n\
os.truncate('base/f4', 10)\n\
os.chmod('base/f5', 0o4711)\n\
os.symlink('f5', 'base/sym'); os.replace('base/sym', 'base/old-sym')\n\
os.mkfifo('base/fifo2', 0o640)\n\
shutil.rmtree('base/tree'); os.mkdir('base/tree'); open('base/tree/new', 'w').write('x')\n\
for n in range(300): open(f'base/tree/n{n}', 'w').write(str(n))\n\
for n in range(0, 300, 2): os.unlink(f'base/tree/n{n}')\n\
assert len(os.listdir('base/tree')) == 151, len(os.listdir('base/tree'))\n\
with tempfile.TemporaryFile(dir='base') as t: t.write(b'x')\n\
os.setxattr('base/f6', 'user.mine', b'v'); assert os.listxattr('base/f6') == ['user.mine'], os.listxattr('base/f6')\n\
P\n\
    sed -i s/one/two/ base/f7; mv base/f8 base/tree/f8; cp -a base/f9 base/f9-copy; }\n";

const BASE: &str = "mkdir -p base/src base/dir/sub base/tree/a/b; \
    printf '#include <stdio.h>\\nint main(void){puts(\"hello\");return 0;}\\n' >base/src/hello.c; \
    for n in 1 2 3 4 5 6 7 8 9; do echo \"file $n one two three\" >base/f$n; done; \
    echo x >base/dir/sub/deep; echo y >base/tree/a/b/c; ln -s f1 base/old-sym; chmod 2775 base/dir; mkfifo base/fifo; \
    chmod 600 base/f9\n";

fn same_as_plain(world: &World<'_>) -> Result<()> {
    let script = format!(
        "umask 022\n{LIST}{WORK}\
         mkdir plain lower upper wrk mnt; (cd plain; {BASE}); cp -a plain/base lower/base\n\
         (work plain)\n\
         $OVL -o lowerdir=lower,upperdir=upper,workdir=wrk,$OPTS mnt\n\
         (work mnt)\n\
         list plain >plain.list; list mnt >mnt.list\n\
         diff plain.list mnt.list >difference || true\n\
         umount mnt\n\
         $OVL -o lowerdir=lower,upperdir=upper,workdir=wrk,$OPTS mnt\n\
         list mnt >mnt.list; diff plain.list mnt.list >again || true\n\
         umount mnt\n\
         cat difference; echo ---; cat again; ls lower/base | wc -l"
    );
    let output = in_namespace(world, &script).run()?.ok()?;
    // Nine files, src, dir, tree, old-sym, fifo: the lower is as it was.
    output.stdout_is("---\n14")?;
    Ok(())
}

fn remount(world: &World<'_>) -> Result<()> {
    let script = "mkdir lower upper wrk mnt; mkdir lower/d; echo a >lower/d/a; ln lower/d/a lower/d/b; echo g >lower/gone\n\
        m() { $OVL -o lowerdir=lower,upperdir=upper,workdir=wrk,$OPTS mnt; }\n\
        m; chmod 640 mnt/d/a; touch -d @1000000000.123456789 mnt/d/a; rm mnt/gone; mkdir mnt/gone; echo n >mnt/gone/n\n\
        rm -r mnt/d2 2>/dev/null || true; ls -i mnt/d/a | cut -d' ' -f1 >ino1; umount mnt\n\
        m; ls -i mnt/d/a | cut -d' ' -f1 >ino2; cmp ino1 ino2; stat -c '%a %.9Y' mnt/d/a; ls mnt/gone; umount mnt\n\
        ls wrk | wc -l";
    let output = in_namespace(world, script).run()?.ok()?;
    let text = output.stdout.clone();
    ensure!(text.starts_with("640 1000000000.123456789\nn\n"), "{}", output.describe());
    Ok(())
}

fn host_root(world: &World<'_>) -> Result<()> {
    let deb = deb(world)?;
    let script = format!(
        "mkdir u; mount -t tmpfs t u; mkdir u/upper u/wrk u/mnt\n\
         $OVL -o lowerdir=/,upperdir=u/upper,workdir=u/wrk,$OPTS u/mnt\n\
         mount -t tmpfs t u/mnt/tmp; cp {} u/mnt/tmp/x.deb\n\
         mount -t tmpfs t u/mnt/dev; : >u/mnt/dev/null; mount --bind /dev/null u/mnt/dev/null\n\
         mount --rbind /proc u/mnt/proc\n\
         chroot u/mnt dpkg -i /tmp/x.deb >log 2>&1 || {{ cat log >&2; exit 1; }}\n\
         chroot u/mnt coracle-probe; chroot u/mnt stat -c '%u %g %a' /usr/bin/coracle-probe-suid\n\
         chroot u/mnt dpkg -s coracle-probe | grep Status",
        deb.display()
    );
    in_namespace(world, &script)
        .run()?
        .ok()?
        .stdout_is("probe works\n0 0 4755\nStatus: install ok installed")?;
    ensure!(!Path::new("/usr/bin/coracle-probe").exists(), "the host was changed");
    Ok(())
}

fn read_only(world: &World<'_>) -> Result<()> {
    let script = "mkdir a b mnt; echo a >a/f; echo b >b/f; echo g >b/g\n\
        $OVL -o lowerdir=a:b,$OPTS mnt; cat mnt/f mnt/g; touch mnt/x 2>&1 | grep -o 'Read-only file system'; umount mnt";
    in_namespace(world, script).run()?.ok()?.stdout_is("a\ng\nRead-only file system")?;
    Ok(())
}

fn layers(world: &World<'_>) -> Result<()> {
    // Every whiteout and opaque form that others write, and many layers.
    let script = "mkdir mnt upper wrk; i=0; while [ $i -lt 60 ]; do mkdir l$i; echo $i >l$i/f$i; echo $i >l$i/top; i=$((i+1)); done\n\
        mkdir l59/d l59/o l59/x; echo 1 >l59/d/keep; echo 1 >l59/d/gone; echo 1 >l59/o/hidden; echo 1 >l59/x/hidden; echo 1 >l59/node\n\
        mkdir l5/d l5/o l5/x; : >l5/d/.wh.gone; : >l5/o/.wh..wh..opq; echo 2 >l5/o/seen; \
        python3 -c \"import os; os.setxattr('l5/x', 'user.overlay.opaque', b'y')\"; mknod l5/node c 0 0\n\
        L=l0; i=1; while [ $i -lt 60 ]; do L=$L:l$i; i=$((i+1)); done\n\
        $OVL -o lowerdir=$L,upperdir=upper,workdir=wrk,$OPTS mnt\n\
        ls mnt | wc -l; cat mnt/top mnt/f59; ls mnt/d mnt/o mnt/x; ls mnt/node 2>/dev/null || echo whited out; umount mnt";
    in_namespace(world, script)
        .run()?
        .ok()?
        .stdout_is("64\n0\n59\nmnt/d:\nkeep\n\nmnt/o:\nseen\n\nmnt/x:\nwhited out")?;
    Ok(())
}

const UPPER_EXCHANGE: &str = "mkdir lower upper wrk mnt; mkdir lower/d lower/e; echo 1 >lower/d/a; echo 2 >lower/d/b; echo 3 >lower/e/c; echo 4 >lower/g\n\
    change() { echo new >mnt/n; rm mnt/d/a; echo more >>mnt/d/b; rm -r mnt/e; mkdir mnt/e; echo 5 >mnt/e/f; chmod 600 mnt/g; }\n\
    show() { (cd mnt; find . -type f -printf '%P %m ' -exec cat '{}' ';' | sort); }\n\
    kernel() { mount -t overlay o -o userxattr,lowerdir=lower,upperdir=upper,workdir=wrk mnt; }\n\
    ours() { $OVL -o lowerdir=lower,upperdir=upper,workdir=wrk,$OPTS mnt; }\n";
const UPPER_WANT: &str = "d/b 644 2\ne/f 644 5\ng 600 4\nmore\nn 644 new";

fn kernel_reads_upper(world: &World<'_>) -> Result<()> {
    let script =
        format!("umask 022\n{UPPER_EXCHANGE}ours; change; umount mnt; kernel; show; umount mnt");
    in_namespace(world, &script).run()?.ok()?.stdout_is(UPPER_WANT)?;
    Ok(())
}

fn reads_kernel_upper(world: &World<'_>) -> Result<()> {
    let script =
        format!("umask 022\n{UPPER_EXCHANGE}kernel; change; umount mnt; ours; show; umount mnt");
    in_namespace(world, &script).run()?.ok()?.stdout_is(UPPER_WANT)?;
    Ok(())
}

fn daemon(world: &World<'_>) -> Result<()> {
    // The pipe ends with the command, not with the daemon, and it is live.
    let script = "mkdir a mnt; echo x >a/f; said=$($OVL -o lowerdir=a,$OPTS,no_such_option,, mnt 2>&1); cat mnt/f; echo \"$said\"; \
        stat -f -c %T mnt; umount mnt; for i in 1 2 3 4 5 6 7 8 9 10; do pgrep -c overlayfs-fuse >/dev/null || { echo ended; break; }; sleep 0.1; done";
    let output = in_namespace(world, script).run()?.ok()?;
    let text = output.stdout.clone();
    ensure!(
        text.starts_with("x\n") && text.trim().ends_with("fuseblk\nended")
            || text.trim().ends_with("fuse\nended"),
        "{}",
        output.describe()
    );
    output.stdout_has("unknown argument ignored: no_such_option")?;
    Ok(())
}

fn foreground(
    world: &World<'_>,
) -> Result<(tests::command::Running, std::os::fd::OwnedFd, std::os::fd::OwnedFd)> {
    use std::os::fd::AsRawFd;
    world.cmd("mkdir").args(["lower", "mnt"]).run()?.ok()?;
    world.write("lower/f", "x\n")?;
    let (ready, ready_theirs) = pipe()?;
    let (exit_theirs, exit) = pipe()?;
    let script = format!(
        "$OVL -f --ready-fd {} --exit-fd {} -o lowerdir=lower mnt; echo code $?; ls mnt",
        ready_theirs.as_raw_fd(),
        exit_theirs.as_raw_fd()
    );
    let running = world
        .cmd("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", &script])
        .env("OVL", world.lab.bin.join("overlayfs-fuse"))
        .inherit(ready_theirs)
        .inherit(exit_theirs)
        .spawn()?;
    ensure!(read_ready(&ready, LIMIT)?, "closed the ready-fd without a byte");
    Ok((running, ready, exit))
}

fn ready_and_exit(world: &World<'_>) -> Result<()> {
    let (running, _ready, exit) = foreground(world)?;
    drop(exit);
    // Unmounted: the directory is empty again.
    running.wait(LIMIT)?.ok()?.stdout_is("code 0")?;
    Ok(())
}

fn plain_user(world: &World<'_>) -> Result<()> {
    let dir = world.dir();
    world.cmd("mkdir").args(["lower", "upper", "wrk", "mnt"]).run()?.ok()?;
    world.write("lower/f", "x\n")?;
    // Nobody may write in there, but what is there, and its owner may change that.
    let barred = "mkdir -p lower/d/e; echo x >lower/d/e/f; chmod 555 lower/d/e lower/d";
    world.cmd("sh").args(["-euc", barred]).run()?.ok()?;
    world
        .ours("overlayfs-fuse")
        .args(["-o", "lowerdir=lower,upperdir=upper,workdir=wrk", "mnt"])
        .run()?
        .ok()?;
    let script = "cat mnt/f; echo y >mnt/g; echo z >>mnt/f; rm mnt/g; cat mnt/f
        echo z >>mnt/d/e/f; cat mnt/d/e/f; chmod 755 mnt/d; : >mnt/d/g; chmod 555 mnt/d; ls mnt/d
        touch mnt/d/h 2>/dev/null && exit 1; stat -c %a mnt/d mnt/d/e upper/d upper/d/e; ls -A wrk/work";
    let output: Result<Output> = world.cmd("sh").args(["-euc", script]).run();
    world.cmd("fusermount3").args(["-u", "mnt"]).run()?.ok()?;
    output?.ok()?.stdout_is("x\nx\nz\nx\nz\ne\ng\n555\n555\n555\n555")?;
    ensure!(fs::read_to_string(dir.join("lower/f"))? == "x\n");
    Ok(())
}

fn killed(world: &World<'_>) -> Result<()> {
    // A crash in the middle of copy-ups leaves each file old or new.
    let script = "mkdir lower upper wrk mnt; for i in $(seq 200); do head -c 100000 /dev/zero | tr '\\0' a >lower/f$i; done\n\
        $OVL -f -o lowerdir=lower,upperdir=upper,workdir=wrk,$OPTS mnt & pid=$!\n\
        while ! mountpoint -q mnt; do kill -0 $pid; done\n\
        (for i in $(seq 200); do printf b | dd of=mnt/f$i bs=1 conv=notrunc 2>/dev/null || exit 0; [ $i = 100 ] && kill -9 $pid; done) || true\n\
        wait $pid || true; umount -l mnt\n\
        $OVL -o lowerdir=lower,upperdir=upper,workdir=wrk,$OPTS mnt\n\
        cat mnt/* | wc -c; for i in $(seq 200); do tail -c +2 mnt/f$i | tr -d a; head -c 1 mnt/f$i; done | sort | uniq -c | wc -l; umount mnt";
    let output = in_namespace(world, script).run()?.ok()?;
    output.stdout.lines().next().context("no output")?;
    ensure!(output.stdout.starts_with("20000000\n"), "files lost bytes\n{}", output.describe());
    Ok(())
}
