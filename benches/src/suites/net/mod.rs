//! The network: a client in a namespace, a backend, a server across a veth pair.

mod backend;
mod extras;
pub(super) mod iperf;
mod meter;
mod place;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::lab::Outside;

use self::backend::{Backend, LIMIT};
use self::place::{Family, Place, Via};
use super::Extent;
use crate::method::{Candidate, Cell};
use crate::record::{Better, Head, Role, Sample};
use crate::scene::Scene;

/// Datagrams that did not arrive, of those sent.
const LOSS_PERCENT: &str = "loss_percent";
/// Names of the extra figures for [`crate::load::PERCENTILES`].
const PERCENTILE_NAMES: [&str; 5] = ["p50_us", "p90_us", "p99_us", "p999_us", "max_us"];

/// MTUs: Ethernet's, jumbo frames', and the largest Podman asks for.
const MTUS: [u32; 3] = [1500, 9000, 65_520];
/// MTU where it is not the question: what Podman asks slirp4netns for.
const USUAL_MTU: u32 = 65_520;
/// Threads of a client that asks much at once.
const MANY: u16 = 16;

/// The cells of this suite.
pub(crate) fn cells<'a>(scene: &'a Scene, extent: Extent) -> Result<Vec<Cell<'a>>> {
    ensure!(
        scene.lab.is_isolated(),
        "the net suite makes network namespaces joined by a veth pair: run it as root"
    );
    // Connections of one sample that are in TIME-WAIT would leave the next too few ports.
    std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1")
        .context("cannot set tcp_tw_reuse of the benchmark's own namespace")?;
    let net = Net { place: Rc::new(Place::new(scene)?), extent };
    let mut cells = Vec::new();
    net.tcp(&mut cells);
    net.udp(&mut cells);
    net.small(&mut cells);
    net.published(&mut cells);
    net.idle(&mut cells);
    net.beside_idle(&mut cells);
    net.far_away(&mut cells);
    if !extent.quick {
        net.iperf(&mut cells);
    }
    Ok(cells)
}

struct Net<'a> {
    place: Rc<Place<'a>>,
    extent: Extent,
}

/// What a cell asks, before its candidates.
struct Question {
    id: String,
    title: String,
    unit: &'static str,
    better: Better,
    params: Vec<(&'static str, String)>,
    note: Option<&'static str>,
    /// Whether a candidate without the veth pair makes sense.
    loopback: bool,
    mtu: u32,
    /// Rough seconds of a sample.
    seconds: f64,
}

impl<'a> Net<'a> {
    /// Milliseconds a client sends or asks.
    fn ms(&self) -> u32 {
        self.extent.pick(200, 1000)
    }

    /// How long such a client may take: a transfer that has stalled has failed.
    fn limit(&self) -> Duration {
        Duration::from_millis(self.ms().into()) + self.extent.pick(LIMIT / 2, LIMIT)
    }

    fn cell(
        &self,
        question: Question,
        sample: impl Fn(&Place<'a>, Via<'a>) -> Result<Sample> + 'a,
    ) -> Cell<'a> {
        let scene = self.place.scene;
        let sample = Rc::new(sample);
        let mut candidates = Vec::new();
        let mut add = |name: &str, role, command: String, via: Via<'a>| {
            let (place, sample) = (Rc::clone(&self.place), Rc::clone(&sample));
            candidates.push(Candidate {
                name: name.to_owned(),
                role,
                command,
                subject: Box::new(move || sample(&place, via)),
            });
        };
        for peer in scene.peers.iter().filter(|peer| backend::KINDS.contains(&peer.kind.name)) {
            let command = Backend::in_words(peer, question.mtu);
            add(&peer.name, peer.kind.role, command, Via::Backend(peer));
        }
        let command = "no backend: the client runs on the host";
        add("veth", Role::Limit, command.into(), Via::Veth);
        if question.loopback {
            let command = "no backend and no veth: the server runs on the host too";
            add("loopback", Role::Limit, command.into(), Via::Loopback);
        }
        let mut params: BTreeMap<String, String> =
            question.params.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        params.insert("mtu".into(), question.mtu.to_string());
        Cell {
            head: Head {
                id: format!("net/{}", question.id),
                title: question.title,
                unit: question.unit.to_owned(),
                better: question.better,
                params,
                note: question.note.map(str::to_owned),
            },
            seconds: question.seconds,
            warm_up: self.extent.pick(0, 1),
            rounds: self.extent.rounds(5),
            candidates,
            impossible: None,
        }
    }

    fn tcp(&self, cells: &mut Vec<Cell<'a>>) {
        let mut ways = Vec::new();
        for mtu in MTUS {
            for streams in [1, 8, 64] {
                // A quick look leaves out what lies between.
                if !self.extent.quick || (mtu != 9000 && streams != 64) {
                    ways.push((mtu, streams, Family::V4));
                }
            }
        }
        if !self.extent.quick {
            ways.extend(MTUS.map(|mtu| (mtu, 1, Family::V6)));
        }
        for (mtu, streams, family) in ways {
            for direction in ["up", "down"] {
                let id = format!("tcp-{direction}/mtu{mtu}/streams{streams}/{}", family.word());
                cells.push(self.transfer(id, direction, mtu, streams, family));
            }
        }
    }

    fn transfer(
        &self,
        id: String,
        direction: &'static str,
        mtu: u32,
        streams: u16,
        family: Family,
    ) -> Cell<'a> {
        let question = Question {
            id,
            title: format!(
                "TCP {} the guest, MTU {mtu}, {streams} stream{}, IP{}",
                if direction == "up" { "from" } else { "to" },
                if streams == 1 { "" } else { "s" },
                family.word()
            ),
            unit: "Gbit/s",
            better: Better::Higher,
            params: vec![
                ("direction", direction.to_owned()),
                ("streams", streams.to_string()),
                ("family", family.word().to_owned()),
            ],
            note: None,
            loopback: true,
            mtu,
            seconds: f64::from(self.ms()) / 1e3 + 0.15,
        };
        let (ms, limit) = (self.ms(), self.limit());
        self.cell(question, move |place, via| {
            let setting = place.setting(via, mtu, family, &[])?;
            let args = [
                "tcp".to_owned(),
                setting.server.to_string(),
                direction.to_owned(),
                format!("--ms={ms}"),
                format!("--streams={streams}"),
            ];
            let (figures, used) = setting.run(&args, limit)?;
            Ok(used.transfer(&figures))
        })
    }

    fn udp(&self, cells: &mut Vec<Cell<'a>>) {
        let mut ways = Vec::new();
        for size in self.extent.pick(&[1400, 16_384][..], &[64, 1400, 16_384]).iter().copied() {
            ways.extend(["up", "down"].map(|direction| (size, direction, Family::V4, false)));
        }
        ways.extend(["up", "down"].map(|direction| (1400, direction, Family::V4, true)));
        if !self.extent.quick {
            ways.extend(["up", "down"].map(|direction| (1400, direction, Family::V6, false)));
        }
        for (size, direction, family, together) in ways {
            let (apart, as_what) = if together {
                ("-together", ", 16 by one call as QUIC servers do")
            } else {
                ("", "")
            };
            let question = Question {
                id: format!("udp{apart}-{direction}/size{size}/{}", family.word()),
                title: format!(
                    "UDP {} the guest, {size} bytes{as_what}, IP{}",
                    if direction == "up" { "from" } else { "to" },
                    family.word()
                ),
                unit: "Gbit/s",
                better: Better::Higher,
                params: vec![
                    ("direction", direction.to_owned()),
                    ("size", size.to_string()),
                    ("family", family.word().to_owned()),
                ],
                note: Some(
                    "goodput: what arrives, whole and once, of a sender that sends as fast as \
                     it can",
                ),
                loopback: true,
                mtu: USUAL_MTU,
                seconds: f64::from(self.ms()) / 1e3 + 0.4,
            };
            let (ms, limit) = (self.ms(), self.limit());
            cells.push(self.cell(question, move |place, via| {
                let setting = place.setting(via, USUAL_MTU, family, &[])?;
                let mut args = vec![
                    "udp".to_owned(),
                    setting.server.to_string(),
                    direction.to_owned(),
                    format!("--ms={ms}"),
                    format!("--size={size}"),
                ];
                args.extend(together.then(|| "--together".to_owned()));
                let (figures, used) = setting.run(&args, limit)?;
                Ok(used.transfer(&figures))
            }));
        }
    }

    fn small(&self, cells: &mut Vec<Cell<'a>>) {
        let kinds = [
            ("rr", "TCP round trips of 64 bytes", 1, Family::V4),
            ("rr", "TCP round trips of 64 bytes", 1, Family::V6),
            ("rr", "TCP round trips of 64 bytes", MANY, Family::V4),
            ("udp-rr", "UDP round trips of 64 bytes", 1, Family::V4),
            ("connections", "TCP connections, one request each", MANY, Family::V4),
            ("http", "HTTP requests of 1 KiB, keep-alive", MANY, Family::V4),
        ];
        for (kind, title, streams, family) in kinds {
            let id = format!("{kind}/streams{streams}/{}", family.word());
            let title = format!("{title}, {streams} at once, IP{}", family.word());
            let question = self.asking(id, title, streams, family, true);
            let (ms, limit) = (self.ms(), self.limit());
            cells.push(self.cell(question, move |place, via| {
                let setting = place.setting(via, USUAL_MTU, family, &[])?;
                let args = [
                    kind.to_owned(),
                    setting.server.to_string(),
                    format!("--ms={ms}"),
                    format!("--streams={streams}"),
                ];
                let (figures, used) = setting.run(&args, limit)?;
                Ok(used.operations(&figures))
            }));
        }
        for streams in [1, MANY] {
            let id = format!("dns/streams{streams}/v4");
            let title = format!("DNS questions to the backend's name server, {streams} at once");
            let question = self.asking(id, title, streams, Family::V4, false);
            let (ms, limit) = (self.ms(), self.limit());
            cells.push(self.cell(question, move |place, via| {
                let setting = place.setting(via, USUAL_MTU, Family::V4, &[])?;
                let args = [
                    "dns".to_owned(),
                    setting.dns.to_string(),
                    Outside::V4.to_owned(),
                    format!("--ms={ms}"),
                    format!("--streams={streams}"),
                ];
                let (figures, used) = setting.run(&args, limit)?;
                Ok(used.operations(&figures))
            }));
        }
    }

    /// A question of operations a second.
    fn asking(
        &self,
        id: String,
        title: String,
        streams: u16,
        family: Family,
        loopback: bool,
    ) -> Question {
        Question {
            id,
            title,
            unit: "1/s",
            better: Better::Higher,
            params: vec![("streams", streams.to_string()), ("family", family.word().to_owned())],
            note: None,
            loopback,
            mtu: USUAL_MTU,
            seconds: f64::from(self.ms()) / 1e3 + 0.15,
        }
    }
}
