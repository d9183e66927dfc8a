//! This program's side of the [`stage`]: starting it, and asking.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tests::clock::Deadline;
use tests::command::readable;
use tests::lab::Ids;

use super::stage::{self, Answer, Order};
use super::work::Sizes;
use crate::record::Sample;
use crate::scene::Scene;

/// How long one sample may take, the making of its data included.
const LIMIT: Duration = Duration::from_secs(300);

/// The stage of a run: started when it is first asked, and again after a candidate
/// has hung in it.
pub(crate) struct Client<'a> {
    scene: &'a Scene,
    sizes: Sizes,
    process: RefCell<Option<Process>>,
}

impl<'a> Client<'a> {
    /// A stage not yet started.
    pub(crate) fn new(scene: &'a Scene, sizes: Sizes) -> Self {
        Self { scene, sizes, process: RefCell::new(None) }
    }

    /// One sample.
    ///
    /// # Errors
    /// What the candidate did wrong, or that it did not end in time.
    pub(crate) fn ask(&self, order: &Order) -> Result<Sample> {
        let mut slot = self.process.borrow_mut();
        let mut process = match slot.take() {
            Some(process) => process,
            None => Process::start(self.scene, self.sizes)?,
        };
        // A stage that gave no answer is dropped, and so ended.
        let answer = process.ask(order)?;
        *slot = Some(process);
        answer.map_err(|why| anyhow!(why))
    }
}

#[derive(Debug)]
struct Process(Child);

impl Process {
    fn start(scene: &Scene, sizes: Sizes) -> Result<Self> {
        let user = scene.user();
        let dir = scene.dir()?;
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user"]);
        if scene.lab.user(Ids::Subordinate).is_some() {
            command.arg("--map-auto");
        }
        command
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
            .arg(scene.lab.itself()?)
            .arg(stage::NAME)
            .arg(&dir)
            .arg(serde_json::to_string(&sizes)?)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LANG", "C.UTF-8")
            // Nobody's settings: git must do the same everywhere.
            .env("HOME", &dir)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if nix::unistd::geteuid().is_root() {
            command.uid(user.uid).gid(user.gid);
        }
        let child = command.spawn().context("cannot start unshare (package util-linux)")?;
        Ok(Self(child))
    }

    fn ask(&mut self, order: &Order) -> Result<Answer> {
        let line = serde_json::to_string(order)? + "\n";
        let ended = "the process that measures has ended; what it said is above";
        self.0.stdin.as_mut().context("no pipe")?.write_all(line.as_bytes()).context(ended)?;
        let stdout = self.0.stdout.as_mut().context("no pipe")?;
        let deadline = Deadline::after(LIMIT);
        let mut answer = Vec::new();
        while answer.last() != Some(&b'\n') {
            if !readable(stdout.as_fd(), deadline.left())? {
                bail!("no end after {} s, ended by force", LIMIT.as_secs());
            }
            let mut buffer = [0; 4096];
            match stdout.read(&mut buffer)? {
                0 => bail!(ended),
                count => answer.extend_from_slice(&buffer[..count]),
            }
        }
        serde_json::from_slice(&answer).context("an answer in no known form")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ends the stage (--kill-child) and all in its PID namespace. Both fail only
        // when it has ended already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
