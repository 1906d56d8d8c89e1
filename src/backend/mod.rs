//! One connection to PostgreSQL: its socket, what it reported, what was left on it, and how it is cancelled.
//!
//! [`login`] opens one, [`password`] finds its secret, [`early_login`] knows what the server will ask for,
//! [`session_attributes`] checks the server's role, [`parameters`] remembers what it reports, [`idle`] looks at it while
//! nobody uses it, [`exchange`] runs a query of ours, [`reset`] cleans it, [`cancel`] stops it from a second socket. Who may
//! use it is not decided here: that is `pool`.

pub mod cancel;
pub mod early_login;
pub mod exchange;
pub mod idle;
pub mod login;
pub mod parameters;
pub mod password;
pub mod reset;
mod session_attributes;

use std::io::IoSlice;
use std::sync::Arc;
use std::task::{Context, Waker};

use bytes::BytesMut;
use tokio::time::Instant;

pub use cancel::CancelTarget;
pub use exchange::{BackendError, ParameterisedOutcome, QueryOutcome, Row};
pub use idle::IdleVerdict;
pub use login::{ConnectFailure, Connector};
pub use parameters::ServerParameters;
pub use reset::Owed;

use crate::net::Stream;
use crate::virtual_session::BackendState;
use crate::wire::backend_message::{ParameterStatus, TransactionStatus};

/// Terminate: a message without a body.
const TERMINATE: &[u8] = b"X\0\0\0\x04";

/// Whether a backend may be given to the next client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Nothing is owed, no transaction is open, nothing is left behind.
    Clean,
    /// Somebody has it; what it holds is unknown until it was released.
    InUse,
    /// The protocol with it is out of step, or its socket is gone. It can only be closed.
    Broken,
}

/// One logged-in connection to PostgreSQL.
///
/// Whoever holds it exclusively may read and write its socket; `read_buffer` is empty whenever it is [`Condition::Clean`].
#[derive(Debug)]
pub struct Backend {
    /// The socket.
    pub stream: Stream,
    /// Bytes that were read and not consumed yet.
    pub read_buffer: BytesMut,
    /// What this backend reported last, login included.
    pub parameters: ServerParameters,
    /// What the virtual session knows of this backend: settings, prepared statements. Neutral after a login or a reset.
    pub state: BackendState,
    /// The byte of the last ReadyForQuery. Kept by whoever reads it.
    pub transaction_status: TransactionStatus,
    neutral: Arc<ServerParameters>,
    neutral_changed: bool,
    /// Something was reported since it was last given back.
    has_reported: bool,
    condition: Condition,
    cancel: Arc<CancelTarget>,
    born: Instant,
    /// `in_hot_standby` changed since the login: this server was promoted or is another one.
    role_changed: bool,
}

impl Backend {
    /// A backend that has just said ReadyForQuery for the first time.
    pub(crate) fn new(
        stream: Stream,
        read_buffer: BytesMut,
        parameters: ServerParameters,
        cancel: CancelTarget,
    ) -> Self {
        Self {
            stream,
            read_buffer,
            neutral: Arc::new(parameters.clone()),
            neutral_changed: false,
            has_reported: false,
            parameters,
            state: BackendState::default(),
            transaction_status: TransactionStatus::Idle,
            condition: Condition::Clean,
            cancel: Arc::new(cancel),
            born: Instant::now(),
            role_changed: false,
        }
    }

    /// Whether it may be given to the next client.
    pub fn condition(&self) -> Condition {
        self.condition
    }

    /// Somebody begins to use it.
    pub fn begin_use(&mut self) {
        if self.condition == Condition::Clean {
            self.condition = Condition::InUse;
        }
    }

    /// It is back in its neutral state. The caller has seen ReadyForQuery(I), owes nothing and left nothing unread.
    ///
    /// A broken backend stays broken, and one with unread bytes, an open transaction or a LISTEN becomes so.
    pub fn end_use(&mut self) {
        let neutral =
            self.read_buffer.is_empty() && self.transaction_status == TransactionStatus::Idle && !self.state.listens;
        self.condition = match self.condition {
            Condition::Broken => Condition::Broken,
            _ if neutral => Condition::Clean,
            _ => Condition::Broken,
        };
        if self.has_reported && self.condition == Condition::Clean {
            self.learn_neutral();
        }
    }

    /// PostgreSQL takes a changed configuration over, and reports it, with the next statement (trap 9). What differs and
    /// was not set for a client is its own.
    fn learn_neutral(&mut self) {
        let Some(applied) = self.state.known_settings() else {
            return;
        };
        self.has_reported = false;
        let is_neutral = applied.entries().is_empty();
        let is_own = |name: &str| is_neutral || (parameters::is_settable(name) && applied.value(name).is_none());
        for (name, value) in self.parameters.iter().filter(|(name, _)| is_own(name)) {
            if self.neutral.get(name) != Some(value) {
                Arc::make_mut(&mut self.neutral).set(name, value);
                self.neutral_changed = true;
            }
        }
    }

    /// Whether anything was reported since it was last given back.
    pub fn has_reported(&self) -> bool {
        self.has_reported
    }

    /// Makes its neutral values the same allocation as equal ones, so that comparing them costs a pointer.
    pub fn share_neutral(&mut self, known: &Arc<ServerParameters>) {
        if **known == *self.neutral {
            self.neutral = Arc::clone(known);
        }
    }

    /// It can't be used again.
    pub fn mark_broken(&mut self) {
        self.condition = Condition::Broken;
    }

    /// What it reports while no client's settings are on it: at its login, and as the server's own configuration changed
    /// since.
    pub fn neutral_parameters(&self) -> &Arc<ServerParameters> {
        &self.neutral
    }

    /// Whether they changed since this was last asked.
    pub fn take_neutral_change(&mut self) -> bool {
        std::mem::take(&mut self.neutral_changed)
    }

    /// How a query on it is cancelled.
    pub fn cancel_target(&self) -> &Arc<CancelTarget> {
        &self.cancel
    }

    /// When its login was done.
    pub fn born(&self) -> Instant {
        self.born
    }

    /// Takes note of a ParameterStatus that came at any time (trap 63). Says whether the value is a new one.
    pub fn learn_parameter(&mut self, status: &ParameterStatus<'_>) -> bool {
        let Ok(name) = std::str::from_utf8(status.name) else {
            return false;
        };
        let changed = self.parameters.set(name, status.value);
        self.has_reported |= changed;
        if changed && name == "in_hot_standby" {
            self.role_changed = true;
        }
        changed
    }

    /// The server was promoted or demoted since this backend logged in (trap 80).
    pub fn role_changed(&self) -> bool {
        self.role_changed
    }
}

impl Drop for Backend {
    /// Says Terminate where PostgreSQL is listening for it, without waiting: a socket that can't take five bytes now is
    /// closed without them. One in use is only closed, so that PostgreSQL rolls back whatever runs.
    fn drop(&mut self) {
        if self.condition == Condition::Clean {
            let mut context = Context::from_waker(Waker::noop());
            let written = self
                .stream
                .poll_write_vectored(&mut context, &[IoSlice::new(TERMINATE)]);
            if written.is_ready() {
                let _ = self.stream.poll_flush(&mut context);
            }
        }
    }
}
