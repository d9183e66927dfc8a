//! Addresses of the host's interfaces, for connections that shall leave from one.

use std::net::{Ipv4Addr, Ipv6Addr};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

/// Why an interface's address is not known.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The list of addresses could not be read.
    #[error("cannot read the host's addresses: {0}")]
    List(nix::errno::Errno),
    /// The interface is not there, or has no such address.
    #[error("{name:?} is neither an {family} address nor an interface that has one")]
    None {
        /// As it was given.
        name: String,
        /// "IPv4" or "IPv6".
        family: &'static str,
    },
}

/// The first IPv4 address of the interface `name`.
///
/// # Errors
/// No such interface, or it has none.
pub fn ipv4_of(name: &str) -> Result<Ipv4Addr, Error> {
    first(name, "IPv4", |addr| addr.as_sockaddr_in().map(|v4| v4.ip()))
}

/// The first IPv6 address of the interface `name` that is valid beyond its link.
///
/// # Errors
/// No such interface, or it has none.
pub fn ipv6_of(name: &str) -> Result<Ipv6Addr, Error> {
    first(name, "IPv6", |addr| {
        addr.as_sockaddr_in6().map(|v6| v6.ip()).filter(|ip| !ip.is_unicast_link_local())
    })
}

fn first<A>(
    name: &str,
    family: &'static str,
    take: impl Fn(&SockaddrStorage) -> Option<A>,
) -> Result<A, Error> {
    getifaddrs()
        .map_err(Error::List)?
        .filter(|entry| entry.interface_name == name)
        .find_map(|entry| entry.address.as_ref().and_then(&take))
        .ok_or_else(|| Error::None { name: name.into(), family })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_has_its_address_and_others_are_refused() {
        assert_eq!(ipv4_of("lo").unwrap(), Ipv4Addr::LOCALHOST);
        let message = ipv4_of("nonesuch0").unwrap_err().to_string();
        assert!(message.contains("nonesuch0"), "{message}");
    }
}
