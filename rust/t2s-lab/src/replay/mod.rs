//! The pcap driver of the lab: a capture is the device.
//!
//! The client's packets of any pcap or pcapng file go through a real [`Stack`](t2s_core::stack::Stack), at the
//! recorded, a scaled or the highest speed; the captured servers' streams come from a simulated upstream. A client's
//! acknowledgement numbers are mapped to the initial sequence numbers that the live stack chose, and a packet waits
//! until the stack has sent what it acknowledges, so that TCP flows really run: every byte passes the terminator.
//!
//! Promises: same capture, same result at every speed; the stack's time is the capture's. Refuses: see
//! [`CaptureError`].

mod capture;
mod phase;
mod player;
mod rewrite;
mod script;
#[cfg(test)]
mod tests;

pub use capture::{Capture, CaptureError, Captured, MAX_BYTES};
pub use phase::{CaptureSpec, Driver, NamedSpeed, Speed, run_capture};
pub use player::{Left, Observer, Pace, Replay, ReplayDatagram, ReplayFlow, ReplayOptions, Silent, replay};
