//! Owners where only one id exists: kept for whoever mounts the upper with more.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::command::{Cmd, Output};
use tests::harness::{Test, World};
use tests::lab::Ids;

use crate::fixtures::deb_with;

pub(crate) const TESTS: &[Test] = &[
    Test::new("owners/kept", kept).single_id().lab(),
    Test::new("owners/of-a-package", of_a_package).single_id().lab().seconds(120),
    Test::new("owners/as-the-caller", as_the_caller).single_id(),
    Test::new("owners/of-a-volume", of_a_volume).single_id(),
    Test::new("owners/by-exec", by_exec).single_id().lab(),
];

/// Runs a script in a container whose changes are kept in `upper`.
fn run(world: &World<'_>, upper: &Path, script: &str) -> Result<Output> {
    let upper = upper.to_str().context("the lab's paths are ASCII")?;
    let words = ["run", "--rm", "--network", "none", "--upper", upper, "--", "sh", "-ec", script];
    world.coracle(&words).limit(Duration::from_secs(100)).run()
}

/// `PATH → uid gid mode` of what is below `dir` in an upper, as a mount of it by
/// the user with subordinate ids shows it.
fn shown(world: &World<'_>, upper: &Path, dir: &str) -> Result<BTreeMap<String, String>> {
    let user = world.lab.user(Ids::Subordinate).context("the lab has this user")?;
    let copy = world.lab.scratch("kept-upper");
    // As a backup would be restored for somebody else.
    Cmd::new("cp").args(["-a", "--preserve=all"]).arg(upper).arg(&copy).run()?.ok()?;
    let owner = format!("{}:{}", user.uid, user.gid);
    Cmd::new("chown").args(["-Rh", &owner]).arg(&copy).run()?.ok()?;
    let overlay = world.lab.bin.join("overlayfs-fuse");
    let script = format!(
        "set -e; cd {copy}; mkdir lower merged; \
         {overlay} -o lowerdir=lower,upperdir=upper,workdir=work,xattr_permissions=2 merged; \
         find merged{dir} -mindepth 1 -printf '%P %U %G %m\\n'; umount merged",
        copy = copy.display(),
        overlay = overlay.display()
    );
    let listed = Cmd::new("unshare")
        .args(["--user", "--map-root-user", "--map-auto", "--mount", "sh", "-c", &script])
        .user(user)
        .run();
    fs::remove_dir_all(&copy)?;
    let listed = listed?.ok()?;
    let line = |line: &str| {
        let (path, rest) = line.split_once(' ')?;
        Some((path.to_owned(), rest.to_owned()))
    };
    Ok(listed.stdout.lines().filter_map(line).collect())
}

fn expect(shown: &BTreeMap<String, String>, wanted: &[(&str, &str)]) -> Result<()> {
    for (path, want) in wanted {
        let is = shown.get(*path).map(String::as_str);
        ensure!(is == Some(want), "{path}: expected {want}, is {is:?}\n{shown:#?}");
    }
    Ok(())
}

fn kept(world: &World<'_>) -> Result<()> {
    let upper = world.dir().join("kept");
    // tar as root gives owners; so do install and chown in all their forms. What
    // the container sees is root throughout.
    let script = "mkdir /srv/t; cd /srv/t; echo 1 >a; echo 2 >b; chmod 4750 b; \
        tar cf ../t.tar --owner=33 --group=34 a b; rm a b; tar xpf ../t.tar; \
        install -o daemon -g sys -m 6755 a c; \
        mkdir d; chown 7:8 d; touch d/f; chown -R 9 d; chown :10 d; \
        touch e; chown 5:6 e; chown 0 e; \
        touch m; chmod 000 m; chown 5 m; [ -r m ]; \
        ln -s a l; chown 11 l; chown -h 12 l; \
        touch g; chmod 6755 g; chown 13 g; \
        python3 -c \"import os; f = os.open('.', os.O_RDONLY); os.chown('h', 14, 15, dir_fd=f); \
           os.fchown(os.open('i', os.O_RDONLY), -1, 16)\" 2>/dev/null && exit 1; touch h i; \
        python3 -c \"import os; f = os.open('.', os.O_RDONLY); os.chown('h', 14, 15, dir_fd=f); \
           os.fchown(os.open('i', os.O_RDONLY), -1, 16)\"; \
        find . -exec stat -c '%u %g' {} + | sort -u; stat -c '%a %n' b c g m";
    run(world, &upper, script)?.ok()?.stdout_is("0 0\n4750 b\n6755 c\n755 g\n0 m")?;
    expect(
        &shown(world, &upper, "/srv/t")?,
        &[
            ("a", "11 34 644"),
            ("b", "33 34 4750"),
            ("c", "1 3 6755"),
            ("d", "9 10 755"),
            ("d/f", "9 0 644"),
            ("e", "0 6 644"),
            ("g", "13 0 755"),
            ("h", "14 15 644"),
            ("i", "0 16 644"),
            ("m", "5 0 0"),
        ],
    )
}

fn of_a_package(world: &World<'_>) -> Result<()> {
    let deb = deb_with(world, &[("usr/share/coracle-probe/theirs", 1, 3)])?;
    let upper = world.dir().join("kept");
    let upper_text = upper.to_str().context("the lab's paths are ASCII")?.to_owned();
    let volume = format!("{}:/mnt/p.deb:ro", deb.display());
    let script = "apt-get install -y /mnt/p.deb >/tmp/log 2>&1 || { cat /tmp/log >&2; exit 1; }; \
                  dpkg -V coracle-probe";
    let words = ["run", "--rm", "--upper", &upper_text, "-v", &volume, "--", "sh", "-ec", script];
    world.coracle(&words).limit(Duration::from_secs(100)).run()?.ok()?;
    expect(&shown(world, &upper, "/usr/share/coracle-probe")?, &[("theirs", "1 3 644")])?;
    expect(&shown(world, &upper, "/usr/bin")?, &[("coracle-probe-suid", "0 0 4755")])
}

/// What is done for a caller is what it may do itself, where it is.
fn as_the_caller(world: &World<'_>) -> Result<()> {
    let upper = world.dir().join("kept");
    // Each line that is printed is a fault.
    let script = "cd /root; touch f; \
        setpriv --bounding-set=-chown --inh-caps=-chown chown 33 f 2>/dev/null && echo no right; \
        mkdir -m 000 closed; touch closed/f; \
        setpriv --bounding-set=-dac_override,-dac_read_search \
           --inh-caps=-dac_override,-dac_read_search chown 33 closed/f 2>/dev/null && echo no way; \
        chown 33 /proc/1/root/root/f 2>/dev/null && echo through init; \
        chown 33 /proc/1/cwd 2>/dev/null && echo through init; \
        ln -s /proc/1/root/root/f m; chown 33 m 2>/dev/null && echo through a link; \
        chown 33 /root/missing 2>/dev/null && echo missing; \
        chown 33 f/ 2>/dev/null && echo not a directory; \
        exit 0";
    run(world, &upper, script)?.ok()?.stdout_is("")?;
    let script = format!("python3 - <<'EOF'\n{ERRORS}EOF");
    run(world, &upper, &script)?.ok()?.stdout_is("")?;
    let owner = world.cmd("getfattr").args(["--only-values", "-n", ATTRIBUTE]);
    let owner = owner.arg(upper.join("upper/root/f")).run()?.ok()?;
    ensure!(owner.stdout.starts_with("0:0:"), "changed without a right\n{}", owner.describe());
    // A root of its own inside: the same path means another file.
    let script = "mkdir -p /root/jail/root /root/jail/bin; echo in >/root/jail/root/g; \
        echo out >/root/g; cp /bin/busybox /root/jail/bin/; \
        chroot /root/jail /bin/busybox chown 44 /root/g; \
        chroot /root/jail /bin/busybox chown 45 /../../root/jail/root/g 2>/dev/null || echo none";
    run(world, &upper, script)?.ok()?.stdout_is("none")?;
    for (path, want) in [("jail/root/g", "44:0:"), ("g", "0:0:")] {
        let file = upper.join("upper/root").join(path);
        let owner = world.cmd("getfattr").args(["--only-values", "-n", ATTRIBUTE]).arg(file);
        let owner = owner.run()?.ok()?;
        ensure!(owner.stdout.starts_with(want), "{path}\n{}", owner.describe());
    }
    // A root that cannot be written.
    let words = ["run", "--rm", "--read-only", "--network", "none", "--", "sh", "-c"];
    let output = world.coracle(&words).arg("chown 33 /etc/passwd").run()?;
    ensure!(output.code != 0, "{}", output.describe());
    ensure!(output.stderr.contains("Read-only file system"), "{}", output.describe());
    Ok(())
}

/// Prints what does not fail as the kernel would.
const ERRORS: &str = r#"
import ctypes, errno, os
def fails(want, *a, **k):
    try:
        os.chown(*a, **k)
        print(a, "did not fail")
    except OSError as e:
        if e.errno != want:
            print(a, e)
fails(errno.EBADF, 99, 33, 33)
fails(errno.ENOTDIR, "x", 33, 33, dir_fd=os.open("/root/f", os.O_RDONLY))
fails(errno.ENAMETOOLONG, "x/" * 3000, 33, 33)
fails(errno.ENOENT, "", 33, 33)
c = ctypes.CDLL(None, use_errno=True)
def call(want, *a):
    if c.fchownat(*a) != -1 or ctypes.get_errno() != want:
        print(a, "is not", want, "but", ctypes.get_errno())
call(errno.EFAULT, -100, ctypes.c_void_p(8), 33, 33, 0)
call(errno.EINVAL, -100, b"/root/f", 33, 33, 0x800)
"#;

const ATTRIBUTE: &str = "user.containers.override_stat";

/// The caller's own files get no attribute of ours.
fn of_a_volume(world: &World<'_>) -> Result<()> {
    world.write("file", "x")?;
    let volume = format!("{}:/mnt", world.dir().display());
    let words =
        ["run", "--rm", "--network", "none", "-v", &volume, "--", "chown", "33", "/mnt/file"];
    world.coracle(&words).run()?.ok()?;
    let attributes = world.cmd("getfattr").args(["-d", "-m", "-"]).arg(world.dir().join("file"));
    attributes.run()?.ok()?.stdout_is("")?;
    Ok(())
}

fn by_exec(world: &World<'_>) -> Result<()> {
    let upper = world.dir().join("kept");
    let upper_text = upper.to_str().context("the lab's paths are ASCII")?.to_owned();
    let words = ["run", "-d", "--name", "o", "--network", "none", "--upper", &upper_text, "--"];
    world.coracle(&words).args(["sleep", "1000"]).run()?.ok()?;
    let script = "mkdir /srv/t; cd /srv/t; touch a; chown 33:34 a; stat -c '%u %g' a";
    let output = world.coracle(&["exec", "o", "sh", "-ec", script]).run();
    world.coracle(&["rm", "-f", "o"]).run()?.ok()?;
    output?.ok()?.stdout_is("0 0")?;
    expect(&shown(world, &upper, "/srv/t")?, &[("a", "33 34 644")])
}
