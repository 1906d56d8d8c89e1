//! What `lastval` and `currval` may tell: a client's own values, and of those the latest, or nothing.
//!
//! PostgreSQL keeps what a session drew in its backend. A backend remembers whose values it has, and forgets them (DISCARD
//! SEQUENCES) before a statement of someone else's that asks. In a pool in which anyone has ever asked, it forgets them before
//! someone else draws, too, and a client that draws keeps its backend: PHP's `lastInsertId` is an INSERT, and then a
//! `SELECT LASTVAL()` of its own. That pin is a soft one. It ends when the value was asked for, and who never asks is
//! waited for less and less.

use std::sync::atomic::Ordering;

use super::pins::PinReason;
use super::statement_effects::SequenceUse;
use super::{BackendState, VirtualSession};

/// Pins in a row that ended unasked, after which a client that has never asked is not expected to.
const UNASKED_MAX: u32 = 8;
/// The same for one that has asked before: from here on it is waited for as long as this each time.
const UNASKED_OF_READER_MAX: u32 = 3;

/// Of one client, what it has drawn and whether it asks.
#[derive(Debug, Default)]
pub(super) struct Sequences {
    /// It has asked for the last value of a sequence, and may again.
    reads: bool,
    /// It has drawn one since it last asked.
    pub(super) is_unread: bool,
    /// It has drawn one, and not said DISCARD since.
    has_drawn: bool,
    /// It has asked where what it drew is not remembered.
    is_lost: bool,
    /// Of the backend on which it drew last.
    mark: u64,
    /// Pins in a row that were ended though it had not asked.
    unasked: u32,
}

/// Whose sequence values a backend remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Drawn {
    #[default]
    ByNobody,
    By(Draw),
    /// By this one, or by nobody: a statement of its has run that may draw without saying so.
    PerhapsBy(Draw),
    BySeveral,
}

/// One client, for as long as it draws from one backend only: what it drew before, elsewhere, is not the latest any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Draw {
    pub(super) client: u64,
    mark: u64,
}

impl VirtualSession {
    /// Whether the client ever drew a value of a sequence, which lastval and currval tell only where that was.
    pub const fn has_drawn(&self) -> bool {
        self.sequences.has_drawn
    }

    /// Whether it last asked for what it drew where that is not remembered: PostgreSQL says that there is none.
    pub const fn has_lost_its_value(&self) -> bool {
        self.sequences.is_lost
    }

    /// Whether the backend remembers the latest that this client drew, and nobody else's.
    pub fn left_values_on(&self, backend: &BackendState) -> bool {
        self.has_drawn() && backend.drawn == Drawn::By(self.own_draw())
    }

    const fn own_draw(&self) -> Draw {
        let (client, mark) = (self.client, self.sequences.mark);
        Draw { client, mark }
    }

    /// A statement is about to run of which only a routine or a trigger could draw: it writes, or calls what may.
    pub fn may_draw_unseen(&mut self, backend: &mut BackendState) {
        let own = self.own_draw();
        backend.drawn = match backend.drawn {
            Drawn::ByNobody => Drawn::PerhapsBy(own),
            Drawn::By(draw) if draw == own => backend.drawn,
            Drawn::PerhapsBy(draw) if draw.client == self.client => Drawn::PerhapsBy(own),
            _ => Drawn::BySeveral,
        };
    }

    /// A statement that has to do with sequences is about to run. True: the backend remembers values that others drew, or
    /// older ones, and must forget them first (DISCARD SEQUENCES), so that lastval and currval tell nothing of them.
    pub fn use_sequences(&mut self, uses: SequenceUse, backend: &mut BackendState) -> bool {
        if uses.reads() {
            self.shared.sequences_are_read.store(true, Ordering::Relaxed);
            self.sequences.reads = true;
            self.sequences.is_unread = false;
            self.sequences.unasked = 0;
        }
        let are_read = self.shared.sequences_are_read.load(Ordering::Relaxed);
        let is_perhaps_own = backend.drawn == Drawn::PerhapsBy(self.own_draw());
        let is_others = backend.drawn != Drawn::ByNobody && !is_perhaps_own && !self.left_values_on(backend);
        if uses.reads() {
            self.sequences.is_lost = self.has_drawn() && !is_perhaps_own && !self.left_values_on(backend);
        }
        let forget = is_others && (uses.reads() || (uses.draws() && are_read));
        if forget {
            backend.drawn = Drawn::ByNobody;
        }
        if uses.draws() {
            self.sequences.is_unread = !uses.reads();
            let is_own = self.left_values_on(backend);
            self.sequences.has_drawn = true;
            if !is_own {
                self.sequences.mark += 1;
                backend.drawn = match backend.drawn {
                    Drawn::ByNobody => Drawn::By(self.own_draw()),
                    Drawn::PerhapsBy(draw) if draw.client == self.client => Drawn::By(self.own_draw()),
                    _ => Drawn::BySeveral,
                };
            }
            if self.sequences.is_unread && self.will_ask(uses, are_read) {
                self.pins.insert(PinReason::Sequence);
            }
        }
        forget
    }

    /// Whether the client may be expected to ask for what it draws.
    fn will_ask(&self, uses: SequenceUse, are_read: bool) -> bool {
        let is_told = uses == SequenceUse::MayDrawAndTell;
        self.sequences.reads || (are_read && !is_told && self.sequences.unasked < UNASKED_MAX)
    }

    /// The client keeps its backend only for a value that it drew.
    pub fn is_pinned_for_sequence_alone(&self) -> bool {
        self.pins.contains(PinReason::Sequence) && self.pins.counted().is_empty()
    }

    /// Whether it has not asked for that value yet.
    pub const fn may_ask_for_sequence(&self) -> bool {
        self.sequences.is_unread
    }

    /// How often the time that it is waited for has been halved, because it did not ask.
    pub fn sequence_halvings(&self) -> u32 {
        match self.sequences.reads {
            true => self.sequences.unasked.min(UNASKED_OF_READER_MAX),
            false => self.sequences.unasked.min(UNASKED_MAX),
        }
    }

    /// DISCARD: there is nothing to ask for, wherever it was drawn.
    pub(super) const fn discard_sequences(&mut self) {
        self.sequences.has_drawn = false;
        self.sequences.is_unread = false;
        self.sequences.mark += 1;
    }

    /// The backend is lost, and the value with it.
    pub fn lose_sequence(&mut self) {
        self.sequences.is_unread = false;
        self.sequences.mark += 1;
        self.end_pins([PinReason::Sequence]);
    }

    /// The value was asked for, or won't be any more.
    pub fn end_sequence_pin(&mut self) {
        if self.sequences.is_unread {
            self.sequences.unasked = self.sequences.unasked.saturating_add(1);
        }
        self.end_pins([PinReason::Sequence]);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::SharedLedger;
    use super::super::parameters::Settings;
    use super::super::sql_lexer::Lexing;
    use super::*;
    use SequenceUse::{Draws, MayDraw, MayDrawAndTell, Reads};

    fn clients(count: u64) -> Vec<VirtualSession> {
        let shared = Arc::new(SharedLedger::new(7));
        let client = |number| VirtualSession::new(number, shared.clone(), Settings::default(), Lexing::default());
        (1..=count).map(client).collect()
    }

    #[test]
    fn trap_68_who_asks_is_told_of_nobody_elses_values_and_of_no_older_ones() {
        let [mut one, mut two] = <[_; 2]>::try_from(clients(2)).unwrap();
        let (mut here, mut there) = (BackendState::default(), BackendState::default());
        assert!(!one.use_sequences(MayDraw, &mut here) && one.pins().is_empty());
        assert!(!one.use_sequences(MayDraw, &mut there));
        assert!(one.left_values_on(&there) && !one.left_values_on(&here));
        // The one here is not its last any more.
        assert!(one.use_sequences(Reads, &mut here) && one.has_lost_its_value());
        assert!(!one.use_sequences(Reads, &mut there) && !one.has_lost_its_value());
        assert!(two.use_sequences(Reads, &mut there), "another's");
    }

    #[test]
    fn trap_68_what_routines_and_triggers_draw_is_told_to_their_caller_and_to_nobody_else() {
        let [mut one, mut two] = <[_; 2]>::try_from(clients(2)).unwrap();
        let mut backend = BackendState::default();
        one.may_draw_unseen(&mut backend);
        assert!(!one.use_sequences(Reads, &mut backend) && !one.has_drawn());
        assert!(two.use_sequences(Reads, &mut backend));
        one.use_sequences(Draws, &mut backend);
        two.may_draw_unseen(&mut backend);
        assert!(one.use_sequences(Reads, &mut backend), "two may have drawn since");
        two.may_draw_unseen(&mut backend);
        two.use_sequences(Draws, &mut backend);
        assert!(two.left_values_on(&backend));
        two.may_draw_unseen(&mut backend);
        assert!(!two.use_sequences(Reads, &mut backend));
    }

    #[test]
    fn once_anyone_has_asked_whoever_draws_stays_and_finds_a_backend_that_has_forgotten_the_others() {
        let [mut one, mut two, mut three] = <[_; 3]>::try_from(clients(3)).unwrap();
        let mut backend = BackendState::default();
        two.use_sequences(Draws, &mut backend);
        one.use_sequences(Reads, &mut BackendState::default());
        assert!(three.use_sequences(Draws, &mut backend));
        assert!(three.is_pinned_for_sequence_alone() && three.may_ask_for_sequence());
        assert!(!three.use_sequences(Reads, &mut backend), "it is its own");
        three.end_sequence_pin();
        assert!(three.pins().is_empty() && three.sequence_halvings() == 0);
        assert!(three.left_values_on(&backend));
    }

    #[test]
    fn who_never_asks_is_waited_for_less_and_less() {
        let [mut reader, mut writer] = <[_; 2]>::try_from(clients(2)).unwrap();
        let mut backend = BackendState::default();
        reader.use_sequences(Reads, &mut backend);
        for unasked in 0..UNASKED_MAX {
            assert_eq!(writer.sequence_halvings(), unasked);
            writer.use_sequences(MayDraw, &mut backend);
            assert!(writer.is_pinned_for_sequence_alone());
            writer.end_sequence_pin();
            reader.use_sequences(MayDrawAndTell, &mut backend);
            assert!(reader.is_pinned_for_sequence_alone(), "who has asked may ask again");
            reader.end_sequence_pin();
        }
        writer.use_sequences(MayDraw, &mut backend);
        assert!(writer.pins().is_empty());
        assert_eq!(reader.sequence_halvings(), UNASKED_OF_READER_MAX);
        // Who is told what it drew needs not ask; and who asks after all is expected to do so again.
        let mut told = clients(1);
        told[0].use_sequences(MayDrawAndTell, &mut backend);
        assert!(told[0].pins().is_empty());
        writer.use_sequences(Reads, &mut backend);
        writer.use_sequences(MayDraw, &mut backend);
        assert!(writer.is_pinned_for_sequence_alone() && writer.sequence_halvings() == 0);
    }
}
