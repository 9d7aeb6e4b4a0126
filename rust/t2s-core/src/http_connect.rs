//! The client's side of HTTP CONNECT (RFC 9110, section 9.3.6), with basic authentication (RFC 7617).
//!
//! Promises: no I/O and no clock, any split of the incoming bytes gives the same result, bytes behind the answer's
//! header are never consumed (they are the tunnel's). Refuses: names that could break out of their line, user names
//! with a colon, answers that are not HTTP/1, and headers beyond [`HEAD_MAX`].

use core::fmt;

use crate::socks5::{Address, Credentials, Outbox};

/// Longest header of an answer, bytes: what common HTTP servers allow for all fields.
pub const HEAD_MAX: usize = 8_192;
/// The characters of base64 (RFC 4648, section 4).
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Why a handshake cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// The target's name is empty, too long, or has control characters or blanks.
    #[error("the domain name is empty, too long or has control characters")]
    BadDomain,
    /// Basic authentication cannot say a user name with a colon or control characters.
    #[error("the user name has a colon, or it or the password has control characters")]
    BadCredentials,
    /// The answer does not start like one of HTTP/1.
    #[error("the proxy does not speak HTTP/1")]
    NotHttp,
    /// The answer's header does not end.
    #[error("the proxy's answer is longer than {HEAD_MAX} bytes")]
    TooLong,
    /// The handshake failed before; nothing more is taken.
    #[error("the handshake failed before")]
    AlreadyFailed,
}

/// How a handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpOutcome {
    /// The tunnel is open.
    Done,
    /// The proxy refused: its status code, 300 to 999 (407: it wants credentials, or others).
    Refused(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Over(HttpOutcome),
    Failed(HttpError),
}

/// A handshake with a proxy.
pub struct HttpConnect {
    state: State,
    out: Outbox,
    /// The answer's header so far.
    head: Vec<u8>,
}

impl HttpConnect {
    /// A handshake that asks for a tunnel to `target`.
    pub fn new(target: &Address, credentials: Option<&Credentials>) -> Result<Self, HttpError> {
        target.check().map_err(|_| HttpError::BadDomain)?;
        // `Display` puts IPv6 addresses in brackets (RFC 9110, section 4.2; RFC 3986, section 3.2.2).
        let authority = target.to_string();
        let mut out = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n").into_bytes();
        if let Some(credentials) = credentials {
            let control = |byte: &u8| *byte < b' ' || *byte == 0x7f;
            let (user, password) = (credentials.user(), credentials.password());
            if user.contains(&b':') || user.iter().chain(password).any(control) {
                return Err(HttpError::BadCredentials);
            }
            out.extend_from_slice(b"Proxy-Authorization: Basic ");
            base64(&[user, b":", password].concat(), &mut out);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
        Ok(Self { state: State::Waiting, out: out.into(), head: Vec::new() })
    }

    /// Bytes to be sent to the proxy now; report what was taken with [`HttpConnect::handle_sent`].
    #[must_use]
    pub fn poll_transmit(&self) -> Option<&[u8]> {
        self.out.rest()
    }

    /// `n` more bytes were sent.
    pub fn handle_sent(&mut self, n: usize) {
        self.out.handle_sent(n);
    }

    /// Takes bytes from the proxy; returns how many were taken. Those that were not belong to the tunnel (there are
    /// some only once [`HttpConnect::outcome`] is there).
    pub fn handle(&mut self, data: &[u8]) -> Result<usize, HttpError> {
        let mut taken = 0;
        for &byte in data {
            match self.state {
                State::Waiting => {}
                State::Over(_) => return Ok(taken),
                State::Failed(_) => return Err(HttpError::AlreadyFailed),
            }
            taken += 1;
            self.head.push(byte);
            if let Err(error) = self.step(byte) {
                self.state = State::Failed(error);
                self.head = Vec::new();
                return Err(error);
            }
        }
        Ok(taken)
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<HttpOutcome> {
        match self.state {
            State::Over(outcome) => Some(outcome),
            State::Waiting | State::Failed(_) => None,
        }
    }

    /// Looks at the header after another byte.
    fn step(&mut self, byte: u8) -> Result<(), HttpError> {
        const START: &[u8] = b"HTTP/1.";
        let len = self.head.len();
        if let Some(&want) = START.get(len - 1)
            && byte != want
        {
            return Err(HttpError::NotHttp);
        }
        if byte == b'\n' && (self.head.ends_with(b"\r\n\r\n") || self.head.ends_with(b"\n\n")) {
            let status = status(&self.head).ok_or(HttpError::NotHttp)?;
            // An interim answer (RFC 9110, section 15.2) is followed by the real one.
            match status {
                100..=199 => self.head.clear(),
                200..=299 => self.finish(HttpOutcome::Done),
                300.. => self.finish(HttpOutcome::Refused(status)),
                0..=99 => return Err(HttpError::NotHttp),
            }
            return Ok(());
        }
        if len >= HEAD_MAX { Err(HttpError::TooLong) } else { Ok(()) }
    }

    fn finish(&mut self, outcome: HttpOutcome) {
        self.state = State::Over(outcome);
        self.head = Vec::new();
    }
}

impl fmt::Debug for HttpConnect {
    /// Without the request, which has the credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpConnect").field("state", &self.state).finish_non_exhaustive()
    }
}

/// The code of a status line: `HTTP/1.x NNN reason`.
fn status(head: &[u8]) -> Option<u16> {
    let line = head.split(|&byte| byte == b'\n').next()?;
    let mut words = line.trim_ascii_end().split(|&byte| byte == b' ');
    let version = words.next()?;
    let code = words.next()?;
    let digit = |byte: &u8| byte.is_ascii_digit();
    if version.len() != 8 || code.len() != 3 || !code.iter().all(digit) || !version.last().is_some_and(digit) {
        return None;
    }
    Some(code.iter().fold(0, |value, byte| value * 10 + u16::from(byte - b'0')))
}

/// Appends base64 (RFC 4648, section 4), padded.
fn base64(data: &[u8], out: &mut Vec<u8>) {
    for chunk in data.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let group = byte(0) << 16 | byte(1) << 8 | byte(2);
        for index in 0..4 {
            let symbol = BASE64[(group >> (18 - 6 * index) & 63) as usize];
            out.push(if index <= chunk.len() { symbol } else { b'=' });
        }
    }
}

#[cfg(test)]
mod tests {
    use core::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;

    fn ip() -> Address {
        Address::Ip(SocketAddr::from(([192, 0, 2, 1], 443)))
    }

    fn request(target: &Address, credentials: Option<(&str, &str)>) -> String {
        let credentials =
            credentials.map(|(user, password)| Credentials::new(user.as_bytes(), password.as_bytes()).expect("short"));
        let http = HttpConnect::new(target, credentials.as_ref()).expect("a good target");
        String::from_utf8(http.poll_transmit().expect("the request").to_vec()).expect("ASCII")
    }

    #[test]
    fn requests() {
        assert_eq!(request(&ip(), None), "CONNECT 192.0.2.1:443 HTTP/1.1\r\nHost: 192.0.2.1:443\r\n\r\n");
        let v6 = Address::Ip(SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 80)));
        assert!(request(&v6, None).starts_with("CONNECT [2001:db8::1]:80 HTTP/1.1\r\n"));
        let name = Address::Domain("example.org".into(), 8080);
        // The example of RFC 7617, section 2.
        let with = request(&name, Some(("Aladdin", "open sesame")));
        assert!(with.ends_with("\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n"), "{with}");
    }

    #[test]
    fn base64_of_rfc_4648_section_10() {
        for (data, want) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            let mut out = Vec::new();
            base64(data.as_bytes(), &mut out);
            assert_eq!(out, want.as_bytes());
        }
    }

    #[test]
    fn what_could_break_out_of_its_line_is_refused() {
        for name in ["", "a b", "a\r\nX: y", "a\0", &"a".repeat(256)] {
            let target = Address::Domain(name.into(), 1);
            assert!(matches!(HttpConnect::new(&target, None), Err(HttpError::BadDomain)), "{name:?}");
        }
        for (user, password) in [("a:b", "c"), ("a\n", "c"), ("a", "c\r")] {
            let credentials = Credentials::new(user.as_bytes(), password.as_bytes()).expect("short");
            assert!(matches!(HttpConnect::new(&ip(), Some(&credentials)), Err(HttpError::BadCredentials)));
        }
        let credentials = Credentials::new(b"user", b"secret").expect("short");
        let http = HttpConnect::new(&ip(), Some(&credentials)).expect("good");
        assert!(!format!("{http:?} {credentials:?}").contains("secret"));
    }

    #[test]
    fn answers() {
        let outcome = |answer: &str| {
            let mut http = HttpConnect::new(&ip(), None).expect("good");
            http.handle(answer.as_bytes()).map(|taken| (taken == answer.len(), http.outcome()))
        };
        assert_eq!(outcome("HTTP/1.1 200 OK\r\n\r\n"), Ok((true, Some(HttpOutcome::Done))));
        assert_eq!(outcome("HTTP/1.0 200 Connection established\nVia: x\n\n"), Ok((true, Some(HttpOutcome::Done))));
        assert_eq!(outcome("HTTP/1.1 200\r\n\r\n"), Ok((true, Some(HttpOutcome::Done))));
        assert_eq!(outcome("HTTP/1.1 407 Proxy\r\nA: b\r\n\r\n"), Ok((true, Some(HttpOutcome::Refused(407)))));
        assert_eq!(
            outcome("HTTP/1.1 100 C\r\n\r\nHTTP/1.1 502 B\r\n\r\n"),
            Ok((true, Some(HttpOutcome::Refused(502))))
        );
        assert_eq!(outcome("HTTP/1.1 200 OK\r\n\r\nSSH-2.0"), Ok((false, Some(HttpOutcome::Done))));
        assert_eq!(outcome("HTTP/1.1 200 OK\r\n"), Ok((true, None)));
        for bad in [
            "SSH-2.0",
            "HTTP/2 200\r\n\r\n",
            "HTTP/1.1 2000 x\r\n\r\n",
            "HTTP/1.1\r\n\r\n",
            "HTTP/1.1 099 x\r\n\r\n",
            "\u{5}\u{ff}",
        ] {
            assert_eq!(outcome(bad), Err(HttpError::NotHttp), "{bad:?}");
        }
        let long = format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(HEAD_MAX));
        assert_eq!(outcome(&long), Err(HttpError::TooLong));
    }

    proptest! {
        #[test]
        fn any_split(cuts in prop::collection::vec(1usize..9, 1..40)) {
            let answer = b"HTTP/1.1 200 OK\r\nProxy-Agent: x\r\n\r\nhello";
            let mut http = HttpConnect::new(&ip(), None).expect("good");
            let (mut at, mut cuts) = (0, cuts.into_iter().cycle());
            while http.outcome().is_none() {
                let end = answer.len().min(at + cuts.next().unwrap_or(1));
                at += http.handle(&answer[at..end]).expect("a good answer");
            }
            prop_assert_eq!(&answer[at..], b"hello");
            prop_assert_eq!(http.handle(b"x"), Ok(0));
        }

        #[test]
        fn any_bytes(data in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut http = HttpConnect::new(&ip(), None).expect("good");
            let _ = http.handle(&data);
            let _ = http.handle(&[b"HTTP/1.", &data[..]].concat());
        }
    }
}
