//! When PostgreSQL reads the text of a prepared statement again: at its first use under another path of schemas. Its
//! constants are folded by the settings of that use then, and these are what it was parsed under from there on.
//!
//! A statement of ours is shared, and what one client's use makes of it would be another's. So the client's name stands
//! for another statement behind such a use, and no backend ever has a reason to read one again because of its path.
//!
//! Where the path is not known (amid the transaction that sets it), PostgreSQL alone can tell. Then what the backend has of
//! the shared statement becomes the client's alone, with whatever the use makes of it, and others have it parsed anew.

use std::collections::HashSet;
use std::sync::Arc;

use super::parameters::Settings;
use super::prepared::reads_no_settings;
use super::said_path::{SaidPath, may_concern_path};
use super::settings_ledger::Until;
use super::statement_effects::{Action, Effects, Step};
use super::statements::{NamedStatement, ParseKey, Statement};
use super::{BackendState, Note, VirtualSession};

/// Schemas that are remembered; of a database that has more, nothing is known.
const SCHEMAS_MAX: usize = 10_000;

/// What tells whether two values of `search_path` name the same schemas.
#[derive(Debug)]
pub struct Schemas {
    names: HashSet<Box<str>>,
    /// A backend's own `search_path`.
    path: Box<str>,
    /// Whom `"$user"` names without a role.
    user: Box<str>,
}

impl Schemas {
    /// The query of one column that [`Self::from_rows`] reads. Run it under neutral settings.
    pub const fn query() -> &'static str {
        "SELECT 'path ' || pg_catalog.current_setting('search_path') UNION ALL SELECT 'user ' || session_user UNION ALL \
         (SELECT 'name ' || nspname FROM pg_catalog.pg_namespace \
         WHERE pg_catalog.has_schema_privilege(oid, 'USAGE') AND nspname !~ '^pg_(toast|temp_)' LIMIT 10001)"
    }

    /// `None` where they are too many.
    pub fn from_rows<'r>(rows: impl Iterator<Item = &'r [u8]>) -> Option<Self> {
        let mut schemas = Self {
            names: HashSet::new(),
            path: "".into(),
            user: "".into(),
        };
        for row in rows {
            let row = String::from_utf8_lossy(row);
            match row.split_at_checked(5) {
                Some(("path ", path)) => schemas.path = path.into(),
                Some(("user ", user)) => schemas.user = user.into(),
                Some(("name ", name)) => _ = schemas.names.insert(name.into()),
                _ => {}
            }
        }
        (schemas.names.len() <= SCHEMAS_MAX).then_some(schemas)
    }

    /// Whether PostgreSQL looks in the same schemas under both, in the same order.
    pub(super) fn agree(&self, one: &Settings, other: &Settings) -> bool {
        has_same_path(one, other) || self.path(one) == self.path(other)
    }

    fn path(&self, settings: &Settings) -> Vec<String> {
        let set = |name: &str| settings.value(name);
        let role = set("role").filter(|role| *role != "none");
        let user = role.or(set("session_authorization")).unwrap_or(&self.user);
        let mut path = Vec::new();
        for name in identifiers(set("search_path").unwrap_or(&self.path)) {
            let name = if name == "$user" { user.to_owned() } else { name };
            if self.names.contains(name.as_str()) && !path.contains(&name) {
                path.push(name);
            }
        }
        path
    }
}

/// Says so without looking at schemas.
fn has_same_path(one: &Settings, other: &Settings) -> bool {
    ["search_path", "role", "session_authorization"]
        .iter()
        .all(|name| one.value(name) == other.value(name))
}

/// The names of a list as PostgreSQL reads it.
fn identifiers(list: &str) -> Vec<String> {
    let (mut names, mut name, mut quoted) = (Vec::new(), String::new(), false);
    let mut characters = list.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => name.extend(characters.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => names.push(std::mem::take(&mut name)),
            other if quoted => name.push(other),
            other if other.is_ascii_whitespace() => {}
            other => name.push(other.to_ascii_lowercase()),
        }
    }
    names.push(name);
    names
}

/// Whether a text has a constant that settings may be read for.
fn has_constant(sql: &[u8]) -> bool {
    memchr::memchr2_iter(b'\'', b'$', sql).any(|at| match sql.get(at..) {
        Some([b'$', next, ..]) => !next.is_ascii_digit(),
        _ => true,
    })
}

/// What a name stood for before PostgreSQL read its text again.
#[derive(Debug)]
pub struct Reread {
    name: Box<[u8]>,
    number: u64,
    before: Arc<Statement>,
    /// The number of what it stands for now.
    pub id: u64,
    /// That, where it takes the place of the one before on the backend.
    apart: Option<Arc<Statement>>,
}

impl Reread {
    /// A message that uses the shared statement is about to be sent to this backend. What else it has by the client's own
    /// name is not read again with it, and made anew before its use.
    pub fn note_on_shared(&self, backend: &mut BackendState) {
        if let Some(apart) = &self.apart {
            backend.statements.set_apart(&self.before, apart);
        }
    }

    /// The same of one that uses the client's own name.
    pub fn note_on_own(&self, backend: &mut BackendState) {
        if let Some(apart) = &self.apart {
            backend.own.set_apart(&self.name, self.before.id, apart);
        }
    }
}

impl VirtualSession {
    /// The name is used by a message that is about to be sent: if PostgreSQL reads its text again for that, or may, it stands
    /// for another statement. `ahead` runs before the use, in the same text. `None`: it stands for what it did.
    pub fn reread(&mut self, name: &[u8], ahead: &[Step], schemas: Option<&Schemas>) -> Option<Reread> {
        let named = self.named(name)?;
        let (statement, number) = (named.statement.clone(), named.number);
        let under = statement.under()?;
        if !has_constant(statement.sql()) || reads_no_settings(&statement.effects, statement.sql()) {
            return None;
        }
        match self.is_path_known(ahead).then(|| self.agrees(under, schemas)).flatten() {
            Some(true) => return None,
            Some(false) if self.unseen_settings == 0 => {}
            _ => return self.set_apart(name, &statement, ahead, schemas),
        }
        let key = match &statement.key {
            ParseKey::Settings(_) => self.parse_key(),
            ParseKey::Private(_) => ParseKey::Private(self.shared.statements.unique_number()),
        };
        let effects = || statement.effects.clone();
        let read = self.shared.statements.share(&statement.definition, key, effects);
        if matches!(read.key, ParseKey::Private(_)) {
            read.resolve(self.wanted.clone());
        }
        let id = read.id;
        self.stand_for(name, read);
        // Its columns may not be what they were.
        self.statements.compare_again(name);
        Some(Reread {
            name: name.into(),
            number,
            before: statement,
            id,
            apart: None,
        })
    }

    /// The name stands for what the backend has of a shared statement, and nobody else does.
    fn set_apart(
        &mut self,
        name: &[u8],
        shared: &Arc<Statement>,
        ahead: &[Step],
        schemas: Option<&Schemas>,
    ) -> Option<Reread> {
        let (number, before) = (self.named(name)?.number, shared.clone());
        let under = shared.under()?;
        let path = self.said_path_behind(ahead);
        let is_read_again = schemas.is_some_and(|schemas| !schemas.agree(under, path.now()));
        if matches!(shared.key, ParseKey::Private(_)) && !is_read_again {
            return None;
        }
        let apart = self.shared.statements.apart(shared);
        match is_read_again {
            true => self.resolve_later(&apart),
            false => apart.resolve(under.clone()),
        }
        self.stand_for(name, apart.clone());
        Some(Reread {
            name: name.into(),
            number,
            before,
            id: apart.id,
            apart: Some(apart),
        })
    }

    /// Whether it is known which schemas are searched, once these have run.
    fn is_path_known(&self, ahead: &[Step]) -> bool {
        let may_move = |step: &Step| matches!(&step.action, Action::Setting(change) if may_concern_path(change));
        let is_seen = self.unseen_settings == 0 || (self.said_path.is_none() && self.unseen_until != Until::Discard);
        is_seen && !ahead.iter().any(may_move)
    }

    /// What the path is taken for, once these have run.
    pub(super) fn said_path_behind(&self, ahead: &[Step]) -> SaidPath {
        let said = self.said_path.as_deref().filter(|_| self.unseen_settings != 0);
        let mut said = said.map_or_else(|| SaidPath::new(&self.wanted), SaidPath::clone);
        said.run(ahead, &self.baseline);
        said
    }

    /// A text is about to run.
    pub(super) fn say_path(&mut self, effects: &Effects) {
        if self.unseen_settings == 0 {
            self.said_path = None;
        }
        if self.said_path.is_none() && !effects.settings().any(may_concern_path) {
            return;
        }
        let mut said = self.said_path_behind(&[]);
        said.transaction(effects.transaction);
        said.run(&effects.steps, &self.baseline);
        self.said_path = Some(Box::new(said));
    }

    /// Whether the settings that a statement was parsed under may be others than those of now, at a glance.
    pub fn is_parsed_under_others(&self, statement: &Statement) -> bool {
        self.unseen_settings != 0 || statement.under().is_some_and(|under| !Arc::ptr_eq(under, &self.wanted))
    }

    /// The same of the unnamed statement.
    pub fn is_unnamed_parsed_under_others(&self) -> bool {
        let under = self.unnamed.as_ref().and_then(|unnamed| unnamed.under.as_ref());
        under.is_some_and(|under| !Arc::ptr_eq(under, &self.wanted))
    }

    /// Whether the schemas that are searched are those of then; `None` where that is not known.
    fn agrees(&self, under: &Arc<Settings>, schemas: Option<&Schemas>) -> Option<bool> {
        match Arc::ptr_eq(under, &self.wanted) || has_same_path(under, &self.wanted) {
            true => Some(true),
            false => schemas.map(|schemas| schemas.agree(under, &self.wanted)),
        }
    }

    fn is_reread(&self, under: &Arc<Settings>, schemas: &Schemas) -> bool {
        self.unseen_settings == 0 && !Arc::ptr_eq(under, &self.wanted) && !schemas.agree(under, &self.wanted)
    }

    fn stand_for(&mut self, name: &[u8], statement: Arc<Statement>) {
        if let Some(named) = self.statements.remove(name) {
            self.statements.put_back(name, NamedStatement { statement, ..named });
        }
    }

    /// Whether it must be known what the settings come to before a statement is used: its text may be read again by them.
    pub fn may_reread(&self, statement: &Statement) -> bool {
        let differs = |under: &Arc<Settings>| self.awaits_answer() || !has_same_path(under, &self.wanted);
        self.unseen_settings != 0 && statement.under().is_some_and(differs) && has_constant(statement.sql())
    }

    /// The use failed, or will never be.
    pub fn undo_reread(&mut self, reread: Option<Reread>) {
        let Some(reread) = reread else { return };
        let is_same = |named: &NamedStatement| named.number == reread.number && named.statement.id == reread.id;
        if self.statements.find(&reread.name).is_some_and(is_same) {
            self.stand_for(&reread.name, reread.before);
        }
    }

    /// The same of the unnamed statement.
    pub fn reread_unnamed(&mut self, schemas: Option<&Schemas>) {
        let under = self.unnamed.as_ref().and_then(|unnamed| unnamed.under.as_ref());
        let is_reread = under
            .zip(schemas)
            .is_some_and(|(under, schemas)| self.is_reread(under, schemas));
        if let Some(unnamed) = self.unnamed.as_mut().filter(|_| is_reread) {
            unnamed.under = Some(self.wanted.clone());
        }
    }

    /// Whether the unnamed statement can only be taught while the settings are known, and has something to lose.
    pub fn unnamed_has_constant(&self) -> bool {
        self.unseen_settings == 0 && self.unnamed_sql().is_some_and(has_constant)
    }
}

impl Note {
    /// Of a Bind of a shared statement.
    pub fn bound(id: u64, reread: Option<Reread>) -> Self {
        reread.map_or(Self::Bound(id), |reread| Self::Reread(Box::new(reread), None))
    }

    /// Of a Describe that is also a use.
    #[must_use]
    pub fn rereading(self, reread: Option<Reread>) -> Self {
        match reread {
            Some(reread) => Self::Reread(Box::new(reread), self.described()),
            None => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schemas() -> Schemas {
        let rows: [&[u8]; 6] = [
            b"path \"$user\", public",
            b"user app",
            b"name public",
            b"name aside",
            b"name Two words",
            b"name tenant",
        ];
        Schemas::from_rows(rows.into_iter()).unwrap()
    }

    fn settings(entries: &[(&str, &str)]) -> Settings {
        Settings::new(entries.iter().map(|(name, value)| ((*name).into(), (*value).into())))
    }

    #[test]
    fn paths_are_compared_by_the_schemas_that_there_are() {
        let own = settings(&[]);
        for (path, agrees) in [
            ("public", true),
            ("PUBLIC", true),
            ("\"PUBLIC\"", false),
            ("public, \"no such\"", true),
            ("nosuch,public , public", true),
            ("\"Two words\", public", false),
            ("aside, public", false),
            ("public, aside", false),
            ("", false),
        ] {
            let other = settings(&[("search_path", path)]);
            assert_eq!(schemas().agree(&own, &other), agrees, "{path}");
        }
        assert!(!schemas().agree(&own, &settings(&[("role", "tenant")])));
        assert!(schemas().agree(&own, &settings(&[("role", "nobody")])));
        let quoted = settings(&[("search_path", "\"a\"\"b\"")]);
        assert_eq!(identifiers(quoted.value("search_path").unwrap()), ["a\"b"]);
    }

    #[test]
    fn a_parameter_is_no_constant() {
        for (sql, has) in [
            ("SELECT $1, $23", false),
            ("SELECT 1", false),
            ("SELECT date 'x'", true),
            ("SELECT $$x$$", true),
            ("SELECT $1, $a$x$a$", true),
            ("SELECT $", true),
        ] {
            assert_eq!(has_constant(sql.as_bytes()), has, "{sql}");
        }
    }

    #[test]
    fn too_many_schemas_are_unknown() {
        let rows: Vec<_> = (0..=SCHEMAS_MAX).map(|number| format!("name s{number}")).collect();
        assert!(Schemas::from_rows(rows.iter().map(|row| row.as_bytes())).is_none());
    }
}
