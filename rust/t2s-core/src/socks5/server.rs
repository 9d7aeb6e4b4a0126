//! The server's side, for a small proxy: greeting, password, request; the caller answers.

use super::address::{Address, AddressRef, needed};
use super::client::{Command, Stage};
use super::exchange::{Exchange, State};
use super::{AUTH_VERSION, Credentials, Error, METHOD_NONE, METHOD_PASSWORD, METHOD_REFUSED, Reply, VERSION};

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The command; BIND is answered with [`Reply::CommandNotSupported`] before it comes to this.
    pub command: Command,
    /// The target.
    pub target: Address,
}

/// How far the client came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerOutcome {
    /// It has asked; answer with [`ServerHandshake::reply`].
    Request(Request),
    /// It was refused; close once everything is sent.
    Refused,
}

/// A handshake with a client.
#[derive(Debug)]
pub struct ServerHandshake {
    exchange: Exchange<ServerOutcome>,
    /// What a client must know; `None` lets everybody in.
    credentials: Option<Credentials>,
}

impl ServerHandshake {
    /// A handshake that lets clients in that know `credentials`, or all.
    pub fn new(credentials: Option<Credentials>) -> Self {
        Self { exchange: Exchange::new(), credentials }
    }

    /// Bytes to be sent to the client now; report what was taken with [`ServerHandshake::handle_sent`].
    #[must_use]
    pub fn poll_transmit(&self) -> Option<&[u8]> {
        self.exchange.out.rest()
    }

    /// `n` more bytes were sent.
    pub fn handle_sent(&mut self, n: usize) {
        self.exchange.out.handle_sent(n);
    }

    /// Takes bytes from the client; returns how many were taken. Those that were not belong to the stream. After an
    /// error, send what there is to send and close.
    pub fn handle(&mut self, data: &[u8]) -> Result<usize, Error> {
        let mut taken = 0;
        while let Some(stage) = self.exchange.next_message(data, &mut taken, message_len)? {
            let next = match stage {
                Stage::Method => self.greeting(),
                Stage::Password => self.password(),
                Stage::Request => self.request(),
                Stage::Over => return Ok(taken),
            };
            self.exchange.proceed(next)?;
        }
        Ok(taken)
    }

    /// How far the client came, once it is over.
    pub fn outcome(&self) -> Option<&ServerOutcome> {
        self.exchange.outcome()
    }

    /// What it waits for.
    pub fn stage(&self) -> Stage {
        self.exchange.stage()
    }

    /// Answers the request.
    pub fn reply(&mut self, reply: Reply, bound: &Address) {
        let out = self.exchange.out.tail();
        out.extend_from_slice(&[VERSION, reply.code(), 0]);
        bound.emit(out);
    }

    fn greeting(&mut self) -> Result<State<ServerOutcome>, Error> {
        let message = self.exchange.message();
        let [version, _, methods @ ..] = message else {
            return Err(Error::BadVersion(message.first().copied().unwrap_or(0)));
        };
        if *version != VERSION {
            return Err(Error::BadVersion(*version));
        }
        let (method, next) = match self.credentials {
            Some(_) => (METHOD_PASSWORD, State::Password),
            None => (METHOD_NONE, State::Request),
        };
        if !methods.contains(&method) {
            self.exchange.out.tail().extend_from_slice(&[VERSION, METHOD_REFUSED]);
            return Err(Error::NoAcceptableMethod);
        }
        self.exchange.out.tail().extend_from_slice(&[VERSION, method]);
        Ok(next)
    }

    fn password(&mut self) -> Result<State<ServerOutcome>, Error> {
        let bytes = self.exchange.message();
        let version = bytes.first().copied().unwrap_or(0);
        if version != AUTH_VERSION {
            return Err(Error::BadAuthVersion(version));
        }
        let user_len = usize::from(bytes.get(1).copied().unwrap_or(0));
        let user = bytes.get(2..2 + user_len).unwrap_or_default();
        let password = bytes.get(3 + user_len..).unwrap_or_default();
        let right =
            self.credentials.as_ref().is_none_or(|known| same(known.user(), user) & same(known.password(), password));
        self.exchange.out.tail().extend_from_slice(&[AUTH_VERSION, u8::from(!right)]);
        if right { Ok(State::Request) } else { Err(Error::AuthenticationFailed(1)) }
    }

    fn request(&mut self) -> Result<State<ServerOutcome>, Error> {
        let bytes = self.exchange.message();
        let &[version, command, ..] = bytes else { return Err(Error::BadAddress) };
        if version != VERSION {
            return Err(Error::BadVersion(version));
        }
        let Ok(Some((target, _))) = AddressRef::parse(bytes.get(3..).unwrap_or_default()) else {
            self.refuse(Reply::AddressTypeNotSupported);
            return Err(Error::BadAddress);
        };
        let target = target.to_owned()?;
        if target.check().is_err() {
            self.refuse(Reply::GeneralFailure);
            return Err(Error::BadDomain);
        }
        let command = match command {
            1 => Command::Connect,
            3 => Command::UdpAssociate,
            2 => {
                self.refuse(Reply::CommandNotSupported);
                return Ok(State::Over(ServerOutcome::Refused));
            }
            other => {
                self.refuse(Reply::CommandNotSupported);
                return Err(Error::BadCommand(other));
            }
        };
        Ok(State::Over(ServerOutcome::Request(Request { command, target })))
    }

    fn refuse(&mut self, reply: Reply) {
        self.reply(reply, &Address::Ip(core::net::SocketAddr::from(([0, 0, 0, 0], 0))));
    }
}

/// Compares without a hint of where the first difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |seen, (a, b)| seen | (a ^ b)) == 0
}

/// Bytes of the message that a stage waits for; see [`Exchange::next_message`].
fn message_len(stage: Stage, known: &[u8]) -> usize {
    match stage {
        Stage::Method => greeting_len(known),
        Stage::Password => password_len(known),
        Stage::Request => request_len(known),
        Stage::Over => 0,
    }
}

fn greeting_len(known: &[u8]) -> usize {
    match *known {
        [VERSION, methods, ..] => 2 + usize::from(methods),
        [] | [VERSION] => 2,
        [..] => 1,
    }
}

fn password_len(known: &[u8]) -> usize {
    let [AUTH_VERSION, user_len, rest @ ..] = known else {
        return if known.first().is_none_or(|&version| version == AUTH_VERSION) { 2 } else { 1 };
    };
    let user_len = usize::from(*user_len);
    match rest.get(user_len) {
        Some(password_len) => 3 + user_len + usize::from(*password_len),
        None => 3 + user_len,
    }
}

fn request_len(known: &[u8]) -> usize {
    match known {
        [VERSION, _, _, address @ ..] => 3 + needed(address).unwrap_or(address.len()),
        [] | [VERSION, ..] => 5,
        [..] => 1,
    }
}
