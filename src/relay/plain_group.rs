//! Whole groups that are plain, as nearly all are: seen in one look, sent in one piece, and answered in one look.
//!
//! A shorter way to what the rules of [`super::to_backend`] and [`super::to_client`] come to, message by message, where
//! none of them has anything to see to: the exchange is new but for groups like this, the ledger is undisturbed, the
//! backend agrees, the client has said one group and no byte more, and what that does is known to be nothing. Whatever is
//! not as plain as that goes the long way, from its first byte: nothing is touched before all is known.

use std::sync::Arc;
use std::time::Instant;

use super::extended_query::renamed_behind;
use super::to_backend::Scan;
use super::{Exchange, Finished, Parties};
use crate::metrics::SessionTally;
use crate::pool::Lease;
use crate::protocol::pipeline::Request;
use crate::virtual_session::statement_effects::SequenceUse;
use crate::virtual_session::statements::Statement;
use crate::virtual_session::{BackendState, Note, VirtualSession};
use crate::wire::frontend_message::Parse;
use crate::wire::{FrontendTag, HEADER_LEN, Header};

/// What the client has said, if it is one group of these forms and nothing else.
#[derive(Debug, PartialEq, Eq)]
enum Group<'b> {
    /// One Query.
    Query(&'b [u8]),
    /// Parse and use of the unnamed statement, by the unnamed portal.
    Unnamed { parse: Parse<'b>, is_described: bool },
    /// Use of a statement by its name, by the unnamed portal. The Bind has this length in all.
    Named {
        name: &'b [u8],
        bind_len: usize,
        is_described: bool,
    },
}

impl<'b> Group<'b> {
    /// Reads it off whole messages; `None` where they are something else, or more, or incomplete.
    fn read(bytes: &'b [u8], text_len_max: usize) -> Option<Self> {
        match bytes.first()? {
            b'Q' => {
                let (sql, behind) = frame(bytes)?;
                let sql = sql.strip_suffix(b"\0")?;
                let is_text = behind.is_empty() && sql.len() < text_len_max && memchr::memchr(0, sql).is_none();
                is_text.then_some(Self::Query(sql))
            }
            b'P' => {
                let (body, behind) = frame(bytes)?;
                let [b'B', ..] = behind else { return None };
                let ([0, 0, ..], behind) = frame(behind)? else {
                    return None;
                };
                let is_described = is_described_and_ends(behind)?;
                let parse = Parse::parse(body).ok()?;
                let is_unnamed = parse.name.is_empty() && body.len() <= text_len_max;
                is_unnamed.then_some(Self::Unnamed { parse, is_described })
            }
            b'B' => {
                let ([0, names @ ..], behind) = frame(bytes)? else {
                    return None;
                };
                let is_described = is_described_and_ends(behind)?;
                let name = names.get(..names.iter().position(|&byte| byte == 0)?)?;
                (!name.is_empty()).then_some(Self::Named {
                    name,
                    bind_len: bytes.len() - behind.len(),
                    is_described,
                })
            }
            _ => None,
        }
    }
}

/// The body of the first message, and what stands behind it.
#[inline]
fn frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&[_, a, b, c, d], _) = bytes.split_first_chunk::<HEADER_LEN>()?;
    let end = (u32::from_be_bytes([a, b, c, d]) as usize).checked_add(1)?;
    let (frame, behind) = bytes.split_at_checked(end)?;
    Some((frame.get(HEADER_LEN..)?, behind))
}

/// The rest of a group behind its Bind, `[Describe] Execute Sync` of the unnamed portal: whether it is described.
#[inline]
fn is_described_and_ends(bytes: &[u8]) -> Option<bool> {
    let (is_described, bytes) = match bytes {
        [b'D', 0, 0, 0, 6, b'P', 0, behind @ ..] => (true, behind),
        _ => (false, bytes),
    };
    matches!(bytes, [b'E', 0, 0, 0, 9, 0, _, _, _, _, b'S', 0, 0, 0, 4]).then_some(is_described)
}

/// A CommandComplete that nobody acts on: of one of the commands that nearly all are.
pub(super) fn is_plain_tag(body: &[u8]) -> bool {
    const PLAIN: [&[u8; 3]; 6] = [b"SEL", b"INS", b"UPD", b"DEL", b"BEG", b"COM"];
    body.first_chunk().is_some_and(|tag| PLAIN.contains(&tag))
}

// --- the client's groups ---

impl Exchange {
    /// Decides on all that the client has said at once, if that is a plain group. `None`: nothing was decided, and nothing
    /// changed.
    pub(super) fn pass_plain_group(&mut self, parties: &mut Parties<'_>) -> Option<Scan> {
        let group = Group::read(self.up.whole_messages()?, parties.rules.statement_bytes)?;
        if parties.subscription.is_some() || !parties.session.is_undisturbed() || !self.pipeline.is_settled() {
            return None;
        }
        let lexing = parties.session.lexing();
        let fingerprint = parties.rules.pool.knowledge().suspects_fingerprint();
        let known = |sql: &[u8]| self.known_texts.known(sql, lexing, fingerprint);
        let effects = match &group {
            Group::Query(sql) => self.known_texts.known_query(sql, lexing, fingerprint)?,
            Group::Unnamed { parse, .. } => known(parse.sql)?,
            // Whatever the name stands for.
            Group::Named { .. } if self.lease.is_none() => return Some(Scan::NeedsBackend),
            Group::Named { name, .. } => &parties.session.named(name)?.statement.effects,
        };
        let writes = !effects.is_read_only_shape;
        if !effects.is_plain() || effects.suspects != fingerprint || (writes && parties.rules.pool.has_listeners()) {
            return None;
        }
        let Some(lease) = self.lease.as_mut() else {
            return Some(Scan::NeedsBackend);
        };
        if !parties.session.is_followed_by(&lease.state) {
            return None;
        }
        match group {
            Group::Query(sql) => {
                lease.note_statement(sql, lexing);
                let note = parties.session.forget_unnamed(Some(&mut lease.state));
                self.unsure.begin(&note);
                self.pipeline.expect_group(&[Request::Query], note);
                self.up.pass_all();
            }
            Group::Unnamed { parse, is_described } => {
                lease.note_statement(parse.sql, lexing);
                let effects = effects.clone();
                let note = parties
                    .session
                    .parse_unnamed(parse.definition, effects, &mut lease.state);
                self.unsure.begin(&note);
                self.unsure.next_group();
                self.pipeline.expect_group(parse_and_use(is_described), note);
                self.up.pass_all();
            }
            Group::Named {
                name,
                bind_len,
                is_described,
            } => {
                let statement = agreed_statement(name, &mut lease.state, parties.session)?;
                lease.note_statement(statement.sql(), lexing);
                let old_len = name.len();
                self.allow_second_try();
                self.pipeline
                    .expect_group(use_of_a_name(is_described), Note::Bound(statement.id));
                let bind = Header {
                    tag: FrontendTag::Bind.byte(),
                    body_len: bind_len - HEADER_LEN,
                };
                self.up.pass_all_behind(HEADER_LEN + 1 + old_len, |out| {
                    renamed_behind(out, bind, old_len, &[b"\0"], &statement.name);
                });
            }
        }
        self.request_begins();
        if writes {
            self.commit_at_risk = true;
            self.note_may_notify(false, SequenceUse::None, parties);
        }
        self.tally.queries += 1;
        Some(Scan::Wants(0))
    }
}

const fn parse_and_use(is_described: bool) -> &'static [Request] {
    use Request::{Bind, DescribePortal, Execute, Parse, Sync};
    match is_described {
        true => &[Parse, Bind, DescribePortal, Execute, Sync],
        false => &[Parse, Bind, Execute, Sync],
    }
}

const fn use_of_a_name(is_described: bool) -> &'static [Request] {
    use Request::{Bind, DescribePortal, Execute, Sync};
    match is_described {
        true => &[Bind, DescribePortal, Execute, Sync],
        false => &[Bind, Execute, Sync],
    }
}

// --- between them ---

impl Exchange {
    /// As new, where nothing but plain groups has passed: what they touch, and what the session does.
    pub(super) fn recycle_plain(&mut self) {
        self.up.recycle();
        self.down.recycle();
        self.sent_to_backend = 0;
        self.commit_at_risk = false;
        self.ends_at_boundary = false;
        self.tally = SessionTally::default();
        self.tallied_at = None;
        self.query_since = None;
        self.transaction_since = None;
        self.answered_at = None;
        self.cancel_sent_at = None;
        self.stalled_since = None;
        self.finished = Finished::default();
        #[cfg(debug_assertions)]
        {
            let plain = format!("{self:?}");
            self.recycle_all();
            debug_assert_eq!(plain, format!("{self:?}"), "nothing but plain groups has passed");
        }
    }
}

/// The statement that a name stands for, if the backend holds it as the client knows it, and would parse it so now.
fn agreed_statement(name: &[u8], backend: &mut BackendState, session: &VirtualSession) -> Option<Arc<Statement>> {
    let named = session.named(name)?;
    let (statement, told) = (&named.statement, named.told?);
    if statement.is_from_sql() || session.is_parsed_under_others(statement) {
        return None;
    }
    let shape = backend.statements.touch_with_shape(statement, session.generation())?;
    (!told.has_rows() || shape == Some(told)).then(|| Arc::clone(statement))
}

// --- PostgreSQL's replies ---

impl Exchange {
    /// Decides on all that PostgreSQL has said at once, if that is the plain end of all that it was asked: whole replies and
    /// its ReadyForQuery, idle. False: nothing was decided, and nothing changed.
    pub(super) fn pass_plain_replies(&mut self, parties: &mut Parties<'_>) -> bool {
        let Some(frames) = self.down.whole_messages() else {
            return false;
        };
        if !self.pipeline.are_answered_by(frames, is_plain_tag) {
            return false;
        }
        let is_told_of =
            |lease: &Lease| Arc::ptr_eq(parties.neutral, lease.neutral_parameters()) && !lease.has_reported();
        if parties.subscription.is_some()
            || !parties.session.is_undisturbed()
            || !self.lease.as_ref().is_some_and(is_told_of)
        {
            return false;
        }
        if let Some(note @ Note::ChangedUnnamed(_)) = self.pipeline.settle() {
            self.unsure.end(&note);
        }
        self.forget_second_try();
        self.listens.may_notify = false;
        self.commit_at_risk = false;
        let now = Instant::now();
        self.answered_at = Some(now);
        self.cancel_sent_at = None;
        let (query, transaction) = (self.query_since.take(), self.transaction_since.take());
        self.finished.query = query.map(|since| now - since);
        self.finished.transaction = match transaction == query {
            true => self.finished.query,
            false => transaction.map(|since| now - since),
        };
        self.tally.transactions += 1;
        self.down.pass_all();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(messages: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = bytes::BytesMut::new();
        for (tag, body) in messages {
            crate::wire::compose::frame(&mut bytes, *tag, &[body]);
        }
        bytes.to_vec()
    }

    const PARSE: (u8, &[u8]) = (b'P', b"\0SELECT 1\0\0\0");
    const BIND: (u8, &[u8]) = (b'B', b"\0\0\0\0\0\0\0\0");
    const BIND_NAME: (u8, &[u8]) = (b'B', b"\0name\0\0\0\0\0\0\0");
    const DESCRIBE: (u8, &[u8]) = (b'D', b"P\0");
    const EXECUTE: (u8, &[u8]) = (b'E', b"\0\0\0\0\0");
    const SYNC: (u8, &[u8]) = (b'S', b"");
    const QUERY: (u8, &[u8]) = (b'Q', b"SELECT 1\0");

    #[test]
    fn whole_groups_of_unnamed_portals_are_read() {
        assert_eq!(Group::read(&group(&[QUERY]), 99), Some(Group::Query(b"SELECT 1")));
        for (is_described, behind) in [(true, &[DESCRIBE, EXECUTE, SYNC][..]), (false, &[EXECUTE, SYNC])] {
            let bytes = group(&[&[PARSE, BIND], behind].concat());
            let parse = Parse::parse(PARSE.1).unwrap();
            assert_eq!(Group::read(&bytes, 99), Some(Group::Unnamed { parse, is_described }));
            let bytes = group(&[&[BIND_NAME], behind].concat());
            let (name, bind_len) = (&b"name"[..], BIND_NAME.1.len() + HEADER_LEN);
            let named = Group::Named {
                name,
                bind_len,
                is_described,
            };
            assert_eq!(Group::read(&bytes, 99), Some(named));
        }
    }

    #[test]
    fn anything_else_is_not() {
        let other: [&[(u8, &[u8])]; 21] = [
            &[],
            &[SYNC],
            &[EXECUTE, SYNC],
            &[PARSE],
            &[PARSE, SYNC],
            &[PARSE, BIND, SYNC],
            &[PARSE, BIND, EXECUTE],
            &[PARSE, BIND_NAME, EXECUTE, SYNC],
            &[PARSE, BIND, EXECUTE, SYNC, SYNC],
            &[PARSE, PARSE, BIND, EXECUTE, SYNC],
            &[PARSE, BIND, DESCRIBE, DESCRIBE, EXECUTE, SYNC],
            // The unnamed statement of before.
            &[BIND, EXECUTE, SYNC],
            &[BIND_NAME, EXECUTE, (b'H', b"")],
            &[BIND_NAME, (b'D', b"Sname\0"), EXECUTE, SYNC],
            &[BIND_NAME, (b'E', b"portal\0\0\0\0\0"), SYNC],
            &[(b'B', b"portal\0name\0\0\0\0\0\0\0"), EXECUTE, SYNC],
            &[(b'B', b"\0name"), EXECUTE, SYNC],
            &[(b'P', b"name\0SELECT 1\0\0\0"), BIND, EXECUTE, SYNC],
            &[(b'P', b"\0SELECT 1\0\0\x01"), BIND, EXECUTE, SYNC],
            &[QUERY, QUERY],
            &[(b'Q', b"SELECT\x001\0")],
        ];
        for messages in other {
            assert_eq!(Group::read(&group(messages), 99), None, "{messages:?}");
        }
        assert_eq!(Group::read(&group(&[QUERY]), 8), None);
        assert_eq!(Group::read(&group(&[PARSE, BIND, EXECUTE, SYNC]), 8), None);
        assert_eq!(Group::read(b"Q\0\0\0\x03\0", 99), None);
    }

    #[test]
    fn a_group_that_has_not_arrived_whole_is_not() {
        for messages in [
            &[QUERY][..],
            &[PARSE, BIND, DESCRIBE, EXECUTE, SYNC],
            &[BIND_NAME, DESCRIBE, EXECUTE, SYNC],
        ] {
            let bytes = group(messages);
            assert!(Group::read(&bytes, 99).is_some());
            for len in 0..bytes.len() {
                assert_eq!(Group::read(&bytes[..len], 99), None, "{messages:?} {len}");
            }
        }
    }
}
