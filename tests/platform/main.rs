//! One small test per thing the programs take for granted of a kernel, so that a
//! surprise on another one names itself.
//!
//! # Theory of operation
//!
//! Each probe is a function that runs alone, in a process of its own, as an
//! ordinary user who is root of fresh user, mount, network and PID namespaces
//! (`unshare -Urmn`): the powers our programs have, no more. This binary starts
//! itself there with `--probe NAME`.

mod probes;

use std::process::ExitCode;

use anyhow::Result;
use tests::harness::{self, Test, World};

/// Declares a probe as a test of the same name.
macro_rules! probes {
    ($($name:ident),* $(,)?) => {
        const TESTS: &[Test] = &[$(Test::new(
            concat!("platform::", stringify!($name)),
            |world| in_namespaces(world, stringify!($name)),
        )),*];

        fn probe(name: &str) -> Option<fn() -> Result<()>> {
            match name {
                $(stringify!($name) => Some(probes::$name),)*
                _ => None,
            }
        }
    };
}

probes! {
    tap_with_offloads_is_granted,
    whiteouts_can_be_made,
    fuse_mounts_in_a_user_namespace,
    kernel_overlay_mounts_in_a_user_namespace,
    user_xattrs_are_kept_on_tmpfs,
    openat2_stays_below_a_directory,
    openat2_resolves_as_in_a_root,
    mounts_turn_read_only_recursively,
    the_hosts_tree_can_be_bound,
    clone3_makes_every_namespace_at_once,
    clone3_children_can_be_siblings,
    pidfds_carry_signals_and_ends,
    network_settings_are_writable,
    proc_and_sysfs_mount_fresh,
}

/// Runs one probe where our programs would run.
fn in_namespaces(world: &World<'_>, name: &str) -> Result<()> {
    let itself = world.lab.itself()?;
    world
        .cmd("unshare")
        .args(["--user", "--map-root-user", "--mount", "--net", "--pid", "--fork"])
        .arg(itself)
        .args(["--probe", name])
        .run()?
        .ok()?;
    Ok(())
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let [_, flag, name] = args.as_slice()
        && flag == "--probe"
    {
        let Some(probe) = probe(name) else {
            eprintln!("no probe of the name {name}");
            return ExitCode::from(2);
        };
        return match probe() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{name}: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    harness::main(TESTS)
}
