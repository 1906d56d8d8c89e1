//! `pool.defer_begin`: a BEGIN is answered by us, and sent together with the first statement behind it.
//!
//! Meanwhile no backend is held, and the client is inside a transaction block for everyone but PostgreSQL. The BEGIN travels as
//! a group of the extended protocol without a Sync: if PostgreSQL refuses it, it throws away what follows up to a Sync, a Query
//! too (manual: protocol-flow-ext-query). So whatever stands behind it in the same write is never run outside the block that its
//! client believes to be in, and what would follow the first Sync waits for PostgreSQL's word.

use bytes::{Bytes, BytesMut};

use super::ledger_answers::Group;
use super::lost_transaction::LostTransaction;
use super::to_backend::Next;
use super::{Exchange, Outcome, Parties};
use crate::protocol::pipeline::{Fate, Request};
use crate::virtual_session::statement_effects::Effects;
use crate::virtual_session::{Checkpoint, Note};
use crate::wire::backend_message::ReportFields;
use crate::wire::frontend_message::Query;
use crate::wire::{BackendTag, FrontendTag, Header, Report, compose};

/// The longest text that is looked at, in bytes.
const TEXT_LEN_MAX: usize = 128;

/// A BEGIN that the client was answered, until PostgreSQL has executed it.
#[derive(Debug)]
pub(super) struct DeferredBegin {
    text: Box<[u8]>,
    /// It was executed in the unnamed portal, which lasts as long as the transaction.
    leaves_portal: bool,
    /// It is on its way to PostgreSQL.
    is_sent: bool,
    /// A Sync was sent behind it: PostgreSQL would run what follows whatever has become of it.
    is_synced: bool,
    /// The ledger before whatever is sent behind it.
    pub(super) before: Option<Checkpoint>,
}

// --- the answer ---

impl Exchange {
    /// Answers a Query, if it is a BEGIN that can't fail and may be sent later.
    pub(super) fn defer_query(&mut self, header: Header, parties: &mut Parties<'_>) -> Option<Next> {
        if !self.may_defer(parties) {
            return None;
        }
        let sql = Query::parse(self.up.whole_body(header)?).ok()?.sql;
        let tag = tag_of(sql)?;
        let text = sql.into();
        let ended = parties.session.forget_unnamed(None);
        self.defer(text, false);
        self.expect(Request::Query, Fate::Answer(command_complete(tag)), ended);
        self.up.skip(header);
        self.say_due();
        Some(Next::Done)
    }

    /// The same for the Parse at hand and what follows it up to its Sync, if all of it has arrived.
    pub(super) fn defer_group(&mut self, parties: &mut Parties<'_>) -> Option<Next> {
        if !self.may_defer(parties) {
            return None;
        }
        let group = Group::read(self.up.undecided(), tag_of).filter(|group| group.bound.is_none())?;
        let effects = self.classify(group.parse.sql, parties);
        let unnamed = parties.session.parse_unnamed_unsent(group.parse.definition, effects);
        let (tag, len, text) = (group.text, group.len, group.parse.sql.into());
        let described = group.is_described.then(|| {
            let mut words = BytesMut::new();
            compose::bare_backend(&mut words, BackendTag::NoData);
            words.freeze()
        });
        self.defer(text, true);
        self.say_group(unnamed, described, command_complete(tag), Bytes::new());
        self.skip_messages(len);
        Some(Next::Done)
    }

    /// The client is between transactions, holds nothing, and hears nothing that would have to wait for their end.
    fn may_defer(&self, parties: &Parties<'_>) -> bool {
        parties.rules.defers_begin
            && self.lease.is_none()
            && self.lost.is_none()
            && self.deferred.is_none()
            && self.pipeline.is_settled()
            && parties.subscription.is_none()
            && parties.session.pins().is_empty()
            && !parties.session.is_in_doubt()
    }

    fn defer(&mut self, text: Box<[u8]>, leaves_portal: bool) {
        self.deferred = Some(Box::new(DeferredBegin {
            text,
            leaves_portal,
            is_sent: false,
            is_synced: false,
            before: None,
        }));
        self.pipeline.begin_unsent();
        let now = std::time::Instant::now();
        self.transaction_since = Some(now);
        self.answered_at = Some(now);
        self.tally.queries += 1;
    }

    /// What was sent behind it has reached nobody, and is to be sent to another backend.
    pub(super) fn defer_again(&mut self) {
        if let Some(begin) = self.deferred.as_mut() {
            (begin.is_sent, begin.is_synced, begin.before) = (false, false, None);
            self.pipeline.begin_unsent();
        }
    }
}

// --- what follows it ---

impl Exchange {
    /// One message behind a BEGIN that no backend knows of: it takes one, unless it has nothing to say to it.
    pub(super) fn on_message_behind_begin(
        &mut self,
        header: Header,
        tag: FrontendTag,
        parties: &mut Parties<'_>,
    ) -> Result<Next, Report> {
        let needs_backend = matches!(
            tag,
            FrontendTag::Query
                | FrontendTag::Parse
                | FrontendTag::Bind
                | FrontendTag::Describe
                | FrontendTag::Execute
                | FrontendTag::FunctionCall
        );
        if !needs_backend {
            if let Some(begin) = self.deferred.as_mut().filter(|_| tag == FrontendTag::Close) {
                begin.leaves_portal = false;
            }
            return self.on_message(header, tag, parties);
        }
        let is_incomplete = self.up.whole_body(header).is_none();
        Ok(
            match is_incomplete && header.body_len <= parties.rules.statement_bytes {
                true => Next::Wants(header.frame_len()),
                false => Next::NeedsBackend,
            },
        )
    }

    /// The backend at hand does not know of the client's BEGIN yet.
    pub(super) fn has_begin_to_send(&self) -> bool {
        self.deferred.as_ref().is_some_and(|begin| !begin.is_sent)
    }

    /// Sends the BEGIN ahead of the message at hand. That waits for its success where a Sync of ours may come in between.
    pub(super) fn before_message_behind_begin(
        &mut self,
        effects: Option<&Effects>,
        parties: &Parties<'_>,
    ) -> Option<Next> {
        let begin = self.deferred.as_mut()?;
        if !begin.is_sent {
            begin.is_sent = true;
            begin.before = Some(parties.session.checkpoint());
            let text = begin.text.clone();
            match begin.leaves_portal {
                true => self.say_begin_as_said(&text, parties),
                false => self.inject(&text),
            }
            self.pipeline.begin_sent();
        }
        let may_sync = effects.is_some_and(|effects| effects.statement_count != 1 && !effects.is_none());
        may_sync.then(|| self.await_replies())
    }

    /// As the unnamed statement that it was, which the client may yet use, in the unnamed portal.
    fn say_begin_as_said(&mut self, text: &[u8], parties: &Parties<'_>) {
        if let Some(lease) = self.lease.as_mut() {
            parties.session.unnamed_for(&mut lease.state);
        }
        self.up.say(|out| {
            compose::parse(out, b"", &[text, b"\0\0\0"].concat());
            compose::frame(out, FrontendTag::Bind.byte(), &[&[0; 8]]);
            compose::frame(out, FrontendTag::Execute.byte(), &[&[0; 5]]);
        });
        for request in [Request::Parse, Request::Bind, Request::Execute] {
            self.expect(request, Fate::Swallow, Note::None);
        }
    }

    /// A Sync ends what PostgreSQL would throw away if it refused the BEGIN.
    pub(super) fn note_sync_behind_begin(&mut self, fate: &Fate) {
        if let Some(begin) = self.deferred.as_mut() {
            begin.is_synced |= begin.is_sent && !matches!(fate, Fate::Answer(_));
        }
    }

    /// What follows that Sync waits until PostgreSQL has begun the transaction.
    pub(super) fn awaits_begin(&self) -> bool {
        self.deferred.as_ref().is_some_and(|begin| begin.is_synced)
    }
}

// --- what becomes of it ---

impl Exchange {
    /// What PostgreSQL executes or refuses next is the BEGIN.
    pub(super) fn is_begin_owed(&self) -> bool {
        !self.prelude_owed && self.deferred.as_ref().is_some_and(|begin| begin.is_sent)
    }

    /// PostgreSQL has executed the BEGIN.
    pub(super) fn begin_answered(&mut self) {
        self.deferred = None;
        self.pipeline.begun();
    }

    /// PostgreSQL has refused the BEGIN, and thrown away what was sent behind it.
    pub(super) fn refused_begin(&mut self, header: Header) -> Outcome {
        let body = self.down.whole_body(header).unwrap_or_default();
        match ReportFields::parse(body).map(|fields| fields.to_report()) {
            Ok(report) => Outcome::PreludeFailed(Box::new(report)),
            Err(_) => self.lost_backend("it refused a BEGIN"),
        }
    }

    /// No backend could be had for the first statement: the transaction has failed, as that statement will be told.
    pub(super) fn lose_deferred(&mut self, report: Report) {
        self.deferred = None;
        self.pipeline.abandon();
        self.lost = Some(LostTransaction::untold(report));
    }
}

fn command_complete(tag: &[u8]) -> Bytes {
    let mut words = BytesMut::new();
    compose::frame(&mut words, BackendTag::CommandComplete.byte(), &[tag, b"\0"]);
    words.freeze()
}

/// The command tag of a text that begins a transaction and can't fail. On a standby READ WRITE and SERIALIZABLE do.
fn tag_of(text: &[u8]) -> Option<&'static [u8]> {
    if text.len() > TEXT_LEN_MAX || !matches!(text.trim_ascii_start().first()?, b'b' | b'B' | b's' | b'S') {
        return None;
    }
    let lower = text.to_ascii_lowercase();
    let lower = lower.trim_ascii_end();
    let lower = lower.strip_suffix(b";").unwrap_or(lower);
    let is_known = |byte: &u8| byte.is_ascii_alphabetic() || byte.is_ascii_whitespace() || *byte == b',';
    if !lower.iter().all(is_known) {
        return None;
    }
    let mut modes = lower.split(|byte| *byte == b',');
    let words: Vec<&[u8]> = words_of(modes.next()?).collect();
    let (tag, first): (&[u8], &[&[u8]]) = match words.as_slice() {
        [b"begin", b"work" | b"transaction", rest @ ..] | [b"begin", rest @ ..] => (b"BEGIN", rest),
        [b"start", b"transaction", rest @ ..] => (b"START TRANSACTION", rest),
        _ => return None,
    };
    let mut others = modes.map(words_of).peekable();
    let has_others = others.peek().is_some();
    let is_harmless = |mode: &[&[u8]]| !mode.is_empty() && are_harmless(mode);
    let are_harmless = match has_others {
        true => is_harmless(first) && others.all(|words| is_harmless(&words.collect::<Vec<_>>())),
        false => are_harmless(first),
    };
    are_harmless.then_some(tag)
}

fn words_of(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// Modes, with or without commas between them, that any server takes.
fn are_harmless(mut words: &[&[u8]]) -> bool {
    while !words.is_empty() {
        words = match words {
            [
                b"isolation",
                b"level",
                b"read",
                b"committed" | b"uncommitted",
                rest @ ..,
            ]
            | [b"isolation", b"level", b"repeatable", b"read", rest @ ..]
            | [b"read", b"only", rest @ ..]
            | [b"not", b"deferrable", rest @ ..]
            | [b"deferrable", rest @ ..] => rest,
            _ => return false,
        };
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_begin_that_can_not_fail_is_recognised_with_its_tag() {
        for text in [
            "BEGIN",
            " begin ;\n",
            "BEGIN WORK;",
            "BEGIN TRANSACTION",
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY DEFERRABLE",
            "begin transaction isolation level read committed, read only, not deferrable",
            "BEGIN READ ONLY",
        ] {
            assert_eq!(tag_of(text.as_bytes()), Some(&b"BEGIN"[..]), "{text}");
        }
        for text in [
            "START TRANSACTION",
            "start\ttransaction isolation level read uncommitted;",
        ] {
            assert_eq!(tag_of(text.as_bytes()), Some(&b"START TRANSACTION"[..]), "{text}");
        }
    }

    #[test]
    fn what_may_fail_or_says_more_is_not() {
        for text in [
            "",
            "BEGINNING",
            "BEGIN;;",
            "BEGIN; SELECT 1",
            "BEGIN -- why",
            "BEGIN /* why */",
            "BEGIN READ WRITE",
            "BEGIN ISOLATION LEVEL SERIALIZABLE",
            "BEGIN ISOLATION LEVEL",
            "BEGIN ISOLATION LEVEL 'read committed'",
            "BEGIN READ ONLY, READ WRITE",
            "BEGIN, READ ONLY",
            "BEGIN READ ONLY,",
            "BEGIN READ ONLY,, DEFERRABLE",
            "BEGIN NOT",
            "BEGIN WORK TRANSACTION",
            "START",
            "START WORK",
            "START TRANSACTION; COMMIT",
            "SAVEPOINT a",
            "BEGIN\u{b}",
        ] {
            assert_eq!(tag_of(text.as_bytes()), None, "{text}");
        }
        let long = format!("BEGIN{}", " READ ONLY".repeat(20));
        assert_eq!(tag_of(long.as_bytes()), None);
    }
}
