//! `coracle run`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::ValueEnum;
use nix::sys::signal::Signal;

use super::fresh::Fresh;
use super::memory::MemoryArgs;
use super::mounts::{MountArgs, Mounts};
use super::names::NameArgs;
use super::ports::{self, Exposed, Published};
use super::security::{LONGEST, SecurityArgs, read_text};
use super::{complain, image, lifecycle, limits, parse, print};
use crate::image::config;
use crate::image::store::{Image, Images};
use crate::run::{Early, Mode};
use crate::spec::{InMemory, Limits, Network, Overlay, Restart, Root, Shares, Spec, Upper};
use crate::store::{Container, Store};
use crate::text::printable_lines;

/// Run a command in a new container.
///
/// The container's root filesystem is a copy-on-write view of IMAGE, of
/// --rootfs, or, when the command stands after '--' alone, of the public part of
/// the host's own root: what is changed inside is kept apart and never seen
/// outside.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "With a terminal ctrl-p ctrl-q leaves the container to itself (see 'coracle attach').\n\n\
                  Exit status: the command's own; 128+n when signal n ended it; 127 when it was \
                  not found, 126 when it could not be executed; 125 when the container could not \
                  be made.",
    override_usage = "coracle run [OPTIONS] IMAGE [COMMAND]...\n       \
                      coracle run [OPTIONS] --rootfs DIR [--] [COMMAND]...\n       \
                      coracle run [OPTIONS] [-- COMMAND...]",
    disable_help_flag = true
)]
pub(super) struct RunArgs {
    /// Run in the background and print the container's name
    #[arg(short, long)]
    detach: bool,

    #[command(flatten)]
    keys: lifecycle::KeysArg,

    #[command(flatten)]
    make: Args,
}

/// Make a container as 'coracle run' does, to be started later.
///
/// Takes the options of 'coracle run', and prints the container's name.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "coracle create [OPTIONS] IMAGE [COMMAND]...\n       \
                      coracle create [OPTIONS] --rootfs DIR [--] [COMMAND]...\n       \
                      coracle create [OPTIONS] [-- COMMAND...]",
    disable_help_flag = true
)]
pub(super) struct CreateArgs {
    #[command(flatten)]
    make: Args,
}

/// What a container is made of.
#[derive(Debug, clap::Args)]
struct Args {
    /// Use this directory as root filesystem; it is left unchanged [default: the host's /]
    #[arg(long, value_name = "DIR")]
    rootfs: Option<PathBuf>,

    /// Keep changes in DIR, or in memory up to SIZE (as in ram:512m) [default: with the container]
    #[arg(long, value_name = "DIR|ram[:SIZE]")]
    upper: Option<String>,

    /// What joins the two: overlayfs-fuse, or the kernel, which is faster and lacks some things
    /// (see doc/SEMANTICS.md)
    #[arg(long, value_name = "DRIVER", default_value = "fuse")]
    overlay: OverlayArg,

    /// Mount the root filesystem read-only
    #[arg(long)]
    read_only: bool,

    /// Remove the container when it ends
    #[arg(long)]
    rm: bool,

    /// Name of the container [default: a made-up one]
    #[arg(long, value_name = "NAME", value_parser = parse::name)]
    name: Option<String>,

    /// Remove another container of that name first, also when it runs
    #[arg(long, requires = "name")]
    replace: bool,

    /// Write its name to FILE, which must not be there
    #[arg(long, value_name = "FILE")]
    cidfile: Option<PathBuf>,

    /// Write the host's number of its first process to FILE, each time it starts
    #[arg(long, value_name = "FILE")]
    pidfile: Option<PathBuf>,

    /// What 'coracle stop' sends [default: as the image says, or TERM]
    #[arg(long, value_name = "SIGNAL", value_parser = parse::signal)]
    stop_signal: Option<Signal>,

    /// Seconds that 'coracle stop' waits until SIGKILL [default: 10]
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = parse::count::<u32>,
        allow_negative_numbers = true
    )]
    stop_timeout: Option<u32>,

    /// Run it again after its end: no, on-failure, on-failure:TIMES, always, unless-stopped
    #[arg(long, value_name = "POLICY", default_value = "no", value_parser = parse::restart)]
    restart: Restart,

    #[command(flatten)]
    limits: limits::LimitArgs,

    /// Have a process of ours be the first one, pass signals on and reap (the default)
    #[arg(long, overrides_with = "no_init")]
    init: bool,

    /// Have the command itself be the container's first process
    #[arg(long)]
    no_init: bool,

    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,

    /// Give the command a terminal of its own
    #[arg(short, long)]
    tty: bool,

    #[command(flatten)]
    env: EnvArgs,

    /// Say something about it, which inspect shows and ps looks for
    #[arg(short, long = "label", value_name = "KEY[=VALUE]", value_parser = parse::label)]
    labels: Vec<(String, String)>,

    /// Labels that FILE has, a line each; --label goes before
    #[arg(long = "label-file", value_name = "FILE")]
    label_files: Vec<PathBuf>,

    /// Working directory in the container [default: /]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,

    /// User, and group, in the container: names or numbers [default: root]
    #[arg(short, long, value_name = "USER[:GROUP]", value_parser = parse::user)]
    user: Option<String>,

    #[command(flatten)]
    mounts: MountArgs,

    /// Host name in the container [default: its name]
    #[arg(short = 'h', long, value_name = "NAME", value_parser = parse::hostname)]
    hostname: Option<String>,

    /// Publish a port of the container on the host, or a range; without HOST on any free one
    #[arg(
        short,
        long = "publish",
        value_name = "[[IP:][HOST]:]CONTAINER[/tcp|udp]",
        value_parser = ports::publish
    )]
    publish: Vec<Published>,

    /// Name ports that --publish-all publishes besides those of the image
    #[arg(long, value_name = "PORT[-PORT][/tcp|udp]", value_parser = ports::exposed)]
    expose: Vec<Exposed>,

    /// Network of the container
    #[arg(long, alias = "net", value_enum, default_value = "netstack", value_name = "NETWORK")]
    network: NetworkArg,

    /// Whose host name it has
    #[arg(long, value_enum, default_value = "private", value_name = "WHOSE")]
    uts: Whose,

    /// Whose shared memory, semaphores and message queues it has
    #[arg(long, value_enum, default_value = "private", value_name = "WHOSE")]
    ipc: Whose,

    #[command(flatten)]
    names: NameArgs,

    #[command(flatten)]
    security: SecurityArgs,

    #[command(flatten)]
    memory: MemoryArgs,

    /// Run PROGRAM of the image in place of its own; a JSON array has arguments, too
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,

    /// Publish all ports that the image or --expose names, on free ports of the host
    #[arg(short = 'P', long)]
    publish_all: bool,

    /// When to pull the image
    #[arg(long, value_enum, default_value = "missing", value_name = "WHEN")]
    pull: Pull,

    #[command(flatten)]
    registry: image::RegistryArgs,

    /// Print what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,

    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,

    /// The image, then command and arguments [default: the image's, or a shell]
    #[arg(trailing_var_arg = true, value_name = "IMAGE")]
    command: Vec<String>,
}

/// Whose namespace a container is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Whose {
    /// The container's own
    Private,
    /// The host's
    Host,
}

/// Variables of the environment.
#[derive(Debug, Default, clap::Args)]
pub(super) struct EnvArgs {
    /// Set an environment variable; NAME alone takes the host's value
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,

    /// Set those that FILE has, a line each; --env goes before
    #[arg(long = "env-file", value_name = "FILE")]
    files: Vec<PathBuf>,
}

impl EnvArgs {
    /// All of them; a later one of the same name wins.
    pub(super) fn read(
        &self,
        host: impl Fn(&str) -> Result<Option<String>, String>,
    ) -> anyhow::Result<BTreeMap<String, String>> {
        let mut env = BTreeMap::new();
        for file in &self.files {
            let what = || format!("--env-file {}", file.display());
            let text = read_text(file, LONGEST).with_context(what)?;
            let read = parse::env_file(&text, &host).map_err(anyhow::Error::msg);
            env.extend(read.with_context(what)?);
        }
        for text in &self.env {
            env.extend(parse::env(text, &host).map_err(anyhow::Error::msg)?);
        }
        Ok(env)
    }
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pull {
    /// When it is not here
    Missing,
    /// Never
    Never,
    /// Each time
    Always,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum NetworkArg {
    /// A network of its own, which reaches out through netstack
    Netstack,
    /// A loopback device and nothing else
    None,
    /// The host's network
    Host,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OverlayArg {
    /// overlayfs-fuse
    Fuse,
    /// The kernel's overlay filesystem
    Kernel,
}

/// Runs a container; returns the command's exit code.
pub(super) fn run(args: RunArgs) -> anyhow::Result<u8> {
    let RunArgs { detach, keys, make } = args;
    // This process is the monitor then; what it takes in any case is begun at once. Bounds
    // may take a control group that this process has to be alone in.
    let bounded = make.limits.limits() != Limits::default();
    let in_front = !(detach || make.tty || make.dry_run || bounded);
    let early = in_front.then(|| Early::begin(make.interactive)).transpose()?;
    let Some((mut spec, container, cidfile)) = prepare(make)? else { return Ok(0) };
    spec.detach = detach;
    let name = container.name.clone();
    let mode = if detach {
        Mode::Background
    } else {
        Mode::Foreground { input: spec.interactive, keys: keys.keys }
    };
    let code = crate::run::run(spec, container, mode, early)?;
    cidfile.into_iter().for_each(Fresh::keep);
    if detach && code == 0 {
        print(&format!("{name}\n"))?;
    }
    Ok(code)
}

/// Makes a container.
pub(super) fn create(args: CreateArgs) -> anyhow::Result<u8> {
    let Some((spec, container, cidfile)) = prepare(args.make)? else { return Ok(0) };
    let name = container.name.clone();
    crate::run::create(spec, container)?;
    cidfile.into_iter().for_each(Fresh::keep);
    print(&format!("{name}\n"))?;
    Ok(0)
}

/// What is asked for, and a directory for it; `None` when it is only shown.
fn prepare(mut args: Args) -> anyhow::Result<Option<(Spec, Container, Option<Fresh>)>> {
    let cwd = std::env::current_dir().context("the working directory is gone")?;
    let wanted = args.image(&std::env::args_os().collect::<Vec<_>>())?;
    let options = wanted.is_some().then(|| args.options()).transpose()?;
    let (dry_run, pull, registry) = (args.dry_run, args.pull, std::mem::take(&mut args.registry));
    let (replace, cidfile) = (args.replace, args.cidfile.take());
    let mut spec = args.into_spec(&cwd, host_env)?;
    let store = Store::open()?;
    let mut based = None;
    if let (Some(wanted), Some(options)) = (wanted, options) {
        let found = match pull {
            Pull::Never => image::Fetch::Never,
            Pull::Missing => image::Fetch::Missing,
            Pull::Always => image::Fetch::Always,
        };
        let images = Images::open(store.root())?;
        let (found, lock) = image::ready(&images, &wanted, found, &registry)?;
        spec = config::apply(spec, &found.image, wanted, found.lowers, &options)
            .map_err(anyhow::Error::msg)?;
        spec.stop_signal = spec.stop_signal.or(stop_signal(&found.image)?);
        based = Some((images, found.image, lock));
    }
    ports::choose(&mut spec.publish)?;
    if dry_run {
        let name = spec.name.clone().unwrap_or_else(|| "NAME".to_owned());
        let plan = crate::run::dry_run(&spec, &store.dir_of(&name), store.root())?;
        print(&printable_lines(&plan.to_string()))?;
        return Ok(None);
    }
    sweep(&store)?;
    let cidfile = cidfile.map(Fresh::make).transpose()?;
    if let Some(name) = spec.name.as_ref().filter(|_| replace)
        && store.find(name).is_ok()
    {
        lifecycle::remove(&store, name, true)?;
    }
    let container = store.create(&spec)?;
    if let Some((images, image, lock)) = based {
        images.use_by(&container.dir, &image)?;
        // What the container stands on is written down: it may be let go of.
        drop(lock);
    }
    spec.name = Some(container.name.clone());
    if let Some(cidfile) = &cidfile {
        cidfile.say(&container.name)?;
    }
    Ok(Some((spec, container, cidfile)))
}

/// Puts right what crashes have left.
pub(super) fn sweep(store: &Store) -> anyhow::Result<()> {
    for left in store.sweep()? {
        complain(format!("warning: a container that was killed is not cleaned up: {left}"));
    }
    Ok(())
}

/// What the image wants to be stopped with.
fn stop_signal(image: &Image) -> anyhow::Result<Option<i32>> {
    let config = image.config.config.as_ref();
    let text = config.and_then(|config| config.stop_signal.as_deref());
    match text.filter(|text| !text.is_empty()).map(parse::signal) {
        None => Ok(None),
        Some(Ok(signal)) => Ok(Some(signal as i32)),
        Some(Err(why)) => anyhow::bail!("the image's stop signal: {why}"),
    }
}

/// A variable of this process's own environment.
pub(super) fn host_env(name: &str) -> Result<Option<String>, String> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => {
            Err(format!("the value of {name} in the host's environment is not UTF-8"))
        }
    }
}

/// Reads `-w`.
pub(super) fn workdir(text: Option<&str>) -> anyhow::Result<Option<PathBuf>> {
    let read = |dir| {
        parse::inside(dir).map_err(|why| anyhow::anyhow!("the working directory '{dir}' {why}"))
    };
    text.map(read).transpose()
}

impl Args {
    /// Takes the image out of the words, when there is one: the first word, but
    /// for a command on --rootfs or after '--'. `argv` is the whole command line.
    fn image(&mut self, argv: &[OsString]) -> anyhow::Result<Option<String>> {
        let words = self.command.len();
        let escaped = argv.len() > words && argv[argv.len() - words - 1] == "--";
        if words == 0 || escaped || self.rootfs.is_some() {
            let unnamed = self.publish_all && self.expose.is_empty();
            for (given, option) in
                [(self.entrypoint.is_some(), "--entrypoint"), (unnamed, "--publish-all")]
            {
                if given {
                    anyhow::bail!("{option} needs an image");
                }
            }
            return Ok(None);
        }
        let image = self.command.remove(0);
        // People who are used to `run -- COMMAND` write it after an image, too.
        if self.command.first().is_some_and(|word| word == "--") {
            self.command.remove(0);
        }
        Ok(Some(image))
    }

    /// What is to be otherwise than the image says.
    fn options(&mut self) -> anyhow::Result<config::Options> {
        let entrypoint = match self.entrypoint.take() {
            None => None,
            Some(text) if text.is_empty() => Some(Vec::new()),
            Some(text) if text.starts_with('[') => Some(
                serde_json::from_str(&text)
                    .context("--entrypoint is no array of strings, as JSON has them")?,
            ),
            Some(text) => Some(vec![text]),
        };
        Ok(config::Options { entrypoint, publish_all: self.publish_all })
    }

    /// What is asked for. Relative paths are taken from `cwd`, values of
    /// variables given by name alone from `host`.
    fn into_spec(
        self,
        cwd: &Path,
        host: impl Fn(&str) -> Result<Option<String>, String>,
    ) -> anyhow::Result<Spec> {
        let upper = match &self.upper {
            Some(text) => parse::upper(text, cwd).map_err(anyhow::Error::msg)?,
            None => Upper::Own,
        };
        let Mounts { volumes, tmpfs } = self.mounts.into_mounts(cwd)?;
        let network = match self.network {
            NetworkArg::Netstack => Network::Netstack,
            NetworkArg::None => Network::None,
            NetworkArg::Host => Network::Host,
        };
        let publishes = !self.publish.is_empty() || self.publish_all;
        if publishes && !matches!(self.network, NetworkArg::Netstack) {
            anyhow::bail!("--publish needs --network netstack");
        }
        if self.rootfs.as_ref().is_some_and(|dir| dir.as_os_str().is_empty()) {
            anyhow::bail!("--rootfs '' is not a directory");
        }
        if self.command.first().is_some_and(String::is_empty) {
            anyhow::bail!("the command is empty");
        }
        if self.rm && self.restart != Restart::No {
            anyhow::bail!(
                "--rm and --restart contradict each other: what is removed is not run again"
            );
        }
        let shares = Shares { uts: self.uts == Whose::Host, ipc: self.ipc == Whose::Host };
        let hostname = match self.hostname {
            Some(_) if shares.uts => anyhow::bail!("--hostname and --uts host exclude each other"),
            None if shares.uts => Some(
                nix::unistd::gethostname()
                    .context("cannot read the host's name")?
                    .to_string_lossy()
                    .into_owned(),
            ),
            hostname => hostname,
        };
        let memory = self.memory.into_memory(tmpfs, cwd)?;
        if shares.ipc && memory.shm != InMemory::default().shm {
            anyhow::bail!("--shm-size is for a /dev/shm of its own: not with --ipc host");
        }
        let mut labels = BTreeMap::new();
        for file in &self.label_files {
            let what = || format!("--label-file {}", file.display());
            let text = read_text(file, LONGEST).with_context(what)?;
            labels.extend(parse::label_file(&text).map_err(anyhow::Error::msg).with_context(what)?);
        }
        labels.extend(self.labels);
        let mut publish: Vec<_> =
            self.publish.into_iter().flat_map(|Published(ports)| ports).collect();
        if self.publish_all {
            let ports = self.expose.into_iter().flat_map(|Exposed(ports)| ports);
            config::publish_free(&mut publish, ports);
        }
        Ok(Spec {
            name: self.name,
            root: self.rootfs.map_or(Root::Host, |dir| Root::Dir(cwd.join(dir))),
            upper,
            overlay: match self.overlay {
                OverlayArg::Fuse => Overlay::Fuse,
                OverlayArg::Kernel => Overlay::Kernel,
            },
            read_only: self.read_only,
            remove: self.rm,
            detach: false,
            interactive: self.interactive,
            tty: self.tty,
            env: self.env.read(host)?,
            workdir: workdir(self.workdir.as_deref())?,
            user: self.user,
            volumes,
            hostname,
            publish,
            network,
            command: self.command,
            stop_signal: self.stop_signal.map(|signal| signal as i32),
            security: self.security.into_security(cwd)?,
            restart: self.restart,
            limits: self.limits.limits(),
            ulimits: self.limits.ulimits,
            no_init: self.no_init && !self.init,
            memory,
            labels,
            names: self.names.into_names(network)?,
            stop_timeout: self.stop_timeout,
            pid_file: self.pidfile.map(|file| cwd.join(file)),
            shares,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Protocol;
    use clap::Parser as _;
    use std::fs;

    #[derive(Debug, clap::Parser)]
    struct Only {
        #[command(flatten)]
        args: RunArgs,
    }

    fn spec(args: &[&str]) -> Result<Spec, String> {
        let only = Only::try_parse_from([&["run"], args].concat()).map_err(|e| e.to_string())?;
        let host = |name: &str| Ok((name == "LANG").then(|| "C".to_owned()));
        only.args.make.into_spec(Path::new("/here"), host).map_err(|e| e.to_string())
    }

    #[test]
    fn nothing_asked_for() {
        assert_eq!(
            spec(&[]).unwrap(),
            Spec {
                name: None,
                root: Root::Host,
                upper: Upper::Own,
                overlay: Overlay::Fuse,
                read_only: false,
                remove: false,
                detach: false,
                interactive: false,
                tty: false,
                env: BTreeMap::new(),
                workdir: None,
                user: None,
                volumes: Vec::new(),
                hostname: None,
                publish: Vec::new(),
                network: Network::Netstack,
                command: Vec::new(),
                stop_signal: None,
                security: crate::spec::Security::default(),
                restart: Restart::No,
                limits: crate::spec::Limits::default(),
                ulimits: Vec::new(),
                no_init: false,
                memory: crate::spec::InMemory::default(),
                labels: BTreeMap::new(),
                names: crate::spec::Names::default(),
                stop_timeout: None,
                pid_file: None,
                shares: crate::spec::Shares::default(),
            }
        );
    }

    #[test]
    fn everything_asked_for() {
        let args = "--rootfs r --upper ram:1m --read-only --rm --name n -d -it -e A=1 -e LANG -e X \
                    -e A=2 -w /w -u 1:2 -v /a:/b:ro -v ./c:/d -h host -p 1:2 -p 127.0.0.1:3:4/udp \
                    --network netstack -l k=v -l alone --label k=w --stop-signal INT --stop-timeout 3 \
                    --shm-size 1m --pidfile p --add-host a:192.0.2.1 -- sh -c x";
        let args: Vec<_> = args.split_whitespace().collect();
        let spec = spec(&args).unwrap();
        assert_eq!(spec.name.as_deref(), Some("n"));
        assert_eq!(spec.root, Root::Dir("/here/r".into()));
        assert_eq!(spec.upper, Upper::Ram(Some(1 << 20)));
        assert_eq!(self::spec(&["--overlay", "kernel"]).unwrap().overlay, Overlay::Kernel);
        assert!(spec.read_only && spec.remove && spec.interactive && spec.tty);
        let env: Vec<_> = spec.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(env, ["A=2", "LANG=C"]);
        assert_eq!(spec.workdir, Some("/w".into()));
        assert_eq!(spec.user.as_deref(), Some("1:2"));
        assert_eq!(spec.volumes[0].source, Path::new("/a"));
        assert!(spec.volumes[0].read_only && !spec.volumes[1].read_only);
        assert_eq!(spec.volumes[1].source, Path::new("/here/./c"));
        assert_eq!(spec.hostname.as_deref(), Some("host"));
        assert_eq!(spec.publish.len(), 2);
        assert_eq!(spec.command, ["sh", "-c", "x"]);
        let labels: Vec<_> = spec.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(labels, ["alone=", "k=w"]);
        assert_eq!((spec.stop_signal, spec.stop_timeout), (Some(2), Some(3)));
        assert_eq!((spec.memory.shm, spec.names.hosts.len()), (1 << 20, 1));
        assert_eq!(spec.pid_file, Some("/here/p".into()));
    }

    #[test]
    fn files_of_variables_come_before_variables() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        fs::write(&file, "A=file\nB=file\nLANG\n").unwrap();
        let file = file.to_str().unwrap();
        let spec = spec(&["-e", "A=given", "--env-file", file]).unwrap();
        let env: Vec<_> = spec.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(env, ["A=given", "B=file", "LANG=C"]);
    }

    #[test]
    fn files_of_labels_come_before_labels() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("labels");
        fs::write(&file, "# ours\na=file\n\n  b=x=y\nalone\n").unwrap();
        let file = file.to_str().unwrap();
        let read = spec(&["-l", "a=given", "--label-file", file]).unwrap();
        let labels: Vec<_> = read.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(labels, ["a=given", "alone=", "b=x=y"]);
        fs::write(file, "a=1\n=2\n").unwrap();
        let error = spec(&["--label-file", file]).unwrap_err();
        assert!(error.contains("labels"), "{error}");
    }

    #[test]
    fn exposed_ports_are_published_when_asked_for() {
        let ports = |args: &[&str]| -> Vec<_> {
            let publish = spec(args).unwrap().publish.into_iter();
            publish.map(|p| (p.host_port, p.container_port, p.protocol)).collect()
        };
        let exposed = ["--expose", "80-81", "--expose", "53/udp", "-p", "8080:80"];
        assert_eq!(ports(&exposed), [(8080, 80, Protocol::Tcp)]);
        let all = [&exposed[..], &["-P"]].concat();
        let free = [(8080, 80, Protocol::Tcp), (0, 81, Protocol::Tcp), (0, 53, Protocol::Udp)];
        assert_eq!(ports(&all), free);
        for bad in ["", "0", "http", "80/sctp", "9-8", "70000"] {
            assert!(spec(&["--expose", bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn options_after_the_command_are_the_commands() {
        let spec = spec(&["--rm", "ls", "--name", "x", "--", "-d"]).unwrap();
        assert!(spec.remove);
        assert_eq!(spec.name, None);
        assert_eq!(spec.command, ["ls", "--name", "x", "--", "-d"]);
    }

    #[test]
    fn the_first_word_is_an_image_unless_it_cannot_be() {
        let image = |line: &str| {
            let argv: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let mut only = Only::try_parse_from(&argv).unwrap();
            let make = &mut only.args.make;
            let image = make.image(&argv).map_err(|error| error.to_string());
            image.map(|image| (image, make.command.join(" ")))
        };
        let some = |image: &str, rest: &str| Ok((Some(image.to_owned()), rest.to_owned()));
        let none = |rest: &str| Ok((None, rest.to_owned()));
        assert_eq!(image("run box"), some("box", ""));
        assert_eq!(image("run --rm box ls -l -- x"), some("box", "ls -l -- x"));
        assert_eq!(image("run -e A box -- ls"), some("box", "ls"));
        assert_eq!(image("run -- ls"), none("ls"));
        assert_eq!(image("run --rm -- ls --"), none("ls --"));
        assert_eq!(image("run --rootfs d ls"), none("ls"));
        assert_eq!(image("run --rootfs d -- ls"), none("ls"));
        assert_eq!(image("run"), none(""));
        assert_eq!(image("run -P --expose 80 -- ls"), none("ls"));
        assert!(image("run -P -- ls").is_err() && image("run --entrypoint x -- ls").is_err());
    }

    #[test]
    fn nonsense_is_refused() {
        for args in [
            &["--nonsense"][..],
            &["--name", "a/b"],
            &["--name", ""],
            &["-p", "81-80"],
            &["-p", "1:2", "--network", "none"],
            &["-p", "1:2", "--network=host"],
            &["--network", "bridge"],
            &["-v", "a"],
            &["-v", "/a:/b", "-v", "/c:/b/"],
            &["-w", "relative"],
            &["-u", ""],
            &["-e", ""],
            &["-h", "no host"],
            &["--rootfs", ""],
            &["--upper", "ram:x"],
            &["--overlay", "zfs"],
            &["--cap-add", "x"],
            &["--security-opt", "x"],
            &["--restart", "sometimes"],
            &["--uts", "other"],
            &["--uts", "host", "--hostname", "x"],
            &["--ipc", "host", "--shm-size", "1m"],
            &["--rm", "--restart", "always"],
            &["-l", "=x"],
            &["--stop-signal", "NOPE"],
            &["--stop-timeout", "soon"],
            &["--replace"],
            &["--env-file", "/no/such/file"],
            &["--shm-size", "0"],
            &[""],
        ] {
            assert!(spec(args).is_err(), "{args:?}");
        }
    }
}
