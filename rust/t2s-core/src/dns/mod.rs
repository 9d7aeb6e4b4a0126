//! DNS messages (RFC 1035): enough to tell queries from noise, to match answers with them, and to answer some.
//!
//! Promises: constant work a byte whatever the names say (compression pointers only lead backwards, RFC 1035, section
//! 4.1.4), no allocation while parsing. Refuses: messages that end before their counts are met, names beyond 255 bytes,
//! questions other than exactly one. What is inside records is not looked at, addresses excepted.

mod fake;
mod message;
mod name;
mod respond;

pub use fake::{FakePool, FakeRange, FakeRanges};
pub use message::{Class, Key, Kind, Message, Record, ResponseCode, Section};
pub use name::Name;
pub use respond::{respond, respond_malformed, respond_name};

/// Why a message is refused; counted as [`crate::stats::DropReason::DnsMalformed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It ends too soon.
    #[error("the message ends in the middle")]
    Truncated,
    /// A name is too long, has a reserved label type, or a pointer that does not lead backwards.
    #[error("malformed name")]
    Name,
    /// Not exactly one question.
    #[error("not exactly one question")]
    Questions,
    /// Bytes behind the last record.
    #[error("bytes behind the last record")]
    Trailing,
}
