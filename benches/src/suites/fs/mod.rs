//! The overlay: what a union of layers costs, beside its peers, the kernel's own
//! overlay and a plain directory.
//!
//! Everything runs as an ordinary user, in a user namespace, on a tmpfs: see
//! [`stage`]. What is asked is in [`work`], how a candidate is mounted in [`mounts`],
//! what the layers hold in [`tree`].

mod client;
mod data;
pub(crate) mod load;
mod mounts;
pub(crate) mod stage;
mod tree;
mod work;

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result};

use self::client::Client;
use self::mounts::Union;
use self::stage::Order;
use self::work::{Sizes, Work};
use super::Extent;
use crate::method::{Candidate, Cell};
use crate::record::{Better, Head, Role};
use crate::scene::Scene;

/// One row of the suite.
struct Row {
    id: &'static str,
    title: &'static str,
    work: Work,
    unit: &'static str,
    /// Layers and processes it is measured with, a cell each; those with more than
    /// the usual six layers and one process are left out of a quick run, but for
    /// mounts.
    variants: &'static [(usize, usize)],
    /// Seconds of a full sample, data and tear-down included: a mean of candidates.
    seconds: f64,
    note: Option<&'static str>,
}

const COLD: &str = "on a fresh mount: nothing is cached in the union";
const SHARED: &str = "the work is divided among the processes";

const fn row(id: &'static str, title: &'static str, work: Work, seconds: f64) -> Row {
    Row { id, title, work, unit: "s", variants: &[(6, 1)], seconds, note: None }
}

const ROWS: &[Row] = &[
    Row {
        unit: "ms",
        variants: &[(1, 1), (6, 1), (100, 1)],
        note: Some("from the start of the program, or mount(2), until the root answers"),
        ..row("mount", "Mounting", Work::Mount, 0.1)
    },
    Row {
        variants: &[(6, 1), (1, 1), (100, 1), (6, 4)],
        note: Some(COLD),
        ..row("find", "find with the status of everything, fresh mount", Work::Find, 4.0)
    },
    Row {
        variants: &[(6, 1), (6, 4)],
        ..row("find-again", "The same find again", Work::FindAgain, 5.0)
    },
    Row {
        variants: &[(6, 1), (6, 4)],
        note: Some("each name is asked for many times, as compilers and loaders do"),
        ..row("missing", "stat of names that are not there", Work::Missing, 1.5)
    },
    Row {
        variants: &[(6, 1), (6, 4)],
        note: Some(COLD),
        ..row("tar", "tar of all files into a pipe, fresh mount", Work::Tar, 10.0)
    },
    row("untar", "Unpacking an archive", Work::Untar, 6.0),
    row("rm-new", "rm -rf of the unpacked files", Work::RemoveNew, 6.5),
    Row {
        variants: &[(6, 1), (6, 4)],
        note: Some("each file is copied up, and synced unless the program leaves that out"),
        ..row("append", "A line appended to lower files", Work::Append, 1.5)
    },
    row("rm-lower", "rm -rf of a directory of the lower layers", Work::RemoveLower, 3.0),
    row("write", "Sequential write and fsync of a large file", Work::Write, 4.0),
    Row {
        variants: &[(1, 1), (1, 4)],
        note: Some("with several processes each reads the whole file"),
        ..row("read", "Sequential read of a large lower file, fresh mount", Work::Read, 2.0)
    },
    Row { variants: &[(1, 1)], ..row("read-again", "The same read again", Work::ReadAgain, 2.5) },
    Row {
        variants: &[(1, 1), (1, 4)],
        note: Some(COLD),
        ..row("random-read", "Random 4 KiB reads of a large lower file", Work::RandomRead, 6.0)
    },
    row("git", "git clone and status", Work::Git, 1.5),
    Row {
        variants: &[(1, 1)],
        note: Some("compilers, headers and libraries of the system are outside of the mount"),
        ..row("compile", "Compiling and linking a C program, 2 at a time", Work::Compile, 6.0)
    },
    Row {
        variants: &[(6, 1), (6, 4)],
        note: Some(COLD),
        ..row("small-files", "Reading small files, fresh mount", Work::SmallFiles, 3.0)
    },
    Row {
        variants: &[(6, 4)],
        note: Some(
            "on a fresh mount, while two other programs never rest; with spin=0 the server \
             sleeps between requests at once",
        ),
        ..row(
            "small-files-busy",
            "Reading small files beside two busy loops",
            Work::SmallFilesBusy,
            4.0,
        )
    },
    Row {
        unit: "MiB",
        note: Some("resident memory of the server"),
        ..row("memory", "Memory after find over everything", Work::Memory, 4.0)
    },
    Row {
        unit: "1/s",
        note: Some(
            "context switches of all threads of the server, counted by the kernel, while \
             nobody asks for anything; 0 is as good as it gets",
        ),
        ..row("idle", "Wake-ups of an idle server, after find", Work::Idle, 15.0)
    },
];

/// The cells of this suite.
pub(crate) fn cells<'a>(scene: &'a Scene, extent: Extent) -> Result<Vec<Cell<'a>>> {
    let sizes = extent.pick(Sizes::QUICK, Sizes::FULL);
    let client = Rc::new(Client::new(scene, sizes));
    let impossible = impossible(scene, sizes)?;
    let mut cells = Vec::new();
    for row in ROWS {
        for &(layers, processes) in row.variants {
            let usual = processes == 1 && (layers == 6 || row.variants.len() == 1);
            let first = (layers, processes) == row.variants[0];
            if extent.quick && !usual && !first && row.work != Work::Mount {
                continue;
            }
            let order = |union| Order { union, layers, work: row.work, processes };
            cells.push(Cell {
                head: head(row, layers, processes, sizes),
                seconds: row.seconds * extent.pick(0.2, 1.0),
                warm_up: extent.pick(0, 1),
                rounds: extent.rounds(5),
                candidates: candidates(scene, &client, order),
                impossible: impossible.clone(),
            });
        }
    }
    Ok(cells)
}

fn head(row: &Row, layers: usize, processes: usize, sizes: Sizes) -> Head {
    let mut params = BTreeMap::from([
        ("layers".to_owned(), layers.to_string()),
        ("processes".to_owned(), processes.to_string()),
    ]);
    params.extend(amounts(row.work, sizes).map(|(name, value)| (name.to_owned(), value)));
    let mut title = row.title.to_owned();
    for (count, what) in [(layers, "layer"), (processes, "process")] {
        let usual = if what == "layer" { 6 } else { 1 };
        if count != usual && row.variants.len() > 1 {
            let plural = match (count, what) {
                (1, _) => "",
                (_, "layer") => "s",
                _ => "es",
            };
            title.push_str(&format!(", {count} {what}{plural}"));
        }
    }
    let shared = processes > 1 && row.work != Work::Read;
    let note = match (row.note, shared) {
        (Some(note), true) => Some(format!("{note}; {SHARED}")),
        (Some(note), false) => Some(note.to_owned()),
        (None, true) => Some(SHARED.to_owned()),
        (None, false) => None,
    };
    Head {
        id: format!("fs/{}/layers{layers}/procs{processes}", row.id),
        title,
        unit: row.unit.to_owned(),
        better: Better::Lower,
        params,
        note,
    }
}

/// How much of what, for the record.
fn amounts(work: Work, sizes: Sizes) -> impl Iterator<Item = (&'static str, String)> {
    use Work::*;
    let mut amounts = vec![match work {
        Mount | Find | FindAgain | Tar | Memory | RemoveLower | Idle => {
            ("files", sizes.entries.to_string())
        }
        Missing => ("stats", (sizes.missing.0 * sizes.missing.1 as usize).to_string()),
        Untar | RemoveNew => ("files", sizes.archive.to_string()),
        Append => ("files", sizes.append.to_string()),
        SmallFiles | SmallFilesBusy => ("files", sizes.small.to_string()),
        Git => ("files", sizes.git.to_string()),
        Compile => ("files", sizes.sources.to_string()),
        Write | Read | ReadAgain => ("mib", sizes.large_mib.to_string()),
        RandomRead => ("reads", sizes.preads.to_string()),
    }];
    match work {
        RemoveLower => amounts[0].0 = "files_of_all_layers",
        RandomRead => amounts.push(("mib", sizes.large_mib.to_string())),
        Idle => amounts.push(("seconds", sizes.idle_s.to_string())),
        _ => {}
    }
    amounts.into_iter()
}

fn candidates<'a>(
    scene: &'a Scene,
    client: &Rc<Client<'a>>,
    order: impl Fn(Union) -> Order,
) -> Vec<Candidate<'a>> {
    let peers = ["overlayfs-fuse", "fuse-overlayfs", "unionfs-fuse"];
    let mut unions: Vec<(String, Role, Union)> = Vec::new();
    for kind in peers {
        for peer in scene.peers(kind) {
            let path = peer.path.clone();
            let union = if kind == "unionfs-fuse" {
                Union::Unionfs(path.clone())
            } else {
                Union::Overlay(path.clone())
            };
            unions.push((peer.name.clone(), peer.kind.role, union));
            // What looking for requests without sleeping is worth, and costs.
            if !peer.by_path && kind == "overlayfs-fuse" && spinning_matters(&order(Union::Kernel))
            {
                let sleeping = Union::With(path, "spin=0".to_owned());
                unions.push((format!("{}, spin=0", peer.name), peer.kind.role, sleeping));
            }
        }
    }
    // Ours by path belong to ours, whose first line is what the others are compared with.
    unions.sort_by_key(|(_, role, _)| *role);
    unions.push(("kernel overlay".to_owned(), Role::Limit, Union::Kernel));
    unions.push(("plain directory".to_owned(), Role::Limit, Union::Plain));
    unions
        .into_iter()
        .map(|(name, role, union)| (name, role, order(union)))
        .filter(|(_, _, order)| match order.union {
            Union::Plain => !order.work.needs_a_mount(),
            Union::Kernel => !order.work.needs_a_server(),
            Union::Overlay(_) | Union::With(..) | Union::Unionfs(_) => true,
        })
        .map(|(name, role, order)| {
            let client = Rc::clone(client);
            Candidate {
                name,
                role,
                command: order.union.command(order.layers),
                subject: Box::new(move || client.ask(&order)),
            }
        })
        .collect()
}

/// Whether several clients, or others, want the processors that a server spins on.
fn spinning_matters(order: &Order) -> bool {
    match order.work {
        Work::SmallFilesBusy => true,
        Work::SmallFiles | Work::RandomRead => order.processes > 1,
        _ => false,
    }
}

/// Why nothing can be measured here, if so.
fn impossible(scene: &Scene, sizes: Sizes) -> Result<Option<String>> {
    for tool in ["find", "tar", "git", "gcc", "xargs", "unshare"] {
        if tests::lab::find(tool).is_none() {
            return Ok(Some(format!("{tool} is missing")));
        }
    }
    if !Path::new("/dev/fuse").exists() {
        return Ok(Some("/dev/fuse is missing".to_owned()));
    }
    let namespaces = scene.cmd("unshare").args(["--user", "--map-root-user", "true"]).run()?;
    if namespaces.code != 0 {
        return Ok(Some(format!("no user namespaces: {}", namespaces.stderr.trim())));
    }
    let text = std::fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let available = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: u64 = available
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .context("/proc/meminfo has no MemAvailable")?;
    let wanted = sizes.memory();
    Ok((kib << 10 < wanted).then(|| {
        format!(
            "everything lies in memory: it takes {} MiB, {} MiB are free",
            wanted >> 20,
            kib >> 10
        )
    }))
}

#[cfg(test)]
mod unit {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_are_distinct_and_say_what_they_are() {
        let mut ids = BTreeSet::new();
        for row in ROWS {
            for &(layers, processes) in row.variants {
                let head = head(row, layers, processes, Sizes::FULL);
                assert!(ids.insert(head.id.clone()), "{} twice", head.id);
                assert_eq!(head.params["layers"], layers.to_string());
                assert!(!head.title.is_empty() && head.params.len() >= 3);
            }
        }
        assert!(ids.contains("fs/find/layers6/procs1") && ids.contains("fs/find/layers100/procs1"));
    }

    #[test]
    fn every_work_has_a_row() {
        let rows: BTreeSet<Work> = ROWS.iter().map(|row| row.work).collect();
        assert_eq!(rows.len(), ROWS.len());
        assert_eq!(rows.len(), 19, "the number of kinds of work");
    }
}
