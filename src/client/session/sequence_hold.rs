//! A client that drew a value of a sequence keeps its backend until it has asked for it, or is not expected to any more.
//!
//! The pin yields: while others wait for a backend it lasts a tenth of `pool.sequence_pin_timeout`, and half as long each time
//! that the client did not ask. It counts from the transaction that drew first, so that a client which goes on writing and
//! never asks does not hold its backend by that.

use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::alarm::Alarm;
use super::{Session, Then};
use crate::config::PoolMode;
use crate::relay::Exchange;
use crate::virtual_session::pins::PinSet;

/// The share of `pool.sequence_pin_timeout` for which a client is waited for though others wait for its backend.
const SHARE_WHILE_OTHERS_WAIT: u32 = 10;
/// How often it is looked at whether others have begun to wait.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// When the pin began, and when to look at it next.
#[derive(Debug, Default)]
pub struct SequenceHold {
    since: Option<Instant>,
    alarm: Alarm,
}

impl SequenceHold {
    /// Ready when the time has come to look.
    pub fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.alarm.poll_due(cx)
    }
}

impl Session {
    /// The backend is lost, and with it the value that it was kept for.
    pub(super) fn lose_sequence(&mut self) {
        if self.ledger.is_pinned_for_sequence_alone() {
            self.ledger.lose_sequence();
            self.sequence_hold = SequenceHold::default();
            self.announced = PinSet::EMPTY;
        }
    }

    /// Between two transactions: gives the backend back where only a sequence pins it, and that is over.
    pub(super) async fn look_at_sequence_pin(&mut self, exchange: &mut Exchange) -> Option<Then> {
        if !self.ledger.is_pinned_for_sequence_alone() {
            self.sequence_hold = SequenceHold::default();
            return None;
        }
        let is_shared =
            self.settings.mode != PoolMode::Session && exchange.lease().is_some_and(|lease| !lease.is_dedicated());
        if !is_shared || !exchange.is_between_transactions() {
            // The end of the transaction brings it here again.
            return None;
        }
        let now = Instant::now();
        if self.ledger.is_in_doubt() {
            self.sequence_hold.alarm.set(now + LOOK_EVERY);
            return None;
        }
        let since = *self.sequence_hold.since.get_or_insert(now);
        if self.ledger.may_ask_for_sequence() {
            let limit = self.settings.sequence_pin_timeout?;
            let while_others_wait = limit / SHARE_WHILE_OTHERS_WAIT / (1 << self.ledger.sequence_halvings());
            let (yields_at, ends_at) = (since + while_others_wait, since + limit);
            let is_over = now >= ends_at || (now >= yields_at && self.pool.is_waited_for());
            if !is_over {
                let next_look = yields_at.max(now + LOOK_EVERY).min(ends_at);
                self.sequence_hold.alarm.set(next_look);
                return None;
            }
        }
        self.ledger.end_sequence_pin();
        self.sequence_hold = SequenceHold::default();
        self.give_back_in_doubt(exchange).await
    }
}
