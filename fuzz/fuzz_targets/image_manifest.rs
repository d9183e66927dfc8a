//! Manifests, indexes and configurations, and the names of images.
#![no_main]

use launcher::image::change::Change;
use launcher::image::digest::Digest;
use launcher::image::manifest::{self, Document, Platform, Running};
use launcher::image::reference::Reference;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match manifest::document(data) {
        Ok(Document::Image(image)) => {
            let again = serde_json::to_vec(&image).expect("what was read can be written");
            assert!(
                matches!(manifest::document(&again), Ok(Document::Image(same)) if same == image)
            );
        }
        Ok(Document::Index(index)) => {
            let chosen = manifest::choose(&index, &Platform::host());
            assert!(chosen.is_ok() || chosen.is_err_and(|why| !why.is_empty()));
        }
        Err(why) => assert!(!why.is_empty()),
    }
    if let Ok(config) = manifest::config(data, 0) {
        assert!(config.rootfs.diff_ids.is_empty());
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(digest) = Digest::parse(text) {
        assert_eq!(digest.to_string(), text);
    }
    if let Ok(reference) = Reference::parse(text) {
        // Complete, it means itself.
        let complete = Reference::parse(&reference.local());
        let complete = complete.expect("a complete name is a name");
        assert_eq!(complete.local(), reference.local());
        assert!(!reference.remote().1.is_empty() && !reference.pulled().is_empty());
        assert!(!reference.remote().1.contains(".."), "a path that leads elsewhere");
    }
    if let Ok(change) = Change::parse(text) {
        let mut running = Running::default();
        drop(change.apply(&mut running));
        serde_json::to_vec(&running).expect("a configuration can be written");
    }
});
