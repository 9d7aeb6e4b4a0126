//! What both sides of a handshake do alike: stand somewhere, collect messages that arrive in pieces, and keep what is
//! to be sent.
//!
//! Promises: of the bytes given, those up to the end of the handshake are taken and no more; once failed, always
//! failed. What a message means, and how long it is, is for each side to say.

use core::fmt;

use super::{Error, Stage};

/// Where a handshake stands: by what it waits for, then how it ended.
#[derive(Debug)]
pub(super) enum State<O> {
    Method,
    Password,
    Request,
    Over(O),
    Failed,
}

/// One side of a handshake.
pub(super) struct Exchange<O> {
    state: State<O>,
    inbox: Inbox,
    pub(super) out: Outbox,
}

impl<O> Exchange<O> {
    /// Waits for the first message, with nothing to send.
    pub(super) fn new() -> Self {
        Self { state: State::Method, inbox: Inbox::default(), out: Outbox::default() }
    }

    /// The stage whose message is whole, if there is one: look at [`Self::message`] and go on with [`Self::proceed`].
    /// `data` is what arrived, of which `taken` bytes were taken so far; `needed` says how long a message is, see
    /// [`Inbox::fill`].
    pub(super) fn next_message(
        &mut self,
        data: &[u8],
        taken: &mut usize,
        needed: impl Fn(Stage, &[u8]) -> usize,
    ) -> Result<Option<Stage>, Error> {
        match self.state {
            State::Method | State::Password | State::Request => {}
            State::Over(_) => return Ok(None),
            State::Failed => return Err(Error::AlreadyFailed),
        }
        let stage = self.stage();
        let (used, whole) = self.inbox.fill(data.get(*taken..).unwrap_or_default(), |known| needed(stage, known));
        *taken += used;
        Ok(whole.then_some(stage))
    }

    /// The message that is here.
    pub(super) fn message(&self) -> &[u8] {
        &self.inbox.bytes
    }

    /// Forgets the message, which led to a new state, or to the end.
    pub(super) fn proceed(&mut self, next: Result<State<O>, Error>) -> Result<(), Error> {
        self.inbox.bytes.clear();
        match next {
            Ok(next) => self.state = next,
            Err(error) => {
                self.state = State::Failed;
                return Err(error);
            }
        }
        Ok(())
    }

    pub(super) fn outcome(&self) -> Option<&O> {
        match &self.state {
            State::Over(outcome) => Some(outcome),
            State::Method | State::Password | State::Request | State::Failed => None,
        }
    }

    pub(super) fn stage(&self) -> Stage {
        match self.state {
            State::Method => Stage::Method,
            State::Password => Stage::Password,
            State::Request => Stage::Request,
            State::Over(_) | State::Failed => Stage::Over,
        }
    }
}

impl<O: fmt::Debug> fmt::Debug for Exchange<O> {
    /// Without the bytes of either direction, which may have credentials among them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("state", &self.state).finish_non_exhaustive()
    }
}

/// Collects a message that arrives in pieces, so that it can be looked at as one slice.
#[derive(Default)]
struct Inbox {
    bytes: Vec<u8>,
}

impl Inbox {
    /// Takes as much of `data` as the message that stands here still needs, and no more: `needed` says how long it is,
    /// as far as what is here tells (never less than that, once it knows better). Returns the bytes taken and whether
    /// the message is whole.
    fn fill(&mut self, data: &[u8], needed: impl Fn(&[u8]) -> usize) -> (usize, bool) {
        let mut taken = 0;
        loop {
            let missing = needed(&self.bytes).saturating_sub(self.bytes.len());
            if missing == 0 {
                return (taken, true);
            }
            let Some(more) = data.get(taken..).filter(|more| !more.is_empty()) else { return (taken, false) };
            let more = more.get(..missing).unwrap_or(more);
            self.bytes.extend_from_slice(more);
            taken += more.len();
        }
    }
}

/// Bytes to be sent, which may leave in pieces.
#[derive(Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outbox {
    /// What is still to be sent; `None` if that is nothing.
    pub(crate) fn rest(&self) -> Option<&[u8]> {
        self.bytes.get(self.sent..).filter(|rest| !rest.is_empty())
    }

    /// `n` more bytes were sent.
    pub(crate) fn handle_sent(&mut self, n: usize) {
        self.sent = (self.sent + n).min(self.bytes.len());
        if self.sent == self.bytes.len() {
            self.bytes.clear();
            self.sent = 0;
        }
    }

    /// Where to append what comes next.
    pub(crate) fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl From<Vec<u8>> for Outbox {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, sent: 0 }
    }
}
