//! Reads pcap and pcapng files into IP packets with times.
//!
//! Promises: any byte order and time resolution that the formats know; link headers are stripped; what the capturing
//! machine left to its device (lengths of super-segments, checksums) is completed. Refuses: link types without a plain
//! way to an IP packet, files that are neither format, and captures beyond [`MAX_BYTES`].

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, PcapError};

use super::rewrite::complete;

/// Packet bytes that one capture may hold: it is read into memory, and 1 GiB is more than a replay needs.
pub const MAX_BYTES: u64 = 1 << 30;

/// One captured IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Time since the capture's first packet, nanoseconds.
    pub at: u64,
    /// The packet from its IP header on.
    pub packet: Vec<u8>,
}

/// A capture in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capture {
    /// The packets, in the order of the file.
    pub packets: Vec<Captured>,
    /// Frames that carry no IP (ARP, for example).
    pub not_ip: u64,
    /// Frames that the capture cut short (snap length); they cannot be replayed.
    pub cut: u64,
}

/// Why a capture cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file cannot be opened or read.
    #[error("cannot read the capture: {0}")]
    Io(#[from] std::io::Error),
    /// The file is damaged or no capture.
    #[error("not a pcap or pcapng file, or a damaged one: {0}")]
    Format(PcapError),
    /// Frames of a kind that holds no plain IP packet.
    #[error("link type {0:?} is not supported (raw IP, Ethernet, Linux cooked and loopback are)")]
    LinkType(DataLink),
    /// Too large.
    #[error("the capture holds more than {MAX_BYTES} bytes of packets")]
    TooLarge,
}

impl From<PcapError> for CaptureError {
    fn from(error: PcapError) -> Self {
        match error {
            PcapError::IoError(error) => Self::Io(error),
            other => Self::Format(other),
        }
    }
}

impl Capture {
    /// Reads a file of either format.
    ///
    /// # Errors
    /// See [`CaptureError`].
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        Self::read(BufReader::new(File::open(path)?))
    }

    /// Reads either format from the start of `source`.
    ///
    /// # Errors
    /// See [`CaptureError`].
    pub fn read<R: Read + Seek>(mut source: R) -> Result<Self, CaptureError> {
        let mut magic = [0; 4];
        source.read_exact(&mut magic)?;
        source.rewind()?;
        let mut collector = Collector::default();
        // The section header block of pcapng (its type reads the same in both byte orders).
        if magic == [0x0a, 0x0d, 0x0d, 0x0a] {
            read_pcapng(source, &mut collector)?;
        } else {
            read_pcap(source, &mut collector)?;
        }
        Ok(collector.capture)
    }
}

#[derive(Default)]
struct Collector {
    capture: Capture,
    origin: Option<u64>,
    bytes: u64,
}

impl Collector {
    fn add(&mut self, link: DataLink, nanos: u64, original: u32, frame: &[u8]) -> Result<(), CaptureError> {
        if (frame.len() as u64) < u64::from(original) {
            self.capture.cut += 1;
            return Ok(());
        }
        let Some(packet) = ip_packet(link, frame)? else {
            self.capture.not_ip += 1;
            return Ok(());
        };
        self.bytes += packet.len() as u64;
        if self.bytes > MAX_BYTES {
            return Err(CaptureError::TooLarge);
        }
        let origin = *self.origin.get_or_insert(nanos);
        let mut packet = packet.to_vec();
        complete(&mut packet);
        self.capture.packets.push(Captured { at: nanos.saturating_sub(origin), packet });
        Ok(())
    }
}

fn read_pcap<R: Read>(source: R, collector: &mut Collector) -> Result<(), CaptureError> {
    let mut reader = PcapReader::new(source)?;
    let link = reader.header().datalink;
    while let Some(packet) = reader.next_packet() {
        let packet = packet?;
        collector.add(link, nanos_of(packet.timestamp), packet.orig_len, &packet.data)?;
    }
    Ok(())
}

fn read_pcapng<R: Read>(source: R, collector: &mut Collector) -> Result<(), CaptureError> {
    let mut reader = PcapNgReader::new(source)?;
    let mut links = Vec::new();
    while let Some(block) = reader.next_block() {
        match block? {
            Block::SectionHeader(_) => links.clear(),
            Block::InterfaceDescription(interface) => {
                let resolution = interface.options.iter().find_map(|option| match option {
                    InterfaceDescriptionOption::IfTsResol(value) => Some(*value),
                    _ => None,
                });
                links.push((interface.linktype, ticks_per_second(resolution.unwrap_or(6))));
            }
            Block::EnhancedPacket(packet) => {
                let (link, per_second) = *links
                    .get(packet.interface_id as usize)
                    .ok_or(CaptureError::Format(PcapError::InvalidInterfaceId(packet.interface_id)))?;
                // The reader takes the raw ticks for nanoseconds; the interface says what they are.
                let nanos = packet.timestamp.as_nanos() * 1_000_000_000 / u128::from(per_second);
                let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
                collector.add(link, nanos, packet.original_len, &packet.data)?;
            }
            Block::SimplePacket(packet) => {
                let (link, _) = *links.first().ok_or(CaptureError::Format(PcapError::InvalidInterfaceId(0)))?;
                collector.add(link, 0, packet.original_len, &packet.data)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Ticks of a second by the `if_tsresol` option: a power of 10, or of 2 when the top bit is set.
fn ticks_per_second(resolution: u8) -> u64 {
    let exponent = u32::from(resolution & 0x7f);
    let base: u64 = if resolution & 0x80 == 0 { 10 } else { 2 };
    base.checked_pow(exponent).unwrap_or(u64::MAX)
}

fn nanos_of(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The IP packet in a frame; `None` when it carries something else.
fn ip_packet(link: DataLink, frame: &[u8]) -> Result<Option<&[u8]>, CaptureError> {
    const IPV4: u16 = 0x0800;
    const IPV6: u16 = 0x86dd;
    let by_type = |at: usize, kind: u16| matches!(kind, IPV4 | IPV6).then(|| frame.get(at..)).flatten();
    let be16 = |at: usize| frame.get(at..at + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
    Ok(match link {
        // 12 and 14 are the raw IP of some systems, from before it had a number for files.
        DataLink::RAW | DataLink::IPV4 | DataLink::IPV6 | DataLink::Unknown(12 | 14) => Some(frame),
        DataLink::ETHERNET => {
            let mut at = 12;
            // VLAN tags (IEEE 802.1Q, 802.1ad) stand in front of the type; two are all there are.
            for _ in 0..2 {
                if matches!(be16(at), 0x8100 | 0x88a8) {
                    at += 4;
                }
            }
            by_type(at + 2, be16(at))
        }
        DataLink::LINUX_SLL => by_type(16, be16(14)),
        DataLink::LINUX_SLL2 => by_type(20, be16(0)),
        // Four bytes of address family, whose numbers differ between systems: the IP version decides.
        DataLink::NULL | DataLink::LOOP => frame.get(4..).filter(|p| matches!(p.first().map(|b| b >> 4), Some(4 | 6))),
        other => return Err(CaptureError::LinkType(other)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_headers_are_stripped() {
        let ip = [0x45, 1, 2, 3];
        let mut ethernet = vec![0; 12];
        ethernet.extend([0x81, 0, 0, 5, 8, 0]);
        ethernet.extend(ip);
        assert_eq!(ip_packet(DataLink::ETHERNET, &ethernet).unwrap(), Some(&ip[..]));
        ethernet[17] = 6; // ARP
        assert_eq!(ip_packet(DataLink::ETHERNET, &ethernet).unwrap(), None);
        let mut cooked = vec![0; 14];
        cooked.extend([0x86, 0xdd]);
        cooked.extend(ip);
        assert_eq!(ip_packet(DataLink::LINUX_SLL, &cooked).unwrap(), Some(&ip[..]));
        assert_eq!(ip_packet(DataLink::NULL, &[2, 0, 0, 0, 0x45, 1, 2, 3]).unwrap(), Some(&ip[..]));
        assert_eq!(ip_packet(DataLink::ETHERNET, &[0; 3]).unwrap(), None);
        assert!(matches!(ip_packet(DataLink::IEEE802_11, &ip), Err(CaptureError::LinkType(_))));
    }

    #[test]
    fn garbage_is_an_error() {
        for bytes in [&b""[..], b"abc", b"this is no capture at all, is it", &[0x0a, 0x0d, 0x0d, 0x0a, 0, 0, 0, 0]] {
            assert!(Capture::read(std::io::Cursor::new(bytes.to_vec())).is_err());
        }
    }
}
