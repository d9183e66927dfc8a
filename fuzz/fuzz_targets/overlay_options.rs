//! Mount options and whole command lines: any bytes are accepted or refused by name.
#![no_main]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use libfuzzer_sys::fuzz_target;
use overlayfs_fuse::cli;
use overlayfs_fuse::config::{Config, ConfigError, MAX_LOWERS};

fuzz_target!(|data: &[u8]| {
    let mut config = Config::default();
    match config.apply(data) {
        Ok(()) => {
            if let Ok(config) = config.check() {
                assert!((1..=MAX_LOWERS).contains(&config.lowers.len()));
                assert!(config.lowers.iter().all(|path| !path.as_os_str().is_empty()));
                if let Some(dirs) = &config.upper {
                    assert!(!dirs.upper.as_os_str().is_empty());
                    assert!(!dirs.work.as_os_str().is_empty());
                }
                assert!(config.options.upper_quota.is_none_or(|bytes| bytes > 0));
            }
        }
        Err(ConfigError::Value { option, reason }) => {
            assert!(!reason.is_empty(), "{option}");
        }
        Err(_) => {}
    }
    // As a command line, an argument a line.
    let args = data.split(|byte| *byte == b'\n').map(|arg| OsString::from_vec(arg.to_vec()));
    if let Err(error) = cli::parse(args) {
        assert!(!error.to_string().is_empty());
    }
});
