//! The pass over a text's tokens: what any statement may hide, whatever it starts with.
//!
//! [`Scan::item`] gives the tokens of one statement, and looks at each on the way: calls, suspicious names, the words
//! that write. So nothing is missed by what [`super::statement_kinds`] does with the statement's grammar.

use super::keywords::{self, Class, Keyword, Meaning};
use super::pins::PinReason;
use super::session_functions::{SessionFunction, session_function};
use super::set_statement::is_assignment;
use super::sql_lexer::{LexError, Lexer, Lexing, Token, TokenKind, identifier_name};
use super::statement_effects::{Action, Effects, SequenceUse, Step};
use super::suspects::{Reach, Suspects};
use super::{builtin_functions, set_config};

/// Why a text can't be told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unreadable;

impl From<LexError> for Unreadable {
    fn from(_: LexError) -> Self {
        Self
    }
}

/// A token of a statement, with what it means if it is a word.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item {
    pub(super) token: Token,
    pub(super) meaning: Option<Meaning>,
}

impl Item {
    /// The keyword; `None` for anything but a keyword.
    pub(super) fn keyword(&self) -> Option<Keyword> {
        self.meaning
            .filter(|meaning| meaning.class != Class::Name)
            .map(|meaning| meaning.keyword)
    }
}

/// What stood before a token, as far as it decides what the token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    Start,
    Keyword(Keyword),
    Name,
    CloseParen,
    Comma,
    Typecast,
    Dot,
    Other,
}

/// A name as far as it was read: `a`, or `a.b` with `a` as its qualifier.
#[derive(Debug, Clone, Copy)]
pub(super) struct NameChain {
    /// What stood before the whole of it.
    pub(super) before: Before,
    /// The token right before its last part's dot, if there is one.
    qualifier: Option<Token>,
    last: Token,
    meaning: Option<Meaning>,
}

/// How much of a statement runs when it is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Execution {
    /// Its expressions are evaluated.
    Now,
    /// Its expressions are evaluated later, or perhaps (PREPARE, EXPLAIN, DECLARE).
    Later,
    /// It defines something, and evaluates nothing (CREATE FUNCTION, GRANT).
    Definition,
}

/// What is known of the statement that is being read.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) lead: Option<Keyword>,
    pub(super) execution: Execution,
    /// Open parentheses.
    pub(super) depth: u32,
    /// CREATE FUNCTION or PROCEDURE: it may have a body that is no string.
    pub(super) makes_routine: bool,
    /// In its BEGIN ATOMIC … END: a semicolon in there ends nothing.
    atomic: bool,
    /// A name behind a `)` may be a call here (`DISTINCT ON (a) f(x)`, `a OPERATOR(b) f(x)`).
    call_behind_paren: bool,
    /// The select list may be evaluated never, or often.
    pub(super) has_clause: bool,
    /// A name before a parenthesis is a relation with columns.
    pub(super) calls_nothing: bool,
    /// It has a SELECT somewhere.
    has_select: bool,
    /// The statement has a word that writes.
    pub(super) writes: bool,
    /// It names a table on which writing is suspicious.
    write_suspect: bool,
    /// ON COMMIT DROP.
    pub(super) drops_on_commit: bool,
    /// How many steps the text had before this statement.
    pub(super) first_step: usize,
    ended: bool,
}

impl Statement {
    fn new(first_step: usize) -> Self {
        Self {
            lead: None,
            execution: Execution::Now,
            depth: 0,
            makes_routine: false,
            atomic: false,
            call_behind_paren: false,
            has_clause: false,
            calls_nothing: false,
            has_select: false,
            writes: false,
            write_suspect: false,
            drops_on_commit: false,
            first_step,
            ended: false,
        }
    }
}

/// The pass over one text.
#[derive(Debug)]
pub(super) struct Scan<'t> {
    pub(super) text: &'t [u8],
    pub(super) lexer: Lexer<'t>,
    suspects: &'t Suspects,
    pub(super) effects: Effects,
    pub(super) statement: Statement,
    last: Before,
    chain: Option<NameChain>,
    /// How many times the text says that it inserts.
    inserts: u32,
    at_end: bool,
}

impl<'t> Scan<'t> {
    /// Reads the whole text.
    pub(super) fn run(text: &'t [u8], lexing: Lexing, suspects: &'t Suspects) -> Result<Effects, Unreadable> {
        let mut scan = Self {
            text,
            lexer: Lexer::new(text, lexing)?,
            suspects,
            effects: Effects::NONE,
            statement: Statement::new(0),
            last: Before::Start,
            chain: None,
            inserts: 0,
            at_end: false,
        };
        while !scan.at_end {
            if let Some(first) = scan.item()? {
                scan.effects.statement_count = scan.effects.statement_count.checked_add(1).ok_or(Unreadable)?;
                scan.statement(first)?;
                scan.drain()?;
                scan.end_statement();
            }
            scan.statement = Statement::new(scan.effects.steps.len());
            scan.last = Before::Start;
            scan.chain = None;
        }
        scan.effects.is_begin_only &= scan.effects.statement_count == 1;
        Ok(scan.effects)
    }

    /// The number of the statement that is being read.
    pub(super) fn index(&self) -> u32 {
        self.effects.statement_count.saturating_sub(1)
    }

    /// Notes what the statement does.
    pub(super) fn step(&mut self, action: Action) {
        let statement = self.index();
        self.effects.steps.push(Step { statement, action });
    }

    /// Notes a reason to pin.
    pub(super) fn pin(&mut self, reason: PinReason) {
        self.effects.pins.insert(reason);
    }

    /// Whether `=` or `TO` comes next.
    pub(super) fn assigns_next(&self) -> bool {
        matches!(self.lexer.clone().next_token(), Ok(Some(token)) if is_assignment(token.bytes(self.text)))
    }

    /// Reads the rest of the statement.
    pub(super) fn drain(&mut self) -> Result<(), Unreadable> {
        while self.item()?.is_some() {}
        Ok(())
    }

    fn end_statement(&mut self) {
        if self.statement.write_suspect && self.statement.writes {
            self.pin(PinReason::Suspect);
        }
        if self.statement.writes {
            self.effects.is_read_only_shape = false;
        }
        if self.statement.has_clause && self.statement.lead != Some(Keyword::Set) {
            set_config::make_uncertain(&mut self.effects.steps[self.statement.first_step..]);
        }
    }

    /// The statement's next token; `None` at its end, again and again.
    pub(super) fn item(&mut self) -> Result<Option<Item>, Unreadable> {
        if self.statement.ended {
            return Ok(None);
        }
        let Some(token) = self.lexer.next_token()? else {
            self.statement.ended = true;
            self.at_end = true;
            return if self.statement.depth == 0 {
                Ok(None)
            } else {
                Err(Unreadable)
            };
        };
        let mut meaning = None;
        let now = match token.kind {
            TokenKind::Word => {
                meaning = keywords::meaning(token.bytes(self.text));
                self.on_word(token, meaning)
            }
            TokenKind::QuotedIdentifier => {
                self.on_name(token, None);
                let bytes = token.bytes(self.text);
                if let Some(known) = keywords::meaning(bytes.get(1..bytes.len() - 1).unwrap_or_default()) {
                    self.on_known_name(known.keyword);
                }
                Before::Name
            }
            TokenKind::UnicodeIdentifier => {
                self.pin(PinReason::Unlexable);
                self.chain = None;
                Before::Name
            }
            TokenKind::OpenParen => {
                if matches!(self.last, Before::Name | Before::Keyword(_)) {
                    self.on_call()?;
                }
                self.statement.depth = self.statement.depth.checked_add(1).ok_or(Unreadable)?;
                Before::Other
            }
            TokenKind::CloseParen => {
                self.statement.depth = self.statement.depth.checked_sub(1).ok_or(Unreadable)?;
                Before::CloseParen
            }
            TokenKind::Semicolon if self.statement.depth == 0 && !self.statement.atomic => {
                self.statement.ended = true;
                return Ok(None);
            }
            TokenKind::Semicolon => Before::Start,
            TokenKind::Operator => {
                if self.suspects.suspects_operator(token.bytes(self.text)) {
                    self.suspect();
                }
                Before::Other
            }
            TokenKind::Comma => Before::Comma,
            TokenKind::Dot => Before::Dot,
            TokenKind::Typecast => Before::Typecast,
            _ => Before::Other,
        };
        self.last = now;
        Ok(Some(Item { token, meaning }))
    }

    #[inline]
    fn on_word(&mut self, token: Token, meaning: Option<Meaning>) -> Before {
        let part_of_name = self.last == Before::Dot;
        self.on_name(token, meaning);
        match meaning {
            Some(meaning) if meaning.class == Class::Name => {
                self.on_known_name(meaning.keyword);
                Before::Name
            }
            Some(meaning) if !part_of_name => {
                if meaning.keyword != Keyword::Other {
                    self.on_keyword(meaning.keyword);
                }
                Before::Keyword(meaning.keyword)
            }
            _ => Before::Name,
        }
    }

    fn on_known_name(&mut self, name: Keyword) {
        self.effects.reads_session |= matches!(name, Keyword::SessionView | Keyword::StatementsView);
        self.effects.lists_statements |= name == Keyword::StatementsView;
        // UPDATE pg_settings is a set_config by its rule; a write through any statement that names it is taken as one.
        self.statement.write_suspect |= name == Keyword::PgSettings && self.executes();
    }

    /// Notes an identifier: as a part of a name, and as one that the catalog warns of.
    #[inline]
    fn on_name(&mut self, token: Token, meaning: Option<Meaning>) {
        self.chain = Some(match self.chain {
            Some(chain) if self.last == Before::Dot => NameChain {
                before: chain.before,
                qualifier: Some(chain.last),
                last: token,
                meaning: None,
            },
            _ => NameChain {
                before: self.last,
                qualifier: None,
                last: token,
                meaning,
            },
        });
        let bytes = token.bytes(self.text);
        let plain = token.kind == TokenKind::Word;
        if self.suspects.watches_names() {
            self.on_watched_name(token, plain && meaning.is_some());
        }
        let name = if plain {
            bytes
        } else {
            bytes.get(1..).unwrap_or_default()
        };
        if name.len() >= 7 && name[..7].eq_ignore_ascii_case(b"pg_temp") {
            self.on_temporary_schema();
        }
    }

    #[cold]
    fn on_watched_name(&mut self, token: Token, keyword: bool) {
        let quoted;
        let name = if token.kind == TokenKind::Word {
            token.bytes(self.text)
        } else {
            quoted = identifier_name(self.text, token).unwrap_or_default();
            &quoted
        };
        match self.suspects.reach(name) {
            None => {}
            // Before the catalog was read every name is suspicious, but not the language's own words.
            Some(Reach::Mention) if keyword && !self.suspects.lists(name) => {}
            Some(Reach::Mention) => self.suspect(),
            Some(Reach::Write) => self.statement.write_suspect |= self.executes(),
        }
    }

    /// `pg_temp`: as a schema it makes a temporary object of anything. In a routine's own SET it only names a path.
    #[cold]
    fn on_temporary_schema(&mut self) {
        let qualifies = matches!(
            self.lexer.clone().next_token(),
            Ok(Some(Token {
                kind: TokenKind::Dot,
                ..
            }))
        );
        if qualifies || self.executes() {
            self.pin(PinReason::TemporaryTable);
        }
    }

    pub(super) fn suspects_statements(&self) -> bool {
        self.suspects.suspects_statements()
    }

    pub(super) fn suspects_definitions(&self) -> bool {
        self.suspects.suspects_definitions()
    }

    fn executes(&self) -> bool {
        self.statement.execution != Execution::Definition
    }

    fn suspect(&mut self) {
        if self.executes() {
            self.pin(PinReason::Suspect);
        }
    }

    /// The words that mean something wherever they stand.
    fn on_keyword(&mut self, keyword: Keyword) {
        match keyword {
            Keyword::Insert | Keyword::Merge | Keyword::Copy => {
                self.statement.writes = true;
                self.inserts = self.inserts.saturating_add(1);
                self.draw(SequenceUse::MayDraw);
            }
            // Of several that insert, it is not told which one says so.
            Keyword::Returning if self.inserts == 1 && self.effects.sequence == SequenceUse::MayDraw => {
                self.effects.sequence = SequenceUse::MayDrawAndTell;
            }
            Keyword::Update | Keyword::Delete | Keyword::Truncate | Keyword::Share => self.statement.writes = true,
            Keyword::Into => {
                self.statement.writes = true;
                self.statement.has_clause = true;
                if !matches!(self.last, Before::Keyword(Keyword::Insert | Keyword::Merge)) && self.executes() {
                    self.on_select_into();
                }
            }
            Keyword::Select => self.statement.has_select = true,
            Keyword::From | Keyword::Where | Keyword::Limit | Keyword::Offset | Keyword::Fetch | Keyword::Having => {
                self.statement.has_clause = true;
            }
            Keyword::Group | Keyword::Union | Keyword::Intersect | Keyword::Except | Keyword::With => {
                self.statement.has_clause = true;
            }
            Keyword::Order | Keyword::Window | Keyword::For | Keyword::Case => self.statement.has_clause = true,
            Keyword::Distinct | Keyword::Operator => {
                self.statement.has_clause = true;
                self.statement.call_behind_paren = true;
            }
            Keyword::Execute if self.last == Before::Keyword(Keyword::As) && self.executes() => {
                self.executes_next();
            }
            Keyword::Drop if self.last == Before::Keyword(Keyword::Commit) => self.statement.drops_on_commit = true,
            // Anywhere else the words are a column's and its alias.
            Keyword::Atomic if self.last == Before::Keyword(Keyword::Begin) && self.statement.depth == 0 => {
                self.statement.atomic |= self.statement.makes_routine;
            }
            // Every statement of a body ends with a semicolon, so its END begins one: no CASE's does, and no alias.
            Keyword::End if matches!(self.last, Before::Start | Before::Keyword(Keyword::Atomic)) => {
                self.statement.atomic &= self.statement.depth > 0;
            }
            _ => {}
        }
    }

    /// Behind EXECUTE: the prepared statement's name.
    #[cold]
    pub(super) fn executes_next(&mut self) {
        let next = self.lexer.clone().next_token().ok().flatten();
        let name = next.and_then(|token| identifier_name(self.text, token));
        self.pin(PinReason::Prepare);
        self.step(Action::Execute(name.map(Vec::into_boxed_slice)));
    }

    /// `SELECT … INTO [TEMP | …] name`: a CREATE TABLE AS.
    #[cold]
    fn on_select_into(&mut self) {
        let next = self.lexer.clone().next_token().ok().flatten();
        let next = next
            .and_then(|token| keywords::meaning(token.bytes(self.text)))
            .map(|meaning| meaning.keyword);
        match next {
            Some(Keyword::Temp | Keyword::Temporary | Keyword::Local | Keyword::Global) => {
                self.pin(PinReason::TemporaryTable);
            }
            _ => self.effects.catalog_change = true,
        }
        if self.suspects_definitions() {
            self.pin(PinReason::Suspect);
        }
    }

    fn draw(&mut self, sequence: SequenceUse) {
        if self.executes() {
            self.effects.sequence = self.effects.sequence.and(sequence);
        }
    }

    /// An opening parenthesis right behind a name: a call, unless the grammar says otherwise.
    fn on_call(&mut self) -> Result<(), Unreadable> {
        let Some(chain) = self.chain else { return Ok(()) };
        if !self.executes() || self.statement.calls_nothing {
            return Ok(());
        }
        if chain.qualifier.is_none() && chain.meaning.is_some_and(|meaning| meaning.class == Class::Grammar) {
            return Ok(());
        }
        let decoded;
        let name = if chain.last.kind == TokenKind::Word {
            chain.last.bytes(self.text)
        } else {
            decoded = identifier_name(self.text, chain.last).unwrap_or_default();
            &decoded
        };
        if let Some(function) = session_function(name) {
            return self.on_session_function(function, chain);
        }
        // A function may return no row, and then the other expressions of the select list are not evaluated.
        self.statement.has_clause |= !name.eq_ignore_ascii_case(b"current_setting");
        if (self.is_own(chain) && builtin_functions::is_harmless(name)) || self.is_no_call(chain, name)? {
            return Ok(());
        }
        // A user's own routine may write.
        self.effects.is_read_only_shape = false;
        if !self.suspects.knows_routine(name) {
            self.pin(PinReason::Routine);
        }
        Ok(())
    }

    /// Whether a name can be one of PostgreSQL's own functions: without a schema, or with theirs.
    fn is_own(&self, chain: NameChain) -> bool {
        chain.qualifier.is_none_or(|qualifier| {
            let schema = qualifier.bytes(self.text);
            let schema = schema
                .strip_prefix(b"\"")
                .and_then(|inner| inner.strip_suffix(b"\""))
                .unwrap_or(schema);
            schema.eq_ignore_ascii_case(b"pg_catalog") || schema.eq_ignore_ascii_case(b"information_schema")
        })
    }

    /// Whether a name before a parenthesis is a target with columns, an alias, a type or a common table expression.
    fn is_no_call(&self, chain: NameChain, name: &[u8]) -> Result<bool, Unreadable> {
        Ok(match chain.before {
            Before::Name | Before::Typecast => true,
            Before::CloseParen => !self.statement.call_behind_paren,
            Before::Comma => self.is_common_table_expression()? || self.is_copy_option(name),
            Before::Other => self.is_copy_option(name),
            Before::Keyword(keyword) => self.introduces_no_call(keyword),
            Before::Start | Before::Dot => false,
        })
    }

    /// Whether no expression can stand behind this keyword, in the statement as far as it was read.
    fn introduces_no_call(&self, keyword: Keyword) -> bool {
        let lead = self.statement.lead;
        match keyword {
            Keyword::Into | Keyword::As | Keyword::References | Keyword::With | Keyword::Recursive => true,
            Keyword::Execute | Keyword::Prepare | Keyword::Tablesample => true,
            // `f(x) WITH ORDINALITY alias (a, b)`, or a name like any other.
            Keyword::Ordinality => true,
            Keyword::Copy => lead == Some(Keyword::Copy),
            Keyword::Type => lead == Some(Keyword::Alter),
            Keyword::Table | Keyword::View | Keyword::Exists | Keyword::Only => {
                matches!(lead, Some(Keyword::Create | Keyword::Alter)) && !self.statement.has_select
            }
            Keyword::On | Keyword::Using | Keyword::Of => lead == Some(Keyword::Create) && !self.statement.has_select,
            _ => false,
        }
    }

    /// COPY … WITH (FORCE_QUOTE (a, b)).
    fn is_copy_option(&self, name: &[u8]) -> bool {
        self.statement.lead == Some(Keyword::Copy)
            && !self.statement.has_select
            && [&b"force_quote"[..], b"force_null", b"force_not_null"]
                .iter()
                .any(|word| word.eq_ignore_ascii_case(name))
    }

    /// Whether `, name (a, b)` goes on with `AS (SELECT`, as no call does. The lexer stands behind the `(`.
    fn is_common_table_expression(&self) -> Result<bool, Unreadable> {
        let mut ahead = self.lexer;
        while let Some(token) = ahead.next_token()? {
            match token.kind {
                TokenKind::Word | TokenKind::QuotedIdentifier | TokenKind::Comma => {}
                TokenKind::CloseParen => break,
                _ => return Ok(false),
            }
        }
        let mut word = || -> Result<Option<Keyword>, Unreadable> {
            let token = ahead.next_token()?.filter(|token| token.kind != TokenKind::OpenParen);
            Ok(token
                .and_then(|token| keywords::meaning(token.bytes(self.text)))
                .map(|meaning| meaning.keyword))
        };
        if word()? != Some(Keyword::As) {
            return Ok(false);
        }
        let mut next = word()?;
        while matches!(next, Some(Keyword::Not | Keyword::Materialized)) {
            next = word()?;
        }
        Ok(next.is_none() && matches!(word()?, Some(Keyword::Select | Keyword::With | Keyword::Table)))
    }

    fn on_session_function(&mut self, function: SessionFunction, chain: NameChain) -> Result<(), Unreadable> {
        match function {
            SessionFunction::SetConfig => set_config::on_call(self, chain)?,
            SessionFunction::Pins(reason) => self.pin(reason),
            SessionFunction::Unlocks => self.step(Action::AdvisoryUnlock),
            SessionFunction::DrawsSequence => self.draw(SequenceUse::Draws),
            SessionFunction::ReadsSequence => self.draw(SequenceUse::Reads),
            SessionFunction::Notifies => self.effects.notifies = true,
            SessionFunction::ReadsSession => self.effects.reads_session = true,
            SessionFunction::ListsStatements => {
                self.effects.reads_session = true;
                self.effects.lists_statements = true;
            }
            SessionFunction::Writes => {}
        }
        if !matches!(
            function,
            SessionFunction::ReadsSession | SessionFunction::ListsStatements | SessionFunction::ReadsSequence
        ) {
            self.effects.is_read_only_shape = false;
        }
        Ok(())
    }
}
