//! Entering a namespace, making and configuring a TAP device, and what the
//! kernel granted on it.

/// What TUNSETVNETHDRSZ and TUNSETOFFLOAD granted on a TAP device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// Every frame is preceded by a virtio-net header of
    /// [`crate::stack::frame::VNET_LEN`] bytes (IFF_VNET_HDR).
    pub vnet: bool,
    /// Checksums need not be filled in (TUN_F_CSUM).
    pub csum: bool,
    /// The guest may send TCP/IPv4 segments up to 64 KiB (TUN_F_TSO4).
    pub tso4: bool,
    /// The guest may send TCP/IPv6 segments up to 64 KiB (TUN_F_TSO6).
    pub tso6: bool,
    /// The guest may send UDP segments up to 64 KiB (TUN_F_USO4 and 6).
    pub uso: bool,
}
