//! Prepared statements across backends: a client's names, the names that backends know them by, and who holds what.
//!
//! A statement is shared between clients by its exact bytes (text and parameter types), and by the settings and role
//! under which it was parsed; its name on the backends is ours, never reused with another text (trap 27). Each backend
//! remembers what it holds, bounded in bytes, least recently used first out. The unnamed statement is not shared: the
//! client's ledger keeps its definition, because it outlives its Sync (trap 29).

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use super::parameters::Settings;
use super::result_shape::ResultShape;
use super::statement_effects::Effects;

/// One statement as backends know it.
#[derive(Debug)]
pub struct Statement {
    /// Never 0, never reused.
    pub id: u64,
    /// The number in its name: its own, but for one that has taken a shared one's place on a backend.
    place: u64,
    /// The name on every backend.
    pub name: Box<[u8]>,
    /// Everything behind the name in its Parse: text, count, types. Of a PREPARE the text alone.
    pub definition: Box<[u8]>,
    sql_len: usize,
    /// What executing it may do to the session.
    pub effects: Effects,
    /// The settings that it was parsed under.
    pub key: ParseKey,
    proven: AtomicBool,
    /// Where the key doesn't tell: what it was parsed under, as it turned out.
    resolved: OnceLock<Arc<Settings>>,
}

impl Statement {
    /// PostgreSQL has parsed it once: another client's Parse of it needs no backend.
    pub fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }

    /// The settings that it was parsed under, where they are known.
    pub fn under(&self) -> Option<&Arc<Settings>> {
        match &self.key {
            ParseKey::Settings(settings) => Some(settings),
            ParseKey::Private(_) => self.resolved.get(),
        }
    }

    /// It turned out what a private statement was parsed under.
    pub fn resolve(&self, settings: Arc<Settings>) {
        let _ = self.resolved.set(settings);
    }

    /// See [`Self::is_proven`].
    pub fn prove(&self) {
        self.proven.store(true, Ordering::Relaxed);
    }

    /// It has taken a shared one's place on a backend.
    pub fn is_apart(&self) -> bool {
        self.place != self.id
    }

    /// What it weighs in the bounds: its text and what PostgreSQL and we spend around it.
    pub fn weight(&self) -> usize {
        self.definition.len() + 256
    }

    /// SQL made it: its text is a PREPARE, which is what makes it again.
    pub fn is_from_sql(&self) -> bool {
        // A Parse has at least the count of its types behind the text.
        self.definition.len() == self.sql_len + 1
    }

    /// Its text.
    pub fn sql(&self) -> &[u8] {
        self.definition.get(..self.sql_len).unwrap_or_default()
    }
}

/// What a statement's meaning depends on besides its text and types.
#[derive(Debug, Clone)]
pub enum ParseKey {
    /// These settings, as far as parsing and planning read them.
    Settings(Arc<Settings>),
    /// Settings that nobody knows: the statement is shared with no one.
    Private(u64),
}

impl PartialEq for ParseKey {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Settings(one), Self::Settings(two)) => one.parses_like(two),
            (Self::Private(one), Self::Private(two)) => one == two,
            _ => false,
        }
    }
}

impl Eq for ParseKey {}

impl Hash for ParseKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Settings(settings) => settings.parse_key().hash(state),
            Self::Private(number) => number.hash(state),
        }
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    definition: Box<[u8]>,
    parse_key: ParseKey,
}

/// The statements that clients of one pool hold at this moment.
#[derive(Debug)]
pub struct SharedStatements {
    /// Unguessable, so that no client's own name meets a shared one.
    prefix: Box<str>,
    next_id: AtomicU64,
    by_key: Mutex<ByKey>,
    /// Grows with every change of the catalog that was seen: what a backend parsed before is parsed again (trap 31).
    generation: AtomicU64,
}

#[derive(Debug, Default)]
struct ByKey {
    statements: HashMap<Key, Weak<Statement>>,
    /// Bytes of the keys' definitions, those of the dead included.
    bytes: usize,
    /// Entries and bytes at which the dead are swept out next.
    sweep_at: usize,
    sweep_at_bytes: usize,
}

impl ByKey {
    /// Definitions of the dead that may stay in memory, in bytes; beyond it as many as of the living.
    const DEAD_BYTES_MAX: usize = 4 << 20;

    fn sweep(&mut self) {
        if self.statements.len() < self.sweep_at && self.bytes < self.sweep_at_bytes {
            return;
        }
        self.statements.retain(|_, weak| weak.strong_count() > 0);
        self.bytes = self.statements.keys().map(|key| key.definition.len()).sum();
        self.sweep_at = (self.statements.len() * 2).max(1024);
        self.sweep_at_bytes = (self.bytes * 2).max(Self::DEAD_BYTES_MAX);
    }

    fn insert(&mut self, key: Key, statement: Weak<Statement>) {
        let len = key.definition.len();
        if self.statements.insert(key, statement).is_none() {
            self.bytes += len;
        }
    }
}

impl SharedStatements {
    /// `nonce` is random: part of every shared name.
    pub fn new(nonce: u64) -> Self {
        Self {
            prefix: format!("pgs_{nonce:016x}_").into(),
            next_id: AtomicU64::new(1),
            by_key: Mutex::default(),
            generation: AtomicU64::new(1),
        }
    }

    /// What [`BackendStatements`] are as old as, of statements that are parsed now.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// How the name of every statement of ours begins: letters, digits and underscores.
    pub fn name_prefix(&self) -> &str {
        &self.prefix
    }

    /// A client's own name that looks like one of ours would reach another client's statement.
    pub fn is_reserved(&self, name: &[u8]) -> bool {
        name.starts_with(self.prefix.as_bytes())
    }

    /// A name of ours that no statement has or will have.
    pub fn unused_name(&self) -> Vec<u8> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        format!("{}{id}", self.prefix).into_bytes()
    }

    /// The shared statement of a definition parsed under these settings, made if nobody holds it.
    pub fn share(&self, definition: &[u8], parse_key: ParseKey, effects: impl FnOnce() -> Effects) -> Arc<Statement> {
        let mut by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        by_key.sweep();
        let key = Key {
            definition: definition.into(),
            parse_key,
        };
        if let Some(found) = by_key.statements.get(&key).and_then(Weak::upgrade) {
            return found;
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}{id}", self.prefix).into_bytes().into();
        let statement = Arc::new(Statement {
            id,
            place: id,
            name,
            definition: definition.into(),
            sql_len: memchr::memchr(0, definition).unwrap_or(definition.len()),
            effects: effects(),
            key: key.parse_key.clone(),
            proven: AtomicBool::new(false),
            resolved: OnceLock::new(),
        });
        by_key.insert(key, Arc::downgrade(&statement));
        statement
    }

    /// A statement that is one client's alone, under the name of this one: what a backend has by that name becomes it.
    pub fn apart(&self, of: &Statement) -> Arc<Statement> {
        let id = self.unique_number();
        Arc::new(Statement {
            id,
            place: of.place,
            name: of.name.clone(),
            definition: of.definition.clone(),
            sql_len: of.sql_len,
            effects: of.effects.clone(),
            key: ParseKey::Private(id),
            proven: AtomicBool::new(of.is_proven()),
            resolved: OnceLock::new(),
        })
    }

    /// The shared statement of a definition that PostgreSQL is known to parse, if somebody holds it.
    pub fn find_proven(&self, definition: &[u8], parse_key: ParseKey) -> Option<Arc<Statement>> {
        let key = Key {
            definition: definition.into(),
            parse_key,
        };
        let by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        let found = by_key.statements.get(&key).and_then(Weak::upgrade);
        found.filter(|statement| statement.is_proven())
    }

    /// Shares none of the statements so far with anyone who comes from now on, and lets every backend parse its own
    /// again before their next use.
    pub fn forget(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        let mut by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        *by_key = ByKey::default();
    }

    /// A number that no statement has, and no other call got. Never 0.
    pub fn unique_number(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}

/// A statement behind a client's name.
#[derive(Debug, Clone)]
pub struct NamedStatement {
    /// What backends know.
    pub statement: Arc<Statement>,
    /// What the client was told that its rows look like, if it has asked.
    pub told: Option<ResultShape>,
    /// Which of the client's names this is, counted from 1: a name that is used again is another.
    pub number: u64,
    /// Of the catalog, when SQL prepared it.
    pub generation: u64,
}

/// A client's names for its statements. A tree: a few comparisons are less than a hash that nobody can aim at.
type Names = BTreeMap<Box<[u8]>, NamedStatement>;

/// The statements that one client believes it holds, by its own names.
#[derive(Debug, Default)]
pub struct ClientStatements {
    by_name: Option<Box<Names>>,
    bytes: usize,
    names_so_far: u64,
}

impl ClientStatements {
    /// The statement that a name stands for.
    pub fn find(&self, name: &[u8]) -> Option<&NamedStatement> {
        self.by_name.as_ref()?.get(name)
    }

    /// Every name.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &NamedStatement)> {
        let names = self.by_name.iter().flat_map(|names| names.iter());
        names.map(|(name, named)| (&**name, named))
    }

    /// The client is told what the rows of a statement look like, if it still has the name of this number.
    pub fn tell(&mut self, number: u64, shape: ResultShape) {
        // Once for each name.
        let mut named = self.by_name.iter_mut().flat_map(|names| names.values_mut());
        if let Some(named) = named.find(|named| named.number == number) {
            named.told = Some(shape);
        }
    }

    /// Records a name. The caller has made sure that it is free.
    pub fn insert(&mut self, name: &[u8], statement: Arc<Statement>) {
        self.insert_of(name, statement, 0);
    }

    /// The same for a statement that was prepared under the catalog of this generation.
    pub fn insert_of(&mut self, name: &[u8], statement: Arc<Statement>, generation: u64) {
        self.names_so_far += 1;
        let named = NamedStatement {
            statement,
            told: None,
            number: self.names_so_far,
            generation,
        };
        self.put_back(name, named);
    }

    /// What SQL prepared by this name is read again: what its rows look like is compared wherever it is executed.
    pub fn compare_again(&mut self, name: &[u8]) {
        if let Some(named) = self.by_name.as_mut().and_then(|names| names.get_mut(name)) {
            named.generation = 0;
        }
    }

    /// Records a name as it was before it was removed.
    pub fn put_back(&mut self, name: &[u8], named: NamedStatement) {
        self.bytes += name.len() + named.statement.weight();
        if let Some(replaced) = self.by_name.get_or_insert_default().insert(name.into(), named) {
            self.bytes -= name.len() + replaced.statement.weight();
        }
    }

    /// Forgets a name.
    pub fn remove(&mut self, name: &[u8]) -> Option<NamedStatement> {
        let map = self.by_name.as_mut()?;
        let removed = map.remove(name)?;
        self.bytes -= name.len() + removed.statement.weight();
        if map.is_empty() {
            self.by_name = None;
        }
        Some(removed)
    }

    /// Forgets every name.
    pub fn clear(&mut self) {
        self.by_name = None;
        self.bytes = 0;
    }

    /// The weight of all of them.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }
}

/// The statements that one backend holds, by the number in their names.
#[derive(Debug, Default)]
pub struct BackendStatements {
    held: BTreeMap<u64, Held>,
    bytes: usize,
    tick: u64,
}

#[derive(Debug)]
struct Held {
    statement: Arc<Statement>,
    used_at: u64,
    /// Of the catalog when it was parsed; 0 when what it was parsed from is known to be gone.
    generation: u64,
    shape: Option<ResultShape>,
}

impl BackendStatements {
    fn find_mut(&mut self, statement: &Statement) -> Option<&mut Held> {
        let held = self.held.get_mut(&statement.place)?;
        (held.statement.id == statement.id).then_some(held)
    }

    fn find_id_mut(&mut self, id: u64) -> Option<&mut Held> {
        let is_it = |held: &Held| held.statement.id == id;
        // Nearly all have names of their own.
        let place = match self.held.get(&id).is_some_and(is_it) {
            true => id,
            false => *self.held.iter().find(|(_, held)| is_it(held))?.0,
        };
        self.held.get_mut(&place)
    }

    /// Whether the backend holds it as the catalog of this generation makes it; counts as a use.
    pub fn touch(&mut self, statement: &Statement, generation: u64) -> bool {
        self.touch_with_shape(statement, generation).is_some()
    }

    /// The same with what its rows look like there.
    pub fn touch_with_shape(&mut self, statement: &Statement, generation: u64) -> Option<Option<ResultShape>> {
        self.tick += 1;
        let tick = self.tick;
        let held = self.find_mut(statement)?;
        held.used_at = tick;
        (held.generation == generation).then_some(held.shape)
    }

    /// Takes out what the backend has by the name of this statement: itself, be it stale, or one that took its place.
    pub fn take_place_of(&mut self, statement: &Statement) -> Option<Arc<Statement>> {
        let held = self.held.remove(&statement.place)?;
        self.bytes -= held.statement.weight();
        Some(held.statement)
    }

    /// What the backend has of a shared statement is one client's alone from here on.
    pub fn set_apart(&mut self, shared: &Statement, apart: &Arc<Statement>) {
        if let Some(held) = self.find_mut(shared) {
            held.statement = Arc::clone(apart);
        }
    }

    /// What its rows look like here, where that is known.
    pub fn shape(&self, statement: &Statement) -> Option<ResultShape> {
        let held = self.held.get(&statement.place)?;
        held.shape.filter(|_| held.statement.id == statement.id)
    }

    /// PostgreSQL has described it.
    pub fn note_shape(&mut self, id: u64, shape: ResultShape) {
        if let Some(held) = self.find_id_mut(id) {
            held.shape = Some(shape);
        }
    }

    /// PostgreSQL refused to use it, because its columns would not be what they were. Returns the generation of the
    /// catalog that it was parsed under.
    pub fn note_stale(&mut self, id: u64) -> Option<u64> {
        Some(std::mem::take(&mut self.find_id_mut(id)?.generation))
    }

    /// Records that the backend is about to hold it, parsed under the catalog of this generation.
    pub fn insert(&mut self, statement: Arc<Statement>, generation: u64) {
        self.tick += 1;
        self.bytes += statement.weight();
        let held = Held {
            used_at: self.tick,
            generation,
            shape: None,
            statement,
        };
        if let Some(replaced) = self.held.insert(held.statement.place, held) {
            self.bytes -= replaced.statement.weight();
        }
    }

    /// Takes out the least recently used one while the bound is exceeded. What was touched last is never taken: a Bind
    /// that uses it may be on its way (trap 26).
    pub fn evict(&mut self, bytes_max: usize) -> Option<Arc<Statement>> {
        if self.bytes <= bytes_max || self.held.len() < 2 {
            return None;
        }
        let oldest = self.held.values().min_by_key(|held| held.used_at)?.statement.clone();
        self.take_place_of(&oldest)
    }

    /// DISCARD ALL or DEALLOCATE ALL ran on the backend.
    pub fn clear(&mut self) {
        self.held.clear();
        self.bytes = 0;
    }

    /// Takes all of them out, to be closed.
    pub fn take_all(&mut self) -> Vec<Arc<Statement>> {
        self.bytes = 0;
        let held = std::mem::take(&mut self.held);
        held.into_values().map(|held| held.statement).collect()
    }

    /// What they weigh.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many it holds.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> SharedStatements {
        SharedStatements::new(7)
    }

    fn share(of: &SharedStatements, text: &[u8], key: u64) -> Arc<Statement> {
        of.share(text, ParseKey::Private(key), || Effects::NONE)
    }

    /// Trap 27: the key is the whole text, the types and the settings; a name is never used twice.
    #[test]
    fn trap_27_a_name_stands_for_one_definition_for_ever() {
        let all = shared();
        let one = share(&all, b"select 1\0\0\0", 0);
        assert!(Arc::ptr_eq(&one, &share(&all, b"select 1\0\0\0", 0)));
        let name = one.name.clone();
        assert_ne!(share(&all, b"select 1\0\0\0", 1).name, name);
        assert_ne!(share(&all, b"select 1\0\0\x01\0\0\0\x17", 0).name, name);
        drop(one);
        assert_ne!(share(&all, b"select 1\0\0\0", 0).name, name);
        assert!(all.is_reserved(&name) && !all.is_reserved(b"s1"));
    }

    #[test]
    fn a_backend_gives_up_the_least_recently_used_first() {
        let (all, mut backend) = (shared(), BackendStatements::default());
        let statements: Vec<_> = (0..3)
            .map(|n| share(&all, format!("select {n}\0\0\0").as_bytes(), 0))
            .collect();
        for statement in &statements {
            backend.insert(statement.clone(), 1);
        }
        assert!(backend.touch(&statements[0], 1));
        assert_eq!(backend.evict(600).unwrap().id, statements[1].id);
        assert!(!backend.touch(&statements[1], 1));
        assert_eq!(backend.len(), 2);
        assert!(backend.evict(100_000).is_none());
    }

    /// Trap 28: clients whose settings parse alike share, whatever their other settings.
    #[test]
    fn trap_28_the_settings_that_parsing_reads_are_part_of_the_key() {
        let all = shared();
        let under = |name: &str, value: &str| {
            let settings = Arc::new(Settings::new([(name.into(), value.into())]));
            all.share(b"select 1\0\0\0", ParseKey::Settings(settings), || Effects::NONE)
        };
        let utc = under("TimeZone", "UTC");
        assert!(Arc::ptr_eq(&utc, &under("timezone", "UTC")));
        assert_ne!(utc.id, under("TimeZone", "Asia/Shanghai").id);
        let plain = under("application_name", "psql");
        assert!(Arc::ptr_eq(&plain, &under("statement_timeout", "5s")));
        all.forget();
        assert_ne!(utc.id, under("TimeZone", "UTC").id);
    }

    /// Trap 26: the only statement held, however large, is in use.
    #[test]
    fn trap_26_the_statement_in_use_is_not_evicted() {
        let (all, mut backend) = (shared(), BackendStatements::default());
        backend.insert(share(&all, &[b'x'; 5000], 0), 1);
        assert!(backend.evict(10).is_none());
    }

    /// Trap 31: what was parsed before the catalog changed, or what PostgreSQL called stale, is held and not used.
    #[test]
    fn trap_31_what_is_stale_is_held_and_must_be_parsed_again() {
        let (all, mut backend) = (shared(), BackendStatements::default());
        let statement = share(&all, b"select * from t\0\0\0", 0);
        backend.insert(statement.clone(), all.generation());
        assert!(backend.touch(&statement, all.generation()));
        all.forget();
        assert!(!backend.touch(&statement, all.generation()) && backend.take_place_of(&statement).is_some());
        backend.insert(statement.clone(), all.generation());
        assert_eq!(backend.note_stale(statement.id), Some(all.generation()));
        assert!(!backend.touch(&statement, all.generation()));
        assert_eq!(backend.note_stale(statement.id), Some(0));
    }

    /// A name may be as long as a message.
    #[test]
    fn trap_32_names_count_in_what_a_client_holds() {
        let (all, mut client) = (shared(), ClientStatements::default());
        let name = [b'n'; 10_000];
        client.insert(&name, share(&all, b"\0\0\0", 0));
        assert!(client.bytes() >= name.len());
        client.remove(&name);
        assert_eq!(client.bytes(), 0);
    }

    /// Texts that nobody holds any more are memory too.
    #[test]
    fn the_texts_of_statements_that_are_gone_are_swept_out_by_their_bytes() {
        let all = shared();
        let mut text = vec![b'x'; 1 << 20];
        let kept = share(&all, b"select 1\0\0\0", 0);
        for number in 0..100_u64 {
            text.splice(..8, number.to_be_bytes());
            drop(share(&all, &text, 0));
        }
        let by_key = all.by_key.lock().unwrap();
        let bytes: usize = by_key.statements.keys().map(|key| key.definition.len()).sum();
        assert!(bytes < 10 << 20, "{bytes}");
        drop(by_key);
        assert!(Arc::ptr_eq(&kept, &share(&all, b"select 1\0\0\0", 0)));
    }

    #[test]
    fn a_client_forgets_what_it_closes() {
        let (all, mut client) = (shared(), ClientStatements::default());
        client.insert(b"s1", share(&all, b"select 1\0\0\0", 0));
        assert!(client.find(b"s1").is_some() && client.bytes() > 0);
        assert!(client.remove(b"s1").is_some() && client.remove(b"s1").is_none());
        assert_eq!(client.bytes(), 0);
    }
}
