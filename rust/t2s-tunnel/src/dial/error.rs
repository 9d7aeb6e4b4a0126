//! Why a connection could not be made, and what the client is told on the wire.

use std::fmt;
use std::io;

use t2s_core::stack::Refusal;

/// Why a connection could not be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// The proxy said no: SOCKS5 reply code 1 to 255.
    Reply(u8),
    /// An HTTP proxy said no: its status.
    Status(u16),
    /// The proxy wants other credentials, or ours are wrong.
    Credentials,
    /// The proxy does not speak what we speak.
    Protocol(String),
    /// The proxy closed the connection during the handshake.
    Closed,
    /// The proxy itself cannot be reached.
    Proxy(io::ErrorKind, Option<i32>),
    /// Without a proxy: the target cannot be reached.
    Target(io::ErrorKind, Option<i32>),
    /// This host has no socket, memory or right for it.
    System(io::ErrorKind, Option<i32>),
}

impl ConnectError {
    /// Kinds of failure that are counted apart.
    pub const KINDS: usize = 18;

    /// Their stable names, by [`ConnectError::index`].
    pub const NAMES: [&'static str; Self::KINDS] = [
        "socks_00_odd",
        "socks_01_general",
        "socks_02_not_allowed",
        "socks_03_net_unreachable",
        "socks_04_host_unreachable",
        "socks_05_refused",
        "socks_06_ttl_expired",
        "socks_07_command",
        "socks_08_address_type",
        "socks_other",
        "http_status",
        "credentials",
        "protocol",
        "closed",
        "proxy_unreachable",
        "target_refused",
        "target_unreachable",
        "system",
    ];

    /// A failed call on this host.
    pub fn system(error: &io::Error) -> Self {
        Self::System(error.kind(), error.raw_os_error())
    }

    /// Where it is counted.
    pub fn index(&self) -> usize {
        match self {
            Self::Reply(code) => usize::from((*code).min(9)),
            Self::Status(_) => 10,
            Self::Credentials => 11,
            Self::Protocol(_) => 12,
            Self::Closed => 13,
            Self::Proxy(..) => 14,
            Self::Target(io::ErrorKind::ConnectionRefused, _) => 15,
            Self::Target(..) => 16,
            Self::System(..) => 17,
        }
    }

    /// Whether the proxy, not the target, is the trouble.
    pub fn is_proxy(&self) -> bool {
        matches!(self, Self::Proxy(..) | Self::Protocol(_) | Self::Closed)
    }

    /// What the client is told: the wire's truth about its target, as far as it is known.
    pub fn refusal(&self) -> Refusal {
        match self {
            // RFC 1928, section 6.
            Self::Reply(2) | Self::Status(403) | Self::Credentials => Refusal::Prohibited,
            Self::Reply(3) => Refusal::NetUnreachable,
            Self::Reply(4) => Refusal::HostUnreachable,
            Self::Reply(5) => Refusal::Refused,
            Self::Reply(6) | Self::Status(504) => Refusal::Timeout,
            Self::Proxy(_, code) | Self::Target(_, code) => by_errno(*code),
            Self::Reply(_) | Self::Status(_) | Self::Protocol(_) | Self::Closed | Self::System(..) => Refusal::Failed,
        }
    }
}

fn by_errno(code: Option<i32>) -> Refusal {
    match code {
        Some(libc::ECONNREFUSED) => Refusal::Refused,
        Some(libc::EHOSTUNREACH | libc::EHOSTDOWN) => Refusal::HostUnreachable,
        Some(libc::ENETUNREACH | libc::ENETDOWN) => Refusal::NetUnreachable,
        Some(libc::EACCES | libc::EPERM) => Refusal::Prohibited,
        Some(libc::ETIMEDOUT) => Refusal::Timeout,
        _ => Refusal::Failed,
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let system = |f: &mut fmt::Formatter<'_>, what: &str, kind: io::ErrorKind, code: Option<i32>| match code {
            Some(code) => write!(f, "{what}: {}", io::Error::from_raw_os_error(code)),
            None => write!(f, "{what}: {kind}"),
        };
        match self {
            Self::Reply(code) => {
                let meaning = match code {
                    1 => "general failure",
                    2 => "not allowed by its rules",
                    3 => "network unreachable",
                    4 => "host unreachable",
                    5 => "connection refused",
                    6 => "TTL expired",
                    7 => "command not supported",
                    8 => "address type not supported",
                    _ => "unknown reply",
                };
                write!(f, "the proxy answered {code:02}, {meaning}")
            }
            Self::Status(status) => write!(f, "the proxy answered HTTP status {status}"),
            Self::Credentials => f.write_str("the proxy does not accept our credentials"),
            Self::Protocol(what) => write!(f, "the proxy does not speak the protocol: {what}"),
            Self::Closed => f.write_str("the proxy closed the connection during the handshake"),
            Self::Proxy(kind, code) => system(f, "the proxy cannot be reached", *kind, *code),
            Self::Target(kind, code) => system(f, "the target cannot be reached", *kind, *code),
            Self::System(kind, code) => system(f, "no connection from this host", *kind, *code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_told_as_the_wire_would() {
        let cases = [
            (ConnectError::Reply(5), Refusal::Refused),
            (ConnectError::Reply(4), Refusal::HostUnreachable),
            (ConnectError::Reply(3), Refusal::NetUnreachable),
            (ConnectError::Reply(2), Refusal::Prohibited),
            (ConnectError::Reply(1), Refusal::Failed),
            (ConnectError::Target(io::ErrorKind::TimedOut, Some(libc::ETIMEDOUT)), Refusal::Timeout),
            (ConnectError::Target(io::ErrorKind::ConnectionRefused, Some(libc::ECONNREFUSED)), Refusal::Refused),
        ];
        for (failure, refusal) in cases {
            assert_eq!(failure.refusal(), refusal, "{failure}");
            assert!(failure.index() < ConnectError::KINDS);
        }
        for code in 0..=255 {
            assert!(ConnectError::Reply(code).index() <= 9);
        }
    }
}
