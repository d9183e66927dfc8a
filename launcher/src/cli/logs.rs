//! `coracle logs`.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::output::{Unprinted, standard};
use super::parse;
use crate::clock;
use crate::image::date::rfc3339;
use crate::store::log::Moments;
use crate::store::{Entry, Store};
use crate::sys::process::pidfd_open;

/// Print what a container in the background has printed.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Go on until the container ends
    #[arg(short, long)]
    follow: bool,

    /// Only so many lines at the end
    #[arg(short = 'n', long, value_name = "LINES", value_parser = parse::count::<u64>, allow_negative_numbers = true)]
    tail: Option<u64>,

    /// Only what was printed since then: seconds since 1970, a time as in
    /// 2026-01-31T12:00:00Z, or so long ago, as in 90s, 10m, 2h, 1d
    #[arg(long, value_name = "TIME", value_parser = parse::moment)]
    since: Option<parse::Moment>,

    /// Begin each line with the time at which it was printed
    #[arg(short, long)]
    timestamps: bool,

    /// The container
    #[arg(value_name = "CONTAINER")]
    name: String,
}

pub(super) fn logs(args: &Args) -> anyhow::Result<u8> {
    let entry = Store::open()?.find(&args.name)?;
    let path = entry.log();
    let log = match File::open(&path) {
        Ok(log) => log,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // It may be gone altogether; else the reason is another.
            entry.state()?;
            anyhow::bail!("container '{}' was not detached: it has no log", args.name);
        }
        Err(error) => return Err(error).with_context(|| format!("cannot open {}", path.display())),
    };
    let since = args.since.map(|since| since.from(clock::now()));
    let start = match args.tail {
        Some(lines) => last_lines(&log, lines).context("cannot read the log")?,
        None => 0,
    };
    let mut reader = BufReader::new(log);
    reader.seek(SeekFrom::Start(start)).context("cannot read the log")?;
    let monitor = if args.follow { monitor(&entry)? } else { None };
    let mut printer = Printer {
        moments: if args.timestamps || since.is_some() { Some(Moments::default()) } else { None },
        path,
        reader,
        place: start,
        since,
        timestamps: args.timestamps,
        begun: false,
    };
    let mut out = standard();
    if let Some(monitor) = monitor {
        follow(&mut printer, &mut out, &monitor)?;
    }
    // What came between the last look and the end.
    printer.print(&mut out)?;
    out.flush()?;
    Ok(0)
}

/// Where the last `lines` lines of a file begin.
fn last_lines(file: &File, lines: u64) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let whole = end;
    let mut seen = 0;
    let mut buffer = [0; 16 * 1024];
    while end > 0 {
        let start = end.saturating_sub(buffer.len() as u64);
        let length = usize::try_from(end - start).map_err(io::Error::other)?;
        file.read_exact_at(&mut buffer[..length], start)?;
        for (index, _) in buffer[..length].iter().enumerate().rev().filter(|(_, b)| **b == b'\n') {
            let after = start + index as u64 + 1;
            // What follows the last end of a line is a line, if it is anything.
            if after == whole {
                continue;
            }
            seen += 1;
            if seen == lines {
                return Ok(after);
            }
        }
        end = start;
    }
    Ok(if lines == 0 { whole } else { 0 })
}

/// Prints what is there of a log, each time from where it stopped.
struct Printer {
    path: PathBuf,
    reader: BufReader<File>,
    /// Where in the log it is.
    place: u64,
    /// When what was printed; absent when nobody asks.
    moments: Option<Moments>,
    since: Option<SystemTime>,
    timestamps: bool,
    /// Part of a line was printed.
    begun: bool,
}

impl Printer {
    fn print(&mut self, out: &mut impl Write) -> io::Result<()> {
        if self.moments.is_none() {
            io::copy(&mut self.reader, out)?;
            return out.flush();
        }
        // Records are written before their text: all that is read from here on has one.
        let mut line = Vec::new();
        let end = self.reader.get_ref().metadata()?.len();
        let moments = Moments::read(&self.path)?;
        while self.place < end {
            line.clear();
            let length = self.reader.read_until(b'\n', &mut line)?;
            if length == 0 {
                break;
            }
            let time = moments.at(self.place);
            self.place += length as u64;
            // Without a record it is older than any.
            if self.since.is_some_and(|since| time.unwrap_or(UNIX_EPOCH) < since) {
                continue;
            }
            if self.timestamps && !self.begun {
                write!(out, "{} ", time.map_or_else(|| "-".to_owned(), stamp))?;
            }
            out.write_all(&line)?;
            self.begun = !line.ends_with(b"\n");
        }
        self.moments = Some(moments);
        out.flush()
    }
}

/// RFC 3339 with milliseconds.
fn stamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let text = rfc3339(since.as_secs());
    format!("{}.{:03}Z", text.trim_end_matches('Z'), since.subsec_millis())
}

/// The process whose end is the container's end; `None` when that has come.
fn monitor(entry: &Entry) -> anyhow::Result<Option<OwnedFd>> {
    let Some((state, _)) = entry.state()? else { return Ok(None) };
    let Some(monitor) = state.monitor.filter(|_| state.active()) else { return Ok(None) };
    match pidfd_open(monitor.pid) {
        Ok(pidfd) => Ok(monitor.exists().then_some(pidfd)),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error).context("cannot watch the container's monitor"),
    }
}

/// Prints what is there and what comes, until `monitor` has ended or whoever
/// reads our output has gone.
fn follow(
    printer: &mut Printer,
    out: &mut (impl Write + AsFd),
    monitor: &OwnedFd,
) -> anyhow::Result<()> {
    let changes = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
        .context("cannot watch for changes")?;
    let path: &Path = &printer.path;
    changes
        .add_watch(path, AddWatchFlags::IN_MODIFY)
        .with_context(|| format!("cannot watch {}", path.display()))?;
    loop {
        // The watch was there before this look: nothing is missed.
        printer.print(out)?;
        let mut fds = [
            PollFd::new(monitor.as_fd(), PollFlags::POLLIN),
            PollFd::new(changes.as_fd(), PollFlags::POLLIN),
            // No event asked for: an error is always told.
            PollFd::new(out.as_fd(), PollFlags::empty()),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).context("cannot wait for output"),
            Ok(_) => {}
        }
        let [ended, changed, unread] = fds.map(|fd| fd.any() == Some(true));
        if ended {
            return Ok(());
        }
        if unread {
            return Err(Unprinted::unread().into());
        }
        if changed {
            // How often it was changed does not matter.
            match changes.read_events() {
                Ok(_) | Err(Errno::EAGAIN) => {}
                Err(error) => return Err(error).context("cannot read changes"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::log::Log;

    #[test]
    fn the_last_lines_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for (text, lines, rest) in [
            ("", 3, ""),
            ("a\nb\nc\n", 0, ""),
            ("a\nb\nc\n", 1, "c\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\nc\n", 3, "a\nb\nc\n"),
            ("a\nb\nc\n", 9, "a\nb\nc\n"),
            ("\n\n\n", 2, "\n\n"),
        ] {
            std::fs::write(&path, text).unwrap();
            let start = last_lines(&File::open(&path).unwrap(), lines).unwrap();
            assert_eq!(&text[usize::try_from(start).unwrap()..], rest, "{text:?} {lines}");
        }
        let long = "x".repeat(20_000) + "\n";
        std::fs::write(&path, long.repeat(4)).unwrap();
        let start = last_lines(&File::open(&path).unwrap(), 2).unwrap();
        assert_eq!(start, 2 * 20_001);
    }

    #[test]
    fn lines_have_their_times() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let time = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let mut log = Log::open(&path).unwrap();
        log.append(b"one\ntw", time(10)).unwrap();
        let printed = |since: Option<u64>, timestamps| {
            let mut printer = Printer {
                path: path.clone(),
                reader: BufReader::new(File::open(&path).unwrap()),
                place: 0,
                moments: Some(Moments::default()),
                since: since.map(time),
                timestamps,
                begun: false,
            };
            let mut out = Vec::new();
            printer.print(&mut out).unwrap();
            (printer, out)
        };
        let (mut printer, mut out) = printed(None, true);
        log.append(b"o\nthree\n", time(20)).unwrap();
        printer.print(&mut out).unwrap();
        let text = "1970-01-01T00:00:10.000Z one\n1970-01-01T00:00:10.000Z two\n\
                    1970-01-01T00:00:20.000Z three\n";
        assert_eq!(String::from_utf8(out).unwrap(), text);
        assert_eq!(printed(Some(15), false).1, b"three\n");
        assert_eq!(printed(Some(25), false).1, b"");
    }
}
