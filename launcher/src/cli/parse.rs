//! Reading of option values. Pure: text in, data or a one-line reason out.

use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;

use crate::image::date;
use crate::spec::{NAME_MAX, Restart, Upper, Volume, is_name};

/// Reads a size in bytes: digits and at most one unit (`b`, `k`, `m`, `g`, `t`,
/// powers of 1024, either case, with or without a `b` or `ib` after it).
///
/// # Errors
/// A reason, when it is not of this form, is zero, or does not fit in 63 bits.
pub fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let bad = || format!("'{text}' is not a size: use digits and a unit, as in 64m or 2g");
    let number: u64 = number.parse().map_err(|_| bad())?;
    let unit = unit.to_ascii_lowercase();
    let shift = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(bad()),
    };
    match number.checked_mul(1 << shift) {
        Some(0) => Err(format!("'{text}' is not a size: it must be more than zero")),
        Some(bytes) if i64::try_from(bytes).is_ok() => Ok(bytes),
        _ => Err(format!("'{text}' is too large a size")),
    }
}

/// Reads `--upper`: `ram`, `ram:SIZE` or a directory. A directory of that name
/// is written `./ram`. Relative directories are taken from `cwd`.
///
/// # Errors
/// A reason, when it is empty or the size is not one.
pub fn upper(text: &str, cwd: &Path) -> Result<Upper, String> {
    match text.split_once(':') {
        _ if text == "ram" => Ok(Upper::Ram(None)),
        Some(("ram", bytes)) => size(bytes).map(|bytes| Upper::Ram(Some(bytes))),
        _ if text.is_empty() => Err("'' is neither a directory nor ram[:SIZE]".to_owned()),
        _ => Ok(Upper::Dir(cwd.join(text))),
    }
}

/// Reads `-v SRC:DST[:ro|rw]`. A relative `SRC` is taken from `cwd` and must
/// contain a slash or start with a dot, so that it is not taken for a volume's name.
///
/// # Errors
/// A reason naming what is wrong with which part.
pub fn volume(text: &str, cwd: &Path) -> Result<Volume, String> {
    let form = "use SRC:DST or SRC:DST:ro";
    let mut parts = text.split(':');
    let (Some(source), Some(target), options, None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(format!("'{text}' is not a volume: {form}"));
    };
    let mut read_only = false;
    for option in options.iter().flat_map(|options| options.split(',')) {
        match option {
            "ro" => read_only = true,
            "rw" => read_only = false,
            // So it is, and there are no labels to be changed.
            "rbind" | "rprivate" | "private" | "z" | "Z" => {}
            _ => return Err(format!("'{option}' in '{text}' is no volume option: {form}")),
        }
    }
    if source.is_empty() {
        return Err(format!("'{text}' names no source: {form}"));
    }
    if !source.contains('/') && !source.starts_with('.') {
        return Err(format!(
            "'{source}' in '{text}' is not a path (named volumes are not there): write ./{source}"
        ));
    }
    let target = inside(target).map_err(|why| format!("the target of '{text}' {why}"))?;
    if target == Path::new("/") {
        return Err(format!("the target of '{text}' is the root itself: use --rootfs for that"));
    }
    Ok(Volume { source: cwd.join(source), target, read_only })
}

/// Reads an absolute path inside the container, without `..`.
///
/// # Errors
/// The predicate of a sentence whose subject the caller knows.
pub fn inside(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err("must be an absolute path in the container".to_owned());
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err("must not contain '..'".to_owned());
    }
    Ok(path.components().collect())
}

/// Reads a number, from 0 up.
///
/// # Errors
/// A reason, when it is none.
pub fn count<N: std::str::FromStr>(text: &str) -> Result<N, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = if digits { text.parse().ok() } else { None };
    number.ok_or_else(|| format!("'{text}' is no number from 0 up, as in 10, or too large"))
}

/// Reads `-e NAME=VALUE`, or `-e NAME`, whose value is then asked of `host`.
/// `None`: the host has no such variable, so the container gets none.
///
/// # Errors
/// A reason, when the name is empty.
pub fn env(
    text: &str,
    host: impl FnOnce(&str) -> Result<Option<String>, String>,
) -> Result<Option<(String, String)>, String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    if name.is_empty() {
        return Err(format!("'{text}' names no environment variable: use NAME=VALUE or NAME"));
    }
    let value = match value {
        Some(value) => Some(value),
        None => host(name)?,
    };
    Ok(value.map(|value| (name.to_owned(), value)))
}

/// Reads a file of variables, a line each, as `-e` has them; empty lines and those that
/// begin with `#` say nothing.
///
/// # Errors
/// A reason, with the number of the line.
pub fn env_file(
    text: &str,
    host: impl Fn(&str) -> Result<Option<String>, String>,
) -> Result<Vec<(String, String)>, String> {
    let mut read = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let at = |why| format!("line {}: {why}", number + 1);
        if line.split('=').next().is_some_and(|name| name.contains(char::is_whitespace)) {
            return Err(at(format!("'{line}' has white space in the variable's name")));
        }
        read.extend(env(line, &host).map_err(at)?);
    }
    Ok(read)
}

/// Reads `-l KEY[=VALUE]`.
///
/// # Errors
/// A reason, when the key is empty.
pub fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        return Err(format!("'{text}' names no label: use KEY=VALUE or KEY"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// Reads a file of labels: a `KEY[=VALUE]` a line; empty lines and those that begin with
/// `#` mean nothing.
///
/// # Errors
/// A reason, with the number of the line.
pub fn label_file(text: &str) -> Result<Vec<(String, String)>, String> {
    let lines = text.lines().map(str::trim_start).enumerate();
    lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| label(line).map_err(|why| format!("line {}: {why}", number + 1)))
        .collect()
}

/// Checks a container's name, see [`is_name`].
///
/// # Errors
/// A reason with the rule.
pub fn name(text: &str) -> Result<String, String> {
    if is_name(text) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "'{text}' is not a container name: use letters, digits, '_', '.', '-', \
             starting with a letter or digit, at most {NAME_MAX}"
        ))
    }
}

/// Checks a host name: letters, digits, `-`, `.`, `_`, at most 64 bytes.
///
/// # Errors
/// A reason with the rule.
pub fn hostname(text: &str) -> Result<String, String> {
    name(text).map_err(|_| {
        format!("'{text}' is not a host name: use letters, digits, '-', '.', at most {NAME_MAX}")
    })
}

/// Checks `-u USER[:GROUP]`: names are looked up later, inside the container.
///
/// # Errors
/// A reason with the form.
pub fn user(text: &str) -> Result<String, String> {
    let mut parts = text.split(':');
    let (user, group) = (parts.next(), parts.next());
    let sound = |part: &str| {
        let numeric = part.bytes().all(|b| b.is_ascii_digit());
        !part.is_empty()
            && !part.bytes().any(|b| b.is_ascii_whitespace() || b.is_ascii_control() || b == b'/')
            // The highest id means "none" to the kernel (chown(2), setresuid(2)).
            && (!numeric || part.parse::<u32>().is_ok_and(|id| id != u32::MAX))
    };
    if parts.next().is_none() && user.is_some_and(sound) && group.is_none_or(sound) {
        Ok(text.to_owned())
    } else {
        Err(format!("'{text}' is not a user: use USER or USER:GROUP, names or numbers"))
    }
}

/// Reads a signal: a number, or a name with or without `SIG`, in either case.
///
/// # Errors
/// A reason, when there is no such signal.
pub fn signal(text: &str) -> Result<Signal, String> {
    let bad = || format!("'{text}' is no signal: use a name or number, as in TERM or 15");
    if let Ok(number) = text.parse::<i32>() {
        return Signal::try_from(number).map_err(|_| bad());
    }
    let upper = text.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    full.parse().map_err(|_| bad())
}

/// A point in time, or a distance from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Since 1970.
    At(Duration),
    /// Before now.
    Ago(Duration),
}

impl Moment {
    /// The point in time, as seen from `now`.
    #[must_use]
    pub fn from(self, now: SystemTime) -> SystemTime {
        let moment = match self {
            Self::At(since) => SystemTime::UNIX_EPOCH.checked_add(since),
            Self::Ago(ago) => now.checked_sub(ago),
        };
        moment.unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

/// Reads a point in time: seconds since 1970, a date with or without a time of
/// day (in UTC), or how long ago (`90s`, `1h30m`).
///
/// # Errors
/// Says what is allowed.
pub fn moment(text: &str) -> Result<Moment, String> {
    let bad = || {
        format!(
            "'{text}' is no time: use one as in 2026-01-31T12:00:00Z, or how long ago, as in 10m"
        )
    };
    if let Ok(seconds) = text.parse() {
        return Ok(Moment::At(Duration::from_secs(seconds)));
    }
    if let Some(seconds) = date::seconds(text) {
        return Ok(Moment::At(Duration::from_secs(seconds)));
    }
    let mut total: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().map_err(|_| bad())?;
        let unit = match rest.as_bytes().get(digits) {
            Some(b's') => 1,
            Some(b'm') => 60,
            Some(b'h') => 3_600,
            Some(b'd') => 86_400,
            _ => return Err(bad()),
        };
        let part = number.checked_mul(unit).ok_or_else(bad)?;
        total = total.checked_add(part).ok_or_else(bad)?;
        rest = &rest[digits + 1..];
    }
    if text.is_empty() { Err(bad()) } else { Ok(Moment::Ago(Duration::from_secs(total))) }
}

/// Reads `--restart`.
///
/// # Errors
/// Says what is allowed.
pub fn restart(text: &str) -> Result<Restart, String> {
    let most = |count: &str| count.parse().ok().filter(|count| *count > 0);
    let policy = match text.split_once(':') {
        None if text == "no" || text == "never" => Some(Restart::No),
        None if text == "on-failure" => Some(Restart::OnFailure(None)),
        None if text == "always" => Some(Restart::Always),
        None if text == "unless-stopped" => Some(Restart::UnlessStopped),
        Some(("on-failure", count)) => most(count).map(|most| Restart::OnFailure(Some(most))),
        _ => None,
    };
    policy.ok_or_else(|| {
        format!("'{text}' is none of no, on-failure, on-failure:TIMES, always, unless-stopped")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(path: &str) -> PathBuf {
        PathBuf::from(path)
    }

    #[test]
    fn moments() {
        let seconds = Duration::from_secs;
        for (text, wanted) in [
            ("0", Moment::At(seconds(0))),
            ("1700000000", Moment::At(seconds(1_700_000_000))),
            ("2000-02-29T00:00:00Z", Moment::At(seconds(951_782_400))),
            ("2000-02-29", Moment::At(seconds(951_782_400))),
            ("90s", Moment::Ago(seconds(90))),
            ("1d2h", Moment::Ago(seconds(93_600))),
        ] {
            assert_eq!(moment(text), Ok(wanted), "{text}");
        }
        for text in ["", "s", "1", "1x", "-1s", "2000-13-01", "yesterday", "9999999999999999999d"] {
            assert!(text == "1" || moment(text).is_err(), "{text}");
        }
    }

    #[test]
    fn restart_policies() {
        assert_eq!(restart("no"), Ok(Restart::No));
        assert_eq!(restart("on-failure"), Ok(Restart::OnFailure(None)));
        assert_eq!(restart("on-failure:3"), Ok(Restart::OnFailure(Some(3))));
        assert_eq!(restart("always"), Ok(Restart::Always));
        assert_eq!(restart("unless-stopped"), Ok(Restart::UnlessStopped));
        for text in ["", "No", "on-failure:", "on-failure:0", "on-failure:-1", "always:1"] {
            assert!(restart(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("1", 1),
            ("12b", 12),
            ("4k", 4096),
            ("64m", 64 << 20),
            ("2G", 2 << 30),
            ("1TiB", 1 << 40),
            ("3MB", 3 << 20),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "m", "0", "0g", "-1", "+1", "1.5g", "1x", "1 m", "9999999t", "1gg", "１"]
        {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn uppers() {
        let cwd = Path::new("/home/me");
        assert_eq!(upper("ram", cwd), Ok(Upper::Ram(None)));
        assert_eq!(upper("ram:1m", cwd), Ok(Upper::Ram(Some(1 << 20))));
        assert_eq!(upper("./ram", cwd), Ok(Upper::Dir(at("/home/me/./ram"))));
        assert_eq!(upper("/x:y", cwd), Ok(Upper::Dir(at("/x:y"))));
        assert!(upper("ram:", cwd).is_err());
        assert!(upper("ram:lots", cwd).is_err());
        assert!(upper("", cwd).is_err());
    }

    #[test]
    fn volumes() {
        let cwd = Path::new("/home/me");
        let read = |text| volume(text, cwd);
        let want = |source: &str, target: &str, read_only| {
            Ok(Volume { source: at(source), target: at(target), read_only })
        };
        assert_eq!(read("/a:/b"), want("/a", "/b", false));
        assert_eq!(read("/a:/b:ro"), want("/a", "/b", true));
        assert_eq!(read("/a:/b:rw"), want("/a", "/b", false));
        assert_eq!(read("./a:/b/"), want("/home/me/./a", "/b", false));
        assert_eq!(read(".:/b/./c//d"), want("/home/me/.", "/b/c/d", false));
        for text in
            ["", "/a", "/a:", ":/b", "/a:b", "/a:/b:rx", "/a:/b:ro:x", "a:/b", "/a:/", "/a:/b/../c"]
        {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn environment() {
        let host = |name: &str| Ok((name == "SET").then(|| "of the host".to_owned()));
        let pair = |name: &str, value: &str| Ok(Some((name.to_owned(), value.to_owned())));
        assert_eq!(env("A=b=c", host), pair("A", "b=c"));
        assert_eq!(env("A=", host), pair("A", ""));
        assert_eq!(env("SET", host), pair("SET", "of the host"));
        assert_eq!(env("UNSET", host), Ok(None));
        assert!(env("", host).is_err());
        assert!(env("=x", host).is_err());
    }

    #[test]
    fn files_of_variables() {
        let host = |name: &str| Ok((name == "SET").then(|| "of the host".to_owned()));
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let read = |text: &str| env_file(text, host);
        let text = "# said\n\n  A=b # c = d\r\nSET\nUNSET\nB=\nQ=\"x y\"\n";
        let wanted = [
            pair("A", "b # c = d"),
            pair("SET", "of the host"),
            pair("B", ""),
            pair("Q", "\"x y\""),
        ];
        assert_eq!(read(text).unwrap(), wanted);
        assert_eq!(read(""), Ok(Vec::new()));
        for (text, word) in [("A=b\n=x", "line 2"), ("A B=c", "'A B=c'"), ("\nA =c", "line 2")] {
            assert!(read(text).unwrap_err().contains(word), "{text}");
        }
    }

    #[test]
    fn labels() {
        let pair = |key: &str, value: &str| Ok((key.to_owned(), value.to_owned()));
        assert_eq!(label("a=b=c"), pair("a", "b=c"));
        assert_eq!(label("a"), pair("a", ""));
        assert!(label("").is_err() && label("=b").is_err());
    }

    #[test]
    fn names() {
        for text in ["a", "0", "web-1", "A_b.c-d"] {
            assert_eq!(name(text).as_deref(), Ok(text));
        }
        let long = "x".repeat(65);
        for text in ["", ".", "..", "-a", "_a", ".a", "a/b", "a b", "ä", "a\n", &long] {
            assert!(name(text).is_err(), "{text}");
        }
    }

    #[test]
    fn users() {
        for text in ["0", "root", "www-data", "1000:1000", "root:adm"] {
            assert_eq!(user(text).as_deref(), Ok(text));
        }
        for text in ["", ":", "a:", ":b", "a:b:c", "a b", "a/b", "4294967295", "99999999999"] {
            assert!(user(text).is_err(), "{text}");
        }
    }

    #[test]
    fn signals() {
        for text in ["9", "KILL", "SIGKILL", "kill", "sigkill"] {
            assert_eq!(signal(text), Ok(Signal::SIGKILL), "{text}");
        }
        for text in ["", "0", "-9", "SIG", "NOPE", "1000"] {
            assert!(signal(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*|[a-z0-9:/.\\[\\],=-]*") {
            let cwd = Path::new("/w");
            drop((size(&text), upper(&text, cwd), name(&text), hostname(&text)));
            drop((user(&text), signal(&text), env(&text, |_| Ok(None))));
            if let Ok(volume) = volume(&text, cwd) {
                prop_assert!(volume.source.is_absolute() && volume.target.is_absolute());
            }
            if let Ok(name) = name(&text) {
                prop_assert!(!name.contains('/') && name != "." && name != "..");
            }
        }
    }
}
