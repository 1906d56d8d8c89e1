//! A transaction block that died with its backend: the client sees a failed transaction until it ends it, as
//! PostgreSQL itself would have it. No backend is held meanwhile.

use bytes::{Bytes, BytesMut};

use super::to_backend::Next;
use super::{Exchange, Parties};
use crate::error::failed_transaction;
use crate::protocol::pipeline::{Fate, Request};
use crate::virtual_session::Note;
use crate::virtual_session::statement_effects::classify;
use crate::wire::backend_message::TransactionStatus;
use crate::wire::frontend_message::{BindHead, Named, Parse, Query, Target};
use crate::wire::{BackendTag, FrontendTag, Header, Report, compose};

/// What the client said since its backend was lost.
#[derive(Debug, Default)]
pub(super) struct LostTransaction {
    /// Told instead of the first 25P02: why the transaction is lost.
    pub(super) first_refusal: Option<Report>,
    /// The unnamed statement is one that ends a transaction.
    unnamed_ends: bool,
    /// The portal bound last is of such a statement.
    portal_ends: bool,
    /// An Execute has ended the block; the Sync tells.
    ended: bool,
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
            self.refuse_lost(tag == FrontendTag::Query);
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
            FrontendTag::Describe => self.on_lost_describe(&body),
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
        if ends_block(sql, parties) {
            self.lost = None;
            self.say_rollback();
            self.down
                .say(|out| compose::ready_for_query(out, TransactionStatus::Idle));
        } else {
            self.refuse_lost(true);
        }
    }

    fn on_lost_parse(&mut self, body: &[u8], parties: &mut Parties<'_>) {
        let Ok(parse) = Parse::parse(body) else {
            return self.refuse_lost(false);
        };
        if !ends_block(parse.sql, parties) {
            return self.refuse_lost(false);
        }
        if parse.name.is_empty() {
            if let Some(lost) = &mut self.lost {
                lost.unnamed_ends = true;
            }
        } else if parties.session.statement(parse.name).is_none() {
            let effects = classify(parse.sql, parties.session.lexing(), &parties.rules.suspects);
            parties.session.prepare(parse.name, parse.definition, || effects);
        }
        self.down
            .say(|out| compose::bare_backend(out, BackendTag::ParseComplete));
    }

    fn on_lost_bind(&mut self, body: &[u8], parties: &Parties<'_>) {
        let statement = BindHead::parse(body).map(|head| head.statement).unwrap_or_default();
        let ends = match statement {
            b"" => self.lost.as_ref().is_some_and(|lost| lost.unnamed_ends),
            name => parties
                .session
                .statement(name)
                .is_some_and(|statement| ends_block(statement.sql(), parties)),
        };
        if !ends {
            return self.refuse_lost(false);
        }
        if let Some(lost) = &mut self.lost {
            lost.portal_ends = true;
        }
        self.down
            .say(|out| compose::bare_backend(out, BackendTag::BindComplete));
    }

    fn on_lost_execute(&mut self) {
        let Some(lost) = self.lost.as_mut().filter(|lost| lost.portal_ends) else {
            return self.refuse_lost(false);
        };
        lost.ended = true;
        self.say_rollback();
    }

    /// A statement that ends a transaction has no parameters and no rows.
    fn on_lost_describe(&mut self, body: &[u8]) {
        let Some(lost) = &self.lost else {
            return;
        };
        let target = Named::parse(body).map(|named| named.target).unwrap_or(Target::Portal);
        let known = if target == Target::Portal {
            lost.portal_ends
        } else {
            lost.unnamed_ends
        };
        if !known {
            return self.refuse_lost(false);
        }
        if target == Target::Statement {
            self.down
                .say(|out| compose::frame(out, BackendTag::ParameterDescription.byte(), &[&[0, 0]]));
        }
        self.down.say(|out| compose::bare_backend(out, BackendTag::NoData));
    }

    fn on_lost_sync(&mut self) {
        let ended = self.lost.as_ref().is_some_and(|lost| lost.ended);
        if ended {
            self.lost = None;
        }
        let status = self.status();
        self.expect(Request::Sync, Fate::Answer(Bytes::new()), Note::None);
        // The pipeline answers with the backend's status, and there is no backend: the client's own counts.
        while self.pipeline.next_due().is_some() {}
        self.down.say(|out| compose::ready_for_query(out, status));
    }

    fn refuse_lost(&mut self, ready: bool) {
        let report = self
            .lost
            .as_mut()
            .and_then(|lost| lost.first_refusal.take())
            .unwrap_or_else(failed_transaction);
        self.down.say(|out| compose::report(out, &report));
        if ready {
            self.down
                .say(|out| compose::ready_for_query(out, TransactionStatus::Failed));
        } else {
            self.pipeline.refuse_until_sync();
        }
    }

    fn say_rollback(&mut self) {
        let mut tag = BytesMut::new();
        compose::frame(&mut tag, BackendTag::CommandComplete.byte(), &[b"ROLLBACK\0"]);
        self.down.say(|out| out.extend_from_slice(&tag));
    }
}

/// ROLLBACK, ABORT, COMMIT and END leave a failed block; ROLLBACK TO can't, because its savepoint is gone.
fn ends_block(sql: &[u8], parties: &Parties<'_>) -> bool {
    let effects = classify(sql, parties.session.lexing(), &parties.rules.suspects);
    effects.exits_failed_block && effects.ends_transaction && effects.statement_count == 1
}
