//! Where the guest may connect to: an ordered list of rules.
//!
//! # Theory of operation
//!
//! The first rule that matches decides, then the default. What is denied is refused at
//! once, counted by rule and told to whoever asks ([`Egress::poll_denied`]), each
//! destination once in [`TOLD_AGAIN`], and [`TOLD_MAX`] of them at most.
//!
//! A rule may name hosts. An address has the names that our own name server has given
//! it for, to this guest, for as long as the answer's time to live (at least
//! [`PIN_MIN`], since a guest takes a moment to connect). So a name in a rule means
//! what the guest was told, never what somebody else says about an address.
//!
//! A question for a name is judged by what could become of its answer: the first rule
//! for that name that allows something, or denies everything, decides. Rules for
//! addresses alone say nothing about names. Reverse look-ups are names as well.
//!
//! All stacks of a guest share one policy and one table of names, behind a lock: it is
//! taken once for a connection, a datagram or an answer, and only when there is a
//! policy. Connections that exist outlive a change of the policy.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long an address has a name at least.
const PIN_MIN: Duration = Duration::from_secs(5);
/// Addresses with names at most.
const PINS_MAX: usize = 8192;
/// Names of one address at most; the one that ends first makes room.
const NAMES_MAX: usize = 32;
/// How long a denial is not told again.
const TOLD_AGAIN: Duration = Duration::from_secs(60);
/// Denials told in that time, and waiting to be told, at most: a guest must not fill
/// somebody's disk with lines.
const TOLD_MAX: usize = 1024;
const DENIED_MAX: usize = 64;

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Let through.
    Allow,
    /// Refuse.
    Deny,
}

/// What a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP connections.
    Tcp,
    /// UDP datagrams.
    Udp,
    /// ICMP and ICMPv6 echo requests, which have no port.
    Icmp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Icmp => "icmp",
        })
    }
}

/// A destination in a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A network: address and prefix length in bits.
    Net(IpAddr, u8),
    /// A host's name, in small letters.
    Name(String),
    /// All names below this one, and not this one: `*.` and the name, in small letters.
    Below(String),
}

impl Target {
    fn has_address(&self, ip: IpAddr) -> bool {
        let Target::Net(net, prefix) = *self else { return false };
        let (net, ip, bits) = match (net, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (u32::from(a).into(), u32::from(b).into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a), u128::from(b), 128),
            _ => return false,
        };
        let rest = bits - u32::from(prefix).min(bits);
        rest == 128 || net >> rest == ip >> rest
    }

    fn has_name(&self, name: &str) -> bool {
        match self {
            Target::Net(..) => false,
            Target::Name(this) => this == name,
            Target::Below(this) => {
                name.strip_suffix(this.as_str()).is_some_and(|rest| rest.ends_with('.'))
            }
        }
    }
}

/// One rule. An empty list is no condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What becomes of what matches.
    pub action: Action,
    /// Where to: one of these.
    pub to: Vec<Target>,
    /// Ports: in one of these. A rule with ports does not match ICMP.
    pub ports: Vec<RangeInclusive<u16>>,
    /// Protocols: one of these.
    pub protocols: Vec<Protocol>,
}

impl Rule {
    fn matches(&self, protocol: Protocol, to: SocketAddr, names: &[String]) -> bool {
        (self.protocols.is_empty() || self.protocols.contains(&protocol))
            && (self.ports.is_empty()
                || protocol != Protocol::Icmp
                    && self.ports.iter().any(|ports| ports.contains(&to.port())))
            && (self.to.is_empty()
                || self.to.iter().any(|target| {
                    target.has_address(to.ip()) || names.iter().any(|name| target.has_name(name))
                }))
    }

    /// What it says about questions for `name`; None when nothing.
    fn about(&self, name: &str) -> Option<Action> {
        let whole = self.ports.is_empty() && self.protocols.is_empty();
        let named = self.to.is_empty() || self.to.iter().any(|target| target.has_name(name));
        (named && (whole || self.action == Action::Allow)).then_some(self.action)
    }
}

/// Rules in their order, and what holds when none matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// In order; the first that matches decides.
    pub rules: Vec<Rule>,
    /// When none does.
    pub default: Action,
}

/// Something that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// What was tried.
    pub tried: Tried,
    /// The rule that says so, counted from 1; None for the default.
    pub rule: Option<usize>,
}

/// What was tried.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Tried {
    /// To send something.
    Send(Protocol, SocketAddr),
    /// To look a name up.
    Name(String),
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tried {
            Tried::Send(Protocol::Icmp, to) => write!(f, "denied icmp to {}", to.ip())?,
            Tried::Send(protocol, to) => write!(f, "denied {protocol} to {to}")?,
            Tried::Name(name) => write!(f, "denied the name {name:?}")?,
        }
        match self.rule {
            Some(rule) => write!(f, " (rule {rule})"),
            None => f.write_str(" (default)"),
        }
    }
}

/// How often each rule decided, in their order, and at last the default.
pub type Hits = Vec<u64>;

/// The policy of a guest, shared by its stacks.
#[derive(Debug, Clone)]
pub struct Egress(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    policy: Policy,
    hits: Hits,
    names: HashMap<IpAddr, Vec<(String, Duration)>>,
    told: HashMap<Tried, Duration>,
    /// Nothing more is told before.
    told_again: Duration,
    denied: VecDeque<Denied>,
}

impl Egress {
    /// With a policy, and no names yet.
    #[must_use]
    pub fn new(policy: Policy) -> Egress {
        let hits = vec![0; policy.rules.len() + 1];
        let state = State {
            policy,
            hits,
            names: HashMap::new(),
            told: HashMap::new(),
            told_again: Duration::ZERO,
            denied: VecDeque::new(),
        };
        Egress(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is complete when the lock is given back.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts another policy in place. Counts begin anew; names are kept.
    pub fn replace(&self, policy: Policy) {
        let mut state = self.state();
        state.hits = vec![0; policy.rules.len() + 1];
        state.told.clear();
        state.told_again = Duration::ZERO;
        state.policy = policy;
    }

    /// Whether the guest may send to `to`, an address as the guest knows it.
    pub fn allows(&self, now: Duration, protocol: Protocol, to: SocketAddr) -> bool {
        let mut state = self.state();
        let names: Vec<String> = state
            .names
            .get(&to.ip())
            .into_iter()
            .flatten()
            .filter(|(_, end)| *end > now)
            .map(|(name, _)| name.clone())
            .collect();
        let rules = &state.policy.rules;
        let rule = rules.iter().position(|rule| rule.matches(protocol, to, &names));
        let action = rule.map_or(state.policy.default, |rule| rules[rule].action);
        // A flow of datagrams to ports of one host is told once a port.
        state.decided(now, rule, action, Tried::Send(protocol, to))
    }

    /// Whether the guest may ask for `name`, in small letters.
    pub fn allows_name(&self, now: Duration, name: &str) -> bool {
        let mut state = self.state();
        let mut said = state.policy.rules.iter().map(|rule| rule.about(name));
        let rule = said.position(|action| action.is_some());
        let action = rule.map_or(state.policy.default, |rule| state.policy.rules[rule].action);
        state.decided(now, rule, action, Tried::Name(name.to_owned()))
    }

    /// The guest was told that `name`, in small letters, has this address for `ttl`
    /// seconds.
    pub fn pin(&self, now: Duration, name: &str, addr: IpAddr, ttl: u32) {
        let mut state = self.state();
        if state.names.len() >= PINS_MAX && !state.names.contains_key(&addr) {
            state.names.retain(|_, names| names.iter().any(|(_, end)| *end > now));
            if state.names.len() >= PINS_MAX {
                // All are in use: whoever is displaced asks again.
                let victim = state.names.keys().next().copied();
                victim.and_then(|victim| state.names.remove(&victim));
            }
        }
        let end = now + Duration::from_secs(ttl.into()).max(PIN_MIN);
        let names = state.names.entry(addr).or_default();
        match names.iter_mut().find(|(known, _)| known == name) {
            Some((_, until)) => *until = end.max(*until),
            None => {
                names.retain(|(_, end)| *end > now);
                if names.len() >= NAMES_MAX
                    && let Some(first) = (0..names.len()).min_by_key(|&at| names[at].1)
                {
                    names.swap_remove(first);
                }
                names.push((name.to_owned(), end));
            }
        }
    }

    /// The next thing that was refused, to be told to the user.
    pub fn poll_denied(&self) -> Option<Denied> {
        self.state().denied.pop_front()
    }

    /// How often each rule decided.
    #[must_use]
    pub fn hits(&self) -> Hits {
        self.state().hits.clone()
    }
}

impl State {
    fn decided(
        &mut self,
        now: Duration,
        rule: Option<usize>,
        action: Action,
        tried: Tried,
    ) -> bool {
        let last = self.hits.len() - 1;
        self.hits[rule.unwrap_or(last)] += 1;
        if action == Action::Allow {
            return true;
        }
        if now >= self.told_again
            && self.told.get(&tried).is_none_or(|at| *at + TOLD_AGAIN <= now)
            && self.denied.len() < DENIED_MAX
        {
            self.told.insert(tried.clone(), now);
            if self.told.len() >= TOLD_MAX {
                self.told.retain(|_, at| *at + TOLD_AGAIN > now);
                if self.told.len() >= TOLD_MAX {
                    let first = self.told.values().min().copied().unwrap_or(now);
                    self.told_again = first + TOLD_AGAIN;
                }
            }
            self.denied.push_back(Denied { tried, rule: rule.map(|rule| rule + 1) });
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::parse;

    const NOW: Duration = Duration::from_secs(100);

    fn egress(text: &str) -> Egress {
        Egress::new(parse(text).unwrap())
    }

    fn tcp(egress: &Egress, to: &str) -> bool {
        egress.allows(NOW, Protocol::Tcp, to.parse().unwrap())
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let e = egress(
            "default = 'deny'\n\
             [[rule]]\naction = 'deny'\nto = ['192.0.2.128/25']\nport = [80]\n\
             [[rule]]\naction = 'allow'\nto = ['192.0.2.0/24', '2001:db8::/32']\n\
             port = ['79-81', 443]\nprotocol = ['tcp']\n\
             [[rule]]\naction = 'allow'\nprotocol = ['icmp']\n",
        );
        for (to, allowed) in [
            ("192.0.2.1:80", true),
            ("192.0.2.127:79", true),
            ("192.0.2.200:80", false),
            ("192.0.2.200:443", true),
            ("192.0.2.1:82", false),
            ("192.0.3.1:80", false),
            ("[2001:db8:1::1]:81", true),
            ("[2001:db9::1]:81", false),
        ] {
            assert_eq!(tcp(&e, to), allowed, "{to}");
        }
        assert!(!e.allows(NOW, Protocol::Udp, "192.0.2.1:80".parse().unwrap()));
        assert!(e.allows(NOW, Protocol::Icmp, "198.51.100.1:0".parse().unwrap()));
        assert_eq!(e.hits(), [1, 4, 1, 4]);
        assert!(egress("default = 'allow'").allows(NOW, Protocol::Udp, "[::]:1".parse().unwrap()));
        let all = egress("default = 'deny'\n[[rule]]\naction='allow'\nto=['::/0','0.0.0.0/0']");
        assert!(tcp(&all, "[2001::1]:1") && tcp(&all, "1.2.3.4:5"));
    }

    #[test]
    fn a_name_means_what_the_guest_was_told_for_as_long_as_it_holds() {
        let e = egress(
            "default = 'deny'\n[[rule]]\naction = 'allow'\n\
             to = ['Example.org', '*.example.net.']\nport = [443]\n",
        );
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(!tcp(&e, "192.0.2.1:443"), "nobody has asked");
        e.pin(NOW, "example.org", ip("192.0.2.1"), 60);
        e.pin(NOW, "a.example.org", ip("192.0.2.2"), 60);
        e.pin(NOW, "a.b.example.net", ip("192.0.2.3"), 0);
        e.pin(NOW, "example.net", ip("192.0.2.4"), 60);
        e.pin(NOW, "evilexample.net", ip("192.0.2.5"), 60);
        for (last, allowed) in [(1, true), (2, false), (3, true), (4, false), (5, false)] {
            assert_eq!(tcp(&e, &format!("192.0.2.{last}:443")), allowed, "{last}");
        }
        assert!(!tcp(&e, "192.0.2.1:80"));
        let later = |s| NOW + Duration::from_secs(s);
        let at = |now, to: &str| e.allows(now, Protocol::Tcp, to.parse().unwrap());
        assert!(at(later(4), "192.0.2.3:443") && !at(later(5), "192.0.2.3:443"));
        assert!(at(later(59), "192.0.2.1:443") && !at(later(60), "192.0.2.1:443"));
        e.pin(later(50), "example.org", ip("192.0.2.1"), 60);
        assert!(at(later(109), "192.0.2.1:443"));
    }

    #[test]
    fn questions_are_judged_by_what_could_become_of_the_answer() {
        let e = egress(
            "default = 'deny'\n\
             [[rule]]\naction = 'deny'\nto = ['a.example.org']\nport = [25]\n\
             [[rule]]\naction = 'deny'\nto = ['b.example.org']\n\
             [[rule]]\naction = 'allow'\nto = ['*.example.org', '192.0.2.0/24']\nport = [443]\n",
        );
        for (name, allowed) in [
            ("a.example.org", true),
            ("b.example.org", false),
            ("c.example.org", true),
            ("example.org", false),
            ("1.2.0.192.in-addr.arpa", false),
        ] {
            assert_eq!(e.allows_name(NOW, name), allowed, "{name}");
        }
        let any = egress("default = 'deny'\n[[rule]]\naction='allow'\nport = [443]");
        assert!(any.allows_name(NOW, "x.example"));
    }

    #[test]
    fn denials_are_told_once_a_minute_and_are_bounded() {
        let e = egress("default = 'deny'\n[[rule]]\naction = 'deny'\nto = ['192.0.2.1']");
        for _ in 0..3 {
            assert!(!tcp(&e, "192.0.2.1:25"));
        }
        assert_eq!(e.poll_denied().unwrap().to_string(), "denied tcp to 192.0.2.1:25 (rule 1)");
        assert_eq!(e.poll_denied(), None);
        e.allows(NOW + TOLD_AGAIN, Protocol::Tcp, "192.0.2.1:25".parse().unwrap());
        assert!(e.poll_denied().is_some());
        e.allows_name(NOW, "a.example");
        assert_eq!(e.poll_denied().unwrap().to_string(), "denied the name \"a.example\" (default)");
        let flood = |now| {
            let mut told = 0;
            for port in 0..5000 {
                e.allows(now, Protocol::Udp, SocketAddr::from(([1, 2, 3, 4], port)));
                told += usize::from(e.poll_denied().is_some());
            }
            told
        };
        let later = NOW + TOLD_AGAIN * 2;
        assert_eq!((flood(later), flood(later)), (TOLD_MAX, 0));
        assert_eq!(flood(later + TOLD_AGAIN - Duration::from_secs(1)), 0);
        assert_eq!(flood(later + TOLD_AGAIN), TOLD_MAX, "the next minute");
        for port in 0..5000 {
            e.allows(later * 2, Protocol::Udp, SocketAddr::from(([1, 2, 3, 4], port)));
        }
        assert!(e.state().told.len() <= TOLD_MAX && e.state().denied.len() <= DENIED_MAX);
    }

    #[test]
    fn names_are_bounded() {
        let e = egress("default = 'deny'");
        for n in 0..PINS_MAX as u32 + 10 {
            e.pin(NOW, "a", IpAddr::from(n.to_be_bytes()), 60);
        }
        assert_eq!(e.state().names.len(), PINS_MAX);
        let one = IpAddr::from([9, 9, 9, 9]);
        for n in 0..100 {
            e.pin(NOW, &n.to_string(), one, 60 + n);
        }
        let state = e.state();
        assert_eq!(state.names[&one].len(), NAMES_MAX);
        assert!(state.names[&one].iter().any(|(name, _)| name == "99"));
    }

    #[test]
    fn another_policy_applies_at_once() {
        let e = egress("default = 'deny'");
        assert!(!tcp(&e, "192.0.2.1:25"));
        e.replace(parse("default = 'allow'").unwrap());
        assert!(tcp(&e, "192.0.2.1:25"));
        assert_eq!(e.hits(), [1]);
    }
}
