//! What an image's configuration means for a container of it, as in Podman. Pure.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use super::manifest::Running;
use super::store::Image;
use crate::spec::{ImageRoot, Protocol, Publish, Root, Spec};

/// What the command line says about the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// In place of the image's; the image's command goes with it.
    pub entrypoint: Option<Vec<String>>,
    /// Publish what the image exposes.
    pub publish_all: bool,
}

/// A container of `image` as `spec` wants it: what the command line does not
/// say, the image does.
///
/// # Errors
/// A reason, when the configuration makes no sense.
pub fn apply(
    mut spec: Spec,
    image: &Image,
    name: String,
    layers: Vec<PathBuf>,
    options: &Options,
) -> Result<Spec, String> {
    let nothing = Running::default();
    let config = image.config.config.as_ref().unwrap_or(&nothing);
    spec.command = command(config, &spec.command, options);
    if spec.command.first().is_some_and(String::is_empty) {
        return Err("the image's command is empty".to_owned());
    }
    for text in config.env.iter().flatten() {
        // Without a value it says nothing.
        if let Some((name, value)) = text.split_once('=')
            && !name.is_empty()
        {
            spec.env.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
    }
    for (key, value) in config.labels.iter().flatten() {
        spec.labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let mut workdir = None;
    if spec.workdir.is_none()
        && let Some(dir) = given(&config.working_dir)
    {
        let dir = inside(&dir).ok_or_else(|| {
            format!("the image's working directory '{dir}' is not an absolute path without '..'")
        })?;
        workdir = Some(dir.clone());
        spec.workdir = Some(dir);
    }
    if spec.user.is_none() {
        spec.user = given(&config.user);
    }
    if options.publish_all {
        for text in config.exposed_ports.iter().flatten().map(|(port, _)| port) {
            let ports = ports(text).ok_or_else(|| {
                format!("the image exposes '{text}', which is no port, or none of tcp and udp")
            })?;
            publish_free(&mut spec.publish, ports);
        }
    }
    let mut volumes = BTreeSet::new();
    for text in config.volumes.iter().flatten().map(|(volume, _)| volume) {
        let volume = inside(text).filter(|path| path != Path::new("/")).ok_or_else(|| {
            format!("the image's volume '{text}' is not an absolute path without '..'")
        })?;
        volumes.insert(volume);
    }
    spec.root = Root::Image(ImageRoot {
        name,
        id: image.entry.id.to_string(),
        layers,
        workdir,
        volumes: volumes.into_iter().collect(),
    });
    Ok(spec)
}

fn command(config: &Running, given: &[String], options: &Options) -> Vec<String> {
    let cmd = || config.cmd.clone().unwrap_or_default();
    let (mut command, rest) = match &options.entrypoint {
        Some(entrypoint) => (entrypoint.clone(), given.to_vec()),
        None => {
            let rest = if given.is_empty() { cmd() } else { given.to_vec() };
            (config.entrypoint.clone().unwrap_or_default(), rest)
        }
    };
    command.extend(rest);
    command
}

pub(super) fn inside(text: &str) -> Option<PathBuf> {
    let path = Path::new(text);
    let sound = path.is_absolute() && !path.components().any(|c| c == Component::ParentDir);
    sound.then(|| path.components().collect())
}

/// Publishes ports that are not published yet, on ports that are to be chosen.
pub fn publish_free(publish: &mut Vec<Publish>, ports: impl IntoIterator<Item = (u16, Protocol)>) {
    for (container_port, protocol) in ports {
        let taken = |p: &Publish| p.container_port == container_port && p.protocol == protocol;
        if !publish.iter().any(taken) {
            // 0: to be chosen.
            publish.push(Publish { host_ip: None, host_port: 0, container_port, protocol });
        }
    }
}

/// Reads `PORT[-PORT][/PROTOCOL]`, of TCP and UDP; `None` when it is nothing of the kind.
#[must_use]
pub fn ports(text: &str) -> Option<Vec<(u16, Protocol)>> {
    let (ports, protocol) = match text.split_once('/') {
        None => (text, Protocol::Tcp),
        Some((ports, "tcp")) => (ports, Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some(_) => return None,
    };
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then(|| (first..=last).map(|port| (port, protocol)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::digest::Digest;
    use crate::image::manifest::{self, Descriptor, Manifest};
    use crate::image::store::Entry;

    fn image(config: &str) -> Image {
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{config},
                "rootfs":{{"type":"layers","diff_ids":[]}}}}"#
        );
        let id = Digest::of(text.as_bytes());
        Image {
            entry: Entry {
                manifest: id.clone(),
                id: id.clone(),
                names: vec![],
                size: 0,
                imported: 0,
            },
            manifest: Manifest {
                schema_version: 2,
                media_type: String::new(),
                config: Descriptor::new("", id, 0),
                layers: vec![],
                annotations: Default::default(),
            },
            config: manifest::config(text.as_bytes(), 0).unwrap(),
        }
    }

    const FULL: &str = r#"{"User":"1:2","Env":["A=image","B=b=c","C"],"WorkingDir":"/w/",
        "Entrypoint":["/e","x"],"Cmd":["c"],"ExposedPorts":{"80":{},"53/udp":{},"90-91/tcp":{}},
        "Volumes":{"/data":{}}}"#;

    fn spec(words: &[&str]) -> Spec {
        let text = r#"{"name":null,"root":"Host","upper":"Own","read_only":false,"remove":false,
            "detach":false,"interactive":false,"tty":false,"env":{"A":"mine"},"workdir":null,
            "user":null,"volumes":[],"hostname":null,"publish":[],"network":"Netstack","command":[]}"#;
        let command = words.iter().map(|word| (*word).to_owned()).collect();
        Spec { command, ..serde_json::from_str(text).unwrap() }
    }

    fn applied(config: &str, spec: Spec, options: &Options) -> Result<Spec, String> {
        apply(spec, &image(config), "box".to_owned(), vec!["/l".into()], options)
    }

    #[test]
    fn the_image_says_what_the_command_line_does_not() {
        let got = applied(FULL, spec(&[]), &Options::default()).unwrap();
        assert_eq!(got.command, ["/e", "x", "c"]);
        assert_eq!(got.user.as_deref(), Some("1:2"));
        assert_eq!(got.workdir.as_deref(), Some(Path::new("/w")));
        let env: Vec<_> = got.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(env, ["A=mine", "B=b=c"]);
        assert!(got.publish.is_empty());
        let Root::Image(root) = got.root else { panic!("no image") };
        assert_eq!((root.volumes, root.workdir), (vec!["/data".into()], Some("/w".into())));
        let mine = Spec { user: Some("0".into()), workdir: Some("/m".into()), ..spec(&["ls"]) };
        let got = applied(FULL, mine, &Options::default()).unwrap();
        assert_eq!(got.command, ["/e", "x", "ls"]);
        assert_eq!((got.user.as_deref(), got.workdir), (Some("0"), Some("/m".into())));
    }

    #[test]
    fn another_entrypoint_leaves_the_images_command_out() {
        let with = |entrypoint: &[&str], words: &[&str]| {
            let entrypoint = Some(entrypoint.iter().map(|word| (*word).to_owned()).collect());
            let options = Options { entrypoint, publish_all: false };
            applied(FULL, spec(words), &options).unwrap().command
        };
        assert_eq!(with(&["/s"], &[]), ["/s"]);
        assert_eq!(with(&["/s", "-x"], &["y"]), ["/s", "-x", "y"]);
        assert_eq!(with(&[], &["y"]), ["y"]);
        assert!(with(&[], &[]).is_empty());
    }

    #[test]
    fn exposed_ports_are_published_when_asked_for() {
        let options = Options { publish_all: true, ..Options::default() };
        let got = applied(FULL, spec(&[]), &options).unwrap();
        let ports: Vec<_> =
            got.publish.iter().map(|p| (p.host_port, p.container_port, p.protocol)).collect();
        use Protocol::{Tcp, Udp};
        assert_eq!(ports, [(0, 53, Udp), (0, 80, Tcp), (0, 90, Tcp), (0, 91, Tcp)]);
    }

    #[test]
    fn configurations_that_make_no_sense_are_refused() {
        let options = Options { publish_all: true, ..Options::default() };
        for config in [
            r#"{"WorkingDir":"w"}"#,
            r#"{"WorkingDir":"/a/../b"}"#,
            r#"{"Volumes":{"/":{}}}"#,
            r#"{"Volumes":{"v":{}}}"#,
            r#"{"ExposedPorts":{"0":{}}}"#,
            r#"{"ExposedPorts":{"80/sctp":{}}}"#,
            r#"{"ExposedPorts":{"x":{}}}"#,
            r#"{"Cmd":[""]}"#,
        ] {
            assert!(applied(config, spec(&[]), &options).is_err(), "{config}");
        }
        assert!(applied("null", spec(&[]), &options).unwrap().command.is_empty());
    }
}
