//! One frame with a virtio-net header, as the device gives it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netstack::stack::frame::{Frame, Packet, Payload};

fuzz_target!(|data: &[u8]| {
    for vnet in [false, true] {
        if let Some(Frame { payload: Payload::Ip(packet), udp_segment, .. }) =
            Frame::parse(data, vnet)
        {
            assert_ne!(udp_segment, Some(0), "a segment of nothing");
            assert!(packet.payload.len() <= packet.bytes.len() && packet.bytes.len() <= data.len());
            assert_eq!(Packet::parse(packet.bytes), Some(packet));
        }
    }
});
