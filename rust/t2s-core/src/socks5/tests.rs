//! Client against server at any split, fixed bytes of the RFCs, and every refusal.

use core::net::SocketAddr;

use proptest::prelude::*;

use super::*;

fn credentials() -> Credentials {
    Credentials::new(b"user", b"secret").expect("short enough")
}

fn target() -> Address {
    Address::Ip(SocketAddr::from(([192, 0, 2, 1], 443)))
}

fn client(with: bool, pipelined: bool) -> Handshake {
    Handshake::new(&target(), Command::Connect, with.then(credentials), pipelined).expect("a good target")
}

/// Takes what a client has to say.
fn said(client: &mut Handshake) -> Vec<u8> {
    let bytes = client.poll_transmit().unwrap_or_default().to_vec();
    client.handle_sent(bytes.len());
    bytes
}

const REQUEST: [u8; 10] = [5, 1, 0, 1, 192, 0, 2, 1, 1, 0xbb];
const GRANTED: [u8; 10] = [5, 0, 0, 1, 10, 0, 0, 1, 0x12, 0x34];

#[test]
fn step_by_step() {
    let mut client = client(true, false);
    assert_eq!(client.stage(), Stage::Method);
    assert_eq!(said(&mut client), [5, 2, 0, 2]);
    assert!(client.poll_transmit().is_none());
    assert_eq!(client.handle(&[5, 2]), Ok(2));
    assert_eq!(client.stage(), Stage::Password);
    assert_eq!(said(&mut client), b"\x01\x04user\x06secret");
    assert_eq!(client.handle(&[1, 0]), Ok(2));
    assert_eq!(client.stage(), Stage::Request);
    assert_eq!(said(&mut client), REQUEST);
    // The bytes behind the reply are the stream's.
    assert_eq!(client.handle(&[&GRANTED[..], b"SSH-2.0"].concat()), Ok(10));
    let bound = Address::Ip(SocketAddr::from(([10, 0, 0, 1], 0x1234)));
    assert_eq!(client.outcome(), Some(&Outcome::Done { bound }));
    assert_eq!(client.handle(b"SSH"), Ok(0));
    assert_eq!(client.stage(), Stage::Over);
}

#[test]
fn a_proxy_that_wants_no_password_is_fine_with_that() {
    let mut client = client(true, false);
    let _ = said(&mut client);
    assert_eq!(client.handle(&[5, 0]), Ok(2));
    assert_eq!(said(&mut client), REQUEST);
}

#[test]
fn a_greeting_waits_for_its_request() {
    for with in [false, true] {
        let mut client = Handshake::greeting(with.then(credentials), false);
        let said = client.poll_transmit().expect("a greeting").len();
        client.handle_sent(said);
        client.handle(&[5, if with { 2 } else { 0 }]).unwrap();
        if with {
            let said = client.poll_transmit().expect("a password").len();
            client.handle_sent(said);
            client.handle(&[1, 0]).unwrap();
        }
        assert_eq!((client.stage(), client.poll_transmit()), (Stage::Request, None));
        client.ask(&target(), Command::Connect).unwrap();
        let whole = {
            let mut whole = self::client(false, true);
            whole.handle_sent(3);
            whole.poll_transmit().expect("a request").to_vec()
        };
        assert_eq!(client.poll_transmit(), Some(whole.as_slice()));
        client.handle_sent(whole.len());
        client.handle(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
        assert!(matches!(client.outcome(), Some(Outcome::Done { .. })));
    }
    // Named before the proxy has chosen a method, the request follows its choice.
    let mut client = Handshake::greeting(None, false);
    client.ask(&target(), Command::Connect).unwrap();
    client.handle_sent(3);
    assert_eq!(client.poll_transmit(), None);
    client.handle(&[5, 0]).unwrap();
    assert!(client.poll_transmit().is_some());
}

#[test]
fn pipelined_says_all_at_once() {
    let mut with = client(true, true);
    assert!(with.is_pipelined());
    assert_eq!(said(&mut with), [&[5, 1, 2][..], b"\x01\x04user\x06secret", &REQUEST].concat());
    assert_eq!(with.handle(&[&[5, 2, 1, 0][..], &GRANTED].concat()), Ok(14));
    assert!(matches!(with.outcome(), Some(Outcome::Done { .. })));
    assert!(with.poll_transmit().is_none());
    let mut without = client(false, true);
    assert_eq!(said(&mut without), [&[5, 1, 0][..], &REQUEST].concat());
    assert_eq!(without.handle(&[&[5, 0][..], &GRANTED].concat()), Ok(12));
    assert!(matches!(without.outcome(), Some(Outcome::Done { .. })));
}

#[test]
fn nobody_reads_the_password_in_a_log() {
    let (mut early, bytes) = (ServerHandshake::new(Credentials::new(b"user", b"secret").ok()), "115, 101, 99");
    assert_eq!(early.handle(b"\x05\x01\x02\x01\x04user\x06secre"), Ok(15));
    for told in [format!("{:?}", client(true, true)), format!("{early:?}")] {
        assert!(!told.contains("secre") && !told.contains(bytes), "{told}");
    }
}

#[test]
fn partial_sends_go_on_where_they_stopped() {
    let mut client = client(true, true);
    let mut sent = Vec::new();
    while let Some(bytes) = client.poll_transmit() {
        sent.push(bytes[0]);
        client.handle_sent(1);
    }
    assert_eq!(sent, [&[5, 1, 2][..], b"\x01\x04user\x06secret", &REQUEST].concat());
}

#[test]
fn every_reply_code_is_a_value() {
    for code in 1..=255 {
        let mut client = client(false, true);
        // Two bytes are enough to know.
        assert_eq!(client.handle(&[5, 0, 5, code]), Ok(4));
        let Some(Outcome::Refused(reply)) = client.outcome() else { panic!("{code} is not a refusal") };
        assert_eq!((reply.code(), *reply), (code, Reply::from_code(code)));
        assert_eq!(matches!(reply, Reply::Unassigned(_)), code > 8);
    }
    assert_eq!(Reply::from_code(0), Reply::Succeeded);
}

#[test]
fn errors_are_final() {
    let fails = |with: bool, bytes: &[u8], error: Error| {
        let mut client = client(with, false);
        assert_eq!(client.handle(bytes), Err(error));
        assert_eq!(client.handle(&[5, 0]), Err(Error::AlreadyFailed));
        assert_eq!(client.outcome(), None);
    };
    fails(false, b"HTTP/1.1", Error::BadVersion(b'H'));
    fails(false, &[4, 0], Error::BadVersion(4));
    fails(false, &[5, 0xff], Error::NoAcceptableMethod);
    fails(false, &[5, 2], Error::UnofferedMethod(2));
    fails(true, &[5, 1], Error::UnofferedMethod(1));
    fails(true, &[5, 2, 1, 7], Error::AuthenticationFailed(7));
    fails(true, &[5, 2, 2, 0], Error::BadAuthVersion(2));
    fails(false, &[5, 0, 1, 0], Error::BadVersion(1));
    fails(false, &[5, 0, 5, 0, 0, 2, 0, 0, 0, 0], Error::BadAddress);
    fails(false, &[5, 0, 5, 0, 0, 3, 0, 0, 0], Error::BadAddress);
}

#[test]
fn names_and_credentials_must_fit_their_length_byte() {
    let long = "a".repeat(256);
    for name in ["", long.as_str(), "a b", "a\n"] {
        let made = Handshake::new(&Address::Domain(name.into(), 1), Command::Connect, None, false);
        assert!(matches!(made, Err(Error::BadDomain)), "{name:?}");
    }
    assert_eq!(Credentials::new(b"", b"x"), Err(Error::CredentialsTooLong));
    assert_eq!(Credentials::new(long.as_bytes(), b"x"), Err(Error::CredentialsTooLong));
    assert_eq!(Credentials::new(b"x", long.as_bytes()), Err(Error::CredentialsTooLong));
    assert!(!format!("{:?}", credentials()).contains("secret"));
}

#[test]
fn a_relay_without_an_address_is_the_proxy() {
    let proxy = core::net::IpAddr::from([203, 0, 113, 5]);
    let unspecified = Address::Ip(SocketAddr::from(([0, 0, 0, 0], 7)));
    assert_eq!(unspecified.relay(proxy), Some(SocketAddr::new(proxy, 7)));
    assert_eq!(target().relay(proxy), Some(SocketAddr::from(([192, 0, 2, 1], 443))));
    assert_eq!(Address::Domain("x".into(), 1).relay(proxy), None);
}

#[test]
fn the_server_refuses_what_it_does_not_know() {
    let fails = |known: Option<Credentials>, bytes: &[u8], error: Error, answer: &[u8]| {
        let mut server = ServerHandshake::new(known);
        assert_eq!(server.handle(bytes), Err(error));
        assert_eq!(server.poll_transmit().unwrap_or_default(), answer);
        assert_eq!(server.handle(&[5]), Err(Error::AlreadyFailed));
    };
    fails(None, &[4, 1], Error::BadVersion(4), &[]);
    fails(None, &[5, 1, 2], Error::NoAcceptableMethod, &[5, 0xff]);
    fails(Some(credentials()), &[5, 2, 0, 1], Error::NoAcceptableMethod, &[5, 0xff]);
    fails(Some(credentials()), &[5, 1, 2, 2, 1], Error::BadAuthVersion(2), &[5, 2]);
    fails(Some(credentials()), b"\x05\x01\x02\x01\x04user\x06secreT", Error::AuthenticationFailed(1), &[5, 2, 1, 1]);
    fails(Some(credentials()), b"\x05\x01\x02\x01\x01u\x06secret", Error::AuthenticationFailed(1), &[5, 2, 1, 1]);
    let refused = |code: u8| [&[5, 0][..], &[5, code, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    fails(None, &[5, 1, 0, 5, 1, 0, 9, 0], Error::BadAddress, &refused(8));
    fails(None, &[5, 1, 0, 5, 9, 0, 1, 1, 2, 3, 4, 0, 1], Error::BadCommand(9), &refused(7));
    let mut bind = ServerHandshake::new(None);
    assert_eq!(bind.handle(&[5, 1, 0, 5, 2, 0, 1, 1, 2, 3, 4, 0, 1]), Ok(13));
    assert_eq!(bind.outcome(), Some(&ServerOutcome::Refused));
    assert_eq!(bind.poll_transmit(), Some(&refused(7)[..]));
}

fn address() -> impl Strategy<Value = Address> {
    prop_oneof![
        any::<SocketAddr>().prop_map(|address| Address::Ip(SocketAddr::new(address.ip(), address.port()))),
        ("[a-z0-9.-]{1,255}", any::<u16>()).prop_map(|(name, port)| Address::Domain(name.into(), port)),
    ]
}

proptest! {
    /// Our client and our server understand each other, however the bytes are split, and both leave the stream alone.
    #[test]
    fn client_and_server(
        target in address(),
        bound in address(),
        associate in any::<bool>(),
        with in any::<bool>(),
        pipelined in any::<bool>(),
        cuts in prop::collection::vec(1usize..12, 1..30),
    ) {
        let command = if associate { Command::UdpAssociate } else { Command::Connect };
        let mut client = Handshake::new(&target, command, with.then(credentials), pipelined).expect("a good target");
        let mut server = ServerHandshake::new(with.then(credentials));
        let mut cuts = cuts.into_iter().cycle();
        let mut answered = false;
        let (mut up, mut down): (Vec<u8>, Vec<u8>) = (Vec::new(), Vec::new());
        for _ in 0..3_000 {
            if let Some(bytes) = client.poll_transmit() {
                let n = bytes.len().min(cuts.next().unwrap_or(1));
                up.extend_from_slice(&bytes[..n]);
                client.handle_sent(n);
                if client.poll_transmit().is_none() && client.stage() != Stage::Over && pipelined {
                    up.extend_from_slice(b"early");
                }
            }
            let n = up.len().min(cuts.next().unwrap_or(1));
            let taken = server.handle(&up[..n]).expect("a good client");
            up.drain(..taken);
            if let (Some(ServerOutcome::Request(request)), false) = (server.outcome(), answered) {
                prop_assert_eq!((&request.target, request.command), (&target, command));
                answered = true;
                server.reply(Reply::Succeeded, &bound);
            }
            if let Some(bytes) = server.poll_transmit() {
                let n = bytes.len().min(cuts.next().unwrap_or(1));
                down.extend_from_slice(&bytes[..n]);
                server.handle_sent(n);
                if server.poll_transmit().is_none() && answered {
                    down.extend_from_slice(b"hello");
                }
            }
            let n = down.len().min(cuts.next().unwrap_or(1));
            let taken = client.handle(&down[..n]).expect("a good server");
            down.drain(..taken);
            if client.outcome().is_some() && server.poll_transmit().is_none() {
                break;
            }
        }
        prop_assert_eq!(client.outcome(), Some(&Outcome::Done { bound }));
        prop_assert_eq!(down.as_slice(), b"hello");
        prop_assert_eq!(up.as_slice(), if pipelined { b"early".as_slice() } else { b"" });
    }

    #[test]
    fn any_bytes(data in prop::collection::vec(any::<u8>(), 0..300), prefix in 0usize..4) {
        let prefix: &[u8] = [&[][..], &[5, 0], &[5, 0, 5, 0, 0], &[5, 2, 1, 0, 5]][prefix];
        let bytes = [prefix, &data].concat();
        for with in [false, true] {
            let mut client = client(with, false);
            prop_assert!(client.handle(&bytes).is_ok_and(|taken| taken <= bytes.len()) || client.outcome().is_none());
            let mut server = ServerHandshake::new(with.then(credentials));
            prop_assert!(server.handle(&bytes).is_ok_and(|taken| taken <= bytes.len()) || server.outcome().is_none());
        }
    }

    #[test]
    fn addresses_round_trip(address in address(), rest in prop::collection::vec(any::<u8>(), 0..5)) {
        let mut bytes = Vec::new();
        address.emit(&mut bytes);
        let len = bytes.len();
        for cut in 0..len {
            prop_assert_eq!(AddressRef::parse(&bytes[..cut]), Ok(None));
        }
        bytes.extend(rest);
        let (parsed, taken) = AddressRef::parse(&bytes).expect("good").expect("whole");
        prop_assert_eq!((parsed.to_owned().expect("UTF-8"), taken), (address, len));
    }
}
