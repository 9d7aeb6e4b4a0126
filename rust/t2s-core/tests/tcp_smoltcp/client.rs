//! The client's end: an application on smoltcp's socket.

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp as client_tcp;

use super::plan::{Ending, Plan, Rng, byte};

/// The client's application.
pub(super) struct Client {
    pub(super) handle: SocketHandle,
    sent: usize,
    pub(super) received: usize,
    pub(super) next_read: u64,
    stalled: bool,
    closed: bool,
    aborted: bool,
}

impl Client {
    pub(super) fn new(handle: SocketHandle) -> Self {
        Self { handle, sent: 0, received: 0, next_read: 0, stalled: false, closed: false, aborted: false }
    }

    pub(super) fn run(&mut self, plan: &Plan, socket: &mut client_tcp::Socket<'_>, rng: &mut Rng, now: u64) -> bool {
        let mut worked = false;
        if socket.can_send() && self.sent < plan.up {
            let len = (plan.up - self.sent).min(20_000);
            let bytes: Vec<u8> = (0..len).map(|at| byte(1, self.sent + at)).collect();
            let taken = socket.send_slice(&bytes).expect("can_send");
            self.sent += taken;
            worked |= taken > 0;
        }
        if plan.client_stall > 0 && !self.stalled && self.received > plan.down / 2 {
            self.stalled = true;
            self.next_read = now + plan.client_stall;
        }
        // smoltcp forgets unread bytes when its TIME-WAIT ends.
        let last_chance = socket.state() == client_tcp::State::TimeWait;
        if socket.can_recv() && (self.next_read <= now || last_chance) {
            let most = if plan.client_pause > 0 { rng.range(1, 30_000) as usize } else { usize::MAX };
            let at = self.received;
            let taken = socket
                .recv(|bytes| {
                    let len = bytes.len().min(most);
                    for (index, &found) in bytes[..len].iter().enumerate() {
                        assert_eq!(found, byte(2, at + index), "seed {}: byte {} down", plan.seed, at + index);
                    }
                    (len, len)
                })
                .expect("can_recv");
            self.received += taken;
            if plan.client_pause > 0 {
                self.next_read = now + plan.client_pause;
            }
            worked |= taken > 0;
        }
        let may_close = match plan.ending {
            Ending::UpstreamFirst => !socket.may_recv() && socket.state() != client_tcp::State::SynSent,
            Ending::Both | Ending::ClientFirst => true,
            Ending::ClientAborts
            | Ending::ClientVanishes
            | Ending::UpstreamAborts
            | Ending::Refused
            | Ending::ReaderGone => false,
        };
        let connected = socket.may_send();
        if may_close && connected && self.sent == plan.up && !self.closed {
            self.closed = true;
            socket.close();
            worked = true;
        }
        let aborts = plan.ending == Ending::ClientAborts && self.received >= plan.down / 2;
        if aborts && connected && self.sent >= plan.up / 2 && !self.aborted {
            self.aborted = true;
            socket.abort();
            worked = true;
        }
        worked
    }
}
