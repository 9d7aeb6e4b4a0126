//! What is said to a proxy: a small SOCKS5 and HTTP CONNECT client, until the core's own handshakes take its place.
#![allow(clippy::option_option)]
use std::net::{IpAddr, SocketAddr};

use super::connect::Target;
use super::failure::Failure;
use super::resolve::Route;
use super::url::Scheme;

#[derive(Debug)]
pub(super) struct Speech {
    out: Vec<u8>,
    input: Vec<u8>,
    later: Vec<Vec<u8>>,
    stage: u8,
    auth: bool,
    http: bool,
    done: Option<Option<SocketAddr>>,
}

impl Speech {
    pub(super) fn new(route: &Route, target: &Target) -> Result<Option<Self>, Failure> {
        let mut this = Self {
            out: vec![],
            input: vec![],
            later: vec![],
            stage: 0,
            auth: route.credentials.is_some(),
            http: false,
            done: None,
        };
        match route.scheme {
            Scheme::Direct => return Ok(None),
            Scheme::Http => {
                let Target::Ip(a) = target else { return Err(Failure::Reply(7)) };
                this.http = true;
                this.out = format!("CONNECT {a} HTTP/1.1\r\nHost: {a}\r\n\r\n").into_bytes();
            }
            Scheme::Socks5 => {
                let (cmd, a) = match target {
                    Target::Ip(a) => (1, *a),
                    _ => (3, "0.0.0.0:0".parse().expect("x")),
                };
                let mut req = vec![5, cmd, 0];
                match a.ip() {
                    IpAddr::V4(v) => {
                        req.push(1);
                        req.extend_from_slice(&v.octets());
                    }
                    IpAddr::V6(v) => {
                        req.push(4);
                        req.extend_from_slice(&v.octets());
                    }
                }
                req.extend_from_slice(&a.port().to_be_bytes());
                let mut all = vec![vec![5, 1, if this.auth { 2 } else { 0 }]];
                if let Some(c) = &route.credentials {
                    let mut x = vec![1, c.user.len() as u8];
                    x.extend_from_slice(c.user.as_bytes());
                    x.push(c.password.len() as u8);
                    x.extend_from_slice(c.password.as_bytes());
                    all.push(x);
                }
                all.push(req);
                if route.pipelined {
                    this.out = all.concat();
                } else {
                    all.reverse();
                    this.out = all.pop().expect("x");
                    this.later = all;
                }
            }
        }
        Ok(Some(this))
    }
    pub(super) fn transmit(&mut self) -> Option<&[u8]> {
        (!self.out.is_empty()).then_some(&self.out)
    }
    pub(super) fn sent(&mut self, n: usize) {
        self.out.drain(..n);
    }
    pub(super) fn outcome(&self) -> Option<Option<SocketAddr>> {
        self.done
    }
    /// bytes left over
    pub(super) fn handle(&mut self, bytes: &[u8]) -> Result<usize, Failure> {
        self.input.extend_from_slice(bytes);
        loop {
            if self.http {
                let Some(end) = self.input.windows(4).position(|w| w == b"\r\n\r\n") else { return Ok(0) };
                self.done = Some(None);
                return Ok(self.input.len() - end - 4);
            }
            let i = &self.input;
            match self.stage {
                0 => {
                    if i.len() < 2 {
                        return Ok(0);
                    }
                    if i[0] != 5 {
                        return Err(Failure::Protocol("version".into()));
                    }
                    if i[1] == 255 {
                        return Err(Failure::Credentials);
                    }
                    self.input.drain(..2);
                    self.stage = if self.auth { 1 } else { 2 };
                }
                1 => {
                    if i.len() < 2 {
                        return Ok(0);
                    }
                    if i[1] != 0 {
                        return Err(Failure::Credentials);
                    }
                    self.input.drain(..2);
                    self.stage = 2;
                }
                _ => {
                    if i.len() < 4 {
                        return Ok(0);
                    }
                    if i[1] != 0 {
                        return Err(Failure::Reply(i[1]));
                    }
                    let n = if i[3] == 1 { 10 } else { 22 };
                    if i.len() < n {
                        return Ok(0);
                    }
                    let port = u16::from_be_bytes([i[n - 2], i[n - 1]]);
                    let ip: IpAddr = if n == 10 {
                        <[u8; 4]>::try_from(&i[4..8]).expect("x").into()
                    } else {
                        <[u8; 16]>::try_from(&i[4..20]).expect("x").into()
                    };
                    self.done = Some(Some(SocketAddr::new(ip, port)));
                    return Ok(i.len() - n);
                }
            }
            if let Some(x) = self.later.pop() {
                self.out.extend_from_slice(&x);
            }
        }
    }
}

pub(crate) mod udp_header {
    use std::net::{IpAddr, SocketAddr};
    use t2s_core::buf::Buf;
    pub(crate) fn prepend(buf: &mut Buf, a: SocketAddr) -> bool {
        match a.ip() {
            IpAddr::V4(v) => {
                let Some(h) = buf.prepend(10) else { return false };
                h[..4].copy_from_slice(&[0, 0, 0, 1]);
                h[4..8].copy_from_slice(&v.octets());
                h[8..].copy_from_slice(&a.port().to_be_bytes());
            }
            IpAddr::V6(v) => {
                let Some(h) = buf.prepend(22) else { return false };
                h[..4].copy_from_slice(&[0, 0, 0, 4]);
                h[4..20].copy_from_slice(&v.octets());
                h[20..].copy_from_slice(&a.port().to_be_bytes());
            }
        }
        true
    }
    pub(crate) fn parse(d: &[u8]) -> Option<(SocketAddr, usize)> {
        if *d.get(2)? != 0 {
            return None;
        }
        match *d.get(3)? {
            1 => Some((
                SocketAddr::new(
                    <[u8; 4]>::try_from(d.get(4..8)?).ok()?.into(),
                    u16::from_be_bytes(d.get(8..10)?.try_into().ok()?),
                ),
                10,
            )),
            4 => Some((
                SocketAddr::new(
                    <[u8; 16]>::try_from(d.get(4..20)?).ok()?.into(),
                    u16::from_be_bytes(d.get(20..22)?.try_into().ok()?),
                ),
                22,
            )),
            _ => None,
        }
    }
}
