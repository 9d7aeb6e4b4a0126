//! Answers of our own: addresses, a name, nothing, or an error.
//!
//! Promises: the question is repeated byte for byte, the client's spelling with it (which some clients check); a query
//! with EDNS is answered with EDNS (RFC 6891, section 6.1.1). Refuses to answer into room that is too short; 512 bytes
//! are enough for any question with its answer.

use core::net::IpAddr;

use super::message::{HEADER, Kind, Message, OPCODE, QR, RA, RCODE, RD, ResponseCode, field};
use super::name::Name;

/// A pointer to the first name of a message, which is the question's.
const QUESTION_NAME: [u8; 2] = [0xc0, HEADER as u8];
/// The UDP size that our answers advertise, bytes (the DNS flag day of 2020).
const UDP_SIZE: u16 = 1_232;

/// Writes a response to `query` to the start of `out` and returns its length: the code, and those of `addresses` that
/// the question asks for (A or AAAA), each to be kept for `ttl` seconds. `None` if `out` is too short.
#[must_use]
pub fn respond(
    query: &Message<'_>,
    code: ResponseCode,
    addresses: &[IpAddr],
    ttl: u32,
    out: &mut [u8],
) -> Option<usize> {
    let mut out = Writer { out, at: 0 };
    let wanted = |address: &&IpAddr| match query.kind() {
        Kind::A => address.is_ipv4(),
        Kind::AAAA => address.is_ipv6(),
        _ => false,
    };
    let answers = addresses.iter().filter(wanted).count();
    out.head(query, code, u16::try_from(answers).ok()?)?;
    for address in addresses.iter().filter(wanted) {
        match address {
            IpAddr::V4(address) => out.record(query, ttl, &address.octets())?,
            IpAddr::V6(address) => out.record(query, ttl, &address.octets())?,
        }
    }
    out.tail(query)
}

/// Writes a response whose answer is a name (for a PTR question), as [`respond`] does.
#[must_use]
pub fn respond_name(query: &Message<'_>, name: &Name, ttl: u32, out: &mut [u8]) -> Option<usize> {
    let mut out = Writer { out, at: 0 };
    out.head(query, ResponseCode::NO_ERROR, 1)?;
    out.record(query, ttl, name.as_bytes())?;
    out.tail(query)
}

/// Writes "format error" in answer to what has a query's header but does not parse: the header alone, since the rest is
/// not known to mean anything. `None` for less than a header, for a response (two servers must not talk for ever), and
/// if `out` is too short.
#[must_use]
pub fn respond_malformed(bytes: &[u8], out: &mut [u8]) -> Option<usize> {
    let (id, flags) = (field(bytes, 0)?, field(bytes, 2)?);
    if bytes.len() < HEADER || flags & QR != 0 {
        return None;
    }
    let mut out = Writer { out, at: 0 };
    out.put16(id)?;
    out.put16(flags & (OPCODE | RD) | QR | RA | u16::from(ResponseCode::FORMAT_ERROR.0))?;
    out.put(&[0; 8])?;
    Some(out.at)
}

/// Writes from the start of a slice.
struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    /// Header and question.
    fn head(&mut self, query: &Message<'_>, code: ResponseCode, answers: u16) -> Option<()> {
        self.put16(query.id())?;
        self.put16(query.flags() & (OPCODE | RD) | QR | RA | u16::from(code.0) & RCODE)?;
        self.put16(1)?;
        self.put16(answers)?;
        self.put16(0)?;
        self.put16(u16::from(query.has_edns()))?;
        self.put(query.question())
    }

    /// A record that answers the question.
    fn record(&mut self, query: &Message<'_>, ttl: u32, data: &[u8]) -> Option<()> {
        self.put(&QUESTION_NAME)?;
        self.put16(query.kind().0)?;
        self.put16(query.class().0)?;
        self.put(&ttl.to_be_bytes())?;
        self.put16(u16::try_from(data.len()).ok()?)?;
        self.put(data)
    }

    /// The OPT record, if there was one: the root's name, no flags, no options. Answers the length of all.
    fn tail(mut self, query: &Message<'_>) -> Option<usize> {
        if query.has_edns() {
            self.put(&[0])?;
            self.put16(Kind::OPT.0)?;
            self.put16(UDP_SIZE)?;
            self.put(&[0; 6])?;
        }
        Some(self.at)
    }

    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.at + bytes.len();
        self.out.get_mut(self.at..end)?.copy_from_slice(bytes);
        self.at = end;
        Some(())
    }

    fn put16(&mut self, value: u16) -> Option<()> {
        self.put(&value.to_be_bytes())
    }
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::dns::{Malformed, Record};

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 7));
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7));

    fn query(name: &str, kind: Kind, edns: bool) -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
        bytes.extend(Name::from_text(name).expect("a good name").as_bytes());
        bytes.extend(kind.0.to_be_bytes());
        bytes.extend([0, 1]);
        if edns {
            bytes.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        }
        bytes
    }

    #[test]
    fn responses_answer_what_was_asked() {
        for (kind, edns, want) in
            [(Kind::A, true, vec![V4]), (Kind::AAAA, false, vec![V6]), (Kind::HTTPS, true, vec![])]
        {
            let bytes = query("www.example.org", kind, edns);
            let asked = Message::parse(&bytes).expect("good");
            let mut out = [0; 512];
            let len = respond(&asked, ResponseCode::NO_ERROR, &[V6, V4], 60, &mut out).expect("room");
            let answer = Message::parse(&out[..len]).expect("good");
            assert!(answer.is_response() && !answer.is_query());
            assert_eq!((answer.key(), answer.has_edns()), (asked.key(), edns));
            assert_eq!(answer.addresses().collect::<Vec<_>>(), want);
            assert!(answer.answers().all(|record| record.ttl == 60 && record.name() == asked.name()));
            for cut in 0..len {
                assert_eq!(respond(&asked, ResponseCode::NO_ERROR, &[V6, V4], 60, &mut out[..cut]), None);
            }
            let len = respond(&asked, ResponseCode::NAME_ERROR, &[], 0, &mut out).expect("room");
            assert_eq!(Message::parse(&out[..len]).expect("good").code(), ResponseCode::NAME_ERROR);
        }
    }

    #[test]
    fn a_name_for_an_address() {
        let bytes = query("7.0.18.198.in-addr.arpa", Kind::PTR, true);
        let asked = Message::parse(&bytes).expect("good");
        let (longest, mut out) = (["a".repeat(63).as_str(); 3].join("."), [0; 512]);
        let name = Name::from_text(&longest).expect("good");
        let len = respond_name(&asked, &name, 5, &mut out).expect("room");
        let answer = Message::parse(&out[..len]).expect("good");
        let records: Vec<Record<'_>> = answer.answers().collect();
        assert_eq!((records.len(), records[0].kind, records[0].data), (1, Kind::PTR, name.as_bytes()));
        for cut in 0..len {
            assert_eq!(respond_name(&asked, &name, 5, &mut out[..cut]), None);
        }
    }

    #[test]
    fn what_does_not_parse_is_a_format_error() {
        let mut two = query("a", Kind::A, false);
        two[5] = 2;
        assert_eq!(Message::parse(&two), Err(Malformed::Questions));
        let mut out = [0xee; HEADER];
        assert_eq!(respond_malformed(&two, &mut out), Some(HEADER));
        assert_eq!(out, [0x12, 0x34, 0x81, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]);
        two[2] |= 0x80;
        assert_eq!(respond_malformed(&two, &mut out), None);
        assert_eq!(respond_malformed(&query("a", Kind::A, false)[..HEADER - 1], &mut out), None);
        assert_eq!(respond_malformed(&query("a", Kind::A, false), &mut out[..HEADER - 1]), None);
    }

    proptest! {
        #[test]
        fn any_bytes(mut bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0u8), Just(0xc0)], 0..200)) {
            let mut out = [0; 1024];
            if let Some(len) = respond_malformed(&bytes, &mut out) {
                prop_assert_eq!((len, &out[..2]), (HEADER, &bytes[..2]));
            }
            if let Some(count) = bytes.get_mut(4..6) {
                count.copy_from_slice(&[0, 1]);
            }
            if let Ok(message) = Message::parse(&bytes) {
                let len = respond(&message, ResponseCode::SERVER_FAILURE, &[V4, V6], 1, &mut out).expect("room");
                prop_assert_eq!(Message::parse(&out[..len]).expect("our own").key(), message.key());
                let len = respond_name(&message, &message.name(), 1, &mut out).expect("room");
                prop_assert_eq!(Message::parse(&out[..len]).expect("our own").key(), message.key());
            }
        }
    }
}
