//! `coracle setup podman`: Podman, Buildah and skopeo on our network and overlay.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use super::print;
use crate::setup::{Edit, File, database, expanded, line_diff, other_store};
use crate::spawn;
use crate::store::Store;
use crate::text::printable;

/// Make another engine use the network and the overlay of these programs.
///
/// Edits the engine's configuration of the calling user; what stands there otherwise,
/// comments included, stays. Prints what it changes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    engine: Engine,
}

#[derive(Debug, clap::Subcommand)]
enum Engine {
    Podman(Podman),
}

/// Set network_cmd_path in containers.conf and mount_program in storage.conf.
///
/// Without --network and --storage, both. A store of another driver than overlay is left
/// alone. What runs already goes on as it is. The containers of 'podman build' have the
/// slirp4netns that is found on $PATH all the same.
#[derive(Debug, clap::Args)]
struct Podman {
    /// Only the network (containers.conf)
    #[arg(long)]
    network: bool,
    /// Only the storage (storage.conf)
    #[arg(long)]
    storage: bool,
    /// Take back what an earlier call has changed
    #[arg(long)]
    undo: bool,
    /// Print what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// What was changed, by the file's name; kept in the store.
type Record = BTreeMap<String, Made>;

#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
struct Made {
    /// The file itself: no symbolic link.
    path: PathBuf,
    #[serde(flatten)]
    edit: Edit,
}

/// A file to be written (None: removed), and what is then to be remembered.
struct Step {
    file: File,
    path: PathBuf,
    now: Option<String>,
    then: Option<String>,
    made: Option<Made>,
}

pub(super) fn setup(args: &Args) -> anyhow::Result<u8> {
    let Engine::Podman(podman) = &args.engine;
    let files: Vec<File> = [(File::Containers, podman.network), (File::Storage, podman.storage)]
        .into_iter()
        .filter(|(_, asked)| *asked || podman.network == podman.storage)
        .map(|(file, _)| file)
        .collect();
    let store = Store::open()?;
    let at = store.root().join("setup-podman.json");
    let mut record: Record = match read(&at)? {
        Some(text) => serde_json::from_str(&text)
            .with_context(|| format!("{} is damaged: remove it", at.display()))?,
        None => Record::new(),
    };

    // All is decided before anything is written.
    let mut steps = Vec::new();
    for file in files {
        let made = record.get(file.name());
        let step = if podman.undo { undo(file, made)? } else { Some(apply(file, made)?) };
        steps.extend(step);
    }
    let mut told = String::new();
    for step in &steps {
        let path = printable(&step.path.display().to_string());
        let (now, then) = (step.now.as_deref(), step.then.as_deref());
        if now == then {
            told.push_str(&format!("{path}: nothing to change\n"));
            continue;
        }
        let note = match (now, then) {
            (None, _) => " (new)",
            (_, None) => " (removed)",
            _ => "",
        };
        told.push_str(&format!("--- {path}{note}\n"));
        for line in line_diff(now.unwrap_or_default(), then.unwrap_or_default(), 2).lines() {
            told.push_str(&printable(line));
            told.push('\n');
        }
    }
    if steps.is_empty() {
        told.push_str("nothing to take back\n");
    }
    print(&told)?;
    if podman.dry_run {
        return Ok(0);
    }
    for step in steps {
        // Remembered first: what is written can be taken back whatever comes between.
        let name = step.file.name().to_owned();
        let adds = step.made.is_some();
        if let Some(made) = step.made {
            record.insert(name.clone(), made);
            remember(&at, &record)?;
        }
        write(&step.path, step.now.as_deref(), step.then.as_deref())?;
        if !adds {
            record.remove(&name);
            remember(&at, &record)?;
        }
    }
    Ok(0)
}

fn apply(file: File, made: Option<&Made>) -> anyhow::Result<Step> {
    let path = path_of(file)?;
    let (variable, program) = match file {
        File::Containers => ("CONTAINERS_CONF", "netstack"),
        File::Storage => ("CONTAINERS_STORAGE_CONF", "overlayfs-fuse"),
    };
    ensure!(
        std::env::var_os(variable).is_none(),
        "{variable} is set: podman reads that file in place of {}; unset it",
        path.display()
    );
    let program = spawn::find(program)
        .with_context(|| format!("{program} is neither beside coracle nor in PATH"))?;
    let program = fs::canonicalize(&program)
        .with_context(|| format!("cannot look at {}", program.display()))?;
    let program =
        program.to_str().with_context(|| format!("the path {} is not UTF-8", program.display()))?;
    let now = read(&path)?;
    let text = now.as_deref().unwrap_or_default();
    let then = file.edited(text, program).with_context(|| path.display().to_string())?;
    if file == File::Storage {
        check_store(text)?;
    }
    // What was there before the first call is what undo restores.
    let before = match made {
        Some(made) if made.path == path && now.is_some() => {
            made.edit.undone(file, text).with_context(|| path.display().to_string())?
        }
        _ => now.clone(),
    };
    // Nothing is ours to take back where all was so before the first call.
    let ours = made.is_some() || now.as_deref() != Some(then.as_str());
    let edit = Edit { before, after: then.clone() };
    let made = ours.then(|| Made { path: path.clone(), edit });
    Ok(Step { file, path, now, then: Some(then), made })
}

fn undo(file: File, made: Option<&Made>) -> anyhow::Result<Option<Step>> {
    let Some(made) = made else { return Ok(None) };
    let now = read(&made.path)?;
    let then = match &now {
        Some(text) => {
            made.edit.undone(file, text).with_context(|| made.path.display().to_string())?
        }
        // Removed since: that is the owner's decision.
        None => None,
    };
    Ok(Some(Step { file, path: made.path.clone(), now, then, made: None }))
}

/// Refuses where overlay would hide a store that is there. `conf`: the user's storage.conf.
fn check_store(conf: &str) -> anyhow::Result<()> {
    let root = store_root(conf)?;
    let names = match fs::read_dir(&root) {
        Ok(entries) => entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot look into {}", root.display()));
        }
    };
    // Podman 4 has its database in static_dir, Podman 5 there or in the store.
    let stated = stated_in("containers.conf", "engine", &["static_dir"])?;
    let mut places = vec![stated.unwrap_or_else(|| root.join("libpod")), root.clone()];
    places.dedup();
    let mut found = None;
    for place in places {
        for (name, driver) in [
            ("bolt_state.db", database::bolt as fn(&[u8]) -> _),
            ("db.sql", database::sqlite as fn(&[u8]) -> _),
        ] {
            if found.is_none() {
                found = pinned(&place.join(name), driver)?;
            }
        }
    }
    if let Some(driver) = other_store(&names, found.as_deref()) {
        anyhow::bail!(
            "{} holds a store of the driver \"{driver}\": with \"overlay\", what is in it could \
             not be seen any more; move it first (podman save, podman system reset), or use \
             --network alone",
            root.display()
        );
    }
    Ok(())
}

/// Where Podman has the user's store: as the user's file says, or the machine's, whose
/// `graphroot` is for root alone.
fn store_root(conf: &str) -> anyhow::Result<PathBuf> {
    if let Some(path) = stated(conf, "storage", &["rootless_storage_path", "graphroot"]) {
        return Ok(path);
    }
    if let Some(path) = stated_in("storage.conf", "storage", &["rootless_storage_path"])? {
        return Ok(path);
    }
    let data = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| home().map(|home| home.join(".local/share")))
        .context("HOME is not set to an absolute path")?;
    Ok(data.join("containers/storage"))
}

/// The first path that a configuration file of this name says: the user's, the machine's,
/// the distribution's.
fn stated_in(file: &str, table: &str, keys: &[&str]) -> anyhow::Result<Option<PathBuf>> {
    let machine = ["/etc/containers", "/usr/share/containers"].map(|dir| Path::new(dir).join(file));
    for path in config_home().map(|home| home.join(file)).into_iter().chain(machine) {
        if let Some(path) = read(&path)?.and_then(|text| stated(&text, table, keys)) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// The path that a configuration's text says, its variables put in as Podman does.
fn stated(text: &str, table: &str, keys: &[&str]) -> Option<PathBuf> {
    let document: toml_edit::DocumentMut = text.parse().ok()?;
    let table = document.get(table)?;
    let said = keys.iter().filter_map(|key| table.get(key)?.as_str()).find(|s| !s.is_empty())?;
    let uid = nix::unistd::getuid().to_string();
    Some(PathBuf::from(expanded(said, |name| match name {
        "UID" => Some(uid.clone()),
        name => std::env::var(name).ok(),
    })))
}

/// What a database of Podman's says of the driver. One that is just being changed may
/// say it elsewhere: SQLite keeps what is not yet, or no longer, in the file beside it.
fn pinned(
    path: &Path,
    driver: impl Fn(&[u8]) -> Result<Option<String>, database::Damaged>,
) -> anyhow::Result<Option<String>> {
    for beside in ["-journal", "-wal"] {
        let mut beside_path = path.as_os_str().to_owned();
        beside_path.push(beside);
        let beside = PathBuf::from(beside_path);
        ensure!(
            !fs::metadata(&beside).is_ok_and(|is| is.len() > 0),
            "{} is there: podman is writing to its database, or was killed while it did; run \
             podman info, which finishes that, and try again, or use --network alone",
            beside.display()
        );
    }
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    driver(&bytes).with_context(|| {
        format!(
            "{}: whether podman has pinned another driver there cannot be found out; use \
             --network alone",
            path.display()
        )
    })
}

fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute())
}

/// The directory of the user's files of Podman's.
fn config_home() -> Option<PathBuf> {
    std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| home().map(|home| home.join(".config")))
        .map(|dir| dir.join("containers"))
}

/// Where Podman looks for the user's file; symbolic links are followed, so that they stay.
fn path_of(file: File) -> anyhow::Result<PathBuf> {
    let path = config_home()
        .context("neither XDG_CONFIG_HOME nor HOME is set to an absolute path")?
        .join(file.name());
    match fs::canonicalize(&path) {
        Ok(path) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            ensure!(!path.is_symlink(), "{} leads to no file", path.display());
            Ok(path)
        }
        Err(error) => Err(error).with_context(|| format!("cannot look at {}", path.display())),
    }
}

fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn remember(at: &Path, record: &Record) -> anyhow::Result<()> {
    let kept = if record.is_empty() {
        match fs::remove_file(at) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    } else {
        replace(at, &serde_json::to_string_pretty(record)?, 0o600)
    };
    kept.with_context(|| format!("cannot write {}", at.display()))
}

fn write(path: &Path, now: Option<&str>, then: Option<&str>) -> anyhow::Result<()> {
    let written = match then {
        _ if now == then => Ok(()),
        None => fs::remove_file(path),
        Some(text) => (|| {
            if let Some(dir) = path.parent() {
                fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
            }
            let mode = fs::metadata(path).map_or(0o644, |is| is.permissions().mode() & 0o7777);
            replace(path, text, mode)
        })(),
    };
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Replaces a file as a whole: a reader sees the old content or the new.
fn replace(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    use io::Write as _;
    let fresh = path.with_extension(format!("new-{}", std::process::id()));
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&fresh)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.set_permissions(fs::Permissions::from_mode(mode)))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&fresh, path));
    written.inspect_err(|_| {
        // The first failure is the one to tell; the next write takes this name again.
        drop(fs::remove_file(&fresh));
    })
}
