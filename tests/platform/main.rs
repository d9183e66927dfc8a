//! End-to-end tests of the three programs.
use std::process::ExitCode;

use tests::harness::{self, Test};

const TESTS: &[Test] = &[];

fn main() -> ExitCode {
    harness::main(TESTS)
}
