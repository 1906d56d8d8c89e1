//! Released backends that stay near their last client for a moment, before bb8 has them.

use super::lease::Pooled;
use crate::virtual_session::VirtualSession;

/// Which of several idle backends is best. Any of them will do.
#[derive(Debug, Clone, Copy)]
pub enum Wish<'a> {
    /// The one used last: the server's caches are warmest for it.
    Any,
    /// One that needs no prelude for this client's ledger.
    SuitedTo(&'a VirtualSession),
}

impl Wish<'_> {
    /// Whether a backend will do at all: it has no trace of a custom setting that the client doesn't have.
    pub(crate) fn accepts(self, connection: &Pooled) -> bool {
        match self {
            Self::Any => true,
            Self::SuitedTo(ledger) => ledger.accepts(&connection.backend.state),
        }
    }
}

/// Most recently used last. Lending from here costs neither bb8's lock nor a clock.
#[derive(Debug, Default)]
pub(crate) struct Parked {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    connection: Pooled,
    client_id: u64,
    /// It was here at the last sweep already.
    was_swept: bool,
}

impl Parked {
    pub(crate) fn put(&mut self, connection: Pooled, client_id: u64) {
        self.entries.push(Entry {
            connection,
            client_id,
            was_swept: false,
        });
    }

    /// The one on which the client left values of sequences; else the most recent that agrees with its ledger; else the
    /// client's own last one; else the most recent that its ledger accepts.
    ///
    /// Among equals the most recent, not the client's own: spread over all of them, the same statements cost PostgreSQL
    /// more (decision 0011).
    pub(crate) fn take(&mut self, client_id: u64, wish: Wish<'_>) -> Option<Pooled> {
        let Wish::SuitedTo(ledger) = wish else {
            return self.entries.pop().map(|entry| entry.connection);
        };
        let left_values = || {
            let has_them = |entry: &Entry| ledger.left_values_on(&entry.connection.backend.state);
            ledger.has_drawn().then(|| self.last(has_them)).flatten()
        };
        let is_accepted = |entry: &Entry| wish.accepts(&entry.connection);
        let chosen = left_values()
            .or_else(|| self.last(|entry| ledger.agrees_with(&entry.connection.backend.state)))
            .or_else(|| self.last(|entry| entry.client_id == client_id && is_accepted(entry)))
            .or_else(|| self.last(is_accepted));
        chosen.map(|index| self.entries.remove(index).connection)
    }

    fn last(&self, suits: impl Fn(&Entry) -> bool) -> Option<usize> {
        self.entries.iter().rposition(suits)
    }

    /// The one that was parked first.
    pub(crate) fn take_oldest(&mut self) -> Option<Pooled> {
        if self.entries.is_empty() {
            None
        } else {
            Some(self.entries.remove(0).connection)
        }
    }

    /// Those that nobody took since the last sweep, oldest first.
    pub(crate) fn sweep(&mut self) -> Vec<Pooled> {
        let stale = self
            .entries
            .extract_if(.., |entry| std::mem::replace(&mut entry.was_swept, true));
        stale.map(|entry| entry.connection).collect()
    }

    /// All of them, oldest first.
    pub(crate) fn take_all(&mut self) -> Vec<Pooled> {
        self.entries.drain(..).map(|entry| entry.connection).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
