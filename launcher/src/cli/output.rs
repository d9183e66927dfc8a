//! What a command prints, and a file that it writes: whole, or not at all.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal as _, StdoutLock, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The exit code where nobody reads what is printed: what a shell shows of a program that
/// SIGPIPE has ended. Ours goes on with what it does besides printing.
pub(super) const UNREAD: u8 = 128 + libc::SIGPIPE as u8;

/// Standard output did not take what was printed.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub(super) struct Unprinted(#[source] io::Error);

impl Unprinted {
    /// Finds it behind an error: it may have come through what only knows `io::Error`.
    pub(super) fn of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            let found = match inner {
                Some(inner) => inner.downcast_ref(),
                None => error.downcast_ref(),
            };
            if found.is_some() {
                return found;
            }
            next = error.source();
        }
        None
    }

    /// Whoever was reading has seen enough: there is nothing to tell, and nobody.
    pub(super) fn is_unread(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }

    /// That whoever was reading has gone, seen by other means than writing.
    pub(super) fn unread() -> Self {
        Self(io::ErrorKind::BrokenPipe.into())
    }

    /// For the way from one process to another: its number.
    pub(super) fn encode(&self) -> i32 {
        self.0.raw_os_error().unwrap_or(libc::EIO)
    }

    /// What [`Self::encode`] made.
    pub(super) fn decode(errno: i32) -> Self {
        Self(io::Error::from_raw_os_error(errno))
    }

    fn wrap(error: io::Error) -> io::Error {
        io::Error::new(error.kind(), Self(error))
    }
}

/// Writes to standard output, with errors that say so.
#[derive(Debug)]
pub(super) struct Standard<W>(W);

impl Standard<File> {
    /// `file` is standard output, duplicated.
    pub(super) fn of(file: File) -> Self {
        Self(file)
    }
}

/// What commands print to.
pub(super) fn standard() -> Standard<StdoutLock<'static>> {
    Standard(io::stdout().lock())
}

impl<W: Write> Write for Standard<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(Unprinted::wrap)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(Unprinted::wrap)
    }
}

impl<W: AsFd> AsFd for Standard<W> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Where the output goes.
#[derive(Debug)]
pub(super) struct Output {
    /// What is written to.
    pub(super) file: File,
    /// Of a new file: its name until it is whole, and then.
    place: Option<(PathBuf, PathBuf)>,
    /// It is standard output.
    standard: bool,
}

impl Output {
    /// Opens `path`, or standard output: bytes, which no terminal is to get.
    pub(super) fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path.filter(|path| *path != Path::new("-")) else {
            let stdout = io::stdout();
            if stdout.is_terminal() {
                anyhow::bail!("an archive is not for a terminal: use -o FILE, or a pipe");
            }
            let file = stdout.as_fd().try_clone_to_owned().context("cannot use standard output")?;
            return Ok(Self { file: file.into(), place: None, standard: true });
        };
        // A pipe, or a device, stays what it is.
        if fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
            let file = OpenOptions::new().write(true).open(path);
            let file = file.with_context(|| format!("cannot write {}", path.display()))?;
            return Ok(Self { file, place: None, standard: false });
        }
        let name = path.file_name().with_context(|| format!("'{}' is no file", path.display()))?;
        let mut part = std::ffi::OsString::from(".");
        part.push(name);
        part.push(format!(".{}.part", std::process::id()));
        let part = path.with_file_name(part);
        let file = OpenOptions::new().write(true).create_new(true).open(&part);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { file, place: Some((part, path.to_owned())), standard: false })
    }

    /// What is written to, with errors that say so where it is standard output.
    pub(super) fn writer(&self) -> BufWriter<Box<dyn Write + '_>> {
        let file = &self.file;
        let writer: Box<dyn Write> =
            if self.standard { Box::new(Standard(file)) } else { Box::new(file) };
        BufWriter::with_capacity(256 << 10, writer)
    }

    /// All is written.
    pub(super) fn keep(mut self) -> anyhow::Result<()> {
        let Some((part, path)) = self.place.take() else { return Ok(()) };
        let kept = fs::rename(&part, &path);
        if kept.is_err() {
            drop(fs::remove_file(&part));
        }
        kept.with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some((part, _)) = &self.place {
            // Why it is not whole has been told.
            drop(fs::remove_file(part));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes nothing.
    struct Full(i32);

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(self.0))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_standard_output_did_not_take_is_known_behind_other_errors() {
        for (errno, unread) in [(libc::EPIPE, true), (libc::ENOSPC, false)] {
            let error = Standard(Full(errno)).write_all(b"x").unwrap_err();
            let error = crate::image::ImageError::Os { what: "packing".to_owned(), source: error };
            let error = anyhow::Error::from(error).context("exporting");
            let found = Unprinted::of(error.as_ref()).unwrap();
            assert_eq!((found.is_unread(), found.encode()), (unread, errno));
            let told = crate::cli::reason(&error);
            let os = io::Error::from_raw_os_error(errno).to_string();
            assert!(told.ends_with(&format!("cannot write to standard output: {os}")), "{told}");
            assert_eq!(told.matches(&os).count(), 1, "{told}");
        }
    }

    #[test]
    fn other_broken_pipes_are_none_of_it() {
        let error = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(Unprinted::of(error.as_ref()).is_none());
    }
}
