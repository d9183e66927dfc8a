//! Requests on the API socket.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netstack::config::{Config, Publish};
use netstack::control::{self, Answer};
use netstack::forward::{Error, Forwards};

struct Ports(Vec<Publish>);

impl Forwards for Ports {
    fn add(&mut self, publish: Publish) -> Result<u64, Error> {
        assert!(publish.host.port() > 0 && publish.guest.port() > 0);
        assert!(!publish.guest.ip().is_unspecified());
        self.0.push(publish);
        Ok(self.0.len() as u64)
    }
    fn remove(&mut self, id: u64) -> Result<(), Error> {
        Err(Error::NoSuchId(id))
    }
    fn list(&self) -> Vec<(u64, Publish)> {
        self.0.iter().enumerate().map(|(id, publish)| (id as u64, *publish)).collect()
    }
}

fuzz_target!(|data: &[u8]| {
    let config = Config { enable_ipv6: data.len() % 2 == 0, ..Config::default() };
    if let Answer::Reply(reply) = control::answer(data, &config, &mut Ports(Vec::new())) {
        assert!(reply.starts_with(b"{") && reply.ends_with(b"}"));
    }
});
