//! Faults around the core, so that the lab can be asked whether it finds them: each does to packets, memory or time
//! what a broken core would, and tells nobody.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use t2s_core::checksum::{Kernel, Sum};
use t2s_core::stack::{Packet, Stack, WorkerMap};
use t2s_sys::clock::thread_cpu_nanos;

use crate::device_ring::Producer;
use crate::generator::packets::{flag, get_u16, ip_header_len, patched, protocol, put_u16, split_ip};
use crate::generator::rng::Rng;
use crate::lab::spawn;
use crate::measure::clock::now_ns;
use crate::spec::{FaultName, FaultSpec};
use crate::worker::harness::{Egress, Harness};

/// One second, nanoseconds.
const SECOND: u64 = 1_000_000_000;

/// From the begin of the window to the first fault that comes at intervals, nanoseconds: within that of a short phase.
const FIRST: u64 = 100_000_000;

/// A fault around the core; with `VIRTUAL`, or none at all, in virtual time.
pub struct Faulty<const VIRTUAL: bool> {
    fault: Option<FaultSpec>,
    now: u64,
    rng: Rng,
    /// Packets seen.
    packets: u64,
    /// Flows opened when the last buffer was lost.
    flows: u64,
    /// When something that comes at intervals comes next; 0 before the window.
    next: u64,
    /// Replies that are kept: until when, and with what flags.
    held: VecDeque<(u64, u32, Box<[u8]>)>,
    /// The last acknowledgement of each client's port.
    acknowledged: BTreeMap<u64, u32>,
    /// Bytes whose checksum is still owed.
    owed: f64,
    kernel: Kernel,
    /// Whatever the extra work came to, so that it is done.
    sum: Sum,
    /// The thread that holds locks, and where it counts its heap.
    holder: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
    heap: Arc<AtomicI64>,
}

impl<const VIRTUAL: bool> Faulty<VIRTUAL> {
    /// The fault of a phase. A thread that it needs adds to `heap` what it leaves.
    pub fn new(fault: Option<FaultSpec>, seed: u64, heap: Arc<AtomicI64>) -> Self {
        Self {
            fault,
            now: 0,
            rng: Rng::new(seed, 0xfa17),
            packets: 0,
            flows: 0,
            next: 0,
            held: VecDeque::new(),
            acknowledged: BTreeMap::new(),
            owed: 0.0,
            kernel: Kernel::auto(),
            sum: Sum::default(),
            holder: None,
            heap,
        }
    }

    /// The size of the fault, if it is this one.
    #[inline]
    fn size(&self, name: FaultName) -> Option<f64> {
        self.fault.filter(|fault| fault.name == name).map(|fault| fault.size)
    }

    /// True for one in `size` calls, where the fault is this one.
    #[inline]
    fn strikes(&mut self, name: FaultName) -> bool {
        let Some(size) = self.size(name) else { return false };
        self.rng.chance(1.0 / size)
    }

    /// Whether an interval of `period` has passed.
    fn is_time(&mut self, now: u64, period: u64) -> bool {
        let due = self.next > 0 && now >= self.next;
        if due {
            self.next = now + period;
        }
        due
    }

    /// Whether this packet is a window update: it acknowledges what the one before did, and nothing else.
    fn is_window_update(&mut self, packet: &[u8]) -> bool {
        let Some((v6, protocol::TCP, tcp)) = split_ip(packet) else { return false };
        let (Some(port), Some(high), Some(low)) = (get_u16(tcp, 2), get_u16(tcp, 8), get_u16(tcp, 10)) else {
            return false;
        };
        let address = if v6 { &packet[36..40] } else { &packet[16..20] };
        let client = address.iter().fold(u64::from(port), |key, &byte| key << 8 | u64::from(byte));
        let ack = u32::from(high) << 16 | u32::from(low);
        let before = self.acknowledged.insert(client, ack);
        tcp.get(13) == Some(&flag::ACK) && payload_at(packet).is_none() && before == Some(ack)
    }
}

/// Keeps the CPU busy.
fn spin(nanos: f64) {
    let until = now_ns() + nanos as u64;
    while now_ns() < until {
        std::hint::spin_loop();
    }
}

/// Where the payload of a whole packet begins; `None` without one.
fn payload_at(packet: &[u8]) -> Option<usize> {
    let (v6, protocol, upper) = split_ip(packet)?;
    if !v6 && get_u16(packet, 6)? & 0x3fff != 0 {
        return None;
    }
    let header = match protocol {
        protocol::TCP => usize::from(*upper.get(12)? >> 4) * 4,
        protocol::UDP => 8,
        _ => return None,
    };
    (upper.len() > header).then_some(ip_header_len(v6) + header)
}

/// Makes one byte of the payload wrong, and the checksum right for it; false for a packet without payload.
fn corrupt(packet: &mut [u8], of: u8, rng: &mut Rng) -> bool {
    let Some((v6, protocol, upper)) = split_ip(packet) else { return false };
    let (ip, end) = (ip_header_len(v6), ip_header_len(v6) + upper.len());
    let Some(payload) = payload_at(packet).filter(|_| protocol == of) else { return false };
    let at = payload + rng.below((end - payload) as u32) as usize;
    let word = ip + (at - ip) / 2 * 2;
    let read = |packet: &[u8]| u16::from_be_bytes([packet[word], if word + 1 < end { packet[word + 1] } else { 0 }]);
    let check_at = ip + if protocol == protocol::TCP { 16 } else { 6 };
    let old = read(packet);
    packet[at] ^= 1 << rng.below(8);
    let new = read(packet);
    let check = patched(get_u16(packet, check_at).unwrap_or(0), old, new);
    put_u16(packet, check_at, if check == 0 && protocol == protocol::UDP { 0xffff } else { check });
    true
}

impl<const VIRTUAL: bool> Harness for Faulty<VIRTUAL> {
    const WRAPS: bool = true;
    const REAL_TIME: bool = !VIRTUAL;

    fn clock(&self) -> u64 {
        if VIRTUAL { self.now } else { now_ns() }
    }

    fn cpu(&self) -> u64 {
        if VIRTUAL { 0 } else { thread_cpu_nanos() }
    }

    fn set_clock(&mut self, now: u64) {
        self.now = now;
    }

    fn begin(&mut self, now: u64) {
        self.next = now + FIRST;
    }

    fn ingress(&mut self, _now: u64, batch: &mut Vec<Packet>, stack: &mut Stack) {
        let mut kept = 0;
        for at in 0..batch.len() {
            if self.strikes(FaultName::SilentDrop) {
                continue;
            }
            for (name, of) in [(FaultName::WrongByte, protocol::TCP), (FaultName::WrongUdpPayload, protocol::UDP)] {
                if self.strikes(name) {
                    corrupt(batch[at].buf.as_mut_slice(), of, &mut self.rng);
                }
            }
            if let Some(percent) = self.size(FaultName::SlowChecksum) {
                let bytes = batch[at].buf.as_slice();
                self.owed += bytes.len() as f64 * percent / 100.0;
                while self.owed >= 64.0 {
                    let some = bytes.len().min(self.owed as usize);
                    self.sum = std::hint::black_box(self.kernel.sum(&bytes[..some], self.sum));
                    self.owed -= some.max(1) as f64;
                }
            }
            batch.swap(kept, at);
            kept += 1;
        }
        for packet in batch.drain(kept..) {
            stack.free(packet.buf);
        }
    }

    fn worked(&mut self, now: u64, packets: usize, stack: &mut Stack, map: &Arc<WorkerMap>) {
        let Some(FaultSpec { name, size }) = self.fault else { return };
        let before = self.packets;
        self.packets += packets as u64;
        match name {
            FaultName::SlowPacket => spin(size * packets as f64),
            FaultName::SlowThousandth if self.packets / 1_000 > before / 1_000 => spin(size * 1e3),
            FaultName::Sleep if self.is_time(now, SECOND) => std::thread::sleep(Duration::from_secs_f64(size / 1e3)),
            FaultName::Busy if self.is_time(now, 5 * SECOND) => spin(size * 1e6),
            FaultName::Lock if self.holder.is_none() => self.holder = hold(map, size, &self.heap),
            FaultName::BufferLeak => {
                let opened = stack.stats().flows_opened;
                if (opened - self.flows) as f64 >= size {
                    self.flows = opened;
                    std::mem::forget(stack.alloc(1_500, 0));
                }
            }
            FaultName::HeapGrowth if self.is_time(now, SECOND / 100) => {
                Box::leak(vec![0_u8; (size / 100.0).ceil() as usize].into_boxed_slice());
            }
            _ => {}
        }
    }

    fn prepare(&mut self, packets: usize) {
        if let Some(size) = self.size(FaultName::HiddenWork) {
            spin(size * packets as f64);
        }
    }

    fn egress(&mut self, now: u64, packet: &mut [u8], flags: u32) -> Egress {
        if self.strikes(FaultName::WrongByte) {
            corrupt(packet, protocol::TCP, &mut self.rng);
        }
        if self.strikes(FaultName::WrongUdpPayload) {
            corrupt(packet, protocol::UDP, &mut self.rng);
        }
        if self.size(FaultName::MissingWindowUpdate).is_some()
            && self.is_window_update(packet)
            && self.strikes(FaultName::MissingWindowUpdate)
        {
            return Egress::Keep;
        }
        if let Some(size) = self.size(FaultName::HeldReplies) {
            self.held.push_back((now + (size * 1e3) as u64, flags, packet.into()));
            return Egress::Keep;
        }
        Egress::Send
    }

    fn is_due(&self, now: u64) -> bool {
        self.held.front().is_some_and(|&(due, ..)| due <= now)
    }

    fn release(&mut self, now: u64, out: &mut Producer) {
        while self.is_due(now) {
            let Some((_, flags, packet)) = self.held.front() else { break };
            if !out.push(packet, now, *flags) {
                break;
            }
            self.held.pop_front();
        }
    }
}

impl<const VIRTUAL: bool> Drop for Faulty<VIRTUAL> {
    fn drop(&mut self) {
        if let Some((stop, holder)) = self.holder.take() {
            stop.store(true, Ordering::Relaxed);
            // The holder cannot panic; there is nothing to tell anybody if it did.
            let _ = holder.join();
        }
    }
}

/// Starts a thread that holds all locks of the map for so many milliseconds a second.
fn hold(map: &Arc<WorkerMap>, millis: f64, heap: &Arc<AtomicI64>) -> Option<(Arc<AtomicBool>, JoinHandle<()>)> {
    let (map, stop) = (Arc::clone(map), Arc::new(AtomicBool::new(false)));
    let stopped = Arc::clone(&stop);
    let body = move || {
        let held = Duration::from_secs_f64(millis / 1e3);
        while !stopped.load(Ordering::Relaxed) {
            let guards: Vec<_> = (0..map.flow_map().shards()).map(|shard| map.flow_map().lock(shard)).collect();
            std::thread::sleep(held);
            drop(guards);
            for _ in 0..10 {
                if !stopped.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(100).saturating_sub(held / 10));
                }
            }
        }
    };
    let (_, holder) = spawn("t2s-worker-l".to_owned(), heap, body).ok()?;
    Some((stop, holder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::address::FlowAddresses;
    use crate::generator::packets::{TcpFields, checksums_hold, fold, sum_of, write_tcp, write_udp};

    #[test]
    fn a_spoiled_packet_differs_in_one_byte_of_payload_and_passes_every_check() {
        let mut rng = Rng::new(1, 1);
        for v6 in [false, true] {
            let ends = FlowAddresses { v6, worker: 0, component: 0, slot: 0, client_port: 9, target_port: 443 };
            for len in [1, 2, 3, 100, 101] {
                let payload: Vec<u8> = (0..len).map(|at| at as u8).collect();
                for (of, header) in [(protocol::TCP, 20), (protocol::UDP, 8)] {
                    let start = ip_header_len(v6) + header;
                    let mut packet = vec![0; start + len];
                    let sum = fold(sum_of(&payload));
                    if of == protocol::TCP {
                        write_tcp(&mut packet, ends, &TcpFields::default(), len, sum);
                    } else {
                        write_udp(&mut packet, ends, len, sum);
                    }
                    packet[start..].copy_from_slice(&payload);
                    for _ in 0..50 {
                        let mut wrong = packet.clone();
                        assert!(corrupt(&mut wrong, of, &mut rng));
                        let differ = wrong[start..].iter().zip(&payload).filter(|(a, b)| a != b).count();
                        assert!(differ == 1 && checksums_hold(&wrong), "{v6} {len} {of}");
                    }
                    assert!(!corrupt(&mut packet, 99, &mut rng));
                }
            }
        }
    }
}
