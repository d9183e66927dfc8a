//! Ethernet and virtio-net headers.

/// Bytes of the virtio-net header in front of every frame (`struct
/// virtio_net_hdr_mrg_rxbuf`, virtio 1.2 section 5.1.6).
pub const VNET_LEN: usize = 12;
/// Bytes of an Ethernet header.
pub const ETH_LEN: usize = 14;
