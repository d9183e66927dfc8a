//! Bytes of a tar: members come out within the bounds, and what they say can be written
//! and read again.
#![no_main]

use launcher::image::tar::header::BLOCK;
use launcher::image::tar::write::Writer;
use launcher::image::tar::{Kind, MOST_PARTS, MOST_XATTRS, Member, Reader};
use libfuzzer_sys::fuzz_target;

/// Has each block that is not empty be a header as far as its checksum goes, which
/// nobody guesses: the sum of its bytes, its own eight counted as spaces.
fn summed(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    for block in bytes.chunks_exact_mut(BLOCK) {
        if block.iter().any(|byte| *byte != 0) {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    bytes
}

fn read(bytes: &[u8]) -> Vec<Member> {
    let mut reader = Reader::new(bytes);
    let mut members = Vec::new();
    let mut buffer = [0; 700];
    while let Ok(Some(member)) = reader.next_member() {
        assert!(member.xattrs.len() <= MOST_XATTRS && member.parts.len() <= MOST_PARTS);
        let mut end = 0;
        for part in &member.parts {
            assert!(part.offset >= end, "parts overlap");
            end = part.offset.checked_add(part.length).expect("parts are within numbers");
        }
        assert!(end <= member.size, "a part lies behind the end");
        let mut stored = 0_u64;
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => stored += count as u64,
                Err(_) => return members,
            }
        }
        assert!(stored <= bytes.len() as u64);
        assert!(member.parts.iter().map(|part| part.length).sum::<u64>() <= stored);
        members.push(member);
    }
    members
}

fuzz_target!(|data: &[u8]| {
    let Some((how, data)) = data.split_first() else { return };
    let members = if how & 1 == 0 { read(data) } else { read(&summed(data)) };
    for member in members {
        // Holes are for whoever unpacks; written are whole files, here without their data.
        let member = Member {
            parts: Vec::new(),
            size: 0,
            mode: member.mode & 0o7777,
            kind: if member.kind == Kind::HardLink { Kind::Symlink } else { member.kind },
            ..member
        };
        let mut writer = Writer::new(Vec::new());
        if writer.header(&member).is_err() {
            continue;
        }
        let bytes = writer.finish().expect("memory takes all");
        let again = Reader::new(&bytes[..]).next_member();
        let again = again.expect("what is written is read").expect("and is there");
        assert_eq!((&again.name, again.kind), (&member.name, member.kind));
    }
});
