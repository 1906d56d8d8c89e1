//! Settings that follow a client from backend to backend.
//!
//! A [`Settings`] value is a set of (name, value) pairs that differ from a neutral backend's own. The client's ledger
//! holds one, each backend remembers the one that was applied to it; both are shared, so that two equal sets usually are
//! the same allocation and comparing them costs a pointer. Values are what `current_setting` says, so that
//! `set_config` takes them back whatever they hold (lists, quotes, any length: trap 54).

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// One setting's name and value. Names keep PostgreSQL's capitals and compare without them (trap 8).
pub type Setting = (Box<str>, Box<str>);

/// An immutable set of settings, sorted by lower-case name.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settings {
    entries: Vec<Setting>,
    /// Of the entries that parse analysis and planning may read; 0 when there are none.
    parse_key: u64,
}

/// Settings that change nothing in how a statement is parsed or planned. Everything else is part of a statement's key:
/// literals are folded at parse analysis (a timestamptz parsed under another TimeZone is a wrong row). Custom settings
/// are read by current_setting(), which is STABLE and so read at execution.
const HARMLESS: [&str; 8] = [
    "application_name",
    "client_min_messages",
    "transaction_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "statement_timeout",
    "lock_timeout",
    "deadlock_timeout",
];

fn is_harmless(name: &str) -> bool {
    HARMLESS.iter().any(|harmless| harmless.eq_ignore_ascii_case(name))
        || name.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("log_"))
        || name.contains('.')
}

impl Settings {
    /// A set of these entries; of two with one name the later counts.
    pub fn new(entries: impl IntoIterator<Item = Setting>) -> Self {
        let mut sorted: Vec<Setting> = Vec::new();
        for (name, value) in entries {
            match sorted.binary_search_by(|(other, _)| compare(other, &name)) {
                Ok(at) => {
                    if let Some(entry) = sorted.get_mut(at) {
                        entry.1 = value;
                    }
                }
                Err(at) => sorted.insert(at, (name, value)),
            }
        }
        let parse_key = parse_key(&sorted);
        Self {
            entries: sorted,
            parse_key,
        }
    }

    /// The entries, sorted by lower-case name.
    pub fn entries(&self) -> &[Setting] {
        &self.entries
    }

    /// The value of a setting, whatever the capitals of its name.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.entry(name).map(|(_, value)| value.as_ref())
    }

    /// The same with its name as it is spelt here.
    pub fn entry(&self, name: &str) -> Option<&Setting> {
        let at = self.entries.binary_search_by(|(other, _)| compare(other, name)).ok()?;
        self.entries.get(at)
    }

    /// The same with one entry set (`Some`) or taken out (`None`).
    #[must_use]
    pub fn with(&self, name: &str, value: Option<&str>) -> Self {
        let others = self
            .entries
            .iter()
            .filter(|(other, _)| compare(other, name).is_ne())
            .cloned();
        Self::new(others.chain(value.map(|value| (name.into(), value.into()))))
    }

    /// The same with these entries only.
    #[must_use]
    pub fn only(&self, keep: impl Fn(&str) -> bool) -> Self {
        Self::new(self.entries.iter().filter(|(name, _)| keep(name)).cloned())
    }

    /// What distinguishes statements parsed under these settings from others.
    pub const fn parse_key(&self) -> u64 {
        self.parse_key
    }

    /// Whether every statement means the same under both: they differ in nothing that parsing or planning reads.
    pub fn parses_like(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
            || (self.parse_key == other.parse_key
                && self.read_by_parsing().count() == other.read_by_parsing().count()
                && self
                    .read_by_parsing()
                    .zip(other.read_by_parsing())
                    .all(|((name, value), (other, same))| compare(name, other).is_eq() && value == same))
    }

    /// Whether a statement that is parsed under the one may be used under the other: who parses it is looked at again
    /// when it is used.
    pub fn folds_like(&self, other: &Self) -> bool {
        self.folded_by_parsing().eq(other.folded_by_parsing())
    }

    fn read_by_parsing(&self) -> impl Iterator<Item = &Setting> {
        self.entries.iter().filter(|(name, _)| !is_harmless(name))
    }

    fn folded_by_parsing(&self) -> impl Iterator<Item = &Setting> {
        self.read_by_parsing().filter(|(name, _)| !is_identity(name))
    }

    /// Bytes of all names and values.
    pub fn bytes(&self) -> usize {
        self.entries.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

fn compare(one: &str, other: &str) -> std::cmp::Ordering {
    one.bytes()
        .map(|byte| byte.to_ascii_lowercase())
        .cmp(other.bytes().map(|byte| byte.to_ascii_lowercase()))
}

fn parse_key(entries: &[Setting]) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut any = false;
    for (name, value) in entries.iter().filter(|(name, _)| !is_harmless(name)) {
        any = true;
        (name.to_ascii_lowercase(), value).hash(&mut hasher);
    }
    if any { hasher.finish() | 1 } else { 0 }
}

/// Makes equal sets one allocation, per pool. Bounded: beyond [`Self::ENTRIES_MAX`] live sets, new ones are not shared.
#[derive(Debug, Default)]
pub struct SettingsInterner {
    known: Mutex<HashMap<u64, Vec<Weak<Settings>>>>,
}

impl SettingsInterner {
    /// Sets that are remembered at most.
    pub const ENTRIES_MAX: usize = 10_000;

    /// The shared allocation of a set.
    pub fn intern(&self, settings: Settings) -> Arc<Settings> {
        let mut hasher = DefaultHasher::new();
        settings.entries.hash(&mut hasher);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= Self::ENTRIES_MAX {
            known.retain(|_, same| same.iter().any(|weak| weak.strong_count() > 0));
        }
        if known.len() >= Self::ENTRIES_MAX {
            return Arc::new(settings);
        }
        let same = known.entry(hasher.finish()).or_default();
        same.retain(|weak| weak.strong_count() > 0);
        if let Some(found) = same.iter().filter_map(Weak::upgrade).find(|found| **found == settings) {
            return found;
        }
        let shared = Arc::new(settings);
        same.push(Arc::downgrade(&shared));
        shared
    }
}

/// The SQL that brings a backend from `applied` to `wanted`: one transaction, so that a failure in it leaves the status
/// failed and the client's message gets 25P02 instead of running under another role or tenant. `None` when they agree.
pub fn prelude(applied: &Settings, wanted: &Settings) -> Option<Vec<u8>> {
    let stale = applied.entries.iter().filter(|(name, _)| wanted.value(name).is_none());
    let is_changed = |(name, value): &&Setting| applied.value(name) != Some(value);
    let changed = wanted.entries.iter().filter(is_changed);
    if stale.clone().next().is_none() && changed.clone().next().is_none() {
        return None;
    }
    let mut sql = BEGIN.to_owned();
    // Who one is comes back first and goes last: under another role a setting might not be allowed.
    for name in IDENTITY.iter().filter(|name| applied.value(name).is_some()) {
        push_reset(&mut sql, name);
    }
    for (name, _) in stale.filter(|(name, _)| !is_identity(name)) {
        push_reset(&mut sql, name);
    }
    let others = changed.filter(|(name, _)| !is_identity(name));
    push_set_config(&mut sql, in_order(others, wanted));
    sql.push_str(if sql.ends_with(';') { "COMMIT" } else { ";COMMIT" });
    Some(sql.into_bytes())
}

/// What begins a transaction of ours, whatever a client made the default: it must not wait for a safe snapshot.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED, NOT DEFERRABLE;";

/// The settings that say who one is, in the order in which they are made: another session's user has no role yet.
const IDENTITY: [&str; 2] = ["session_authorization", "role"];

/// These settings, and behind them who is wanted.
fn in_order<'a>(
    others: impl Iterator<Item = &'a Setting>,
    wanted: &'a Settings,
) -> impl Iterator<Item = (&'a str, Option<&'a str>)> {
    let identity = IDENTITY.iter().filter_map(|name| wanted.entry(name));
    others
        .chain(identity)
        .map(|(name, value)| (name.as_ref(), Some(value.as_ref())))
}

fn push_reset(sql: &mut String, name: &str) {
    sql.push_str("RESET ");
    push_name(sql, name);
    sql.push(';');
}

/// The SQL that brings a backend to `wanted` from nobody knows where (of settings that RESET takes back).
pub fn prelude_from_doubt(wanted: &Settings) -> Vec<u8> {
    let mut sql = format!("{BEGIN}RESET SESSION AUTHORIZATION;RESET ROLE;RESET ALL;");
    let others = wanted.entries.iter().filter(|(name, _)| !is_identity(name));
    push_set_config(&mut sql, in_order(others, wanted));
    sql.push_str(if sql.ends_with(';') { "COMMIT" } else { ";COMMIT" });
    sql.into_bytes()
}

/// The SQL that brings a backend from `applied` to `wanted` under whatever role it has: a role that both name is left as it
/// is, since the client may have taken another unseen. `None` when they agree.
pub fn prelude_as_who_one_is(applied: &Settings, wanted: &Settings) -> Option<Vec<u8>> {
    let sql = restore(applied, wanted)?;
    Some([BEGIN.as_bytes(), &sql, b";COMMIT"].concat())
}

/// One statement that brings a backend from `applied` to `wanted` inside whatever transaction it is in.
pub fn restore(applied: &Settings, wanted: &Settings) -> Option<Vec<u8>> {
    let gone = applied.entries.iter().filter(|(name, _)| wanted.value(name).is_none());
    let new = wanted
        .entries
        .iter()
        .filter(|(name, value)| applied.value(name) != Some(value));
    let mut sql = String::new();
    push_set_config(
        &mut sql,
        gone.chain(new).map(|(name, _)| (name.as_ref(), wanted.value(name))),
    );
    (!sql.is_empty()).then(|| sql.into_bytes())
}

/// One statement that changes what parsing reads of `from` to what it reads of `to`, whatever transaction it is in.
pub fn switch(from: &Settings, to: &Settings) -> Vec<u8> {
    let gone = from.folded_by_parsing().filter(|(name, _)| to.value(name).is_none());
    let new = to
        .folded_by_parsing()
        .filter(|(name, value)| from.value(name) != Some(value));
    let mut sql = String::new();
    push_set_config(
        &mut sql,
        gone.chain(new).map(|(name, _)| (name.as_ref(), to.value(name))),
    );
    sql.into_bytes()
}

/// `SELECT set_config(…), …`; without a value, to the session's own default.
fn push_set_config<'a>(sql: &mut String, changes: impl Iterator<Item = (&'a str, Option<&'a str>)>) {
    let mut separator = "SELECT ";
    for (name, value) in changes {
        sql.push_str(separator);
        separator = ", ";
        sql.push_str("pg_catalog.set_config(");
        push_literal(sql, name);
        sql.push(',');
        match value {
            Some(value) => push_literal(sql, value),
            None => sql.push_str("NULL"),
        }
        sql.push_str(",false)");
    }
}

/// Whether a setting says who one is.
pub(super) fn is_identity(name: &str) -> bool {
    IDENTITY.iter().any(|own| own.eq_ignore_ascii_case(name))
}

/// A setting's name as SQL: each part of `a.b` quoted.
fn push_name(sql: &mut String, name: &str) {
    for (index, part) in name.split('.').enumerate() {
        if index > 0 {
            sql.push('.');
        }
        sql.push('"');
        sql.push_str(&part.replace('"', "\"\""));
        sql.push('"');
    }
}

/// A value as a string literal.
pub fn literal(value: &str) -> String {
    let mut sql = String::new();
    push_literal(&mut sql, value);
    sql
}

/// A string literal that reads the same under either setting of standard_conforming_strings, and in any
/// client_encoding: the one in force may be another client's (trap 62).
fn push_literal(sql: &mut String, value: &str) {
    let escaped = value.contains('\\') || !value.is_ascii();
    sql.push_str(if escaped { " E'" } else { "'" });
    for character in value.chars() {
        match character {
            '\'' => sql.push_str("''"),
            '\\' => sql.push_str("\\\\"),
            other if !other.is_ascii() => sql.push_str(&format!("\\U{:08x}", u32::from(other))),
            other => sql.push(other),
        }
    }
    sql.push('\'');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(entries: &[(&str, &str)]) -> Settings {
        Settings::new(entries.iter().map(|(name, value)| ((*name).into(), (*value).into())))
    }

    #[test]
    fn names_compare_without_their_capitals() {
        let set = settings(&[
            ("TimeZone", "UTC"),
            ("datestyle", "ISO, MDY"),
            ("timezone", "Europe/Berlin"),
        ]);
        assert_eq!(set.value("TIMEZONE"), Some("Europe/Berlin"));
        assert_eq!(set.entries().len(), 2);
        assert_eq!(set.with("DateStyle", None).entries().len(), 1);
    }

    #[test]
    fn equal_sets_need_no_prelude_and_share_one_allocation() {
        let interner = SettingsInterner::default();
        let one = interner.intern(settings(&[("TimeZone", "UTC")]));
        let two = interner.intern(settings(&[("TimeZone", "UTC")]));
        assert!(Arc::ptr_eq(&one, &two));
        assert_eq!(prelude(&one, &two), None);
    }

    /// Trap 54: lists, quotes, backslashes and long values arrive as they are.
    #[test]
    fn trap_54_values_of_any_form_are_taken_back() {
        let sql = prelude(
            &settings(&[("lock_timeout", "1s")]),
            &settings(&[("search_path", "\"a b\", c'd"), ("app.x", "q\\")]),
        );
        let expected = "BEGIN ISOLATION LEVEL READ COMMITTED, NOT DEFERRABLE;RESET \"lock_timeout\";SELECT pg_catalog.set_config('app.x', E'q\\\\',false), \
                        pg_catalog.set_config('search_path','\"a b\", c''d',false);COMMIT";
        assert_eq!(String::from_utf8(sql.unwrap()).unwrap(), expected);
    }

    /// A role is left before anything else is set, and taken last; who the session belongs to comes before its role.
    #[test]
    fn trap_54_who_one_is_comes_back_first_and_goes_last() {
        let identity = [("role", "team"), ("session_authorization", "app")];
        let applied = settings(&[&identity[..], &[("work_mem", "1MB")]].concat());
        let wanted = settings(&[&identity[..], &[("jit", "off")]].concat());
        let sql = String::from_utf8(prelude(&applied, &wanted).unwrap()).unwrap();
        let expected = format!(
            "{BEGIN}RESET \"session_authorization\";RESET \"role\";RESET \"work_mem\";\
             SELECT pg_catalog.set_config('jit','off',false), \
             pg_catalog.set_config('session_authorization','app',false), \
             pg_catalog.set_config('role','team',false);COMMIT"
        );
        assert_eq!(sql, expected);
        let sql = String::from_utf8(prelude(&applied, &Settings::default()).unwrap()).unwrap();
        assert!(sql.ends_with("RESET \"role\";RESET \"work_mem\";COMMIT"), "{sql}");
        // Statements are shared by role, and not parsed under another's.
        let plain = settings(&[]);
        let team = settings(&identity[..1]);
        assert!(!plain.parses_like(&team) && plain.folds_like(&team));
    }

    #[test]
    fn the_value_compares_with_its_capitals() {
        assert!(
            prelude(
                &settings(&[("application_name", "App")]),
                &settings(&[("application_name", "app")])
            )
            .is_some()
        );
    }

    /// Trap 28: what parsing reads is part of a statement's key, what it doesn't is not.
    #[test]
    fn trap_28_parse_keys_follow_what_parsing_reads() {
        let none = settings(&[("application_name", "psql"), ("log_duration", "on")]);
        assert_eq!(none.parse_key(), 0);
        assert_ne!(
            settings(&[("TimeZone", "UTC")]).parse_key(),
            settings(&[("TimeZone", "Asia/Shanghai")]).parse_key()
        );
        assert_eq!(
            settings(&[("timezone", "UTC")]).parse_key(),
            settings(&[("TimeZone", "UTC")]).parse_key()
        );
    }
}
