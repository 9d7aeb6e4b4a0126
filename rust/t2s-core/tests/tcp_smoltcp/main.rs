//! The TCP terminator against smoltcp as the client, over a simulated network, in virtual time.
//!
//! Every run is drawn from one seed: sizes, MTU, windows, options, loss, duplication, reordering and delay in both
//! directions, the pace of both readers and how the connection ends. Every byte is checked on both sides; on the wire,
//! that no segment leaves the client's window, that our window's edge never moves left by a whole unit, and that
//! super-segments are cut in whole packets. At the end no timer, buffer or byte of a budget is left.
//!
//! A failure names its seed; `T2S_SEED` is not read from the environment: put it into `one_seed`.

mod client;
mod link;
mod plan;
mod server;

use std::cell::Cell;
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::iface::{Config as IfaceConfig, Interface, PollResult, SocketSet};
use smoltcp::socket::tcp as client_tcp;
use smoltcp::time::{Duration, Instant as ClientInstant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint};

use t2s_core::tcp::{CloseReason, State};
use t2s_core::time::{MICROS, MILLIS, SECONDS};

use client::Client;
use link::{Link, Network};
use plan::{Ending, Plan, Rng};
use server::Server;

/// Virtual time after which a run has hung, nanoseconds.
const LONGEST: u64 = 4_000 * SECONDS;

thread_local! {
    /// The client's timestamp clock, milliseconds: smoltcp asks for a plain function.
    static CLIENT_CLOCK: Cell<u32> = const { Cell::new(0) };
}

fn run(plan: &Plan) {
    let mut rng = Rng(plan.seed ^ 0xa5a5_5a5a);
    let (local, remote): (IpAddr, IpAddr) = if plan.v6 {
        (Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).into(), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2).into())
    } else {
        (Ipv4Addr::new(192, 168, 69, 1).into(), Ipv4Addr::new(192, 168, 69, 2).into())
    };
    let mut server = Server::new((local, 80), (remote, 49_152));
    let mut link = Link { rx: VecDeque::new(), tx: Vec::new(), mtu: plan.mtu };
    let mut config = IfaceConfig::new(HardwareAddress::Ip);
    config.random_seed = plan.seed;
    let mut iface = Interface::new(config, &mut link, ClientInstant::ZERO);
    let address: IpAddress = remote.into();
    iface.update_ip_addrs(|list| list.push(IpCidr::new(address, if plan.v6 { 64 } else { 24 })).expect("room"));
    let mut socket = client_tcp::Socket::new(
        client_tcp::SocketBuffer::new(vec![0; plan.client_rx]),
        client_tcp::SocketBuffer::new(vec![0; plan.client_tx]),
    );
    if plan.timestamps {
        socket.set_tsval_generator(Some(|| CLIENT_CLOCK.get()));
    }
    socket.set_nagle_enabled(plan.seed.is_multiple_of(2));
    socket.set_ack_delay((!plan.seed.is_multiple_of(3)).then(|| Duration::from_millis(10)));
    let server_address: IpAddress = local.into();
    socket.connect(iface.context(), IpEndpoint::new(server_address, 80), 49_152).expect("a fresh socket connects");
    let mut sockets = SocketSet::new(Vec::new());
    let handle = sockets.add(socket);
    let mut client = Client::new(handle);
    let mut network = Network::default();
    let mut now = 1_000_000_u64;
    let mut accepted = false;
    let mut steps = 0_u64;
    loop {
        steps += 1;
        assert!(steps < 2_000_000, "seed {}: too many steps: {plan:?}", plan.seed);
        assert!(now < LONGEST, "seed {}: hung: {plan:?}\n{:?} {:?}", plan.seed, server.stats, server.counts);
        CLIENT_CLOCK.set((now / MILLIS) as u32);
        // Arrivals.
        let mut arrived = Vec::new();
        while let Some(entry) = network.packets.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let (to_client, packet) = entry.remove();
            if to_client {
                link.rx.push_back(packet);
            } else {
                arrived.push(packet);
            }
        }
        // Client. smoltcp counts microseconds.
        let client_now = ClientInstant::from_micros((now / MICROS) as i64);
        loop {
            let polled = iface.poll(client_now, &mut link, &mut sockets);
            let worked = client.run(plan, sockets.get_mut(client.handle), &mut rng, now);
            if !worked && polled == PollResult::None {
                break;
            }
        }
        for packet in std::mem::take(&mut link.tx) {
            network.send(plan, &mut rng, now, false, &packet);
        }
        // Server.
        server.handle_packets(plan, now, arrived);
        server.handle_timeout(plan, now);
        server.run_upstream(plan, &mut rng, now);
        for packet in server.transmit(plan, now) {
            network.send(plan, &mut rng, now, true, &packet);
        }
        accepted |= server.tcb.as_ref().is_some_and(|tcb| tcb.state() != State::SynPending);
        if plan.ending == Ending::ClientVanishes && accepted && client.received >= plan.down / 2 && now > 2 * SECONDS {
            network.cut = true;
        }
        // The end: both sides done, nothing under way.
        let socket = sockets.get::<client_tcp::Socket<'_>>(client.handle);
        let client_done = matches!(
            socket.state(),
            client_tcp::State::Closed | client_tcp::State::TimeWait | client_tcp::State::Listen
        );
        // Without our side a client may be left waiting for what it will never get: after a vanish, or a lost RST.
        let orderly = matches!(plan.ending, Ending::Both | Ending::ClientFirst | Ending::UpstreamFirst);
        let client_done = client_done && !socket.can_recv();
        if server.closed.is_some() && (client_done || !orderly) {
            break;
        }
        // Next event.
        let client_next = iface
            .poll_at(client_now, &sockets)
            .map_or(u64::MAX, |at| at.total_micros().max(0) as u64 * MICROS)
            .max(now + MICROS);
        let readable = sockets.get::<client_tcp::Socket<'_>>(client.handle).can_recv();
        let reader = if readable { client.next_read.max(now + MICROS) } else { u64::MAX };
        let network_next = network.packets.first_key_value().map_or(u64::MAX, |(key, _)| key.0);
        let next = client_next.min(reader).min(network_next).min(server.next_time(plan));
        assert!(
            next != u64::MAX,
            "seed {}: nothing to wait for: {plan:?}\n{:?} {:?}",
            plan.seed,
            server.stats,
            server.counts
        );
        now = next.max(now + 1);
    }
    let reason = server.closed.expect("the loop ends so");
    let context =
        format!("seed {}: {reason:?} after {now} ns: {plan:?}\n{:?}\n{:?}", plan.seed, server.stats, server.counts);
    match plan.ending {
        Ending::Both | Ending::ClientFirst | Ending::UpstreamFirst => {
            assert_eq!(reason, CloseReason::Finished, "{context}");
            assert_eq!(server.received, plan.up, "{context}");
            assert_eq!(client.received, plan.down, "{context}");
            assert!(server.peer_fin, "{context}");
        }
        Ending::ClientAborts => assert!(
            matches!(reason, CloseReason::PeerReset | CloseReason::RetransmitTimeout | CloseReason::KeepaliveTimeout),
            "{context}"
        ),
        Ending::ClientVanishes => {
            assert!(matches!(reason, CloseReason::KeepaliveTimeout | CloseReason::RetransmitTimeout), "{context}");
        }
        Ending::UpstreamAborts => assert_eq!(reason, CloseReason::Aborted, "{context}"),
        Ending::Refused => assert_eq!(reason, CloseReason::Refused, "{context}"),
        Ending::ReaderGone => assert!(
            matches!(reason, CloseReason::ReaderGone | CloseReason::KeepaliveTimeout | CloseReason::PeerReset),
            "{context}"
        ),
    }
    server.check_empty(plan);
}

fn seeds(ending: Ending, count: u64) {
    for seed in 0..count {
        run(&Plan::draw(seed * 1_000_003 + ending as u64, ending));
    }
}

#[test]
fn both_ends_close_when_done() {
    seeds(Ending::Both, 150);
}

#[test]
fn client_closes_first() {
    seeds(Ending::ClientFirst, 100);
}

#[test]
fn upstream_closes_first() {
    seeds(Ending::UpstreamFirst, 100);
}

#[test]
fn client_resets() {
    seeds(Ending::ClientAborts, 50);
}

#[test]
fn client_vanishes() {
    seeds(Ending::ClientVanishes, 50);
}

#[test]
fn upstream_aborts() {
    seeds(Ending::UpstreamAborts, 50);
}

#[test]
fn upstream_refuses() {
    seeds(Ending::Refused, 30);
}

#[test]
fn reader_goes_away() {
    seeds(Ending::ReaderGone, 50);
}

/// The place to repeat a failure.
#[test]
fn one_seed() {
    run(&Plan::draw(172_000_517, Ending::ClientFirst));
}
