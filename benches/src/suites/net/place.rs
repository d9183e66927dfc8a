//! The network a sample runs in.
//!
//! ```text
//!  guest             "host": the lab             "outside"
//!  client ─ tap0 ─ backend ─ up0 ──── veth ──── out0 ─ server
//!           client (veth) ─ up0 ──── veth ──── out0 ─ server
//!           client (loopback) ─ lo ─ server
//! ```
//!
//! Each sample with a backend has a guest and a backend of its own: nothing of the
//! sample before is left in it, and its peak memory is this sample's.

use std::cell::{Cell, OnceCell};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::command::{Cmd, Running};
use tests::lab::Outside;

use super::backend::{Backend, Guest, LIMIT, Wish};
use super::meter::{Meter, Used};
use crate::load::{Figures, link};
use crate::peers::Peer;
use crate::scene::Scene;

/// Ports of the guest that are published, and how far above them the host's are.
pub(super) const PUBLISHED: [u16; 4] = [
    crate::load::port::BULK,
    crate::load::port::ECHO,
    crate::load::port::ONE_SHOT,
    crate::load::port::HTTP,
];
const SHIFT: u16 = 10_000;

/// Milliseconds over the long cable and back.
pub(super) const FAR_MS: u32 = 20;
/// Of so many frames it loses one.
pub(super) const FAR_LOSES_ONE_OF: u32 = 1000;

/// What a client's bytes pass through.
#[derive(Debug, Clone, Copy)]
pub(super) enum Via<'a> {
    /// A backend.
    Backend(&'a Peer),
    /// Only the veth pair: the client runs on the host.
    Veth,
    /// Only the loopback device: client and server run on the host.
    Loopback,
}

/// IP versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        }
    }
}

/// The servers, and how the network is set.
pub(super) struct Place<'a> {
    pub(super) scene: &'a Scene,
    itself: PathBuf,
    mtu: Cell<u32>,
    outside: OnceCell<Running>,
    host: OnceCell<Running>,
    cable: OnceCell<Running>,
}

/// A network with a client in it, for one sample.
pub(super) struct Setting<'p, 'a> {
    place: &'p Place<'a>,
    pub(super) guest: Option<Guest>,
    pub(super) backend: Option<Backend>,
    /// Where the client finds the server.
    pub(super) server: IpAddr,
    /// Where it finds a name server.
    pub(super) dns: IpAddr,
}

impl<'a> Place<'a> {
    pub(super) fn new(scene: &'a Scene) -> Result<Self> {
        Ok(Self {
            scene,
            itself: scene.lab.itself()?,
            mtu: Cell::new(1500),
            outside: OnceCell::new(),
            host: OnceCell::new(),
            cable: OnceCell::new(),
        })
    }

    /// A load generator, in the network namespace of this thread.
    fn load(&self, args: &[String]) -> Cmd {
        self.scene.cmd(&self.itself).arg("load").args(args)
    }

    /// Starts the servers that are not running yet.
    fn serve(&self) -> Result<()> {
        let ready = |running: Running| -> Result<Running> {
            running.stdout_until("ready\n", LIMIT)?;
            Ok(running)
        };
        // Root's: it may have a large receive buffer for datagrams.
        let server = || Cmd::new(&self.itself).args(["load", "serve"]).stdin_open();
        if self.outside.get().is_none() {
            let server = server();
            let running = self.scene.lab.outside()?.enter(|| ready(server.spawn()?))?;
            self.outside.set(running).ok();
        }
        if self.host.get().is_none() {
            self.host.set(ready(server().spawn()?)?).ok();
        }
        Ok(())
    }

    /// Address of the server over the long cable, which is laid when first needed.
    pub(super) fn far(&self) -> Result<&'static str> {
        const NEAR_END: &str = "10.78.0.1/24";
        const FAR_END: &str = "10.78.0.2";
        if self.cable.get().is_none() {
            let outside = self.outside.get().context("the server outside is not running")?;
            let running = Cmd::new(&self.itself)
                .args(["load", "link", &outside.pid().to_string()])
                .arg(format!("--delay-ms={}", FAR_MS / 2))
                .arg(format!("--lose-one-of={FAR_LOSES_ONE_OF}"))
                .stdin_open()
                .spawn()?;
            running.stdout_until("ready\n", LIMIT)?;
            let up = |device: &str, address: &str| -> Result<()> {
                let lines = format!("addr add {address} dev {device}\nlink set {device} up\n");
                Cmd::new("ip").args(["-batch", "-"]).stdin(lines).run()?.ok()?;
                Ok(())
            };
            up(link::HERE, NEAR_END)?;
            let address = format!("{FAR_END}/24");
            self.scene.lab.outside()?.enter(|| up(link::THERE, &address))?;
            self.cable.set(running).ok();
        }
        Ok(FAR_END)
    }

    /// One MTU for everything that takes part.
    fn set_mtu(&self, mtu: u32) -> Result<()> {
        if self.mtu.get() == mtu {
            return Ok(());
        }
        let set = |device: &str| -> Result<()> {
            let mtu = mtu.to_string();
            Cmd::new("ip").args(["link", "set", device, "mtu", &mtu]).run()?.ok()?;
            Ok(())
        };
        set("up0")?;
        set("lo")?;
        self.scene.lab.outside()?.enter(|| set("out0"))?;
        self.mtu.set(mtu);
        Ok(())
    }

    /// A server of iperf3's for one test, outside.
    pub(super) fn iperf_server(&self) -> Result<Running> {
        self.scene.lab.outside()?.enter(|| super::iperf::server(LIMIT))
    }

    /// Furnishes a network for a client that goes out.
    pub(super) fn setting(
        &self,
        via: Via<'_>,
        mtu: u32,
        family: Family,
        publish: &[u16],
    ) -> Result<Setting<'_, 'a>> {
        self.set_mtu(mtu)?;
        self.serve()?;
        let address = match (via, family) {
            (Via::Loopback, Family::V4) => "127.0.0.1",
            (Via::Loopback, Family::V6) => "::1",
            (_, Family::V4) => Outside::V4,
            (_, Family::V6) => Outside::V6,
        };
        let (guest, backend) = match via {
            Via::Backend(peer) => {
                let guest = Guest::start(self.scene)?;
                let wish = Wish { mtu, publish, shift: SHIFT };
                let backend = Backend::start(self.scene, peer, &guest, wish)?;
                if family == Family::V6 {
                    guest.wait_for_v6()?;
                }
                (Some(guest), Some(backend))
            }
            Via::Veth | Via::Loopback => (None, None),
        };
        let dns = backend.as_ref().map_or(Outside::V4.parse()?, |backend| backend.dns);
        Ok(Setting { place: self, guest, backend, server: address.parse()?, dns })
    }

    /// A client outside that comes in through a published port, and what it cost.
    /// Without a backend the server is the host's.
    pub(super) fn inbound(
        &self,
        via: Via<'_>,
        mtu: u32,
        kind: &str,
        args: &[String],
        limit: Duration,
    ) -> Result<(Figures, Used)> {
        let setting = self.setting(via, mtu, Family::V4, &PUBLISHED)?;
        let server = match &setting.guest {
            Some(guest) => {
                let cmd = guest.cmd(self.scene, &self.itself).args(["load", "serve"]);
                let running = cmd.stdin_open().spawn()?;
                running.stdout_until("ready\n", LIMIT)?;
                Some(running)
            }
            None => None,
        };
        let mut words = vec![kind.to_owned(), Outside::HOST_V4.to_owned()];
        words.extend_from_slice(args);
        if server.is_some() {
            words.push(format!("--shift={SHIFT}"));
        }
        let meter = setting.meter()?;
        let client = self.load(&words);
        let client = self.scene.lab.outside()?.enter(|| client.spawn())?;
        let figures = figures(client, limit)?;
        let used = meter.stop()?;
        Ok((figures, used))
    }
}

impl Setting<'_, '_> {
    /// Starts to measure.
    pub(super) fn meter(&self) -> Result<Meter> {
        let mut namespaces = vec![std::process::id().cast_signed()];
        namespaces.extend(self.guest.as_ref().map(Guest::pid));
        namespaces.extend(self.place.outside.get().map(Running::pid));
        Meter::start(self.backend.as_ref().map(|backend| backend.pid), &namespaces)
    }

    /// A load generator where the client is.
    pub(super) fn client(&self, args: &[String]) -> Cmd {
        self.program(&self.place.itself).arg("load").args(args)
    }

    /// Any program there.
    pub(super) fn program(&self, program: impl AsRef<Path>) -> Cmd {
        match &self.guest {
            Some(guest) => guest.cmd(self.place.scene, program.as_ref()),
            None => self.place.scene.cmd(program.as_ref()),
        }
    }

    /// Runs one to its end, and says what that cost.
    pub(super) fn run(&self, args: &[String], limit: Duration) -> Result<(Figures, Used)> {
        let meter = self.meter()?;
        let figures = figures(self.client(args).spawn()?, limit)?;
        Ok((figures, meter.stop()?))
    }
}

/// What a client prints at its end.
pub(super) fn figures(client: Running, limit: Duration) -> Result<Figures> {
    ensure!(client.ends_within(limit)?, "stalled: no end after {} s", limit.as_secs());
    let output = client.wait(limit)?;
    if output.code != 0 {
        let why = output.stderr.lines().last().unwrap_or_default();
        anyhow::bail!("{}", why.strip_prefix("error: ").unwrap_or(why));
    }
    let line = output.stdout.lines().last().unwrap_or_default();
    serde_json::from_str(line).with_context(|| format!("the client printed {line:?}"))
}
