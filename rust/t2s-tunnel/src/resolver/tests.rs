//! Questions of every kind, and what is answered.

use proptest::prelude::*;

use super::*;
use crate::config::{DnsMode, TunnelConfig};
use crate::dns_settings::DnsSettings;

/// Where the proxy is.
const PROXY: [&str; 2] = ["192.0.2.1:1080", "[2001:db8::1]:1080"];

fn resolver(change: impl FnOnce(&mut TunnelConfig)) -> Resolver {
    let mut config =
        TunnelConfig { proxy: "socks5://127.0.0.1".into(), dns: DnsMode::FakeIp, ..TunnelConfig::default() };
    change(&mut config);
    Resolver::new(DnsSettings::new(&config).unwrap(), [1, 2, 3, 4])
}

fn query(name: &str, kind: Kind) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    bytes.extend(Name::from_text(name).unwrap().as_bytes());
    bytes.extend(kind.0.to_be_bytes());
    bytes.extend([0, 1]);
    bytes
}

/// The code of the answer, and what is in it as text.
fn ask(resolver: &Resolver, query: &[u8]) -> (ResponseCode, Vec<String>) {
    let mut out = [0; ANSWER_MAX];
    let Answer::Reply(len) = resolver.answer(query, &PROXY.map(|text| text.parse().unwrap()), &mut out) else {
        panic!("no reply")
    };
    let answer = Message::parse(&out[..len]).unwrap();
    assert!(answer.is_response() && answer.id() == 0x1234);
    assert!(answer.answers().all(|record| record.ttl == FAKE_TTL));
    let text = answer.answers().map(|record| match record.address() {
        Some(address) => address.to_string(),
        None => format!("{:?}", record.data),
    });
    (answer.code(), text.collect())
}

fn addresses(resolver: &Resolver, name: &str, kind: Kind) -> Vec<String> {
    let (code, found) = ask(resolver, &query(name, kind));
    assert_eq!(code, ResponseCode::NO_ERROR);
    found
}

#[test]
fn names_get_addresses_and_addresses_names() {
    let resolver = resolver(|_| {});
    // The first address of each range is the resolver's own.
    assert_eq!(addresses(&resolver, "a.example", Kind::A), ["198.18.0.2"]);
    assert_eq!(addresses(&resolver, "A.Example.", Kind::AAAA), ["fc00::2"]);
    assert_eq!(addresses(&resolver, "b.example", Kind::AAAA), ["fc00::3"]);
    assert_eq!(resolver.host_of("198.18.0.3".parse().unwrap()).as_deref(), Some("b.example"));
    assert_eq!(resolver.host_of("198.18.0.1".parse().unwrap()), None);
    assert_eq!(resolver.counts(), (2, 0));
    assert!(resolver.is_fake("198.19.255.255".parse().unwrap()) && !resolver.is_fake("198.20.0.0".parse().unwrap()));
    let named = Name::from_text("b.example").unwrap();
    let expected = (ResponseCode::NO_ERROR, vec![format!("{:?}", named.as_bytes())]);
    assert_eq!(ask(&resolver, &query("3.0.18.198.in-addr.arpa", Kind::PTR)), expected);
    for nobody in ["1.0.18.198.in-addr.arpa", "9.0.18.198.in-addr.arpa"] {
        assert_eq!(ask(&resolver, &query(nobody, Kind::PTR)), (ResponseCode::NAME_ERROR, vec![]));
    }
}

#[test]
fn nothing_real_leaks_and_the_rest_is_forwarded() {
    let server = "9.9.9.9:53".parse().unwrap();
    let (alone, with) = (resolver(|_| {}), resolver(|config| config.dns_server = Some("9.9.9.9".into())));
    let none: [String; 0] = [];
    for kind in [Kind::HTTPS, Kind::SVCB, Kind::ANY] {
        assert_eq!(addresses(&alone, "a.example", kind), none);
        assert_eq!(addresses(&with, "a.example", kind), none);
    }
    for (name, kind) in [("a.example", Kind(16)), ("a.example", Kind::CNAME), ("1.2.0.192.in-addr.arpa", Kind::PTR)] {
        assert_eq!(addresses(&alone, name, kind), none);
        assert_eq!(with.answer(&query(name, kind), &[], &mut [0; ANSWER_MAX]), Answer::Forward(server));
    }
    assert_eq!(with.counts(), (0, 0));
}

#[test]
fn names_that_are_no_hosts_get_none() {
    let resolver = resolver(|_| {});
    let none: [String; 0] = [];
    for odd in [".", "a b.example", "a:80.example", "b\u{fc}cher.example"] {
        assert_eq!(addresses(&resolver, odd, Kind::A), none, "{odd}");
    }
    assert_eq!(addresses(&resolver, "localhost", Kind::A), ["127.0.0.1"]);
    assert_eq!(addresses(&resolver, "app.localhost", Kind::AAAA), ["::1"]);
    assert_eq!(resolver.counts(), (0, 0));
}

#[test]
fn the_proxy_itself_has_its_real_addresses() {
    let resolver = resolver(|config| config.proxy = "socks5://proxy.example".into());
    assert_eq!(addresses(&resolver, "Proxy.example", Kind::A), ["192.0.2.1"]);
    assert_eq!(addresses(&resolver, "proxy.example", Kind::AAAA), ["2001:db8::1"]);
    assert_eq!(addresses(&resolver, "www.proxy.example", Kind::A), ["198.18.0.2"]);
    assert_eq!(resolver.counts(), (1, 0));
}

#[test]
fn a_family_without_a_range_has_no_addresses() {
    let resolver = resolver(|config| config.fake_ip_v6 = "off".into());
    let none: [String; 0] = [];
    assert_eq!(addresses(&resolver, "a.example", Kind::AAAA), none);
    assert_eq!(addresses(&resolver, "a.example", Kind::A), ["198.18.0.2"]);
}

#[test]
fn a_full_pool_gives_the_oldest_address_away_and_says_so() {
    let resolver = resolver(|config| {
        config.fake_ip_v4 = "10.0.0.0/29".into();
        config.fake_ip_v6 = String::new();
    });
    for n in 0..5 {
        assert_eq!(addresses(&resolver, &format!("n{n}.example"), Kind::A), [format!("10.0.0.{}", n + 2)]);
    }
    let second = "10.0.0.3".parse().unwrap();
    // Use of the first makes the second the oldest.
    assert_eq!(resolver.host_of("10.0.0.2".parse().unwrap()).as_deref(), Some("n0.example"));
    assert_eq!((resolver.version(), resolver.counts()), (0, (5, 0)));
    assert_eq!(addresses(&resolver, "new.example", Kind::A), ["10.0.0.3"]);
    assert_eq!((resolver.version(), resolver.counts()), (1, (5, 1)));
    assert_eq!(resolver.host_of(second).as_deref(), Some("new.example"));
}

#[test]
fn what_is_ours() {
    let target = |text: &str| text.parse::<SocketAddr>().unwrap();
    let own = resolver(|_| {});
    for (text, ours) in
        [("198.18.0.1:53", true), ("[fc00::1]:53", true), ("198.18.0.1:54", false), ("9.9.9.9:53", false)]
    {
        assert_eq!(own.is_ours(target(text)), ours, "{text}");
    }
    let all = resolver(|config| config.dns_hijack = true);
    assert!(all.is_ours(target("9.9.9.9:53")) && !all.is_ours(target("9.9.9.9:443")));
    let elsewhere = resolver(|config| config.dns_listen = Some("10.0.0.1".into()));
    assert!(elsewhere.is_ours(target("10.0.0.1:53")) && !elsewhere.is_ours(target("198.18.0.1:53")));
}

#[test]
fn what_is_no_query_is_refused() {
    let (resolver, mut out) = (resolver(|_| {}), [0; ANSWER_MAX]);
    let good = query("a.example", Kind::A);
    let mut response = good.clone();
    response[2] |= 0x80;
    assert_eq!(resolver.answer(&response, &[], &mut out), Answer::Malformed(None));
    assert_eq!(resolver.answer(&good[..11], &[], &mut out), Answer::Malformed(None));
    assert_eq!(resolver.answer(&good[..20], &[], &mut out), Answer::Malformed(Some(12)));
    assert_eq!(out[..4], [0x12, 0x34, 0x81, 0x81]);
    let mut update = good.clone();
    update[2] |= 5 << 3;
    assert_eq!(ask(&resolver, &update), (ResponseCode::NOT_IMPLEMENTED, vec![]));
    let mut chaos = good.clone();
    *chaos.last_mut().unwrap() = 3;
    assert_eq!(ask(&resolver, &chaos), (ResponseCode::REFUSED, vec![]));
    assert_eq!(resolver.counts(), (0, 0));
}

proptest! {
    #[test]
    fn any_bytes(mut bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0u8), Just(1), Just(0xc0)], 0..300)) {
        let (resolver, mut out) = (resolver(|_| {}), [0; ANSWER_MAX]);
        if let Some(header) = bytes.get_mut(2..12) {
            header.copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        }
        match resolver.answer(&bytes, &[], &mut out) {
            Answer::Reply(len) => {
                let answer = Message::parse(&out[..len]).unwrap();
                prop_assert_eq!(answer.key(), Message::parse(&bytes).unwrap().key());
            }
            Answer::Malformed(Some(len)) => prop_assert_eq!((len, &out[..2]), (12, &bytes[..2])),
            Answer::Malformed(None) => prop_assert!(bytes.len() < 12),
            Answer::Forward(_) => prop_assert!(false, "there is no server"),
        }
    }
}
