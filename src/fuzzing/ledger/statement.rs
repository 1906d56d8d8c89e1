//! The few statements that the model server runs, read from their texts.

use super::server::Failed;
use crate::virtual_session::sql_lexer::{Lexer, Lexing, Token, TokenKind, identifier_name, string_value};

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Statement {
    Set {
        name: String,
        /// `None`: its default.
        value: Option<String>,
        local: bool,
    },
    Reset(Target),
    DiscardAll,
    Select(Vec<Expression>, bool),
    /// `DO 'name=value'`.
    Do(String, String),
    Control(Control),
    /// One that is known, and nothing to settings.
    NoEffect(&'static str),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    One(String),
    All,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Control {
    Begin,
    Commit { chain: bool },
    Rollback { chain: bool },
    Savepoint(String),
    Release(String),
    RollbackTo(String),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Expression {
    Constant(Option<String>),
    Current(String),
    SetConfig(String, Option<String>, bool),
    /// `CASE WHEN current_setting(…) IS NOT NULL THEN … END`.
    IfSet(String, Box<Expression>),
    /// `CASE WHEN EXISTS (SELECT … FROM pg_settings …) THEN … END`: where the session has a value of its own.
    IfOfSession(String, Box<Expression>),
    /// `1/0`.
    Error,
}

type Parsed<T> = Result<T, Failed>;

/// The statements of a text, empty ones left out.
pub(super) fn statements(text: &[u8], lexing: Lexing) -> Parsed<Vec<Statement>> {
    let mut lexer = Lexer::new(text, lexing).map_err(|_| Failed)?;
    let mut found = Vec::new();
    let mut tokens = Vec::new();
    loop {
        let token = lexer.next_token().map_err(|_| Failed)?;
        match token {
            Some(token) if token.kind != TokenKind::Semicolon => tokens.push(token),
            _ => {
                if !tokens.is_empty() {
                    found.push(Reader { text, tokens: &tokens }.whole()?);
                    tokens.clear();
                }
            }
        }
        if token.is_none() {
            return Ok(found);
        }
    }
}

/// A statement's tokens, as far as they are not read.
struct Reader<'t> {
    text: &'t [u8],
    tokens: &'t [Token],
}

impl Reader<'_> {
    fn whole(mut self) -> Parsed<Statement> {
        let statement = self.statement()?;
        self.tokens.is_empty().then_some(statement).ok_or(Failed)
    }

    fn next(&mut self) -> Parsed<Token> {
        let (first, rest) = self.tokens.split_first().ok_or(Failed)?;
        self.tokens = rest;
        Ok(*first)
    }

    /// Whether this word or sign comes next, which is read then.
    fn takes(&mut self, word: &str) -> bool {
        let is_next = self.tokens.first().is_some_and(|token| {
            !matches!(token.kind, TokenKind::QuotedIdentifier | TokenKind::String(_))
                && token.bytes(self.text).eq_ignore_ascii_case(word.as_bytes())
        });
        if is_next {
            self.tokens = &self.tokens[1..];
        }
        is_next
    }

    fn needs(&mut self, words: &str) -> Parsed<()> {
        words
            .split(' ')
            .all(|word| self.takes(word))
            .then_some(())
            .ok_or(Failed)
    }

    fn statement(&mut self) -> Parsed<Statement> {
        let lead = self.next()?;
        if lead.kind != TokenKind::Word {
            return Err(Failed);
        }
        let word = identifier_name(self.text, lead).ok_or(Failed)?;
        match &word[..] {
            b"set" => self.set(),
            b"reset" => self.reset(),
            b"discard" => self.needs("all").map(|()| Statement::DiscardAll),
            b"select" => self.select(),
            b"do" => {
                let body = self.string()?;
                let (name, value) = body.split_once('=').ok_or(Failed)?;
                Ok(Statement::Do(name.to_ascii_lowercase(), value.to_owned()))
            }
            b"listen" => self.name().map(|_| Statement::NoEffect("LISTEN")),
            _ => self.control(&word).map(Statement::Control),
        }
    }

    fn control(&mut self, lead: &[u8]) -> Parsed<Control> {
        match lead {
            b"begin" => {
                if self.takes("isolation") {
                    self.needs("level read committed , not deferrable")?;
                }
                Ok(Control::Begin)
            }
            b"commit" | b"end" => self.chain().map(|chain| Control::Commit { chain }),
            b"rollback" if self.takes("to") => {
                self.takes("savepoint");
                self.name().map(Control::RollbackTo)
            }
            b"rollback" | b"abort" => self.chain().map(|chain| Control::Rollback { chain }),
            b"savepoint" => self.name().map(Control::Savepoint),
            b"release" => {
                self.takes("savepoint");
                self.name().map(Control::Release)
            }
            _ => Err(Failed),
        }
    }

    fn chain(&mut self) -> Parsed<bool> {
        match self.takes("and") {
            true => self.needs("chain").map(|()| true),
            false => Ok(false),
        }
    }

    fn name(&mut self) -> Parsed<String> {
        let name = identifier_name(self.text, self.next()?).ok_or(Failed)?;
        String::from_utf8(name).map_err(|_| Failed)
    }

    fn string(&mut self) -> Parsed<String> {
        let value = string_value(self.text, self.next()?).ok_or(Failed)?;
        String::from_utf8(value).map_err(|_| Failed)
    }

    /// A setting's name, in lower case: `a`, `"a"."b"`.
    fn setting(&mut self) -> Parsed<String> {
        let mut name = self.name()?;
        while self.takes(".") {
            name = format!("{name}.{}", self.name()?);
        }
        canonical(&name)
    }

    fn set(&mut self) -> Parsed<Statement> {
        let local = self.takes("local");
        if !local {
            self.takes("session");
        }
        if self.takes("time") {
            self.needs("zone")?;
            let value = if self.takes("local") { None } else { self.value()? };
            let name = "timezone".to_owned();
            return Ok(Statement::Set { name, value, local });
        }
        let name = self.setting()?;
        let assigns = self.takes("to") || self.takes("=");
        if !assigns && name != "role" {
            return Err(Failed);
        }
        let value = self.value()?;
        // SET ROLE DEFAULT is no SQL.
        if value.is_none() && !assigns {
            return Err(Failed);
        }
        Ok(Statement::Set { name, value, local })
    }

    /// A word, a string or a number; `None` for DEFAULT.
    fn value(&mut self) -> Parsed<Option<String>> {
        if self.takes("default") {
            return Ok(None);
        }
        let token = self.next()?;
        let bytes = match token.kind {
            TokenKind::Number => token.bytes(self.text).to_vec(),
            TokenKind::String(_) => string_value(self.text, token).ok_or(Failed)?,
            _ => identifier_name(self.text, token).ok_or(Failed)?,
        };
        String::from_utf8(bytes).map(Some).map_err(|_| Failed)
    }

    fn reset(&mut self) -> Parsed<Statement> {
        if self.takes("all") {
            return Ok(Statement::Reset(Target::All));
        }
        if self.takes("time") {
            self.needs("zone")?;
            return Ok(Statement::Reset(Target::One("timezone".to_owned())));
        }
        if self.takes("session") {
            // Everyone here is who logged in, and the role goes back too.
            self.needs("authorization")?;
            return Ok(Statement::Reset(Target::One("role".to_owned())));
        }
        self.setting().map(|name| Statement::Reset(Target::One(name)))
    }

    fn select(&mut self) -> Parsed<Statement> {
        let mut expressions = vec![self.expression()?];
        while self.takes(",") {
            expressions.push(self.expression()?);
        }
        let is_true = match self.takes("where") {
            true => self.needs("false").map(|()| false)?,
            false => true,
        };
        Ok(Statement::Select(expressions, is_true))
    }

    fn expression(&mut self) -> Parsed<Expression> {
        if self.takes("case") {
            self.needs("when")?;
            if self.takes("exists") {
                self.needs("( select 1 from pg_catalog . pg_settings where pg_catalog . lower ( name ) =")?;
                let name = canonical(&self.string()?)?;
                self.needs("and source =")?;
                if self.string()? != "session" {
                    return Err(Failed);
                }
                self.needs(") then")?;
                let then = self.expression()?;
                self.needs("end")?;
                return Ok(Expression::IfOfSession(name, Box::new(then)));
            }
            let Expression::Current(name) = self.expression()? else {
                return Err(Failed);
            };
            self.needs("is not null then")?;
            let then = self.expression()?;
            self.needs("end")?;
            return Ok(Expression::IfSet(name, Box::new(then)));
        }
        let number = self.tokens.first().is_some_and(|token| token.kind == TokenKind::Number);
        if number {
            let token = self.next()?;
            if self.takes("/") {
                self.needs("0")?;
                return Ok(Expression::Error);
            }
            let digits = String::from_utf8_lossy(token.bytes(self.text)).into_owned();
            return Ok(Expression::Constant(Some(digits)));
        }
        if self.takes("pg_catalog") {
            self.needs(".")?;
        }
        if self.takes("current_setting") {
            self.needs("(")?;
            let name = canonical(&self.string()?)?;
            self.needs(", true )")?;
            return Ok(Expression::Current(name));
        }
        self.needs("set_config (")?;
        let name = canonical(&self.string()?)?;
        self.needs(",")?;
        let value = if self.takes("null") { None } else { Some(self.string()?) };
        self.needs(",")?;
        let local = self.takes("true");
        if !local {
            self.needs("false")?;
        }
        self.needs(")")?;
        Ok(Expression::SetConfig(name, value, local))
    }
}

/// A name by which the server keeps a setting. Custom ones must be two identifiers or more.
fn canonical(name: &str) -> Parsed<String> {
    let is_plain = |part: &str| {
        part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && part.starts_with(|first: char| !first.is_ascii_digit())
    };
    if !name.split('.').all(is_plain) {
        return Err(Failed);
    }
    Ok(match name.to_ascii_lowercase().as_str() {
        "sort_mem" => "work_mem".to_owned(),
        name => name.to_owned(),
    })
}
