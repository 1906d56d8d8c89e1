//! Asking a backend that is given back whether it holds what the ledger says (`pool.audit`).

use std::sync::Arc;

use super::lease::Lease;
use crate::metrics::{CloseReason, Metrics};
use crate::virtual_session::audit::{self, Surprise, SurpriseKind};

impl Lease {
    /// Puts the question to the backend, within `pool.reset_timeout`, and gives it back where it agrees. Where it does not,
    /// it is closed: what is seen is seldom all that there is, and DISCARD ALL does not reach everything.
    ///
    /// The client is done with the backend, and does not wait.
    pub async fn audit(mut self, question: String, metrics: Arc<Metrics>) {
        let client = self.take_from_client();
        // A cancel of the client's that is on its way would stop the question.
        let quiet = Arc::clone(self.cancel_target()).quiet().await;
        let limit = self.reset_limit();
        let asked = tokio::time::timeout(limit, self.query(&question)).await;
        let surprises = match asked {
            Ok(Ok(outcome)) if outcome.error.is_none() && quiet => {
                audit::surprises(outcome.first_column.iter().flatten().map(|row| &row[..]))
            }
            _ => vec![Surprise {
                kind: SurpriseKind::Unanswered,
                name: None,
            }],
        };
        metrics.audited(surprises.iter().map(|surprise| surprise.kind.label()));
        if surprises.is_empty() {
            return self.park();
        }
        let statement = self.fingerprint();
        for Surprise { kind, name } in surprises {
            tracing::warn!(
                client = %client,
                kind = kind.label(),
                name = name.as_deref(),
                statement = statement.as_deref(),
                "a backend held what its client's session should not have left there, and is closed"
            );
        }
        self.abandon(CloseReason::NotClean);
    }
}

/// Every kind of surprise, for the metrics to declare.
pub fn surprise_labels() -> Vec<&'static str> {
    SurpriseKind::ALL.iter().map(|kind| kind.label()).collect()
}
