//! "cached plan must not change result type": a statement's columns have changed since it was parsed (trap 31).
//!
//! PostgreSQL refuses such a statement to whoever prepared it before the change. Sharing must neither spread that error
//! to clients that prepared it later or never asked for its columns, nor hide it from one that was told other columns.
//! The first are served by parsing it again, in a second try where PostgreSQL was the first to know; the second are
//! refused in PostgreSQL's words, whatever the backend at hand would return.

use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

use super::flow::Flow;
use super::to_client::READ_LEN_MAX;
use super::{Exchange, Parties};
use crate::protocol::pipeline::{Action, Fate, Request, Verdict};
use crate::virtual_session::result_shape::ResultShape;
use crate::virtual_session::statements::Statement;
use crate::virtual_session::{Described, Note, Reread};
use crate::wire::{BackendTag, FrontendTag, HEADER_LEN, Header, compose};

/// What drivers look for is the code and the name of the function, which are not translated.
const REFUSAL: &[u8] = b"SERROR\0VERROR\0C0A000\0Mcached plan must not change result type\0RRevalidateCachedQuery\0\0";

/// Whether a group can begin again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum SecondTry {
    /// Something of it was answered, or it does not begin with a shared statement.
    #[default]
    No,
    /// Its first statement was not answered yet, and its messages are kept.
    Possible,
    /// It begins again now.
    Due,
}

impl SecondTry {
    /// The client has been told something: what was kept for a second try is not needed.
    pub(super) fn first_was_answered(&mut self, up: &mut Flow) {
        if *self == Self::Possible {
            *self = Self::No;
            up.keep_nothing();
        }
    }
}

/// A portal, and the statement that it was bound to.
#[derive(Debug, Clone, Copy)]
pub(super) struct UntoldPortal {
    /// The hash of its name.
    portal: u64,
    statement: Described,
}

/// What stands behind the description of a statement's parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ColumnsBehind {
    /// Nothing that concerns a second try.
    Told,
    /// It is known when this many bytes have arrived.
    Unread(usize),
    /// The error that leads to a second try: the parameters are told with that.
    Stale,
}

/// What a backend returns beside what the client was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Columns {
    /// The same, or the client was told nothing.
    Agree,
    Differ,
    /// PostgreSQL was asked.
    Unknown,
}

impl Exchange {
    /// The message at hand begins a group with a shared statement: it is kept until that is answered.
    pub(super) fn allow_second_try(&mut self) {
        self.up.keep();
        self.second_try = SecondTry::Possible;
    }

    /// The group is answered, or over.
    pub(super) fn forget_second_try(&mut self) {
        self.second_try = SecondTry::No;
        self.up.keep_nothing();
    }

    /// The same once the first of the client's own requests was answered.
    pub(super) fn note_first_answer(&mut self, verdict: &Verdict<Note>) {
        let first = matches!(verdict.completed, Some((Request::Bind | Request::DescribeStatement, _)));
        if first && verdict.action == Action::Forward {
            self.second_try.first_was_answered(&mut self.up);
        }
    }

    /// PostgreSQL calls the statement at the head stale. True when the group begins again, unseen by the client: nothing
    /// of it has run, nothing of it was answered, and nothing was sent behind it.
    pub(super) fn on_stale_plan(&mut self, parties: &mut Parties<'_>) -> bool {
        let id = match self.pipeline.head_note() {
            Some(Note::Bound(id)) => *id,
            Some(Note::Reread(reread, _)) => reread.id,
            Some(Note::Described(described)) => described.id,
            _ => {
                self.note_stale_names(parties);
                return false;
            }
        };
        self.note_stale_names(parties);
        if let Some(lease) = self.lease.as_mut() {
            parties.session.note_stale(id, &mut lease.state);
        }
        if std::mem::take(&mut self.second_try) != SecondTry::Possible || !self.up.can_say_again() {
            return false;
        }
        let Some(synced) = self.pipeline.fails_alone() else {
            return false;
        };
        self.pipeline.abandon();
        self.undo_dropped(parties);
        if !synced {
            self.up.say(|out| compose::bare_frontend(out, FrontendTag::Sync));
        }
        self.expect(Request::Sync, Fate::Swallow, Note::None);
        self.up.say_again();
        self.second_try = SecondTry::Due;
        true
    }

    /// The client's messages are to be looked at again, though nothing has arrived.
    pub(super) fn take_second_try(&mut self) -> bool {
        let due = self.second_try == SecondTry::Due;
        if due {
            self.second_try = SecondTry::No;
        }
        due
    }

    /// PostgreSQL tells a statement's parameters before it refuses to tell its columns. Where that may lead to a second
    /// try, the first waits for the second.
    pub(super) fn columns_behind(&self, header: Header) -> ColumnsBehind {
        if header.tag != BackendTag::ParameterDescription.byte() || self.second_try != SecondTry::Possible {
            return ColumnsBehind::Told;
        }
        let behind = self.down.undecided().get(header.frame_len()..).unwrap_or_default();
        let next = match Header::peek(behind) {
            Ok(Some(next)) => next,
            Ok(None) => return ColumnsBehind::Unread(header.frame_len() + HEADER_LEN),
            Err(_) => return ColumnsBehind::Told,
        };
        if next.tag != BackendTag::ErrorResponse.byte() || next.frame_len() > READ_LEN_MAX {
            return ColumnsBehind::Told;
        }
        match behind.get(..next.frame_len()) {
            Some(report) if is_of_a_stale_plan(report) => ColumnsBehind::Stale,
            Some(_) => ColumnsBehind::Told,
            None => ColumnsBehind::Unread(header.frame_len() + next.frame_len()),
        }
    }

    /// Compares what the client was told of a statement with what its backend returns.
    /// Where PostgreSQL must be asked, that is the use by which it reads the text again, if it does.
    pub(super) fn compare_columns(
        &mut self,
        statement: &Arc<Statement>,
        told: Option<ResultShape>,
        reread: &mut Option<Reread>,
    ) -> Columns {
        // In a failed transaction PostgreSQL refuses whatever it is.
        let Some(told) = told.filter(|told| told.has_rows() && !self.pipeline.is_failed()) else {
            return Columns::Agree;
        };
        let Some(lease) = &self.lease else {
            return Columns::Agree;
        };
        match lease.state.statements.shape(statement) {
            Some(shape) if shape == told => Columns::Agree,
            Some(_) => Columns::Differ,
            None => {
                let described = Described {
                    id: statement.id,
                    told: 0,
                };
                self.up
                    .say(|out| compose::frame(out, FrontendTag::Describe.byte(), &[b"S", &statement.name, b"\0"]));
                let note = Note::Described(described).rereading(reread.take());
                self.expect(Request::DescribeStatement, Fate::Swallow, note);
                Columns::Unknown
            }
        }
    }

    /// What PostgreSQL would say, if this were the backend that the client prepared its statement on. It must refuse
    /// something for it: a name that it does not know, which the caller sends.
    pub(super) fn expect_stale_refusal(&mut self, request: Request, note: Note) {
        let mut words = bytes::BytesMut::new();
        compose::frame(&mut words, BackendTag::ErrorResponse.byte(), &[REFUSAL]);
        self.expect(request, Fate::Substitute(*b"26000", words.freeze()), note);
    }

    /// A portal is bound to a statement that the client has given a name of this number: if it is described, so is that.
    pub(super) fn note_portal(&mut self, portal: &[u8], id: u64, number: u64) {
        self.untold_portal = Some(UntoldPortal {
            portal: hash(portal),
            statement: Described { id, told: number },
        });
    }

    /// The note of a portal's Describe.
    pub(super) fn portal_note(&mut self, portal: &[u8]) -> Note {
        match self.untold_portal.take_if(|untold| untold.portal == hash(portal)) {
            Some(untold) => Note::Described(untold.statement),
            None => Note::None,
        }
    }

    /// A description has come that somebody must remember.
    pub(super) fn note_columns(&mut self, described: Described, shape: ResultShape, parties: &mut Parties<'_>) {
        if let Some(lease) = self.lease.as_mut() {
            parties.session.described(described, shape, &mut lease.state);
        }
    }
}

fn hash(name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(name);
    hasher.finish()
}

/// "cached plan must not change result type", by the name of the function that says so, which is not translated.
pub(super) fn is_of_a_stale_plan(body: &[u8]) -> bool {
    const ROUTINE: &[u8] = b"RRevalidateCachedQuery\0";
    body.windows(ROUTINE.len()).any(|window| window == ROUTINE)
}
