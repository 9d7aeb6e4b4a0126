//! Where the proxy is, and who we are to it: resolved away from the packet path, swapped in whole.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::url::{Credentials, Host, ProxyUrl, Scheme};

/// Everything that a worker must know to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyEndpoint {
    /// What the upstream speaks.
    pub scheme: Scheme,
    /// The proxy's addresses, best first; empty for `direct`.
    pub addresses: Vec<SocketAddr>,
    /// Who we are to it.
    pub credentials: Option<Credentials>,
    /// It reads greeting and request from one segment, as RFC 1928 does not forbid.
    pub pipelined: bool,
    /// It answers UDP ASSOCIATE; `None` while nobody has asked.
    pub udp: Option<bool>,
}

impl ProxyEndpoint {
    /// Resolves a proxy's name. Blocks, so it is for starting and for threads of its own.
    pub fn resolve(url: &ProxyUrl) -> io::Result<Self> {
        let addresses = match (&url.host, url.scheme) {
            (_, Scheme::Direct) => Vec::new(),
            (Host::Ip(ip), _) => vec![SocketAddr::new(*ip, url.port)],
            (Host::Name(name), _) => (name.as_str(), url.port).to_socket_addrs()?.collect(),
        };
        if addresses.is_empty() && url.scheme != Scheme::Direct {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("{} has no address", url.host)));
        }
        let udp = (url.scheme != Scheme::Socks5).then_some(url.scheme == Scheme::Direct);
        Ok(Self { scheme: url.scheme, addresses, credentials: url.credentials.clone(), pipelined: false, udp })
    }
}

/// The endpoint of a tunnel, shared by its workers: they look at a number and take the lock only when it has changed.
#[derive(Debug)]
pub struct SharedEndpoint {
    version: AtomicU64,
    endpoint: Mutex<Arc<ProxyEndpoint>>,
}

impl SharedEndpoint {
    /// A endpoint at version 1.
    pub fn new(endpoint: ProxyEndpoint) -> Self {
        Self { version: AtomicU64::new(1), endpoint: Mutex::new(Arc::new(endpoint)) }
    }

    /// Changes the endpoint.
    pub fn update(&self, change: impl FnOnce(&mut ProxyEndpoint)) {
        let mut slot = self.endpoint.lock().unwrap_or_else(PoisonError::into_inner);
        let mut endpoint = ProxyEndpoint::clone(&slot);
        change(&mut endpoint);
        if endpoint != **slot {
            *slot = Arc::new(endpoint);
            self.version.fetch_add(1, Ordering::Release);
        }
    }

    /// The endpoint as it is now.
    pub fn get(&self) -> Arc<ProxyEndpoint> {
        Arc::clone(&self.endpoint.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Refreshes `mine` when it is behind; `seen` is the version that it came from, 0 at first.
    #[inline]
    pub fn refresh(&self, seen: &mut u64, mine: &mut Arc<ProxyEndpoint>) {
        let version = self.version.load(Ordering::Acquire);
        if version != *seen {
            *mine = self.get();
            *seen = version;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_need_no_resolver_and_direct_none() {
        let endpoint = ProxyEndpoint::resolve(&"socks5://[::1]:9".parse().unwrap()).unwrap();
        assert_eq!((endpoint.addresses, endpoint.udp), (vec!["[::1]:9".parse().unwrap()], None));
        let direct = ProxyEndpoint::resolve(&"direct://".parse().unwrap()).unwrap();
        assert_eq!((direct.addresses.len(), direct.udp), (0, Some(true)));
        assert_eq!(ProxyEndpoint::resolve(&"http://127.0.0.1".parse().unwrap()).unwrap().udp, Some(false));
    }

    #[test]
    fn workers_see_a_change_once() {
        let shared = SharedEndpoint::new(ProxyEndpoint::resolve(&"socks5://127.0.0.1".parse().unwrap()).unwrap());
        let (mut seen, mut mine) = (0, shared.get());
        shared.refresh(&mut seen, &mut mine);
        let before = seen;
        shared.update(|endpoint| endpoint.pipelined = true);
        shared.update(|endpoint| endpoint.pipelined = true);
        shared.refresh(&mut seen, &mut mine);
        assert!(mine.pipelined && seen == before + 1);
    }
}
