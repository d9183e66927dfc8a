//! Changes to an image's configuration, in the words of a Dockerfile:
//! `CMD=…`, `ENV NAME=VALUE`, as `podman commit --change` takes them. Pure.

use serde_json::{Value, json};

use super::manifest::Running;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    what: What,
    value: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Cmd,
    Entrypoint,
    Env,
    Expose,
    Label,
    StopSignal,
    User,
    Volume,
    Workdir,
}

const KNOWN: [(&str, What); 9] = [
    ("CMD", What::Cmd),
    ("ENTRYPOINT", What::Entrypoint),
    ("ENV", What::Env),
    ("EXPOSE", What::Expose),
    ("LABEL", What::Label),
    ("STOPSIGNAL", What::StopSignal),
    ("USER", What::User),
    ("VOLUME", What::Volume),
    ("WORKDIR", What::Workdir),
];

impl Change {
    /// Reads `INSTRUCTION=VALUE` or `INSTRUCTION VALUE`.
    ///
    /// # Errors
    /// A reason.
    pub fn parse(text: &str) -> Result<Self, String> {
        let end = text.find(['=', ' ']).unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        let known = KNOWN.iter().find(|(name, _)| name.eq_ignore_ascii_case(word));
        let Some((_, what)) = known else {
            let names: Vec<&str> = KNOWN.iter().map(|(name, _)| *name).collect();
            return Err(format!("'{word}' is no instruction: use one of {}", names.join(", ")));
        };
        let value = rest.get(1..).unwrap_or_default().trim().to_owned();
        let change = Self { what: *what, value };
        // Whatever is wrong with it shows without an image, too.
        change.apply(&mut Running::default())?;
        Ok(change)
    }

    /// Makes the change.
    ///
    /// # Errors
    /// A reason, when the value makes no sense for it.
    pub fn apply(&self, config: &mut Running) -> Result<(), String> {
        let value = self.value.as_str();
        let given = || (!value.is_empty()).then(|| value.to_owned());
        match self.what {
            What::Cmd => config.cmd = words(value)?,
            What::Entrypoint => {
                config.entrypoint = words(value)?;
                // As in a Dockerfile: the command was meant for the other one.
                config.cmd = None;
            }
            What::Env => {
                let (name, value) = pair(value)
                    .ok_or_else(|| format!("'{value}' is no variable: use ENV NAME=VALUE"))?;
                let env = config.env.get_or_insert_default();
                let is_it = |text: &String| text.split('=').next() == Some(name);
                let text = format!("{name}={value}");
                match env.iter_mut().find(|text| is_it(text)) {
                    Some(there) => *there = text,
                    None => env.push(text),
                }
            }
            What::Label => {
                let (name, value) = pair(value)
                    .ok_or_else(|| format!("'{value}' is no label: use LABEL NAME=VALUE"))?;
                config.labels.get_or_insert_default().insert(name.to_owned(), value.to_owned());
            }
            What::Expose => {
                for port in value.split_whitespace() {
                    super::config::ports(port)
                        .ok_or_else(|| format!("'{port}' names no port of TCP or UDP"))?;
                    config.exposed_ports.get_or_insert_default().insert(port.to_owned(), json!({}));
                }
                given().ok_or("EXPOSE needs a port, as in EXPOSE 80/tcp")?;
            }
            What::Volume => {
                let paths = words(value)?.ok_or("VOLUME needs a path")?;
                let paths = if value.starts_with('[') { paths } else { vec![value.to_owned()] };
                for path in paths {
                    super::config::inside(&path)
                        .filter(|path| path.parent().is_some())
                        .ok_or_else(|| {
                            format!("'{path}' is no absolute path in the container without '..'")
                        })?;
                    config.volumes.get_or_insert_default().insert(path, json!({}));
                }
            }
            What::Workdir => {
                super::config::inside(value).ok_or_else(|| {
                    format!("'{value}' is no absolute path in the container without '..'")
                })?;
                config.working_dir = given();
            }
            What::StopSignal => config.stop_signal = given(),
            What::User => config.user = given(),
        }
        Ok(())
    }
}

/// `NAME=VALUE`, or `NAME VALUE`; the value may stand in quotes.
fn pair(text: &str) -> Option<(&str, &str)> {
    let (name, value) = text.split_once(['=', ' '])?;
    let bare = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    (!name.is_empty()).then_some((name, bare.unwrap_or(value)))
}

/// A JSON array, or a command for the shell; `None` when empty.
fn words(text: &str) -> Result<Option<Vec<String>>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    if text.starts_with('[') {
        let words: Vec<String> = serde_json::from_str(text)
            .map_err(|error| format!("'{text}' is no array of strings: {error}"))?;
        return Ok(Some(words).filter(|words| !words.is_empty()));
    }
    Ok(Some(["/bin/sh", "-c", text].map(str::to_owned).to_vec()))
}

/// What other engines wrote into a configuration that is not of an image, but of the
/// container that it was made of.
pub fn forget_origin(more: &mut std::collections::BTreeMap<String, Value>) {
    for key in ["container", "container_config", "docker_version", "id", "parent"] {
        more.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(changes: &[&str]) -> Running {
        let mut config = Running {
            cmd: Some(vec!["old".into()]),
            env: Some(vec!["A=1".into(), "B=2".into()]),
            ..Running::default()
        };
        for change in changes {
            Change::parse(change).unwrap().apply(&mut config).unwrap();
        }
        config
    }

    #[test]
    fn every_instruction_is_understood() {
        let got = changed(&[
            "ENTRYPOINT=[\"/e\"]",
            "CMD [\"a\", \"b\"]",
            "ENV=A=x=y",
            "env C \"d e\"",
            "EXPOSE 80 53/udp",
            "LABEL=k=v",
            "STOPSIGNAL SIGINT",
            "USER=u:g",
            "VOLUME /data",
            "WORKDIR=/w",
        ]);
        assert_eq!(got.entrypoint.unwrap(), ["/e"]);
        assert_eq!(got.cmd.unwrap(), ["a", "b"]);
        assert_eq!(got.env.unwrap(), ["A=x=y", "B=2", "C=d e"]);
        let ports: Vec<_> = got.exposed_ports.unwrap().into_keys().collect();
        assert_eq!(ports, ["53/udp", "80"]);
        assert_eq!(got.labels.unwrap()["k"], "v");
        assert_eq!(got.stop_signal.as_deref(), Some("SIGINT"));
        assert_eq!(got.user.as_deref(), Some("u:g"));
        assert!(got.volumes.unwrap().contains_key("/data"));
        assert_eq!(got.working_dir.as_deref(), Some("/w"));
    }

    #[test]
    fn a_command_without_brackets_is_the_shells() {
        assert_eq!(changed(&["CMD echo hi"]).cmd.unwrap(), ["/bin/sh", "-c", "echo hi"]);
        assert_eq!(changed(&["CMD="]).cmd, None);
        assert_eq!(changed(&["ENTRYPOINT []"]).entrypoint, None);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "RUN x",
            "ENV",
            "ENV x",
            "LABEL =v",
            "EXPOSE",
            "EXPOSE http",
            "WORKDIR w",
            "WORKDIR /a/../b",
            "VOLUME",
            "VOLUME /",
            "CMD [1]",
            "CMD [\"a\"",
        ] {
            assert!(Change::parse(text).is_err(), "{text}");
        }
    }
}
