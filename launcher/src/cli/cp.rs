//! `coracle cp`.
//!
//! # Theory of operation
//!
//! One side packs, the other unpacks, and a pipe is between them. The side of a
//! container is a child process in its user and mount namespaces: its root is the
//! container's, so that whatever links the container makes meanwhile lead around in
//! there, and owners are the container's. (They are resolved by openat2 below the root
//! all the same.) It stays outside of the container's pid namespace, where nothing can
//! address it. Of a container that does not run the root is mounted for the time
//! ([`mounted`]). The host's side is this process.
//!
//! In front of the archive stands a byte: whether it is of a file or of a directory.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fstat, mkdirat};

use super::ground::{self, Held};
use super::output::{Output, Standard, Unprinted};
use super::{complain, lifecycle, mounted, reason};
use crate::image::compress;
use crate::image::pack::{self, Tree};
use crate::image::unpack::files::{self, Owner, Terms};
use crate::image::unpack::{Limits, Report, UnpackError};
use crate::image::work;
use crate::plan::Plan;
use crate::spec::Upper;
use crate::stage::in_root::InRoot;
use crate::stage::passwd;
use crate::store::Store;
use crate::sys::userns::{self, Inside, UsernsError};

/// Copy files between a container and the host, or between two containers.
///
/// A directory is copied with all in it: to DEST, or, when that is there, into it;
/// SRC/. copies only what is in it. '-' as SRC is a tar on standard input, unpacked
/// into the directory DEST; as DEST a tar on standard output. A symbolic link at the
/// end of SRC is followed. Copied into a container, files belong to its user; copied to
/// the host, to the caller, without set-id bits. Devices and sockets are left out.
/// A path of the host with a colon in it is written ./PATH.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Copy as it is (what is always done; Podman's option)
    #[arg(short, long, hide = true)]
    archive: bool,

    /// From where
    #[arg(value_name = "[CONTAINER:]SRC")]
    source: String,

    /// To where
    #[arg(value_name = "[CONTAINER:]DEST")]
    target: String,
}

/// What was said of one side.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    /// A stream of this process.
    Stream,
    /// Here.
    Host(PathBuf),
    /// In a container.
    Container(String, PathBuf),
}

fn said(text: &str) -> Result<Said, String> {
    if text == "-" {
        return Ok(Said::Stream);
    }
    match text.split_once(':') {
        // What has a slash before the colon is no name.
        Some((name, path)) if !name.contains('/') && !name.starts_with('.') && !name.is_empty() => {
            if path.is_empty() {
                return Err(format!("'{text}' names no path in the container"));
            }
            // As seen from the container's root.
            Ok(Said::Container(name.to_owned(), Path::new("/").join(path)))
        }
        _ if text.is_empty() => Err("'' is no path".to_owned()),
        _ => Ok(Said::Host(text.into())),
    }
}

/// One side.
enum Side {
    Stream,
    Host(PathBuf),
    /// Its init, which has the mounts that its programs see.
    Running(Box<Held>, OwnedFd, PathBuf),
    Ended(Box<Held>, Box<Plan>, PathBuf),
}

impl Side {
    fn find(store: &Store, said: Said, cwd: &Path) -> anyhow::Result<Self> {
        let (name, path) = match said {
            Said::Stream => return Ok(Self::Stream),
            Said::Host(path) => {
                let ends = path.as_os_str().as_bytes().ends_with(b"/");
                let path = cwd.join(path);
                return Ok(Self::Host(if ends { path.join("") } else { path }));
            }
            Said::Container(name, path) => (name, path),
        };
        let held = Box::new(ground::hold(store, &name)?);
        let init = held.state.init.filter(|_| held.runs());
        if let Some(init) = init.map(lifecycle::open).transpose()?.flatten() {
            return Ok(Self::Running(held, init, path));
        }
        if matches!(held.state.spec.upper, Upper::Ram(_)) {
            anyhow::bail!("the changes of container '{name}' were in memory, and are gone with it");
        }
        let plan = Box::new(held.plan()?);
        Ok(Self::Ended(held, plan, path))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Stream => Path::new("-"),
            Self::Host(path) | Self::Running(_, _, path) | Self::Ended(_, _, path) => path,
        }
    }

    /// Starts `work` with the root of a container; `None` for the host.
    fn start(
        &self,
        work: impl FnOnce(InRoot) -> Result<Done, String>,
    ) -> Option<Result<Inside, UsernsError>> {
        let told = |done: Done| Ok(done.encode());
        match self {
            Self::Stream | Self::Host(_) => None,
            Self::Running(_, init, _) => Some(userns::start_in_process(init.as_fd(), || {
                work::prepare();
                work(root()?).and_then(told)
            })),
            Self::Ended(held, plan, _) => {
                let merged = crate::plan::merged(&held.store);
                Some(userns::start_with_map(&held.state.map, || {
                    work::prepare();
                    mounted::with_root(plan, &merged, work).and_then(told)
                }))
            }
        }
    }

    /// Whose files become that are put there.
    fn owner(&self, root: &InRoot) -> Result<Owner, String> {
        let held = match self {
            Self::Stream | Self::Host(_) => return Ok(Owner::Caller),
            Self::Running(held, ..) | Self::Ended(held, ..) => held,
        };
        let read = |path: &str| {
            let mut text = String::new();
            // As for a program that is started: a file that is not there has nobody.
            if let Ok(file) = root.open(path.as_ref(), OFlag::O_RDONLY) {
                drop(File::from(file).take(1 << 20).read_to_string(&mut text));
            }
            text
        };
        let user = held.state.spec.user.as_deref();
        let identity = passwd::identity(user, &read("/etc/passwd"), &read("/etc/group"))
            .map_err(|error| error.to_string())?;
        Ok(Owner::Is(identity.uid, identity.gid))
    }

    fn terms(&self, owner: Owner) -> Option<Terms<'_>> {
        let map = match self {
            Self::Stream | Self::Host(_) => return None,
            Self::Running(held, ..) | Self::Ended(held, ..) => &held.state.map,
        };
        Some(Terms { map, limits: UNLIMITED, owner })
    }
}

/// What came of one side's work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Done {
    /// Extended attributes that were left out.
    attributes: u64,
    /// Why standard output did not take it all; 0 when it did.
    unprinted: i32,
}

impl Done {
    /// For the way from one process to another.
    fn encode(self) -> Vec<u8> {
        [&self.attributes.to_ne_bytes()[..], &self.unprinted.to_ne_bytes()].concat()
    }

    /// What [`Self::encode`] made.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (attributes, unprinted) = bytes.split_first_chunk()?;
        let unprinted = i32::from_ne_bytes(unprinted.try_into().ok()?);
        Some(Self { attributes: u64::from_ne_bytes(*attributes), unprinted })
    }
}

impl From<Report> for Done {
    fn from(report: Report) -> Self {
        Self { attributes: report.attributes, ..Self::default() }
    }
}

/// What is copied is the caller's own business.
const UNLIMITED: Limits = Limits { bytes: u64::MAX, members: u64::MAX, names: 4 << 30 };

fn root() -> Result<InRoot, String> {
    InRoot::open_root("/".as_ref()).map_err(|error| format!("cannot open the root: {error}"))
}

/// Only what is in the directory is meant: `DIR/.`, the root.
fn is_content(path: &Path) -> bool {
    let text = path.as_os_str().as_bytes();
    text.ends_with(b"/.") || text == b"." || path.file_name().is_none()
}

fn base(path: &Path) -> OsString {
    path.file_name().map(OsString::from).unwrap_or_default()
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> String {
    move |error| format!("{}: {error}", path.display())
}

/// Packs what is at `path` below `root`. For a stream of ours the archive is named as
/// it is; for another side a byte stands in front of it.
fn send(root: &InRoot, path: &Path, stream: bool, output: File) -> Result<Done, String> {
    let found = root.open(path, OFlag::O_PATH).map_err(at(path))?;
    let stat = fstat(&found).map_err(|errno| at(path)(errno.into()))?;
    let output: Box<dyn Write> =
        if stream { Box::new(Standard::of(output)) } else { Box::new(output) };
    let mut output = BufWriter::with_capacity(256 << 10, output);
    let called = |fallback: &[u8]| match (stream, is_content(path)) {
        (true, false) => base(path).as_bytes().to_vec(),
        _ => fallback.to_vec(),
    };
    let kind = stat.st_mode & libc::S_IFMT;
    if !stream {
        let byte = if kind == libc::S_IFDIR { b'd' } else { b'f' };
        output.write_all(&[byte]).map_err(at(path))?;
    }
    let packed = match kind {
        libc::S_IFDIR => pack::pack(&Tree::plain(InRoot::new(found), called(b"")), output),
        libc::S_IFREG => {
            let opened = root.open(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK).map_err(at(path))?;
            pack::pack_file(File::from(opened), &called(b"file"), output)
        }
        _ => return Err(format!("{}: it is neither a file nor a directory", path.display())),
    };
    let sent = packed
        .map_err(anyhow::Error::from)
        .and_then(|mut output| output.flush().with_context(|| path.display().to_string()));
    match sent {
        Ok(()) => Ok(Done::default()),
        Err(error) => match Unprinted::of(error.as_ref()) {
            Some(unprinted) => Ok(Done { unprinted: unprinted.encode(), ..Done::default() }),
            None => Err(reason(&error)),
        },
    }
}

/// Unpacks what [`send`] sent to `path` below `root`. `source`: as it was called there.
fn receive(
    root: &InRoot,
    path: &Path,
    source: &Path,
    input: File,
    terms: Terms<'_>,
) -> Result<Report, String> {
    let mut input = BufReader::with_capacity(256 << 10, input);
    let mut byte = [0];
    // The other side says itself why there is nothing.
    input.read_exact(&mut byte).map_err(|_| String::new())?;
    let is_dir = byte[0] == b'd';
    let directory = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let told = |error: UnpackError| error.to_string();
    let there = match root.open(path, OFlag::O_PATH) {
        Ok(found) => Some(found),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(at(path)(error)),
    };
    let kind = match &there {
        Some(found) => {
            Some(fstat(found).map_err(|errno| at(path)(errno.into()))?.st_mode & libc::S_IFMT)
        }
        None => None,
    };
    match (there, kind) {
        (Some(found), Some(libc::S_IFDIR)) => {
            let within = InRoot::new(found);
            if !is_dir {
                return files::file(input, within, &base(source), terms).map_err(told);
            }
            if is_content(source) {
                return files::tree(input, within, false, terms).map_err(told);
            }
            make_and_fill(&within, &base(source), input, terms)
        }
        (Some(_), Some(libc::S_IFREG)) if !is_dir => {
            let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK;
            let opened = File::from(root.open(path, flags).map_err(at(path))?);
            let within = root.open("/".as_ref(), directory).map_err(at(path))?;
            files::over(input, &opened, InRoot::new(within), terms).map_err(told)
        }
        (Some(_), _) if is_dir => Err(format!(
            "{}: it is no directory, and a directory cannot take its place",
            path.display()
        )),
        (Some(_), _) => Err(format!("{}: it is neither a file nor a directory", path.display())),
        (None, _) => {
            let ends = path.as_os_str().as_bytes().ends_with(b"/");
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(format!("{}: there is no such directory", path.display()));
            };
            let within = root.open(parent, directory).map_err(at(parent))?;
            let within = InRoot::new(within);
            if is_dir {
                return make_and_fill(&within, name, input, terms);
            }
            if ends {
                return Err(format!("{}: there is no such directory", path.display()));
            }
            files::file(input, within, name, terms).map_err(told)
        }
    }
}

/// Puts a directory into another, as `name`.
fn make_and_fill(
    within: &InRoot,
    name: &std::ffi::OsStr,
    input: impl Read,
    terms: Terms<'_>,
) -> Result<Report, String> {
    let path = Path::new("/").join(name);
    let fresh = match mkdirat(within, name, Mode::from_bits_truncate(0o700)) {
        Ok(()) => true,
        Err(Errno::EEXIST) => false,
        Err(errno) => return Err(at(Path::new(name))(errno.into())),
    };
    let made = within.open_plain(&path, OFlag::O_PATH | OFlag::O_DIRECTORY);
    let made = made.map_err(at(Path::new(name)))?;
    files::tree(input, InRoot::new(made), fresh, terms).map_err(|error| error.to_string())
}

/// Unpacks a tar of somebody else's into the directory at `path`.
fn unpack_stream(
    root: &InRoot,
    path: &Path,
    input: File,
    terms: Terms<'_>,
) -> Result<Report, String> {
    let within = root.open(path, OFlag::O_PATH | OFlag::O_DIRECTORY).map_err(at(path))?;
    let input = BufReader::with_capacity(256 << 10, input);
    let (_, content) = compress::content(input).map_err(|error| error.to_string())?;
    let terms = Terms { owner: Owner::AsArchived, ..terms };
    files::tree(content, InRoot::new(within), false, terms).map_err(|error| error.to_string())
}

pub(super) fn cp(args: &Args) -> anyhow::Result<u8> {
    let (source, target) = (said(&args.source), said(&args.target));
    let (source, target) =
        (source.map_err(anyhow::Error::msg)?, target.map_err(anyhow::Error::msg)?);
    if !matches!((&source, &target), (Said::Container(..), _) | (_, Said::Container(..))) {
        anyhow::bail!("neither path is in a container: write CONTAINER:PATH");
    }
    if matches!((&source, &target), (Said::Container(a, _), Said::Container(b, _)) if a == b) {
        anyhow::bail!("both paths are in one container: use 'coracle exec' and cp there");
    }
    let store = Store::open()?;
    let cwd = std::env::current_dir().context("the working directory is gone")?;
    let from = Side::find(&store, source, &cwd)?;
    let to = Side::find(&store, target, &cwd)?;
    let report = copy(&from, &to)
        .with_context(|| format!("cannot copy {} to {}", args.source, args.target))?;
    if report > 0 {
        complain(format!("warning: {report} extended attributes were left out"));
    }
    Ok(0)
}

/// Copies; how many attributes were left out.
fn copy(from: &Side, to: &Side) -> anyhow::Result<u64> {
    let (reader, writer) = io::pipe().context("cannot make a pipe")?;
    // Whoever is forked has both ends, and closes the one that is not its own.
    let reader = Cell::new(Some(File::from(OwnedFd::from(reader))));
    let writer = Cell::new(Some(File::from(OwnedFd::from(writer))));
    let stream_in = matches!(from, Side::Stream);
    let stream_out = matches!(to, Side::Stream);
    let standard = |fd: std::os::fd::BorrowedFd<'_>| -> anyhow::Result<File> {
        Ok(fd.try_clone_to_owned().context("cannot use the standard streams")?.into())
    };
    if stream_in {
        reader.set(Some(standard(io::stdin().as_fd())?));
        writer.set(None);
    } else if stream_out {
        let output = Output::open(None)?;
        writer.set(Some(output.file.try_clone().context("cannot use standard output")?));
        reader.set(None);
    }
    let pack = |root: InRoot| -> Result<Done, String> {
        drop(reader.take());
        let output = writer.take().ok_or("nowhere to write to")?;
        send(&root, from.path(), stream_out, output)
    };
    let sender = from.start(pack).transpose()?;
    if sender.is_some() {
        drop(writer.take());
    }
    let unpack = |root: InRoot| -> Result<Done, String> {
        drop(writer.take());
        let input = reader.take().ok_or("nothing to read from")?;
        let own = crate::idmap::IdMap::of_caller(0, 0, None, "", "");
        let host = Terms { map: &own, limits: UNLIMITED, owner: Owner::Caller };
        let terms = to.terms(to.owner(&root)?).unwrap_or(host);
        let report = if stream_in {
            unpack_stream(&root, to.path(), input, terms)
        } else {
            receive(&root, to.path(), from.path(), input, terms)
        };
        report.map(Done::from)
    };
    let receiver = to.start(unpack).transpose()?;
    if receiver.is_some() {
        drop(reader.take());
    }
    // What is left of it is done here.
    let mut sent = Ok(Done::default());
    let mut received = Ok(Done::default());
    match (from, to) {
        (Side::Host(path), _) => {
            let output = writer.take().context("nowhere to write to")?;
            sent = root().and_then(|root| send(&root, path, false, output));
        }
        (_, Side::Host(_)) => received = root().and_then(unpack),
        _ => {}
    }
    drop((reader.take(), writer.take()));
    let of_child = |child: Option<Inside>, own: Result<Done, String>| match child {
        None => own,
        Some(child) => {
            let bytes = child.finish().map_err(|error| error.to_string())?;
            Done::decode(&bytes).ok_or_else(|| "its result is damaged".to_owned())
        }
    };
    let received = of_child(receiver, received);
    let sent = of_child(sender, sent);
    match (sent, received) {
        // Who reads no more had a reason.
        (_, Err(why)) if !why.is_empty() => anyhow::bail!("{why}"),
        (Err(why), _) => anyhow::bail!("{why}"),
        (Ok(_), Err(_)) => anyhow::bail!("nothing came"),
        (Ok(Done { unprinted: errno @ 1.., .. }), _) => Err(Unprinted::decode(errno).into()),
        (Ok(sent), Ok(received)) => Ok(sent.attributes + received.attributes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_told_apart() {
        let container = |name: &str, path: &str| Ok(Said::Container(name.into(), path.into()));
        for (text, want) in [
            ("-", Ok(Said::Stream)),
            ("a", Ok(Said::Host("a".into()))),
            ("./a:b", Ok(Said::Host("./a:b".into()))),
            ("/a:b", Ok(Said::Host("/a:b".into()))),
            (".a:b", Ok(Said::Host(".a:b".into()))),
            ("c:/x", container("c", "/x")),
            ("c:x/", container("c", "/x/")),
            ("c:/a:b", container("c", "/a:b")),
        ] {
            let got = said(text);
            assert_eq!(got, want, "{text}");
            if let (Ok(Said::Container(_, got)), Ok(Said::Container(_, want))) = (got, want) {
                assert_eq!(got.as_os_str(), want.as_os_str());
            }
        }
        assert!(said("").is_err() && said("c:").is_err());
    }

    #[test]
    fn what_came_of_a_side_is_handed_on() {
        let done = Done { attributes: 7, unprinted: libc::ENOSPC };
        assert_eq!(Done::decode(&done.encode()), Some(done));
        assert_eq!(Done::decode(&[0; 8]), None);
    }

    #[test]
    fn what_is_in_a_directory_is_told_from_itself() {
        for (path, content) in
            [("/a/.", true), ("/", true), ("/a/..", true), ("/a", false), ("/a/", false)]
        {
            assert_eq!(is_content(path.as_ref()), content, "{path}");
        }
    }
}
