//! Both directions polled in turn, each until it must wait, and where an exchange may stop.

use std::task::{Context, Poll};
use std::time::Instant;

use super::{Exchange, Loss, Outcome, Parties, to_backend};
use crate::config::PoolMode;
use crate::protocol::Violation;
use crate::wire::backend_message::TransactionStatus;

/// Answers of ours that may wait for the client, in bytes, before nothing more is read from it.
const UNREAD_ANSWERS_MAX: usize = 64 * 1024;
/// Buffers that one direction may move in a row before the other is looked at.
const TURN_LEN: usize = 16;

/// Bytes of a transfer that is still under way, of which the metrics are told at once.
const UNCOUNTED_BYTES_MAX: u64 = 1024 * 1024;
/// How long fewer of them may go untold, in milliseconds.
const UNCOUNTED_MS_MAX: u64 = 2000;

/// How far one direction has come.
pub(super) enum Step {
    /// It went on, and may or may not have to wait now.
    Moved,
    /// It had to wait at once.
    Waiting,
    Stop(Outcome),
}

impl Step {
    /// The same, behind what happened before it.
    fn behind(self, before: Self) -> Self {
        match self {
            Self::Waiting => before,
            step => step,
        }
    }
}

impl Exchange {
    /// Goes as far as the sockets let it. Ready with the next thing that the session must decide.
    ///
    /// PostgreSQL's side comes first: a reply that settles the exchange spares a look at the client's socket.
    pub fn poll(&mut self, cx: &mut Context<'_>, parties: &mut Parties<'_>) -> Poll<Outcome> {
        loop {
            if parties.subscription.is_some()
                && let Some(outcome) = self.poll_notifications(cx, parties)
            {
                return Poll::Ready(outcome);
            }
            let polled = match self.poll_plain(cx, parties) {
                Some(polled) => polled,
                None => self.poll_both(cx, parties),
            };
            if polled.is_ready() || !self.listens.poll_awaited(cx) {
                return polled;
            }
        }
    }

    fn poll_both(&mut self, cx: &mut Context<'_>, parties: &mut Parties<'_>) -> Poll<Outcome> {
        // A backend that was sent nothing yet is listened to when the client's message is with it.
        let mut down = match self.sent_to_backend == 0 && self.down.is_empty() {
            true => Step::Moved,
            false => self.poll_down(cx, parties),
        };
        loop {
            let down_waits = match down {
                Step::Stop(outcome) => return Poll::Ready(outcome),
                Step::Waiting => true,
                Step::Moved => false,
            };
            if !down_waits
                && self.all_is_answered()
                && !self.ask(parties)
                && let Some(outcome) = self.resting_place(parties)
            {
                return Poll::Ready(outcome);
            }
            let up_waits = match self.poll_up(cx, parties) {
                Step::Stop(outcome) => return Poll::Ready(outcome),
                Step::Waiting => true,
                Step::Moved => false,
            };
            if self.ask(parties) {
                down = Step::Moved;
                continue;
            }
            if let Some(outcome) = self.resting_place(parties) {
                return Poll::Ready(outcome);
            }
            if down_waits && up_waits && self.down.is_written() && !self.take_second_try() {
                return Poll::Pending;
            }
            down = self.poll_down(cx, parties);
            // The client's side has waited: only what PostgreSQL said since could bring it further.
            if matches!(down, Step::Waiting) && !self.take_second_try() {
                return Poll::Pending;
            }
        }
    }

    /// Something was sent, and all of it is answered.
    fn all_is_answered(&self) -> bool {
        self.sent_to_backend > 0 && self.pipeline.owes_nothing()
    }

    /// Nothing waits and no backend is held: the exchange can be dropped.
    pub fn is_drained(&self) -> bool {
        self.lease.is_none()
            && self.up.is_empty()
            && self.down.is_empty()
            && self.pipeline.owes_nothing()
            && self.lost.is_none()
            && self.deferred.is_none()
    }

    /// Where the exchange may stop between two messages.
    pub(super) fn resting_place(&mut self, parties: &Parties<'_>) -> Option<Outcome> {
        if self.new_pins || self.catalog_touched || self.refused_pin.is_some() {
            return Some(Outcome::Noted);
        }
        if self.lease.is_none() {
            return self.is_drained().then_some(Outcome::Drained);
        }
        if !self.pipeline.owes_nothing() || !self.up.is_written() || !self.down_is_decided() {
            return self.is_tally_due(parties).then_some(Outcome::Noted);
        }
        if self.pipeline.status() != TransactionStatus::Idle || !self.up.next_is_incomplete() {
            return None;
        }
        let held = parties.rules.mode == PoolMode::Session || !parties.session.pins().is_empty();
        if !held && parties.session.is_in_doubt() {
            return None;
        }
        if !held {
            return Some(Outcome::Settled);
        }
        if self.tally.transactions > 0 {
            return Some(Outcome::Noted);
        }
        (self.ends_at_boundary && self.down.is_written()).then_some(Outcome::Boundary)
    }

    /// A long transfer shows in the metrics while it runs: two comparisons and a load each time that the sockets are
    /// waited for, nothing per message.
    fn is_tally_due(&mut self, parties: &Parties<'_>) -> bool {
        let bytes = self.tally.bytes_to_backend + self.tally.bytes_to_client;
        let now = parties.rules.pool.coarse_now();
        let since = *self.tallied_at.get_or_insert(now);
        let is_due = bytes >= UNCOUNTED_BYTES_MAX || (bytes > 0 && now.saturating_sub(since) >= UNCOUNTED_MS_MAX);
        if is_due {
            self.tallied_at = Some(now);
        }
        is_due
    }

    pub(super) fn down_is_decided(&self) -> bool {
        self.down.undecided().is_empty() && !self.down.is_amid_message()
    }

    /// Decides on what the client has said, sends it, and reads more, until something must be waited for.
    fn poll_up(&mut self, cx: &mut Context<'_>, parties: &mut Parties<'_>) -> Step {
        let mut step = Step::Waiting;
        for _ in 0..TURN_LEN {
            if !self.up.is_written() {
                match self.poll_write_up(cx) {
                    Step::Moved => step = Step::Moved,
                    stopped => return stopped.behind(step),
                }
            }
            let whole = match self.scan_client(parties) {
                Ok(to_backend::Scan::NeedsBackend) => return Step::Stop(Outcome::NeedsBackend),
                Ok(to_backend::Scan::Terminated) => return Step::Stop(Outcome::ClientGone),
                // An answer is awaited first, of what may not have been sent yet.
                Ok(to_backend::Scan::Held) if self.up.is_written() => return step,
                Ok(to_backend::Scan::Held) => return self.poll_write_up(cx).behind(step),
                Ok(to_backend::Scan::Wants(whole)) => whole,
                Err(report) => return Step::Stop(Outcome::ClientViolation(Box::new(report))),
            };
            if !self.up.is_written() {
                continue;
            }
            if !self.down.is_written() && (self.lease.is_none() || self.down.said_len() > UNREAD_ANSWERS_MAX) {
                return step;
            }
            match self.up.poll_read(cx, parties.client, whole) {
                Poll::Pending => return step,
                Poll::Ready(Ok(1..)) => step = Step::Moved,
                Poll::Ready(_) => return Step::Stop(Outcome::ClientGone),
            }
        }
        // The other direction and other clients have their turn.
        cx.waker().wake_by_ref();
        Step::Moved
    }

    pub(super) fn poll_write_up(&mut self, cx: &mut Context<'_>) -> Step {
        let Some(lease) = self.lease.as_mut() else {
            return Step::Waiting;
        };
        let written = self.up.poll_write(cx, &mut lease.stream);
        let bytes = self.up.take_written();
        self.sent_to_backend += bytes;
        self.tally.bytes_to_backend += bytes;
        match written {
            Poll::Pending => Step::Waiting,
            Poll::Ready(Ok(())) => Step::Moved,
            // What the backend said before it closed is worth more than the broken pipe.
            Poll::Ready(Err(error)) => match self.drain_last_words(cx) {
                Some(step) => step,
                None => Step::Stop(self.lost_backend(&error.to_string())),
            },
        }
    }

    /// After a failed write: a FATAL may stand in the socket.
    fn drain_last_words(&mut self, cx: &mut Context<'_>) -> Option<Step> {
        let lease = self.lease.as_mut()?;
        if self.sent_to_backend == 0 || !self.down.is_written() {
            return None;
        }
        match self.down.poll_read(cx, &mut lease.stream, 0) {
            Poll::Ready(Ok(1..)) => {
                self.note_last_words();
                None
            }
            _ => None,
        }
    }

    /// Tells the client what PostgreSQL has said, and reads more, until something must be waited for or all that was
    /// asked is answered.
    fn poll_down(&mut self, cx: &mut Context<'_>, parties: &mut Parties<'_>) -> Step {
        let mut step = Step::Waiting;
        for _ in 0..TURN_LEN {
            if !self.down.is_written() {
                match self.poll_write_down(cx, parties) {
                    Step::Moved => step = Step::Moved,
                    stopped => return stopped.behind(step),
                }
            }
            let whole = match self.down.undecided().is_empty() {
                true => 0,
                false => match self.scan_backend(parties) {
                    Ok(whole) => whole,
                    Err(outcome) => return Step::Stop(outcome),
                },
            };
            if !self.down.is_written() {
                continue;
            }
            if matches!(step, Step::Moved) && self.all_is_answered() {
                return step;
            }
            if self.listens.is_holding_ready() {
                return step;
            }
            match self.poll_read_down(cx, whole) {
                Some(Step::Moved) => step = Step::Moved,
                Some(stopped) => return stopped.behind(step),
                None => return step,
            }
        }
        cx.waker().wake_by_ref();
        Step::Moved
    }

    /// `None`: there is no backend.
    #[inline]
    pub(super) fn poll_read_down(&mut self, cx: &mut Context<'_>, whole: usize) -> Option<Step> {
        let lease = self.lease.as_mut()?;
        Some(match self.down.poll_read(cx, &mut lease.stream, whole) {
            Poll::Pending => Step::Waiting,
            Poll::Ready(Ok(1..)) => Step::Moved,
            Poll::Ready(Ok(0)) => Step::Stop(self.lost_backend("it closed the connection")),
            Poll::Ready(Err(error)) => Step::Stop(self.lost_backend(&error.to_string())),
        })
    }

    pub(super) fn poll_write_down(&mut self, cx: &mut Context<'_>, parties: &mut Parties<'_>) -> Step {
        let written = self.down.poll_write(cx, parties.client);
        let bytes = self.down.take_written();
        self.tally.bytes_to_client += bytes;
        if bytes > 0 {
            self.stalled_since = None;
        }
        match written {
            Poll::Pending => {
                self.stalled_since.get_or_insert_with(Instant::now);
                Step::Waiting
            }
            Poll::Ready(Ok(())) => Step::Moved,
            Poll::Ready(Err(_)) => Step::Stop(Outcome::ClientGone),
        }
    }

    pub(super) fn lost_backend(&mut self, cause: &str) -> Outcome {
        self.is_unusual = true;
        let parting = self.parting_warning.take();
        let last_words = self.last_words.take();
        // A crash may come right behind a commit: its warning proves nothing.
        let last_words = last_words.or_else(|| parting.filter(|_| !self.commit_at_risk));
        Outcome::BackendLost(Box::new(Loss {
            last_words,
            cause: cause.to_owned(),
            runs_on: false,
            untouched: self.sent_to_backend == 0
                && (self.deferred.is_some() || self.pipeline.status() == TransactionStatus::Idle),
        }))
    }

    pub(super) fn broken_backend(&mut self, violation: &Violation) -> Outcome {
        self.is_unusual = true;
        Outcome::BackendLost(Box::new(Loss {
            last_words: None,
            cause: violation.to_string(),
            runs_on: true,
            untouched: false,
        }))
    }
}
