//! Pulling from a registry on the loopback device, with TLS and a password.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::command::Running;
use tests::harness::World;

use super::{coracle, layout, needs, run, shell, text};

/// Starts Debian's docker-registry; its port.
fn start(world: &World<'_>) -> Result<(Running, u16)> {
    needs(&["docker-registry", "htpasswd", "openssl", "skopeo"])?;
    shell(
        world,
        "new='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1'; exec 2>/dev/null; \
         openssl req -x509 $new -subj /CN=authority -keyout ca.key -out ca.crt; \
         openssl req -x509 $new -CA ca.crt -CAkey ca.key -subj /CN=localhost \
         -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE \
         -keyout server.key -out server.crt; mkdir certs none; cp ca.crt certs; \
         htpasswd -Bbn me secret >passwords",
    )?;
    // Free a moment ago; the registry says so when somebody was faster.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let dir = world.dir().display();
    let config = format!(
        "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
         storage: {{filesystem: {{rootdirectory: {dir}/registry}}}}\n\
         http: {{addr: \"127.0.0.1:{port}\", tls: {{certificate: {dir}/server.crt, key: {dir}/server.key}}}}\n\
         auth: {{htpasswd: {{realm: test, path: {dir}/passwords}}}}\n"
    );
    fs::write(world.dir().join("registry.yml"), config)?;
    let running =
        world.cmd("docker-registry").args(["serve", "registry.yml"]).dir(world.dir()).spawn()?;
    // There when it can be connected to.
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(!running.ends_within(Duration::from_millis(20))?, "the registry has ended");
    }
    Ok((running, port))
}

pub(super) fn registry(world: &World<'_>) -> Result<()> {
    let (running, port) = start(world)?;
    let done = pulls(world, port);
    running.signal(15)?;
    running.wait(Duration::from_secs(20))?;
    done
}

fn pulls(world: &World<'_>, port: u16) -> Result<()> {
    layout(world)?;
    let host = format!("localhost:{port}");
    shell(
        world,
        &format!(
            "umoci config --image layout:box --config.cmd echo --config.cmd pulled; \
             skopeo copy -q --dest-creds me:secret --dest-cert-dir certs oci:layout:box \
             docker://{host}/some/box:v1; \
             skopeo copy -q --format v2s2 --dest-creds me:secret --dest-cert-dir certs \
             oci:layout:box docker://{host}/some/box:docker"
        ),
    )?;
    let image = format!("{host}/some/box:v1");
    let certs = text(&world.dir().join("certs"))?.to_owned();
    let none = text(&world.dir().join("none"))?.to_owned();
    let pull = |more: &[&str], image: &str| {
        coracle(world, &[&["image", "pull"], more, &[image]].concat())
            .env("SSL_CERT_FILE", "/dev/null")
            .run()
    };
    let creds = "--creds=me:secret";
    let trusted = ["--cert-dir", &certs];
    // Nobody is trusted, and nobody known, without being told.
    pull(&["--cert-dir", &none, creds], &image)?.fails_with(1, "certificate")?;
    pull(&trusted, &image)?.fails_with(1, "--creds")?;
    let wrong = pull(&[&trusted[..], &["--creds=me:wrong"]].concat(), &image)?;
    ensure!(!wrong.stderr.contains("me:wrong"), "the password is told\n{}", wrong.describe());
    wrong.fails_with(1, "refuses these credentials")?;
    let known = [&trusted[..], &[creds]].concat();
    pull(&known, &format!("{host}/some/box:none"))?.fails_with(1, "the registry has no")?;
    coracle(world, &["image", "ls", "-q"]).run()?.ok()?.stdout_is("")?;

    let id = pull(&known, &image)?.ok()?.stdout;
    run(world, &[&image])?.ok()?.stdout_is("pulled")?;
    run(world, &["box:v1"])?.ok()?.stdout_is("pulled")?;
    let inspected = coracle(world, &["image", "inspect", &image]).run()?.ok()?;
    ensure!(inspected.stdout.contains(id.trim()), "{}", inspected.describe());
    let digest = inspected
        .stdout
        .lines()
        .find_map(|line| line.strip_prefix("    \"digest\": \"")?.strip_suffix("\","))
        .context("no digest")?
        .to_owned();
    let told = shell(
        world,
        &format!(
            "skopeo inspect --creds me:secret --cert-dir certs --format '{{{{.Digest}}}}' docker://{image}"
        ),
    )?;
    ensure!(told.stdout.trim() == digest, "{digest}\n{}", told.describe());
    coracle(world, &["image", "rm", &image]).run()?.ok()?;

    // By its digest; Docker's form; without TLS being checked; from a file.
    pull(&known, &format!("{host}/some/box@{digest}"))?.ok()?;
    run(world, &[&digest])?.ok()?.stdout_is("pulled")?;
    pull(&known, &format!("{host}/some/box:docker"))?.ok()?;
    run(world, &[&format!("{host}/some/box:docker")])?.ok()?.stdout_is("pulled")?;
    pull(&["--tls-verify=false", creds], &image)?.ok()?;
    coracle(world, &["image", "rm", &image]).run()?.ok()?;
    let auth = text(&world.dir().join("auth.json"))?.to_owned();
    shell(
        world,
        &format!(
            "skopeo login --authfile {auth} -u me -p secret --cert-dir certs {host} >/dev/null"
        ),
    )?;
    let from_file = coracle(world, &[&["image", "pull"][..], &trusted[..], &[&image]].concat())
        .env("REGISTRY_AUTH_FILE", &auth)
        .run()?;
    from_file.ok()?;
    coracle(world, &["image", "rm", &image]).run()?.ok()?;
    // run pulls what is not here, when the name says from where.
    let words = [&known[..], &["--authfile", &auth, &image]].concat();
    run(world, &words)?.ok()?.stdout_has("pulled")?;
    Ok(())
}
