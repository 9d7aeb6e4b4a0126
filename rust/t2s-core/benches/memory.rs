//! What idle TCP flows cost in resident memory: 100,000 of them, opened, used once, then idle. Target: 2 KiB each.
//!
//! Not a timing: the figure is the growth of the resident set, read from `/proc/self/statm` before and after.

mod packets;

use std::sync::Arc;

use t2s_core::buf::{Pool, PoolConfig};
use t2s_core::config::Config;
use t2s_core::stack::{Packet, Request, Stack, WorkerMap};
use t2s_core::time::Instant;
use t2s_core::wire::tcp::{Flags, Options, SeqNumber, Tcp};

use packets::{client, index_of, tcp};

/// Flows of the target.
const FLOWS: usize = 100_000;

/// Bytes of a page, which is what `statm` counts in on the machines that this runs on.
const PAGE: usize = 4_096;

/// Flows that are opened together.
const BATCH: usize = 64;

fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    let pages: usize = text.split_whitespace().nth(1).and_then(|field| field.parse().ok()).expect("two numbers");
    pages * PAGE
}

fn packet(index: usize, flags: Flags, seq: u32, ack: SeqNumber, payload: &[u8]) -> Vec<u8> {
    let offer = Options { mss: Some(1_460), window_scale: Some(7), sack_permitted: true, ..Options::NONE };
    tcp(client(index), flags, seq, ack, offer, payload)
}

/// One turn with a sink that sends five bytes back; `seen` gets each header on its way out.
fn turn(stack: &mut Stack, now: Instant, packets: &[Vec<u8>], mut seen: impl FnMut(&[u8])) {
    let mut batch: Vec<Packet> = packets
        .iter()
        .map(|packet| Packet::plain(stack.pool().alloc_copy(packet, 0).expect("below the ceiling")))
        .collect();
    stack.handle_batch(now, &mut batch);
    while let Some(request) = stack.poll_request(now) {
        match request {
            Request::Connect { flow, .. } => stack.connected(now, flow),
            Request::Readable(flow) => {
                let len = stack.readable(flow).map(<[u8]>::len).sum();
                stack.consume(now, flow, len);
                let reply = stack.pool().alloc_copy(b"reply", 128).expect("below the ceiling");
                stack.upstream_data(now, flow, reply).expect("the flow is open");
            }
            _ => {}
        }
    }
    while let Some(transmit) = stack.poll_transmit(now) {
        seen(transmit.header);
    }
}

fn main() {
    let config = Config { max_tcp_flows: FLOWS as u32, ..Config::default() };
    let pool = Pool::new(PoolConfig::default());
    let map = Arc::new(WorkerMap::new(&config, 1, 1));
    let now = Instant::from_millis(1);
    let before = resident();
    let mut stack = Stack::for_worker(config, &pool, &map, 0, now);
    for first in (0..FLOWS).step_by(BATCH) {
        let flows = first..FLOWS.min(first + BATCH);
        let mut acks = vec![SeqNumber(0); BATCH];
        let slot = |header: &[u8], tcp: &Tcp| index_of(header[18], tcp.dst_port) - first;
        let syns: Vec<_> = flows.clone().map(|i| packet(i, Flags::SYN, 0, SeqNumber(0), b"")).collect();
        turn(&mut stack, now, &syns, |header| {
            let tcp = Tcp::parse(&header[20..]).expect("a SYN-ACK");
            acks[slot(header, &tcp)] = tcp.seq + 1;
        });
        let data: Vec<_> = flows.clone().map(|i| packet(i, Flags::ACK, 1, acks[i - first], b"query")).collect();
        turn(&mut stack, now, &data, |_| {});
        let done: Vec<_> = flows.map(|i| packet(i, Flags::ACK, 6, acks[i - first] + 5, b"")).collect();
        turn(&mut stack, now, &done, |_| {});
    }
    let stats = stack.stats();
    assert_eq!((stats.flows, stats.buffered, stats.drops.total()), (FLOWS as u64, 0, 0), "all open, nothing held");
    assert_eq!(pool.stats().live_buffers, 0, "an idle flow holds no buffer");
    let each = (resident() - before) as f64 / FLOWS as f64;
    println!("{FLOWS} idle TCP flows: {each:.0} bytes of resident memory each (target: 2048)");
    stack.shutdown(now);
    while stack.poll_transmit(now).is_some() {}
    while stack.poll_request(now).is_some() {}
    stack.trim();
    assert_eq!((stack.stats().flows, map.len()), (0, 0), "nothing is left");
}
