//! One file that says what a container may do (`--policy`): TOML → [`Profile`]. Pure.
//!
//! ```toml
//! [capabilities]                        # of its root, besides the usual ones
//! add = []
//! drop = ["CHOWN"]
//!
//! [syscalls]                            # refused besides those that always are
//! deny = ["ptrace"]
//!
//! [files]                               # nothing else, but /dev and /proc
//! required = true                       # no container where it cannot be enforced
//! read = ["/"]
//! write = ["/var", "/tmp"]
//! execute = ["/usr", "/bin"]
//!
//! [network]
//! required = true
//! listen = [8080]                       # TCP; an empty list: none
//! connect = [443]
//!
//! [network.egress]                      # as netstack's --policy
//! default = "deny"
//! [[network.egress.rule]]
//! action = "allow"
//! to = ["example.org"]
//! ```
//!
//! What is left out is as it would be without the file.

use std::path::{Component, PathBuf};

use libseccomp::ScmpSyscall;
use serde::Deserialize;

use super::destination;
use super::landlock::{Access, Beneath};
use crate::spec::{Files, Ports, Security};

/// Rules of netstack's policy at most.
const RULES: usize = 1024;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    capabilities: Capabilities,
    syscalls: Syscalls,
    files: Option<FileRules>,
    network: Network,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Capabilities {
    add: Vec<String>,
    drop: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Syscalls {
    deny: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileRules {
    required: bool,
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
    execute: Vec<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Network {
    required: bool,
    listen: Option<Vec<u16>>,
    connect: Option<Vec<u16>>,
    egress: Option<Egress>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Egress {
    default: Verb,
    #[serde(default)]
    rule: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    action: Verb,
    to: Option<Vec<String>>,
    port: Option<Vec<Port>>,
    protocol: Option<Vec<Protocol>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Verb {
    Allow,
    Deny,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Port {
    One(u16),
    Range(String),
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Protocol {
    Tcp,
    Udp,
    Icmp,
}

/// What a file says, understood.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// Names of capabilities to add.
    pub add: Vec<String>,
    /// Names of capabilities to drop.
    pub drop: Vec<String>,
    deny: Vec<String>,
    files: Option<Files>,
    ports: Ports,
    egress: Option<String>,
}

/// Reads a profile.
///
/// # Errors
/// What is wrong, on one line, with its number where the text is no TOML or has other
/// keys or values.
pub fn parse(text: &str) -> Result<Profile, String> {
    let file: File = toml::from_str(text).map_err(|error| {
        let message = error.message().replace('\n', ", ");
        match error.span().and_then(|span| text.get(..span.start)) {
            Some(before) => format!("line {}: {message}", before.matches('\n').count() + 1),
            None => message,
        }
    })?;
    super::merge_capabilities(&file.capabilities.add, &file.capabilities.drop)
        .map_err(|why| format!("capabilities: {why}"))?;
    for call in &file.syscalls.deny {
        ScmpSyscall::from_name(call)
            .map_err(|_| format!("syscalls.deny: '{call}' is no system call that is known here"))?;
    }
    Ok(Profile {
        add: file.capabilities.add,
        drop: file.capabilities.drop,
        deny: file.syscalls.deny,
        files: file.files.map(files).transpose()?,
        ports: Ports {
            required: file.network.required,
            listen: file.network.listen,
            connect: file.network.connect,
        },
        egress: file.network.egress.as_ref().map(egress).transpose()?,
    })
}

impl Profile {
    /// Adds all but capabilities to what is asked for.
    pub fn apply(self, security: &mut Security) {
        security.deny = self.deny;
        security.files = self.files;
        security.ports = self.ports;
        security.egress = self.egress;
    }
}

fn files(rules: FileRules) -> Result<Files, String> {
    let mut beneath: Vec<Beneath> = Vec::new();
    let nothing = Access { read: false, write: false, execute: false };
    for (key, paths, access) in [
        ("read", rules.read, Access { read: true, ..nothing }),
        ("write", rules.write, Access { write: true, read: true, ..nothing }),
        ("execute", rules.execute, Access { execute: true, read: true, ..nothing }),
    ] {
        for path in paths {
            let plain = path.is_absolute() && !path.components().any(|c| c == Component::ParentDir);
            if !plain {
                let path = path.display();
                return Err(format!("files.{key}: '{path}' must be absolute, without '..'"));
            }
            match beneath.iter_mut().find(|rule| rule.path == path) {
                Some(rule) => rule.access = rule.access.and(access),
                None => beneath.push(Beneath { path, access }),
            }
        }
    }
    Ok(Files { required: rules.required, beneath })
}

/// The rules as netstack reads them.
fn egress(egress: &Egress) -> Result<String, String> {
    if egress.rule.len() > RULES {
        return Err(format!("network.egress: more than {RULES} rules"));
    }
    let verb = |verb| if verb == Verb::Allow { "allow" } else { "deny" };
    let mut text = format!("default = \"{}\"\n", verb(egress.default));
    for (index, rule) in egress.rule.iter().enumerate() {
        let what = |key, why: String| format!("network.egress.rule {}: {key} {why}", index + 1);
        let list = |key, values: Vec<String>| {
            if values.is_empty() {
                return Err(what(key, "is empty; leave it out to mean all".to_owned()));
            }
            Ok(format!("{key} = [{}]\n", values.join(", ")))
        };
        let quoted = |key, value: &String, check: fn(&str) -> Result<(), String>| {
            // What addresses, names and ranges are made of needs no escapes.
            let plain = |b: u8| b.is_ascii_alphanumeric() || b".:*/_-".contains(&b);
            if value.is_empty() || !value.bytes().all(plain) {
                return Err(what(key, format!("{value:?} is neither a network nor a name")));
            }
            check(value).map_err(|why| what(key, why))?;
            Ok(format!("\"{value}\""))
        };
        text += &format!("[[rule]]\naction = \"{}\"\n", verb(rule.action));
        if let Some(to) = &rule.to {
            let to = to.iter().map(|to| quoted("to", to, destination::network_or_name));
            text += &list("to", to.collect::<Result<_, _>>()?)?;
        }
        if let Some(ports) = &rule.port {
            let ports = ports.iter().map(|port| match port {
                Port::One(port) => Ok(port.to_string()),
                Port::Range(range) => quoted("port", range, destination::ports),
            });
            text += &list("port", ports.collect::<Result<_, _>>()?)?;
        }
        if let Some(protocols) = &rule.protocol {
            let names = protocols.iter().map(|protocol| match protocol {
                Protocol::Tcp => "\"tcp\"".to_owned(),
                Protocol::Udp => "\"udp\"".to_owned(),
                Protocol::Icmp => "\"icmp\"".to_owned(),
            });
            text += &list("protocol", names.collect())?;
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn everything_is_read() {
        let text = "[capabilities]\nadd = ['NET_RAW']\ndrop = ['chown']\n\
                    [syscalls]\ndeny = ['ptrace']\n\
                    [files]\nrequired = true\nread = ['/']\nwrite = ['/tmp', '/']\nexecute = ['/usr']\n\
                    [network]\nlisten = []\nconnect = [443, 80]\n\
                    [network.egress]\ndefault = 'deny'\n[[network.egress.rule]]\naction = 'allow'\n\
                    to = ['*.example.org', '10.0.0.0/8']\nport = [443, '1-2']\nprotocol = ['tcp']\n";
        let profile = parse(text).unwrap();
        let mut security = Security::default();
        assert_eq!((profile.add.len(), profile.drop.len()), (1, 1));
        profile.apply(&mut security);
        assert_eq!(security.deny, ["ptrace"]);
        let files = security.files.unwrap();
        assert!(files.required && files.beneath.len() == 3);
        let root = Access { read: true, write: true, execute: false };
        assert_eq!(files.beneath[0], Beneath { path: "/".into(), access: root });
        assert_eq!(security.ports.listen, Some(vec![]));
        assert_eq!(security.ports.connect, Some(vec![443, 80]));
        assert_eq!(
            security.egress.unwrap(),
            "default = \"deny\"\n[[rule]]\naction = \"allow\"\nto = [\"*.example.org\", \"10.0.0.0/8\"]\n\
             port = [443, \"1-2\"]\nprotocol = [\"tcp\"]\n"
        );
        assert_eq!(parse("").unwrap(), Profile::default());
    }

    #[test]
    fn a_bad_profile_says_what_and_where() {
        let rule = |rest: &str| {
            format!(
                "[network.egress]\ndefault='deny'\n[[network.egress.rule]]\naction='deny'\n{rest}\n"
            )
        };
        for (text, words) in [
            ("[".to_owned(), "line 1"),
            ("\n[file]\n".into(), "line 2"),
            ("[files]\nreads = []".into(), "line 2"),
            ("[files]\nread = '/'".into(), "line 2"),
            ("[files]\nread = ['usr']".into(), "files.read: 'usr'"),
            ("[files]\nwrite = ['/a/../b']".into(), "files.write"),
            ("[capabilities]\nadd = ['FLY']".into(), "'FLY'"),
            ("[syscalls]\ndeny = ['fly']".into(), "'fly'"),
            ("[network]\nlisten = [70000]".into(), "line 2"),
            ("[network.egress]\n".into(), "default"),
            (rule("to = []"), "rule 1: to is empty"),
            (rule("to = ['a\"b']"), "neither"),
            (rule("to = ['192.0.2.1/24']"), "rule 1: to \"192.0.2.1/24\" has bits set"),
            (rule("to = ['a.org', '1.2.3']"), "rule 1: to \"1.2.3\" is neither"),
            (rule("port = ['9-8']"), "rule 1: port \"9-8\" ends before"),
            (rule("port = ['1\n2']"), "line"),
            (rule("protocol = ['sctp']"), "line 5"),
            (rule("host = ['a']"), "line 5"),
        ] {
            let why = parse(&text).unwrap_err();
            assert!(why.contains(words) && !why.contains('\n'), "{text}: {why}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_is_read_or_refused(text in "[a-z0-9.*:/='\"\\[\\]\\n -]{0,200}") {
            parse(&text).ok();
        }

        #[test]
        fn what_goes_to_netstack_is_toml(to in "\\PC{0,20}") {
            let value = toml::Value::String(to);
            let text = format!(
                "[network.egress]\ndefault='deny'\n[[network.egress.rule]]\naction='allow'\nto=[{}]\n",
                format_args!("{:?}", value.as_str().unwrap())
            );
            if let Ok(profile) = parse(&text) {
                let written: toml::Table = profile.egress.unwrap().parse().unwrap();
                prop_assert_eq!(&written["rule"][0]["to"][0], &value);
            }
        }
    }
}
