//! The copy-on-write view of the host's own root.

use std::fs;

use anyhow::{Result, ensure};
use tests::harness::{Test, World};

use crate::fixtures::deb;

pub(crate) const TESTS: &[Test] = &[
    Test::new("root/owners", owners).each_user(),
    Test::new("root/what-is-hidden", hidden).each_user().lab(),
    Test::new("root/apt-get-install", apt_get_install).each_user().seconds(120),
    Test::new("root/tools-work", tools_work).each_user().seconds(120),
];

fn owners(world: &World<'_>) -> Result<()> {
    // What the host's root owns belongs to the container's root.
    let script = "stat -c '%u %g' / /etc /etc/passwd /usr/bin/env";
    let words = ["run", "--rm", "--network", "none", "--", "sh", "-c", script];
    world.coracle(&words).run()?.ok()?.stdout_is("0 0\n0 0\n0 0\n0 0")?;
    let script = "touch /etc/x && chmod 600 /etc/x && stat -c '%u %g %a' /etc/x; \
                  chmod 4750 /usr/bin/env && stat -c '%u %g %a' /usr/bin/env";
    let words = ["run", "--rm", "--network", "none", "--", "sh", "-c", script];
    world.coracle(&words).run()?.ok()?.stdout_is("0 0 600\n0 0 4750")?;
    Ok(())
}

fn hidden(world: &World<'_>) -> Result<()> {
    let home = &world.user.home;
    world.cmd("mkdir").args(["-m", "0700"]).arg(home.join(".ssh")).run()?.ok()?;
    world.write(home.join(".ssh/id_secret"), "caller-secret")?;
    world.write("/tmp/tmp-secret", "tmp-secret")?;
    let home = home.display();
    let script = format!(
        "for f in {home}/.ssh/id_secret /tmp/tmp-secret /etc/shadow /root/.bashrc \
           /run/* /var/lib/private/*; do \
           [ -e $f ] && cat $f 2>/dev/null | grep -q . && echo $f; done; exit 0"
    );
    let words = ["run", "--rm", "--network", "none", "--", "sh", "-c", &script];
    let seen = world.coracle(&words).run()?;
    // What --volume names is there.
    let volume = format!("{home}/.ssh:/mnt");
    let words = ["run", "--rm", "--network", "none", "-v", &volume, "--", "cat", "/mnt/id_secret"];
    let named = world.coracle(&words).run()?;
    fs::remove_dir_all(world.user.home.join(".ssh"))?;
    fs::remove_file("/tmp/tmp-secret")?;
    seen.ok()?.stdout_is("")?;
    named.ok()?.stdout_is("caller-secret")?;
    ensure!(fs::metadata("/etc/shadow").is_ok());
    Ok(())
}

fn apt_get_install(world: &World<'_>) -> Result<()> {
    let deb = deb(world)?;
    let volume = format!("{}:/mnt/coracle-probe.deb:ro", deb.display());
    let script = "set -e; export DEBIAN_FRONTEND=noninteractive\n\
        apt-get install -y /mnt/coracle-probe.deb >/tmp/log 2>&1 || { cat /tmp/log >&2; exit 1; }\n\
        coracle-probe; coracle-probe-link\n\
        cat /var/lib/coracle-probe/state\n\
        dpkg -s coracle-probe | grep Status\n\
        stat -c '%u %g %a %n' /usr/bin/coracle-probe /usr/bin/coracle-probe-suid /etc/coracle-probe.conf\n\
        apt-get purge -y coracle-probe >/tmp/log 2>&1 || { cat /tmp/log >&2; exit 1; }\n\
        [ ! -e /usr/bin/coracle-probe ]; [ ! -e /etc/coracle-probe.conf ]; echo purged";
    let words = ["run", "--rm", "-v", &volume, "--", "sh", "-c", script];
    world.coracle(&words).limit(std::time::Duration::from_secs(100)).run()?.ok()?.stdout_is(
        "probe works\nprobe works\nconfigure\nStatus: install ok installed\n\
             0 0 755 /usr/bin/coracle-probe\n0 0 4755 /usr/bin/coracle-probe-suid\n\
             0 0 640 /etc/coracle-probe.conf\npurged",
    )?;
    Ok(())
}

fn tools_work(world: &World<'_>) -> Result<()> {
    let script = "set -e; cd /root; \
        printf '#include <stdio.h>\\nint main(void){puts(\"compiled\");return 0;}\\n' >a.c; \
        gcc -O1 -o a a.c; ./a; \
        python3 -c 'import json, sqlite3; print(json.dumps([1]))'; \
        git init -q r; cd r; git config user.email a@b; git config user.name n; \
        cp ../a.c .; git add .; git commit -qm one; git log --oneline | wc -l; git fsck 2>/dev/null; \
        cd ..; tar czf r.tgz r; rm -r r; tar xzf r.tgz; git -C r status --short; echo done";
    let words = ["run", "--rm", "--network", "none", "--", "sh", "-c", script];
    world
        .coracle(&words)
        .limit(std::time::Duration::from_secs(100))
        .run()?
        .ok()?
        .stdout_is("compiled\n[1]\n1\ndone")?;
    Ok(())
}
