//! Whom a registry knows the caller as: the `auth.json` of the containers
//! projects (containers-auth.json(5)) and Docker's `config.json`. The files are
//! read here and nowhere else; what to make of them is pure.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::reference::DOCKER_HUB;
use crate::spawn;

/// A name and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The name.
    pub user: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials of {}", self.user)
    }
}

impl Credentials {
    /// Reads `USER:PASSWORD`.
    ///
    /// # Errors
    /// A reason that does not tell the password.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some((user, password)) if !user.is_empty() => {
                Ok(Self { user: user.to_owned(), password: password.to_owned() })
            }
            _ => Err("credentials are USER:PASSWORD".to_owned()),
        }
    }

    /// The value of an `Authorization` header (RFC 7617).
    #[must_use]
    pub fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.user, self.password)))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
    /// Programs that keep the credentials of some registries.
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    /// The program that keeps those of all others.
    #[serde(default)]
    creds_store: String,
}

/// What a file says.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    Nothing,
    Known(Credentials),
    /// `docker-credential-NAME` is to be asked.
    Kept(String),
}

#[derive(Default, Deserialize)]
struct Auth {
    #[serde(default)]
    auth: String,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Auth")
    }
}

/// The credentials for an image at `registry` and `path` in the caller's files;
/// `file` is the only one that is looked at, when given.
///
/// # Errors
/// A reason, when a file is there and makes no sense.
pub fn find(
    file: Option<PathBuf>,
    registry: &str,
    path: &str,
) -> Result<Option<Credentials>, String> {
    let explicit = file.or_else(|| env::var_os("REGISTRY_AUTH_FILE").map(PathBuf::from));
    let files = match explicit {
        // One that was named must be there.
        Some(file) => {
            let text = fs::read(&file)
                .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
            return within(&text, registry, path)
                .and_then(|entry| known(entry, registry))
                .map_err(|why| format!("{}: {why}", file.display()));
        }
        None => usual(),
    };
    for file in files {
        let text = match fs::read(&file) {
            Ok(text) => text,
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                continue;
            }
            // To ask without the credentials that are in it would fail for another reason.
            Err(error) => return Err(format!("cannot read {}: {error}", file.display())),
        };
        let found = within(&text, registry, path)
            .and_then(|entry| known(entry, registry))
            .map_err(|why| format!("{}: {why}", file.display()))?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn usual() -> Vec<PathBuf> {
    let below = |name: &str, rest: &str| {
        env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute()).map(|d| d.join(rest))
    };
    [
        below("XDG_RUNTIME_DIR", "containers/auth.json"),
        below("XDG_CONFIG_HOME", "containers/auth.json")
            .or_else(|| below("HOME", ".config/containers/auth.json")),
        below("DOCKER_CONFIG", "config.json").or_else(|| below("HOME", ".docker/config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn known(entry: Entry, registry: &str) -> Result<Option<Credentials>, String> {
    match entry {
        Entry::Nothing => Ok(None),
        Entry::Known(credentials) => Ok(Some(credentials)),
        Entry::Kept(helper) => ask(&helper, registry),
    }
}

/// Asks a program that keeps credentials (docker-credential-helpers' protocol: the
/// registry on standard input, JSON on standard output).
fn ask(helper: &str, registry: &str) -> Result<Option<Credentials>, String> {
    let name = format!("docker-credential-{helper}");
    // It is looked for in $PATH, and nowhere else.
    let sound = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let program = Some(&name)
        .filter(|name| name.bytes().all(sound))
        .and_then(|name| spawn::find_in_path(name));
    let program = program.ok_or_else(|| {
        format!("{name}, which keeps the credentials for {registry}, is not in $PATH")
    })?;
    let failed = |error: std::io::Error| format!("cannot run {name}: {error}");
    let server = if registry == DOCKER_HUB { "https://index.docker.io/v1/" } else { registry };
    let mut running = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = running.stdin.take() {
        match writeln!(stdin, "{server}") {
            // One that asks nothing has its answer all the same.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            written => written.map_err(failed)?,
        }
    }
    let output = running.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let said = [&output.stdout[..], &output.stderr].concat();
        let said = String::from_utf8_lossy(&said).trim().replace('\n', "; ");
        // How all of them say it, word for word.
        if said.contains("credentials not found in native keychain") {
            return Ok(None);
        }
        return Err(format!("{name} failed: {said}"));
    }
    answer(&output.stdout).map_err(|why| format!("{name}: {why}"))
}

/// Reads what such a program says. Nothing of it is told to anybody.
fn answer(text: &[u8]) -> Result<Option<Credentials>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let Answer { username, secret } =
        serde_json::from_slice(text).map_err(|_| "it answers with no credentials".to_owned())?;
    if username == "<token>" {
        return Err(
            "it keeps an identity token, which is not supported: log in with a password".to_owned()
        );
    }
    Ok(Some(Credentials { user: username, password: secret }))
}

/// The entry for the longest part of `registry/path` that has one.
fn within(text: &[u8], registry: &str, path: &str) -> Result<Entry, String> {
    let file: AuthFile = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let helper = file.cred_helpers.get(registry).filter(|helper| !helper.is_empty());
    if let Some(helper) = helper {
        return Ok(Entry::Kept(helper.clone()));
    }
    // Docker writes addresses where others write names.
    let plain = |key: &str| {
        let key =
            key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
        let key = key.trim_end_matches('/');
        let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
        if key == "index.docker.io" { "docker.io".to_owned() } else { key.to_owned() }
    };
    let mut wanted = format!("{registry}/{path}");
    loop {
        if let Some((_, auth)) = file.auths.iter().find(|(key, _)| plain(key) == wanted)
            && !auth.auth.is_empty()
        {
            let bad = || format!("the entry for {wanted} is no USER:PASSWORD in base 64");
            let bytes = STANDARD.decode(&auth.auth).map_err(|_| bad())?;
            let text = String::from_utf8(bytes).map_err(|_| bad())?;
            return Credentials::parse(text.trim_end_matches('\0'))
                .map(Entry::Known)
                .map_err(|_| bad());
        }
        match wanted.rfind('/') {
            Some(at) => wanted.truncate(at),
            None if file.creds_store.is_empty() => return Ok(Entry::Nothing),
            None => return Ok(Entry::Kept(file.creds_store)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_entry_counts() {
        let auth = |text: &str| STANDARD.encode(text);
        let file = format!(
            r#"{{"auths":{{"r.io":{{"auth":"{}"}},"r.io/a/b":{{"auth":"{}"}},
                "https://index.docker.io/v1/":{{"auth":"{}"}},"empty.io":{{}},
                "bad.io":{{"auth":"!"}}}},"credHelpers":{{"kept.io":"k"}}}}"#,
            auth("u:p:q"),
            auth("deep:"),
            auth("hub:pw")
        );
        let find = |registry, path| {
            let found = within(file.as_bytes(), registry, path)?;
            Ok::<_, String>(match found {
                Entry::Nothing => None,
                Entry::Known(c) => Some(format!("{} {}", c.user, c.password)),
                Entry::Kept(helper) => Some(format!("ask {helper}")),
            })
        };
        assert_eq!(find("kept.io", "x"), Ok(Some("ask k".to_owned())));
        let all = within(br#"{"auths":{"r.io":{}},"credsStore":"s"}"#, "r.io", "x").unwrap();
        assert_eq!(all, Entry::Kept("s".to_owned()));
        assert_eq!(find("r.io", "x"), Ok(Some("u p:q".to_owned())));
        assert_eq!(find("r.io", "a/b/c"), Ok(Some("deep ".to_owned())));
        assert_eq!(find("r.io", "a/bc"), Ok(Some("u p:q".to_owned())));
        assert_eq!(find("docker.io", "library/x"), Ok(Some("hub pw".to_owned())));
        assert_eq!(find("empty.io", "x"), Ok(None));
        assert_eq!(find("other.io", "x"), Ok(None));
        assert!(find("bad.io", "x").is_err());
        assert!(within(b"{", "r.io", "x").is_err());
    }

    #[test]
    fn a_password_is_not_shown() {
        let credentials = Credentials::parse("me:secret").unwrap();
        assert!(!format!("{credentials:?}").contains("secret"));
        assert!(!Credentials::parse("secret").unwrap_err().contains("secret"));
        assert_eq!(credentials.basic(), "Basic bWU6c2VjcmV0");
    }
}
