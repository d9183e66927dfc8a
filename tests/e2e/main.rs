//! End-to-end tests of the three programs.

mod bad_input;
mod faults;
mod fixtures;
mod lifecycle;
mod net;
mod overlay;
mod root;
mod run;
mod secrets;
mod slirp;

use std::process::ExitCode;

use tests::harness::{self, Test};

fn main() -> ExitCode {
    let tables: [&[Test]; 9] = [
        run::TESTS,
        root::TESTS,
        lifecycle::TESTS,
        net::TESTS,
        secrets::TESTS,
        faults::TESTS,
        bad_input::TESTS,
        overlay::TESTS,
        slirp::TESTS,
    ];
    harness::main(&tables.concat())
}
