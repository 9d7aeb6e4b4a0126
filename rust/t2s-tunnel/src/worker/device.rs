//! A worker's device: packets read into the stack, and written from it.

use std::io;
use std::io::IoSlice;

use t2s_core::buf::Buf;
use t2s_core::stack::{MAX_SLICES, Packet};
use t2s_core::wire::virtio::{self, VirtioNetHdr};

use super::{HEADROOM, Worker};
use crate::log::Level;
use crate::tun::VNET_HEADER;

/// Packets of one iteration: with small packets some 50 µs of work.
pub(super) const PACKETS: usize = 128;
/// Bytes of packets that are read before the upstreams get their share: what stays in a second-level cache between the
/// kernel's copy into the buffer and its copy out of it.
const BATCH_BYTES: usize = 176 * 1024;
/// Packets written in one iteration before acknowledgements are read again.
const TRANSMITS: usize = 256;
/// Reads up to this long are copied into a buffer of their size, so that the large one is used again at once, hot.
const COPY_MAX: usize = 2_048 - HEADROOM;

impl Worker {
    /// Reads packets into the stack until the device has no more, or the budget is spent.
    pub(super) fn read_device(&mut self) -> io::Result<()> {
        let mut bytes = 0;
        for _ in 0..PACKETS {
            let Some(mut buf) = self.scratch() else { break };
            buf.reset(HEADROOM);
            match self.queue.read(buf.spare_mut()) {
                // No packet is empty: whatever an inherited descriptor leads to, its other end is gone.
                Ok(0) => {
                    self.keep(buf);
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(len) => {
                    bytes += len;
                    self.stats.device_reads += 1;
                    buf.grow(len);
                    self.take_frame(buf);
                    if bytes >= BATCH_BYTES {
                        break;
                    }
                }
                Err(error) => {
                    self.keep(buf);
                    match error.kind() {
                        io::ErrorKind::WouldBlock => self.device_ready = false,
                        io::ErrorKind::Interrupted => {}
                        // The interface is down: nothing comes until it is up again, which is an edge.
                        _ if error.raw_os_error() == Some(libc::EIO) => self.device_ready = false,
                        _ => return Err(error),
                    }
                    break;
                }
            }
        }
        let mut batch = std::mem::take(&mut self.batch);
        self.stack.handle_batch(self.now, &mut batch);
        self.batch = batch;
        self.forward();
        Ok(())
    }

    /// Turns what the device gave into a packet of the batch.
    fn take_frame(&mut self, mut frame: Buf) {
        let mut packet = Packet::plain(frame);
        if self.queue.header_len() != 0 {
            frame = packet.buf;
            let header = match VirtioNetHdr::decode(frame.as_slice()) {
                Ok((header, _)) => header,
                Err(reason) => {
                    self.stats.drops.add(reason);
                    return self.keep(frame);
                }
            };
            frame.advance(VNET_HEADER);
            let trusted = header.flags & (virtio::F_NEEDS_CSUM | virtio::F_DATA_VALID) != 0;
            let gso_size = if header.gso_type == virtio::GSO_NONE { 0 } else { header.gso_size };
            packet = Packet { buf: frame, checksum_trusted: trusted, gso_size };
        }
        if packet.buf.len() <= COPY_MAX {
            match self.stack.alloc(packet.buf.len(), HEADROOM) {
                Some(mut small) => {
                    small.append(packet.buf.as_slice());
                    let large = std::mem::replace(&mut packet.buf, small);
                    self.keep(large);
                }
                None => self.starved = true,
            }
        }
        self.batch.push(packet);
    }

    /// Writes packets until the stack has no more, or the budget is spent.
    pub(super) fn transmit(&mut self) -> io::Result<()> {
        let header_len = self.queue.header_len();
        for _ in 0..TRANSMITS {
            let Some(packet) = self.stack.poll_transmit(self.now) else { return Ok(()) };
            let virtio = packet.virtio.encode();
            let mut slices = [IoSlice::new(&[]); MAX_SLICES + 2];
            slices[0] = IoSlice::new(virtio.get(..header_len).unwrap_or_default());
            slices[1] = IoSlice::new(packet.header);
            let payload = packet.payload();
            for (slot, part) in slices[2..].iter_mut().zip(payload) {
                *slot = IoSlice::new(part);
            }
            let super_segment = packet.virtio.gso_type != virtio::GSO_NONE;
            let written = self.queue.write(&slices[..2 + payload.len()]);
            self.stats.device_writes += 1;
            let Err(error) = written else { continue };
            self.stats.device_errors += 1;
            match error.raw_os_error() {
                Some(libc::EINVAL) if super_segment => {
                    // The kernel has accepted the flag at open and refuses the packet: offload was a hint.
                    self.stack.drop_offload();
                    self.stats.offload_disabled += 1;
                    if !self.offload_disabled {
                        self.offload_disabled = true;
                        self.log(
                            Level::Warn,
                            format_args!("the device refuses super-segments: plain packets from now on"),
                        );
                    }
                }
                // No memory, full, or down: a packet lost like on any network.
                Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM | libc::EIO | libc::EINVAL | libc::EINTR) => {}
                _ => return Err(error),
            }
        }
        self.unfinished = true;
        Ok(())
    }
}
