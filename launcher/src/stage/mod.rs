//! The processes of a container, one file each.
//!
//! # Theory of operation
//!
//! ```text
//! monitor (M)            host namespaces; the command itself, or its background part
//!   ├ storage            new user and mount namespace; becomes overlayfs-fuse (S)
//!   ├ owners             where only one id exists: keeps the others, see [`owners`]
//!   ├ init (I)           made by storage as its sibling, in all the other namespaces
//!   │   └ workload
//!   └ netstack (N)       host namespaces, holds the TAP device that init made
//! ```
//!
//! Everything is a child of the monitor's, which so learns of every end.
//! Storage executes this program anew with an empty environment, from a
//! read-only copy of the mount that holds it: so neither init nor the workload
//! has ever held the caller's environment in its memory, what the
//! container sees as `/proc/1/exe` cannot be written, and the memory of both
//! belongs to the container's user namespace, not the host's.
//!
//! Order: M forks storage into its namespaces and starts the map helpers. While those
//! write, storage executes itself (its capabilities go along as ambient ones: it may not
//! be root yet), and M makes the container's directory ([`monitor::Cradle`]) → M
//! sends the plan (`Plan`) → storage prepares the layers, makes I (`Init`) and becomes S
//! (`Overlay`) → I makes its namespaces, its network (`Tap`, M starts N) and whatever
//! needs no root while S mounts → S is ready, which lets I
//! go on → I mounts, pivots, moves into the [nested](nest) user namespace (`Ready`)
//! → M has heard from N and I (`Go`) → I starts the workload (`Started`), which puts
//! itself under Landlock and the filter before it is executed.
//!
//! Invariants:
//! * Every process but M asks for SIGKILL at M's death and holds one end of a
//!   channel or pipe whose other end only M holds.
//! * Init is never dumpable, and has given up every capability but CAP_KILL
//!   by the time code of the container's runs.

pub mod confine;
pub mod in_root;
pub mod init;
pub mod join;
pub mod monitor;
pub mod nest;
pub mod owners;
pub mod passwd;
pub mod secrets;
pub mod storage;
pub mod tap;
pub mod workload;

use std::env;

/// First argument (the program's name) of a process that is a stage.
const STAGE: &str = "coracle-stage";

/// When this process was started as one of a container's own stages: runs the
/// stage and returns its exit code. The first thing `main` does, before the
/// command line is looked at.
pub fn dispatch() -> Option<u8> {
    let mut arguments = env::args_os();
    if arguments.next()? != STAGE {
        return None;
    }
    let rest: Vec<String> = arguments.filter_map(|a| a.into_string().ok()).collect();
    let number = |index: usize| rest.get(index).and_then(|text| text.parse::<i32>().ok());
    Some(match (rest.first().map(String::as_str), number(1), number(2), number(3)) {
        (Some("storage"), Some(monitor), Some(own), Some(init)) => {
            storage::main(monitor, own, init)
        }
        (Some("join"), Some(parent), Some(own), _) => join::main(parent, own),
        _ => 125,
    })
}
