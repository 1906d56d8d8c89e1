//! Making a backend neutral again: finish what runs, end the transaction, forget the session.

use bytes::BytesMut;
use tokio::time::{Instant, timeout_at};

use super::{Backend, BackendError};
use crate::protocol::Violation;
use crate::virtual_session::reset::ResetPlan;
use crate::wire::backend_message::TransactionStatus;
use crate::wire::{BackendTag, FrontendTag, Report, compose};

/// Why a backend could not be made neutral. It must be closed.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// The connection failed under it.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// PostgreSQL refused a cleaning statement.
    #[error("PostgreSQL refused to reset the session: {0}")]
    Refused(Report),
    /// It was not done in time (pool.reset_timeout).
    #[error("the reset was not done in time")]
    TimedOut,
    /// The plan was to close it.
    #[error("what the session left behind can't be reset")]
    Close,
    /// After the cleaning PostgreSQL still says that a transaction is open.
    #[error("the transaction did not end")]
    StillInTransaction,
}

/// What PostgreSQL still owes a client that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Owed {
    /// ReadyForQuery messages to come for what was sent: Sync, Query and FunctionCall messages not answered yet.
    pub ready: usize,
    /// Extended messages were sent behind the last Sync: a Sync of ours must end them.
    pub sync_missing: bool,
    /// A COPY from the client is open: a CopyFail of ours must end it.
    pub copy_in: bool,
}

impl Backend {
    /// Runs a reset plan, ending an open transaction first, until ReadyForQuery(I) proves it.
    pub async fn reset(&mut self, plan: ResetPlan, deadline: Instant) -> Result<(), ResetError> {
        let done = match timeout_at(deadline, self.run_plan(plan)).await {
            Ok(done) => done,
            Err(_) => Err(ResetError::TimedOut),
        };
        if done.is_err() {
            self.mark_broken();
        }
        done
    }

    async fn run_plan(&mut self, plan: ResetPlan) -> Result<(), ResetError> {
        let mut steps: Vec<&str> = Vec::new();
        if self.transaction_status != TransactionStatus::Idle {
            steps.push("ROLLBACK");
        }
        match plan {
            ResetPlan::Nothing => {}
            // The client's own timeouts must not cut the cleaning short (trap 61). DISCARD ALL can't share a message
            // with anything: a message of two statements is a transaction block.
            ResetPlan::DiscardAll => {
                steps.extend(["SET statement_timeout = 0", "SET lock_timeout = 0", "DISCARD ALL"]);
            }
            ResetPlan::Close => return Err(ResetError::Close),
        }
        self.run_steps(&steps).await?;
        if self.transaction_status != TransactionStatus::Idle {
            return Err(ResetError::StillInTransaction);
        }
        if plan == ResetPlan::DiscardAll {
            self.state.discarded();
        }
        Ok(())
    }

    /// Sends every step in one write and reads an outcome for each.
    async fn run_steps(&mut self, steps: &[&str]) -> Result<(), ResetError> {
        if steps.is_empty() {
            return Ok(());
        }
        let mut out = BytesMut::new();
        for step in steps {
            compose::query(&mut out, step.as_bytes());
        }
        self.stream.write_all(&out).await.map_err(BackendError::Io)?;
        let mut refused = None;
        for _ in steps {
            refused = refused.or(self.read_outcome().await?.error);
        }
        refused.map_or(Ok(()), |report| Err(ResetError::Refused(report)))
    }

    /// Ends what a vanished client left running (traps 42, 43, 51): cancels it, reads the rest of its replies, rolls
    /// back. The request must have been sent whole; after a partial write the backend can only be closed.
    ///
    /// Success means ReadyForQuery(I), and that no cancel is on its way any more.
    pub async fn drain_after_client_loss(&mut self, owed: Owed, deadline: Instant) -> Result<(), ResetError> {
        let done = match timeout_at(deadline, self.drain(owed, deadline)).await {
            Ok(done) => done,
            Err(_) => Err(ResetError::TimedOut),
        };
        if done.is_err() {
            self.mark_broken();
        }
        done
    }

    async fn drain(&mut self, owed: Owed, deadline: Instant) -> Result<(), ResetError> {
        let target = std::sync::Arc::clone(self.cancel_target());
        if owed.ready > 0 || owed.sync_missing {
            let mut out = BytesMut::new();
            if owed.copy_in {
                copy_fail(&mut out);
            }
            if owed.sync_missing {
                execute_nothing(&mut out, NO_PORTAL);
                compose::bare_frontend(&mut out, FrontendTag::Sync);
            }
            // A COPY passes over the Syncs behind its Execute, unless a cancel ends it before it has come to them.
            let is_count_open = owed.copy_in && owed.sync_missing;
            if is_count_open {
                execute_nothing(&mut out, LAST_PORTAL);
                compose::bare_frontend(&mut out, FrontendTag::Sync);
            }
            let ready = owed.ready + usize::from(owed.sync_missing);
            let replies = async {
                if !out.is_empty() {
                    self.stream.write_all(&out).await.map_err(BackendError::Io)?;
                }
                match is_count_open {
                    true => self.skip_to_last_portal().await,
                    false => self.skip_replies(ready).await,
                }
            };
            // Both at once: a cancel that arrives after the replies hits an idle backend, which ignores it.
            let (replies, _) = tokio::join!(replies, target.send(deadline));
            replies?;
        }
        if !target.quiet().await {
            return Err(ResetError::TimedOut);
        }
        self.run_plan(ResetPlan::Nothing).await
    }

    /// However many replies there are: up to the ReadyForQuery behind the error of [`LAST_PORTAL`].
    async fn skip_to_last_portal(&mut self) -> Result<(), BackendError> {
        let mut is_last = false;
        loop {
            let message = self.next_message().await?;
            match BackendTag::from_byte(message.tag) {
                Some(BackendTag::ErrorResponse) => is_last = memchr::memmem::find(&message.body, LAST_PORTAL).is_some(),
                Some(BackendTag::ReadyForQuery) if is_last => return Ok(()),
                _ => {}
            }
        }
    }

    async fn skip_replies(&mut self, mut ready: usize) -> Result<(), BackendError> {
        while ready > 0 {
            let message = self.next_message().await?;
            match BackendTag::from_byte(message.tag) {
                Some(BackendTag::ReadyForQuery) => ready -= 1,
                Some(BackendTag::CopyInResponse) => {
                    let mut out = BytesMut::new();
                    copy_fail(&mut out);
                    self.stream.write_all(&out).await?;
                }
                Some(BackendTag::CopyBothResponse) => {
                    return Err(Violation::Rule("a replication stream can't be drained").into());
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A Sync would commit what the client never did: the group is made to fail first, by a portal that nobody has.
const NO_PORTAL: &[u8] = b"pgsidecar: the client is gone";
/// Nobody has this one either, and PostgreSQL's error names it, whatever its language.
const LAST_PORTAL: &[u8] = b"pgsidecar: no more replies";

fn execute_nothing(out: &mut BytesMut, portal: &[u8]) {
    compose::frame(out, FrontendTag::Execute.byte(), &[portal, b"\0", &[0; 4]]);
}

fn copy_fail(out: &mut BytesMut) {
    compose::frame(out, FrontendTag::CopyFail.byte(), &[b"the client is gone\0"]);
}
