//! One session of a PostgreSQL that has nothing but settings and transactions (manual: runtime-config, sql-set, sql-reset,
//! sql-begin, sql-savepoint, protocol-flow for several statements in one Query).
//!
//! It reads the statements of clients and of pgsidecar alike. Any other text is a syntax error to it, which PostgreSQL
//! might have run: that an error undoes what might have been done is one of the things that the ledger must bear.

use std::collections::{BTreeMap, BTreeSet};

use super::statement::{Control, Expression, Statement, Target, statements};
use crate::virtual_session::sql_lexer::{EncodingClass, Lexing, StandardConformingStrings};
use crate::wire::backend_message::TransactionStatus;

/// Settings that exist before anyone names them, and their values. The first three are reported.
pub(super) const DEFAULTS: [(&str, &str); 8] = [
    ("TimeZone", "UTC"),
    ("application_name", ""),
    ("standard_conforming_strings", "on"),
    ("work_mem", "4MB"),
    ("lock_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("role", "none"),
    ("session_authorization", "app"),
];
/// How many of them are reported.
pub(super) const REPORTED: usize = 3;

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    Status(&'static str, String),
    Row(Vec<Option<String>>),
    Command(&'static str),
    Empty,
    Error,
    Ready(TransactionStatus),
}

/// The values in force, as far as they are no defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Values {
    session: BTreeMap<String, String>,
    local: BTreeMap<String, String>,
}

/// A savepoint, or the beginning of a transaction.
#[derive(Debug)]
struct Level {
    name: String,
    then: Values,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    None,
    /// Of several statements in one Query.
    Implicit,
    Open,
    Failed,
}

/// A backend, or what a client would have if it had one of its own.
#[derive(Debug)]
pub(super) struct Server {
    /// What RESET returns to where it is not the server's own default.
    startup: BTreeMap<String, String>,
    values: Values,
    levels: Vec<Level>,
    block: Block,
    /// Custom settings that were ever named: they are never NULL again.
    named: BTreeSet<String>,
    /// What was reported last.
    told: BTreeMap<&'static str, String>,
    /// PostgreSQL before 14 says at once what later ones say before ReadyForQuery.
    tells_at_once: bool,
}

/// The statement fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failed;

impl Server {
    pub(super) fn new(startup: &[(&str, &str)], tells_at_once: bool) -> Self {
        let startup: BTreeMap<String, String> = startup
            .iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), (*value).to_owned()))
            .collect();
        let custom = startup.keys().filter(|name| name.contains('.')).cloned();
        let mut server = Self {
            named: custom.collect(),
            startup,
            values: Values::default(),
            levels: Vec::new(),
            block: Block::None,
            told: BTreeMap::new(),
            tells_at_once,
        };
        server.tell(&mut Vec::new());
        server
    }

    pub(super) fn has_startup(&self) -> bool {
        !self.startup.is_empty()
    }

    /// What `current_setting(name, true)` says.
    pub(super) fn value(&self, name: &str) -> Option<String> {
        let values = [&self.values.local, &self.values.session, &self.startup];
        let set = values.iter().find_map(|values| values.get(name));
        set.cloned().or_else(|| self.own_default(name))
    }

    fn own_default(&self, name: &str) -> Option<String> {
        let known = DEFAULTS.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        known
            .map(|(_, value)| (*value).to_owned())
            .or_else(|| self.named.contains(name).then(String::new))
    }

    /// Every setting there is, with its value.
    pub(super) fn settings(&self) -> BTreeMap<String, String> {
        let known = DEFAULTS.iter().map(|(name, _)| name.to_ascii_lowercase());
        let names = known.chain(self.named.iter().cloned());
        names
            .filter_map(|name| self.value(&name).map(|value| (name, value)))
            .collect()
    }

    /// What was reported of each setting last.
    pub(super) const fn told(&self) -> &BTreeMap<&'static str, String> {
        &self.told
    }

    pub(super) const fn status(&self) -> TransactionStatus {
        match self.block {
            Block::None | Block::Implicit => TransactionStatus::Idle,
            Block::Open => TransactionStatus::InTransaction,
            Block::Failed => TransactionStatus::Failed,
        }
    }

    fn lexing(&self) -> Lexing {
        Lexing {
            strings: match self.value("standard_conforming_strings").as_deref() {
                Some("on") => StandardConformingStrings::On,
                _ => StandardConformingStrings::Off,
            },
            encoding: EncodingClass::AsciiSafe,
        }
    }

    /// A Query, up to its ReadyForQuery.
    pub(super) fn query(&mut self, text: &[u8]) -> Vec<Said> {
        let mut said = Vec::new();
        self.run(text, &mut said);
        self.tell(&mut said);
        said.push(Said::Ready(self.status()));
        said
    }

    /// The same as one group of the extended protocol: of its replies those that carry something.
    pub(super) fn run(&mut self, text: &[u8], said: &mut Vec<Said>) {
        let Ok(parsed) = statements(text, self.lexing()) else {
            self.fail();
            return said.push(Said::Error);
        };
        if parsed.is_empty() {
            return said.push(Said::Empty);
        }
        let several = parsed.len() > 1;
        for statement in &parsed {
            if self.block == Block::None {
                self.begin(Block::Implicit);
            }
            let done = self.execute(statement, several, said);
            if let Ok(tag) = done {
                if !several {
                    self.end_implicit();
                }
                if self.tells_at_once {
                    self.tell(said);
                }
                said.push(Said::Command(tag));
            } else {
                self.fail();
                said.push(Said::Error);
                break;
            }
        }
        self.end_implicit();
    }

    fn begin(&mut self, block: Block) {
        self.block = block;
        self.levels = vec![Level {
            name: String::new(),
            then: self.values.clone(),
        }];
    }

    fn end_implicit(&mut self) {
        if self.block == Block::Implicit {
            self.end(true);
        }
    }

    fn end(&mut self, commits: bool) {
        if let Some(first) = self.levels.first().filter(|_| !commits) {
            self.values = first.then.clone();
        }
        self.values.local.clear();
        self.levels.clear();
        self.block = Block::None;
    }

    /// What was done since the last savepoint is undone at once.
    fn fail(&mut self) {
        match self.block {
            Block::None => {}
            Block::Implicit => self.end(false),
            Block::Open | Block::Failed => {
                if let Some(level) = self.levels.last() {
                    self.values = level.then.clone();
                }
                self.block = Block::Failed;
            }
        }
    }

    fn execute(&mut self, statement: &Statement, several: bool, said: &mut Vec<Said>) -> Result<&'static str, Failed> {
        if let Statement::Control(control) = statement {
            return self.control(control);
        }
        if self.block == Block::Failed {
            return Err(Failed);
        }
        match statement {
            Statement::Set { name, value, local } => {
                self.set(name, value.as_deref(), *local)?;
                Ok("SET")
            }
            Statement::Reset(Target::One(name)) => {
                self.set(name, None, false)?;
                Ok("RESET")
            }
            Statement::Reset(Target::All) => {
                self.reset_all();
                Ok("RESET")
            }
            Statement::DiscardAll if several || self.block == Block::Open => Err(Failed),
            Statement::DiscardAll => {
                self.values = Values::default();
                Ok("DISCARD ALL")
            }
            Statement::Select(expressions, is_true) => {
                if *is_true {
                    let row: Result<_, _> = expressions.iter().map(|each| self.evaluate(each)).collect();
                    said.push(Said::Row(row?));
                }
                Ok("SELECT")
            }
            // A function that nobody knows sets something.
            Statement::Do(name, value) => {
                self.set(name, Some(value), false)?;
                Ok("DO")
            }
            Statement::NoEffect(tag) => Ok(tag),
            Statement::Control(_) => Err(Failed),
        }
    }

    fn control(&mut self, control: &Control) -> Result<&'static str, Failed> {
        match (control, self.block) {
            (Control::Begin | Control::Savepoint(_) | Control::Release(_), Block::Failed) => Err(Failed),
            (Control::Begin, _) => {
                self.block = Block::Open;
                Ok("BEGIN")
            }
            (Control::Commit { chain: true } | Control::Rollback { chain: true }, Block::None | Block::Implicit) => {
                Err(Failed)
            }
            (Control::Commit { chain } | Control::Rollback { chain }, block) => {
                let commits = matches!(control, Control::Commit { .. }) && block != Block::Failed;
                self.end(commits);
                if *chain {
                    self.begin(Block::Open);
                }
                let says_commit = matches!(control, Control::Commit { .. }) && block != Block::Failed;
                Ok(if says_commit { "COMMIT" } else { "ROLLBACK" })
            }
            (_, Block::None | Block::Implicit) => Err(Failed),
            (Control::Savepoint(name), _) => {
                self.levels.push(Level {
                    name: name.clone(),
                    then: self.values.clone(),
                });
                Ok("SAVEPOINT")
            }
            (Control::Release(name), _) => {
                let at = self.level(name)?;
                self.levels.truncate(at);
                Ok("RELEASE")
            }
            (Control::RollbackTo(name), _) => {
                let at = self.level(name)?;
                self.levels.truncate(at + 1);
                self.values = self.levels[at].then.clone();
                self.block = Block::Open;
                Ok("ROLLBACK")
            }
        }
    }

    fn level(&self, name: &str) -> Result<usize, Failed> {
        let at = self.levels.iter().rposition(|level| level.name == name);
        at.filter(|at| *at > 0).ok_or(Failed)
    }

    /// A SET; without a value, to its default.
    fn set(&mut self, name: &str, value: Option<&str>, local: bool) -> Result<(), Failed> {
        if !DEFAULTS.iter().any(|(known, _)| known.eq_ignore_ascii_case(name)) {
            if !name.contains('.') {
                return Err(Failed);
            }
            self.named.insert(name.to_owned());
        }
        if value.is_some_and(|value| !is_valid(name, value)) {
            return Err(Failed);
        }
        let default = self.startup.get(name).cloned().or_else(|| self.own_default(name));
        match (value.map(str::to_owned).or(default), local) {
            (None, _) => {}
            (Some(value), true) => drop(self.values.local.insert(name.to_owned(), value)),
            (Some(value), false) => {
                self.values.local.remove(name);
                self.values.session.insert(name.to_owned(), value);
            }
        }
        Ok(())
    }

    fn reset_all(&mut self) {
        let keep = |name: &String, _: &mut String| matches!(&name[..], "role" | "session_authorization");
        self.values.session.retain(keep);
        self.values.local.retain(keep);
    }

    fn evaluate(&mut self, expression: &Expression) -> Result<Option<String>, Failed> {
        match expression {
            Expression::Constant(value) => Ok(value.clone()),
            Expression::Current(name) => Ok(self.value(name)),
            Expression::SetConfig(name, value, local) => {
                self.set(name, value.as_deref(), *local)?;
                Ok(self.value(name))
            }
            Expression::IfSet(name, then) if self.value(name).is_some() => self.evaluate(then),
            Expression::IfOfSession(name, then) if self.value(name) != self.own_default(name) => self.evaluate(then),
            Expression::IfSet(..) | Expression::IfOfSession(..) => Ok(None),
            Expression::Error => Err(Failed),
        }
    }

    fn tell(&mut self, said: &mut Vec<Said>) {
        for (name, _) in DEFAULTS.into_iter().take(REPORTED) {
            let value = self.value(&name.to_ascii_lowercase()).unwrap_or_default();
            if self.told.get(name) != Some(&value) {
                self.told.insert(name, value.clone());
                said.push(Said::Status(name, value));
            }
        }
    }
}

/// What each setting takes. Every value is its own canonical form.
fn is_valid(name: &str, value: &str) -> bool {
    let number = |unit: &str| {
        let digits = value.strip_suffix(unit).unwrap_or_default();
        (1..=3).contains(&digits.len()) && !digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    match name {
        "timezone" => !value.is_empty() && value.len() < 20 && value.bytes().all(|byte| byte.is_ascii_alphanumeric()),
        "application_name" => value.len() < 60 && value.bytes().all(|byte| matches!(byte, b' '..=b'~')),
        "standard_conforming_strings" => matches!(value, "on" | "off"),
        "work_mem" => number("MB"),
        "lock_timeout" => value == "0" || number("ms") || number("s"),
        "idle_session_timeout" => value == "0" || number("s"),
        "session_authorization" => value == "app",
        "role" => matches!(value, "none" | "team" | "admin"),
        _ => true,
    }
}
