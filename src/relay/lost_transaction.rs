//! A transaction block that died with its backend: the client sees a failed transaction until it ends it, as
//! PostgreSQL itself would have it. No backend is held meanwhile.

use bytes::{Bytes, BytesMut};

use super::to_backend::Next;
use super::{Exchange, Parties};
use crate::error::failed_transaction;
use crate::protocol::pipeline::{Fate, Request};
use crate::virtual_session::Note;
use crate::virtual_session::statement_effects::TransactionControl;
use crate::virtual_session::suspects::Suspects;
use crate::wire::backend_message::TransactionStatus;
use crate::wire::frontend_message::{BindHead, Named, Parse, Query, Target};
use crate::wire::{BackendTag, FrontendTag, Header, Report, compose};

/// What the client said since its backend was lost.
#[derive(Debug, Default)]
pub(super) struct LostTransaction {
    /// Told instead of the first 25P02: why the transaction is lost.
    pub(super) first_refusal: Option<Report>,
    /// What the unnamed statement would do.
    unnamed: Ending,
    /// What the portal bound last would do.
    portal: Ending,
    /// An Execute has ended the block; the Sync tells.
    ended: bool,
}

impl LostTransaction {
    /// Of whose loss the client is yet to be told.
    pub(super) fn untold(report: Report) -> Self {
        Self {
            first_refusal: Some(report),
            ..Self::default()
        }
    }
}

impl Exchange {
    /// One message of a client whose transaction is lost.
    pub(super) fn on_message_after_loss(
        &mut self,
        header: Header,
        tag: FrontendTag,
        parties: &mut Parties<'_>,
    ) -> Result<Next, Report> {
        if header.body_len > parties.rules.statement_bytes {
            self.up.skip(header);
            match tag {
                _ if self.pipeline.is_skipping() => {}
                FrontendTag::Query | FrontendTag::FunctionCall => self.refuse_lost(true),
                FrontendTag::Parse | FrontendTag::Bind => self.refuse_lost(false),
                // Late data, and nothing else can be so long.
                _ => {}
            }
            return Ok(Next::Done);
        }
        let Some(body) = self.up.whole_body(header) else {
            return Ok(Next::Wants(header.frame_len()));
        };
        let body = Bytes::copy_from_slice(body);
        match tag {
            FrontendTag::Terminate => return Ok(Next::Terminated),
            FrontendTag::Sync => self.on_lost_sync(),
            _ if self.pipeline.is_skipping() => {}
            FrontendTag::Query => self.on_lost_query(&body, parties),
            FrontendTag::Parse => self.on_lost_parse(&body, parties),
            FrontendTag::Bind => self.on_lost_bind(&body, parties),
            FrontendTag::Execute => self.on_lost_execute(),
            FrontendTag::Describe => self.on_lost_describe(&body, parties),
            FrontendTag::Close => {
                let named = Named::parse(&body)
                    .ok()
                    .filter(|named| named.target == Target::Statement);
                named.and_then(|named| parties.session.close(named.name));
                self.down
                    .say(|out| compose::bare_backend(out, BackendTag::CloseComplete));
            }
            FrontendTag::FunctionCall => self.refuse_lost(true),
            FrontendTag::Flush
            | FrontendTag::CopyData
            | FrontendTag::CopyDone
            | FrontendTag::CopyFail
            | FrontendTag::Authentication => {}
        }
        self.up.skip(header);
        Ok(Next::Done)
    }

    fn on_lost_query(&mut self, body: &[u8], parties: &Parties<'_>) {
        let sql = Query::parse(body).map(|query| query.sql).unwrap_or_default();
        match ending(sql, parties) {
            Ending::Empty => self.say_of_lost(BackendTag::EmptyQueryResponse),
            Ending::Rollback | Ending::Commit if self.must_tell(sql, parties) => {
                let report = self.refusal();
                self.down.say(|out| compose::report(out, &report));
                self.end_lost();
            }
            Ending::Rollback | Ending::Commit => {
                self.end_lost();
                self.say_rollback();
            }
            Ending::None => return self.refuse_lost(true),
        }
        let status = self.status();
        self.down.say(|out| compose::ready_for_query(out, status));
    }

    /// A client that was told nothing yet believes that its transaction is alive: its COMMIT must not look like one that
    /// succeeded.
    fn must_tell(&self, sql: &[u8], parties: &Parties<'_>) -> bool {
        let untold = self.lost.as_ref().is_some_and(|lost| lost.first_refusal.is_some());
        untold && ending(sql, parties) == Ending::Commit
    }

    fn end_lost(&mut self) {
        self.lost = None;
        self.transaction_since = None;
    }

    fn say_of_lost(&mut self, tag: BackendTag) {
        self.down.say(|out| compose::bare_backend(out, tag));
    }

    fn on_lost_parse(&mut self, body: &[u8], parties: &mut Parties<'_>) {
        let Ok(parse) = Parse::parse(body) else {
            return self.refuse_lost(false);
        };
        let ending = ending(parse.sql, parties);
        let held = parties.session.statement_bytes() + parse.name.len() + parse.definition.len();
        let too_much = !parse.name.is_empty() && held > parties.rules.client_statement_bytes;
        if ending == Ending::None || too_much || self.must_tell(parse.sql, parties) {
            return self.refuse_lost(false);
        }
        if parse.name.is_empty() {
            if let Some(lost) = &mut self.lost {
                lost.unnamed = ending;
            }
        } else if parties.session.statement(parse.name).is_none() {
            let effects = self.classify(parse.sql, parties);
            parties.session.prepare(parse.name, parse.definition, || effects);
        }
        self.down
            .say(|out| compose::bare_backend(out, BackendTag::ParseComplete));
    }

    fn on_lost_bind(&mut self, body: &[u8], parties: &Parties<'_>) {
        let statement = BindHead::parse(body).map(|head| head.statement).unwrap_or_default();
        let ending = self.ending_of(statement, parties);
        let untold = self.lost.as_ref().is_some_and(|lost| lost.first_refusal.is_some());
        if ending == Ending::None || (untold && ending == Ending::Commit) {
            return self.refuse_lost(false);
        }
        if let Some(lost) = &mut self.lost {
            lost.portal = ending;
        }
        self.down
            .say(|out| compose::bare_backend(out, BackendTag::BindComplete));
    }

    /// How the statement of this name ends the transaction, as far as it is known.
    fn ending_of(&self, statement: &[u8], parties: &Parties<'_>) -> Ending {
        match statement {
            b"" => self.lost.as_ref().map_or(Ending::None, |lost| lost.unnamed),
            name => parties
                .session
                .statement(name)
                .map_or(Ending::None, |statement| ending(statement.sql(), parties)),
        }
    }

    fn on_lost_execute(&mut self) {
        match self.lost.as_ref().map_or(Ending::None, |lost| lost.portal) {
            Ending::None => self.refuse_lost(false),
            Ending::Empty => self.say_of_lost(BackendTag::EmptyQueryResponse),
            Ending::Rollback | Ending::Commit => {
                if let Some(lost) = &mut self.lost {
                    lost.ended = true;
                }
                self.say_rollback();
            }
        }
    }

    /// A statement that ends a transaction has no parameters and no rows.
    fn on_lost_describe(&mut self, body: &[u8], parties: &Parties<'_>) {
        let Ok(named) = Named::parse(body) else {
            return self.refuse_lost(false);
        };
        let ending = match named.target {
            Target::Portal => self.lost.as_ref().map_or(Ending::None, |lost| lost.portal),
            Target::Statement => self.ending_of(named.name, parties),
        };
        if ending == Ending::None {
            return self.refuse_lost(false);
        }
        if named.target == Target::Statement {
            self.down
                .say(|out| compose::frame(out, BackendTag::ParameterDescription.byte(), &[&[0, 0]]));
        }
        self.down.say(|out| compose::bare_backend(out, BackendTag::NoData));
    }

    fn on_lost_sync(&mut self) {
        let ended = self.lost.as_ref().is_some_and(|lost| lost.ended);
        if ended {
            self.end_lost();
        }
        let status = self.status();
        self.expect(Request::Sync, Fate::Answer(Bytes::new()), Note::None);
        // The pipeline answers with the backend's status, and there is no backend: the client's own counts.
        while self.pipeline.next_due().is_some() {}
        self.down.say(|out| compose::ready_for_query(out, status));
    }

    fn refuse_lost(&mut self, ready: bool) {
        let report = self.refusal();
        self.down.say(|out| compose::report(out, &report));
        if ready {
            self.down
                .say(|out| compose::ready_for_query(out, TransactionStatus::Failed));
        } else {
            self.pipeline.refuse_until_sync();
        }
    }

    fn refusal(&mut self) -> Report {
        let first = self.lost.as_mut().and_then(|lost| lost.first_refusal.take());
        first.unwrap_or_else(failed_transaction)
    }

    fn say_rollback(&mut self) {
        let mut tag = BytesMut::new();
        compose::frame(&mut tag, BackendTag::CommandComplete.byte(), &[b"ROLLBACK\0"]);
        self.down.say(|out| out.extend_from_slice(&tag));
    }
}

/// What a failed transaction lets a statement do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Ending {
    /// It is refused.
    #[default]
    None,
    /// It is no statement at all, as drivers say to see whether the connection lives.
    Empty,
    /// ROLLBACK and ABORT.
    Rollback,
    /// COMMIT, END and PREPARE TRANSACTION, which roll back.
    Commit,
}

/// ROLLBACK, ABORT, COMMIT and END leave a failed block. ROLLBACK TO can't, because its savepoint is gone, nor can a
/// chain begin a transaction like one that no backend remembers.
fn ending(sql: &[u8], parties: &Parties<'_>) -> Ending {
    // Which routines it calls does not matter.
    let effects = super::classify(sql, parties.session.lexing(), &Suspects::every_mention());
    match (effects.statement_count, effects.transaction) {
        (0, _) => Ending::Empty,
        (1, TransactionControl::Rollback) => Ending::Rollback,
        (1, TransactionControl::Commit | TransactionControl::PrepareTransaction) => Ending::Commit,
        _ => Ending::None,
    }
}
