//! Messages: header, one question, records (RFC 1035, section 4).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Malformed;
use super::name::{Name, Work, skip};

/// Bytes of the header.
pub(super) const HEADER: usize = 12;
/// Bytes of a record behind its name: type, class, time to live, length.
const RECORD: usize = 10;

/// "This is a response."
pub(super) const QR: u16 = 1 << 15;
/// Authoritative answer, truncated, recursion desired, recursion available, and the response code.
pub(super) const TC: u16 = 1 << 9;
pub(super) const RD: u16 = 1 << 8;
pub(super) const RA: u16 = 1 << 7;
pub(super) const OPCODE: u16 = 0xf << 11;
pub(super) const RCODE: u16 = 0xf;

/// The type of a record or question (RFC 1035, section 3.2.2, and later).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kind(pub u16);

impl Kind {
    /// An IPv4 address.
    pub const A: Self = Self(1);
    /// Another name for this one.
    pub const CNAME: Self = Self(5);
    /// A name for an address.
    pub const PTR: Self = Self(12);
    /// An IPv6 address (RFC 3596).
    pub const AAAA: Self = Self(28);
    /// Extensions (RFC 6891).
    pub const OPT: Self = Self(41);
    /// Service bindings (RFC 9460); they carry addresses as hints.
    pub const SVCB: Self = Self(64);
    /// The same for HTTPS.
    pub const HTTPS: Self = Self(65);
    /// Whatever there is (RFC 8482: a server need not tell).
    pub const ANY: Self = Self(255);
}

/// The class of a record or question (RFC 1035, section 3.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Class(pub u16);

impl Class {
    /// The Internet.
    pub const IN: Self = Self(1);
}

/// The response code (RFC 1035, section 4.1.1), without the extension bits of RFC 6891.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ResponseCode(pub u8);

impl ResponseCode {
    /// No error.
    pub const NO_ERROR: Self = Self(0);
    /// The query did not parse.
    pub const FORMAT_ERROR: Self = Self(1);
    /// The server could not answer.
    pub const SERVER_FAILURE: Self = Self(2);
    /// There is no such name.
    pub const NAME_ERROR: Self = Self(3);
    /// This kind of query is not supported.
    pub const NOT_IMPLEMENTED: Self = Self(4);
    /// Refused by policy.
    pub const REFUSED: Self = Self(5);
}

/// What an answer and its query have in common (RFC 5452, section 4.2, with addresses and ports).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The query's number.
    pub id: u16,
    /// The name, lower case.
    pub name: Name,
    /// The type.
    pub kind: Kind,
    /// The class.
    pub class: Class,
}

/// Where a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Answers to the question.
    Answer,
    /// Who is responsible.
    Authority,
    /// What else may help.
    Additional,
}

/// A record of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Where it stands.
    pub section: Section,
    /// The type.
    pub kind: Kind,
    /// The class (of an OPT record: the sender's UDP size).
    pub class: Class,
    /// Time to live, seconds.
    pub ttl: u32,
    /// The content; names in it may be compressed.
    pub data: &'a [u8],
    message: &'a [u8],
    name_at: usize,
}

impl Record<'_> {
    /// The name that it belongs to.
    pub fn name(&self) -> Name {
        // Checked when the message was parsed.
        Name::parse(self.message, self.name_at).map_or(Name::ROOT, |(name, _)| name)
    }

    /// The address of an A or AAAA record of class IN.
    pub fn address(&self) -> Option<IpAddr> {
        match (self.kind, self.class) {
            (Kind::A, Class::IN) => Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(self.data).ok()?))),
            (Kind::AAAA, Class::IN) => Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(self.data).ok()?))),
            _ => None,
        }
    }
}

/// A checked message: its records are there, and their names end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    bytes: &'a [u8],
    /// Offset behind the question.
    question_end: usize,
    /// Offset behind the last record.
    end: usize,
    edns: bool,
}

impl<'a> Message<'a> {
    /// Checks a message as it stands in a datagram (over TCP: without its length).
    ///
    /// A truncated response (TC) may have fewer records than it counts.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let Some(header) = bytes.first_chunk::<HEADER>() else { return Err(Malformed::Truncated) };
        if header[4..6] != [0, 1] {
            return Err(Malformed::Questions);
        }
        let question_end = skip(bytes, HEADER, &mut Work::of(bytes))? + 4;
        if question_end > bytes.len() {
            return Err(Malformed::Truncated);
        }
        let mut message = Self { bytes, question_end, end: question_end, edns: false };
        let cut = message.flags() & TC != 0;
        // Each record takes 11 bytes or ends the loop: the counts need no bound of their own.
        let mut records = message.records();
        for record in records.by_ref() {
            match record {
                Ok(record) => message.edns |= record.kind == Kind::OPT,
                Err(Malformed::Truncated) if cut => break,
                Err(error) => return Err(error),
            }
        }
        message.end = records.at;
        if message.end != bytes.len() && !cut {
            return Err(Malformed::Trailing);
        }
        Ok(message)
    }

    /// The number that the client chose.
    pub fn id(&self) -> u16 {
        self.field(0)
    }

    /// Whether this is a standard query.
    pub fn is_query(&self) -> bool {
        self.flags() & (QR | OPCODE) == 0
    }

    /// Whether this is a response.
    pub fn is_response(&self) -> bool {
        self.flags() & QR != 0
    }

    /// Whether the sender had more to say (ask again over TCP).
    pub fn is_truncated(&self) -> bool {
        self.flags() & TC != 0
    }

    /// The response code.
    pub fn code(&self) -> ResponseCode {
        ResponseCode((self.flags() & RCODE) as u8)
    }

    /// Whether the sender knows extensions (RFC 6891): it sent an OPT record.
    pub fn has_edns(&self) -> bool {
        self.edns
    }

    /// The name in question, lower case.
    pub fn name(&self) -> Name {
        // Checked when the message was parsed.
        Name::parse(self.bytes, HEADER).map_or(Name::ROOT, |(name, _)| name)
    }

    /// The type in question.
    pub fn kind(&self) -> Kind {
        Kind(self.field(self.question_end - 4))
    }

    /// The class in question.
    pub fn class(&self) -> Class {
        Class(self.field(self.question_end - 2))
    }

    /// What an answer must have in common with its query.
    pub fn key(&self) -> Key {
        Key { id: self.id(), name: self.name(), kind: self.kind(), class: self.class() }
    }

    /// The addresses in the answer section.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + 'a {
        self.answers().filter_map(|record| record.address())
    }

    /// The records of the answer section.
    pub fn answers(&self) -> impl Iterator<Item = Record<'a>> + 'a {
        self.records().map_while(Result::ok).take_while(|record| record.section == Section::Answer)
    }

    /// All records in order, and the error that ends a truncated response.
    fn records(&self) -> Records<'a> {
        let left = [self.field(6), self.field(8), self.field(10)];
        Records { bytes: self.bytes, at: self.question_end, left, work: Work::of(self.bytes) }
    }

    /// The question as it stands in the message. The first name of a message has nothing to point to: its bytes can be
    /// copied.
    pub(super) fn question(&self) -> &'a [u8] {
        self.bytes.get(HEADER..self.question_end).unwrap_or_default()
    }

    pub(super) fn flags(&self) -> u16 {
        self.field(2)
    }

    /// A 16-bit field within the checked part; 0 beyond.
    fn field(&self, at: usize) -> u16 {
        field(self.bytes, at).unwrap_or(0)
    }
}

/// The records of a message.
struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Records left in each section.
    left: [u16; 3],
    /// What their names may still cost.
    work: Work,
}

impl<'a> Records<'a> {
    fn read(&mut self, section: Section) -> Result<Record<'a>, Malformed> {
        let fixed_at = skip(self.bytes, self.at, &mut self.work)?;
        let fixed = self.bytes.get(fixed_at..fixed_at + RECORD).ok_or(Malformed::Truncated)?;
        let number = |at: usize| field(fixed, at).unwrap_or(0);
        let data_at = fixed_at + RECORD;
        let end = data_at + usize::from(number(8));
        let data = self.bytes.get(data_at..end).ok_or(Malformed::Truncated)?;
        let name_at = core::mem::replace(&mut self.at, end);
        Ok(Record {
            section,
            kind: Kind(number(0)),
            class: Class(number(2)),
            ttl: u32::from(number(4)) << 16 | u32::from(number(6)),
            data,
            message: self.bytes,
            name_at,
        })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let sections = [Section::Answer, Section::Authority, Section::Additional];
        let (section, left) = sections.into_iter().zip(&mut self.left).find(|(_, left)| **left > 0)?;
        *left -= 1;
        let record = self.read(section);
        if record.is_err() {
            self.left = [0; 3];
        }
        Some(record)
    }
}

pub(super) fn field(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..)?.first_chunk::<2>()?;
    Some(u16::from_be_bytes(*pair))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dns::respond;

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

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 7));

    #[test]
    fn a_query() {
        for edns in [false, true] {
            let bytes = query("Example.ORG", Kind::AAAA, edns);
            let message = Message::parse(&bytes).expect("good");
            assert!(message.is_query() && !message.is_response() && !message.is_truncated());
            let name = Name::from_text("example.org").expect("good");
            assert_eq!(message.key(), Key { id: 0x1234, name, kind: Kind::AAAA, class: Class::IN });
            assert_eq!(message.has_edns(), edns);
            for cut in 0..bytes.len() {
                assert!(Message::parse(&bytes[..cut]).is_err(), "cut at {cut}");
            }
            assert_eq!(Message::parse(&[&bytes[..], &[0]].concat()), Err(Malformed::Trailing));
        }
        let mut two = query("a", Kind::A, false);
        two[5] = 2;
        assert_eq!(Message::parse(&two), Err(Malformed::Questions));
        let mut status = query("a", Kind::A, false);
        status[2] |= 2 << 3;
        assert!(!Message::parse(&status).expect("good").is_query());
    }

    #[test]
    fn a_truncated_response_may_end_early() {
        let bytes = query("example.org", Kind::A, false);
        let asked = Message::parse(&bytes).expect("good");
        let mut out = [0; 512];
        let len = respond(&asked, ResponseCode::NO_ERROR, &[V4, V4], 60, &mut out).expect("room");
        assert_eq!(Message::parse(&out[..len - 3]), Err(Malformed::Truncated));
        out[2] |= 2;
        let cut = Message::parse(&out[..len - 3]).expect("TC allows it");
        assert!(cut.is_truncated());
        assert_eq!(cut.addresses().collect::<Vec<_>>(), [V4]);
    }

    #[test]
    fn a_recorded_answer_with_an_alias() {
        // www.example.org is an alias of host.example.org, whose address is 192.0.2.1.
        let bytes = [
            &b"\x00\x01\x81\x80\0\x01\0\x02\0\0\0\0"[..],
            b"\x03www\x07example\x03org\0\0\x01\0\x01",
            b"\xc0\x0c\0\x05\0\x01\0\0\0\x3c\0\x07\x04host\xc0\x10",
            b"\xc0\x2d\0\x01\0\x01\0\0\0\x3c\0\x04\xc0\0\x02\x01",
        ]
        .concat();
        let message = Message::parse(&bytes).expect("good");
        let records: Vec<_> = message.answers().collect();
        assert_eq!((records[0].kind, records[1].kind), (Kind::CNAME, Kind::A));
        assert_eq!(records[1].name().to_string(), "host.example.org");
        assert_eq!(message.addresses().collect::<Vec<_>>(), [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))]);
    }

    /// A message of `total` bytes: one record whose data is a chain of pointers to a name of `labels` labels, then as
    /// many records as fit, each named by the chain's end.
    fn chained(total: usize, labels: usize, hops: usize) -> Vec<u8> {
        let mut bytes = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(b"\x01a".repeat(labels));
        bytes.extend([0, 0, 1, 0, 1]);
        bytes.extend([0, 0, 16, 0, 1, 0, 0, 0, 0]);
        bytes.extend((2 * hops as u16).to_be_bytes());
        let mut target = HEADER as u16;
        for _ in 0..hops {
            let at = bytes.len() as u16;
            bytes.extend((0xc000 | target).to_be_bytes());
            target = at;
        }
        let mut records = 1_u16;
        while bytes.len() + 12 <= total {
            bytes.extend((0xc000 | target).to_be_bytes());
            bytes.extend([0, 16, 0, 1, 0, 0, 0, 0, 0, 0]);
            records += 1;
        }
        bytes[6..8].copy_from_slice(&records.to_be_bytes());
        bytes
    }

    #[test]
    fn the_work_of_a_message_is_in_proportion_to_its_size() {
        // A reverse name of IPv6 that many records name: what an honest server sends at most.
        assert!(Message::parse(&chained(500, 34, 1)).is_ok());
        assert!(Message::parse(&chained(60_000, 20, 1)).is_ok());
        // A long name or a long chain that thousands of records name.
        for (labels, hops) in [(127, 1), (1, 100), (1, 8_000), (100, 100)] {
            assert_eq!(Message::parse(&chained(60_000, labels, hops)), Err(Malformed::Name), "{labels} {hops}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes(mut bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0u8), Just(0xc0)], 0..200)) {
            if let Some(count) = bytes.get_mut(4..6) {
                count.copy_from_slice(&[0, 1]);
            }
            if let Ok(message) = Message::parse(&bytes) {
                prop_assert!(message.answers().all(|it| it.name().as_bytes().len() <= 255));
            }
        }
    }
}
