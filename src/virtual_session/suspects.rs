//! Names that the catalog says may reach session state: what a statement's text can't tell by itself.
//!
//! A routine's body may call set_config; a trigger may call that routine; a view, a default, a policy, an operator may
//! too. [`suspects_query`] reads them all in one query, and [`Suspects`] answers for one name of a text at a time.

use super::word_table::word_hash;

/// The catalog query: rows of `(kind text, schema text, name text, reason text)`, for [`Suspects::known`].
///
/// Works on PostgreSQL 12 to 18 and needs no privileges. Run it under neutral settings and a `statement_timeout` of
/// the caller's; a failure leaves [`Suspects::every_mention`] or [`Suspects::everything`] in force.
pub const fn suspects_query() -> &'static str {
    include_str!("suspects.sql")
}

/// What a row of [`suspects_query`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SuspectKind {
    /// A statement that mentions the name may change the session (routine, view, type).
    Mention,
    /// A statement that mentions the name and writes may (a table whose triggers, defaults or checks do).
    Write,
    /// An operator's symbol.
    Operator,
    /// Any statement may (a cast).
    Statement,
    /// Any command that fires event triggers may.
    Definition,
    /// A routine that is proven harmless, so that its calls are known.
    HarmlessRoutine,
}

impl SuspectKind {
    /// The kind by its label in the query's first column. An unknown label is the worst kind.
    pub fn from_label(label: &[u8]) -> Self {
        match label {
            b"mention" => Self::Mention,
            b"write" => Self::Write,
            b"operator" => Self::Operator,
            b"definition" => Self::Definition,
            b"harmless_routine" => Self::HarmlessRoutine,
            _ => Self::Statement,
        }
    }
}

/// When a name in a text makes it suspicious.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Wherever it stands.
    Mention,
    /// In a statement that writes.
    Write,
}

/// How much is known of a database's routines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Knowledge {
    /// The catalog was read.
    Known,
    /// Nothing was read; relations are taken to be plain.
    RoutinesSuspected,
    /// Nothing was read; nothing is taken for granted.
    AllSuspected,
}

/// PostgreSQL cuts identifiers at NAMEDATALEN - 1 bytes, so a longer spelling names the same object.
const NAME_BYTES_MAX: usize = 63;

/// What the catalog says about the names that a text may mention. Immutable; renewed as a whole.
#[derive(Debug, Clone)]
pub struct Suspects {
    knowledge: Knowledge,
    names: NameTable,
    harmless_routines: NameTable,
    operators: Vec<Box<[u8]>>,
    statements: bool,
    definitions: bool,
    non_ascii: bool,
    fingerprint: u64,
}

impl Suspects {
    /// Nothing was read yet: a call of any function that is not PostgreSQL's own is suspicious.
    ///
    /// This is no proof for tables and views: a trigger or a view's function is not seen. Where nothing may leak before
    /// the catalog was read, use [`Self::every_mention`].
    pub fn everything() -> Self {
        Self::unread(Knowledge::RoutinesSuspected)
    }

    /// Nothing was read yet and nothing is taken for granted: any name that is not PostgreSQL's own is suspicious.
    pub fn every_mention() -> Self {
        Self::unread(Knowledge::AllSuspected)
    }

    /// What [`suspects_query`] told.
    pub fn known<'n>(rows: impl IntoIterator<Item = (SuspectKind, &'n [u8])>) -> Self {
        let mut suspects = Self::unread(Knowledge::Known);
        for (kind, name) in rows {
            suspects.add(kind, name);
        }
        suspects
    }

    fn unread(knowledge: Knowledge) -> Self {
        Self {
            knowledge,
            names: NameTable::default(),
            harmless_routines: NameTable::default(),
            operators: Vec::new(),
            statements: false,
            definitions: knowledge == Knowledge::AllSuspected,
            non_ascii: false,
            fingerprint: knowledge as u64,
        }
    }

    fn add(&mut self, kind: SuspectKind, name: &[u8]) {
        // A sum, so that the order of the rows does not matter.
        self.fingerprint = self
            .fingerprint
            .wrapping_add(word_hash(name).rotate_left(7 * (kind as u32 + 1)) | 1);
        match kind {
            SuspectKind::Mention | SuspectKind::Write => {
                self.non_ascii |= !name.is_ascii();
                self.names.insert(
                    name,
                    if kind == SuspectKind::Write {
                        Reach::Write
                    } else {
                        Reach::Mention
                    },
                );
            }
            SuspectKind::Operator => self.operators.push(name.into()),
            SuspectKind::Statement => self.statements = true,
            SuspectKind::Definition => self.definitions = true,
            SuspectKind::HarmlessRoutine => self.harmless_routines.insert(name, Reach::Write),
        }
    }

    /// Whether any name at all must be asked about; false on most databases, which saves a lookup per identifier.
    #[inline]
    pub fn watches_names(&self) -> bool {
        !self.names.is_empty() || self.knowledge == Knowledge::AllSuspected
    }

    /// Whether the names of a text are all that must be asked about.
    #[inline]
    pub(super) fn allows_first_look(&self) -> bool {
        self.knowledge != Knowledge::AllSuspected && !self.statements && self.operators.is_empty()
    }

    /// Whether an identifier makes the text suspicious, and when. Compared without regard to ASCII case.
    pub fn reach(&self, name: &[u8]) -> Option<Reach> {
        if self.knowledge == Knowledge::AllSuspected {
            let own = super::builtin_functions::is_harmless(name)
                || super::session_functions::session_function(name).is_some()
                || name.eq_ignore_ascii_case(b"pg_catalog");
            return if own { None } else { Some(Reach::Mention) };
        }
        // The client's encoding may write the same name in other bytes than the catalog told us.
        if self.non_ascii && !name.is_ascii() {
            return Some(Reach::Mention);
        }
        if name.len() > NAME_BYTES_MAX {
            return if name.is_ascii() {
                self.names.find(&name[..NAME_BYTES_MAX])
            } else {
                Some(Reach::Mention)
            };
        }
        self.names.find(name)
    }

    /// Whether the catalog itself warned of a name, at whatever reach.
    pub(super) fn lists(&self, name: &[u8]) -> bool {
        self.names.find(name).is_some()
    }

    /// Whether every user routine of this name is known to be harmless.
    pub fn knows_routine(&self, name: &[u8]) -> bool {
        self.harmless_routines
            .find(name.get(..NAME_BYTES_MAX).unwrap_or(name))
            .is_some()
    }

    /// Whether an operator's function may reach session state.
    #[inline]
    pub fn suspects_operator(&self, symbol: &[u8]) -> bool {
        self.operators.iter().any(|operator| **operator == *symbol)
    }

    /// Whether any statement that is more than transaction control may reach session state.
    pub fn suspects_statements(&self) -> bool {
        self.statements
    }

    /// Whether an event trigger may reach session state.
    pub fn suspects_definitions(&self) -> bool {
        self.definitions
    }

    /// Differs between suspects that may answer differently: a cache of answers is void when it changes.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}

/// Names in lower case, found without regard to case and without allocation.
#[derive(Debug, Clone, Default)]
struct NameTable {
    names: Vec<(Box<[u8]>, Reach)>,
    /// Position + 1; 0 is free. A power of two, at most half full.
    slots: Vec<u32>,
}

impl NameTable {
    fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Adds a name; of two reaches the wider stays.
    fn insert(&mut self, name: &[u8], reach: Reach) {
        if let Some(index) = self.position(name) {
            if reach == Reach::Mention {
                self.names[index].1 = reach;
            }
            return;
        }
        self.names.push((name.to_ascii_lowercase().into(), reach));
        if self.names.len() * 2 > self.slots.len() {
            self.slots = vec![0; (self.names.len() * 4).next_power_of_two()];
            (0..self.names.len()).for_each(|index| self.place(index));
        } else {
            self.place(self.names.len() - 1);
        }
    }

    fn place(&mut self, index: usize) {
        let mask = self.slots.len() - 1;
        let mut slot = word_hash(&self.names[index].0) as usize & mask;
        while self.slots[slot] != 0 {
            slot = (slot + 1) & mask;
        }
        self.slots[slot] = u32::try_from(index + 1).unwrap_or(u32::MAX);
    }

    fn find(&self, name: &[u8]) -> Option<Reach> {
        self.position(name).map(|index| self.names[index].1)
    }

    fn position(&self, name: &[u8]) -> Option<usize> {
        let mask = self.slots.len().checked_sub(1)?;
        let mut slot = word_hash(name) as usize & mask;
        loop {
            let index = (self.slots[slot] as usize).checked_sub(1)?;
            if self.names.get(index)?.0.eq_ignore_ascii_case(name) {
                return Some(index);
            }
            slot = (slot + 1) & mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_any_case_and_the_wider_reach_stays() {
        let rows: Vec<(SuspectKind, Vec<u8>)> = (0..500)
            .map(|number| (SuspectKind::Write, format!("Table_{number}").into_bytes()))
            .chain([
                (SuspectKind::Mention, b"table_7".to_vec()),
                (SuspectKind::HarmlessRoutine, b"tidy".to_vec()),
            ])
            .collect();
        let suspects = Suspects::known(rows.iter().map(|(kind, name)| (*kind, name.as_slice())));
        assert_eq!(suspects.reach(b"TABLE_499"), Some(Reach::Write));
        assert_eq!(suspects.reach(b"table_7"), Some(Reach::Mention));
        assert_eq!(suspects.reach(b"table_500"), None);
        assert!(suspects.knows_routine(b"Tidy") && !suspects.knows_routine(b"table_1"));
        assert!(suspects.watches_names() && !suspects.suspects_statements() && !suspects.suspects_definitions());
    }

    #[test]
    fn an_overlong_spelling_is_the_name_that_postgres_cuts_it_to() {
        let name = [b'x'; 63];
        let suspects = Suspects::known([(SuspectKind::Mention, &name[..])]);
        assert_eq!(suspects.reach(&[b'x'; 90]), Some(Reach::Mention));
        assert_eq!(suspects.reach(&[b'x'; 62]), None);
        assert_eq!(suspects.reach("ü".repeat(40).as_bytes()), Some(Reach::Mention));
    }

    #[test]
    fn a_name_outside_ascii_is_compared_in_no_encoding() {
        let suspects = Suspects::known([(SuspectKind::Mention, "größe".as_bytes())]);
        assert_eq!(suspects.reach(b"gr\xf6\xdfe"), Some(Reach::Mention));
        assert_eq!(Suspects::known([]).reach("größe".as_bytes()), None);
    }

    #[test]
    fn an_unknown_kind_suspects_every_statement() {
        assert_eq!(SuspectKind::from_label(b"new kind"), SuspectKind::Statement);
        assert!(Suspects::known([(SuspectKind::Statement, &b""[..])]).suspects_statements());
    }

    #[test]
    fn the_fingerprint_tells_one_catalog_from_another() {
        let one = Suspects::known([(SuspectKind::Mention, &b"a"[..]), (SuspectKind::Write, &b"b"[..])]);
        let same = Suspects::known([(SuspectKind::Write, &b"b"[..]), (SuspectKind::Mention, &b"a"[..])]);
        let other = Suspects::known([(SuspectKind::Write, &b"a"[..]), (SuspectKind::Mention, &b"b"[..])]);
        assert_eq!(one.fingerprint(), same.fingerprint());
        let prints = [
            one,
            other,
            Suspects::known([]),
            Suspects::everything(),
            Suspects::every_mention(),
        ];
        let distinct: std::collections::HashSet<u64> = prints.iter().map(Suspects::fingerprint).collect();
        assert_eq!(distinct.len(), prints.len());
    }
}
