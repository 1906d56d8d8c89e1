//! What a statement does by what it starts with.

use super::keywords::Keyword;
use super::pins::PinReason;
use super::set_statement;
use super::sql_lexer::{TokenKind, identifier_name, string_value};
use super::statement_effects::{Action, Name, TransactionControl};
use super::statement_scan::{Execution, Item, Scan, Unreadable};

type Read = Result<(), Unreadable>;

impl Scan<'_> {
    /// Reads a statement from its first token on; what it leaves unread is drained by the caller.
    pub(super) fn statement(&mut self, first: Item) -> Read {
        if first.token.kind == TokenKind::OpenParen {
            self.statement.lead = Some(Keyword::Select);
            self.on_plain_statement();
            return Ok(());
        }
        let lead = first.keyword();
        self.statement.lead = lead;
        match lead {
            Some(Keyword::Select | Keyword::Values | Keyword::Table | Keyword::With) => self.on_plain_statement(),
            Some(Keyword::Insert | Keyword::Update | Keyword::Delete | Keyword::Merge | Keyword::Copy) => {
                self.statement.writes = true;
                self.on_plain_statement();
            }
            Some(Keyword::Show) => {}
            Some(keyword) if self.transaction_statement(keyword)? => {}
            Some(keyword) => {
                self.effects.without_effect = false;
                return self.other_statement(keyword);
            }
            None => self.on_unknown(),
        }
        Ok(())
    }

    fn on_plain_statement(&mut self) {
        self.effects.without_effect = false;
        if self.suspects_statements() {
            self.pin(PinReason::Suspect);
        }
    }

    fn on_unknown(&mut self) {
        self.effects.without_effect = false;
        self.effects.is_read_only_shape = false;
        // A block of code may hold any command.
        self.effects.role_change = true;
        self.pin(PinReason::Unknown);
    }

    /// Everything but queries, SHOW and transaction control.
    fn other_statement(&mut self, keyword: Keyword) -> Read {
        if !matches!(keyword, Keyword::Explain | Keyword::Prepare) {
            self.effects.is_read_only_shape = false;
        }
        match keyword {
            Keyword::Set => set_statement::set(self)?,
            Keyword::Reset => set_statement::reset(self)?,
            Keyword::Discard => self.discard()?,
            Keyword::Listen => {
                self.names_a_channel();
                let channel = self.name()?;
                self.pin(PinReason::Listen);
                self.step(Action::Listen(channel));
            }
            Keyword::Unlisten => self.unlisten()?,
            Keyword::Notify => {
                self.names_a_channel();
                self.effects.notifies = true;
            }
            Keyword::Prepare => self.prepare()?,
            Keyword::Execute => {
                self.executes_next();
            }
            Keyword::Deallocate => self.deallocate()?,
            Keyword::Declare => self.declare()?,
            Keyword::Close => self.close()?,
            Keyword::Fetch | Keyword::Move | Keyword::Lock | Keyword::Checkpoint => {}
            Keyword::Explain => self.explain()?,
            Keyword::Call => self.on_plain_statement(),
            Keyword::Load => self.pin(PinReason::Load),
            Keyword::Create | Keyword::Alter | Keyword::Drop => return self.definition(keyword),
            Keyword::Truncate | Keyword::Refresh | Keyword::Vacuum | Keyword::Analyze | Keyword::Analyse => {
                self.maintenance();
            }
            Keyword::Reindex | Keyword::Cluster => self.maintenance(),
            Keyword::Grant | Keyword::Revoke | Keyword::Comment | Keyword::Security | Keyword::Reassign => {
                self.define();
            }
            Keyword::Import => {
                self.effects.catalog_change = true;
                self.define();
            }
            _ => self.on_unknown(),
        }
        Ok(())
    }

    /// Commands that name relations but no expression, and may run what belongs to them.
    fn maintenance(&mut self) {
        self.statement.writes = true;
        // `VACUUM t (a, b)` calls nothing.
        self.statement.calls_nothing = true;
        self.on_plain_statement();
        if self.suspects_definitions() {
            self.pin(PinReason::Suspect);
        }
    }

    /// The statement defines something, evaluates nothing, and may fire event triggers.
    fn define(&mut self) {
        self.statement.execution = Execution::Definition;
        if self.suspects_definitions() {
            self.pin(PinReason::Suspect);
        }
    }

    /// BEGIN to PREPARE TRANSACTION. False for another keyword (PREPARE of a statement).
    fn transaction_statement(&mut self, keyword: Keyword) -> Result<bool, Unreadable> {
        let (control, name) = match keyword {
            Keyword::Begin => (TransactionControl::Begin, None),
            Keyword::Start => match self.next_keyword()? {
                Some(Keyword::Transaction) => (TransactionControl::Begin, None),
                _ => return Ok(false),
            },
            Keyword::Commit | Keyword::End => (self.commit_or_rollback(false)?, None),
            Keyword::Rollback | Keyword::Abort => self.rollback()?,
            Keyword::Savepoint => (TransactionControl::Savepoint, self.name()?),
            Keyword::Release => (TransactionControl::Release, self.savepoint_name()?),
            Keyword::Prepare if self.is_prepare_transaction() => (TransactionControl::PrepareTransaction, None),
            _ => return Ok(false),
        };
        let first = self.effects.statement_count == 1;
        if control != TransactionControl::Begin {
            self.effects.without_effect = false;
            self.effects.is_read_only_shape = false;
        }
        self.effects.ends_transaction |= control.ends_transaction();
        if first {
            self.effects.transaction = control;
            self.effects.exits_failed_block = control.exits_failed_block();
            self.effects.is_begin_only = control == TransactionControl::Begin;
        }
        let named = matches!(
            control,
            TransactionControl::Savepoint | TransactionControl::Release | TransactionControl::RollbackTo
        );
        if control != TransactionControl::None && (named || !first) {
            self.step(Action::Transaction(control, name));
        }
        Ok(true)
    }

    /// Behind COMMIT or ROLLBACK: `[WORK | TRANSACTION] [AND [NO] CHAIN]`, or `PREPARED 'id'`, which is no control of
    /// this session's transaction.
    fn commit_or_rollback(&mut self, rollback: bool) -> Result<TransactionControl, Unreadable> {
        let mut next = self.next_keyword()?;
        if next == Some(Keyword::Prepared) {
            return Ok(TransactionControl::None);
        }
        if matches!(next, Some(Keyword::Work | Keyword::Transaction)) {
            next = self.next_keyword()?;
        }
        let chain = next == Some(Keyword::And) && self.next_keyword()? == Some(Keyword::Chain);
        Ok(match (rollback, chain) {
            (false, false) => TransactionControl::Commit,
            (false, true) => TransactionControl::CommitAndChain,
            (true, false) => TransactionControl::Rollback,
            (true, true) => TransactionControl::RollbackAndChain,
        })
    }

    fn rollback(&mut self) -> Result<(TransactionControl, Name), Unreadable> {
        let mut ahead = self.lexer;
        let mut to = false;
        for _ in 0..2 {
            let token = ahead.next_token()?;
            to |= token.is_some_and(|token| token.bytes(self.text).eq_ignore_ascii_case(b"to"));
        }
        if !to {
            return Ok((self.commit_or_rollback(true)?, None));
        }
        while self.next_keyword()?.is_some_and(|keyword| keyword != Keyword::To) {}
        Ok((TransactionControl::RollbackTo, self.savepoint_name()?))
    }

    /// `[SAVEPOINT] name`; the name itself may be `savepoint`.
    fn savepoint_name(&mut self) -> Result<Name, Unreadable> {
        let Some(first) = self.item()? else { return Ok(None) };
        match (first.keyword(), self.item()?) {
            (Some(Keyword::Savepoint), Some(name)) => Ok(self.folded(name)),
            _ => Ok(self.folded(first)),
        }
    }

    fn is_prepare_transaction(&self) -> bool {
        let mut ahead = self.lexer;
        let first = ahead.next_token().ok().flatten();
        let second = ahead.next_token().ok().flatten();
        first.is_some_and(|token| token.bytes(self.text).eq_ignore_ascii_case(b"transaction"))
            && second.is_some_and(|token| matches!(token.kind, TokenKind::String(_)))
    }

    fn discard(&mut self) -> Read {
        let action = match self.next_keyword()? {
            Some(Keyword::All) => Action::DiscardAll,
            Some(Keyword::Plans) => Action::DiscardPlans,
            Some(Keyword::Sequences) => Action::DiscardSequences,
            Some(Keyword::Temp | Keyword::Temporary) => Action::DiscardTemporary,
            _ => {
                self.on_unknown();
                return Ok(());
            }
        };
        self.step(action);
        Ok(())
    }

    /// What follows is no name of anything that the catalog knows.
    const fn names_a_channel(&mut self) {
        self.statement.execution = Execution::Definition;
    }

    fn unlisten(&mut self) -> Read {
        self.names_a_channel();
        let action = match self.item()? {
            Some(item) if item.token.bytes(self.text) == b"*" => Action::UnlistenAll,
            Some(item) => Action::Unlisten(self.folded(item)),
            None => return Ok(()),
        };
        self.step(action);
        Ok(())
    }

    /// `DEALLOCATE [PREPARE] {name | ALL}`; the name itself may be `prepare`.
    fn deallocate(&mut self) -> Read {
        let Some(mut item) = self.item()? else { return Ok(()) };
        if item.keyword() == Some(Keyword::Prepare) {
            item = self.item()?.unwrap_or(item);
        }
        let action = match item.keyword() {
            Some(Keyword::All) => Action::DeallocateAll,
            _ => Action::Deallocate(self.folded(item)),
        };
        self.step(action);
        Ok(())
    }

    fn close(&mut self) -> Read {
        let Some(item) = self.item()? else { return Ok(()) };
        let action = match item.keyword() {
            Some(Keyword::All) => Action::CloseAll,
            _ => Action::Close(self.folded(item)),
        };
        self.step(action);
        Ok(())
    }

    /// `PREPARE name [(types)] AS statement`.
    fn prepare(&mut self) -> Read {
        let name = self.name()?;
        self.pin(PinReason::Prepare);
        self.step(Action::Prepare(name));
        while let Some(item) = self.item()? {
            if self.statement.depth == 0 && item.keyword() == Some(Keyword::As) {
                return self.inner_statement();
            }
        }
        Ok(())
    }

    /// `DECLARE name … CURSOR [{WITH | WITHOUT} HOLD] FOR query`.
    fn declare(&mut self) -> Read {
        let name = self.name()?;
        let mut with = false;
        while let Some(item) = self.item()? {
            match item.keyword() {
                Some(Keyword::With) => with = true,
                Some(Keyword::Hold) if with => {
                    self.pin(PinReason::HoldCursor);
                    self.step(Action::HoldCursor(name.clone()));
                }
                Some(Keyword::For) => return self.inner_statement(),
                _ => with = false,
            }
        }
        Ok(())
    }

    /// `EXPLAIN [ANALYZE] [VERBOSE] statement`, `EXPLAIN (options) statement`, and `EXPLAIN (SELECT …)`.
    fn explain(&mut self) -> Read {
        self.statement.execution = Execution::Later;
        self.statement.has_clause = true;
        let mut in_options = false;
        while let Some(item) = self.next_unless_statement(in_options)? {
            in_options = match item.token.kind {
                TokenKind::OpenParen => true,
                TokenKind::CloseParen => false,
                _ => in_options,
            };
        }
        self.inner_statement()
    }

    /// The next item of EXPLAIN's own words; `None` where the explained statement begins.
    fn next_unless_statement(&mut self, in_options: bool) -> Result<Option<Item>, Unreadable> {
        let mut ahead = self.lexer;
        let Some(token) = ahead.next_token()? else {
            return Ok(None);
        };
        let meaning = super::keywords::meaning(token.bytes(self.text)).map(|meaning| meaning.keyword);
        let own = match token.kind {
            TokenKind::OpenParen => !in_options,
            TokenKind::Word if !in_options => {
                matches!(meaning, Some(Keyword::Analyze | Keyword::Analyse | Keyword::Verbose))
            }
            TokenKind::Word => !matches!(meaning, Some(Keyword::Select | Keyword::With | Keyword::Table)),
            _ => in_options,
        };
        if own { self.item() } else { Ok(None) }
    }

    /// The statement inside PREPARE, DECLARE or EXPLAIN.
    fn inner_statement(&mut self) -> Read {
        self.statement.execution = Execution::Later;
        self.statement.has_clause = true;
        self.on_plain_statement();
        let Some(first) = self.item()? else { return Ok(()) };
        if first.token.kind == TokenKind::OpenParen {
            return Ok(());
        }
        match first.keyword() {
            Some(Keyword::Select | Keyword::Values | Keyword::Table | Keyword::With) => {}
            Some(Keyword::Insert | Keyword::Update | Keyword::Delete | Keyword::Merge) => self.statement.writes = true,
            Some(Keyword::Declare) => return self.declare(),
            Some(Keyword::Execute) => self.executes_next(),
            Some(Keyword::Refresh) => self.statement.writes = true,
            Some(Keyword::Create) => {
                self.statement.lead = Some(Keyword::Create);
                return self.definition(Keyword::Create);
            }
            _ => self.on_unknown(),
        }
        Ok(())
    }

    /// The next item's keyword; `None` at the end and for anything else.
    pub(super) fn next_keyword(&mut self) -> Result<Option<Keyword>, Unreadable> {
        Ok(self.item()?.and_then(|item| item.keyword()))
    }

    /// The next item as a name.
    pub(super) fn name(&mut self) -> Result<Name, Unreadable> {
        let item = self.item()?;
        Ok(item.and_then(|item| self.folded(item)))
    }

    /// An item as a name, folded as PostgreSQL folds it.
    pub(super) fn folded(&self, item: Item) -> Name {
        identifier_name(self.text, item.token).map(Vec::into_boxed_slice)
    }

    /// An item as a name or as the string that some commands take for one.
    pub(super) fn folded_or_string(&self, item: Item) -> Name {
        self.folded(item)
            .or_else(|| string_value(self.text, item.token).map(Vec::into_boxed_slice))
    }
}
