//! The simulated link: the client's device, and a network that loses, doubles and delays packets.

use std::collections::{BTreeMap, VecDeque};

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant as ClientInstant;

use super::plan::{Plan, Rng};

/// The client's device.
pub(super) struct Link {
    pub(super) rx: VecDeque<Vec<u8>>,
    pub(super) tx: Vec<Vec<u8>>,
    pub(super) mtu: usize,
}

pub(super) struct Rx(Vec<u8>);

pub(super) struct Tx<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}

impl Device for Link {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: ClientInstant) -> Option<(Rx, Tx<'_>)> {
        Some((Rx(self.rx.pop_front()?), Tx(&mut self.tx)))
    }

    fn transmit(&mut self, _: ClientInstant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

/// Packets under way: by arrival time, then by order of sending.
#[derive(Default)]
pub(super) struct Network {
    pub(super) packets: BTreeMap<(u64, u64), (bool, Vec<u8>)>,
    sent: u64,
    pub(super) cut: bool,
}

impl Network {
    pub(super) fn send(&mut self, plan: &Plan, rng: &mut Rng, now: u64, to_client: bool, packet: &[u8]) {
        if self.cut || rng.chance(plan.loss) {
            return;
        }
        let copies = 1 + u64::from(rng.chance(plan.duplicate));
        for _ in 0..copies {
            let late = if rng.chance(plan.reorder) { rng.below(plan.jitter) } else { 0 };
            self.sent += 1;
            self.packets.insert((now + plan.delay + late, self.sent), (to_client, packet.to_vec()));
        }
    }
}
