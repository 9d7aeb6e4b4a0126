//! Packets of clients to one server, for the benches that drive a whole stack.

use std::net::SocketAddr;

use t2s_core::config::Config;
use t2s_core::wire::ip::IpRepr;
use t2s_core::wire::tcp::{Flags, Options, SeqNumber, TcpRepr};
use t2s_core::wire::{fill_transport_checksum, protocol};

pub(crate) fn client(index: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, (index >> 14) as u8, 1], 1_024 + (index & 0x3fff) as u16))
}

/// The inverse of [`client`]: of the third byte of its address, and its port.
pub(crate) fn index_of(address: u8, port: u16) -> usize {
    (usize::from(address) << 14) | usize::from(port - 1_024)
}

pub(crate) fn server() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 443))
}

/// The packet around a transport segment, whose checksum is filled in.
pub(crate) fn packet(client: SocketAddr, upper: u8, mut segment: Vec<u8>) -> Vec<u8> {
    let (src, dst) = (client.ip(), server().ip());
    fill_transport_checksum(Config::default().checksum, src, dst, upper, &mut segment);
    let repr = IpRepr {
        src,
        dst,
        protocol: upper,
        ttl: 64,
        ecn: 0,
        payload_len: segment.len() as u32,
        id: 0,
        dont_fragment: true,
    };
    let mut out = vec![0; repr.header_len()];
    repr.emit(&mut out);
    out.extend(segment);
    out
}

/// A TCP packet; `offer` are the options of a SYN.
pub(crate) fn tcp(
    client: SocketAddr,
    flags: Flags,
    seq: u32,
    ack: SeqNumber,
    offer: Options,
    payload: &[u8],
) -> Vec<u8> {
    let repr = TcpRepr {
        src_port: client.port(),
        dst_port: server().port(),
        seq: SeqNumber(seq),
        ack,
        flags,
        window: 65_535,
        options: if flags.syn() { offer } else { Options::NONE },
    };
    let mut out = vec![0; repr.header_len()];
    repr.emit(&mut out);
    out.extend_from_slice(payload);
    packet(client, protocol::TCP, out)
}
