//! Memory that a process which mostly waits need not keep.
#![allow(unsafe_code, reason = "madvise takes addresses")]

use std::fs;
use std::io;

use super::check;

/// Lets go of the program's code: what is executed again is read again, from the page
/// cache. A process that has started something holds some megabytes of it for nothing.
///
/// # Errors
/// As of proc_pid_maps(5), madvise(2).
pub fn release_code() -> io::Result<()> {
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
