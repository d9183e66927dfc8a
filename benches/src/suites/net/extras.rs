//! Cells beside transfers and requests from the guest: published ports, idleness, a
//! server far away, and iperf3 as a check of our own generators.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tests::command::Running;
use tests::lab;

use super::backend::LIMIT;
use super::iperf;
use super::meter::{cpu_seconds, memory};
use super::place::{FAR_LOSES_ONE_OF, FAR_MS, Family, Setting, figures};
use super::{MANY, Net, Question, USUAL_MTU};
use crate::method::Cell;
use crate::record::{Better, Role, Sample, extra};

/// Idle connections.
const FLOWS: u32 = 10_000;
/// Time for what opening them has left armed: the timer of each SYN-ACK, of a second.
const SETTLING: Duration = Duration::from_secs(2);
const MIB: f64 = 1024.0 * 1024.0;
/// CPU milliseconds of the backend for each second in which nothing happens.
const IDLE_CPU: &str = "idle_cpu_ms_per_s";
/// Gbit/s of a stream with no connection beside it, and with many.
const ALONE: &str = "alone_gbit_per_s";
const BESIDE: &str = "beside_gbit_per_s";
/// Connections opened a second.
const OPENED: &str = "opened_per_s";

impl<'a> Net<'a> {
    /// From outside to a server in the guest, through published ports.
    pub(super) fn published(&self, cells: &mut Vec<Cell<'a>>) {
        let (ms, limit) = (self.ms(), self.limit());
        for direction in ["up", "down"] {
            let into = if direction == "up" { "to" } else { "from" };
            let question = Question {
                id: format!("published/tcp-{direction}/streams1"),
                title: format!("Published port: TCP {into} a server in the guest"),
                unit: "Gbit/s",
                better: Better::Higher,
                params: vec![("direction", direction.to_owned())],
                note: None,
                loopback: false,
                mtu: USUAL_MTU,
                seconds: f64::from(ms) / 1e3 + 0.2,
            };
            cells.push(self.cell(question, move |place, via| {
                let args = [direction.to_owned(), format!("--ms={ms}")];
                let (figures, used) = place.inbound(via, USUAL_MTU, "tcp", &args, limit)?;
                Ok(used.transfer(&figures))
            }));
        }
        for (kind, streams, what) in [
            ("rr", 1, "TCP round trips of 64 bytes"),
            ("connections", MANY, "TCP connections, one request each"),
            ("http", MANY, "HTTP requests of 1 KiB, keep-alive"),
        ] {
            let id = format!("published/{kind}/streams{streams}");
            let title = format!("Published port: {what}, {streams} at once");
            let question = self.asking(id, title, streams, Family::V4, false);
            cells.push(self.cell(question, move |place, via| {
                let args = [format!("--ms={ms}"), format!("--streams={streams}")];
                let (figures, used) = place.inbound(via, USUAL_MTU, kind, &args, limit)?;
                Ok(used.operations(&figures))
            }));
        }
    }

    /// What a backend costs that has nothing to do.
    pub(super) fn idle(&self, cells: &mut Vec<Cell<'a>>) {
        let time = Duration::from_millis(self.extent.pick(1000, 3000));
        let seconds = time.as_secs_f64();
        let question = |id: &str, title: &str, unit, seconds| Question {
            id: id.to_owned(),
            title: title.to_owned(),
            unit,
            better: Better::Lower,
            params: vec![],
            note: None,
            loopback: false,
            mtu: USUAL_MTU,
            seconds,
        };

        let asked =
            question("idle", "CPU time of a backend with no traffic", "ms/s", seconds + 0.2);
        let mut cell = self.cell(asked, move |place, via| {
            let setting = place.setting(via, USUAL_MTU, Family::V4, &[])?;
            let backend = setting.backend.as_ref().context("only backends are idle")?;
            let cpu = cpu_seconds(backend.pid)?;
            let guest = setting.guest.as_ref().context("a backend has a guest")?;
            ensure!(!guest.ends_within(time)?, "the guest has ended");
            let used = cpu_seconds(backend.pid)? - cpu;
            let rss = memory(backend.pid, "VmRSS:")?;
            Ok(Sample::of(used * 1e3 / seconds).with(extra::PEAK_RSS_MIB, rss as f64 / MIB))
        });
        only_backends(&mut cell);
        cells.push(cell);

        let flows = self.extent.pick(1000, FLOWS);
        let within = self.extent.pick(10, 30);
        let title = format!("Memory of a backend with {flows} idle TCP connections");
        let asked = question(&format!("idle-flows/{flows}"), &title, "MiB", seconds + 5.0);
        let limit = Duration::from_secs(within) + 2 * LIMIT;
        let mut cell = self.cell(asked, move |place, via| {
            let setting = place.setting(via, USUAL_MTU, Family::V4, &[])?;
            let backend = setting.backend.as_ref().context("only backends are idle")?;
            let mut client = open_idle(&setting, flows, within)?;
            ensure!(!client.ends_within(SETTLING)?, "the client has ended");
            let cpu = cpu_seconds(backend.pid)?;
            ensure!(!client.ends_within(time)?, "the client has ended");
            let used = cpu_seconds(backend.pid)? - cpu;
            let rss = memory(backend.pid, "VmRSS:")?;
            // Each must still work.
            client.write(b"\n")?;
            let figures = figures(client, limit)?;
            Ok(Sample::of(rss as f64 / MIB)
                .with(IDLE_CPU, used * 1e3 / seconds)
                .with(OPENED, f64::from(flows) / figures.seconds)
                .with(extra::PEAK_RSS_MIB, memory(backend.pid, "VmHWM:")? as f64 / MIB))
        });
        only_backends(&mut cell);
        cell.warm_up = 0;
        cell.rounds = cell.rounds.min(3);
        cell.impossible = too_few_files(flows);
        cells.push(cell);
    }

    /// One stream beside many connections that are open and do nothing.
    pub(super) fn beside_idle(&self, cells: &mut Vec<Cell<'a>>) {
        let flows = self.extent.pick(1000, FLOWS);
        let within = self.extent.pick(10, 30);
        let (ms, limit) = (self.ms(), self.limit());
        for direction in ["up", "down"] {
            let question = Question {
                id: format!("beside-idle/tcp-{direction}/{flows}"),
                title: format!(
                    "TCP {} the guest, 1 stream beside {flows} open connections, as a share of \
                     what it moves alone",
                    if direction == "up" { "from" } else { "to" }
                ),
                unit: "×",
                better: Better::Higher,
                params: vec![("direction", direction.to_owned())],
                note: Some(
                    "alone is measured in the same sample, before the others are opened, through \
                     the same backend",
                ),
                loopback: false,
                mtu: USUAL_MTU,
                seconds: 2.0 * f64::from(ms) / 1e3 + 3.0,
            };
            let mut cell = self.cell(question, move |place, via| {
                let setting = place.setting(via, USUAL_MTU, Family::V4, &[])?;
                let args = [
                    "tcp".to_owned(),
                    setting.server.to_string(),
                    direction.to_owned(),
                    format!("--ms={ms}"),
                ];
                let (alone, before) = setting.run(&args, limit)?;
                let alone = before.transfer(&alone).value;
                let mut idle = open_idle(&setting, flows, within)?;
                let (beside, used) = setting.run(&args, limit)?;
                // Each must still work.
                idle.write(b"\n")?;
                figures(idle, Duration::from_secs(within) + 2 * LIMIT)?;
                let mut sample = used.transfer(&beside);
                let beside = std::mem::replace(&mut sample.value, 0.0);
                sample.value = beside / alone;
                Ok(sample.with(ALONE, alone).with(BESIDE, beside))
            });
            cell.warm_up = 0;
            cell.impossible = too_few_files(flows);
            cells.push(cell);
        }
    }

    /// Transfers over a long cable that loses some frames.
    pub(super) fn far_away(&self, cells: &mut Vec<Cell<'a>>) {
        let ms: u32 = self.extent.pick(700, 3000);
        let limit = self.limit() + Duration::from_millis(ms.into());
        for streams in self.extent.pick(&[1u16][..], &[1, 8]) {
            for direction in ["up", "down"] {
                let from = if direction == "up" { "from" } else { "to" };
                let question = Question {
                    id: format!("far/tcp-{direction}/streams{streams}"),
                    title: format!(
                        "TCP {from} the guest, {streams} at once, server {FAR_MS} ms away, one \
                         of {FAR_LOSES_ONE_OF} packets lost"
                    ),
                    unit: "Gbit/s",
                    better: Better::Higher,
                    params: vec![
                        ("direction", direction.to_owned()),
                        ("streams", streams.to_string()),
                        ("round_trip_ms", FAR_MS.to_string()),
                        ("loses_one_of", FAR_LOSES_ONE_OF.to_string()),
                    ],
                    note: Some("mostly the kernel's congestion control on the host's sockets"),
                    loopback: false,
                    mtu: 1500,
                    seconds: f64::from(ms) / 1e3 + 0.3,
                };
                let mut cell = self.cell(question, move |place, via| {
                    let setting = place.setting(via, 1500, Family::V4, &[])?;
                    let args = [
                        "tcp".to_owned(),
                        place.far()?.to_owned(),
                        direction.to_owned(),
                        format!("--ms={ms}"),
                        format!("--streams={streams}"),
                    ];
                    let (figures, used) = setting.run(&args, limit)?;
                    Ok(used.transfer(&figures))
                });
                for candidate in cell.candidates.iter_mut().filter(|c| c.role == Role::Limit) {
                    candidate.name = "no backend".to_owned();
                }
                cells.push(cell);
            }
        }
    }

    /// The same transfers by iperf3.
    pub(super) fn iperf(&self, cells: &mut Vec<Cell<'a>>) {
        let impossible = lab::find("iperf3")
            .is_none()
            .then(|| "iperf3 is not installed: apt-get install iperf3".to_owned());
        let seconds = 2;
        let all = [("up", 1500), ("down", 1500), ("up", 65_520), ("down", 65_520)];
        for (direction, mtu) in all {
            let question = Question {
                id: format!("iperf3/tcp-{direction}/mtu{mtu}/streams1"),
                title: format!(
                    "The same by iperf3: TCP {} the guest, MTU {mtu}, 1 stream",
                    if direction == "up" { "from" } else { "to" }
                ),
                unit: "Gbit/s",
                better: Better::Higher,
                params: vec![("direction", direction.to_owned())],
                note: Some("iperf3 checks no data; a check of the generators used elsewhere"),
                loopback: false,
                mtu,
                seconds: f64::from(seconds) + 0.4,
            };
            let limit = self.limit() + Duration::from_secs(2);
            let mut cell = self.cell(question, move |place, via| {
                let setting = place.setting(via, mtu, Family::V4, &[])?;
                let server = place.iperf_server()?;
                let mut args = vec!["-c".to_owned(), setting.server.to_string(), "-J".to_owned()];
                args.extend(["-t".to_owned(), seconds.to_string()]);
                if direction == "down" {
                    args.push("-R".to_owned());
                }
                let meter = setting.meter()?;
                let output = setting.program("iperf3").args(args).limit(limit).run()?.ok()?;
                let used = meter.stop()?;
                drop(server);
                Ok(used.transfer(&iperf::figures(&output.stdout)?))
            });
            cell.warm_up = 0;
            cell.impossible.clone_from(&impossible);
            cells.push(cell);
        }
    }
}

/// Opens connections that do nothing; a line on its standard input ends the client.
fn open_idle(setting: &Setting<'_, '_>, flows: u32, within: u64) -> Result<Running> {
    let args = [
        "idle".to_owned(),
        setting.server.to_string(),
        format!("--connections={flows}"),
        format!("--within={within}"),
    ];
    let client = setting.client(&args).stdin_open().spawn()?;
    if client.stdout_until("open ", Duration::from_secs(within) + 2 * LIMIT).is_err() {
        // It says itself why.
        figures(client, Duration::ZERO)?;
        bail!("the client ended before its time");
    }
    Ok(client)
}

/// A limit has no backend whose cost could be seen.
fn only_backends(cell: &mut Cell<'_>) {
    cell.candidates.retain(|candidate| candidate.role != Role::Limit);
}

fn too_few_files(flows: u32) -> Option<String> {
    use nix::sys::resource::{Resource, getrlimit};
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let needed = u64::from(flows) + 100;
    (soft < needed)
        .then(|| format!("{flows} connections need {needed} open files, and {soft} are allowed"))
}
