//! What is said on standard error: one line each, whatever the texts it repeats hold.

use std::io::{self, Write};

/// Says it. That nobody hears it must not end the network: a guest can have it said.
pub fn say(text: &str) {
    writeln!(io::stderr().lock(), "{}", line(text)).ok();
}

/// Says that something is not as it should be, while the network goes on.
pub fn warn(text: &str) {
    say(&format!("warning: {text}"));
}

fn line(text: &str) -> String {
    let mut line = String::from("netstack: ");
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_stays_one_line() {
        assert_eq!(super::line("a\nb\u{1b}[31m"), "netstack: a\\nb\\u{1b}[31m");
    }
}
