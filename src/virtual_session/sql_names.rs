//! Prepared statements as SQL names them: PREPARE, EXECUTE and DEALLOCATE, in the one namespace that the protocol's
//! statements are in too (trap 30).
//!
//! PREPARE is not transactional: what was prepared stays when its transaction is rolled back, and what failed does not
//! exist. So the ledger follows PostgreSQL's tags, not the text.

use std::collections::VecDeque;
use std::sync::Arc;

use super::pins::PinReason;
use super::result_shape::ResultShape;
use super::statement_effects::{Action, Effects, Name, Step, TransactionControl};
use super::statements::{NamedStatement, ParseKey, Statement};
use super::{BackendState, VirtualSession};

/// The longest name that PostgreSQL does not cut (NAMEDATALEN less one).
const NAME_LEN_MAX: usize = 63;

/// What a request does to the names of the session, when its tags come.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct NameChanges {
    /// One for each PREPARE and DEALLOCATE, in order.
    pub changes: VecDeque<NameChange>,
    /// Names of statements that it executes.
    pub executes: Vec<Box<[u8]>>,
}

/// What one statement of a text does to a name.
#[derive(Debug, Clone)]
pub enum NameChange {
    /// PREPARE: the name stands for this from now on. `None` where only the backend knows it.
    Prepared(Option<(Box<[u8]>, Arc<Statement>)>),
    /// DEALLOCATE.
    Deallocated(Name),
}

impl PartialEq for NameChange {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Prepared(one), Self::Prepared(two)) => {
                let id = |of: &Option<(Box<[u8]>, Arc<Statement>)>| of.as_ref().map(|(_, statement)| statement.id);
                id(one) == id(two)
            }
            (Self::Deallocated(one), Self::Deallocated(two)) => one == two,
            _ => false,
        }
    }
}

impl Eq for NameChange {}

impl NameChanges {
    /// Nothing need be kept for the reply.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.executes.is_empty()
    }

    /// What the tag that has come tells.
    pub fn take(&mut self, tag: &[u8]) -> Option<NameChange> {
        let is_told = match self.changes.front()? {
            NameChange::Prepared(_) => tag == b"PREPARE",
            NameChange::Deallocated(_) => tag == b"DEALLOCATE",
        };
        if is_told { self.changes.pop_front() } else { None }
    }
}

impl Effects {
    /// Whether it makes, uses or takes away prepared statements by their names.
    pub fn mentions_names(&self) -> bool {
        let names = |action: &Action| matches!(action, Action::Prepare(_) | Action::Execute(_) | Action::Deallocate(_));
        self.pins.contains(PinReason::Prepare) || self.steps.iter().any(|step| names(&step.action))
    }

    /// Whether it uses prepared statements by their names.
    pub fn executes_names(&self) -> bool {
        let executes = |action: &Action| matches!(action, Action::Execute(_));
        self.steps.iter().any(|step| executes(&step.action))
    }

    /// Whether it is more than a query: executed by its name, it changes more than the ledger can follow.
    pub fn is_command(&self) -> bool {
        let follows = |action: &Action| matches!(action, Action::Setting(_) | Action::AdvisoryUnlock);
        self.transaction != TransactionControl::None || self.steps.iter().any(|step| !follows(&step.action))
    }

    /// Whether it may use names that its text does not tell.
    pub fn may_mention_any_name(&self) -> bool {
        const OPAQUE: [PinReason; 6] = [
            PinReason::ProceduralLanguage,
            PinReason::LargeStatement,
            PinReason::Unlexable,
            PinReason::Routine,
            PinReason::Suspect,
            PinReason::Unknown,
        ];
        let hides_a_name = |action: &Action| match action {
            Action::Prepare(name) | Action::Execute(name) | Action::Deallocate(name) => {
                name.as_deref().is_none_or(|name| !is_plain(name))
            }
            _ => false,
        };
        OPAQUE.iter().any(|reason| self.pins.contains(*reason))
            || self.steps.iter().any(|step| hides_a_name(&step.action))
    }

    /// What executing does of a statement that this text prepares.
    #[must_use]
    pub fn of_prepared(mut self) -> Self {
        self.pins.remove(PinReason::Prepare);
        self.steps.retain(|step| !matches!(step.action, Action::Prepare(_)));
        self
    }

    /// Adds what a statement does that this text executes, as its statement of this number.
    pub fn execute(&mut self, statement: u32, executed: &Self) {
        self.pins.extend(executed.pins);
        // Of a command, which is the backend's business, the rest is not followed.
        let follows = |action: &Action| matches!(action, Action::Setting(_) | Action::AdvisoryUnlock);
        let steps = executed.steps.iter().filter(|step| follows(&step.action)).cloned();
        self.steps.extend(steps.map(|step| Step { statement, ..step }));
        // In the order in which they happen.
        self.steps.sort_by_key(|step| step.statement);
        self.sequence = self.sequence.and(executed.sequence);
        self.ends_transaction |= executed.ends_transaction;
        self.is_read_only_shape &= executed.is_read_only_shape;
        self.without_effect &= executed.without_effect;
        self.catalog_change |= executed.catalog_change;
        self.role_change |= executed.role_change;
        self.notifies |= executed.notifies;
        self.reads_session |= executed.reads_session;
        self.lists_statements |= executed.lists_statements;
    }
}

/// Whether a name is the same bytes in every encoding, and in PostgreSQL's memory: only such a name follows its client.
pub fn is_plain(name: &[u8]) -> bool {
    !name.is_empty() && name.len() <= NAME_LEN_MAX && name.is_ascii()
}

impl VirtualSession {
    /// The statement that a PREPARE of a plain, free name makes, if its text is nothing else. `None` where it can't
    /// follow its client: it is too large, or is made under settings that are not known.
    pub fn sql_statement(
        &mut self,
        name: &[u8],
        text: &[u8],
        effects: &Effects,
        bytes_max: usize,
    ) -> Option<Arc<Statement>> {
        let fits = self.statements.bytes() + name.len() + text.len() <= bytes_max;
        if effects.statement_count != 1 || self.unseen_settings != 0 || !fits || self.is_reserved(name) {
            return None;
        }
        let definition = [text, b"\0"].concat();
        let effects = || effects.clone().of_prepared();
        Some(self.shared.statements.share(&definition, self.parse_key(), effects))
    }

    /// A Parse of a name that the backend decides about: what its statement does is remembered all the same. False: there
    /// is no room for it.
    pub fn remember_on_backend(&mut self, name: &[u8], definition: &[u8], effects: &Effects, bytes_max: usize) -> bool {
        let fits = self.statements.bytes() + name.len() + definition.len() <= bytes_max;
        if fits && self.keeps_names_on_backend() {
            let key = ParseKey::Private(self.shared.statements.unique_number());
            let statement = self.shared.statements.share(definition, key, || effects.clone());
            self.statements.insert(name, statement);
        }
        fits && self.keeps_names_on_backend()
    }

    /// What a statement does whose name the backend decides about, if that may be more than nothing.
    pub fn effects_on_backend(&self, name: &[u8]) -> Option<&Effects> {
        let named = self.statements.find(name).filter(|_| self.keeps_names_on_backend())?;
        Some(&named.statement.effects).filter(|effects| !effects.is_none())
    }

    /// PostgreSQL has said PREPARE.
    pub fn prepared_by_sql(&mut self, name: &[u8], statement: Arc<Statement>, backend: &mut BackendState) {
        backend.own.insert(name, Some(statement.clone()));
        let generation = self.generation();
        self.statements.insert_of(name, statement, generation);
        self.untold.push(name.into());
    }

    /// PostgreSQL has said DEALLOCATE.
    pub fn deallocated_by_sql(&mut self, name: &[u8], backend: &mut BackendState) {
        self.statements.remove(name);
        backend.own.remove(name);
    }

    /// The client's names for statements, with these.
    pub fn named_statements(&self) -> impl Iterator<Item = (&[u8], &NamedStatement)> {
        let is_known = !self.keeps_names_on_backend();
        self.statements.iter().filter(move |_| is_known)
    }

    /// The client's statements are on its backend by their own names, and the ledger does not follow them.
    pub const fn keeps_names_on_backend(&self) -> bool {
        self.own_names.is_any()
    }

    /// Settings are in force that the ledger does not know, or not yet.
    pub const fn has_unseen_settings(&self) -> bool {
        self.unseen_settings != 0
    }

    /// Whether PostgreSQL is still to be asked for the columns of what SQL prepared.
    pub fn has_untold_columns(&self) -> bool {
        !self.untold.is_empty()
    }

    /// Names of statements whose columns PostgreSQL is asked for, which is once, with the numbers of both.
    pub fn take_untold_columns(&mut self, backend: &mut BackendState) -> Vec<(Box<[u8]>, u64, u64)> {
        let untold = std::mem::take(&mut self.untold);
        let asked = untold.into_iter().filter_map(|name| {
            let named = self.statements.find(&name).filter(|named| named.told.is_none())?;
            let (id, number) = (named.statement.id, named.number);
            backend.own.touch(&name, id).then_some((name, id, number))
        });
        asked.collect()
    }

    /// PostgreSQL would not tell the columns of a statement that SQL prepared, because they have changed since.
    pub fn columns_are_stale(&mut self, number: u64) {
        self.statements.tell(number, ResultShape::NEVER);
    }

    /// Whether what a name stands for must be described before it is executed here: SQL prepared it before the catalog
    /// changed, so that its columns may not be what they were.
    pub fn must_compare(&self, named: &NamedStatement) -> bool {
        named.statement.is_from_sql()
            && named.generation != self.generation()
            && named.told.is_some_and(ResultShape::has_rows)
    }

    /// A name is the backend's business, which keeps the client. `None`: all names are. The ledger's statements must be
    /// there by then.
    pub fn leave_to_backend(&mut self, name: Option<&[u8]>, backend: &mut BackendState) {
        self.own_names.insert(name);
        self.pins.insert(PinReason::Prepare);
        if name.is_none() {
            backend.own.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::SharedLedger;
    use super::super::parameters::Settings;
    use super::super::settings_ledger::Until;
    use super::super::sql_lexer::Lexing;
    use super::super::statement_effects::classify;
    use super::super::suspects::Suspects;
    use super::*;

    fn effects(text: &str) -> Effects {
        let suspects = Suspects::known([]);
        classify(text.as_bytes(), Lexing::default(), &suspects)
    }

    fn client(number: u64, ledger: &Arc<SharedLedger>) -> VirtualSession {
        VirtualSession::new(number, ledger.clone(), Settings::default(), Lexing::default())
    }

    fn prepare(client: &mut VirtualSession, text: &str) -> Option<Arc<Statement>> {
        client.sql_statement(b"a", text.as_bytes(), &effects(text), 10_000)
    }

    #[test]
    fn trap_30_equal_texts_of_two_clients_are_one_statement_and_no_protocol_statement() {
        let ledger = Arc::new(SharedLedger::new(7));
        let (mut one, mut two) = (client(1, &ledger), client(2, &ledger));
        let text = "PREPARE a AS SELECT 1";
        let made = prepare(&mut one, text).unwrap();
        assert!(made.is_from_sql() && Arc::ptr_eq(&made, &prepare(&mut two, text).unwrap()));
        let protocol = two.prepare(b"b", &[text.as_bytes(), b"\0\0\0"].concat(), || Effects::NONE);
        assert!(!protocol.is_from_sql() && protocol.id != made.id);
        assert_eq!((protocol.sql(), made.sql()), (text.as_bytes(), text.as_bytes()));
    }

    #[test]
    fn trap_30_what_can_not_be_said_again_does_not_follow() {
        let ledger = Arc::new(SharedLedger::new(7));
        let mut client = client(1, &ledger);
        assert!(prepare(&mut client, "PREPARE a AS SELECT 1; SELECT 2").is_none());
        assert!(prepare(&mut client, &format!("PREPARE a AS SELECT '{}'", "x".repeat(10_000))).is_none());
        client.see_not(Until::Ready);
        assert!(prepare(&mut client, "PREPARE a AS SELECT 1").is_none());
    }

    #[test]
    fn trap_30_the_ledger_follows_the_tags() {
        let ledger = Arc::new(SharedLedger::new(7));
        let mut client = client(1, &ledger);
        let mut backend = BackendState::default();
        let made = prepare(&mut client, "PREPARE a AS SELECT 1").unwrap();
        let mut names = NameChanges::default();
        names
            .changes
            .push_back(NameChange::Prepared(Some((b"a"[..].into(), made))));
        names.changes.push_back(NameChange::Deallocated(Some(b"a"[..].into())));
        assert_eq!(names.take(b"DEALLOCATE"), None);
        let Some(NameChange::Prepared(Some((name, made)))) = names.take(b"PREPARE") else {
            panic!("it was prepared");
        };
        client.prepared_by_sql(&name, made.clone(), &mut backend);
        assert!(client.statement(b"a").is_some() && backend.own.touch(b"a", made.id));
        assert_eq!(client.take_untold_columns(&mut backend).len(), 1);
        assert!(!client.has_untold_columns());
        assert!(matches!(names.take(b"DEALLOCATE"), Some(NameChange::Deallocated(_))));
        client.deallocated_by_sql(b"a", &mut backend);
        assert!(client.statement(b"a").is_none() && !backend.own.may_have(b"a"));
        assert_eq!(client.statement_bytes(), 0);
    }

    #[test]
    fn executing_does_what_the_statement_does() {
        let mut text = effects("EXECUTE a");
        let prepared = effects("PREPARE a AS INSERT INTO t VALUES (nextval('s'), pg_advisory_lock(1))").of_prepared();
        assert!(!prepared.mentions_names());
        text.execute(0, &prepared);
        assert!(text.pins.contains(PinReason::AdvisoryLock) && text.sequence.draws() && !text.is_read_only_shape);
    }

    #[test]
    fn only_names_that_are_the_same_everywhere_are_plain() {
        assert!(is_plain(b"a") && is_plain(b"It's 1"));
        assert!(!is_plain(b"") && !is_plain("é".as_bytes()) && !is_plain(&[b'x'; 64]));
        assert!(effects("EXECUTE \"é\"").may_mention_any_name() && effects("DO 'x'").may_mention_any_name());
        assert!(!effects("EXECUTE e").may_mention_any_name());
    }
}
