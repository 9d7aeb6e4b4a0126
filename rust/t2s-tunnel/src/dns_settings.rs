//! What the settings say about DNS, checked: which queries end here, and where they go from here.
//!
//! A query is *ours* when it was sent to `dns_listen`, or anywhere with `dns_hijack`. In fake-IP mode ours are
//! answered by the tunnel; in the other modes they travel to `dns_server`. It refuses what could not work: fake
//! addresses without a proxy that resolves names, ours without a server, ranges without room.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use t2s_core::dns::{FakePool, FakeRange, FakeRanges, Name};

use crate::config::{ConfigError, DnsMode, TunnelConfig};
use crate::dial::Scheme;
use crate::dial::url::Host;

/// The port of DNS.
pub(crate) const DNS: u16 = 53;

/// Checked settings.
#[derive(Clone, Debug)]
pub(crate) struct DnsSettings {
    /// Addresses at which the tunnel is a name server.
    pub(super) own: Vec<IpAddr>,
    /// It is one at every other address too.
    pub(super) hijack: bool,
    /// Where queries go that are not answered here.
    pub(super) server: Option<SocketAddr>,
    /// The ranges of fake addresses; without them nothing is answered here.
    pub(super) ranges: Option<FakeRanges>,
    /// The proxy's own name, if it is given by one: a fake address for it would lead the tunnel into itself.
    pub(super) proxy: Option<Name>,
}

fn refuse(key: &'static str, why: impl Into<String>) -> ConfigError {
    ConfigError::Dns { key, why: why.into() }
}

impl DnsSettings {
    /// Reads and checks the settings.
    pub(crate) fn new(config: &TunnelConfig) -> Result<Self, ConfigError> {
        let v4 = range::<Ipv4Addr>("fake_ip_v4", &config.fake_ip_v4)?;
        let v6 = range::<Ipv6Addr>("fake_ip_v6", &config.fake_ip_v6)?;
        let mut own = config.dns_listen.as_deref().map_or(Ok(Vec::new()), addresses)?;
        let server = config.dns_server.as_deref().map(server).transpose()?;
        let hijack = config.dns_hijack;
        if config.dns != DnsMode::FakeIp {
            if server.is_none() && (hijack || !own.is_empty()) {
                let key = if hijack { "dns_hijack" } else { "dns_listen" };
                return Err(refuse(key, "needs dns_server: only dns = \"fake-ip\" has answers of its own"));
            }
            return Ok(Self { own, hijack, server, ranges: None, proxy: None });
        }
        let url = config.proxy_url()?;
        if url.scheme == Scheme::Direct {
            return Err(refuse("dns", "fake-ip needs a proxy that resolves names, and direct:// is none"));
        }
        if v4.is_none() && v6.is_none() {
            return Err(refuse("fake_ip_v4", "fake-ip needs a range here or in fake_ip_v6"));
        }
        // Neither range is broken by itself, so both together are good.
        let ranges = FakeRanges::new(v4, v6).ok_or_else(|| refuse("fake_ip_v4", "the range has no room"))?;
        if own.is_empty() {
            own = ranges.first().collect();
        }
        if FakePool::new(ranges, &own, [0; 4]).is_none() {
            return Err(refuse("dns_listen", "leaves no room for a name in the fake ranges"));
        }
        if server.is_some_and(|server| ranges.contains(server.ip())) {
            return Err(refuse("dns_server", "lies in a range of fake addresses"));
        }
        let proxy = match &url.host {
            Host::Name(name) => Name::from_text(name),
            Host::Ip(_) => None,
        };
        Ok(Self { own, hijack, server, ranges: Some(ranges), proxy })
    }
}

/// Addresses of one family, as [`FakeRanges::new`] takes them.
trait Family: FromStr + Copy {
    const WORD: &'static str;
    fn has_room(range: FakeRange<Self>) -> bool;
}

impl Family for Ipv4Addr {
    const WORD: &'static str = "an IPv4 range such as 198.18.0.0/15";

    fn has_room(range: FakeRange<Self>) -> bool {
        FakeRanges::new(Some(range), None).is_some()
    }
}

impl Family for Ipv6Addr {
    const WORD: &'static str = "an IPv6 range such as fc00::/18";

    fn has_room(range: FakeRange<Self>) -> bool {
        FakeRanges::new(None, Some(range)).is_some()
    }
}

/// A range; `off` and the empty word are none.
fn range<A: Family>(key: &'static str, text: &str) -> Result<Option<FakeRange<A>>, ConfigError> {
    if text.is_empty() || text == "off" {
        return Ok(None);
    }
    let parsed = text
        .split_once('/')
        .and_then(|(base, prefix)| Some(FakeRange { base: base.parse::<A>().ok()?, prefix: prefix.parse().ok()? }));
    let range = parsed.ok_or_else(|| refuse(key, format!("{text:?} is not {}, or off", A::WORD)))?;
    if A::has_room(range) { Ok(Some(range)) } else { Err(refuse(key, format!("{text:?} has no room for a name"))) }
}

/// Addresses with commas between.
fn addresses(text: &str) -> Result<Vec<IpAddr>, ConfigError> {
    let one = |word: &str| {
        let address: IpAddr =
            word.trim().parse().map_err(|_| refuse("dns_listen", format!("{word:?} is no IP address")))?;
        if address.is_unspecified() || address.is_multicast() {
            return Err(refuse("dns_listen", format!("nobody can send to {address}")));
        }
        Ok(address)
    };
    text.split(',').map(one).collect()
}

/// An address with or without a port.
fn server(text: &str) -> Result<SocketAddr, ConfigError> {
    let ip = |text: &str| text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, DNS));
    let parsed = text.parse().ok().or_else(|| ip(text));
    let good = parsed.filter(|server: &SocketAddr| server.port() != 0 && !server.ip().is_unspecified());
    good.ok_or_else(|| refuse("dns_server", format!("{text:?} is neither an IP address nor address:port")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(keys: &str) -> Result<DnsSettings, String> {
        let text = format!(r#"{{"proxy": "socks5://127.0.0.1", {keys}}}"#);
        let config = TunnelConfig::from_json(&text).map_err(|error| error.to_string())?;
        DnsSettings::new(&config).map_err(|error| error.to_string())
    }

    #[test]
    fn the_resolver_has_the_first_addresses_unless_told() {
        let own = |keys: &str| plan(keys).unwrap().own.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(own(r#""dns": "fake-ip""#), ["198.18.0.1", "fc00::1"]);
        assert_eq!(own(r#""dns": "fake-ip", "fake_ip_v6": "off", "fake_ip_v4": "10.7.0.9/24""#), ["10.7.0.1"]);
        assert_eq!(own(r#""dns": "fake-ip", "dns_listen": "10.7.0.1, fd00::1""#), ["10.7.0.1", "fd00::1"]);
        assert!(own(r#""dns": "direct""#).is_empty());
    }

    #[test]
    fn servers_have_a_port() {
        for (text, want) in
            [("9.9.9.9", "9.9.9.9:53"), ("9.9.9.9:5353", "9.9.9.9:5353"), ("::1", "[::1]:53"), ("[::1]:9", "[::1]:9")]
        {
            let plan = plan(&format!(r#""dns_hijack": true, "dns_server": "{text}""#)).unwrap();
            assert_eq!(plan.server.unwrap().to_string(), want);
        }
    }

    #[test]
    fn what_could_not_work_is_refused() {
        for (keys, told) in [
            (r#""dns_hijack": true"#, "dns_hijack: needs dns_server"),
            (r#""dns": "over-tcp", "dns_listen": "10.0.0.1""#, "dns_listen: needs dns_server"),
            (r#""dns_server": "dns.example""#, "dns_server: \"dns.example\" is neither"),
            (r#""dns_server": "9.9.9.9:0""#, "dns_server: "),
            (r#""dns": "fake-ip", "dns_server": "198.19.255.255""#, "dns_server: lies in a range"),
            (r#""dns": "fake-ip", "fake_ip_v4": "off", "fake_ip_v6": """#, "fake_ip_v4: fake-ip needs a range"),
            (r#""dns": "fake-ip", "fake_ip_v4": "fc00::/18""#, "fake_ip_v4: \"fc00::/18\" is not an IPv4 range"),
            (r#""fake_ip_v6": "fc00::""#, "fake_ip_v6: \"fc00::\" is not an IPv6 range"),
            (r#""dns": "fake-ip", "fake_ip_v4": "10.0.0.0/31""#, "fake_ip_v4: \"10.0.0.0/31\" has no room"),
            (r#""dns": "fake-ip", "fake_ip_v4": "10.0.0.0/33""#, "fake_ip_v4: \"10.0.0.0/33\" has no room"),
            (r#""dns": "fake-ip", "fake_ip_v4": "10.0.0.0/30", "dns_listen": "10.0.0.1,10.0.0.2""#, "dns_listen: "),
            (r#""dns": "fake-ip", "dns_listen": "here""#, "dns_listen: \"here\" is no IP address"),
            (r#""dns": "fake-ip", "dns_listen": "0.0.0.0""#, "dns_listen: nobody can send to"),
        ] {
            let error = plan(keys).unwrap_err();
            assert!(error.starts_with(told), "{keys}: {error}");
        }
        let direct = TunnelConfig::from_json(r#"{"proxy": "direct://", "dns": "fake-ip"}"#).unwrap_err().to_string();
        assert_eq!(direct, "dns: fake-ip needs a proxy that resolves names, and direct:// is none");
    }
}
