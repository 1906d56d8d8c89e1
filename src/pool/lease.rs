//! Exclusive hold of a backend. It is given back clean or not at all.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use bb8::PooledConnection;
use tokio::time::Instant;

use super::backends::Pool;
use super::cancel_keys::Cancelled;
use super::holder::Holder;
use super::manager::{BackendManager, OpenBackend};
use crate::backend::{Backend, Condition, Owed};
use crate::metrics::{BackendState, CloseReason};
use crate::virtual_session::pins::PinReason;
use crate::virtual_session::reset::ResetPlan;
use crate::virtual_session::sql_lexer::Lexing;
use crate::wire::backend_message::TransactionStatus;

/// A backend of a pool, as bb8 hands it out.
pub(crate) type Pooled = PooledConnection<'static, BackendManager>;

/// A place in a pool's line that was reached. Given back when it is dropped, after whatever it was used for.
#[derive(Debug)]
#[must_use]
pub(crate) struct Admitted(Arc<Pool>);

impl Admitted {
    pub(crate) fn new(pool: Arc<Pool>) -> Self {
        Self(pool)
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.0
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.admission.give_back();
    }
}

/// Exclusive hold of one backend. Dereferences to it.
///
/// [`park`](Self::park) and [`release`](Self::release) give it back; [`discard`](Self::discard), and dropping it,
/// close it. While a cancel for it is on its way nobody else gets it, however it ends.
#[derive(Debug)]
#[must_use = "dropping a lease closes its backend"]
pub struct Lease {
    // Before `admitted`: the backend is back or closed before the next in line may ask for it.
    held: Held,
    admitted: Option<Admitted>,
    holder: Arc<Holder>,
    /// It counts in the pool's quota of pinned backends.
    is_counted_as_pinned: bool,
}

#[derive(Debug)]
enum Held {
    Pooled(Pooled),
    Dedicated(Box<OpenBackend>),
    Over,
}

impl Lease {
    /// Binds a fit backend to its new holder; `None` where a cancel was faster, and the backend is back already.
    pub(crate) fn begin(connection: Pooled, admitted: Admitted, holder: &Arc<Holder>) -> Option<Self> {
        if holder.cancel_slot().begin_lease(connection.backend.cancel_target()) == Cancelled::Yes {
            admitted.pool().take_back(connection, holder.client_id());
            return None;
        }
        let held = Held::Pooled(connection);
        Some(Self::started(held, Some(admitted), holder))
    }

    /// A backend of the holder's own, that no one else will have.
    pub(crate) fn dedicated(open: Box<OpenBackend>, holder: &Arc<Holder>) -> Option<Self> {
        match holder.cancel_slot().begin_lease(open.backend.cancel_target()) {
            Cancelled::Yes => None,
            Cancelled::No => Some(Self::started(Held::Dedicated(open), None, holder)),
        }
    }

    fn started(held: Held, admitted: Option<Admitted>, holder: &Arc<Holder>) -> Self {
        let mut lease = Self {
            held,
            admitted,
            holder: Arc::clone(holder),
            is_counted_as_pinned: false,
        };
        let open = lease.open_mut();
        open.backend.begin_use();
        open.count_as(BackendState::Active);
        open.record.lent_to(holder, open.core().now());
        lease
    }

    /// Gives a clean backend back at once: the caller has read ReadyForQuery(I), owes nothing and left nothing behind.
    ///
    /// Takes no time, but where a cancel is on its way the backend is kept from everyone until that has landed.
    pub fn park(mut self) {
        self.backend_mut().end_use();
        self.end(None);
    }

    /// Runs the reset that what was left behind asks for, within `pool.reset_timeout`, then gives the backend back, or
    /// closes it where that failed.
    pub async fn release(mut self, plan: ResetPlan) {
        let clean = self.transaction_status == TransactionStatus::Idle && plan == ResetPlan::Nothing;
        if clean {
            return self.park();
        }
        self.holder.cancel_slot().end_lease();
        if plan == ResetPlan::Close {
            return self.discard(CloseReason::NotClean);
        }
        let deadline = self.reset_deadline();
        // A cancel that was sent before the hold must land before our statements run, or it would stop one of them.
        let quiet = Arc::clone(self.cancel_target()).quiet().await;
        match self.backend_mut().reset(plan, deadline).await {
            Ok(()) if quiet => self.park(),
            Ok(()) => self.discard(CloseReason::Cancelled),
            Err(error) => {
                tracing::info!(%error, "a backend could not be reset");
                self.discard(CloseReason::ResetFailed);
            }
        }
    }

    /// Ends what a client that is gone left running: cancel, drain, ROLLBACK, within `pool.reset_timeout`; then the
    /// plan's reset. The client's last message must have been sent whole.
    pub async fn release_after_client_loss(mut self, owed: Owed, plan: ResetPlan) {
        self.holder.cancel_slot().end_lease();
        let deadline = self.reset_deadline();
        match self.backend_mut().drain_after_client_loss(owed, deadline).await {
            Ok(()) => self.release(plan).await,
            Err(error) => {
                tracing::info!(%error, "a vanished client's backend could not be drained");
                self.discard(CloseReason::ClientGone);
            }
        }
    }

    /// Closes the backend and cancels what it may be running: PostgreSQL notices a closed socket only when it next
    /// writes.
    pub fn abandon(mut self, reason: CloseReason) {
        self.cancel_what_runs();
        self.end(Some(reason));
    }

    fn cancel_what_runs(&self) {
        let target = Arc::clone(self.cancel_target());
        if self.condition() == Condition::InUse
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let limit = self.open().core().settings.load().cancel_timeout;
            runtime.spawn(async move { target.send(Instant::now() + limit).await });
        }
    }

    /// Closes the backend.
    pub fn discard(mut self, reason: CloseReason) {
        self.end(Some(reason));
    }

    /// The client keeps the backend beyond its transactions, and why; or no longer.
    pub fn set_pin(&mut self, reason: Option<PinReason>) {
        self.holder.set_pin(reason);
        let state = if reason.is_some() {
            BackendState::Pinned
        } else {
            BackendState::Active
        };
        self.open_mut().count_as(state);
    }

    /// Whether this backend may be kept beyond its transaction: where fewer than `limit` of the pool are, it counts as one
    /// from now on until its lease ends. One that is outside the pool always may.
    pub fn may_be_pinned(&mut self, limit: u32) -> bool {
        let Some(admitted) = self.admitted.as_ref().filter(|_| !self.is_counted_as_pinned) else {
            return true;
        };
        self.is_counted_as_pinned = admitted.pool().pinned.try_take(limit);
        self.is_counted_as_pinned
    }

    /// It is kept, whatever the limit.
    pub fn count_as_pinned(&mut self) {
        if let Some(admitted) = self.admitted.as_ref().filter(|_| !self.is_counted_as_pinned) {
            admitted.pool().pinned.take();
            self.is_counted_as_pinned = true;
        }
    }

    /// The statement that the holder is about to send, for the report of who holds the backends. Copies its beginning.
    pub fn note_statement(&self, sql: &[u8], lexing: Lexing) {
        self.open().record.note_statement(sql, lexing);
    }

    /// What the holder sent last, as a log may show it. `None` before it sent anything.
    pub fn fingerprint(&self) -> Option<String> {
        self.open().record.fingerprint()
    }

    /// From here on the backend is ours, while its last client may go on with another one.
    pub(super) fn take_from_client(&mut self) -> Arc<Holder> {
        self.holder.cancel_slot().end_lease();
        self.holder.set_idle_in_transaction(false);
        let own = Holder::new(self.holder.client_id(), "an audit", Arc::default());
        std::mem::replace(&mut self.holder, own)
    }

    /// Whether the backend was opened for this holder alone: it is closed when the lease ends.
    pub fn is_dedicated(&self) -> bool {
        matches!(self.held, Held::Dedicated(_))
    }

    /// Who holds it.
    pub fn holder(&self) -> &Arc<Holder> {
        &self.holder
    }

    fn reset_deadline(&self) -> Instant {
        Instant::now() + self.reset_limit()
    }

    pub(super) fn reset_limit(&self) -> std::time::Duration {
        self.open().core().settings.load().reset_timeout
    }

    /// Ends the hold: `close` is why the backend is not given back.
    fn end(&mut self, close: Option<CloseReason>) {
        if matches!(self.held, Held::Over) {
            return;
        }
        if self.open().is_pinned() {
            self.holder.set_pin(None);
        }
        let held = std::mem::replace(&mut self.held, Held::Over);
        self.holder.cancel_slot().end_lease();
        self.holder.set_idle_in_transaction(false);
        let admitted = self.admitted.take();
        if let Some(admitted) = admitted.as_ref().filter(|_| self.is_counted_as_pinned) {
            admitted.pool().pinned.give_back();
        }
        match (held, admitted) {
            (Held::Pooled(mut connection), Some(admitted)) => {
                if let Some(reason) = close {
                    connection.condemn(reason);
                }
                end_pooled(connection, admitted, self.holder.client_id());
            }
            (Held::Dedicated(mut open), _) => open.condemn(close.unwrap_or(CloseReason::SessionEnd)),
            (Held::Pooled(_) | Held::Over, _) => {}
        }
    }

    fn open(&self) -> &OpenBackend {
        match &self.held {
            Held::Pooled(connection) => connection,
            Held::Dedicated(open) => open,
            Held::Over => unreachable!("a lease is over only inside the methods that consume it"),
        }
    }

    fn open_mut(&mut self) -> &mut OpenBackend {
        match &mut self.held {
            Held::Pooled(connection) => connection,
            Held::Dedicated(open) => open,
            Held::Over => unreachable!("a lease is over only inside the methods that consume it"),
        }
    }

    fn backend_mut(&mut self) -> &mut Backend {
        &mut self.open_mut().backend
    }
}

/// Gives a pooled backend back, or closes it; later, where a cancel for it is on its way (trap 71).
fn end_pooled(mut connection: Pooled, admitted: Admitted, client_id: u64) {
    if connection.backend.cancel_target().is_quiet() {
        admitted.pool().take_back(connection, client_id);
        return;
    }
    let target = Arc::clone(connection.backend.cancel_target());
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        // Nothing can wait here: it is closed.
        connection.condemn(CloseReason::Cancelled);
        admitted.pool().take_back(connection, client_id);
        return;
    };
    runtime.spawn(async move {
        if !target.quiet().await {
            connection.condemn(CloseReason::Cancelled);
        }
        admitted.pool().take_back(connection, client_id);
    });
}

impl Deref for Lease {
    type Target = Backend;

    fn deref(&self) -> &Backend {
        &self.open().backend
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Backend {
        self.backend_mut()
    }
}

impl Drop for Lease {
    /// A lease that nobody ended (a panic, a dropped future): what its backend does is unknown. It is closed, and what
    /// it may be running is cancelled, since PostgreSQL notices a closed socket only when it next writes.
    fn drop(&mut self) {
        if matches!(self.held, Held::Over) {
            return;
        }
        self.cancel_what_runs();
        self.end(Some(CloseReason::ClientGone));
    }
}
