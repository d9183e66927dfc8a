//! Names for containers that were given none.

use std::fs::File;
use std::io::{self, Read as _};

const HOW: [&str; 32] = [
    "amber", "bold", "brisk", "calm", "clever", "coral", "deft", "early", "fair", "fleet", "free",
    "gentle", "glad", "golden", "hardy", "keen", "light", "lively", "lucky", "merry", "nimble",
    "noble", "patient", "proud", "quick", "quiet", "silver", "steady", "sturdy", "swift", "trim",
    "wise",
];

const WHAT: [&str; 64] = [
    "anchor", "bay", "beacon", "boat", "bow", "breeze", "brook", "buoy", "canoe", "cape",
    "clipper", "coast", "cove", "creek", "current", "cutter", "delta", "dinghy", "dory", "eddy",
    "ferry", "fjord", "foam", "gale", "galley", "gull", "harbour", "heron", "hull", "inlet",
    "island", "jetty", "kayak", "keel", "ketch", "lagoon", "lake", "mast", "oar", "otter",
    "paddle", "pier", "pilot", "port", "prow", "quay", "raft", "reef", "ripple", "river", "rudder",
    "sail", "sampan", "schooner", "seal", "shore", "skiff", "sloop", "sound", "spray", "tern",
    "tide", "wake", "wave",
];

/// A name such as `quiet_otter_3f`: 19 bits of it are random.
pub(super) fn made_up() -> io::Result<String> {
    let mut random = [0; 3];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let how = HOW[usize::from(random[0]) % HOW.len()];
    let what = WHAT[usize::from(random[1]) % WHAT.len()];
    Ok(format!("{how}_{what}_{:02x}", random[2]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_names_are_names() {
        for how in HOW {
            for what in WHAT {
                let name = format!("{how}_{what}_00");
                assert!(crate::spec::is_name(&name), "{name}");
            }
        }
        assert!(crate::spec::is_name(&made_up().unwrap()));
    }
}
