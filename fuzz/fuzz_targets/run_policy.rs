//! `coracle run --policy`: the text of a profile, and what of it goes to netstack.
#![no_main]

use launcher::policy::{self, profile};
use launcher::spec::Security;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let profile = match profile::parse(text) {
        Ok(profile) => profile,
        Err(why) => {
            assert!(!why.is_empty() && !why.contains('\n'), "{why:?}");
            return;
        }
    };
    // What it says of capabilities was looked at.
    let capabilities = policy::merge_capabilities(&profile.add, &profile.drop);
    let capabilities = capabilities.expect("they were merged before");
    assert_eq!(capabilities & !policy::all_capabilities(), 0);
    let mut security = Security { capabilities, ..Security::default() };
    profile.apply(&mut security);
    for rule in security.files.iter().flat_map(|files| &files.beneath) {
        let path = rule.path.to_string_lossy();
        assert!(rule.path.is_absolute() && !path.split('/').any(|part| part == ".."));
    }
    if let Some(egress) = &security.egress {
        let rules = netstack::egress::parse(egress);
        rules.unwrap_or_else(|why| panic!("netstack refuses what was taken: {why}\n{egress}"));
    }
});
