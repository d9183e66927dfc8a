//! Standard output, whose reader may go away: `… | head -5`.

use std::fmt;
use std::io::{self, Write as _};

/// Prints a line, as `println!` does. Ends this program where nobody takes it.
macro_rules! say {
    ($($text:tt)*) => { crate::say::line(::std::format_args!($($text)*)) };
}

/// Prints a line. Nothing of this program's is running while it does, so that it can end
/// there: quietly, as by SIGPIPE, when whoever was reading has seen enough.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    let mut out = io::stdout().lock();
    if let Err(error) = writeln!(out, "{text}").and_then(|()| out.flush()) {
        if error.kind() == io::ErrorKind::BrokenPipe {
            std::process::exit(141);
        }
        tell(&format!("error: cannot write to standard output: {error}"));
        std::process::exit(2);
    }
}

/// Says it on standard error, if there is somebody to be told.
pub(crate) fn tell(text: &str) {
    writeln!(io::stderr(), "{text}").ok();
}
