//! Options that bound what a container uses.

use super::parse;
use crate::spec::{Limits, Ulimit};
use crate::ulimit;

/// What a container may use.
#[derive(Debug, clap::Args)]
pub(super) struct LimitArgs {
    /// Bound the memory of all processes together
    #[arg(short, long, value_name = "SIZE", value_parser = parse::size, allow_negative_numbers = true)]
    memory: Option<u64>,

    /// Bound the number of processes and threads; 0 or -1 for none
    #[arg(
        long,
        value_name = "COUNT",
        value_parser = pids,
        allow_negative_numbers = true
    )]
    pids_limit: Option<i64>,

    /// Bound the time on processors, in processors, as in 1.5; 0 for none
    #[arg(long, value_name = "COUNT", value_parser = cpus, allow_negative_numbers = true)]
    cpus: Option<u64>,

    /// Weight against others when processors are scarce; 1024 is usual
    #[arg(short, long, value_name = "SHARES", value_parser = clap::value_parser!(u64).range(2..=262_144))]
    cpu_shares: Option<u64>,

    /// Bound each process, as in nofile=1024:4096
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]", value_parser = bound)]
    pub(super) ulimits: Vec<Ulimit>,
}

impl LimitArgs {
    /// All but those of each process.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            memory: self.memory,
            pids: self.pids_limit.filter(|count| *count > 0).map(i64::unsigned_abs),
            millicpus: self.cpus.filter(|thousandths| *thousandths > 0),
            cpu_shares: self.cpu_shares,
        }
    }
}

/// In thousandths of a processor.
fn cpus(text: &str) -> Result<u64, String> {
    let bad = || format!("'{text}' is no number of processors: use one as in 2 or 0.5");
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 3 || text.len() > 9 {
        return Err(bad());
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| bad())? };
    let part: u64 = format!("{part:0<3}").parse().map_err(|_| bad())?;
    if text.bytes().all(|byte| byte == b'.') {
        return Err(bad());
    }
    Ok(whole * 1_000 + part)
}

fn pids(text: &str) -> Result<i64, String> {
    let count = text.parse().ok().filter(|count| *count >= -1);
    count.ok_or_else(|| format!("'{text}' is no number of processes: use one as in 100, or -1"))
}

fn bound(text: &str) -> Result<Ulimit, String> {
    let form = || format!("'{text}' is no bound: use one as in nofile=1024 or nofile=1024:4096");
    let (name, values) = text.split_once('=').ok_or_else(form)?;
    if !ulimit::names().any(|known| known == name) {
        let names: Vec<_> = ulimit::names().collect();
        return Err(format!("'{name}' is none of {}", names.join(", ")));
    }
    let value = |text: &str| match text {
        "-1" | "unlimited" => Ok(None),
        text => text.parse().map(Some).map_err(|_| form()),
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let (soft, hard) = (value(soft)?, value(hard)?);
    // None is more than any.
    if hard.is_some_and(|hard| soft.is_none_or(|soft| soft > hard)) {
        return Err(format!("'{text}': the soft bound is above the hard one"));
    }
    Ok(Ulimit { name: name.to_owned(), soft, hard })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_processors() {
        for (text, thousandths) in
            [("1", 1_000), ("0.5", 500), ("1.25", 1_250), (".001", 1), ("0", 0), ("0.0", 0)]
        {
            assert_eq!(cpus(text), Ok(thousandths), "{text}");
        }
        for text in ["", ".", "-1", "1.0001", "x", "1e3", "99999999999"] {
            assert!(cpus(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_of_processes() {
        assert_eq!((pids("7"), pids("0"), pids("-1")), (Ok(7), Ok(0), Ok(-1)));
        assert!(["", "x", "-2", "1.5"].iter().all(|text| pids(text).is_err()));
    }

    #[test]
    fn bounds_of_processes() {
        let ulimit = |soft, hard| Ok(Ulimit { name: "nofile".to_owned(), soft, hard });
        assert_eq!(bound("nofile=5"), ulimit(Some(5), Some(5)));
        assert_eq!(bound("nofile=5:6"), ulimit(Some(5), Some(6)));
        assert_eq!(bound("nofile=5:-1"), ulimit(Some(5), None));
        assert_eq!(bound("nofile=unlimited"), ulimit(None, None));
        for text in ["", "nofile", "nofile=", "nofile=x", "files=1", "nofile=6:5", "nofile=-1:5"] {
            assert!(bound(text).is_err(), "{text}");
        }
    }
}
