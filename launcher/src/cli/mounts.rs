//! What is mounted in a container by request: `--volume`, `--tmpfs` and `--mount`.

use std::path::{Path, PathBuf};

use anyhow::bail;

use super::parse;
use crate::spec::{Tmpfs, TmpfsOptions, Volume};

#[derive(Debug, Default, clap::Args)]
pub(super) struct MountArgs {
    /// Show SRC of the host at DST in the container
    #[arg(short, long = "volume", value_name = "SRC:DST[:ro]")]
    volumes: Vec<String>,

    /// Mount a file system in memory: size=SIZE, mode=MODE, ro, exec
    #[arg(long, value_name = "PATH[:OPTIONS]")]
    tmpfs: Vec<String>,

    /// The same in other words: type=bind,src=SRC,dst=DST, or type=tmpfs,dst=PATH with
    /// tmpfs-size=SIZE and tmpfs-mode=MODE; ro for both
    #[arg(long, value_name = "type=TYPE,…")]
    mount: Vec<String>,
}

/// What is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Mounts {
    pub(super) volumes: Vec<Volume>,
    pub(super) tmpfs: Vec<Tmpfs>,
}

impl MountArgs {
    /// What is asked for; relative paths are taken from `cwd`.
    pub(super) fn into_mounts(self, cwd: &Path) -> anyhow::Result<Mounts> {
        let mut mounts = Mounts::default();
        for text in &self.volumes {
            mounts.volumes.push(parse::volume(text, cwd).map_err(anyhow::Error::msg)?);
        }
        for text in &self.tmpfs {
            let tmpfs = tmpfs(text).map_err(|why| anyhow::anyhow!("--tmpfs {text}: {why}"))?;
            mounts.tmpfs.push(tmpfs);
        }
        for text in &self.mount {
            let what = |why| anyhow::anyhow!("--mount {text}: {why}");
            match mount(text, cwd).map_err(what)? {
                Mount::Bind(volume) => mounts.volumes.push(volume),
                Mount::Memory(tmpfs) => mounts.tmpfs.push(tmpfs),
            }
        }
        let volumes = mounts.volumes.iter().map(|volume| &volume.target);
        let mut targets: Vec<&PathBuf> =
            volumes.chain(mounts.tmpfs.iter().map(|tmpfs| &tmpfs.target)).collect();
        targets.sort();
        if let Some(pair) = targets.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("two mounts have the target {}", pair[0].display());
        }
        Ok(mounts)
    }
}

enum Mount {
    Bind(Volume),
    Memory(Tmpfs),
}

/// Where something is mounted.
fn target(path: &str) -> Result<PathBuf, String> {
    let target = parse::inside(path).map_err(|why| format!("the path {why}"))?;
    if target == Path::new("/") {
        return Err("the root itself is --rootfs, or in memory by --upper ram".to_owned());
    }
    Ok(target)
}

fn mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
    mode.ok_or_else(|| format!("'{text}' is no mode, as 1777"))
}

const PLAIN: TmpfsOptions =
    TmpfsOptions { mode: 0o1777, size: None, read_only: false, programs: false };

fn tmpfs(text: &str) -> Result<Tmpfs, String> {
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    let target = target(path)?;
    let mut read = PLAIN;
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
            Some(("mode", text)) => read.mode = mode(text)?,
            Some((key, _)) => return Err(format!("there is no option '{key}='")),
        }
    }
    Ok(Tmpfs { target, options: read })
}

/// `KEY[=VALUE],…`, in any order.
fn mount(text: &str, cwd: &Path) -> Result<Mount, String> {
    let mut kind = None;
    let (mut source, mut place) = (None, None);
    let mut options = PLAIN;
    let mut memory_only = None;
    for option in text.split(',') {
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (option, None),
        };
        let given = || value.ok_or_else(|| format!("'{key}' has no value"));
        let switch = || match value {
            None | Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(other) => Err(format!("'{key}={other}': use true or false")),
        };
        match key {
            "type" => kind = Some(given()?),
            "source" | "src" => source = Some(given()?),
            "target" | "destination" | "dst" => place = Some(target(given()?)?),
            "readonly" | "ro" => options.read_only = switch()?,
            "rw" => options.read_only = !switch()?,
            "tmpfs-size" => {
                memory_only = Some(key);
                options.size = Some(parse::size(given()?)?);
            }
            "tmpfs-mode" => {
                memory_only = Some(key);
                options.mode = mode(given()?)?;
            }
            // So it is.
            "bind-propagation" if matches!(given()?, "rprivate" | "private") => {}
            "notmpcopyup" if value.is_none() => {}
            "relabel" if matches!(given()?, "shared" | "private") => {}
            _ => return Err(format!("there is no option '{option}'")),
        }
    }
    let place = place.ok_or("it says no destination: dst=PATH")?;
    match (kind, source) {
        (Some("bind"), Some(source)) if !source.is_empty() => match memory_only {
            Some(key) => Err(format!("'{key}' is for type=tmpfs")),
            None => {
                let source = cwd.join(source);
                Ok(Mount::Bind(Volume { source, target: place, read_only: options.read_only }))
            }
        },
        (Some("bind"), _) => Err("it says no source: src=PATH".to_owned()),
        (Some("tmpfs"), None) => Ok(Mount::Memory(Tmpfs { target: place, options })),
        (Some("tmpfs"), Some(_)) => Err("a file system in memory has no source".to_owned()),
        (Some("volume"), _) | (None, _) => {
            Err("named volumes are not there: use type=bind or type=tmpfs".to_owned())
        }
        (Some(other), _) => Err(format!("there is no type '{other}': use bind or tmpfs")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(Debug, clap::Parser)]
    struct Only {
        #[command(flatten)]
        args: MountArgs,
    }

    fn read(args: &[&str]) -> Result<Mounts, String> {
        let only = Only::try_parse_from([&["run"], args].concat()).map_err(|e| e.to_string())?;
        only.args.into_mounts(Path::new("/here")).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn file_systems_in_memory_are_read() {
        assert_eq!(read(&[]).unwrap(), Mounts::default());
        let mounts = read(&["--tmpfs", "/a", "--tmpfs=/b/:size=1m,mode=0700,exec,ro"]).unwrap();
        assert_eq!(mounts.tmpfs[0], Tmpfs { target: "/a".into(), options: PLAIN });
        let options =
            TmpfsOptions { mode: 0o700, size: Some(1 << 20), read_only: true, programs: true };
        assert_eq!(mounts.tmpfs[1], Tmpfs { target: "/b".into(), options });
        let mount = "type=tmpfs,tmpfs-size=1m,destination=/c,tmpfs-mode=700,ro=true,notmpcopyup";
        let options = TmpfsOptions { programs: false, ..options };
        assert_eq!(
            read(&["--mount", mount]).unwrap().tmpfs,
            [Tmpfs { target: "/c".into(), options }]
        );
    }

    #[test]
    fn what_the_host_has_is_read_in_both_forms() {
        let volume =
            |read_only| Volume { source: "/here/s".into(), target: "/d".into(), read_only };
        for (mount, read_only) in [
            ("type=bind,src=s,dst=/d", false),
            ("target=/d/,type=bind,source=/here/s,readonly", true),
            ("type=bind,source=s,destination=/d,ro=true", true),
            ("type=bind,source=s,destination=/d,ro=false,bind-propagation=rprivate", false),
            ("type=bind,source=s,destination=/d,ro,relabel=shared", true),
        ] {
            assert_eq!(read(&["--mount", mount]).unwrap().volumes, [volume(read_only)], "{mount}");
        }
        assert_eq!(read(&["-v", "./s:/d:ro,Z"]).unwrap().volumes[0].target, Path::new("/d"));
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
            (["--mount", ""], "''"),
            (["--mount", "type=bind,src=/a"], "dst=PATH"),
            (["--mount", "type=bind,dst=/a"], "src=PATH"),
            (["--mount", "type=bind,src=,dst=/a"], "src=PATH"),
            (["--mount", "type=bind,src=/a,dst=b"], "absolute"),
            (["--mount", "type=bind,src=/a,dst=/"], "root itself"),
            (["--mount", "type=bind,src=/a,dst=/b,tmpfs-size=1m"], "type=tmpfs"),
            (["--mount", "type=bind,src=/a,dst=/b,ro=perhaps"], "true or false"),
            (["--mount", "type=bind,src=/a,dst=/b,bind-propagation=shared"], "bind-propagation"),
            (["--mount", "type=bind,src=/a,dst=/b,bind-nonrecursive"], "bind-nonrecursive"),
            (["--mount", "type=bind,src,dst=/b"], "no value"),
            (["--mount", "type=tmpfs,src=/a,dst=/b"], "no source"),
            (["--mount", "type=tmpfs,dst=/b,tmpfs-size=lots"], "lots"),
            (["--mount", "type=volume,src=a,dst=/b"], "named volumes"),
            (["--mount", "src=a,dst=/b"], "named volumes"),
            (["--mount", "type=devpts,dst=/b"], "'devpts'"),
            (["--mount", "type=bind,src=/a,dst=/b,idmap"], "'idmap'"),
        ] {
            let why = read(&args).unwrap_err();
            assert!(why.contains(word), "{args:?}: {why}");
        }
        for args in [
            ["--tmpfs=/a", "--tmpfs=/a/"],
            ["--tmpfs=/a", "--volume=/b:/a"],
            ["--volume=/b:/a", "--mount=type=bind,src=/c,dst=/a"],
        ] {
            assert!(read(&args).unwrap_err().contains("two mounts"), "{args:?}");
        }
    }
}
