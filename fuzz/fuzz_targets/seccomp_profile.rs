//! `--security-opt seccomp=FILE`: the JSON of a profile, and the filter made of it.
#![no_main]

use launcher::policy;
use launcher::policy::seccomp::profile::{self, Kernel};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let profile = match profile::parse(text) {
        Ok(profile) => profile,
        Err(why) => {
            assert!(!why.is_empty());
            return;
        }
    };
    for capabilities in [0, policy::all_capabilities()] {
        if let Err(why) = profile.filter(capabilities, Kernel(6, 1)) {
            assert!(!why.is_empty());
        }
    }
    drop(Kernel::parse(text));
});
