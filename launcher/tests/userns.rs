//! Acting as root of a user namespace. A test program of its own: these tests
//! fork, and a fork of the unit tests would hold their locks for a moment.

use launcher::probe;
use launcher::sys::userns::{UsernsError, enter_with_map};

#[test]
fn the_closure_is_root_and_its_result_comes_back() {
    let seen = enter_with_map(&probe::id_map(), || {
        let uid = nix::unistd::getuid().as_raw();
        Ok(format!("{uid} {}", std::process::id()).into_bytes())
    })
    .unwrap();
    let seen = String::from_utf8(seen).unwrap();
    assert!(seen.starts_with("0 "), "{seen}");
    assert_ne!(seen, format!("0 {}", std::process::id()));
}

#[test]
fn the_closures_failure_comes_back_in_its_words() {
    let error = enter_with_map(&probe::id_map(), || Err("no such luck".to_owned()));
    assert!(matches!(error, Err(UsernsError::Work(why)) if why == "no such luck"));
}
