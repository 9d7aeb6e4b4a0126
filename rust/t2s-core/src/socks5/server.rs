//! The server's side, for a small proxy: greeting, password, request; the caller answers.

use super::address::{Address, AddressRef, needed};
use super::client::{Command, Stage};
use super::{AUTH_VERSION, Credentials, Error, Inbox, METHOD_NONE, METHOD_PASSWORD, METHOD_REFUSED, Reply, VERSION};

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

#[derive(Debug)]
enum State {
    Greeting,
    Password,
    Request,
    Over(ServerOutcome),
    Failed,
}

/// A handshake with a client.
#[derive(Debug)]
pub struct ServerHandshake {
    state: State,
    /// What a client must know; `None` lets everybody in.
    credentials: Option<Credentials>,
    out: Vec<u8>,
    sent: usize,
    inbox: Inbox,
}

impl ServerHandshake {
    /// A handshake that lets clients in that know `credentials`, or all.
    pub fn new(credentials: Option<Credentials>) -> Self {
        Self { state: State::Greeting, credentials, out: Vec::new(), sent: 0, inbox: Inbox::default() }
    }

    /// Bytes to be sent to the client now; report what was taken with [`ServerHandshake::handle_sent`].
    #[must_use]
    pub fn poll_transmit(&self) -> Option<&[u8]> {
        self.out.get(self.sent..).filter(|rest| !rest.is_empty())
    }

    /// `n` more bytes were sent.
    pub fn handle_sent(&mut self, n: usize) {
        self.sent = (self.sent + n).min(self.out.len());
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        }
    }

    /// Takes bytes from the client; returns how many were taken. Those that were not belong to the stream. After an
    /// error, send what there is to send and close.
    pub fn handle(&mut self, data: &[u8]) -> Result<usize, Error> {
        let mut taken = 0;
        loop {
            let rest = data.get(taken..).unwrap_or_default();
            let (used, whole) = match self.state {
                State::Greeting => self.inbox.fill(rest, greeting_len),
                State::Password => self.inbox.fill(rest, password_len),
                State::Request => self.inbox.fill(rest, request_len),
                State::Over(_) => return Ok(taken),
                State::Failed => return Err(Error::AlreadyFailed),
            };
            taken += used;
            if !whole {
                return Ok(taken);
            }
            let result = match self.state {
                State::Greeting => self.greeting(),
                State::Password => self.password(),
                State::Request => self.request(),
                State::Over(_) | State::Failed => return Ok(taken),
            };
            self.inbox.clear();
            match result {
                Ok(next) => self.state = next,
                Err(error) => {
                    self.state = State::Failed;
                    return Err(error);
                }
            }
        }
    }

    /// How far the client came, once it is over.
    pub fn outcome(&self) -> Option<&ServerOutcome> {
        match &self.state {
            State::Over(outcome) => Some(outcome),
            State::Greeting | State::Password | State::Request | State::Failed => None,
        }
    }

    /// What it waits for.
    pub fn stage(&self) -> Stage {
        match self.state {
            State::Greeting => Stage::Method,
            State::Password => Stage::Password,
            State::Request => Stage::Request,
            State::Over(_) | State::Failed => Stage::Over,
        }
    }

    /// Answers the request.
    pub fn reply(&mut self, reply: Reply, bound: &Address) {
        self.out.extend_from_slice(&[VERSION, reply.code(), 0]);
        bound.emit(&mut self.out);
    }

    fn greeting(&mut self) -> Result<State, Error> {
        let [version, _, methods @ ..] = &*self.inbox.bytes else {
            return Err(Error::BadVersion(self.inbox.bytes.first().copied().unwrap_or(0)));
        };
        if *version != VERSION {
            return Err(Error::BadVersion(*version));
        }
        let (method, next) = match self.credentials {
            Some(_) => (METHOD_PASSWORD, State::Password),
            None => (METHOD_NONE, State::Request),
        };
        if !methods.contains(&method) {
            self.out.extend_from_slice(&[VERSION, METHOD_REFUSED]);
            return Err(Error::NoAcceptableMethod);
        }
        self.out.extend_from_slice(&[VERSION, method]);
        Ok(next)
    }

    fn password(&mut self) -> Result<State, Error> {
        let bytes = &*self.inbox.bytes;
        let version = bytes.first().copied().unwrap_or(0);
        if version != AUTH_VERSION {
            return Err(Error::BadAuthVersion(version));
        }
        let user_len = usize::from(bytes.get(1).copied().unwrap_or(0));
        let user = bytes.get(2..2 + user_len).unwrap_or_default();
        let password = bytes.get(3 + user_len..).unwrap_or_default();
        let right =
            self.credentials.as_ref().is_none_or(|known| same(known.user(), user) & same(known.password(), password));
        self.out.extend_from_slice(&[AUTH_VERSION, u8::from(!right)]);
        if right { Ok(State::Request) } else { Err(Error::AuthenticationFailed(1)) }
    }

    fn request(&mut self) -> Result<State, Error> {
        let bytes = &*self.inbox.bytes;
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
