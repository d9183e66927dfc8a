//! Pulling as the large registries have it: a token from another server, an index of
//! several machines, blobs that are elsewhere. What speaks to coracle is a server of the
//! test's own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tests::harness::World;
use tests::http::{Answer, Asked, Server};

use super::import::make;
use super::{coracle, run, text};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// `me:secret`.
const BASIC: &str = "Basic bWU6c2VjcmV0";

/// How a registry is odd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Odd {
    No,
    /// Its server of tokens gives none.
    NoToken,
    /// It is never content with one.
    Insatiable,
    /// Its blobs are others.
    OtherBlobs,
    /// Its blobs lead around in a circle.
    Circle,
}

fn blob(dir: &Path, digest: &str) -> Option<Vec<u8>> {
    fs::read(dir.join("blobs/sha256").join(digest.strip_prefix("sha256:")?)).ok()
}

/// A registry of what is in the layout `dir`; blobs are at `store`.
fn registry(dir: PathBuf, store: u16, odd: Odd) -> Result<Server> {
    Server::start(move |asked: &Asked, own| {
        let authorization = asked.headers.get("authorization").map(String::as_str);
        let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
        if path == "/token" {
            let meant = query.contains("scope=repository%3Asome%2Fbox%3Apull")
                || query.contains("scope=repository:some/box:pull");
            if authorization != Some(BASIC) || !meant || !query.contains("service=the-registry") {
                return Answer::of(401);
            }
            let token = if odd == Odd::NoToken { "{}" } else { "{\"token\":\"abc\"}" };
            return Answer::with(token);
        }
        // What is redirected comes without authorization.
        let circling = odd == Odd::Circle && path.contains("/blobs/");
        if !circling && (authorization != Some("Bearer abc") || odd == Odd::Insatiable) {
            let how =
                format!("Bearer realm=\"http://127.0.0.1:{own}/token\",service=\"the-registry\"");
            return Answer::of(401).header("WWW-Authenticate", how);
        }
        if path == "/v2/" {
            return Answer::with("{}");
        }
        if path == "/v2/some/box/manifests/v1" {
            return match fs::read(dir.join("index.json")) {
                Ok(index) => Answer::with(index).header("Content-Type", INDEX),
                Err(_) => Answer::of(500),
            };
        }
        if let Some(digest) = path.strip_prefix("/v2/some/box/manifests/") {
            let found = blob(&dir, digest).map(Answer::with);
            return found.map_or(Answer::of(404), |found| found.header("Content-Type", MANIFEST));
        }
        if let Some(digest) = path.strip_prefix("/v2/some/box/blobs/") {
            let port = if odd == Odd::Circle { own } else { store };
            let place = match odd {
                Odd::Circle => format!("http://127.0.0.1:{port}{path}"),
                _ => format!("http://127.0.0.1:{port}/{digest}"),
            };
            return Answer::of(307).header("Location", place);
        }
        Answer::of(404)
    })
}

pub(super) fn token(world: &World<'_>) -> Result<()> {
    let layout = PathBuf::from(make(world, "several", 3, "machines")?);
    let want = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    };
    let dir = layout.clone();
    let store = Server::start(move |asked, _| {
        blob(&dir, asked.path.trim_start_matches('/')).map_or(Answer::of(404), Answer::with)
    })?;
    let others = Server::start(|_, _| Answer::with("something else"))?;
    let pull = |server: &Server, more: &[&str]| {
        let image = format!("127.0.0.1:{}/some/box:v1", server.port);
        let words = [&["image", "pull", "--tls-verify=false"], more, &[&image]].concat();
        coracle(world, &words).run()
    };
    let creds = "--creds=me:secret";
    for (odd, word) in [
        (Odd::NoToken, "gives none"),
        (Odd::Insatiable, "refuses these credentials"),
        (Odd::OtherBlobs, "bytes"),
        (Odd::Circle, "redirect"),
    ] {
        let elsewhere = if odd == Odd::OtherBlobs { others.port } else { store.port };
        let server = registry(layout.clone(), elsewhere, odd)?;
        let refused = pull(&server, &[creds])?;
        ensure!(!refused.stderr.contains("secret"), "{odd:?}: {}", refused.describe());
        refused.fails_with(1, word).with_context(|| format!("{odd:?}"))?;
        coracle(world, &["image", "ls", "-q"]).run()?.ok()?.stdout_is("")?;
    }
    let server = registry(layout, store.port, Odd::No)?;
    pull(&server, &[])?.fails_with(1, "401")?;
    pull(&server, &["--creds=me:wrong"])?.fails_with(1, "401")?;
    pull(&server, &[creds])?.ok()?;
    run(world, &["box:v1"])?.ok()?.stdout_is(want)?;
    // Where the blobs are nobody is told who asks.
    let seen = store.asked();
    ensure!(seen.len() >= 5, "{} blobs were asked for there", seen.len());
    for asked in seen.iter().chain(&others.asked()) {
        ensure!(!asked.headers.contains_key("authorization"), "{asked:?}");
    }
    // One token did for all of it.
    let tokens = server.asked().iter().filter(|asked| asked.path.starts_with("/token")).count();
    ensure!(tokens == 3, "{tokens} tokens were asked for by three pulls");
    Ok(())
}

/// Credentials that a program keeps.
pub(super) fn helpers(world: &World<'_>) -> Result<()> {
    let layout = PathBuf::from(make(world, "image", 0, "machines")?);
    let dir = layout.clone();
    let store = Server::start(move |asked, _| {
        blob(&dir, asked.path.trim_start_matches('/')).map_or(Answer::of(404), Answer::with)
    })?;
    let server = registry(layout, store.port, Odd::No)?;
    let host = format!("127.0.0.1:{}", server.port);
    let bin = world.dir().join("helpers");
    fs::create_dir(&bin)?;
    let helper = |name: &str, script: &str| -> Result<()> {
        let path = bin.join(format!("docker-credential-{name}"));
        fs::write(
            &path,
            format!("#!/bin/sh\n[ \"$1\" = get ] || exit 3\nread -r server\n{script}\n"),
        )?;
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(())
    };
    helper(
        "good",
        "[ \"$server\" = \"$HOST\" ] || exit 4; \
         echo '{\"ServerURL\":\"x\",\"Username\":\"me\",\"Secret\":\"secret\"}'",
    )?;
    helper("none", "echo 'credentials not found in native keychain'; exit 1")?;
    helper("broken", "echo 'the keyring is locked' >&2; exit 1")?;
    helper("mad", "echo '{'")?;
    helper("token", "echo '{\"Username\":\"<token>\",\"Secret\":\"secret\"}'")?;
    let image = format!("{host}/some/box:v1");
    let file = world.dir().join("config.json");
    let path = format!("{}:/usr/bin:/bin", bin.display());
    let pull = |config: &str| {
        fs::write(&file, config.replace("HOST", &host))?;
        let words = ["image", "pull", "--tls-verify=false", "--authfile", text(&file)?, &image];
        coracle(world, &words).env("PATH", &path).env("HOST", &host).run()
    };
    for config in [
        r#"{"credHelpers":{"HOST":"good"}}"#,
        r#"{"credHelpers":{"HOST":"good"},"credsStore":"broken"}"#,
        r#"{"credHelpers":{"other.example":"broken"},"credsStore":"good"}"#,
        // What a file has itself goes before the store.
        r#"{"auths":{"HOST":{"auth":"bWU6c2VjcmV0"}},"credsStore":"broken"}"#,
        r#"{"auths":{"HOST":{}},"credsStore":"good"}"#,
    ] {
        pull(config)?.ok().with_context(|| config.to_owned())?;
        coracle(world, &["image", "rm", &image]).run()?.ok()?;
    }
    for (config, word) in [
        (r#"{"credHelpers":{"HOST":"none"}}"#, "401"),
        (r#"{"credsStore":"broken"}"#, "the keyring is locked"),
        (r#"{"credsStore":"mad"}"#, "docker-credential-mad"),
        (r#"{"credsStore":"token"}"#, "token"),
        (r#"{"credsStore":"absent"}"#, "docker-credential-absent"),
        (r#"{"credsStore":"../good"}"#, "../good"),
    ] {
        let refused = pull(config)?;
        ensure!(!refused.stderr.contains("secret"), "{}", refused.describe());
        refused.fails_with(1, word).with_context(|| config.to_owned())?;
    }
    Ok(())
}

/// Files that are there and cannot be read are not passed over.
pub(super) fn unreadable_credentials(world: &World<'_>) -> Result<()> {
    let config = world.dir().join("config/containers");
    let auth = config.join("auth.json");
    let pull = || {
        coracle(world, &["image", "pull", "--tls-verify=false", "127.0.0.1:1/x"])
            .env("XDG_CONFIG_HOME", world.dir().join("config"))
            .run()
    };
    pull()?.fails_with(1, "reach the registry")?;
    world.cmd("mkdir").args(["-p", text(&config)?]).run()?.ok()?;
    world.write(&auth, "{")?;
    pull()?.fails_with(1, text(&auth)?)?;
    world.cmd("chmod").args(["000", text(&auth)?]).run()?.ok()?;
    pull()?.fails_with(1, text(&auth)?)?;
    Ok(())
}
