//! CREATE, ALTER and DROP: what changes the catalog, what is temporary, what needs a database to itself.

use super::keywords::Keyword;
use super::pins::PinReason;
use super::sql_lexer::TokenKind;
use super::statement_effects::{Action, Name};
use super::statement_scan::{Execution, Item, Scan, Unreadable};

/// What a definition is about, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Object {
    /// Relations whose definition may evaluate expressions now.
    Relation,
    /// Routines: the only ones whose validator may run code.
    Routine,
    /// DATABASE.
    Database,
    /// Scripts: extensions and languages.
    Extension,
    /// Who may log in, and with which password.
    Role,
    /// Tablespaces, …: nothing that a statement can reach.
    Global,
    /// Anything else that defines and evaluates nothing.
    Definition,
    /// Not a word of these commands.
    Unknown,
}

impl Scan<'_> {
    /// Behind CREATE, ALTER or DROP.
    pub(super) fn definition(&mut self, verb: Keyword) -> Result<(), Unreadable> {
        self.statement.writes = true;
        let (object, temporary) = self.object(verb)?;
        if self.suspects_definitions() {
            self.pin(PinReason::Suspect);
        }
        self.effects.catalog_change |=
            !temporary && !matches!(object, Object::Role | Object::Global | Object::Database);
        self.effects.role_change |= object == Object::Role;
        match object {
            Object::Relation => self.relation(temporary)?,
            Object::Routine => self.routine()?,
            Object::Database => self.database(verb)?,
            // Their scripts may do anything.
            Object::Extension if verb != Keyword::Drop => self.pin(PinReason::Unknown),
            Object::Unknown => self.pin(PinReason::Unknown),
            Object::Extension | Object::Role | Object::Global | Object::Definition => {
                self.statement.execution = Execution::Definition;
            }
        }
        if temporary && !self.statement.drops_on_commit {
            self.pin(PinReason::TemporaryTable);
        }
        Ok(())
    }

    /// Reads up to the word that says what is defined, and whether it is temporary.
    fn object(&mut self, verb: Keyword) -> Result<(Object, bool), Unreadable> {
        let mut temporary = false;
        let mut materialized = false;
        while let Some(item) = self.item()? {
            let object = match item.keyword() {
                Some(Keyword::Temp | Keyword::Temporary | Keyword::Local | Keyword::Global) => {
                    temporary = true;
                    continue;
                }
                Some(
                    Keyword::Or
                    | Keyword::Replace
                    | Keyword::Unlogged
                    | Keyword::Unique
                    | Keyword::Recursive
                    | Keyword::Constraint
                    | Keyword::Trusted
                    | Keyword::Procedural
                    | Keyword::Foreign,
                ) => continue,
                Some(Keyword::Materialized) => {
                    materialized = true;
                    continue;
                }
                Some(Keyword::View) if materialized => Object::Relation,
                keyword => object_of(keyword, verb, &item),
            };
            return Ok((object, temporary));
        }
        Ok((Object::Unknown, temporary))
    }

    fn relation(&mut self, temporary: bool) -> Result<(), Unreadable> {
        if self.suspects_statements() || (temporary && self.suspects_definitions()) {
            self.pin(PinReason::Suspect);
        }
        self.drain()
    }

    /// A routine's body runs later; but the validator of a language that is not PostgreSQL's own may run it at once.
    fn routine(&mut self) -> Result<(), Unreadable> {
        self.statement.execution = Execution::Definition;
        self.statement.makes_routine = true;
        while let Some(item) = self.item()? {
            if item.keyword() != Some(Keyword::Language) {
                continue;
            }
            let Some(language) = self.item()? else { return Ok(()) };
            let own = self.folded_or_string(language).is_some_and(|name| {
                [&b"sql"[..], b"plpgsql", b"c", b"internal"]
                    .iter()
                    .any(|own| own.eq_ignore_ascii_case(&name))
            });
            if !own {
                self.pin(PinReason::ProceduralLanguage);
            }
        }
        Ok(())
    }

    /// `DROP DATABASE [IF EXISTS] x`, `ALTER DATABASE x {RENAME | SET TABLESPACE}`, `CREATE DATABASE x [TEMPLATE y]`.
    fn database(&mut self, verb: Keyword) -> Result<(), Unreadable> {
        self.statement.execution = Execution::Definition;
        self.effects.database_ddl = true;
        let mut item = self.item()?;
        while item.is_some_and(|item| matches!(item.keyword(), Some(Keyword::If | Keyword::Exists))) {
            item = self.item()?;
        }
        let mut used = item.and_then(|item| self.folded(item));
        let mut changes = verb == Keyword::Drop;
        if verb == Keyword::Create {
            used = Some(b"template1".as_slice().into());
        }
        while let Some(item) = self.item()? {
            match item.keyword() {
                Some(Keyword::Template) => used = self.template()?,
                Some(Keyword::Rename | Keyword::Tablespace) if verb == Keyword::Alter => changes = true,
                _ => {}
            }
        }
        if verb == Keyword::Create {
            self.step(Action::CopiesDatabase(used));
        } else if changes {
            self.step(Action::ChangesDatabase(used));
        }
        Ok(())
    }

    /// `TEMPLATE [=] y`.
    fn template(&mut self) -> Result<Name, Unreadable> {
        let mut item = self.item()?;
        if item.is_some_and(|item| item.token.kind == TokenKind::Operator) {
            item = self.item()?;
        }
        match item {
            Some(item) if item.keyword() == Some(Keyword::Default) => Ok(Some(b"template1".as_slice().into())),
            other => Ok(other.and_then(|item| self.folded_or_string(item))),
        }
    }
}

fn object_of(keyword: Option<Keyword>, verb: Keyword, item: &Item) -> Object {
    match keyword {
        Some(Keyword::Role | Keyword::User | Keyword::Group) => Object::Role,
        _ if verb == Keyword::Drop && keyword != Some(Keyword::Database) => match item.token.kind {
            TokenKind::Word if keyword.is_some() => Object::Definition,
            _ => Object::Unknown,
        },
        Some(Keyword::Table | Keyword::Index | Keyword::Domain) => Object::Relation,
        Some(Keyword::Function | Keyword::Procedure | Keyword::Routine) => Object::Routine,
        Some(Keyword::Database) => Object::Database,
        Some(Keyword::Extension | Keyword::Language) => Object::Extension,
        Some(Keyword::Tablespace | Keyword::System) => Object::Global,
        Some(Keyword::Publication | Keyword::Subscription | Keyword::Statistics) => Object::Global,
        Some(_) => Object::Definition,
        None => Object::Unknown,
    }
}
