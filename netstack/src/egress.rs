//! The file that says where the guest may connect to (`--policy`): TOML → [`Policy`].
//!
//! ```toml
//! default = "deny"                      # or "allow"; must be there
//!
//! [[rule]]                              # in order; the first that matches decides
//! action = "allow"                      # or "deny"
//! to = ["192.0.2.0/24", "2001:db8::1", "example.org", "*.example.org"]
//! port = [443, "8000-8100"]
//! protocol = ["tcp"]                    # "tcp", "udp", "icmp"
//! ```
//!
//! A rule without `to`, `port` or `protocol` is for all of them. What a rule means is
//! [`crate::stack::egress`]'s.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use serde::Deserialize;

use crate::stack::egress::{Action, Policy, Protocol, Rule, Target};

/// Rules of a policy at most.
const RULES_MAX: usize = 1024;

/// Why a text is no policy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no TOML, or has other keys.
    #[error("{0}")]
    Toml(String),
    /// A value of a rule.
    #[error("rule {rule}: {why}")]
    Rule {
        /// Which, counted from 1.
        rule: usize,
        /// What is wrong.
        why: String,
    },
    /// More rules than are looked through for every connection.
    #[error("more than {RULES_MAX} rules")]
    TooMany,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    default: Verb,
    #[serde(default)]
    rule: Vec<FileRule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRule {
    action: Verb,
    to: Option<Vec<String>>,
    port: Option<Vec<Port>>,
    protocol: Option<Vec<Name>>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
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
enum Name {
    Tcp,
    Udp,
    Icmp,
}

/// Reads a policy.
///
/// # Errors
/// It is no TOML, has a key that is not known, or a value that means nothing; says
/// where.
pub fn parse(text: &str) -> Result<Policy, Error> {
    let file: File = toml::from_str(text).map_err(|error| Error::Toml(at(text, &error)))?;
    if file.rule.len() > RULES_MAX {
        return Err(Error::TooMany);
    }
    let rules =
        file.rule.into_iter().enumerate().map(|(index, rule)| {
            self::rule(rule).map_err(|why| Error::Rule { rule: index + 1, why })
        });
    Ok(Policy { rules: rules.collect::<Result<_, _>>()?, default: file.default.into() })
}

/// On one line, with the line's number.
fn at(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().replace('\n', ", ");
    match error.span().and_then(|span| text.get(..span.start)) {
        Some(before) => format!("line {}: {message}", before.matches('\n').count() + 1),
        None => message,
    }
}

impl From<Verb> for Action {
    fn from(verb: Verb) -> Action {
        match verb {
            Verb::Allow => Action::Allow,
            Verb::Deny => Action::Deny,
        }
    }
}

fn rule(rule: FileRule) -> Result<Rule, String> {
    // An empty list would match nothing, or everything: nobody means it.
    let given = |is_empty: bool, key: &str| {
        if is_empty { Err(format!("{key} is empty; leave it out to mean all")) } else { Ok(()) }
    };
    given(rule.to.as_ref().is_some_and(Vec::is_empty), "to")?;
    given(rule.port.as_ref().is_some_and(Vec::is_empty), "port")?;
    given(rule.protocol.as_ref().is_some_and(Vec::is_empty), "protocol")?;
    let protocols = rule.protocol.unwrap_or_default().into_iter().map(|name| match name {
        Name::Tcp => Protocol::Tcp,
        Name::Udp => Protocol::Udp,
        Name::Icmp => Protocol::Icmp,
    });
    Ok(Rule {
        action: rule.action.into(),
        to: list(rule.to, |to| target(&to))?,
        ports: list(rule.port, ports)?,
        protocols: protocols.collect(),
    })
}

fn list<T, U>(
    values: Option<Vec<T>>,
    read: impl Fn(T) -> Result<U, String>,
) -> Result<Vec<U>, String> {
    values.unwrap_or_default().into_iter().map(read).collect()
}

fn ports(port: Port) -> Result<RangeInclusive<u16>, String> {
    let text = match port {
        Port::One(port) => return Ok(port..=port),
        Port::Range(text) => text,
    };
    let bad = || format!("port {text:?} is neither a port nor a range such as 8000-8100");
    let (first, last) = text.split_once('-').unwrap_or((&text, &text));
    let first: u16 = first.trim().parse().map_err(|_| bad())?;
    let last: u16 = last.trim().parse().map_err(|_| bad())?;
    if first > last {
        return Err(format!("port {text:?} ends before it begins"));
    }
    Ok(first..=last)
}

fn target(text: &str) -> Result<Target, String> {
    let (addr, prefix) = match text.split_once('/') {
        Some((addr, prefix)) => (addr, Some(prefix)),
        None => (text, None),
    };
    if let Ok(addr) = addr.parse::<IpAddr>() {
        let bits = if addr.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits,
            Some(prefix) => prefix
                .parse::<u8>()
                .ok()
                .filter(|prefix| *prefix <= bits)
                .ok_or_else(|| format!("{text:?}: the prefix must be from 0 to {bits}"))?,
        };
        let all = match addr {
            IpAddr::V4(v4) => u128::from(u32::from(v4)),
            IpAddr::V6(v6) => u128::from(v6),
        };
        let host = bits - prefix;
        let mask = 1u128.checked_shl(host.into()).map_or(u128::MAX, |bit| bit - 1);
        if all & mask != 0 {
            return Err(format!("{text:?} has bits set beyond the prefix"));
        }
        return Ok(Target::Net(addr, prefix));
    }
    let lower = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let (below, name) = match lower.strip_prefix("*.") {
        Some(name) => (true, name),
        None => (false, lower.as_str()),
    };
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    // Four numbers that are no address are a mistake, not a name.
    let numbers = name.split('.').all(|label| label.bytes().all(|b| b.is_ascii_digit()));
    if name.len() > 253 || numbers || !name.split('.').all(label) {
        return Err(format!("{text:?} is neither a network nor a name"));
    }
    Ok(if below { Target::Below(name.into()) } else { Target::Name(name.into()) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_policy_is_read() {
        let policy = parse(
            "default = 'deny'\n[[rule]]\naction = 'allow'\n\
             to = ['192.0.2.0/24', '2001:db8::1', 'Example.ORG.', '*.example.org']\n\
             port = [443, '8000-8100']\nprotocol = ['tcp', 'udp']\n",
        )
        .unwrap();
        assert_eq!(policy.default, Action::Deny);
        let rule = &policy.rules[0];
        assert_eq!(
            rule.to,
            [
                Target::Net("192.0.2.0".parse().unwrap(), 24),
                Target::Net("2001:db8::1".parse().unwrap(), 128),
                Target::Name("example.org".into()),
                Target::Below("example.org".into()),
            ]
        );
        assert_eq!(rule.ports, [443..=443, 8000..=8100]);
        assert_eq!(rule.protocols, [Protocol::Tcp, Protocol::Udp]);
    }

    #[test]
    fn a_bad_policy_says_what_and_where() {
        let rule = |rest: &str| format!("default='deny'\n[[rule]]\naction='deny'\n{rest}\n");
        for (text, words) in [
            ("".to_owned(), "default"),
            ("default = 'maybe'".into(), "line 1"),
            ("default = 'deny'\nrules = 1".into(), "line 2"),
            (rule("host = ['a']"), "host"),
            (rule("to = ['192.0.2.1/24']"), "beyond the prefix"),
            (rule("to = ['192.0.2.0/33']"), "0 to 32"),
            (rule("to = ['1.2.3.400']"), "neither"),
            (rule("to = ['a..b']"), "neither"),
            (rule("to = ['*']"), "neither"),
            (rule("to = ['a*.example']"), "neither"),
            (rule("to = []"), "leave it out"),
            (rule("port = ['9-8']"), "rule 1"),
            (rule("port = [70000]"), "line 4"),
            (rule("port = ['http']"), "neither"),
            (rule("protocol = ['sctp']"), "sctp"),
            ("default='deny'\n".to_owned() + &"[[rule]]\naction='deny'\n".repeat(1025), "1024"),
        ] {
            let why = parse(&text).unwrap_err().to_string();
            assert!(why.contains(words) && !why.contains('\n'), "{text}: {why}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_is_read_or_refused(text in "[a-z0-9.*:/='\\[\\]\\n -]{0,200}") {
            parse(&text).ok();
            target(&text).ok();
        }
    }
}
