//! The text of `--publish`, and of the other options with a grammar of their own.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netstack::cli;

fuzz_target!(|text: &str| {
    for option in ["--publish", "--cidr", "--macaddress", "--metrics", "--outbound-addr"] {
        let words = ["netstack".into(), format!("{option}={text}").into(), "-c".into(), "1".into()];
        if let Ok(invocation) = cli::parse(words) {
            for publish in invocation.config.publishes {
                assert!(publish.host.port() > 0 && publish.guest.port() > 0);
            }
        }
    }
});
