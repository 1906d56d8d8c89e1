//! What is known of an open backend without having it: who holds it, since when, and whether it is to be closed.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::holder::Holder;
use super::lock;
use crate::metrics::CloseReason;
use crate::net::{IdleProbe, IdleState};
use crate::virtual_session::fingerprint::fingerprint;
use crate::virtual_session::sql_lexer::Lexing;

/// No end of life.
pub(crate) const NEVER: u64 = u64::MAX;

/// Shared between a backend's owner of the moment and the pool that watches it. Times are milliseconds of the pool's
/// coarse clock, so that lending reads no clock.
#[derive(Debug)]
pub(crate) struct Record {
    is_idle: AtomicBool,
    /// 0, or 1 + the index of the reason why it is to be closed when it is next idle.
    retire: AtomicU8,
    /// When its state changed last.
    since: AtomicU64,
    /// When it is too old.
    pub(crate) lifetime_end: u64,
    probe: IdleProbe,
    lent: Mutex<Lent>,
}

/// Bytes of a statement that are kept for a report.
const STATEMENT_LEN_MAX: usize = 256;

/// Who has a backend, and what it was last asked.
#[derive(Debug)]
struct Lent {
    holder: Option<Arc<Holder>>,
    /// The beginning of the statement's text, as it came: what a log may show of it is made when somebody asks.
    statement: [u8; STATEMENT_LEN_MAX],
    statement_len: usize,
    is_cut: bool,
    lexing: Lexing,
}

impl Record {
    pub(crate) fn new(probe: IdleProbe, now: u64, lifetime_end: u64) -> Self {
        Self {
            is_idle: AtomicBool::new(true),
            retire: AtomicU8::new(0),
            since: AtomicU64::new(now),
            lifetime_end,
            probe,
            lent: Mutex::new(Lent {
                holder: None,
                statement: [0; STATEMENT_LEN_MAX],
                statement_len: 0,
                is_cut: false,
                lexing: Lexing::default(),
            }),
        }
    }

    /// Keeps the beginning of the statement that is being sent: a copy of at most 256 bytes under a lock that nobody
    /// contends for.
    pub(crate) fn note_statement(&self, sql: &[u8], lexing: Lexing) {
        let kept = sql.get(..STATEMENT_LEN_MAX).unwrap_or(sql);
        let mut lent = lock(&self.lent);
        if let Some(room) = lent.statement.get_mut(..kept.len()) {
            room.copy_from_slice(kept);
        }
        lent.statement_len = kept.len();
        lent.is_cut = kept.len() < sql.len();
        lent.lexing = lexing;
    }

    /// What its holder asked last, without literals; `None` before it asked anything.
    pub(crate) fn fingerprint(&self) -> Option<String> {
        let lent = lock(&self.lent);
        let kept = lent
            .statement
            .get(..lent.statement_len)
            .filter(|kept| !kept.is_empty())?;
        Some(fingerprint(kept, lent.lexing, lent.is_cut))
    }

    pub(crate) fn lent_to(&self, holder: &Arc<Holder>, now: u64) {
        let mut lent = lock(&self.lent);
        if !lent.holder.as_ref().is_some_and(|last| Arc::ptr_eq(last, holder)) {
            lent.holder = Some(Arc::clone(holder));
        }
        lent.statement_len = 0;
        drop(lent);
        self.since.store(now, Ordering::Relaxed);
        self.is_idle.store(false, Ordering::Release);
    }

    /// The last holder stays noted, so that lending to the same client again changes nothing.
    pub(crate) fn came_back(&self, now: u64) {
        self.since.store(now, Ordering::Relaxed);
        self.is_idle.store(true, Ordering::Release);
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.is_idle.load(Ordering::Acquire)
    }

    pub(crate) fn since(&self) -> u64 {
        self.since.load(Ordering::Relaxed)
    }

    /// Who has it; `None` while it is idle.
    pub(crate) fn holder(&self) -> Option<Arc<Holder>> {
        if self.is_idle() {
            None
        } else {
            lock(&self.lent).holder.clone()
        }
    }

    /// It is to be closed as soon as nobody uses it. The first reason stays.
    pub(crate) fn retire(&self, reason: CloseReason) {
        let mark = u8::try_from(reason.index() + 1).unwrap_or(u8::MAX);
        let _ = self
            .retire
            .compare_exchange(0, mark, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Why it is to be closed; `None` while it may live. One load.
    pub(crate) fn retired(&self) -> Option<CloseReason> {
        match self.retire.load(Ordering::Acquire) {
            0 => None,
            mark => Some(
                CloseReason::ALL
                    .get(usize::from(mark) - 1)
                    .copied()
                    .unwrap_or(CloseReason::Broken),
            ),
        }
    }

    /// Whether an idle one has something to say, or is at its end. Only a hint: it may be lent this instant.
    pub(crate) fn speaks_while_idle(&self) -> bool {
        self.is_idle() && self.probe.state() != IdleState::Quiet
    }
}
