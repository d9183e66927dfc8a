//! Importing from files.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::harness::World;
use tests::lab::Ids;

use super::{coracle, count, images, layout, needs, run, shell, text};
use crate::fixtures::busybox_rootfs;

pub(super) fn root_file_systems(world: &World<'_>) -> Result<()> {
    needs(&["zstd", "xz"])?;
    busybox_rootfs(world)?;
    shell(
        world,
        "for c in z J; do tar -C rootfs -c${c}f root.$c .; done; tar -C rootfs -cf root.tar .; \
         zstd -q root.tar -o root.zst",
    )?;
    for (name, source) in [
        ("dir", "rootfs"),
        ("tar", "root.tar"),
        ("gz", "root.z"),
        ("xz", "root.J"),
        ("zst", "root.zst"),
    ] {
        let source = world.dir().join(source);
        let id = coracle(world, &["image", "import", text(&source)?, name]).run()?.ok()?.stdout;
        ensure!(id.starts_with("sha256:"), "{id}");
        run(world, &[name, "/bin/busybox", "cat", "/etc/group"])?
            .ok()?
            .stdout_is("root:x:0:\ng:x:8:")?;
        // What changes is the container's.
        run(world, &[name, "sh", "-c", "echo x >/etc/group"])?.ok()?;
    }
    let piped = coracle(world, &["image", "import", "-", "piped"])
        .stdin(fs::read(world.dir().join("root.z"))?)
        .run()?;
    piped.ok()?;
    run(world, &["piped", "true"])?.ok()?;
    // The same archive, however compressed, is unpacked once; a directory has other times.
    ensure!(count(world, "layers")? == 2, "{} layers", count(world, "layers")?);
    coracle(world, &["image", "verify"]).run()?.ok()?;
    let listed = coracle(world, &["image", "ls"]).run()?.ok()?;
    listed.stdout_has("localhost/zst:latest")?;
    let mode = fs::metadata(images(world))?.permissions().mode();
    ensure!(mode & 0o077 == 0, "others may enter: {mode:o}");
    for name in ["dir", "tar", "gz", "xz", "zst", "piped"] {
        coracle(world, &["image", "rm", name]).run()?.ok()?;
    }
    ensure!(count(world, "layers")? == 0 && count(world, "blobs/sha256")? == 0, "not all is gone");
    Ok(())
}

pub(super) fn layouts_and_archives(world: &World<'_>) -> Result<()> {
    layout(world)?;
    shell(
        world,
        "skopeo copy -q oci:layout:box docker-archive:docker.tar:example.org/box:v1; \
         skopeo copy -q oci:layout:box oci-archive:oci.tar:example.org/box:v2; \
         gzip -k oci.tar; mkdir both; cp -r layout/. both; umoci tag --image both:box other",
    )?;
    let import = |source: &str, more: &[&str]| -> Result<String> {
        let source = match source.split_once(':') {
            Some((form, rest)) => format!("{form}:{}", world.dir().join(rest).display()),
            None => world.dir().join(source).display().to_string(),
        };
        let words = [&["image", "import", &source], more].concat();
        Ok(coracle(world, &words).run()?.ok()?.stdout.trim().to_owned())
    };
    let ids = [
        import("layout", &[])?,
        import("oci.tar", &[])?,
        import("oci.tar.gz", &["gz:1"])?,
        import("docker.tar", &[])?,
        import("oci:both:other", &["other"])?,
        import("oci-archive:oci.tar", &["form"])?,
        import("docker-archive:docker.tar:example.org/box:v1", &["form"])?,
    ];
    ensure!(ids.iter().all(|id| *id == ids[0]), "one image has several ids: {ids:#?}");
    for name in ["localhost/layout:box", "example.org/box:v1", "box:v2", "gz:1", "other", "form"] {
        run(world, &[name, "echo", "it runs"])?.ok()?.stdout_is("it runs")?;
    }
    // By the beginning of its id, as podman shows it.
    let short = ids[0].strip_prefix("sha256:").context("no digest")?;
    run(world, &[&short[..12], "true"])?.ok()?;
    ensure!(count(world, "layers")? == 1, "the layer was unpacked again");
    let several = coracle(world, &["image", "import", text(&world.dir().join("both"))?]).run()?;
    several.fails_with(1, "several images")?;
    coracle(world, &["image", "verify"]).run()?.ok()?;
    Ok(())
}

pub(super) fn configuration(world: &World<'_>) -> Result<()> {
    layout(world)?;
    shell(
        world,
        "umoci config --image layout:box --config.entrypoint /bin/busybox \
         --config.entrypoint echo --config.cmd one --config.cmd two --config.env COLOUR=blue \
         --config.env PATH=/bin --config.workingdir /made/for/it --config.exposedports 80 \
         --config.volume /data --config.stopsignal SIGUSR1",
    )?;
    let source = world.dir().join("layout");
    coracle(world, &["image", "import", text(&source)?, "box"]).run()?.ok()?;
    run(world, &["box"])?.ok()?.stdout_is("one two")?;
    run(world, &["box", "three"])?.ok()?.stdout_is("three")?;
    run(world, &["box", "--", "three"])?.ok()?.stdout_is("three")?;
    let sh = |script| run(world, &["--entrypoint", "sh", "box", "-c", script]);
    sh("echo $COLOUR $PATH; busybox pwd; [ -d /data ]")?
        .ok()?
        .stdout_is("blue /bin\n/made/for/it")?;
    run(world, &["--entrypoint", "[\"echo\",\"a\"]", "box", "b"])?.ok()?.stdout_is("a b")?;
    let given = ["-e", "COLOUR=red", "-w", "/tmp", "--entrypoint", "sh", "box", "-c"];
    let output = run(world, &[&given[..], &["echo $COLOUR; busybox pwd"]].concat())?;
    output.ok()?.stdout_is("red\n/tmp")?;
    // Its volumes can be written when the root cannot.
    let script = "echo x >/data/x && ! echo x >/bin/x 2>/dev/null && echo yes";
    run(world, &["--read-only", "--entrypoint", "sh", "box", "-c", script])?
        .ok()?
        .stdout_is("yes")?;
    let plan = coracle(world, &["run", "--dry-run", "-P", "box"]).run()?.ok()?;
    ensure!(plan.stdout.contains(":80/tcp"), "port 80 is not published\n{}", plan.describe());
    let inspected = coracle(world, &["image", "inspect", "box"]).run()?.ok()?;
    inspected.stdout_has("\"StopSignal\": \"SIGUSR1\"")?;
    // Asked to end as the image says: TERM would be fatal, and so would KILL.
    let script = "trap 'echo as asked; exit 0' USR1; echo up; while :; do sleep 0.05; done";
    let given = ["run", "-d", "--name", "stopped", "--network", "none", "--entrypoint", "sh"];
    coracle(world, &[&given[..], &["box", "-c", script]].concat()).run()?.ok()?;
    let log = |says: &str| -> Result<()> {
        let follow = coracle(world, &["logs", "-f", "stopped"]).spawn()?;
        follow.stdout_until(says, Duration::from_secs(20)).map(drop)
    };
    log("up\n")?;
    coracle(world, &["stop", "stopped"]).run()?.ok()?;
    log("as asked\n")?;
    coracle(world, &["rm", "stopped"]).run()?.ok()?;
    // A user by name, from the image's own file.
    shell(world, "umoci config --image layout:box --config.user u")?;
    coracle(world, &["image", "import", text(&source)?, "user"]).run()?.ok()?;
    let who = run(world, &["--entrypoint", "id", "user"])?;
    match world.ids {
        Ids::Subordinate => who.ok()?.stdout_has("uid=7(u) gid=8(g)")?,
        Ids::Single => who.fails_with(125, "only root exists")?,
    };
    run(world, &["-u", "0", "--entrypoint", "id", "user", "-u"])?.ok()?.stdout_is("0")?;
    Ok(())
}

pub(super) fn whiteouts(world: &World<'_>) -> Result<()> {
    layout(world)?;
    shell(
        world,
        "mkdir -p add/d; echo low >add/d/low; echo gone >add/gone; mkdir over; echo up >over/up; \
         umoci insert --rootless --image layout:box add /x; \
         umoci insert --rootless --image layout:box --whiteout /x/gone; \
         umoci insert --rootless --image layout:box --opaque over /x/d",
    )?;
    coracle(world, &["image", "import", text(&world.dir().join("layout"))?, "box"]).run()?.ok()?;
    run(world, &["box", "ls", "-A", "/x", "/x/d"])?.ok()?.stdout_is("/x:\nd\n\n/x/d:\nup")?;
    coracle(world, &["image", "verify", "box"]).run()?.ok()?;
    let script = "rm /x/d/up; echo new >/x/new";
    let named = ["run", "--name", "w", "--network", "none", "box", "sh", "-c", script];
    coracle(world, &named).run()?.ok()?;
    let diff = coracle(world, &["diff", "w"]).run();
    coracle(world, &["rm", "w"]).run()?.ok()?;
    diff?.ok()?.stdout_is("C /x\nC /x/d\nD /x/d/up\nA /x/new")?;
    Ok(())
}

/// An archive in which files have owners, set-id bits and attributes: as root would
/// make it.
fn owned_tar(world: &World<'_>) -> Result<()> {
    busybox_rootfs(world)?;
    shell(
        world,
        "mkdir rootfs/home; echo x >rootfs/home/f; cp rootfs/bin/busybox rootfs/bin/su; \
         chmod 4755 rootfs/bin/su; ln rootfs/home/f rootfs/home/g; \
         touch -d '2001-02-03 04:05:06.789 UTC' rootfs/home/f; \
         setfattr -n user.mine -v value rootfs/home/f; \
         tar -C rootfs --format=pax --xattrs --numeric-owner --owner=7 --group=8 -cf home.tar ./home; \
         tar -C rootfs --numeric-owner --owner=0 --group=0 --exclude ./home -cf root.tar .; \
         tar -Af root.tar home.tar",
    )?;
    let source = world.dir().join("root.tar");
    coracle(world, &["image", "import", text(&source)?, "owned"]).run()?.ok()?;
    Ok(())
}

pub(super) fn owners(world: &World<'_>) -> Result<()> {
    owned_tar(world)?;
    let script = "busybox stat -c '%n %u:%g %a %h' /home /home/f /bin/su /bin";
    let want = "/home 7:8 755 2\n/home/f 7:8 644 2\n/bin/su 0:0 4755 1\n/bin 0:0 755 2";
    run(world, &["owned", "sh", "-c", script])?.ok()?.stdout_is(want)?;
    let layer = fs::read_dir(images(world).join("layers"))?.next().context("no layer")??.path();
    let meta = fs::metadata(layer.join("fs/home/f"))?;
    ensure!(meta.uid() != world.user.uid && meta.uid() != 7, "owner {} on the host", meta.uid());
    // Time and attribute are the file's, too.
    ensure!(meta.mtime() == 981_173_106 && meta.mtime_nsec() == 789_000_000, "{}", meta.mtime());
    Ok(())
}

pub(super) fn owners_kept(world: &World<'_>) -> Result<()> {
    owned_tar(world)?;
    let script = "busybox stat -c '%n %u:%g %a %h' /home/f /bin/su";
    run(world, &["owned", "sh", "-c", script])?
        .ok()?
        .stdout_is("/home/f 0:0 644 2\n/bin/su 0:0 4755 1")?;
    let layer = fs::read_dir(images(world).join("layers"))?.next().context("no layer")??.path();
    for (file, want) in [("home/f", "7:8:0644"), ("bin/su", "0:0:04755")] {
        let file = layer.join("fs").join(file);
        let kept = world
            .cmd("getfattr")
            .args(["--only-values", "-n", "user.containers.override_stat"])
            .arg(&file)
            .run()?
            .ok()?;
        ensure!(kept.stdout == want, "{}\n{}", file.display(), kept.describe());
        let mode = fs::metadata(&file)?.permissions().mode();
        ensure!(mode & 0o6000 == 0, "{} has set-id bits on the host: {mode:o}", file.display());
    }
    Ok(())
}

pub(super) fn buildah(world: &World<'_>) -> Result<()> {
    needs(&["buildah", "newuidmap"])?;
    busybox_rootfs(world)?;
    shell(
        world,
        "b='buildah --root '$PWD'/storage --runroot '$PWD'/runroot --storage-driver vfs'; \
         export BUILDAH_ISOLATION=chroot; c=$($b from scratch); $b copy -q --chown 7:8 $c rootfs /; \
         $b config --cmd '[\"/bin/id\",\"-u\"]' --user u $c; \
         $b commit -q --format oci $c oci:built:b >/dev/null; \
         $b commit -q --format docker $c docker-archive:built.tar:built:d >/dev/null; \
         $b rm -a >/dev/null; $b unshare rm -rf $PWD/storage $PWD/runroot",
    )?;
    for (source, name) in [("built", "oci"), ("built.tar", "docker")] {
        let source = world.dir().join(source);
        coracle(world, &["image", "import", text(&source)?, name]).run()?.ok()?;
        run(world, &[name])?.ok()?.stdout_is("7")?;
        run(world, &[name, "busybox", "stat", "-c", "%u:%g", "/etc/passwd"])?
            .ok()?
            .stdout_is("7:8")?;
    }
    Ok(())
}

/// Makes layouts by hand: arguments are the directory, the number of layers above
/// the root's, and what is to be odd.
const MAKE: &str = r#"
import gzip, hashlib, io, json, os, sys, tarfile
out, count, odd = sys.argv[1], int(sys.argv[2]), sys.argv[3]
os.makedirs(out + '/blobs/sha256')
def blob(data, kind, **more):
    digest = hashlib.sha256(data).hexdigest()
    open(f'{out}/blobs/sha256/{digest}', 'wb').write(data)
    return dict(mediaType='application/vnd.oci.image.' + kind, digest='sha256:' + digest, size=len(data), **more)
layers, ids = [], []
def layer(tar):
    ids.append('sha256:' + hashlib.sha256(tar).hexdigest())
    layers.append(blob(gzip.compress(tar, 1, mtime=0), 'layer.v1.tar+gzip'))
buffer = io.BytesIO()
with tarfile.open(fileobj=buffer, mode='w') as tar:
    tar.add('rootfs', '.')
layer(buffer.getvalue())
for n in range(count):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as tar:
        info = tarfile.TarInfo(f'layers/{n}')
        tar.addfile(info)
        info = tarfile.TarInfo('top')
        info.size = len(str(n))
        tar.addfile(info, io.BytesIO(str(n).encode()))
    layer(buffer.getvalue())
if odd == 'diff-id':
    ids[-1] = 'sha256:' + '0' * 64
def image(arch, cmd):
    config = blob(json.dumps(dict(architecture=arch, os='linux', config=dict(Cmd=cmd),
        rootfs=dict(type='layers', diff_ids=ids))).encode(), 'config.v1+json')
    return blob(json.dumps(dict(schemaVersion=2, config=config, layers=layers)).encode(),
        'manifest.v1+json', platform=dict(architecture=arch, os='linux'))
manifests = [image('amd64', ['cat', '/top'])]
if odd == 'machines':
    manifests = [image('riscv64', ['false']), image('arm64', ['echo', 'arm64']), image('amd64', ['echo', 'amd64'])]
index = dict(schemaVersion=2, manifests=manifests)
if odd == 'nested':
    index['manifests'] = [blob(json.dumps(dict(schemaVersion=2, manifests=[
        image('riscv64', ['false']), image('arm64', ['echo', 'arm64']), image('amd64', ['echo', 'amd64'])])).encode(), 'index.v1+json')]
if odd == 'blob':
    name = f'{out}/blobs/sha256/' + layers[-1]['digest'][7:]
    data = bytearray(open(name, 'rb').read()); data[-9] ^= 1; open(name, 'wb').write(data)
if odd == 'short':
    os.truncate(f'{out}/blobs/sha256/' + layers[-1]['digest'][7:], 20)
if odd == 'missing':
    os.remove(f'{out}/blobs/sha256/' + layers[-1]['digest'][7:])
if odd == 'config':
    name = f'{out}/blobs/sha256/' + json.load(open(f'{out}/blobs/sha256/' + manifests[0]['digest'][7:]))['config']['digest'][7:]
    open(name, 'r+b').write(b' ')
if odd == 'manifest':
    open(f'{out}/blobs/sha256/' + manifests[0]['digest'][7:], 'r+b').write(b' ')
json.dump(index, open(out + '/index.json', 'w'))
json.dump(dict(imageLayoutVersion='1.0.0'), open(out + '/oci-layout', 'w'))
"#;

pub(super) fn make(world: &World<'_>, name: &str, layers: u32, odd: &str) -> Result<String> {
    needs(&["python3"])?;
    if !world.dir().join("rootfs").exists() {
        busybox_rootfs(world)?;
    }
    let python = world.cmd("python3").args(["-c", MAKE, name, &layers.to_string(), odd]);
    python.dir(world.dir()).run()?.ok()?;
    Ok(text(&world.dir().join(name))?.to_owned())
}

pub(super) fn hundreds_of_layers(world: &World<'_>) -> Result<()> {
    let source = make(world, "many", 300, "")?;
    coracle(world, &["image", "import", &source, "many"]).run()?.ok()?;
    run(world, &["many"])?.ok()?.stdout_is("299")?;
    run(world, &["many", "sh", "-c", "ls /layers | busybox wc -l"])?.ok()?.stdout_is("300")?;
    let source = make(world, "more", 500, "")?;
    coracle(world, &["image", "import", &source]).run()?.fails_with(1, "501 layers")?;
    Ok(())
}

/// As many layers as there may be, in a directory with as long a name as there may be.
pub(super) fn long_home(world: &World<'_>) -> Result<()> {
    let source = make(world, "most", 499, "")?;
    let deep: Vec<String> = (0..8).map(|n| n.to_string().repeat(200)).collect();
    let home = world.dir().join(deep.join("/"));
    world.cmd("mkdir").args(["-p", text(&home)?]).run()?.ok()?;
    let run = |words: &[&str]| coracle(world, words).env("XDG_DATA_HOME", &home).run();
    run(&["image", "import", "-q", &source, "most"])?.ok()?;
    run(&["run", "--rm", "--network", "none", "most"])?.ok()?.stdout_is("498")?;
    Ok(())
}

pub(super) fn machines(world: &World<'_>) -> Result<()> {
    let want = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    };
    for odd in ["machines", "nested"] {
        let source = make(world, odd, 0, odd)?;
        coracle(world, &["image", "import", &source, odd]).run()?.ok()?;
        run(world, &[odd])?.ok()?.stdout_is(want)?;
    }
    Ok(())
}

pub(super) fn wrong_digests(world: &World<'_>) -> Result<()> {
    for (odd, word) in [
        ("blob", "not what its digest says"),
        ("short", "bytes"),
        ("missing", "cannot open"),
        ("diff-id", "was to be sha256:0000"),
        ("config", "not what its digest says"),
        ("manifest", "not what its digest says"),
    ] {
        let source = make(world, odd, 3, odd)?;
        let refused = coracle(world, &["image", "import", &source, "bad"]).run()?;
        refused.fails_with(1, word)?;
        coracle(world, &["image", "ls", "-q"]).run()?.ok()?.stdout_is("")?;
        run(world, &["bad", "true"])?.fails_with(125, "no image is named 'bad'")?;
        ensure!(count(world, "tmp")? == 0, "{odd}: something is left");
        // What was right stays for the next import, and goes with gc.
        coracle(world, &["image", "gc"]).run()?.ok()?;
        ensure!(count(world, "layers")? == 0 && count(world, "blobs/sha256")? == 0, "{odd}");
    }
    Ok(())
}

/// Killed at moments spread over the import, each time leaving nothing in the way.
pub(super) fn killed(world: &World<'_>) -> Result<()> {
    let source = make(world, "image", 200, "")?;
    let import = ["image", "import", &source, "box"];
    let mut cut_short = 0;
    // After so many layers have their place: the last finds it done before.
    for layers in [0, 1, 5, 50, 150] {
        let running = coracle(world, &import).spawn()?;
        while !running.ends_within(Duration::ZERO)? && count(world, "layers").unwrap_or(0) < layers
        {
            std::thread::yield_now();
        }
        running.signal(9)?;
        let output = running.wait(Duration::from_secs(20))?;
        // The signal may come when all is done but the end of the process.
        let done = !coracle(world, &["image", "ls", "-q"]).run()?.ok()?.stdout.is_empty();
        ensure!(done || output.code != 0, "said to be imported, and is not there");
        cut_short += u32::from(!done);
        if done {
            coracle(world, &["image", "verify", "box"]).run()?.ok()?;
            coracle(world, &["image", "rm", "box"]).run()?.ok()?;
        }
        coracle(world, &["image", "gc"]).run()?.ok()?;
        ensure!(count(world, "layers")? == 0, "layers of nothing");
    }
    ensure!(cut_short >= 3, "only {cut_short} imports were cut short");
    // Cut short once more, and gone on with.
    let running = coracle(world, &import).spawn()?;
    while !running.ends_within(Duration::ZERO)? && count(world, "layers").unwrap_or(0) < 20 {
        std::thread::yield_now();
    }
    running.signal(9)?;
    running.wait(Duration::from_secs(20))?;
    coracle(world, &import).run()?.ok()?;
    ensure!(count(world, "tmp")? == 0, "something is left");
    run(world, &["box"])?.ok()?.stdout_is("199")?;
    coracle(world, &["image", "verify", "box"]).run()?.ok()?;
    Ok(())
}

pub(super) fn two_at_once(world: &World<'_>) -> Result<()> {
    let source = make(world, "image", 60, "")?;
    let mut running = Vec::new();
    for name in ["a", "b", "c"] {
        running.push(coracle(world, &["image", "import", &source, name]).spawn()?);
    }
    for one in running {
        one.wait(Duration::from_secs(50))?.ok()?;
    }
    ensure!(
        count(world, "layers")? == 61 && count(world, "tmp")? == 0,
        "{}",
        count(world, "layers")?
    );
    for name in ["a", "b", "c"] {
        run(world, &[name])?.ok()?.stdout_is("59")?;
    }
    coracle(world, &["image", "verify", "a"]).run()?.ok()?;
    Ok(())
}

pub(super) fn rot_is_found(world: &World<'_>) -> Result<()> {
    let source = make(world, "image", 1, "")?;
    let import = ["image", "import", &source, "box"];
    coracle(world, &import).run()?.ok()?;
    coracle(world, &["image", "verify", "box"]).run()?.ok()?;
    let layers = images(world).join("layers");
    let mut changed = 0;
    for layer in fs::read_dir(&layers)? {
        let file = layer?.path().join("fs/top");
        if file.exists() {
            // Of the same length and with its time.
            let script =
                format!("touch -r {0} stamp; printf 9 >{0}; touch -r stamp {0}", file.display());
            let enter = ["--user", "--map-root-user", "sh", "-c", &script];
            world.cmd("unshare").args(enter).dir(world.dir()).run()?.ok()?;
            changed += 1;
        }
    }
    ensure!(changed == 1, "{changed} layers were changed");
    coracle(world, &["image", "verify", "box"]).run()?.fails_with(1, "has been changed")?;
    coracle(world, &["image", "rm", "-f", "box"]).run()?.ok()?;
    coracle(world, &import).run()?.ok()?;
    // A blob that has rotted is noticed by verify, and replaced by the next import
    // that needs it.
    for blob in fs::read_dir(images(world).join("blobs/sha256"))? {
        let path = blob?.path();
        let mut bytes = fs::read(&path)?;
        if bytes.starts_with(&[0x1f, 0x8b]) {
            let last = bytes.len() - 9;
            bytes[last] ^= 1;
            world.cmd("sh").args(["-c", "cat >$0"]).arg(&path).stdin(bytes).run()?.ok()?;
        }
    }
    coracle(world, &["image", "verify", "box"]).run()?.fails_with(1, "the blob")?;
    for layer in fs::read_dir(&layers)? {
        world.lab.remove_as_root(&layer?.path())?;
    }
    coracle(world, &import).run()?.ok()?;
    coracle(world, &["image", "verify", "box"]).run()?.ok()?;
    run(world, &["box"])?.ok()?.stdout_is("0")?;
    Ok(())
}

pub(super) fn in_use(world: &World<'_>) -> Result<()> {
    let source = make(world, "image", 1, "")?;
    coracle(world, &["image", "import", &source, "box"]).run()?.ok()?;
    let start = ["run", "-d", "--name", "user", "--network", "none", "box", "sleep", "1000"];
    coracle(world, &start).run()?.ok()?;
    let checked = (|| {
        coracle(world, &["image", "rm", "box"]).run()?.fails_with(1, "user")?;
        coracle(world, &["image", "rm", "-f", "box"]).run()?.ok()?;
        coracle(world, &["image", "gc"]).run()?.ok()?;
        coracle(world, &["exec", "user", "cat", "/top"]).run()?.ok()?.stdout_is("0")?;
        ensure!(count(world, "layers")? == 2, "the ground went from under its feet");
        Ok(())
    })();
    coracle(world, &["rm", "-f", "user"]).run()?.ok()?;
    checked?;
    coracle(world, &["image", "gc"]).run()?.ok()?.stdout_has("2 layers removed")?;
    Ok(())
}

pub(super) fn bad_input(world: &World<'_>) -> Result<()> {
    fs::write(world.dir().join("not-a-tar"), [7; 4096])?;
    let odd = text(&world.dir().join("not-a-tar"))?.to_owned();
    for (words, word) in [
        (&["image", "import", "/no/such/file"][..], "/no/such/file"),
        (&["image", "import", ""], "not an image's source"),
        (&["image", "import", &odd], "checksum"),
        (&["image", "import", "oci:/no/such"], "/no/such"),
        (&["image", "import", "oci-archive:/etc"], "directory"),
        (&["image", "inspect", "nobody"], "nobody"),
        (&["image", "rm", "nobody"], "nobody"),
        (&["image", "verify", "nobody"], "nobody"),
        (&["image", "pull", "127.0.0.1:1/x"], "127.0.0.1:1"),
    ] {
        coracle(world, words).run()?.fails_with(1, word)?;
    }
    for (words, word) in [
        (&["image"][..], "which command"),
        (&["image", "import"], "SOURCE"),
        (&["image", "import", "x", "NAME"], "NAME"),
        (&["image", "import", "--max-size", "lots", "x"], "lots"),
        (&["image", "pull", "a b"], "a b"),
        (&["image", "pull", "--creds", "x", "a"], "USER:PASSWORD"),
        (&["image", "ls", "--format", "xml"], "xml"),
        (&["run", "--pull", "sometimes", "x"], "sometimes"),
        (&["run", "-P", "--", "true"], "needs an image"),
        (&["run", "--entrypoint", "[1]", "x"], "JSON"),
        (&["run", "nobody"], "no image is named 'nobody'"),
        (&["run", "--pull", "never", "example.org/x"], "no image"),
    ] {
        coracle(world, words).run()?.fails_with(125, word)?;
    }
    // A bomb: a gigabyte of zeros in a megabyte.
    shell(world, "head -c 1G /dev/zero >zeros; tar -czf bomb.tgz zeros; rm zeros")?;
    let bomb = text(&world.dir().join("bomb.tgz"))?.to_owned();
    let refused = coracle(world, &["image", "import", "--max-size", "100m", &bomb]).run()?;
    refused.fails_with(1, "--max-size")?;
    ensure!(count(world, "tmp")? == 0, "something is left");
    Ok(())
}
