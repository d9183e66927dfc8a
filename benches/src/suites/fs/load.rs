//! Load generators: hidden subcommands of this program, for work where a shell
//! tool would take most of the time itself. They run in the directory measured.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use tests::say;

use super::data::{self, BLOCK, CHUNK, Sum};
use super::tree::mix;

/// Word of the hidden subcommand whose subcommands these are.
pub(crate) const NAME: &str = "fs-load";

/// What is appended to each file.
pub(crate) const APPENDED: &[u8] = b"one more line\n";

/// A load. Lists are files with a path a line.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Load {
    /// Asks so many times for each name of a list, none of which is there.
    Missing { list: PathBuf, times: u32 },
    /// Appends to each file of a list.
    Append { list: PathBuf },
    /// Reads each file of a list, and says the sum of all.
    Cat { list: PathBuf },
    /// Reads standard input to its end, and says its sum.
    Sink,
    /// Writes a large file of so many MiB, and syncs it.
    Write { file: PathBuf, mib: u64 },
    /// Reads a large file and checks it.
    Read { file: PathBuf },
    /// Works without end, for nothing.
    Burn,
    /// Reads so many random blocks of a large file and checks each.
    Pread { file: PathBuf, count: u64, seed: u64 },
}

/// Does it.
///
/// # Errors
/// What the file system answered, or that it answered wrongly.
pub(crate) fn run(load: &Load) -> Result<()> {
    match load {
        Load::Missing { list, times } => missing(&lines(list)?, *times),
        Load::Append { list } => lines(list)?.iter().try_for_each(|path| append(Path::new(path))),
        Load::Cat { list } => {
            let mut sum = Sum::of(b"");
            for path in lines(list)? {
                sum = sum.then(Sum::of(&fs::read(&path).context(path)?));
            }
            say!("{sum}")?;
            Ok(())
        }
        Load::Sink => sink(&mut std::io::stdin().lock()),
        Load::Write { file, mib } => {
            let mut file = File::create_new(file).with_context(|| file.display().to_string())?;
            data::write_large(&mut file, *mib)?;
            file.sync_all().context("fsync")
        }
        Load::Read { file } => {
            let mut opened = File::open(file).with_context(|| file.display().to_string())?;
            let bytes = data::check_large(&mut opened)?;
            ensure!(bytes == opened.metadata()?.len(), "read {bytes} bytes, not the whole file");
            Ok(())
        }
        Load::Burn => loop {
            std::hint::black_box(mix(1));
        },
        Load::Pread { file, count, seed } => pread(file, *count, *seed),
    }
}

fn lines(list: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(list).with_context(|| list.display().to_string())?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn missing(names: &[String], times: u32) -> Result<()> {
    for _ in 0..times {
        for name in names {
            match fs::symlink_metadata(name) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).context(name.clone()),
                Ok(_) => bail!("{name} is there"),
            }
        }
    }
    Ok(())
}

fn append(path: &Path) -> Result<()> {
    let open = OpenOptions::new().append(true).open(path);
    open.and_then(|mut file| file.write_all(APPENDED)).with_context(|| path.display().to_string())
}

fn sink(input: &mut impl Read) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut sum = Sum::of(b"");
    loop {
        let mut got = 0;
        while got < CHUNK {
            match input.read(&mut buffer[got..])? {
                0 => break,
                count => got += count,
            }
        }
        sum = sum.then(Sum::of(&buffer[..got]));
        if got < CHUNK {
            say!("{sum}")?;
            return Ok(());
        }
    }
}

fn pread(path: &Path, count: u64, seed: u64) -> Result<()> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let blocks = file.metadata()?.len() / BLOCK as u64;
    ensure!(blocks > 0, "{} is empty", path.display());
    let mut buffer = vec![0; BLOCK];
    for at in 0..count {
        let number = mix(seed ^ at) % blocks;
        file.read_exact_at(&mut buffer, number * BLOCK as u64)?;
        ensure!(data::is_block(&buffer, number), "block {number} of the large file is wrong");
    }
    Ok(())
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_missing_name_that_is_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let name = |name: &str| dir.path().join(name).display().to_string();
        assert!(missing(&[name("a"), name("b")], 2).is_ok());
        fs::write(name("b"), "").unwrap();
        assert!(missing(&[name("a"), name("b")], 2).is_err());
        // ENOTDIR is another answer than ENOENT.
        assert!(missing(&[name("b/c")], 1).is_err());
    }

    #[test]
    fn random_reads_tell_a_wrong_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large");
        run(&Load::Write { file: path.clone(), mib: 1 }).unwrap();
        run(&Load::Read { file: path.clone() }).unwrap();
        pread(&path, 100, 1).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&vec![0; 1 << 20], 0).unwrap();
        assert!(pread(&path, 1, 1).is_err());
        assert!(run(&Load::Read { file: path }).is_err());
    }

    #[test]
    fn appending_needs_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        assert!(append(&path).is_err());
        fs::write(&path, "a").unwrap();
        append(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), [b"a", APPENDED].concat());
    }
}
