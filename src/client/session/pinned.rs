//! A client's pins: told when they begin, and questioned when they may be over.

use tokio::time::error::Elapsed;

use super::{Session, Then};
use crate::backend::BackendError;
use crate::config::PoolMode;
use crate::pool::Lease;
use crate::relay::{Exchange, Loss, Rules};
use crate::virtual_session::pin_end::{self, PinProof};
use crate::virtual_session::pins::{PinReason, PinSet};

impl Session {
    /// A transaction of a pinned client has ended: when the client has been still for `pool.pin_check`, its pins are
    /// questioned.
    pub(super) fn watch_pins(&mut self, exchange: &mut Exchange) {
        let is_shared =
            self.settings.mode != PoolMode::Session && exchange.lease().is_some_and(|lease| !lease.is_dedicated());
        if let Some(first) = self.settings.pin_check
            && is_shared
            && exchange.is_between_transactions()
            && self.ledger.can_be_freed()
        {
            self.pin_watch.begin(first);
        }
    }

    /// Asks the client's own backend whether anything still pins it, and gives it back if nothing does.
    pub(super) async fn question_pins(&mut self, exchange: &mut Exchange, rules: &Rules) -> Option<Then> {
        if !self.ledger.can_be_freed() {
            return None;
        }
        if !exchange.is_between_transactions() || self.ledger.is_in_doubt() {
            // A transaction is under way, or a question about its settings.
            self.pin_watch.again(self.settings.pin_check?);
            return None;
        }
        let lease = exchange.lease()?;
        let proof = self.ledger.pin_proof();
        match tokio::time::timeout(self.settings.reset_timeout, ask(lease, &proof)).await {
            Ok(Ok(held)) => self.ledger.end_proven_pins(held),
            failed => return self.on_loss(exchange, rules, unquestioned(failed), 0).await,
        }
        if self.ledger.is_pinned_for_sequence_alone() {
            return self.look_at_sequence_pin(exchange).await;
        }
        if !self.ledger.pins().is_empty() {
            self.pin_watch.again(self.settings.pin_check?);
            return None;
        }
        tracing::info!(pool = %self.pool.key(), client = %self.stream.peer(), "a client's pin is over");
        self.give_back_in_doubt(exchange).await
    }

    pub(super) fn announce_pins(&mut self, exchange: &mut Exchange) {
        self.announce_refusal(exchange);
        exchange.new_pins = false;
        let pins = self.ledger.pins();
        let statement = exchange.take_pinned_by();
        let application_name = self.ledger.settings().value("application_name").unwrap_or_default();
        let mut any = false;
        for reason in pins.iter().filter(|reason| !self.announced.contains(*reason)) {
            self.context.metrics.pinned(reason.label());
            if reason == PinReason::Sequence {
                // It is soon over, and there is one with each value.
                continue;
            }
            any = true;
            tracing::info!(
                pool = %self.pool.key(),
                client = %self.stream.peer(),
                application_name,
                reason = reason.label(),
                statement = statement.as_deref(),
                "a client is pinned to its backend"
            );
        }
        self.announced = pins;
        if let Some(lease) = exchange.lease() {
            lease.set_pin(pins.iter().next());
            if self.settings.mode != PoolMode::Session && !pins.counted().is_empty() {
                lease.count_as_pinned();
            }
            if any && !lease.is_dedicated() && self.settings.mode != PoolMode::Session {
                self.pool.warn_if_all_are_pinned();
            }
        }
    }
}

impl Session {
    /// Tells of a statement that was refused because of `pool.max_pinned`.
    fn announce_refusal(&self, exchange: &mut Exchange) {
        let Some(reason) = exchange.refused_pin.take() else {
            return;
        };
        self.context.metrics.pin_refused(reason.label());
        self.context
            .metrics
            .error_sent(crate::wire::SqlState::CONFIGURATION_LIMIT_EXCEEDED);
        tracing::warn!(
            pool = %self.pool.key(),
            client = %self.stream.peer(),
            application_name = self.ledger.settings().value("application_name").unwrap_or_default(),
            reason = reason.label(),
            "a statement was refused because it would have pinned a backend beyond pool.max_pinned"
        );
    }
}

/// The question got no answer. But for PostgreSQL's last words, which are the client's, it is not known what the backend does.
fn unquestioned(failed: Result<Result<PinSet, BackendError>, Elapsed>) -> Loss {
    let cause = format!("it could not be asked what pins it: {failed:?}");
    let last_words = match failed {
        Ok(Err(BackendError::Fatal(report))) => Some(report),
        _ => None,
    };
    Loss {
        runs_on: last_words.is_none(),
        last_words,
        cause,
        untouched: false,
    }
}

/// What still pins a backend. A question that was refused, or cancelled by the client's cancel that came late, proves
/// nothing.
async fn ask(lease: &mut Lease, proof: &PinProof) -> Result<PinSet, BackendError> {
    let outcome = lease.query(proof.sql()).await?;
    if let Some(report) = outcome.error {
        tracing::info!(sqlstate = %report.sqlstate, "a backend did not tell what pins it");
        lease.query("ROLLBACK").await?;
        return Ok(PinSet::of(PinReason::Unknown));
    }
    let labels = outcome
        .first_column
        .iter()
        .map(|label| label.as_deref().unwrap_or_default());
    Ok(pin_end::still_held(labels))
}
