//! `--proxy`: `socks5://[user[:password]@]host[:port]`, `http://…` with the same parts, or `direct://`.
//!
//! It promises: percent-encoded credentials are decoded, IPv6 addresses stand in brackets, passwords never appear in
//! `Debug` or `Display`. It refuses unknown schemes, paths, queries, and credentials that SOCKS5 cannot carry.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// Longest user name or password, bytes (RFC 1929, section 2: the length is one byte).
const CREDENTIAL_MAX: usize = 255;
/// Longest host name, bytes (RFC 1035, section 3.1, in text form).
const HOST_MAX: usize = 253;

/// What the upstream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// RFC 1928: TCP and UDP.
    Socks5,
    /// RFC 9110, section 9.3.6: TCP alone.
    Http,
    /// No proxy: connections and datagrams leave from this host.
    Direct,
}

impl Scheme {
    /// The name before `://`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Socks5 => "socks5",
            Self::Http => "http",
            Self::Direct => "direct",
        }
    }
}

/// User name and password of a proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// 1 to 255 bytes.
    pub user: String,
    /// 0 to 255 bytes.
    pub password: String,
}

impl Credentials {
    /// Checked credentials.
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Result<Self, UrlError> {
        let (user, password) = (user.into(), password.into());
        if user.is_empty() || user.len() > CREDENTIAL_MAX || password.len() > CREDENTIAL_MAX {
            return Err(UrlError::Credentials);
        }
        Ok(Self { user, password })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// Why a proxy URL is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Not one of the known schemes.
    #[error("unknown proxy scheme {0:?}; use socks5://, http:// or direct://")]
    Scheme(String),
    /// No host, or one that cannot be.
    #[error("the proxy URL has no valid host; write scheme://host:port (IPv6 addresses in brackets)")]
    Host,
    /// No number from 1 to 65535.
    #[error("{0:?} is no port; use 1 to 65535")]
    Port(String),
    /// Too long, or an empty user name.
    #[error("user name and password must have 1 to 255 and 0 to 255 bytes")]
    Credentials,
    /// A `%` without two hexadecimal digits, or bytes that are no UTF-8.
    #[error("the credentials contain a broken percent escape")]
    Escape,
    /// A path, a query, or parts behind `direct://`.
    #[error("unexpected text behind the proxy's address: {0:?}")]
    Tail(String),
}

/// The host of a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An address.
    Ip(IpAddr),
    /// A name to be resolved.
    Name(String),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// A proxy, as its user names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyUrl {
    /// What it speaks.
    pub scheme: Scheme,
    /// Where it is; for `direct` the unspecified address.
    pub host: Host,
    /// Its port; for `direct` 0.
    pub port: u16,
    /// Who we are to it.
    pub credentials: Option<Credentials>,
}

impl fmt::Display for ProxyUrl {
    /// The URL without credentials, fit for logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scheme {
            Scheme::Direct => f.write_str("direct://"),
            scheme => write!(f, "{}://{}:{}", scheme.name(), self.host, self.port),
        }
    }
}

impl FromStr for ProxyUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        // What stands before an @ may be a password, and is not repeated.
        let shown = |text: &str| text.rsplit_once('@').map_or(text, |(_, address)| address).to_owned();
        let (scheme, rest) = text.split_once("://").ok_or_else(|| UrlError::Scheme(shown(text)))?;
        let (scheme, default_port) = match scheme.to_ascii_lowercase().as_str() {
            // `socks5h` says that names are resolved by the proxy, which is how names are always treated here.
            "socks5" | "socks5h" => (Scheme::Socks5, 1080),
            "http" => (Scheme::Http, 8080),
            "direct" => (Scheme::Direct, 0),
            other => return Err(UrlError::Scheme(shown(other))),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if scheme == Scheme::Direct {
            let host = Host::Ip(Ipv6Addr::UNSPECIFIED.into());
            let this = Self { scheme, host, port: 0, credentials: None };
            return if rest.is_empty() { Ok(this) } else { Err(UrlError::Tail(shown(rest))) };
        }
        // The last @ ends the credentials: a raw @ in a password is a common slip that has one reading only.
        let (credentials, address) = match rest.rsplit_once('@') {
            Some((credentials, address)) => (Some(parse_credentials(credentials)?), address),
            None => (None, rest),
        };
        if let Some(at) = address.find(['/', '?', '#']) {
            return Err(UrlError::Tail(address[at..].to_owned()));
        }
        let (host, port) = parse_address(address)?;
        let port = match port {
            None => default_port,
            Some(digits) => match digits.parse() {
                Ok(port) if port != 0 => port,
                _ => return Err(UrlError::Port(digits.to_owned())),
            },
        };
        Ok(Self { scheme, host, port, credentials })
    }
}

fn parse_credentials(text: &str) -> Result<Credentials, UrlError> {
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    Credentials::new(decode(user)?, decode(password)?)
}

fn parse_address(text: &str) -> Result<(Host, Option<&str>), UrlError> {
    if let Some(rest) = text.strip_prefix('[') {
        let (ip, rest) = rest.split_once(']').ok_or(UrlError::Host)?;
        let ip: Ipv6Addr = ip.parse().map_err(|_| UrlError::Host)?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((Host::Ip(ip.into()), Some(port))),
            None if rest.is_empty() => Ok((Host::Ip(ip.into()), None)),
            None => Err(UrlError::Host),
        };
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    // A second colon means an IPv6 address without brackets, whose port nobody can tell.
    if host.is_empty() || host.len() > HOST_MAX || port.is_some_and(|port| port.contains(':')) {
        return Err(UrlError::Host);
    }
    if let Ok(ip) = host.parse() {
        return Ok((Host::Ip(ip), port));
    }
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if host.bytes().all(good) { Ok((Host::Name(host.to_owned()), port)) } else { Err(UrlError::Host) }
}

/// Decodes percent escapes (RFC 3986, section 2.1).
fn decode(text: &str) -> Result<String, UrlError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err(UrlError::Escape) };
        bytes.push((high << 4 | low) as u8);
    }
    String::from_utf8(bytes).map_err(|_| UrlError::Escape)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ProxyUrl, UrlError> {
        text.parse()
    }

    #[test]
    fn every_part_is_read() {
        let url = parse("socks5://al%40ice:p%3Ass@proxy.example:1234").unwrap();
        assert_eq!((url.scheme, url.port), (Scheme::Socks5, 1234));
        assert_eq!(url.host, Host::Name("proxy.example".into()));
        assert_eq!(url.credentials, Some(Credentials::new("al@ice", "p:ss").unwrap()));
        assert_eq!(url.to_string(), "socks5://proxy.example:1234");
        assert!(!format!("{url:?}").contains("p:ss"));
    }

    #[test]
    fn addresses_and_default_ports() {
        let url = parse("socks5://[2001:db8::1]").unwrap();
        assert_eq!((url.to_string().as_str(), url.port), ("socks5://[2001:db8::1]:1080", 1080));
        assert_eq!(parse("http://10.0.0.1/").unwrap().port, 8080);
        assert_eq!(parse("socks5h://10.0.0.1:9").unwrap().scheme, Scheme::Socks5);
        assert_eq!(parse("direct://").unwrap().scheme, Scheme::Direct);
        assert_eq!(parse("socks5://u@h").unwrap().credentials, Some(Credentials::new("u", "").unwrap()));
        assert_eq!(parse("socks5://u:a@b@h").unwrap().credentials, Some(Credentials::new("u", "a@b").unwrap()));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        assert_eq!(parse("socks4://h"), Err(UrlError::Scheme("socks4".into())));
        assert_eq!(parse("h:1080"), Err(UrlError::Scheme("h:1080".into())));
        assert_eq!(parse("socks5://"), Err(UrlError::Host));
        assert_eq!(parse("socks5://2001:db8::1"), Err(UrlError::Host));
        assert_eq!(parse("socks5://[::1"), Err(UrlError::Host));
        assert_eq!(parse("socks5://a b"), Err(UrlError::Host));
        assert_eq!(parse("socks5://h:0"), Err(UrlError::Port("0".into())));
        assert_eq!(parse("socks5://h:65536"), Err(UrlError::Port("65536".into())));
        assert_eq!(parse("socks5://h/x"), Err(UrlError::Tail("/x".into())));
        assert_eq!(parse("socks5://:p@h"), Err(UrlError::Credentials));
        assert_eq!(parse("socks5://%zz@h"), Err(UrlError::Escape));
        assert_eq!(parse("direct://x"), Err(UrlError::Tail("x".into())));
        assert_eq!(parse("u:secret@h:1"), Err(UrlError::Scheme("h:1".into())));
        assert_eq!(parse("direct://u:secret@h"), Err(UrlError::Tail("h".into())));
    }
}
