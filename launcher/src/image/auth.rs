//! Whom a registry knows the caller as: the `auth.json` of the containers
//! projects (containers-auth.json(5)) and Docker's `config.json`. The files are
//! read here and nowhere else; what to make of them is pure.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

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
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
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
        let found =
            within(&text, registry, path).map_err(|why| format!("{}: {why}", file.display()))?;
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

/// The entry for the longest part of `registry/path` that has one.
fn within(text: &[u8], registry: &str, path: &str) -> Result<Option<Credentials>, String> {
    let file: AuthFile = serde_json::from_slice(text).map_err(|error| error.to_string())?;
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
            return Credentials::parse(text.trim_end_matches('\0')).map(Some).map_err(|_| bad());
        }
        match wanted.rfind('/') {
            Some(at) => wanted.truncate(at),
            None => return Ok(None),
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
                "bad.io":{{"auth":"!"}}}},"credsStore":"x"}}"#,
            auth("u:p:q"),
            auth("deep:"),
            auth("hub:pw")
        );
        let find = |registry, path| {
            let found = within(file.as_bytes(), registry, path)?;
            Ok::<_, String>(found.map(|c| format!("{} {}", c.user, c.password)))
        };
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
