//! Settings of a tunnel, as they arrive in JSON. Each default lives here, once; unknown keys are refused.

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use t2s_core::checksum::Kernel;
use t2s_core::config::{Config, CongestionControl, Offload, Secrets, StreamLimits, SynAck, TcpConfig, UdpConfig};
use t2s_core::time::SECONDS;

use crate::dial::{Credentials, ProxyUrl, Scheme, UrlError};
use crate::dns_settings::DnsSettings;
use crate::log::Level;
use crate::tun::DeviceConfig;

/// Datagrams of one session that may wait for its upstream: four iterations of a worker.
const UDP_QUEUE: u16 = 512;

/// Whether the device is asked for offload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OffloadMode {
    /// As much as the kernel grants.
    Auto,
    /// Plain packets.
    Off,
}

/// What happens to DNS queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DnsMode {
    /// They travel like any other datagram.
    Direct,
    /// They travel through the proxy over TCP (RFC 7766).
    OverTcp,
    /// The tunnel answers those to its own address with fake addresses; what connects to these is dialled by name.
    FakeIp,
}

/// Whether greeting and request go to the proxy in one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SocksPipelining {
    /// When a probe at the start shows that the proxy reads it so.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// Settings of a tunnel. Times are seconds, sizes as named.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TunnelConfig {
    /// `socks5://[user:password@]host:port`, `http://…` or `direct://`.
    pub proxy: String,
    /// User name for the proxy, instead of the one in the URL.
    pub username: Option<String>,
    /// Password for the proxy, instead of the one in the URL.
    #[serde(skip_serializing)]
    pub password: Option<String>,
    /// Firewall mark of all sockets towards the upstream.
    pub fwmark: Option<u32>,
    /// Name of the TUN interface, or a pattern such as `t2s%d`; empty lets the kernel choose.
    pub tun: String,
    /// A TUN descriptor that the caller has opened; it is copied.
    pub tun_fd: Option<i32>,
    /// MTU of the interface, bytes; the default depends on offload.
    pub mtu: Option<u16>,
    /// Queues of the device, each with a worker thread.
    pub queues: u16,
    /// Offload of the device.
    pub offload: OffloadMode,
    /// Set the interface up.
    pub up: bool,
    /// User that the process becomes once the device is open, without capabilities but the one that `fwmark` needs.
    pub user: Option<String>,
    /// When the client's handshake is answered.
    pub syn_ack: SynAck,
    /// Congestion control towards the client.
    pub congestion: CongestionControl,
    /// Whether the SOCKS5 handshake is pipelined.
    pub socks_pipelining: SocksPipelining,
    /// What happens to DNS queries.
    pub dns: DnsMode,
    /// The range of fake IPv4 addresses; `off`: none.
    pub fake_ip_v4: String,
    /// The range of fake IPv6 addresses; `off`: none.
    pub fake_ip_v6: String,
    /// Addresses at which the tunnel is a name server, with commas between; with fake addresses the first of each range
    /// if not told, else none.
    pub dns_listen: Option<String>,
    /// It is one at every address.
    pub dns_hijack: bool,
    /// Where queries to these go that are not answered here: an IP address, or `address:port`.
    pub dns_server: Option<String>,
    /// Answer ICMP echo requests to any address.
    pub icmp_echo: bool,
    /// TCP flows at once, over all workers.
    pub max_tcp_flows: u32,
    /// Flows that wait for the proxy's answer at once, over all workers.
    pub max_pending_connects: u32,
    /// UDP sessions at once, over all workers.
    pub max_udp_sessions: u32,
    /// Time for the proxy to answer a connect, seconds.
    pub connect_timeout: u32,
    /// Connections to the proxy that each worker makes ahead at most, while flows open in quick succession; 0: none.
    pub preconnect: u16,
    /// A TCP flow without traffic for this long is reset; 0: never. Seconds.
    pub tcp_idle_timeout: u32,
    /// A UDP session without traffic for this long ends, seconds.
    pub udp_idle_timeout: u32,
    /// Payload that all flows together may hold in memory, MiB.
    pub memory_budget_mib: u32,
    /// Checksum kernel: `auto`, `scalar`, `swar`, `avx2`, `avx512` or `neon`.
    pub checksum: String,
    /// An event-loop iteration longer than this raises an alarm, milliseconds; 0 switches the watchdog off.
    pub loop_stall_ms: u32,
    /// Look for the next event so long before going to sleep, while the last ones came as soon, microseconds; 0: never,
    /// and neither without a CPU to spare.
    pub busy_poll_us: u32,
    /// What is worth a line.
    pub log_level: Level,
}

impl Default for TunnelConfig {
    fn default() -> Self {
        Self {
            proxy: String::new(),
            username: None,
            password: None,
            fwmark: None,
            tun: String::new(),
            tun_fd: None,
            mtu: None,
            queues: 1,
            offload: OffloadMode::Auto,
            up: true,
            user: None,
            syn_ack: SynAck::AfterConnect,
            congestion: CongestionControl::Cubic,
            socks_pipelining: SocksPipelining::Auto,
            dns: DnsMode::Direct,
            // RFC 2544's range for benchmarks, which nothing on the Internet has, and a part of fc00::/8, which RFC
            // 4193 leaves undefined.
            fake_ip_v4: "198.18.0.0/15".into(),
            fake_ip_v6: "fc00::/18".into(),
            dns_listen: None,
            dns_hijack: false,
            dns_server: None,
            icmp_echo: true,
            max_tcp_flows: 65_536,
            max_pending_connects: 4_096,
            max_udp_sessions: 16_384,
            connect_timeout: 30,
            preconnect: 8,
            tcp_idle_timeout: 7_200,
            udp_idle_timeout: 120,
            memory_budget_mib: 256,
            checksum: "auto".into(),
            loop_stall_ms: 10,
            busy_poll_us: 75,
            log_level: Level::Info,
        }
    }
}

/// Why settings are no good.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// An unknown key, or a value of the wrong kind.
    #[error("{key}: {error}")]
    Key {
        /// The key.
        key: String,
        /// What is wrong with it, or its value.
        error: serde_json::Error,
    },
    /// A password that belongs to nobody.
    #[error("password: needs a username")]
    PasswordAlone,
    /// The proxy's URL.
    #[error("proxy: {0}")]
    Proxy(#[from] UrlError),
    /// The checksum kernel.
    #[error("checksum: {0}")]
    Checksum(String),
    /// DNS settings that cannot be, or not together.
    #[error("{key}: {why}")]
    Dns {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A number outside its range.
    #[error("{key} must lie between {min} and {max}, not {value}")]
    Range {
        /// The key.
        key: &'static str,
        /// Its value.
        value: u32,
        /// Smallest good value.
        min: u32,
        /// Largest good value.
        max: u32,
    },
}

/// Settings from a JSON object whose keys all have defaults; a problem names its key, and never shows a password.
pub(crate) fn read<T: DeserializeOwned>(text: &str) -> Result<T, ConfigError> {
    let map: Map<String, Value> = serde_json::from_str(text)?;
    for (key, value) in &map {
        let alone = Value::Object(Map::from_iter([(key.clone(), value.clone())]));
        if let Err(error) = serde_json::from_value::<T>(alone) {
            let error = if key == "password" { serde_json::Error::custom("is not a string") } else { error };
            return Err(ConfigError::Key { key: key.clone(), error });
        }
    }
    Ok(serde_json::from_value(Value::Object(map))?)
}

impl TunnelConfig {
    /// Settings from JSON.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let this: Self = read(text)?;
        this.check()?;
        Ok(this)
    }

    /// Looks at everything that can be judged without touching the system.
    pub fn check(&self) -> Result<(), ConfigError> {
        let range = |key, value, min, max| {
            if (min..=max).contains(&value) { Ok(()) } else { Err(ConfigError::Range { key, value, min, max }) }
        };
        self.proxy_url()?;
        if self.password.is_some() && self.username.is_none() {
            return Err(ConfigError::PasswordAlone);
        }
        self.kernel()?;
        DnsSettings::new(self)?;
        range("queues", self.queues.into(), 1, 256)?;
        range("mtu", self.mtu.unwrap_or(1_500).into(), 1_280, 65_535)?;
        range("max_tcp_flows", self.max_tcp_flows, 1, 4_000_000)?;
        range("max_pending_connects", self.max_pending_connects, 1, 1_000_000)?;
        range("max_udp_sessions", self.max_udp_sessions, 1, 1_000_000)?;
        range("connect_timeout", self.connect_timeout, 1, 3_600)?;
        range("preconnect", self.preconnect.into(), 0, 64)?;
        range("busy_poll_us", self.busy_poll_us, 0, 1_000)?;
        range("udp_idle_timeout", self.udp_idle_timeout, 1, 86_400)?;
        range("memory_budget_mib", self.memory_budget_mib, 8, 65_536)
    }

    /// The proxy, with the credentials that count.
    pub fn proxy_url(&self) -> Result<ProxyUrl, UrlError> {
        let mut url: ProxyUrl = self.proxy.parse()?;
        if url.scheme != Scheme::Direct
            && let Some(user) = &self.username
        {
            url.credentials = Some(Credentials::new(user, self.password.as_deref().unwrap_or_default())?);
        }
        Ok(url)
    }

    /// The checksum kernel.
    pub fn kernel(&self) -> Result<Kernel, ConfigError> {
        match self.checksum.as_str() {
            "auto" => Ok(Kernel::auto()),
            name => Kernel::by_name(name).map_err(|error| ConfigError::Checksum(error.to_string())),
        }
    }

    /// The device to open.
    pub fn device(&self) -> DeviceConfig {
        DeviceConfig {
            name: self.tun.clone(),
            inherited: self.tun_fd,
            mtu: self.mtu,
            queues: self.queues,
            offload: self.offload == OffloadMode::Auto,
            up: self.up,
        }
    }

    /// The settings of one worker's stack: limits over all workers are divided evenly.
    pub fn stack(&self, mtu: u16, offload: Offload, secrets: Secrets, kernel: Kernel) -> Config {
        let workers = u32::from(self.queues.max(1));
        let share = |total: u32| total.div_ceil(workers).max(1);
        let base = Config::default();
        let budget = u64::from(self.memory_budget_mib) * 1024 * 1024 / u64::from(workers);
        Config {
            mtu,
            offload,
            tcp: TcpConfig {
                syn_ack: self.syn_ack,
                congestion: self.congestion,
                connect_timeout: u64::from(self.connect_timeout) * SECONDS,
                idle_timeout: u64::from(self.tcp_idle_timeout) * SECONDS,
                // Half-closed is open: who may still speak may be silent for as long as on any other flow. The short
                // limit is for hosts whose own application is gone.
                fin_wait2: u64::from(self.tcp_idle_timeout) * SECONDS,
                ..base.tcp.clone()
            },
            // One iteration of a worker may bring a whole batch of one client before its upstream gets its share.
            udp: UdpConfig {
                idle_timeout: u64::from(self.udp_idle_timeout) * SECONDS,
                queue: UDP_QUEUE,
                queued_bytes: budget / 8,
                ..base.udp
            },
            stream: StreamLimits { total_bytes: budget / 16, ..base.stream },
            max_tcp_flows: share(self.max_tcp_flows),
            max_pending_connects: share(self.max_pending_connects),
            max_udp_sessions: share(self.max_udp_sessions),
            buffer_budget: budget,
            icmp_echo: self.icmp_echo,
            checksum: kernel,
            secrets,
            clock: t2s_sys::clock::monotonic_nanos,
            ..base
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_hold_and_words_are_checked() {
        let config = TunnelConfig::from_json(r#"{"proxy": "socks5://127.0.0.1:1080"}"#).unwrap();
        assert_eq!(config, TunnelConfig { proxy: "socks5://127.0.0.1:1080".into(), ..TunnelConfig::default() });
        let unknown = TunnelConfig::from_json(r#"{"proxy": "direct://", "que": 2}"#).unwrap_err().to_string();
        assert!(unknown.contains("que"), "{unknown}");
        assert!(TunnelConfig::from_json(r#"{"proxy": "direct://", "dns": "over-tcp"}"#).is_ok());
        for bad in [
            r"{}",
            r#"{"proxy": "direct://", "queues": 0}"#,
            r#"{"proxy": "direct://", "mtu": 1000}"#,
            r#"{"proxy": "direct://", "checksum": "none"}"#,
        ] {
            assert!(TunnelConfig::from_json(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn credentials_of_their_own_win_and_are_not_written_out() {
        let text = r#"{"proxy": "socks5://a:b@h", "username": "u", "password": "secret"}"#;
        let config = TunnelConfig::from_json(text).unwrap();
        assert_eq!(config.proxy_url().unwrap().credentials, Some(Credentials::new("u", "secret").unwrap()));
        assert!(!serde_json::to_string(&config).unwrap().contains("secret"));
    }

    #[test]
    fn problems_name_their_key_and_no_password() {
        let told = |text: &str| TunnelConfig::from_json(text).unwrap_err().to_string();
        assert!(told(r#"{"proxy": "direct://", "mtu": 70000}"#).starts_with("mtu: "));
        assert_eq!(told(r#"{"proxy": "direct://", "password": 70143}"#), "password: is not a string");
        assert_eq!(told(r#"{"proxy": "direct://", "password": "x"}"#), "password: needs a username");
    }

    #[test]
    fn a_half_closed_flow_may_be_idle_as_long_as_an_open_one() {
        let config = TunnelConfig { proxy: "direct://".into(), tcp_idle_timeout: 600, ..TunnelConfig::default() };
        let tcp = config.stack(1500, Offload::default(), Secrets::fixed(1), Kernel::auto()).tcp;
        assert_eq!((tcp.idle_timeout, tcp.fin_wait2), (600 * SECONDS, 600 * SECONDS));
    }

    #[test]
    fn limits_are_shared_out() {
        let config = TunnelConfig { queues: 4, proxy: "direct://".into(), ..TunnelConfig::default() };
        let stack = config.stack(1500, Offload::default(), Secrets::fixed(1), Kernel::auto());
        assert_eq!(stack.max_tcp_flows, 16_384);
        assert_eq!(stack.buffer_budget, 64 * 1024 * 1024);
    }
}
