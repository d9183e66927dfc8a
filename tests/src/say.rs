//! Standard output, whose reader may go away: `… | head -5`.

use std::fmt;
use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::Result;

/// What a shell shows of a program that SIGPIPE has ended.
const UNREAD: u8 = 128 + libc::SIGPIPE as u8;

/// Standard output did not take what was printed.
#[derive(Debug)]
struct Unprinted(io::Error);

impl fmt::Display for Unprinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot write to standard output: {}", self.0)
    }
}

impl std::error::Error for Unprinted {}

/// Prints a line, as `println!` does; an error where nobody takes it.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => {
        $crate::say::print(::std::format_args!("{}\n", ::std::format_args!($($text)*)))
    };
}

/// Prints.
///
/// # Errors
/// One that [`tell`] knows.
pub fn print(text: fmt::Arguments<'_>) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_fmt(text).and_then(|()| out.flush()).map_err(|error| Unprinted(error).into())
}

/// Tells of an error on standard error, unless it is that whoever was reading has seen
/// enough; what the program is to end with, which is `code` else.
#[must_use]
pub fn tell(error: &anyhow::Error, code: u8) -> ExitCode {
    let unprinted = error.downcast_ref::<Unprinted>();
    if unprinted.is_some_and(|Unprinted(error)| error.kind() == io::ErrorKind::BrokenPipe) {
        return UNREAD.into();
    }
    // There is nowhere to tell that standard error is gone.
    writeln!(io::stderr(), "error: {error:#}").ok();
    code.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_has_gone_is_no_error_of_ours() {
        let gone = anyhow::Error::from(Unprinted(io::ErrorKind::BrokenPipe.into()));
        assert_eq!(tell(&gone.context("printing"), 2), ExitCode::from(141));
        let full = anyhow::Error::from(Unprinted(io::Error::from_raw_os_error(libc::ENOSPC)));
        assert_eq!(tell(&full, 2), ExitCode::from(2));
        let other = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(tell(&other, 2), ExitCode::from(2));
    }
}
