//! Released backends that stay near their last client for a moment, before bb8 has them.

use super::lease::Pooled;

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

    /// The client's own last one, else the most recent.
    pub(crate) fn take(&mut self, client_id: u64) -> Option<Pooled> {
        let own = self.entries.iter().rposition(|entry| entry.client_id == client_id);
        match own {
            Some(index) => Some(self.entries.remove(index).connection),
            None => self.entries.pop().map(|entry| entry.connection),
        }
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
