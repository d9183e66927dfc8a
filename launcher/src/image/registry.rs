//! Pulling from a registry: the pull half of the OCI distribution specification.
//!
//! # Theory of operation
//!
//! `GET /v2/PATH/manifests/REFERENCE` and `GET /v2/PATH/blobs/DIGEST`. A
//! registry that wants to know who asks answers 401 and says how
//! (`WWW-Authenticate`): with the credentials themselves (RFC 7617), or with a
//! token, which another server gives for them (RFC 6750; the distribution
//! project's "token" specification). What it accepted once is sent with every
//! request to it, and to no other host: blobs are often redirected.
//!
//! TLS is checked against the system's certificates and those of the usual
//! directories (`certs.d/HOST`, containers-certs.d(5)). Only with
//! `--tls-verify=false` it is not, and plain HTTP is tried, too. No byte is
//! believed: whoever reads from here checks digests.

use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Deserialize;
use ureq::config::Config;
use ureq::http::{Response, Uri};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Body};

use super::auth::Credentials;
use super::digest::Digest;
use super::import::{Blobs, Top};
use super::manifest::{Descriptor, MOST_JSON, media};
use super::reference::{DOCKER_HUB, LATEST, Reference};
use super::{ImageError, Result, malformed};
use crate::database;

/// How long a registry may be silent.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long connecting may take.
const CONNECTING: Duration = Duration::from_secs(30);

/// As many addresses of a registry as are tried.
const MOST_ADDRESSES: usize = 16;

/// How to reach a registry.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Without: certificates are not checked, and HTTP will do.
    pub tls_verify: bool,
    /// Certificates of the registry's own authority (`*.crt`), and of ours for
    /// it (`*.cert`, `*.key`), besides the usual directories.
    pub cert_dir: Option<PathBuf>,
    /// Who asks.
    pub credentials: Option<Credentials>,
}

/// A registry, and the path of an image there.
pub struct Registry {
    agent: Agent,
    /// `https://HOST`, or `http://HOST`.
    base: String,
    host: String,
    path: String,
    credentials: Option<Credentials>,
    /// What is sent with every request, once the registry has asked.
    authorization: Mutex<Option<String>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Registry {}/{}", self.base, self.path)
    }
}

fn failed(what: &str, why: impl std::fmt::Display) -> ImageError {
    malformed(format_args!("cannot {what}"), why)
}

impl Registry {
    /// Gets to know the registry of `image`.
    ///
    /// # Errors
    /// When it cannot be reached, or certificates cannot be read.
    pub fn connect(image: &Reference, access: &Access) -> Result<Self> {
        let (host, path) = image.remote();
        // The name and the host have been different for long.
        let server = if host == DOCKER_HUB { "registry-1.docker.io" } else { host };
        let agent = agent(host, access)?;
        let mut registry = Self {
            agent,
            base: format!("https://{server}"),
            host: host.to_owned(),
            path,
            credentials: access.credentials.clone(),
            authorization: Mutex::new(None),
        };
        let first = registry.get("/v2/", &[], "reach the registry");
        match first {
            Ok(_) => Ok(registry),
            Err(first) if !access.tls_verify => {
                registry.base = format!("http://{server}");
                // When nobody speaks HTTP either, the failure of TLS is the one to tell.
                if registry.agent.get(format!("{}/v2/", registry.base)).call().is_err() {
                    return Err(first);
                }
                registry.get("/v2/", &[], "reach the registry")?;
                Ok(registry)
            }
            Err(error) => Err(error),
        }
    }

    /// The manifest that a tag, or a digest, stands for.
    ///
    /// # Errors
    /// When the registry has none.
    pub fn top(&self, image: &Reference) -> Result<(Top, Vec<u8>)> {
        let wanted = match &image.digest {
            Some(digest) => digest.to_string(),
            None => image.tag.clone().unwrap_or_else(|| LATEST.to_owned()),
        };
        let response = self.manifest(&wanted)?;
        let told = response
            .headers()
            .get("content-type")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split(';').next())
            .unwrap_or(media::MANIFEST)
            .to_owned();
        let mut bytes = Vec::new();
        response
            .into_body()
            .into_reader()
            .take(MOST_JSON + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| failed("read the manifest", error))?;
        let digest = image.digest.clone().unwrap_or_else(|| Digest::of(&bytes));
        let descriptor = Descriptor::new(&told, digest, bytes.len() as u64);
        Ok((Top { descriptor, names: vec![image.pulled()] }, bytes))
    }

    fn manifest(&self, wanted: &str) -> Result<Response<Body>> {
        let accept =
            [media::MANIFEST, media::INDEX, media::DOCKER_MANIFEST, media::DOCKER_LIST].join(", ");
        let url = format!("/v2/{}/manifests/{wanted}", self.path);
        self.get(&url, &[("Accept", &accept)], "get the manifest")
    }

    /// Gets something, and says who asks when it must.
    fn get(&self, path: &str, headers: &[(&str, &str)], what: &str) -> Result<Response<Body>> {
        let url = format!("{}{path}", self.base);
        let mut told = false;
        loop {
            let authorization = self.authorization().clone();
            let mut request = self.agent.get(&url);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            if let Some(value) = &authorization {
                request = request.header("Authorization", value);
            }
            let response = request
                .call()
                .map_err(|error| failed(&format!("{what} at {}", self.host), error))?;
            match response.status().as_u16() {
                200 => return Ok(response),
                401 if !told => {
                    told = true;
                    let asked = response
                        .headers()
                        .get("www-authenticate")
                        .and_then(|value| value.to_str().ok())
                        .unwrap_or_default();
                    let answer = self.answer(asked)?;
                    *self.authorization() = Some(answer);
                }
                401 | 403 => {
                    return Err(failed(
                        &format!("{what} at {}", self.host),
                        match self.credentials {
                            Some(_) => "the registry refuses these credentials",
                            None => {
                                "the registry wants to know who asks: use --creds, or log in with \
                                 'skopeo login' or 'podman login'"
                            }
                        },
                    ));
                }
                404 => {
                    return Err(failed(
                        &format!("{what} at {}", self.host),
                        format_args!("the registry has no {}", path.trim_start_matches("/v2/")),
                    ));
                }
                other => {
                    let why = format!("the registry answers {other}");
                    return Err(failed(&format!("{what} at {}", self.host), why));
                }
            }
        }
    }

    fn authorization(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.authorization.lock().expect("no thread panics while it holds the lock")
    }

    /// What a registry that asks like this is told.
    fn answer(&self, asked: &str) -> Result<String> {
        match challenge(asked) {
            Some(Challenge::Basic) => match &self.credentials {
                Some(credentials) => Ok(credentials.basic()),
                None => Err(failed(
                    &format!("pull from {}", self.host),
                    "the registry wants to know who asks: use --creds, or log in with 'skopeo \
                     login' or 'podman login'",
                )),
            },
            Some(Challenge::Bearer { realm, service }) => self.token(&realm, service.as_deref()),
            None => Err(failed(
                &format!("pull from {}", self.host),
                format_args!("the registry asks for '{asked}', which is not known here"),
            )),
        }
    }

    fn token(&self, realm: &str, service: Option<&str>) -> Result<String> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let what = format!("get a token for {}", self.host);
        // The password must not be read on the way.
        if self.base.starts_with("https:") && !realm.starts_with("https://") {
            return Err(failed(&what, format_args!("its server is '{realm}', without TLS")));
        }
        let mut request =
            self.agent.get(realm).query("scope", format!("repository:{}:pull", self.path));
        if let Some(service) = service {
            request = request.query("service", service);
        }
        if let Some(credentials) = &self.credentials {
            request = request.header("Authorization", credentials.basic());
        }
        let response = request.call().map_err(|error| failed(&what, error))?;
        if response.status().as_u16() != 200 {
            return Err(failed(
                &what,
                format_args!("its server answers {}", response.status().as_u16()),
            ));
        }
        let token: Token =
            serde_json::from_reader(response.into_body().into_reader().take(MOST_JSON))
                .map_err(|error| failed(&what, error))?;
        let token = token.token.or(token.access_token);
        let token = token.ok_or_else(|| failed(&what, "its server gives none"))?;
        Ok(format!("Bearer {token}"))
    }
}

/// A manifest that is here already, and the registry for all else.
#[derive(Debug)]
pub struct Pulled<'a> {
    /// Where the blobs are.
    pub registry: &'a Registry,
    /// What the image's reference stands for.
    pub top: &'a Descriptor,
    /// Its bytes.
    pub bytes: &'a [u8],
}

impl Blobs for Pulled<'_> {
    fn open(&self, wanted: &Descriptor) -> Result<Box<dyn Read + Send + '_>> {
        if wanted.digest == self.top.digest {
            return Ok(Box::new(self.bytes));
        }
        let is_manifest =
            [media::MANIFEST, media::DOCKER_MANIFEST].contains(&wanted.media_type.as_str());
        let response = if is_manifest {
            self.registry.manifest(&wanted.digest.to_string())?
        } else {
            let url = format!("/v2/{}/blobs/{}", self.registry.path, wanted.digest);
            self.registry.get(&url, &[], "get a blob")?
        };
        Ok(Box::new(response.into_body().into_reader()))
    }
}

/// How a registry wants to know who asks.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

/// Reads `WWW-Authenticate`: a scheme, and `NAME="VALUE"` separated by commas.
fn challenge(text: &str) -> Option<Challenge> {
    let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service) = (None, None);
    while let Some((name, value)) = rest.split_once('=') {
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => value.split_once(',').unwrap_or((value, "")),
        };
        match name.trim_matches([' ', ',']) {
            "realm" => realm = Some(value.to_owned()),
            "service" => service = Some(value.to_owned()),
            _ => {}
        }
        rest = after;
    }
    realm.map(|realm| Challenge::Bearer { realm, service })
}

fn agent(host: &str, access: &Access) -> Result<Agent> {
    let mut roots: Vec<Certificate<'static>> = Vec::new();
    let mut client = None;
    if access.tls_verify {
        // Where the system has none, the registry's own directory may.
        let system = rustls_native_certs::load_native_certs().certs;
        roots.extend(system.iter().map(|cert| Certificate::from_der(cert).to_owned()));
    }
    for dir in cert_dirs(host, access) {
        let Ok(items) = fs::read_dir(&dir) else {
            if access.cert_dir.as_ref() == Some(&dir) {
                return Err(failed(
                    "read certificates",
                    format_args!("{} is no directory", dir.display()),
                ));
            }
            continue;
        };
        let mut paths: Vec<PathBuf> = items.flatten().map(|item| item.path()).collect();
        paths.sort();
        for path in paths {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => roots.extend(certificates(&path)?),
                Some("cert") => {
                    let key_path = path.with_extension("key");
                    client =
                        Some(ClientCert::new_with_certs(&certificates(&path)?, key(&key_path)?));
                }
                _ => {}
            }
        }
    }
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .client_cert(client)
        .disable_verification(!access.tls_verify)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    let config = Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .user_agent(concat!("coracle/", env!("CARGO_PKG_VERSION")))
        // Blobs are as they are, compressed or not.
        .accept_encoding("identity")
        .timeout_connect(Some(CONNECTING))
        .timeout_recv_response(Some(PATIENCE))
        .timeout_per_read(Some(PATIENCE))
        .build();
    Ok(Agent::with_parts(config, DefaultConnector::default(), Names))
}

/// Asks for the addresses of registries as [`database`] does.
#[derive(Debug)]
struct Names;

impl Resolver for Names {
    fn resolve(
        &self,
        uri: &Uri,
        _config: &Config,
        _timeout: NextTimeout,
    ) -> std::result::Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let usual = if uri.scheme_str() == Some("http") { 80 } else { 443 };
        let port = uri.port_u16().unwrap_or(usual);
        let found = match host.parse() {
            Ok(address) => vec![address],
            Err(_) => database::addresses(host)?,
        };
        let mut addresses = self.empty();
        // As many as it has room for.
        for address in found.into_iter().take(MOST_ADDRESSES) {
            addresses.push(SocketAddr::new(address, port));
        }
        if addresses.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(addresses) }
    }
}

/// Where certificates for a host are: containers-certs.d(5).
fn cert_dirs(host: &str, access: &Access) -> Vec<PathBuf> {
    if let Some(dir) = &access.cert_dir {
        return vec![dir.clone()];
    }
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let mut dirs: Vec<PathBuf> =
        home.map(|home| home.join(".config/containers/certs.d").join(host)).into_iter().collect();
    for base in ["/etc/containers/certs.d", "/etc/docker/certs.d"] {
        dirs.push(Path::new(base).join(host));
    }
    dirs
}

fn pem(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(super::at("read", path))
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>> {
    let mut found = Vec::new();
    for item in parse_pem(&pem(path)?) {
        let item = item.map_err(|error| malformed(path.display(), error))?;
        if let PemItem::Certificate(certificate) = item {
            found.push(certificate);
        }
    }
    Ok(found)
}

fn key(path: &Path) -> Result<PrivateKey<'static>> {
    PrivateKey::from_pem(&pem(path)?).map_err(|error| malformed(path.display(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let bearer = |realm: &str, service: Option<&str>| {
            let service = service.map(str::to_owned);
            Some(Challenge::Bearer { realm: realm.to_owned(), service })
        };
        for (text, want) in [
            ("Basic realm=\"x\"", Some(Challenge::Basic)),
            ("basic", Some(Challenge::Basic)),
            (
                "Bearer realm=\"https://a/t?x=1,2\",service=\"s\",scope=\"repository:a:pull\"",
                bearer("https://a/t?x=1,2", Some("s")),
            ),
            ("bearer service=s, realm=\"https://a\"", bearer("https://a", Some("s"))),
            ("Bearer service=\"s\"", None),
            ("Bearer realm=\"open", None),
            ("Digest realm=\"x\"", None),
            ("", None),
        ] {
            assert_eq!(challenge(text), want, "{text}");
        }
    }
}
