//! The client's side: greeting, password, request, reply.
//!
//! With `pipelined` everything is sent at once, before the proxy has said a word: one round trip instead of two or
//! three. That works with proxies that read exactly one message at a time (as any that uses a stream properly does); a
//! proxy that throws away what came with the greeting will then never answer, and the caller may try again without.

use core::fmt;

use super::address::{Address, AddressRef, needed};
use super::exchange::{Exchange, State};
use super::{AUTH_VERSION, Credentials, Error, METHOD_NONE, METHOD_PASSWORD, METHOD_REFUSED, Reply, VERSION};

/// What the proxy shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Connect to the target.
    Connect,
    /// Relay datagrams (RFC 1928, section 7); the target is where they will come from, unspecified if not known.
    UdpAssociate,
}

impl Command {
    /// The code of RFC 1928, section 4.
    const fn code(self) -> u8 {
        match self {
            Self::Connect => 1,
            Self::UdpAssociate => 3,
        }
    }
}

/// What the handshake waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The proxy's choice of a method.
    Method,
    /// Its verdict on the password.
    Password,
    /// Its reply to the request (or, at a server, the request).
    Request,
    /// Nothing: it is over.
    Over,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Method => "method selection",
            Self::Password => "authentication",
            Self::Request => "request",
            Self::Over => "over",
        })
    }
}

/// How a handshake ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The stream (or the association) is open; the proxy's address at its other side, or of its relay.
    Done {
        /// BND.ADDR and BND.PORT.
        bound: Address,
    },
    /// The proxy refused the request; never [`Reply::Succeeded`].
    Refused(Reply),
}

/// A handshake with a proxy.
#[derive(Debug)]
pub struct Handshake {
    exchange: Exchange<Outcome>,
    /// Credentials that will be sent if the proxy asks; `None` also when they were sent already.
    credentials: Option<Credentials>,
    /// The methods that were offered.
    offered: &'static [u8],
    /// The request, when it was not sent yet.
    request: Vec<u8>,
    pipelined: bool,
}

impl Handshake {
    /// A handshake that asks for `command` on `target`. With credentials the password method is offered, and "none"
    /// beside it unless `pipelined` (the password could not be sent along otherwise).
    pub fn new(
        target: &Address,
        command: Command,
        credentials: Option<Credentials>,
        pipelined: bool,
    ) -> Result<Self, Error> {
        let mut handshake = Self::greeting(credentials, pipelined);
        handshake.ask(target, command)?;
        Ok(handshake)
    }

    /// A handshake whose request is not known yet: it greets, says who we are, and then waits for [`Handshake::ask`].
    pub fn greeting(credentials: Option<Credentials>, pipelined: bool) -> Self {
        let offered: &[u8] = match (&credentials, pipelined) {
            (None, _) => &[METHOD_NONE],
            (Some(_), true) => &[METHOD_PASSWORD],
            (Some(_), false) => &[METHOD_NONE, METHOD_PASSWORD],
        };
        let mut handshake = Self { exchange: Exchange::new(), credentials, offered, request: Vec::new(), pipelined };
        let out = handshake.exchange.out.tail();
        out.extend_from_slice(&[VERSION, offered.len() as u8]);
        out.extend_from_slice(offered);
        if pipelined {
            handshake.send_password();
        }
        handshake
    }

    /// Asks for `command` on `target`: now if the proxy is ready for it or the handshake is pipelined, else as soon as
    /// it is. To be called once.
    pub fn ask(&mut self, target: &Address, command: Command) -> Result<(), Error> {
        target.check()?;
        self.request.reserve(3 + super::address::ADDRESS_MAX);
        self.request.extend_from_slice(&[VERSION, command.code(), 0]);
        target.emit(&mut self.request);
        if self.pipelined || self.stage() == Stage::Request {
            self.send_request();
        }
        Ok(())
    }

    /// Bytes to be sent to the proxy now; report what was taken with [`Handshake::handle_sent`].
    #[must_use]
    pub fn poll_transmit(&self) -> Option<&[u8]> {
        self.exchange.out.rest()
    }

    /// `n` more bytes were sent.
    pub fn handle_sent(&mut self, n: usize) {
        self.exchange.out.handle_sent(n);
    }

    /// Takes bytes from the proxy; returns how many were taken. Those that were not belong to the stream behind the
    /// handshake (there are some only once [`Handshake::outcome`] is there).
    pub fn handle(&mut self, data: &[u8]) -> Result<usize, Error> {
        let mut taken = 0;
        while let Some(stage) = self.exchange.next_message(data, &mut taken, message_len)? {
            let next = match stage {
                Stage::Method => self.method(),
                Stage::Password => self.password(),
                Stage::Request => self.reply(),
                Stage::Over => return Ok(taken),
            };
            self.exchange.proceed(next)?;
        }
        Ok(taken)
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.exchange.outcome()
    }

    /// What it waits for: what to blame when the time is over or the proxy hangs up ([`Error::Closed`]).
    pub fn stage(&self) -> Stage {
        self.exchange.stage()
    }

    fn method(&mut self) -> Result<State<Outcome>, Error> {
        let (version, method) = self.pair();
        if version != VERSION {
            return Err(Error::BadVersion(version));
        }
        if method == METHOD_REFUSED {
            return Err(Error::NoAcceptableMethod);
        }
        if !self.offered.contains(&method) {
            return Err(Error::UnofferedMethod(method));
        }
        if method == METHOD_PASSWORD {
            self.send_password();
            return Ok(State::Password);
        }
        self.send_request();
        Ok(State::Request)
    }

    fn password(&mut self) -> Result<State<Outcome>, Error> {
        let (version, status) = self.pair();
        // RFC 1929 says 1; some servers answer with the protocol's 5 and are let through.
        if version != AUTH_VERSION && version != VERSION {
            return Err(Error::BadAuthVersion(version));
        }
        if status != 0 {
            return Err(Error::AuthenticationFailed(status));
        }
        self.send_request();
        Ok(State::Request)
    }

    fn reply(&mut self) -> Result<State<Outcome>, Error> {
        let (version, code) = self.pair();
        if version != VERSION {
            return Err(Error::BadVersion(version));
        }
        let reply = Reply::from_code(code);
        if reply != Reply::Succeeded {
            return Ok(State::Over(Outcome::Refused(reply)));
        }
        let address = self.exchange.message().get(3..).unwrap_or_default();
        match AddressRef::parse(address)? {
            Some((bound, _)) => Ok(State::Over(Outcome::Done { bound: bound.to_owned()? })),
            None => Err(Error::BadAddress),
        }
    }

    /// The first two bytes of a message that is here.
    fn pair(&self) -> (u8, u8) {
        match *self.exchange.message() {
            [first, second, ..] => (first, second),
            [..] => (0, 0),
        }
    }

    fn send_password(&mut self) {
        if let Some(credentials) = self.credentials.take() {
            let out = self.exchange.out.tail();
            out.extend_from_slice(&[AUTH_VERSION, credentials.user().len() as u8]);
            out.extend_from_slice(credentials.user());
            out.push(credentials.password().len() as u8);
            out.extend_from_slice(credentials.password());
        }
    }

    fn send_request(&mut self) {
        self.exchange.out.tail().append(&mut self.request);
    }

    /// Whether everything was sent at once.
    pub fn is_pipelined(&self) -> bool {
        self.pipelined
    }
}

/// Bytes of the message that a stage waits for; see [`Exchange::next_message`].
fn message_len(stage: Stage, known: &[u8]) -> usize {
    match stage {
        Stage::Method | Stage::Password => 2,
        Stage::Request => reply_len(known),
        Stage::Over => 0,
    }
}

/// Bytes of a reply, or of what must be known next. A refusal is known by its first two bytes: some proxies send no
/// more before they close. A malformed address ends where that is seen.
fn reply_len(known: &[u8]) -> usize {
    match known {
        [VERSION, 0, _, address @ ..] => 3 + needed(address).unwrap_or(address.len()),
        [VERSION, 0] => 5,
        [VERSION] | [] => 2,
        // Another version, or a refusal.
        [_] | [_, _, ..] => known.len().clamp(1, 2),
    }
}
