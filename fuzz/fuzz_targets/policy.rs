//! The text of a policy, and what it decides.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use netstack::egress;
use netstack::stack::egress::{Egress, Protocol};

fuzz_target!(|text: &str| {
    let Ok(policy) = egress::parse(text) else { return };
    let count = policy.rules.len();
    let egress = Egress::new(policy);
    let now = Duration::from_secs(1);
    egress.pin(now, "a.example.org", [192, 0, 2, 1].into(), 60);
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
        egress.allows(now, protocol, ([192, 0, 2, 1], 443).into());
        egress.allows(now, protocol, ([0xffff, 0, 0, 0, 0, 0, 0, 1], 0).into());
    }
    egress.allows_name(now, "a.example.org");
    let hits = egress.hits();
    assert_eq!((hits.len(), hits.iter().sum::<u64>()), (count + 1, 7));
});
