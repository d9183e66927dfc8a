//! The process that measures, inside a user namespace.
//!
//! # Theory of operation
//!
//! It is process 1 of a PID namespace, root of a user namespace and in a mount
//! namespace, all its own, and started as an ordinary user. It mounts a tmpfs, which
//! holds the layers, the upper of each mount and the mount point, and reads orders
//! from standard input, a line of JSON each; to each it answers with one line. Data
//! is made when the first order needs it. Each sample has a mount and an upper of its
//! own. When standard input ends so does the process, and with it the namespaces,
//! every server, every mount and the tmpfs.
//!
//! Each work leaves a text that says what it read or changed. It must be the text that
//! the same work leaves on a plain directory, where it is done once, untimed.

mod making;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use serde::{Deserialize, Serialize};
use tests::{clock, command};

use super::data::{self, Fill};
use super::load;
use super::mounts::{self, Layers, Mounted, Union};
use super::tree::{Entry, Tree};
use super::work::{CProgram, LARGE, NEW, REMOVED, SOURCES, Sizes, Work};
use crate::machine::CpuTime;
use crate::record::{Sample, extra};

/// Word of the hidden subcommand that is this process.
pub(crate) const NAME: &str = "fs-stage";

/// One sample wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Of whom.
    pub(crate) union: Union,
    /// Layers the tree is dealt out to.
    pub(crate) layers: usize,
    /// Of what.
    pub(crate) work: Work,
    /// How many processes share the work.
    pub(crate) processes: usize,
}

/// The answer to an [`Order`].
pub(crate) type Answer = Result<Sample, String>;

const MIB: f64 = (1 << 20) as f64;

/// Format of `find`: of directories, sizes and times differ between file systems.
const FIND: [&str; 9] = [
    "(",
    "-type",
    "d",
    "-printf",
    "%p %y %m %U %G\\n",
    ")",
    "-o",
    "-printf",
    "%p %y %m %U %G %s %n %T@ %l\\n",
];

/// Serves orders until standard input ends.
///
/// # Errors
/// When the stage cannot be set, or nobody takes the answers.
pub(crate) fn main(dir: &Path, sizes: &str) -> Result<()> {
    let sizes: Sizes = serde_json::from_str(sizes).context("sizes in no known form")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some("mode=0755,size=80%"))
        .context("cannot mount a tmpfs")?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    std::env::set_current_dir(dir)?;
    for sub in ["merged", "lists", "out"] {
        fs::create_dir(sub)?;
    }
    let mut stage = Stage {
        dir: dir.to_owned(),
        itself: std::env::current_exe()?,
        tree: Tree::new(sizes.entries),
        sizes,
        expected: BTreeMap::new(),
        count: 0,
    };
    let mut stdout = std::io::stdout();
    let mut line = String::new();
    while std::io::stdin().lock().read_line(&mut line)? > 0 {
        let order: Order = serde_json::from_str(&line)?;
        let answer: Answer = stage.answer(&order).map_err(|error| format!("{error:#}"));
        writeln!(stdout, "{}", serde_json::to_string(&answer)?)?;
        stdout.flush()?;
        line.clear();
        mounts::reap();
    }
    Ok(())
}

struct Stage {
    /// The tmpfs, and the current directory. Paths are relative, but for those
    /// given to programs that run elsewhere.
    dir: PathBuf,
    itself: PathBuf,
    sizes: Sizes,
    tree: Tree,
    /// What each work leaves, by work and number of processes.
    expected: BTreeMap<(Work, usize), String>,
    /// Of uppers made.
    count: usize,
}

/// A program of a work.
struct Program {
    words: Vec<String>,
    /// Whether its output goes into a load generator that sums it.
    summed: bool,
}

impl Program {
    fn new<S: Into<String>>(words: impl IntoIterator<Item = S>) -> Self {
        Self { words: words.into_iter().map(Into::into).collect(), summed: false }
    }
}

/// Programs that want as many processors.
const BUSY_LOOPS: usize = 2;

/// Programs that never rest, until this is dropped.
struct BusyLoops(Vec<Child>);

impl BusyLoops {
    fn start(itself: &Path, count: usize) -> Result<Self> {
        let mut loops = Self(Vec::new());
        for _ in 0..count {
            let mut command = Command::new(itself);
            command.args([load::NAME, "burn"]).stdin(Stdio::null()).stdout(Stdio::null());
            loops.0.push(command.spawn().context("cannot start a busy loop")?);
        }
        Ok(loops)
    }
}

impl Drop for BusyLoops {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Both fail only when it has ended already.
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// What one sample gave.
struct Outcome {
    sample: Sample,
    left: String,
}

impl Stage {
    fn answer(&mut self, order: &Order) -> Result<Sample> {
        self.make_data(order).context("making the data")?;
        let key = (order.work, order.processes);
        if !self.expected.contains_key(&key) {
            // A directory has no server that could be idle.
            let work = if order.work.needs_a_server() { Work::Find } else { order.work };
            let plain = Order { union: Union::Plain, work, ..order.clone() };
            let left = self.sample(&plain).context("on a plain directory")?.left;
            self.expected.insert(key, left);
        }
        let Outcome { sample, left } = self.sample(order)?;
        match data::difference(&left, &self.expected[&key]) {
            None => Ok(sample),
            Some(words) => bail!("wrong data: {words}"),
        }
    }

    /// One mount, the work, and the end of the mount.
    fn sample(&mut self, order: &Order) -> Result<Outcome> {
        self.count += 1;
        let place = PathBuf::from(format!("changes-{}", self.count));
        fs::create_dir(&place)?;
        let layers = Layers {
            lowers: self.lowers(order),
            upper: place.join("upper"),
            work: place.join("work"),
            target: self.dir.join("merged"),
        };
        fs::create_dir(&layers.upper)?;
        fs::create_dir(&layers.work)?;
        let outcome = self.sample_in(order, &layers);
        // Whatever the candidate left there, also where it failed.
        fs::remove_dir_all(&place).with_context(|| format!("cannot remove {}", place.display()))?;
        outcome
    }

    fn sample_in(&self, order: &Order, layers: &Layers) -> Result<Outcome> {
        let mounted = order.union.mount(layers, Path::new("out/server"))?;
        let root = match order.union {
            Union::Plain => self.dir.join(self.plain(order.work, layers)?),
            _ => layers.target.clone(),
        };
        for programs in self.preparation(order.work, order.processes) {
            self.run_all(&programs, &root).context("preparing")?;
        }
        let programs = self.programs(order.work, order.processes);
        let loops = if order.work == Work::SmallFilesBusy { BUSY_LOOPS } else { 0 };
        let _beside = BusyLoops::start(&self.itself, loops)?;
        let before = mounted.usage()?;
        let machine = CpuTime::now()?;
        let start = clock::now();
        self.run_all(&programs, &root)?;
        let took = clock::now() - start;
        let machine = CpuTime::now()?.since(machine);
        let cpu = mounted.usage()?.cpu - before.cpu;

        let value = match order.work {
            Work::Mount => mounted.took.as_secs_f64() * 1e3,
            Work::Idle => self.idle(&mounted)?,
            Work::Memory => {
                let (now, _) = mounted.memory()?.context("no server has memory")?;
                now as f64 / MIB
            }
            _ => took.as_secs_f64(),
        };
        let mut sample = Sample::of(value)
            .with(extra::MACHINE_CPU_S, machine.busy)
            .with(extra::STEAL_S, machine.steal);
        let (amount, per, machine_per) = self.amount(order.work);
        if amount > 0.0 {
            sample = sample.with(machine_per, machine.busy / amount);
        }
        if let Some((_, peak)) = mounted.memory()? {
            let cpu = if order.work == Work::Mount { before.cpu } else { cpu }.as_secs_f64();
            sample = sample.with(extra::CPU_S, cpu).with(extra::PEAK_RSS_MIB, peak as f64 / MIB);
            if amount > 0.0 {
                sample = sample.with(per, cpu / amount);
            }
        }
        // What is written must have come to the upper by itself.
        let left = if order.work == Work::Write {
            mounted.unmount()?;
            let upper = if order.union == Union::Plain { &root } else { &layers.upper };
            self.left(order, upper)?
        } else {
            let left = self.left(order, &root)?;
            mounted.unmount()?;
            left
        };
        Ok(Outcome { sample, left })
    }

    /// Context switches a second of a server nobody asks for anything.
    fn idle(&self, mounted: &Mounted) -> Result<f64> {
        // What the work before it still causes is not idleness.
        self.wait(Duration::from_secs(1))?;
        let before = mounted.usage()?;
        let start = clock::now();
        self.wait(Duration::from_secs(self.sizes.idle_s.into()))?;
        let after = mounted.usage()?;
        Ok((after.switches - before.switches) as f64 / (clock::now() - start).as_secs_f64())
    }

    /// Lets time pass; fails when standard input ends meanwhile.
    fn wait(&self, time: Duration) -> Result<()> {
        let readable = command::readable(std::io::stdin().as_fd(), time)?;
        ensure!(!readable, "interrupted");
        Ok(())
    }

    /// Operations, or GB, of a work, and the names of the figures for each.
    fn amount(&self, work: Work) -> (f64, &'static str, &'static str) {
        use Work::*;
        let of_tree = |of: &dyn Fn(&Entry) -> u64| self.tree.entries.iter().map(of).sum::<u64>();
        let operations = match work {
            Mount => 1,
            Find | FindAgain => self.sizes.entries as u64,
            Missing => self.sizes.missing.0 as u64 * u64::from(self.sizes.missing.1),
            Untar | RemoveNew => self.sizes.archive as u64,
            Append => self.sizes.append as u64,
            RemoveLower => of_tree(&|entry| entry.path.starts_with(REMOVED).into()),
            RandomRead => self.sizes.preads,
            SmallFiles | SmallFilesBusy => self.sizes.small as u64,
            Tar => {
                let gb = of_tree(&Entry::bytes) as f64 / 1e9;
                return (gb, extra::CPU_PER_GB, extra::MACHINE_CPU_PER_GB);
            }
            Write | Read | ReadAgain => {
                let gb = (self.sizes.large_mib << 20) as f64 / 1e9;
                return (gb, extra::CPU_PER_GB, extra::MACHINE_CPU_PER_GB);
            }
            Git | Compile | Memory | Idle => 0,
        };
        // The figures are microseconds.
        (operations as f64 / 1e6, extra::CPU_PER_OP, extra::MACHINE_CPU_PER_OP)
    }

    /// Lower layers, lowest first.
    fn lowers(&self, order: &Order) -> Vec<PathBuf> {
        match order.work {
            Work::Read | Work::ReadAgain | Work::RandomRead => vec!["large".into()],
            Work::Compile => vec!["source".into()],
            _ => (0..order.layers).map(|at| format!("l{}/{at}", order.layers).into()).collect(),
        }
    }

    /// The directory that stands for a union; a new one for work that changes it.
    fn plain(&self, work: Work, layers: &Layers) -> Result<PathBuf> {
        if !work.changes() {
            return Ok(match work {
                Work::Read | Work::ReadAgain | Work::RandomRead => "large".into(),
                _ => "l1/0".into(),
            });
        }
        let root = layers.upper.clone();
        match work {
            Work::Append => {
                let files: BTreeMap<_, _> =
                    self.tree.small_files(self.sizes.append).into_iter().collect();
                let above = |dir: &str| files.keys().any(|file| is_below(file, dir));
                let wanted: Vec<Entry> = self
                    .tree
                    .entries
                    .iter()
                    .filter(|entry| files.contains_key(&*entry.path) || above(&entry.path))
                    .cloned()
                    .collect();
                data::write(&wanted, &root, Fill::Bytes)?;
            }
            Work::RemoveLower => {
                data::write(&self.tree.below(REMOVED), &root, Fill::Bytes)?;
            }
            Work::Compile => {
                fs::create_dir(root.join(SOURCES))?;
                for (name, text) in CProgram::new(self.sizes.sources).files {
                    fs::write(root.join(SOURCES).join(name), text)?;
                }
            }
            _ => {}
        }
        Ok(root)
    }

    /// What is done before the clock starts, one list after the other.
    fn preparation(&self, work: Work, processes: usize) -> Vec<Vec<Program>> {
        match work {
            Work::FindAgain => vec![self.programs(Work::Find, processes)],
            Work::ReadAgain => vec![self.programs(Work::Read, processes)],
            Work::RemoveNew => vec![self.programs(Work::Untar, processes)],
            _ => Vec::new(),
        }
    }

    /// The programs of a work, which run at the same time in the root of the mount.
    fn programs(&self, work: Work, processes: usize) -> Vec<Program> {
        let own = |words: &[&str]| {
            let itself = self.itself.display().to_string();
            Program::new([itself.as_str(), load::NAME].iter().chain(words).copied())
        };
        let list = |kind: &str, at: usize| {
            self.dir.join(list_name(kind, processes, at)).display().to_string()
        };
        let path = |name: &str| self.dir.join(name).display().to_string();
        let all = 0..processes;
        match work {
            Work::Mount => Vec::new(),
            Work::Find | Work::FindAgain | Work::Memory | Work::Idle => {
                let groups = self.tree.groups(processes).into_iter();
                groups
                    .map(|group| Program::new(["find"].into_iter().chain(group).chain(FIND)))
                    .collect()
            }
            Work::Missing => {
                let times = self.sizes.missing.1.to_string();
                all.map(|at| own(&["missing", &list("missing", at), &times])).collect()
            }
            Work::Tar => {
                let options = ["tar", "--sort=name", "--numeric-owner", "-cf", "-"];
                let groups = self.tree.groups(processes).into_iter();
                groups
                    .map(|group| Program {
                        summed: true,
                        ..Program::new(options.into_iter().chain(group))
                    })
                    .collect()
            }
            Work::Untar => vec![Program::new(["tar", "-xf", &path("new.tar")])],
            Work::RemoveNew => vec![Program::new(["rm", "-rf", NEW])],
            Work::Append => all.map(|at| own(&["append", &list("append", at)])).collect(),
            Work::RemoveLower => vec![Program::new(["rm", "-rf", REMOVED])],
            Work::Write => vec![own(&["write", NEW, &self.sizes.large_mib.to_string()])],
            Work::Read | Work::ReadAgain => all.map(|_| own(&["read", LARGE])).collect(),
            Work::RandomRead => {
                let count = (self.sizes.preads / processes as u64).to_string();
                all.map(|at| own(&["pread", LARGE, &count, &(at << 40).to_string()])).collect()
            }
            Work::Git => {
                let repository = path("repository.git");
                let script = "git clone -q --no-hardlinks \"$0\" \"$1\" && git -C \"$1\" status \
                              --porcelain";
                vec![Program::new(["sh", "-c", script, &repository, NEW])]
            }
            Work::Compile => {
                let script = "cd \"$0\" && printf '%s\\n' *.c | xargs -P 2 -n 1 gcc -O1 -c && \
                              gcc -o program *.o && ./program";
                vec![Program::new(["sh", "-c", script, SOURCES])]
            }
            Work::SmallFiles | Work::SmallFilesBusy => {
                all.map(|at| own(&["cat", &list("small", at)])).collect()
            }
        }
    }

    /// Runs programs at the same time; standard output of each goes to a file.
    fn run_all(&self, programs: &[Program], root: &Path) -> Result<()> {
        let mut children: Vec<(&str, Child, String)> = Vec::new();
        for (at, program) in programs.iter().enumerate() {
            let out = File::create(format!("out/{at}"))?;
            let stderr = format!("out/{at}.stderr");
            let mut command = Command::new(&program.words[0]);
            command.args(&program.words[1..]).current_dir(root).stdin(Stdio::null());
            command.stderr(File::create(&stderr)?);
            if program.summed {
                command.stdout(Stdio::piped());
            } else {
                command.stdout(out.try_clone()?);
            }
            let mut child =
                command.spawn().with_context(|| format!("cannot start {}", program.words[0]))?;
            if let Some(pipe) = child.stdout.take() {
                use nix::fcntl::{FcntlArg, fcntl};
                fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(data::CHUNK as i32)).ok();
                let sink = Command::new(&self.itself)
                    .args([load::NAME, "sink"])
                    .stdin(pipe)
                    .stdout(out)
                    .stderr(File::create(format!("out/{at}.sink"))?)
                    .spawn()
                    .context("cannot start a sink")?;
                children.push(("the sink", sink, format!("out/{at}.sink")));
            }
            children.push((&program.words[0], child, stderr));
        }
        let mut failure = None;
        for (name, mut child, stderr) in children {
            let status = child.wait()?;
            if !status.success() {
                let text = fs::read_to_string(&stderr).unwrap_or_default();
                let lines = text.lines().count();
                let first = text.lines().next().unwrap_or_default().to_owned();
                let name = name.rsplit('/').next().unwrap_or_default();
                failure
                    .get_or_insert(format!("{name}: {status}, {lines} lines of errors: {first}"));
            }
        }
        failure.map_or(Ok(()), |text| bail!(text))
    }

    /// What a work has read or left, as text.
    fn left(&self, order: &Order, root: &Path) -> Result<String> {
        let mut printed = String::new();
        for at in 0..self.programs(order.work, order.processes).len() {
            printed.push_str(&fs::read_to_string(format!("out/{at}"))?);
        }
        let gone = |path: &str| -> Result<String> {
            let found = fs::symlink_metadata(root.join(path));
            ensure!(
                found.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound),
                "{path} is still there"
            );
            Ok(String::new())
        };
        match order.work {
            // The loads check each answer themselves.
            Work::Mount | Work::Missing | Work::Read | Work::ReadAgain | Work::RandomRead => {
                Ok(String::new())
            }
            Work::Find | Work::FindAgain | Work::Memory | Work::Idle => {
                // In whatever order directories are read.
                let mut lines: Vec<_> = printed.lines().collect();
                lines.sort_unstable();
                Ok(lines.join("\n"))
            }
            Work::Tar | Work::SmallFiles | Work::SmallFilesBusy => Ok(printed),
            Work::Untar => data::listing(&root.join(NEW), true, None),
            Work::RemoveNew => gone(NEW),
            Work::Append => {
                for (path, content) in self.tree.small_files(self.sizes.append) {
                    let bytes = fs::read(root.join(path)).with_context(|| path.to_owned())?;
                    let (old, new) = bytes.split_at(bytes.len().min(content.size as usize));
                    ensure!(
                        old == content.bytes() && new == load::APPENDED,
                        "{path} is not what it was and one line more"
                    );
                }
                Ok(String::new())
            }
            Work::RemoveLower => {
                if order.union != Union::Plain {
                    let lowers = self.lowers(order);
                    let there = lowers.iter().any(|lower| lower.join(REMOVED).is_dir());
                    ensure!(there, "{REMOVED} was removed from the lower layers");
                }
                gone(REMOVED)
            }
            Work::Write => {
                let bytes = data::check_large(&mut File::open(root.join(NEW))?)?;
                ensure!(bytes == self.sizes.large_mib << 20, "{bytes} bytes came to the upper");
                Ok(String::new())
            }
            Work::Git => {
                ensure!(printed.is_empty(), "git status of a fresh clone: {printed}");
                data::listing(&root.join(NEW), false, Some(".git"))
            }
            Work::Compile => {
                let output = CProgram::new(self.sizes.sources).output;
                ensure!(printed == output, "the compiled program printed {printed:?}");
                Ok(String::new())
            }
        }
    }
}

impl Entry {
    /// Bytes of a file, 0 of anything else.
    fn bytes(&self) -> u64 {
        match self.kind {
            super::tree::Kind::File(content) => content.size,
            _ => 0,
        }
    }
}

fn is_below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

fn list_name(kind: &str, processes: usize, at: usize) -> String {
    format!("lists/{kind}-{at}-of-{processes}")
}
