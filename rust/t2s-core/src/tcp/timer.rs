//! Deadlines of a flow: three instants, of which the earliest counts.
//!
//! Timers are re-armed lazily. The caller keeps one wheel entry a flow and moves it only when [`Tcb::deadline`] becomes
//! *earlier*; an entry that fires too soon finds nothing due and is set again to the deadline of then. So a busy flow,
//! whose retransmission deadline moves with every acknowledgement, touches the wheel a few times a second.

use super::accept::SYN_ACK_RETRIES;
use super::receive::WINDOW_IDLE;
use super::{CloseReason, Ctx, Recovery, State, Tcb, facts, owed};
use crate::config::TcpConfig;
use crate::time::Instant;

/// Keepalive and idle deadlines that are switched off are looked at this rarely, nanoseconds: an hour.
const SLOW_LOOK: u64 = 3_600 * crate::time::SECONDS;

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerKind {
    /// The upstream's answer to the connect.
    Connect,
    /// Retransmission of data, FIN or SYN-ACK.
    Retransmit,
    /// Probe of a zero window, or of one too small to fill.
    Persist,
    /// A delayed acknowledgement.
    DelayedAck,
    /// Keepalive or idle check, or a grown window that is given back.
    Keepalive,
    /// FIN-WAIT-2 without traffic, the upstream being gone.
    FinWait2,
    /// End of TIME-WAIT.
    TimeWait,
}

impl Tcb {
    /// When [`Tcb::handle_timeout`] has something to do at the latest, and what; `None` if never.
    #[inline]
    #[must_use]
    pub fn deadline(&self) -> Option<(Instant, TimerKind)> {
        let at = self.rto_at.min(self.ack_at).min(self.slow_at);
        if at == Instant::FAR {
            return None;
        }
        let kind = if at == self.ack_at {
            TimerKind::DelayedAck
        } else if at == self.rto_at {
            if self.fact(facts::PERSIST) { TimerKind::Persist } else { TimerKind::Retransmit }
        } else {
            match self.state {
                State::SynPending => TimerKind::Connect,
                State::SynReceived
                | State::Established
                | State::CloseWait
                | State::FinWait1
                | State::Closing
                | State::LastAck
                | State::Closed => TimerKind::Keepalive,
                State::FinWait2 if !self.fact(facts::READER_GONE) => TimerKind::Keepalive,
                State::FinWait2 => TimerKind::FinWait2,
                State::TimeWait => TimerKind::TimeWait,
            }
        };
        Some((at, kind))
    }

    /// Does what is due at `ctx.now`; then poll for segments and events.
    pub fn handle_timeout(&mut self, ctx: &mut Ctx<'_>) {
        if self.ack_at <= ctx.now {
            self.ack_at = Instant::FAR;
            self.owed |= owed::ACK;
        }
        if self.rto_at <= ctx.now {
            self.rto_at = Instant::FAR;
            if self.fact(facts::PERSIST) {
                self.handle_persist(ctx);
            } else {
                self.handle_retransmit(ctx);
            }
        }
        if self.slow_at <= ctx.now {
            self.slow_at = Instant::FAR;
            self.handle_slow(ctx);
        }
        self.check();
    }

    /// Starts the timer that belongs to the state: keepalive and idle, or FIN-WAIT-2.
    pub(super) fn arm_slow_timer(&mut self, ctx: &Ctx<'_>) {
        if !self.fact(facts::CONNECTED) {
            // The connect timeout is running since the SYN.
            return;
        }
        let delay = match self.state {
            State::SynPending => ctx.config.connect_timeout,
            State::FinWait2 if self.fact(facts::READER_GONE) => or_rarely(ctx.config.fin_wait2),
            State::TimeWait => ctx.config.time_wait,
            State::Closed => return,
            State::SynReceived
            | State::Established
            | State::CloseWait
            | State::FinWait1
            | State::FinWait2
            | State::Closing
            | State::LastAck => or_rarely(ctx.config.keepalive_idle).min(or_rarely(ctx.config.idle_timeout)),
        };
        self.slow_at = ctx.now.plus(delay);
        self.watch_window(ctx);
    }

    /// A grown window is given back after a silence: looks when that may be due.
    pub(super) fn watch_window(&mut self, ctx: &Ctx<'_>) {
        let waits_otherwise = !self.fact(facts::CONNECTED) || matches!(self.state, State::TimeWait | State::Closed);
        if self.recv_grown > 0 && !waits_otherwise {
            self.slow_at = self.slow_at.min(ctx.now.plus(WINDOW_IDLE));
        }
    }

    /// Both ends have finished, and bytes of the client wait for the upstream. No segment will come any more: the
    /// upstream has as long, from one read to the next, as a client that does not answer.
    pub(super) fn arm_unread_timer(&mut self, ctx: &Ctx<'_>) {
        self.slow_at = ctx.now.plus(unread_limit(ctx.config));
    }

    /// The retransmission timer expired (RFC 6298, section 5.4 to 5.7; RFC 6675, section 5.1).
    fn handle_retransmit(&mut self, ctx: &mut Ctx<'_>) {
        if self.state == State::SynReceived {
            if self.unanswered >= SYN_ACK_RETRIES {
                self.close(ctx, CloseReason::RetransmitTimeout, true);
                return;
            }
            ctx.tcp.timeouts += 1;
            ctx.tcp.retransmits += 1;
            self.unanswered += 1;
            self.backoff = self.backoff.saturating_add(1);
            self.owed |= owed::SYN_ACK;
            return;
        }
        let flight = self.flight();
        if flight == 0 {
            return;
        }
        if self.unanswered >= ctx.config.retransmit_limit {
            self.close(ctx, CloseReason::RetransmitTimeout, true);
            return;
        }
        ctx.tcp.timeouts += 1;
        let first = self.backoff == 0;
        self.unanswered = self.unanswered.saturating_add(1);
        self.backoff = self.backoff.saturating_add(1);
        self.suspect_black_hole();
        self.cc.on_timeout(flight, u32::from(self.mss), first);
        if !first {
            // Twice without progress: what the client once SACKed it may have dropped (RFC 2018, section 8).
            self.scoreboard = None;
        }
        self.recovery = Recovery::Loss;
        self.recovery_point = self.snd_nxt;
        self.rexmit_nxt = self.snd_una;
        self.duplicate_acks = 0;
        self.duplicate_bytes = 0;
        self.clear_fact(facts::TIMED);
        self.rto_at = ctx.now.plus(self.rtt.timeout(ctx.config, self.backoff));
    }

    /// The persist timer expired (RFC 9293, section 3.8.6.1; RFC 1122, section 4.2.3.4).
    fn handle_persist(&mut self, ctx: &mut Ctx<'_>) {
        if self.unanswered >= ctx.config.retransmit_limit {
            self.close(ctx, CloseReason::RetransmitTimeout, true);
            return;
        }
        self.unanswered = self.unanswered.saturating_add(1);
        self.backoff = self.backoff.saturating_add(1);
        self.owed |= owed::PROBE;
    }

    /// The timer of the state expired, or came up early because it is re-armed lazily.
    fn handle_slow(&mut self, ctx: &mut Ctx<'_>) {
        let quiet = ctx.now.since(self.last_received);
        match self.state {
            State::SynPending => self.close(ctx, CloseReason::ConnectTimeout, false),
            State::SynReceived | State::Established | State::CloseWait if !self.fact(facts::CONNECTED) => {
                self.close(ctx, CloseReason::ConnectTimeout, true);
            }
            State::TimeWait => self.finish(ctx),
            State::Closed if self.recv.is_empty() => {}
            State::Closed => {
                self.reason = CloseReason::IdleTimeout;
                self.events.insert(super::Events::RESET);
                self.forget_unread(ctx);
            }
            State::FinWait2 if self.fact(facts::READER_GONE) => {
                let limit = ctx.config.fin_wait2;
                if limit != 0 && quiet >= limit {
                    self.close(ctx, CloseReason::FinWait2Timeout, true);
                } else {
                    self.slow_at = if limit == 0 { ctx.now.plus(SLOW_LOOK) } else { self.last_received.plus(limit) };
                }
            }
            State::SynReceived
            | State::Established
            | State::CloseWait
            | State::FinWait1
            | State::FinWait2
            | State::Closing
            | State::LastAck => self.handle_quiet(ctx, quiet),
        }
    }

    /// Keepalive (RFC 1122, section 4.2.3.6) and the idle limit, after `quiet` nanoseconds without a segment.
    fn handle_quiet(&mut self, ctx: &mut Ctx<'_>, quiet: u64) {
        let config = ctx.config;
        if config.idle_timeout != 0 && quiet >= config.idle_timeout {
            self.close(ctx, CloseReason::IdleTimeout, true);
            return;
        }
        let mut wait = SLOW_LOOK;
        if config.idle_timeout != 0 {
            wait = config.idle_timeout - quiet;
        }
        if config.keepalive_idle != 0 {
            let interval = config.keepalive_interval.max(1);
            // With data on the way the retransmission timer asks the same question, more often.
            if self.flight() > 0 || self.state == State::SynReceived {
                wait = wait.min(interval);
            } else if quiet < config.keepalive_idle {
                wait = wait.min(config.keepalive_idle - quiet);
            } else if (quiet - config.keepalive_idle) / interval >= u64::from(config.keepalive_probes) {
                self.close(ctx, CloseReason::KeepaliveTimeout, true);
                return;
            } else {
                self.owed |= owed::KEEPALIVE;
                wait = wait.min(interval);
            }
        }
        self.slow_at = ctx.now.plus(wait);
        self.shrink_idle_window(ctx);
        self.watch_window(ctx);
    }
}

/// A delay of which 0 means "never": looked at rarely.
fn or_rarely(delay: u64) -> u64 {
    if delay == 0 { SLOW_LOOK } else { delay }
}

/// How long bytes of a client that has finished wait for an upstream that takes none: the idle limit, else until a
/// client would be given up by keepalive.
fn unread_limit(config: &TcpConfig) -> u64 {
    if config.idle_timeout != 0 {
        return config.idle_timeout;
    }
    let probes = config.keepalive_interval.saturating_mul(config.keepalive_probes.into());
    or_rarely(config.keepalive_idle).saturating_add(probes)
}
