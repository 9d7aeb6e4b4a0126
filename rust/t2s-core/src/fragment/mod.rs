//! IP fragments: in, put together again ([`FragmentReassembler`]); out, cut to the device's MTU ([`fragment_out`]).
//!
//! IPv4 by RFC 791 and 815, IPv6 by RFC 8200, section 4.5. Overlapping fragments end their datagram (RFC 5722, which is
//! for IPv6; the same is right for IPv4, where no honest sender makes them either); RFC 8900 says why all of this is
//! bounded so tightly.

mod out;
mod reassemble;

pub use out::{Fragments, OutFragment, fragment_out};
pub use reassemble::{FragmentReassembler, FragmentStats, Outcome};
