//! What the stack wants of the host, and what the host tells it.

use std::net::{IpAddr, SocketAddr};

use super::policy::Unreachable;
use super::{ConnectError, FlowId};
#[cfg(doc)]
use super::{Netstack, TOGETHER_BYTES};

/// What the host is to do. `flow` names the socket; one is made at the first
/// command that needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostCommand {
    /// Connect a TCP socket to `to`. Answered by [`HostEvent::TcpConnected`] or
    /// [`HostEvent::TcpFailed`].
    TcpConnect {
        /// Names the socket.
        flow: FlowId,
        /// Where to.
        to: SocketAddr,
    },
    /// Something changed for the connection: send what
    /// [`Netstack::tcp_outgoing`] lends, and receive while
    /// [`Netstack::tcp_room`] allows.
    TcpTransfer {
        /// Names the socket.
        flow: FlowId,
    },
    /// Everything was sent and the guest has finished: shut the socket's sending
    /// side down.
    TcpShutdown {
        /// Names the socket.
        flow: FlowId,
    },
    /// Send a datagram from the flow's own socket. A failure is reported with
    /// [`HostEvent::UdpUnreachable`] or not at all.
    UdpSend {
        /// Names the socket.
        flow: FlowId,
        /// Where to.
        to: SocketAddr,
        /// The payload.
        data: Vec<u8>,
    },
    /// The same for several datagrams of one length, in their order; the last may be
    /// shorter.
    UdpSendMany {
        /// Names the socket.
        flow: FlowId,
        /// Where to.
        to: SocketAddr,
        /// The payloads, one behind the other: at most [`TOGETHER_BYTES`].
        data: Vec<u8>,
        /// Bytes of each but the last.
        segment: usize,
    },
    /// Send a datagram from the socket of a published port.
    UdpReply {
        /// Which published port.
        publish: u64,
        /// Where to.
        to: SocketAddr,
        /// The payload.
        data: Vec<u8>,
    },
    /// What is sent from the flow's own socket has this time to live from now on.
    SetTtl {
        /// Names the socket.
        flow: FlowId,
        /// Where the next datagram goes to, if there is no socket yet.
        to: SocketAddr,
        /// None is the host's default.
        ttl: Option<u8>,
        /// The socket is one for echo requests.
        ping: bool,
    },
    /// Send an echo request from the flow's own ping socket.
    EchoSend {
        /// Names the socket.
        flow: FlowId,
        /// Where to.
        to: IpAddr,
        /// Sequence number.
        seq: u16,
        /// What follows the sequence number.
        data: Vec<u8>,
    },
    /// The flow is gone: close its socket.
    Close {
        /// Names the socket.
        flow: FlowId,
        /// Let the peer see a reset rather than an orderly end.
        reset: bool,
    },
}

/// What happened on the host. Events for flows that are gone are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostEvent<'a> {
    /// The connection is there.
    TcpConnected {
        /// Names the socket.
        flow: FlowId,
    },
    /// There will be no connection.
    TcpFailed {
        /// Names the socket, which the host has closed.
        flow: FlowId,
        /// Why.
        why: ConnectError,
    },
    /// The peer sends no more.
    TcpFinished {
        /// Names the socket.
        flow: FlowId,
    },
    /// The connection is broken.
    TcpReset {
        /// Names the socket.
        flow: FlowId,
    },
    /// A datagram came to the flow's own socket.
    UdpReceived {
        /// Names the socket.
        flow: FlowId,
        /// Who sent it.
        from: SocketAddr,
        /// The payload.
        data: &'a [u8],
    },
    /// A datagram came to a published port.
    UdpInbound {
        /// Which published port.
        publish: u64,
        /// Where it leads.
        guest: SocketAddr,
        /// Who sent it.
        from: SocketAddr,
        /// The payload.
        data: &'a [u8],
    },
    /// A datagram of the flow's own socket did not arrive.
    UdpUnreachable {
        /// Names the socket.
        flow: FlowId,
        /// Where it was sent to.
        to: SocketAddr,
        /// What the host was told.
        why: Unreachable,
    },
    /// An echo reply came.
    EchoReply {
        /// Names the socket.
        flow: FlowId,
        /// Who sent it.
        from: IpAddr,
        /// Sequence number.
        seq: u16,
        /// What follows the sequence number.
        data: &'a [u8],
    },
    /// The host may not send echo requests, or not there.
    EchoUnreachable {
        /// Names the socket.
        flow: FlowId,
        /// Where it was sent to.
        to: IpAddr,
        /// Its sequence number.
        seq: u16,
        /// Why.
        why: Unreachable,
    },
}
