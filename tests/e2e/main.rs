//! End-to-end tests of the three programs.

mod attacks;
mod bad_input;
mod confine;
mod debian;
mod doctor;
mod faults;
mod fixtures;
mod handshake;
mod harness;
mod images;
mod lifecycle;
mod names;
mod net;
mod observe;
mod options;
mod overlay;
mod owners;
mod path;
mod podman;
mod policy;
mod printing;
mod profile;
mod queues;
mod root;
mod run;
mod secrets;
mod security;
mod setup;
mod slirp;
mod soak;
mod subcommands;
mod targets;
mod users;

use std::process::ExitCode;

use tests::harness::Test;

fn main() -> ExitCode {
    let tables: &[&[Test]] = &[
        harness::TESTS,
        run::TESTS,
        root::TESTS,
        owners::TESTS,
        lifecycle::TESTS,
        lifecycle::states::TESTS,
        lifecycle::terminal::TESTS,
        lifecycle::limits::TESTS,
        lifecycle::many::TESTS,
        net::TESTS,
        secrets::TESTS,
        faults::TESTS,
        handshake::TESTS,
        attacks::TESTS,
        security::TESTS,
        printing::TESTS,
        profile::TESTS,
        bad_input::TESTS,
        subcommands::TESTS,
        users::TESTS,
        options::TESTS,
        overlay::TESTS,
        debian::TESTS,
        slirp::TESTS,
        targets::TESTS,
        queues::TESTS,
        confine::TESTS,
        names::TESTS,
        policy::TESTS,
        observe::TESTS,
        podman::TESTS,
        setup::TESTS,
        soak::TESTS,
        path::TESTS,
        images::TESTS,
        doctor::TESTS,
    ];
    tests::harness::main(&tables.concat())
}
