//! What is said to a proxy: the core's SOCKS5 and HTTP CONNECT handshakes behind one face.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use t2s_core::http_connect::{HttpConnect, HttpOutcome};
use t2s_core::socks5::{Address, Command, Credentials, Error, Handshake, Outcome, Stage};

use super::endpoint::ProxyEndpoint;
use super::error::ConnectError;
use super::target::Target;
use super::url::Scheme;

/// A conversation with a proxy.
#[derive(Debug)]
pub(super) enum ProxyHandshake {
    Socks(Box<Handshake>),
    Http(Box<HttpConnect>),
}

/// What a proxy has agreed to: the address it has bound, if it tells.
#[derive(Debug)]
pub(super) struct Negotiated {
    pub(super) bound: Option<Address>,
}

impl ProxyHandshake {
    /// The conversation that a endpoint and a target call for; `None` without a proxy.
    pub(super) fn new(endpoint: &ProxyEndpoint, target: &Target) -> Result<Option<Self>, ConnectError> {
        let (address, command) = request(target);
        match (endpoint.scheme, command) {
            (Scheme::Direct, _) => Ok(None),
            (Scheme::Socks5, command) => {
                let handshake =
                    Handshake::new(&address, command, credentials(endpoint)?, endpoint.pipelined).map_err(socks)?;
                Ok(Some(Self::Socks(Box::new(handshake))))
            }
            (Scheme::Http, Command::Connect) => {
                let handshake = HttpConnect::new(&address, credentials(endpoint)?.as_ref())
                    .map_err(|error| ConnectError::Protocol(error.to_string()))?;
                Ok(Some(Self::Http(Box::new(handshake))))
            }
            (Scheme::Http, Command::UdpAssociate) => Err(ConnectError::Reply(7)),
        }
    }

    /// What can be said before the target is known: the greeting of a SOCKS5 proxy that wants to hear it apart.
    pub(super) fn greeting(endpoint: &ProxyEndpoint) -> Result<Option<Self>, ConnectError> {
        if endpoint.scheme != Scheme::Socks5 || endpoint.pipelined {
            return Ok(None);
        }
        Ok(Some(Self::Socks(Box::new(Handshake::greeting(credentials(endpoint)?, false)))))
    }

    /// Whether all that can be said without a target is said and answered.
    pub(super) fn wants_target(&self) -> bool {
        match self {
            Self::Socks(handshake) => handshake.stage() == Stage::Request && handshake.poll_transmit().is_none(),
            Self::Http(_) => false,
        }
    }

    /// Names the target that [`ProxyHandshake::greeting`] did not know.
    pub(super) fn ask(&mut self, target: &Target) -> Result<(), ConnectError> {
        let (address, command) = request(target);
        match self {
            Self::Socks(handshake) => handshake.ask(&address, command).map_err(socks),
            Self::Http(_) => Err(ConnectError::Protocol("an HTTP request names its target".into())),
        }
    }

    /// What is to be sent now.
    pub(super) fn transmit(&self) -> Option<&[u8]> {
        match self {
            Self::Socks(handshake) => handshake.poll_transmit(),
            Self::Http(handshake) => handshake.poll_transmit(),
        }
    }

    /// So much of it was sent.
    pub(super) fn sent(&mut self, len: usize) {
        match self {
            Self::Socks(handshake) => handshake.handle_sent(len),
            Self::Http(handshake) => handshake.handle_sent(len),
        }
    }

    /// Takes what the proxy says; answers how many bytes of it were the proxy's own.
    pub(super) fn handle(&mut self, bytes: &[u8]) -> Result<usize, ConnectError> {
        match self {
            Self::Socks(handshake) => handshake.handle(bytes).map_err(socks),
            Self::Http(handshake) => handshake.handle(bytes).map_err(|error| ConnectError::Protocol(error.to_string())),
        }
    }

    /// How the conversation has ended, once it has.
    pub(super) fn outcome(&self) -> Option<Result<Negotiated, ConnectError>> {
        match self {
            Self::Socks(handshake) => handshake.outcome().map(|outcome| match outcome {
                Outcome::Done { bound } => Ok(Negotiated { bound: Some(bound.clone()) }),
                Outcome::Refused(reply) => Err(ConnectError::Reply(reply.code())),
            }),
            Self::Http(handshake) => handshake.outcome().map(|outcome| match outcome {
                HttpOutcome::Done => Ok(Negotiated { bound: None }),
                HttpOutcome::Refused(407) => Err(ConnectError::Credentials),
                HttpOutcome::Refused(status) => Err(ConnectError::Status(status)),
            }),
        }
    }
}

fn request(target: &Target) -> (Address, Command) {
    match target {
        Target::Ip(address) => (Address::Ip(*address), Command::Connect),
        Target::Domain(name, port) => (Address::Domain(name.as_str().into(), *port), Command::Connect),
        // Where datagrams will come from is not known yet (RFC 1928, section 4: all zeros).
        Target::Associate => {
            let any = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
            (Address::Ip(any), Command::UdpAssociate)
        }
    }
}

fn credentials(endpoint: &ProxyEndpoint) -> Result<Option<Credentials>, ConnectError> {
    let known = endpoint.credentials.as_ref();
    known.map(|known| Credentials::new(known.user.as_bytes(), known.password.as_bytes()).map_err(socks)).transpose()
}

fn socks(error: Error) -> ConnectError {
    match error {
        Error::NoAcceptableMethod | Error::AuthenticationFailed(_) | Error::CredentialsTooLong => {
            ConnectError::Credentials
        }
        Error::Closed(_) => ConnectError::Closed,
        other => ConnectError::Protocol(other.to_string()),
    }
}
