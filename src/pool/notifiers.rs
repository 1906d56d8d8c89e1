//! Who may have sent a notification: PostgreSQL names a backend's process, clients know each other by the process ids that
//! they were told at their logins.
//!
//! A notification may be heard after its transaction's end, when its backend has another client already. So each backend
//! remembers who ran what may notify on it, until the listener has ended a round that began behind that. One candidate is
//! the sender. Of several, the only one that said NOTIFY is: a client that listens never runs what may notify while others
//! are remembered, so no one is told of another's notification as of its own. Where it stays open, the process of the
//! server is named.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::backends::Pool;
use super::lease::Lease;
use super::lock;
use super::manager::PoolCore;
use super::subscription::Awaited;

/// Candidates that one backend remembers.
const CANDIDATES_MAX: usize = 8;

/// How a client may notify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notifying {
    /// By a trigger or a routine, for all that is known.
    Perhaps,
    /// By NOTIFY or pg_notify.
    Certainly,
}

/// Who may have notified by which backend's process.
#[derive(Debug, Default)]
pub(crate) struct Notifiers {
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    /// Rounds of the listener that have begun.
    rounds: u64,
    processes: HashMap<u32, Process>,
}

#[derive(Debug, Default)]
struct Process {
    candidates: Vec<Candidate>,
    /// There were more than are remembered: the rounds that had begun when the last was forgotten.
    crowded: Option<u64>,
}

#[derive(Debug)]
struct Candidate {
    client: u32,
    how: Notifying,
    /// Rounds that had begun when its transaction ended; `None` while it goes on.
    ended: Option<u64>,
}

/// Who sent a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    /// A client of the pool's, by the process id that it was told.
    Client(u32),
    /// Nobody of the pool's.
    Stranger,
    /// One of several clients.
    Open,
}

impl Notifiers {
    /// A client is about to run what may notify.
    pub(crate) fn begin(&self, process: u32, client: u32, how: Notifying) {
        let mut book = lock(&self.book);
        let rounds = book.rounds;
        let process = book.processes.entry(process).or_default();
        if let Some(known) = process.candidates.iter_mut().find(|known| known.client == client) {
            known.ended = None;
            known.how = known.how.max(how);
            return;
        }
        if process.candidates.len() >= CANDIDATES_MAX {
            process.crowded = Some(rounds);
            // One backend has one client at a time: the others' transactions are over.
            process
                .candidates
                .sort_by_key(|candidate| (candidate.ended.is_none(), candidate.how));
            process.candidates.remove(0);
        }
        let ended = None;
        process.candidates.push(Candidate { client, how, ended });
    }

    /// Its transaction is over.
    pub(crate) fn end(&self, process: u32, client: u32) {
        let mut book = lock(&self.book);
        let rounds = book.rounds;
        let process = book.processes.get_mut(&process);
        let candidate = process.and_then(|process| process.candidates.iter_mut().find(|known| known.client == client));
        if let Some(candidate) = candidate {
            candidate.ended = Some(rounds);
        }
    }

    /// Whether a client must wait for a round before it runs what may notify: it could be taken for another, or another
    /// for it. One that listens would take the other's notification for its own.
    pub(crate) fn is_in_doubt(&self, process: u32, client: u32, listens: bool) -> bool {
        let book = lock(&self.book);
        let Some(process) = book.processes.get(&process) else {
            return false;
        };
        let mut others = process.candidates.iter().filter(|known| known.client != client);
        others.any(|known| listens || known.how == Notifying::Certainly) || (listens && process.crowded.is_some())
    }

    /// A round begins; its number, for [`Self::round_ended`].
    pub(super) fn round_begins(&self) -> u64 {
        let mut book = lock(&self.book);
        book.rounds += 1;
        book.rounds
    }

    /// Whatever was committed before the round began has been heard.
    pub(super) fn round_ended(&self, number: u64) {
        let mut book = lock(&self.book);
        book.processes.retain(|_, process| {
            process
                .candidates
                .retain(|candidate| candidate.ended.is_none_or(|rounds| rounds >= number));
            // Whoever was forgotten had ended by then.
            process.crowded = process.crowded.filter(|rounds| *rounds >= number);
            !process.candidates.is_empty()
        });
    }

    /// Who has notified by this process.
    pub(super) fn sender(&self, process: u32) -> Sender {
        let book = lock(&self.book);
        let Some(process) = book.processes.get(&process) else {
            return Sender::Stranger;
        };
        let mut certain = process.candidates.iter().filter(|it| it.how == Notifying::Certainly);
        match (process.candidates.as_slice(), certain.next(), certain.next()) {
            ([only], ..) if process.crowded.is_none() => Sender::Client(only.client),
            (_, Some(only), None) => Sender::Client(only.client),
            _ => Sender::Open,
        }
    }

    /// Nobody listens any more.
    pub(super) fn forget(&self) {
        lock(&self.book).processes.clear();
    }
}

/// A client runs what may notify, for as long as this lives.
#[derive(Debug)]
pub struct MayNotify {
    core: Arc<PoolCore>,
    process: u32,
    client: u32,
    how: Notifying,
}

impl MayNotify {
    /// How it may.
    pub const fn how(&self) -> Notifying {
        self.how
    }
}

impl Drop for MayNotify {
    fn drop(&mut self) {
        self.core.desk.notifiers.end(self.process, self.client);
        self.core.desk.want_round();
    }
}

impl Pool {
    /// Whether anyone hears notifications through the pool's listener. One load.
    pub fn has_listeners(&self) -> bool {
        self.core.desk.is_open()
    }

    /// The holder of a lease is about to run what may notify. `None` where either process has no number.
    pub fn may_notify(&self, lease: &Lease, how: Notifying) -> Option<MayNotify> {
        let (process, client) = (lease.cancel_target().process_id()?, lease.holder().process_id()?);
        let core = Arc::clone(&self.core);
        core.desk.notifiers.begin(process, client, how);
        Some(MayNotify {
            core,
            process,
            client,
            how,
        })
    }

    /// Whether the holder of a lease must first wait for [`Self::listeners_round`], so that nobody is taken for another.
    pub fn is_sender_in_doubt(&self, lease: &Lease, listens: bool) -> bool {
        let (process, client) = (lease.cancel_target().process_id(), lease.holder().process_id());
        let (Some(process), Some(client)) = (process, client) else {
            return false;
        };
        self.core.desk.notifiers.is_in_doubt(process, client, listens)
    }

    /// Answered when whatever has been committed by now was heard.
    pub fn listeners_round(&self) -> Awaited {
        self.core.desk.ask_for_round()
    }
}

#[cfg(test)]
mod tests {
    use super::Notifying::{Certainly, Perhaps};
    use super::*;

    #[test]
    fn a_backend_that_changed_hands_is_still_its_last_clients_until_a_round_ends() {
        let notifiers = Notifiers::default();
        assert_eq!(notifiers.sender(1), Sender::Stranger);
        notifiers.begin(1, 100, Certainly);
        assert_eq!(notifiers.sender(1), Sender::Client(100));
        notifiers.end(1, 100);
        notifiers.begin(1, 200, Perhaps);
        assert_eq!(notifiers.sender(1), Sender::Client(100), "who said NOTIFY");
        assert!(notifiers.is_in_doubt(1, 200, true) && notifiers.is_in_doubt(1, 200, false));
        let round = notifiers.round_begins();
        notifiers.round_ended(round);
        assert_eq!(notifiers.sender(1), Sender::Client(200));
        assert!(!notifiers.is_in_doubt(1, 200, true));
    }

    #[test]
    fn a_round_that_began_before_a_transaction_ended_proves_nothing() {
        let notifiers = Notifiers::default();
        notifiers.begin(1, 100, Perhaps);
        let early = notifiers.round_begins();
        notifiers.end(1, 100);
        notifiers.begin(1, 200, Perhaps);
        notifiers.round_ended(early);
        assert_eq!(notifiers.sender(1), Sender::Open);
        assert!(notifiers.is_in_doubt(1, 200, true) && !notifiers.is_in_doubt(1, 200, false));
    }

    #[test]
    fn a_crowd_is_bounded_and_names_nobody_by_mistake() {
        let notifiers = Notifiers::default();
        for client in 0..100 {
            notifiers.begin(1, client, Perhaps);
            notifiers.end(1, client);
        }
        assert_eq!(lock(&notifiers.book).processes[&1].candidates.len(), CANDIDATES_MAX);
        assert_eq!(notifiers.sender(1), Sender::Open);
        notifiers.begin(1, 200, Perhaps);
        let round = notifiers.round_begins();
        assert_eq!(notifiers.sender(1), Sender::Open);
        notifiers.round_ended(round);
        assert_eq!(notifiers.sender(1), Sender::Client(200));
    }

    #[test]
    fn a_client_that_goes_on_is_one_candidate() {
        let notifiers = Notifiers::default();
        notifiers.begin(1, 100, Certainly);
        notifiers.end(1, 100);
        notifiers.begin(1, 100, Perhaps);
        assert_eq!(notifiers.sender(1), Sender::Client(100));
        let round = notifiers.round_begins();
        notifiers.round_ended(round);
        assert_eq!(notifiers.sender(1), Sender::Client(100), "its transaction goes on");
    }
}
