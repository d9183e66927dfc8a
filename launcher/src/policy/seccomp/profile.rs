//! Profiles of system calls in the JSON form that Podman, Docker and others share
//! (containers-common's `seccomp.json`; the OCI runtime specification's
//! `linux.seccomp` is a subset of it).
//!
//! What is not understood is refused, never passed over: it may be a restriction. Calls
//! that this libseccomp has no number for are the exception: no profile could be used
//! otherwise, since each has calls of other architectures and newer kernels; what becomes
//! of them is the profile's default action.
//!
//! A call of an architecture that the profile does not name does not exist (ENOSYS).

use std::fmt;
use std::str::FromStr as _;

use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use nix::errno::Errno;
use serde::Deserialize;

use crate::policy::capability;

/// A profile, as it was written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Profile {
    default_action: Action,
    default_errno_ret: Option<u32>,
    default_errno: Option<String>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    arch_map: Option<Vec<ArchMap>>,
    #[serde(default)]
    flags: Option<Vec<String>>,
    #[serde(default)]
    listener_path: Option<String>,
    #[serde(default)]
    listener_metadata: Option<String>,
    #[serde(default)]
    syscalls: Option<Vec<Rule>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    name: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    action: Action,
    errno_ret: Option<u32>,
    errno: Option<String>,
    #[serde(default)]
    args: Option<Vec<Condition>>,
    #[serde(default, rename = "comment")]
    _comment: Option<String>,
    #[serde(default)]
    includes: Option<When>,
    #[serde(default)]
    excludes: Option<When>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct When {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    #[serde(default)]
    min_kernel: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Condition {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: Op,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Action {
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    #[serde(rename = "SCMP_ACT_KILL", alias = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    #[serde(rename = "SCMP_ACT_NOTIFY")]
    Notify,
}

#[derive(Debug, Clone, Copy, Deserialize)]
enum Op {
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterEqual,
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

/// The first two numbers of a kernel's release.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kernel(pub u32, pub u32);

impl Kernel {
    /// Reads `MAJOR.MINOR`, whatever comes after it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some(Self(numbers.next()?.ok()?, numbers.next()?.ok()?))
    }
}

/// Reads a profile.
///
/// # Errors
/// What is wrong, with line and column where the text is no JSON or has other keys.
pub fn parse(text: &str) -> Result<Profile, String> {
    let profile: Profile = serde_json::from_str(text).map_err(|error| error.to_string())?;
    profile.check()?;
    Ok(profile)
}

/// The machine, as profiles call it in conditions.
fn native_name() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Profile {
    fn check(&self) -> Result<(), String> {
        let listens = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        if listens(&self.listener_path) || listens(&self.listener_metadata) {
            return Err("listenerPath: coracle asks no listener about calls".to_owned());
        }
        for flag in self.flags.iter().flatten() {
            // One thread is all there is when the filter is loaded.
            if flag != "SECCOMP_FILTER_FLAG_TSYNC" {
                return Err(format!("the flag {flag} is not supported"));
            }
        }
        if self.architectures.as_ref().is_some_and(|list| !list.is_empty())
            && self.arch_map.as_ref().is_some_and(|list| !list.is_empty())
        {
            return Err("it has both architectures and archMap; one of them is enough".to_owned());
        }
        action(self.default_action, self.default_errno.as_deref(), self.default_errno_ret)
            .map_err(|why| format!("defaultAction: {why}"))?;
        for (index, rule) in self.syscalls.iter().flatten().enumerate() {
            rule.check().map_err(|why| format!("{}: {why}", rule.title(index)))?;
        }
        self.foreign().map(drop)
    }

    /// The architectures besides this machine's own.
    fn foreign(&self) -> Result<Vec<ScmpArch>, String> {
        let arch = |name: &String| {
            ScmpArch::from_str(name).map_err(|_| format!("'{name}' is no architecture"))
        };
        let native = ScmpArch::native();
        let mut found = Vec::new();
        for name in self.architectures.iter().flatten() {
            found.push(arch(name)?);
        }
        for entry in self.arch_map.iter().flatten() {
            let subs = entry.sub_architectures.iter().flatten().map(arch);
            let subs: Vec<ScmpArch> = subs.collect::<Result<_, _>>()?;
            if arch(&entry.architecture)? == native {
                found.extend(subs);
            }
        }
        found.retain(|arch| *arch != native && *arch != ScmpArch::Native);
        Ok(found)
    }

    /// The filter for a container with these capabilities on this kernel.
    ///
    /// # Errors
    /// What libseccomp refuses, with the rule.
    pub fn filter(&self, capabilities: u64, kernel: Kernel) -> Result<ScmpFilterContext, String> {
        let said = |error: libseccomp::error::SeccompError| error.to_string();
        let default =
            action(self.default_action, self.default_errno.as_deref(), self.default_errno_ret)?;
        let mut filter = ScmpFilterContext::new(default).map_err(said)?;
        filter.set_act_badarch(ScmpAction::Errno(libc::ENOSYS)).map_err(said)?;
        filter.set_ctl_optimize(2).map_err(said)?;
        for arch in self.foreign()? {
            filter.add_arch(arch).map_err(|e| format!("the architecture {arch:?}: {e}"))?;
        }
        for (index, rule) in self.syscalls.iter().flatten().enumerate() {
            let why = |why| format!("{}: {why}", rule.title(index));
            if !rule.applies(capabilities, kernel).map_err(why)? {
                continue;
            }
            let action = action(rule.action, rule.errno.as_deref(), rule.errno_ret).map_err(why)?;
            // libseccomp takes no rule that says what holds anyway.
            if action == default {
                continue;
            }
            for name in rule.names() {
                let Ok(call) = ScmpSyscall::from_name(name) else { continue };
                for conditions in rule.alternatives() {
                    filter
                        .add_rule_conditional(action, call, &conditions)
                        .map_err(|e| why(format!("libseccomp does not take it for {name}: {e}")))?;
                }
            }
        }
        Ok(filter)
    }
}

impl Rule {
    fn names(&self) -> impl Iterator<Item = &String> {
        let single = Some(&self.name).filter(|name| !name.is_empty());
        single.into_iter().chain(self.names.iter().flatten())
    }

    /// How a message calls it.
    fn title(&self, index: usize) -> Title<'_> {
        Title(index + 1, self.names().next().map(String::as_str))
    }

    fn check(&self) -> Result<(), String> {
        if !self.name.is_empty() && self.names.as_ref().is_some_and(|names| !names.is_empty()) {
            return Err("it has both name and names".to_owned());
        }
        if self.names().next().is_none() {
            return Err("it names no call".to_owned());
        }
        action(self.action, self.errno.as_deref(), self.errno_ret)?;
        for condition in self.args.iter().flatten() {
            if condition.index > 5 {
                let index = condition.index;
                return Err(format!("there is no argument {index}: they count from 0 to 5"));
            }
        }
        // Read now, so that what is wrong is told whatever the container has.
        self.applies(0, Kernel::default()).map(drop)
    }

    fn applies(&self, capabilities: u64, kernel: Kernel) -> Result<bool, String> {
        let (none, empty) = (When::default(), Vec::new());
        let (with, without) =
            (self.includes.as_ref().unwrap_or(&none), self.excludes.as_ref().unwrap_or(&none));
        let held = |names: &Option<Vec<String>>| -> Result<Vec<bool>, String> {
            let names = names.as_ref().unwrap_or(&empty).iter();
            names.map(|name| Ok(capability(name)? & capabilities != 0)).collect()
        };
        let here = |when: &When| {
            when.arches.as_ref().filter(|list| !list.is_empty()).map(|list| {
                list.iter().any(|name| name == native_name() || name == std::env::consts::ARCH)
            })
        };
        let young = |when: &When| {
            let text = when.min_kernel.as_deref().filter(|text| !text.is_empty());
            let minimum = text.map(|text| {
                Kernel::parse(text).ok_or_else(|| format!("minKernel '{text}' is no version"))
            });
            minimum.transpose().map(|minimum| minimum.map(|minimum| kernel >= minimum))
        };
        let (all_held, any_held) = (held(&with.caps)?, held(&without.caps)?);
        let (included, excluded) = (young(with)?, young(without)?);
        Ok(all_held.iter().all(|held| *held)
            && !any_held.iter().any(|held| *held)
            && here(with).unwrap_or(true)
            && !here(without).unwrap_or(false)
            && included.unwrap_or(true)
            && !excluded.unwrap_or(false))
    }

    /// The conditions, as libseccomp takes them: all of a set must hold, and one set is
    /// enough. Of one argument a set can have one condition only, so that with several of
    /// one argument each is a set of its own, as runc and crun have it.
    fn alternatives(&self) -> Vec<Vec<ScmpArgCompare>> {
        let conditions: Vec<&Condition> = self.args.iter().flatten().collect();
        let repeated = conditions
            .iter()
            .enumerate()
            .any(|(at, one)| conditions[..at].iter().any(|other| other.index == one.index));
        let compare = |condition: &&Condition| {
            let (op, value) = match condition.op {
                Op::NotEqual => (ScmpCompareOp::NotEqual, condition.value),
                Op::Less => (ScmpCompareOp::Less, condition.value),
                Op::LessOrEqual => (ScmpCompareOp::LessOrEqual, condition.value),
                Op::Equal => (ScmpCompareOp::Equal, condition.value),
                Op::GreaterEqual => (ScmpCompareOp::GreaterEqual, condition.value),
                Op::Greater => (ScmpCompareOp::Greater, condition.value),
                Op::MaskedEqual => {
                    (ScmpCompareOp::MaskedEqual(condition.value), condition.value_two)
                }
            };
            ScmpArgCompare::new(condition.index, op, value)
        };
        if repeated {
            conditions.iter().map(|condition| vec![compare(condition)]).collect()
        } else {
            vec![conditions.iter().map(compare).collect()]
        }
    }
}

struct Title<'a>(usize, Option<&'a str>);

impl fmt::Display for Title<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self(number, Some(name)) => write!(f, "rule {number} of syscalls ({name})"),
            Self(number, None) => write!(f, "rule {number} of syscalls"),
        }
    }
}

/// An action with its error: by name or number, EPERM when there is none.
fn action(action: Action, name: Option<&str>, number: Option<u32>) -> Result<ScmpAction, String> {
    let number = match name.filter(|name| !name.is_empty()) {
        None => number,
        Some(name) => Some(errno(name).ok_or_else(|| format!("'{name}' is no error number"))?),
    };
    let given = number.unwrap_or(libc::EPERM as u32);
    // SECCOMP_RET_DATA has 16 bits, and libseccomp takes no more.
    let data = u16::try_from(given).map_err(|_| format!("{given} is too large for an error"))?;
    Ok(match action {
        Action::Allow => ScmpAction::Allow,
        Action::Errno => ScmpAction::Errno(data.into()),
        Action::KillThread => ScmpAction::KillThread,
        Action::KillProcess => ScmpAction::KillProcess,
        Action::Log => ScmpAction::Log,
        Action::Trace => ScmpAction::Trace(data),
        Action::Trap => ScmpAction::Trap,
        Action::Notify => {
            return Err("SCMP_ACT_NOTIFY: coracle asks no listener about calls".to_owned());
        }
    })
}

/// The number of an error of errno(3): its name, or the number itself.
fn errno(text: &str) -> Option<u32> {
    let named = |number: &i32| format!("{:?}", Errno::from_raw(*number)) == text;
    text.parse().ok().or_else(|| (1..=133).find(named).map(i32::cast_unsigned))
}

#[cfg(test)]
mod tests;
