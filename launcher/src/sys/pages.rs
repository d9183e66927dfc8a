//! Memory that a process which mostly waits need not keep.
#![allow(unsafe_code, reason = "madvise takes addresses")]

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use nix::poll::PollTimeout;

use super::check;
use crate::clock;

/// What a process does that begins to wait: for a while nothing, since what ends soon would
/// read its code again for that; then it lets go of its code, once.
#[derive(Debug)]
pub struct Rest(Option<Instant>);

impl Rest {
    /// Longer than a container takes to come to an end that does next to nothing.
    const WHILE: Duration = Duration::from_millis(50);

    /// It begins now.
    #[must_use]
    pub fn begin() -> Self {
        Self(Some(clock::monotonic() + Self::WHILE))
    }

    /// How long to wait for events now, before this is asked again.
    pub fn timeout(&mut self) -> PollTimeout {
        let Some(at) = self.0 else { return PollTimeout::NONE };
        let left = at.saturating_duration_since(clock::monotonic());
        if left.is_zero() {
            self.0 = None;
            // Where that cannot be done it has more memory, and no harm.
            release_code().ok();
            return PollTimeout::NONE;
        }
        // poll(2) has whole milliseconds: rather one too many than none.
        let left = left + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }
}

/// Lets go of the program's code: what is executed again is read again, from the page
/// cache. A process that has started something holds some megabytes of it for nothing.
///
/// # Errors
/// As of proc_pid_maps(5), madvise(2).
fn release_code() -> io::Result<()> {
    for (start, length) in code(&fs::read_to_string("/proc/self/maps")?) {
        // SAFETY: a private mapping of a file that cannot be written holds what the file
        // holds, and no relocations: the linker makes executable segments without. So its
        // pages can be dropped at any time, also those of the code that runs here.
        check(unsafe {
            libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED).into()
        })?;
    }
    Ok(())
}

/// Start and length of each executable mapping of a file.
fn code(maps: &str) -> Vec<(usize, usize)> {
    let one = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let of_a_file = fields.next()? == "r-xp" && fields.nth(3)?.starts_with('/');
        let [start, end] = [start, end].map(|text| usize::from_str_radix(text, 16));
        let (start, end) = (start.ok()?, end.ok()?);
        of_a_file.then(|| (start, end.saturating_sub(start)))
    };
    maps.lines().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_of_files_is_found() {
        let maps = "\
            1000-3000 r--p 00000000 fe:00 7  /bin/x\n\
            3000-8000 r-xp 00002000 fe:00 7  /bin/x\n\
            8000-9000 rw-p 00007000 fe:00 7  /bin/x\n\
            a000-b000 r-xp 00000000 00:00 0\n\
            c000-d000 rwxp 00000000 fe:00 8  /lib/jit\n\
            e000-f000 r-xp 00000000 00:00 0  [vdso]\n";
        assert_eq!(code(maps), [(0x3000, 0x5000)]);
    }

    #[test]
    fn what_was_let_go_of_still_runs() {
        let total = || -> u64 { (1..=1000u64).map(std::hint::black_box).sum() };
        let before = total();
        release_code().unwrap();
        assert_eq!(total(), before);
        assert!(!code(&fs::read_to_string("/proc/self/maps").unwrap()).is_empty());
    }
}
