//! What stands around the core in a worker: nothing in a measured run, faults in a self-test, virtual time in lockstep.
//!
//! The worker is generic over it, so that [`Plain`] leaves no branch on the packet path.

use std::sync::Arc;

use t2s_core::stack::{Packet, Stack, WorkerMap};
use t2s_sys::clock::thread_cpu_nanos;

use crate::device_ring::Producer;
use crate::measure::clock::now_ns;

/// What becomes of a packet of the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// It goes to the client.
    Send,
    /// It does not, or later.
    Keep,
}

/// The surroundings of the core.
pub trait Harness {
    /// Whether packets are looked at.
    const WRAPS: bool;

    /// Whether time is the machine's.
    const REAL_TIME: bool;

    /// The time, nanoseconds.
    fn clock(&self) -> u64;

    /// CPU time of the thread, nanoseconds.
    fn cpu(&self) -> u64;

    /// The step of virtual time has begun.
    fn set_clock(&mut self, _now: u64) {}

    /// The measured window begins.
    fn begin(&mut self, _now: u64) {}

    /// Packets are about to go to the core.
    fn ingress(&mut self, _now: u64, _batch: &mut Vec<Packet>, _stack: &mut Stack) {}

    /// The core has had so many packets.
    fn worked(&mut self, _now: u64, _packets: usize, _stack: &mut Stack, _map: &Arc<WorkerMap>) {}

    /// The core gets ready for the next packets, after so many.
    fn prepare(&mut self, _packets: usize) {}

    /// A packet of the core is about to go to its client.
    fn egress(&mut self, _now: u64, _packet: &mut [u8], _flags: u32) -> Egress {
        Egress::Send
    }

    /// Whether a packet that was kept is due.
    fn is_due(&self, _now: u64) -> bool {
        false
    }

    /// Sends what was kept and is due.
    fn release(&mut self, _now: u64, _out: &mut Producer) {}
}

/// Nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Harness for Plain {
    const WRAPS: bool = false;
    const REAL_TIME: bool = true;

    #[inline]
    fn clock(&self) -> u64 {
        now_ns()
    }

    #[inline]
    fn cpu(&self) -> u64 {
        thread_cpu_nanos()
    }
}
