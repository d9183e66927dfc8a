//! DNS messages (RFC 1035 section 4), as much of them as a forwarder looks at.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of a message's header.
pub(super) const HEADER: usize = 12;
/// Bytes of an answer over UDP for who does not say otherwise.
pub(super) const UDP_SIZE: usize = 512;

const TYPE_A: u16 = 1;
const TYPE_CNAME: u16 = 5;
const TYPE_SOA: u16 = 6;
const TYPE_AAAA: u16 = 28;
const TYPE_OPT: u16 = 41;
/// Names of a chain that is followed at most.
const CHAIN_MAX: usize = 16;
/// Records looked at in one message at most.
const RECORDS_MAX: usize = 1024;

/// Where a record stands in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    Answer,
    Authority,
    Additional,
}

/// A resource record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record<'a> {
    pub(super) section: Section,
    /// Where the owner's name begins.
    pub(super) name_at: usize,
    pub(super) kind: u16,
    pub(super) class: u16,
    /// Where the time to live stands: four bytes, big-endian, seconds.
    pub(super) ttl_at: usize,
    pub(super) ttl: u32,
    pub(super) data_at: usize,
    pub(super) data: &'a [u8],
}

/// The question section of a message with exactly one question, names uncompressed as
/// they are in the first name of a message.
pub(super) fn question(message: &[u8]) -> Option<&[u8]> {
    if message.get(4..6)? != [0, 1] {
        return None;
    }
    let section = &message[HEADER.min(message.len())..];
    let mut at = 0;
    loop {
        match *section.get(at)? {
            0 => break,
            len @ 1..=63 => at += 1 + usize::from(len),
            _ => return None,
        }
        if at > 255 {
            return None;
        }
    }
    section.get(..at + 5)
}

/// Names compare without case (RFC 4343); types and classes are below the letters
/// or equal anyway.
pub(super) fn same_question(query: &[u8], answer: &[u8]) -> bool {
    match (question(query), question(answer)) {
        (Some(q), Some(a)) => q.eq_ignore_ascii_case(a),
        _ => false,
    }
}

/// The name that is asked for, in small letters with dots between its labels; the
/// root is empty. None without exactly one question.
pub fn asked(message: &[u8]) -> Option<String> {
    question(message)?;
    name(message, HEADER).map(|name| text(&name))
}

/// The records of a message with one question. None when it is malformed.
pub(super) fn records(message: &[u8]) -> Option<Vec<Record<'_>>> {
    let mut at = HEADER + question(message)?.len();
    let mut records = Vec::new();
    for (section, count_at) in
        [(Section::Answer, 6), (Section::Authority, 8), (Section::Additional, 10)]
    {
        for _ in 0..word(message, count_at)? {
            if records.len() >= RECORDS_MAX {
                return None;
            }
            let name_at = at;
            at = skip_name(message, at)?;
            let ttl_at = at + 4;
            let ttl = message.get(ttl_at..ttl_at + 4)?;
            let ttl = u32::from_be_bytes([ttl[0], ttl[1], ttl[2], ttl[3]]);
            let len = usize::from(word(message, at + 8)?);
            let data_at = at + 10;
            records.push(Record {
                section,
                name_at,
                kind: word(message, at)?,
                class: word(message, at + 2)?,
                ttl_at,
                // Values with the highest bit set are 0 (RFC 2181 section 8).
                ttl: if ttl >> 31 == 0 { ttl } else { 0 },
                data_at,
                data: message.get(data_at..data_at + len)?,
            });
            at = data_at + len;
        }
    }
    Some(records)
}

impl Record<'_> {
    /// The pseudo-record of EDNS (RFC 6891), whose time to live is none.
    pub(super) fn is_opt(&self) -> bool {
        self.kind == TYPE_OPT
    }

    /// A start of authority's time for which there is no such name (RFC 2308 section
    /// 5): the lesser of its own and its last field.
    pub(super) fn negative_ttl(&self) -> Option<u32> {
        if self.kind != TYPE_SOA {
            return None;
        }
        let minimum = self.data.last_chunk::<4>()?;
        Some(self.ttl.min(u32::from_be_bytes(*minimum)))
    }
}

/// How many bytes an answer over UDP may have, as the query says (RFC 6891 section
/// 6.2.3).
pub(super) fn udp_size(query: &[u8]) -> usize {
    let opt = records(query).and_then(|all| all.into_iter().find(Record::is_opt));
    opt.map_or(UDP_SIZE, |opt| usize::from(opt.class).max(UDP_SIZE))
}

/// The addresses that an answer gives for the name that was asked for, through
/// aliases, each with the shortest time to live on the way to it, in seconds.
pub fn addresses(answer: &[u8]) -> Vec<(IpAddr, u32)> {
    let mut found = Vec::new();
    let (Some(records), Some(mut wanted)) = (records(answer), name(answer, HEADER)) else {
        return found;
    };
    let answers = || records.iter().filter(|r| r.section == Section::Answer && r.class == 1);
    let mut seen = BTreeSet::new();
    let mut shortest = u32::MAX;
    for _ in 0..CHAIN_MAX {
        if !seen.insert(wanted.clone()) {
            break;
        }
        let mut alias = None;
        for record in answers() {
            if name(answer, record.name_at).as_ref() != Some(&wanted) {
                continue;
            }
            let ttl = shortest.min(record.ttl);
            match (record.kind, record.data) {
                (TYPE_A, &[a, b, c, d]) => found.push((Ipv4Addr::new(a, b, c, d).into(), ttl)),
                (TYPE_AAAA, data) => {
                    if let Ok(octets) = <[u8; 16]>::try_from(data) {
                        found.push((Ipv6Addr::from(octets).into(), ttl));
                    }
                }
                (TYPE_CNAME, _) => alias = name(answer, record.data_at).map(|n| (n, ttl)),
                _ => {}
            }
        }
        match alias {
            Some((next, ttl)) => (wanted, shortest) = (next, ttl),
            None => break,
        }
    }
    found
}

/// A name in small letters, as labels with their lengths, without compression.
fn name(message: &[u8], mut at: usize) -> Option<Vec<u8>> {
    let mut name = Vec::new();
    let mut jumps = 0;
    loop {
        match *message.get(at)? {
            0 => return Some(name),
            len @ 1..=63 => {
                let end = at + 1 + usize::from(len);
                name.extend(message.get(at..end)?.iter().map(u8::to_ascii_lowercase));
                at = end;
            }
            high @ 0xc0.. => {
                at = usize::from(high & 0x3f) << 8 | usize::from(*message.get(at + 1)?);
                jumps += 1;
            }
            _ => return None,
        }
        if name.len() > 254 || jumps > CHAIN_MAX {
            return None;
        }
    }
}

/// Labels as text. A dot inside a label, which no host's name has, is not told from
/// one between two: it is written as another character.
fn text(name: &[u8]) -> String {
    let mut text = String::new();
    let mut rest = name;
    while let Some((&len, labels)) = rest.split_first() {
        let (label, after) = labels.split_at(usize::from(len).min(labels.len()));
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|&b| match b {
            b'.' => '\u{fffd}',
            b'!'..=b'~' => char::from(b),
            _ => '\u{fffd}',
        }));
        rest = after;
    }
    text
}

/// Where the name at `at` ends.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            len @ 1..=63 => at += 1 + usize::from(len),
            0xc0.. => return Some(at + 2),
            _ => return None,
        }
    }
}

fn word(message: &[u8], at: usize) -> Option<u16> {
    let bytes = message.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// A domain as it stands in a message, without compression. `domain` has labels of 1
/// to 63 bytes.
pub(in crate::stack) fn encode(domain: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(domain.len() + 2);
    for label in domain.split('.') {
        let label = &label.as_bytes()[..label.len().min(63)];
        out.push(label.len() as u8);
        out.extend_from_slice(label);
    }
    out.push(0);
    out
}

#[cfg(test)]
pub(in crate::stack) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A query for addresses.
    pub(in crate::stack) fn query(id: u16, name: &str) -> Vec<u8> {
        let mut m = id.to_be_bytes().to_vec();
        m.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        m.extend(encode(name));
        m.extend_from_slice(&[0, 1, 0, 1]);
        m
    }

    /// The answer to it with records of a section (6 answer, 8 authority, 10
    /// additional): owner, type, time to live, data.
    pub(in crate::stack) fn answer(
        to: &[u8],
        rcode: u8,
        records: &[(usize, &str, u16, u32, &[u8])],
    ) -> Vec<u8> {
        let mut m = to[..HEADER + question(to).unwrap().len()].to_vec();
        m[2] |= 0x80;
        m[3] = 0x80 | rcode;
        m[10..12].fill(0);
        for (count_at, owner, kind, ttl, data) in records {
            m[count_at + 1] += 1;
            if *owner == "@" {
                m.extend([0xc0, 12])
            } else {
                m.extend(encode(owner))
            }
            m.extend(kind.to_be_bytes());
            m.extend([0, 1]);
            m.extend(ttl.to_be_bytes());
            m.extend((data.len() as u16).to_be_bytes());
            m.extend_from_slice(data);
        }
        m
    }

    #[test]
    fn addresses_are_found_behind_aliases_with_the_shortest_time() {
        let query = query(1, "WWW.Example.org");
        assert_eq!(asked(&query).unwrap(), "www.example.org");
        let reply = answer(
            &query,
            0,
            &[
                (6, "b.example.net", 1, 500, &[192, 0, 2, 2]),
                (6, "@", 5, 300, &encode("A.example.net")),
                (6, "a.example.NET", 5, 60, &encode("b.example.net")),
                (6, "evil.example", 1, 900, &[192, 0, 2, 66]),
                (10, "b.example.net", 1, 900, &[192, 0, 2, 67]),
            ],
        );
        assert_eq!(addresses(&reply), [("192.0.2.2".parse().unwrap(), 60)]);
        let around = answer(&query, 0, &[(6, "@", 5, 1, &[0xc0, 12])]);
        assert_eq!(addresses(&around), [], "an alias of itself ends");
    }

    #[test]
    fn sizes_and_names_are_read() {
        let mut q = query(1, "a");
        assert_eq!(udp_size(&q), 512);
        q[11] = 1;
        q.extend([0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(udp_size(&q), 4096);
        assert_eq!(asked(&query(1, "a b.c")).unwrap(), "a\u{fffd}b.c");
    }

    proptest! {
        #[test]
        fn arbitrary_messages_are_read_or_refused(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200), whole in any::<bool>(),
        ) {
            if whole {
                let mut message = answer(&query(1, "a.b"), 0, &[]);
                message[7] = 9;
                message.append(&mut bytes);
                bytes = message;
            }
            records(&bytes);
            addresses(&bytes);
            asked(&bytes);
            udp_size(&bytes);
        }
    }
}
