//! IP fragments: in, put together again ([`FragmentReassembler`]); out, cut to the device's MTU ([`fragment`]).
//!
//! IPv4 by RFC 791 and 815, IPv6 by RFC 8200, section 4.5. Overlapping fragments end their datagram (RFC 5722, which is
//! for IPv6; the same is right for IPv4, where no honest sender makes them either); RFC 8900 says why all of this is
//! bounded so tightly.

mod reassemble;
mod split;

pub use reassemble::{FragmentReassembler, FragmentStats, Outcome};
pub use split::{Fragments, OutFragment, fragment};
