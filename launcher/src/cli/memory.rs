//! What of a container lives in memory alone: `--tmpfs` and `--secret`.

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};

use super::parse;
use crate::spec::{InMemory, Secret, Tmpfs, TmpfsOptions};

#[derive(Debug, clap::Args)]
pub(super) struct MemoryArgs {
    /// Mount a file system in memory: size=SIZE, mode=MODE, ro, exec
    #[arg(long, value_name = "PATH[:OPTIONS]")]
    tmpfs: Vec<String>,

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
    /// What is asked for; relative paths are taken from `cwd`.
    pub(super) fn into_memory(self, cwd: &Path) -> anyhow::Result<InMemory> {
        let mut memory = InMemory { scratch: self.read_only_tmpfs, ..InMemory::default() };
        for text in &self.tmpfs {
            let tmpfs = tmpfs(text).map_err(|why| anyhow::anyhow!("--tmpfs {text}: {why}"))?;
            if memory.tmpfs.iter().any(|other| other.target == tmpfs.target) {
                bail!("two of --tmpfs have the target {}", tmpfs.target.display());
            }
            memory.tmpfs.push(tmpfs);
        }
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

fn tmpfs(text: &str) -> Result<Tmpfs, String> {
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    let target: PathBuf = parse::inside(path).map_err(|why| format!("the path {why}"))?;
    if target == Path::new("/") {
        return Err("the root itself can be in memory by --upper ram".to_owned());
    }
    let mut read = TmpfsOptions { mode: 0o1777, size: None, read_only: false, programs: false };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            None => match option {
                "rw" => read.read_only = false,
                "ro" => read.read_only = true,
                "exec" => read.programs = true,
                "noexec" => read.programs = false,
                // So it is.
                "nosuid" | "nodev" | "notmpcopyup" => {}
                _ => return Err(format!("there is no option '{option}'")),
            },
            Some(("size", size)) => read.size = Some(parse::size(size)?),
            Some(("mode", mode)) => {
                read.mode = u32::from_str_radix(mode, 8)
                    .ok()
                    .filter(|mode| *mode <= 0o7777)
                    .ok_or_else(|| format!("'{mode}' is no mode, as 1777"))?;
            }
            Some((key, _)) => return Err(format!("there is no option '{key}='")),
        }
    }
    Ok(Tmpfs { target, options: read })
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
        only.args.into_memory(Path::new("/here")).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn options_are_read() {
        assert_eq!(read(&[]).unwrap(), InMemory::default());
        let memory = read(&["--tmpfs", "/a", "--tmpfs=/b/:size=1m,mode=0700,exec,ro"]).unwrap();
        let default = TmpfsOptions { mode: 0o1777, size: None, read_only: false, programs: false };
        assert_eq!(memory.tmpfs[0], Tmpfs { target: "/a".into(), options: default });
        let given =
            TmpfsOptions { mode: 0o700, size: Some(1 << 20), read_only: true, programs: true };
        assert_eq!(memory.tmpfs[1], Tmpfs { target: "/b".into(), options: given });
        assert!(!read(&["--read-only-tmpfs=false"]).unwrap().scratch);
        assert!(read(&["--read-only-tmpfs"]).unwrap().scratch);
        let memory = read(&["--secret", "a.b=f", "--secret=_x=/k=v"]).unwrap();
        assert_eq!(memory.secrets[0].source, Path::new("/here/f"));
        assert_eq!(memory.secrets[1].source, Path::new("/k=v"));
    }

    #[test]
    fn nonsense_is_refused() {
        for (args, word) in [
            (["--tmpfs", "a"], "absolute"),
            (["--tmpfs", "/"], "--upper ram"),
            (["--tmpfs", "/a/../b"], "'..'"),
            (["--tmpfs", "/a:suid"], "suid"),
            (["--tmpfs", "/a:size=lots"], "lots"),
            (["--tmpfs", "/a:mode=9"], "'9'"),
            (["--tmpfs", "/a:mode=77777"], "'77777'"),
            (["--tmpfs", "/a:uid=1"], "uid"),
            (["--secret", "a"], "NAME=FILE"),
            (["--secret", "=f"], "''"),
            (["--secret", "..=f"], "'..'"),
            (["--secret", "a/b=f"], "'a/b'"),
            (["--secret", "a="], "no file"),
        ] {
            let why = read(&args).unwrap_err();
            assert!(why.contains(word), "{args:?}: {why}");
        }
        assert!(read(&["--tmpfs", "/a", "--tmpfs", "/a/"]).unwrap_err().contains("two"));
        assert!(read(&["--secret", "a=b", "--secret", "a=c"]).unwrap_err().contains("two"));
    }
}
