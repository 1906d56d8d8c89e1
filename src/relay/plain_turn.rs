//! The turns of a plain transaction, straight through: the client's group is written, the reply is written, and that is all.
//!
//! What [`super::turns`] does in its loops, without a loop, as long as every step is what it nearly always is. Wherever one
//! is not, the exchange is left as that step made it, and the loops go on from there.

use std::task::{Context, Poll};

use super::to_backend::Scan;
use super::turns::Step;
use super::{Exchange, Outcome, Parties};

impl Exchange {
    /// Goes as far as a plain transaction goes at a time. `None`: the loops must see to it.
    pub(super) fn poll_plain(&mut self, cx: &mut Context<'_>, parties: &mut Parties<'_>) -> Option<Poll<Outcome>> {
        if self.is_unusual || parties.subscription.is_some() || !self.up.is_written() || !self.down.is_empty() {
            return None;
        }
        match (self.pipeline.is_quiet(), self.sent_to_backend) {
            (true, 0) if !self.up.is_empty() => self.poll_plain_up(cx, parties),
            (false, 1..) => self.poll_plain_down(cx, parties),
            _ => None,
        }
    }

    fn poll_plain_up(&mut self, cx: &mut Context<'_>, parties: &mut Parties<'_>) -> Option<Poll<Outcome>> {
        match self.pass_plain_group(parties) {
            Some(Scan::NeedsBackend) => return Some(Poll::Ready(Outcome::NeedsBackend)),
            Some(_) => {}
            None => {
                self.is_unusual = true;
                return None;
            }
        }
        match self.poll_write_up(cx) {
            Step::Moved => {}
            Step::Waiting => return None,
            Step::Stop(outcome) => return Some(Poll::Ready(outcome)),
        }
        // More of the client's, and its end, are heard of from here on.
        match self.up.poll_read(cx, parties.client, 0) {
            Poll::Pending => {}
            Poll::Ready(Ok(1..)) => return None,
            Poll::Ready(_) => return Some(Poll::Ready(Outcome::ClientGone)),
        }
        self.tallied_at.get_or_insert(parties.rules.pool.coarse_now());
        match self.poll_read_down(cx, 0)? {
            Step::Waiting => Some(Poll::Pending),
            Step::Moved => self.end_plain(cx, parties),
            Step::Stop(outcome) => Some(Poll::Ready(outcome)),
        }
    }

    fn poll_plain_down(&mut self, cx: &mut Context<'_>, parties: &mut Parties<'_>) -> Option<Poll<Outcome>> {
        match self.poll_read_down(cx, 0)? {
            // It was the client's side that has moved.
            Step::Waiting => None,
            Step::Moved => self.end_plain(cx, parties),
            Step::Stop(outcome) => Some(Poll::Ready(outcome)),
        }
    }

    /// PostgreSQL has said something: if it is all that was asked for, the client is told, and the backend can be given back.
    fn end_plain(&mut self, cx: &mut Context<'_>, parties: &mut Parties<'_>) -> Option<Poll<Outcome>> {
        if !self.pass_plain_replies(parties) {
            return None;
        }
        match self.poll_write_down(cx, parties) {
            Step::Moved => self.resting_place(parties).map(Poll::Ready),
            Step::Waiting => None,
            Step::Stop(outcome) => Some(Poll::Ready(outcome)),
        }
    }
}
