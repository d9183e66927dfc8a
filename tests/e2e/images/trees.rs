//! From a container to an image and back: the same tree, with its hard links, extended
//! attributes and what is not there any more.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use tests::harness::World;

use super::{coracle, layout, needs, shell, text};

/// Makes tars, by name: files with extended attributes and hard links.
const TARS: &str = r#"
import io, tarfile
def tar(name, members):
    with tarfile.open(name, 'w', format=tarfile.PAX_FORMAT) as out:
        for path, kind, data, attributes in members:
            info = tarfile.TarInfo(path)
            info.mtime = 1000000000
            info.mode = 0o755 if kind == 'd' else 0o640
            info.pax_headers = {'SCHILY.xattr.' + k: v for k, v in attributes.items()}
            if kind == 'd':
                info.type = tarfile.DIRTYPE
            elif kind == 'h':
                info.type, info.linkname = tarfile.LNKTYPE, data
            else:
                info.size = len(data)
            out.addfile(info, io.BytesIO(data.encode()) if kind == 'f' else None)
tar('base.tar', [
    ('old', 'd', '', {'user.dir': 'of the base'}),
    ('old/kept', 'f', 'kept', {'user.kept': 'of the base', 'user.empty': ''}),
    ('old/one', 'f', 'linked', {}), ('old/two', 'h', 'old/one', {}), ('old/three', 'h', 'old/one', {}),
    ('old/gone', 'f', 'gone', {}),
    ('opaque', 'd', '', {}), ('opaque/below', 'f', 'below', {}),
    ('changed', 'f', 'first', {'user.changed': 'stays'}),
])
tar('more.tar', [
    ('new', 'd', '', {'user.dir': 'of the container'}),
    ('new/a', 'f', 'together', {'user.a': 'x' * 300, 'user.colour': 'blue'}),
    ('new/b', 'h', 'new/a', {}), ('new/sub', 'd', '', {}), ('new/sub/c', 'h', 'new/a', {}),
])
"#;

/// All there is to a tree in a tar, a line each; of hard links, which names are one.
const TREE: &str = r#"
import hashlib, sys, tarfile
links, rows = {}, {}
with tarfile.open(sys.argv[1]) as tar:
    for m in tar:
        name = m.name.removeprefix('./').rstrip('/')
        if name in ('', '.'):
            continue
        if m.islnk():
            first = m.linkname.removeprefix('./')
            links.setdefault(first, {first}).add(name)
            continue
        data = hashlib.sha256(tar.extractfile(m).read()).hexdigest()[:12] if m.isreg() else m.linkname
        attributes = sorted((k, v) for k, v in m.pax_headers.items() if k.startswith('SCHILY.xattr.'))
        rows[name] = (m.type.decode(), oct(m.mode), m.uid, m.gid, m.size, data, attributes)
for first, names in links.items():
    row = rows[first] + (sorted(names),)
    for name in names:
        rows[name] = row
for name in sorted(rows):
    print(name, *rows[name])
"#;

fn tree(world: &World<'_>, container: &str) -> Result<Vec<String>> {
    let tar = world.dir().join(format!("{container}.tar"));
    coracle(world, &["export", "-o", text(&tar)?, container]).run()?.ok()?;
    let python = world.cmd("python3").args(["-c", TREE, text(&tar)?]).run()?.ok()?;
    Ok(python.stdout.lines().map(str::to_owned).collect())
}

fn import(world: &World<'_>, source: &Path, name: &str) -> Result<()> {
    coracle(world, &["image", "import", "-q", text(source)?, name]).run()?.ok()?;
    Ok(())
}

pub(super) fn same_tree(world: &World<'_>) -> Result<()> {
    needs(&["python3"])?;
    layout(world)?;
    world.cmd("python3").args(["-c", TARS]).dir(world.dir()).run()?.ok()?;
    // A layer of its own, so that what is removed leaves whiteouts.
    shell(world, "umoci raw add-layer --image layout:box base.tar")?;
    import(world, &world.dir().join("layout"), "base")?;
    let words = ["run", "--name", "c", "--network", "none", "base", "sh", "-ec"];
    let script = "rm /old/gone /old/three; rm -r /opaque; mkdir /opaque; echo up >/opaque/above; \
                  echo second >>/changed; echo more >>/old/one; busybox mv /bin/touch /old/moved; \
                  busybox mknod /new-pipe p; busybox ln -s /nowhere /link";
    coracle(world, &[&words[..], &[script]].concat()).run()?.ok()?;
    let more = fs::read(world.dir().join("more.tar"))?;
    coracle(world, &["cp", "-", "c:/"]).stdin(more).run()?.ok()?;

    let listed = coracle(world, &["diff", "c"]).run()?.ok()?;
    let listed: Vec<&str> = listed.stdout.lines().collect();
    for line in ["C /old", "C /old/one", "D /old/three", "C /old/two", "A /opaque/above"] {
        ensure!(listed.contains(&line), "'{line}' is not in {listed:#?}");
    }
    ensure!(!listed.iter().any(|line| line.ends_with("/old/kept")), "{listed:#?}");
    ensure!(listed.is_sorted_by_key(|line| Path::new(&line[2..])), "{listed:#?}");

    let wanted = tree(world, "c")?;
    // What was changed by one name is changed by the other.
    coracle(world, &["commit", "-q", "c", "linked"]).run()?.ok()?;
    super::run(world, &["linked", "sh", "-c", "busybox stat -c %h /old/two; cat /old/two"])?
        .ok()?
        .stdout_is("2\nlinkedmore")?;
    // What this is about is in there at all.
    for (line, words) in [
        ("old/kept ", &["SCHILY.xattr.user.kept", "SCHILY.xattr.user.empty"][..]),
        ("old/one ", &["['old/one', 'old/two']"]),
        ("old/two ", &["['old/one', 'old/two']"]),
        ("changed ", &["SCHILY.xattr.user.changed"]),
        ("new ", &["SCHILY.xattr.user.dir"]),
        ("new/a ", &["SCHILY.xattr.user.colour", "['new/a', 'new/b', 'new/sub/c']"]),
        ("opaque/above ", &[]),
        ("old/moved ", &[]),
    ] {
        let found = wanted.iter().find(|row| row.starts_with(line));
        let has = found.is_some_and(|row| words.iter().all(|word| row.contains(word)));
        ensure!(has, "{line}{words:?} is not in {wanted:#?}");
    }
    for gone in ["old/gone ", "old/three ", "opaque/below ", "bin/touch "] {
        ensure!(!wanted.iter().any(|row| row.starts_with(gone)), "{gone}is in {wanted:#?}");
    }

    coracle(world, &["commit", "-q", "c", "made"]).run()?.ok()?;
    coracle(world, &["commit", "-q", "--squash", "c", "flat"]).run()?.ok()?;
    for (format, name) in
        [("oci-archive", "made"), ("docker-archive", "made"), ("oci-archive", "flat")]
    {
        let file = world.dir().join(format!("{format}-{name}.tar"));
        let save = ["image", "save", "--format", format, "-o", text(&file)?, name];
        coracle(world, &save).run()?.ok()?;
        // Into a store that has none of it.
        let fresh = world.dir().join(format!("fresh-{format}-{name}"));
        let elsewhere = |words: &[&str]| coracle(world, words).env("XDG_DATA_HOME", &fresh);
        elsewhere(&["image", "import", "-q", text(&file)?, "again"]).run()?.ok()?;
        elsewhere(&["create", "--name", "r", "--network", "none", "again", "true"]).run()?.ok()?;
        let tar = world.dir().join("again.tar");
        elsewhere(&["export", "-o", text(&tar)?, "r"]).run()?.ok()?;
        let python = world.cmd("python3").args(["-c", TREE, text(&tar)?]).run()?.ok()?;
        let found: Vec<&str> = python.stdout.lines().collect();
        let lost: Vec<_> = wanted.iter().filter(|row| !found.contains(&row.as_str())).collect();
        let came: Vec<_> =
            found.iter().filter(|row| !wanted.contains(&(**row).to_owned())).collect();
        ensure!(
            lost.is_empty() && came.is_empty(),
            "{format} {name}: lost {lost:#?}, came {came:#?}"
        );
        elsewhere(&["rm", "r"]).run()?.ok()?;
    }
    coracle(world, &["rm", "c"]).run()?.ok()?;
    Ok(())
}
