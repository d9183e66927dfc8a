//! Harness of the end-to-end tests.
//!
//! # Theory of operation
//!
//! A test binary of this package starts itself again inside fresh mount, PID,
//! network, IPC, UTS and cgroup namespaces (when it is root; see [`lab`]). That
//! copy of the machine is the *lab*: its network is the "host" the containers
//! run on, joined by a veth pair to a second network namespace, the "outside",
//! where the servers listen. Whatever a test leaves behind is seen by the leak
//! check after it ([`leak`]) and cannot outlive the lab: when the test binary
//! ends, however it ends, the kernel ends its namespaces.
//!
//! As an ordinary user there is no lab: the tests that need one are skipped by
//! name and counted, the others run where they are.
//!
//! Tests are functions in a table ([`harness::Test`]), run one after the other,
//! each with a time limit.

pub mod clock;
pub mod command;
pub mod harness;
pub mod http;
#[cfg(target_arch = "x86_64")]
pub mod inject;
pub mod lab;
pub mod leak;
pub mod pty;
pub mod say;
pub mod servers;
pub mod sys;
pub mod trace;
