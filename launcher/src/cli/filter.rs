//! `coracle ps --filter`.

use regex_automata::dfa::{dense, regex::Regex};
use regex_automata::util::syntax;

use super::ps;
use crate::spec::Root;
use crate::store::{State, Status};

/// One `--filter KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Filter {
    /// What its name matches.
    Name(Box<Pattern>),
    /// What it is at.
    Status(String),
    /// A label, and what it says.
    Label(String, Option<String>),
    /// How it has exited.
    Exited(u8),
    /// The image it is made of: a part of its name, or the beginning of its id.
    Ancestor(String),
    /// What its network is called.
    Network(String),
}

/// A regular expression, which holds where it matches anywhere.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    text: String,
    regex: Regex,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl Pattern {
    fn read(text: String) -> Result<Self, String> {
        /// Bytes that an expression may grow to: it is compiled, not tried.
        const MOST: usize = 4 << 20;
        // Names have no letters but those of ASCII.
        let syntax = syntax::Config::new().unicode(false).utf8(false);
        let dense =
            dense::Config::new().dfa_size_limit(Some(MOST)).determinize_size_limit(Some(MOST));
        match Regex::builder().syntax(syntax).dense(dense).build(&text) {
            Ok(regex) => Ok(Self { text, regex }),
            Err(error) => {
                let why = std::error::Error::source(&error)
                    .map_or_else(|| error.to_string(), |cause| cause.to_string());
                let why = why.lines().last().unwrap_or_default();
                Err(format!("'{text}' is no regular expression: {why}"))
            }
        }
    }
}

/// What a container can be at, as Podman and we call it.
const STATUSES: [&str; 6] = ["created", "starting", "running", "paused", "restarting", "exited"];

/// Reads `KEY=VALUE`.
pub(super) fn read(text: &str) -> Result<Filter, String> {
    let form = "use name=, id=, status=, label=, exited=, ancestor= or network=";
    let Some((key, value)) = text.split_once('=').filter(|(_, value)| !value.is_empty()) else {
        return Err(format!("'{text}' is no filter: {form}"));
    };
    let value = value.to_owned();
    Ok(match key {
        // A container's name is its id.
        "name" | "id" => Filter::Name(Box::new(Pattern::read(value)?)),
        "status" if STATUSES.contains(&value.as_str()) => Filter::Status(value),
        "status" if value == "stopped" => Filter::Status("exited".to_owned()),
        "status" => return Err(format!("'{value}' is none of {}", STATUSES.join(", "))),
        "label" => match value.split_once('=') {
            Some((label, said)) => Filter::Label(label.to_owned(), Some(said.to_owned())),
            None => Filter::Label(value, None),
        },
        "exited" => {
            let code = value.parse();
            Filter::Exited(code.map_err(|_| format!("'{value}' is no exit code, from 0 to 255"))?)
        }
        "ancestor" => Filter::Ancestor(value),
        "network" => Filter::Network(value),
        _ => return Err(format!("there is no filter '{key}': {form}")),
    })
}

impl Filter {
    fn holds(&self, name: &str, state: &State) -> bool {
        match self {
            Self::Name(pattern) => pattern.regex.is_match(name.as_bytes()),
            Self::Status(status) => ps::word(state) == status,
            Self::Label(label, said) => {
                let has = state.spec.labels.get(label);
                has.is_some_and(|has| said.as_ref().is_none_or(|said| said == has))
            }
            Self::Exited(code) => state.status == Status::Exited { code: *code },
            Self::Ancestor(wanted) => match &state.spec.root {
                Root::Image(image) => {
                    let id = image.id.split(':').next_back().unwrap_or_default();
                    image.name.contains(wanted.as_str())
                        || image.id == *wanted
                        || id.starts_with(wanted.as_str())
                }
                Root::Host | Root::Dir(_) => false,
            },
            Self::Network(network) => ps::network(state) == network,
        }
    }

    /// Whether the two are about the same, so that one of them is enough.
    fn is_like(&self, other: &Self) -> bool {
        // Labels are wanted all of them, as in Podman.
        std::mem::discriminant(self) == std::mem::discriminant(other)
            && !matches!(self, Self::Label(..))
    }
}

/// Whether a container passes: of several values of a key one must hold, of labels all.
pub(super) fn pass(filters: &[Filter], name: &str, state: &State) -> bool {
    filters.iter().all(|filter| {
        filter.holds(name, state)
            || filters.iter().any(|other| filter.is_like(other) && other.holds(name, state))
    })
}

/// Whether they ask for containers that do not run, too.
pub(super) fn wants_all(filters: &[Filter]) -> bool {
    filters.iter().any(|filter| matches!(filter, Filter::Status(_) | Filter::Exited(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::idmap::IdMap;

    fn state(status: Status) -> State {
        let text = r#"{"name":"boat","root":{"Image":{"name":"localhost/box:1","id":"sha256:abcd",
            "layers":[],"workdir":null,"volumes":[]}},"upper":"Own","read_only":false,
            "remove":false,"detach":false,"interactive":false,"tty":false,"env":{},"workdir":null,
            "user":null,"volumes":[],"hostname":null,"publish":[],"network":"None","command":[],
            "labels":{"a":"1","b":""}}"#;
        let map = IdMap::of_caller(1, 1, None, "", "");
        State { status, ..State::new(serde_json::from_str(text).unwrap(), map, 0) }
    }

    #[test]
    fn containers_pass_by_all_that_is_said() {
        let exited = state(Status::Exited { code: 3 });
        let passes = |texts: &[&str]| {
            let filters: Vec<_> = texts.iter().map(|text| read(text).unwrap()).collect();
            pass(&filters, "boat", &exited)
        };
        for (texts, is) in [
            (&[][..], true),
            (&["name=oa"], true),
            (&["name=ship"], false),
            (&["name=^bo[ab]t$"], true),
            (&["name=^oat"], false),
            (&["name=^(ship|boat)$"], true),
            (&["id=b.*t"], true),
            (&["name=\\bboat\\b"], true),
            (&["name=B(?i)OAT"], false),
            (&["name=(?i)BOAT"], true),
            (&["name=ship", "id=boat"], true),
            (&["status=exited"], true),
            (&["status=stopped"], true),
            (&["status=running"], false),
            (&["status=running", "status=exited"], true),
            (&["status=running", "name=boat"], false),
            (&["label=a"], true),
            (&["label=a=1"], true),
            (&["label=b="], true),
            (&["label=a=2"], false),
            (&["label=a", "label=c"], false),
            (&["exited=3"], true),
            (&["exited=0"], false),
            (&["ancestor=box"], true),
            (&["ancestor=abc"], true),
            (&["ancestor=sha256:abcd"], true),
            (&["ancestor=other"], false),
            (&["network=none"], true),
            (&["network=host"], false),
        ] {
            assert_eq!(passes(texts), is, "{texts:?}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for (text, word) in [
            ("", "''"),
            ("name", "'name'"),
            ("name=", "'name='"),
            ("colour=blue", "'colour'"),
            ("status=well", "'well'"),
            ("exited=256", "'256'"),
            ("name=a(b", "'a(b' is no regular expression: "),
            ("id=*", "'*' is no regular expression: "),
            // 2 to the power of 40 states.
            ("name=[ab]*a[ab]{40}", "is no regular expression: "),
        ] {
            assert!(read(text).unwrap_err().contains(word), "{text}");
        }
        assert!(wants_all(&[read("status=created").unwrap()]));
        assert!(!wants_all(&[read("name=a").unwrap()]));
    }
}
