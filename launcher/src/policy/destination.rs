//! What netstack takes as a destination in its policy. Checked here as well, so that a
//! mistake is told when a policy is looked at and not when a container starts; a fuzz
//! target holds the two to the same. Pure.

use std::net::IpAddr;

/// Checks a network, or a name, `*.` in front for all below it.
///
/// # Errors
/// What is wrong, as the end of a sentence.
pub(super) fn network_or_name(text: &str) -> Result<(), String> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    match address.parse::<IpAddr>() {
        Ok(address) => network(text, address, prefix),
        Err(_) => name(text),
    }
}

fn network(text: &str, address: IpAddr, prefix: Option<&str>) -> Result<(), String> {
    let (bits, number) = match address {
        IpAddr::V4(address) => (32, u128::from(address.to_bits())),
        IpAddr::V6(address) => (128, address.to_bits()),
    };
    let Some(prefix) = prefix else { return Ok(()) };
    let length: u32 = prefix
        .parse::<u8>()
        .map(u32::from)
        .ok()
        .filter(|length| *length <= bits)
        .ok_or_else(|| format!("{text:?} has a prefix that is not from 0 to {bits}"))?;
    // Bits that say nothing are a mistake somewhere.
    let free = bits - length;
    let rest = if free == 0 { 0 } else { number << (128 - free) };
    if rest != 0 {
        return Err(format!("{text:?} has bits set beyond the prefix"));
    }
    Ok(())
}

fn name(text: &str) -> Result<(), String> {
    let bare = text.strip_suffix('.').unwrap_or(text);
    let bare = bare.strip_prefix("*.").unwrap_or(bare);
    let label = |label: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        !label.is_empty() && label.len() <= 63 && label.bytes().all(plain)
    };
    // Numbers alone were meant to be an address.
    let numbers = bare.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if numbers || bare.len() > 253 || !bare.split('.').all(label) {
        return Err(format!("{text:?} is neither a network nor a name"));
    }
    Ok(())
}

/// Checks a port, or a range of them.
///
/// # Errors
/// What is wrong, as the end of a sentence.
pub(super) fn ports(text: &str) -> Result<(), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) if first <= last => Ok(()),
        (Ok(_), Ok(_)) => Err(format!("{text:?} ends before it begins")),
        _ => Err(format!("{text:?} is neither a port nor a range such as 8000-8100")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_netstack_takes() {
        let long = "a".repeat(63);
        let most = [long.as_str(); 4].join(".");
        let most = &most[..253];
        for text in [
            "192.0.2.1",
            "192.0.2.0/24",
            "0.0.0.0/0",
            "192.0.2.1/32",
            "::/0",
            "2001:db8::/32",
            "2001:db8::1/128",
            "example.org",
            "Example.ORG.",
            "*.example.org",
            "a_b-c",
            "1.a",
            most,
        ] {
            assert_eq!(network_or_name(text), Ok(()), "{text}");
        }
        for text in ["80", "1-2", "0-65535", "7-7"] {
            assert_eq!(ports(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn and_what_it_does_not() {
        let long = format!("{}.org", "a".repeat(64));
        let longest = "a.".repeat(128);
        for (text, word) in [
            ("", "neither"),
            (".", "neither"),
            ("*.", "neither"),
            ("*", "neither"),
            ("a.*", "neither"),
            ("a..b", "neither"),
            ("1.2.3", "neither"),
            ("1.2.3.4.5", "neither"),
            ("a/8", "neither"),
            ("ä.org", "neither"),
            (&long, "neither"),
            (&longest, "neither"),
            ("192.0.2.0/33", "0 to 32"),
            ("192.0.2.0/", "0 to 32"),
            ("::/129", "0 to 128"),
            ("192.0.2.1/24", "beyond"),
            ("::1/127", "beyond"),
            ("128.0.0.0/0", "beyond"),
        ] {
            let why = network_or_name(text).unwrap_err();
            assert!(why.contains(word), "{text}: {why}");
        }
        for text in ["", "-", "x", "1-", "65536", "2-1", "1-2-3"] {
            assert!(ports(text).is_err(), "{text}");
        }
    }
}
