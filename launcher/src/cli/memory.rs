//! What of a container lives in memory alone, besides `--tmpfs`: `--secret`, `--shm-size`.

use std::path::Path;

use anyhow::{bail, ensure};

use super::parse;
use crate::spec::{InMemory, SHM, Secret, Tmpfs};

#[derive(Debug, clap::Args)]
pub(super) struct MemoryArgs {
    /// Bound /dev/shm [default: 64m]
    #[arg(
        long,
        value_name = "SIZE",
        default_value_t = SHM,
        hide_default_value = true,
        value_parser = parse::size
    )]
    shm_size: u64,

    /// With --read-only, leave /run, /tmp and /var/tmp writable, in memory
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    read_only_tmpfs: bool,

    /// Show FILE's content as /run/secrets/NAME, in memory, to the container's user only
    #[arg(long = "secret", value_name = "NAME=FILE")]
    secrets: Vec<String>,
}

impl MemoryArgs {
    /// What is asked for, with these file systems; relative paths are taken from `cwd`.
    pub(super) fn into_memory(self, tmpfs: Vec<Tmpfs>, cwd: &Path) -> anyhow::Result<InMemory> {
        let mut memory = InMemory {
            tmpfs,
            scratch: self.read_only_tmpfs,
            shm: self.shm_size,
            ..InMemory::default()
        };
        for text in &self.secrets {
            let Some((name, file)) = text.split_once('=') else {
                bail!("--secret {text}: use NAME=FILE");
            };
            ensure!(
                is_secret(name),
                "--secret '{name}': a name has letters, digits, '_', '-' and '.', and does not \
                 start with one of the last two"
            );
            ensure!(!file.is_empty(), "--secret {name}: names no file");
            if memory.secrets.iter().any(|other| other.name == name) {
                bail!("two secrets have the name {name}");
            }
            memory.secrets.push(Secret { name: name.to_owned(), source: cwd.join(file) });
        }
        Ok(memory)
    }
}

/// One component of a path, at most 253 bytes as in Podman.
fn is_secret(name: &str) -> bool {
    let first = name.bytes().next();
    first.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        && name.len() <= 253
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(Debug, clap::Parser)]
    struct Only {
        #[command(flatten)]
        args: MemoryArgs,
    }

    fn read(args: &[&str]) -> Result<InMemory, String> {
        let only = Only::try_parse_from([&["run"], args].concat()).map_err(|e| e.to_string())?;
        only.args.into_memory(Vec::new(), Path::new("/here")).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn options_are_read() {
        assert_eq!(read(&[]).unwrap(), InMemory::default());
        assert!(!read(&["--read-only-tmpfs=false"]).unwrap().scratch);
        assert!(read(&["--read-only-tmpfs"]).unwrap().scratch);
        assert_eq!(read(&["--shm-size=1g"]).unwrap().shm, 1 << 30);
        let memory = read(&["--secret", "a.b=f", "--secret=_x=/k=v"]).unwrap();
        assert_eq!(memory.secrets[0].source, Path::new("/here/f"));
        assert_eq!(memory.secrets[1].source, Path::new("/k=v"));
    }

    #[test]
    fn nonsense_is_refused() {
        for (args, word) in [
            (["--shm-size", "lots"], "lots"),
            (["--secret", "a"], "NAME=FILE"),
            (["--secret", "=f"], "''"),
            (["--secret", "..=f"], "'..'"),
            (["--secret", "a/b=f"], "'a/b'"),
            (["--secret", "a="], "no file"),
        ] {
            let why = read(&args).unwrap_err();
            assert!(why.contains(word), "{args:?}: {why}");
        }
        assert!(read(&["--secret", "a=b", "--secret", "a=c"]).unwrap_err().contains("two"));
    }
}
