//! Giving a backend back: what is asked of it first, and what is left to be cleaned.

use std::sync::Arc;

use super::{Session, Then};
use crate::config::PoolMode;
use crate::error;
use crate::metrics::{ClientState, CloseReason};
use crate::pool::Lease;
use crate::relay::Exchange;
use crate::virtual_session::pins::PinSet;
use crate::virtual_session::reset::ResetPlan;

impl Session {
    /// What is known of the server may be old: it is asked before anyone else has the backend.
    pub(super) async fn give_back_in_doubt(&mut self, exchange: &mut Exchange) -> Option<Then> {
        self.observe(exchange);
        let mut lease = exchange.detach()?;
        if !self.announced.is_empty() {
            self.announced = PinSet::EMPTY;
            self.pin_watch.end();
            lease.set_pin(None);
        }
        if lease.state.listens && !self.end_listening(&mut lease).await {
            return None;
        }
        if std::mem::take(&mut exchange.read_only_refused) && self.pool.is_now_standby(&mut lease).await {
            self.pool.suspect_upstream();
        }
        let unexplained = std::mem::take(&mut exchange.unexplained);
        if !unexplained.is_empty() && !self.explain(&mut lease, &unexplained).await {
            return None;
        }
        if std::mem::take(&mut exchange.catalog_changed) {
            let knowledge = self.pool.knowledge();
            knowledge.doubt_catalog();
            let limit = self.settings.reset_timeout;
            match tokio::time::timeout(limit, knowledge.read_catalog(&mut lease, &self.settings)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::info!(%error, "a backend was lost while the catalog was read");
                    return None;
                }
                // Dropped, its backend is closed and what it runs is cancelled.
                Err(_) => {
                    tracing::warn!(?limit, "the catalog of routines could not be read in time");
                    return None;
                }
            }
        }
        self.part(lease);
        if self.drain.phase() >= self.drain_phase_between_transactions() {
            return self.leave(exchange, &error::shutting_down()).await;
        }
        None
    }

    /// The pool's listener hears for the client: its backend stops. False: the backend was lost over it.
    pub(super) async fn end_listening(&mut self, lease: &mut Lease) -> bool {
        let asked = tokio::time::timeout(self.settings.reset_timeout, lease.query("UNLISTEN *")).await;
        let has_ended = matches!(asked, Ok(Ok(outcome)) if outcome.error.is_none());
        if has_ended {
            lease.state.listens = false;
        } else {
            tracing::info!(pool = %self.pool.key(), "a backend was lost while it was told to listen no more");
        }
        has_ended
    }

    /// Asks PostgreSQL whether it was its own configuration that changed. False: the backend was lost over it.
    pub(super) async fn explain(&mut self, lease: &mut Lease, unexplained: &[Box<str>]) -> bool {
        let limit = self.settings.reset_timeout;
        let asked = tokio::time::timeout(limit, self.pool.knowledge().servers_own(lease, unexplained)).await;
        let Ok(Ok(own)) = asked else {
            tracing::info!(pool = %self.pool.key(), "a backend was lost while it was asked for its settings");
            return false;
        };
        for name in own {
            let Some(value) = lease.parameters.get(&name).map(<[u8]>::to_vec) else {
                continue;
            };
            self.ledger.report_was_the_servers(&mut lease.state, &name);
            Arc::make_mut(&mut self.neutral).set(&name, &value);
        }
        self.ledger.set_neutral_lexing(self.neutral.lexing());
        true
    }

    /// The client is gone: what it left running is ended, and what it left behind is cleaned.
    pub(super) async fn clean_up(&mut self, exchange: &mut Exchange) -> Option<Then> {
        self.gauge.set(ClientState::Idle);
        let Some(mut lease) = exchange.detach() else {
            return Some(Then::End);
        };
        let catalog_changed = std::mem::take(&mut exchange.catalog_changed);
        let plan = match self.reset_plan(exchange) {
            ResetPlan::Nothing if lease.state.listens => ResetPlan::DiscardAll,
            plan => plan,
        };
        lease.transaction_status = exchange.backend_status();
        match exchange.owed() {
            _ if lease.is_dedicated() => lease.abandon(CloseReason::SessionEnd),
            None => lease.abandon(CloseReason::ClientGone),
            Some(owed) => {
                lease.read_buffer = exchange.hand_over_unread();
                if owed.ready == 0 && !owed.sync_missing && lease.read_buffer.is_empty() {
                    lease.release(plan).await;
                } else {
                    lease.release_after_client_loss(owed, plan).await;
                }
            }
        }
        if std::mem::take(&mut exchange.roles_changed) {
            self.rules.role_changes.note();
        }
        if catalog_changed {
            self.pool.knowledge().doubt_catalog();
            self.pool.begin_to_know_catalog();
        }
        Some(Then::End)
    }

    pub(super) fn reset_plan(&self, exchange: &Exchange) -> ResetPlan {
        let plan = ResetPlan::for_pins(self.ledger.pins());
        let used_as_session = self.settings.mode == PoolMode::Session;
        match plan {
            // What was under way may have changed settings without the ledgers' knowing, and so may its rollback.
            ResetPlan::Nothing if !exchange.is_settled() || used_as_session => ResetPlan::DiscardAll,
            plan => plan,
        }
    }
}
