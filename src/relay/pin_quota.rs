//! Statements that would keep one backend more than `pool.max_pinned`: PostgreSQL is given something to refuse in their
//! place, so that the client's transaction fails as it would for any error, and the client reads why.

use bytes::{Bytes, BytesMut};

use super::to_backend::Next;
use super::unreported::following;
use super::{Exchange, Parties};
use crate::config::PoolMode;
use crate::error;
use crate::protocol::pipeline::{Fate, Request};
use crate::virtual_session::pins::{PinReason, PinSet};
use crate::virtual_session::statement_effects::Effects;
use crate::wire::backend_message::TransactionStatus;
use crate::wire::{FrontendTag, Header, compose};

/// PostgreSQL's word for a statement that does not exist.
const UNKNOWN_STATEMENT: [u8; 5] = *b"26000";

impl Exchange {
    /// What becomes of a message whose statement has these effects, if it may not be sent as it is.
    pub(super) fn before_pinning(
        &mut self,
        header: Header,
        request: Request,
        effects: &Effects,
        parties: &mut Parties<'_>,
    ) -> Option<Next> {
        if effects.pins.is_empty() && effects.steps.is_empty() || !self.has_quota(parties) {
            return None;
        }
        let lease = self.lease.as_ref()?;
        let follows = following(lease.is_dedicated(), parties.rules, parties.neutral);
        let mut pins = parties.session.would_pin(effects, &lease.state, follows);
        if self.would_leave_to_backend(header, request, effects, parties) {
            pins.insert(PinReason::Prepare);
        }
        if effects.listens() && self.would_listen_natively(effects, parties) {
            pins.insert(PinReason::Listen);
        }
        self.before_pinning_for(header, request, pins, parties)
    }

    /// The same for a message that pins for a reason which no text tells.
    pub(super) fn before_pinning_for(
        &mut self,
        header: Header,
        request: Request,
        pins: PinSet,
        parties: &mut Parties<'_>,
    ) -> Option<Next> {
        let reason = pins.counted().iter().next().filter(|_| self.has_quota(parties))?;
        let limit = parties.rules.max_pinned?;
        let is_failed = self.pipeline.status() == TransactionStatus::Failed;
        if is_failed && !self.pipeline.is_quiet() {
            // Whether PostgreSQL would run it is known with the replies.
            return Some(self.await_replies());
        }
        if self.lease.as_mut()?.may_be_pinned(limit) {
            return None;
        }
        let report = match is_failed {
            true => error::failed_transaction(),
            false => error::too_many_pinned(limit, reason.label()),
        };
        if !is_failed {
            self.refused_pin = Some(reason);
        }
        let mut words = BytesMut::new();
        compose::report(&mut words, &report);
        self.refuse_unseen(header, request, words.freeze(), parties);
        Some(Next::Done)
    }

    /// Whether the client's pins are bounded, and it has none yet.
    fn has_quota(&self, parties: &Parties<'_>) -> bool {
        parties.rules.max_pinned.is_some()
            && parties.rules.mode != PoolMode::Session
            && parties.session.pins().counted().is_empty()
    }

    /// The message is thrown away, and PostgreSQL refuses one of ours in its place.
    fn refuse_unseen(&mut self, header: Header, request: Request, words: Bytes, parties: &mut Parties<'_>) {
        let unknown = parties.session.unused_name();
        let fate = Fate::Substitute(UNKNOWN_STATEMENT, words);
        if matches!(request, Request::Query | Request::FunctionCall) {
            self.restore_due |= std::mem::take(&mut self.restore_bound);
            self.begin_round(parties);
            let backend = self.lease.as_mut().map(|lease| &mut lease.state);
            let ended = parties.session.forget_unnamed(backend);
            self.up
                .say(|out| compose::query(out, &[b"DEALLOCATE ", unknown.as_slice()].concat()));
            self.expect(Request::Query, fate, ended.reporting(parties.session.unreported()));
            self.tally.queries += 1;
        } else {
            self.up
                .say(|out| compose::frame(out, FrontendTag::Bind.byte(), &[b"\0", &unknown, &[0; 7]]));
            self.expect(Request::Bind, fate, crate::virtual_session::Note::None);
        }
        self.up.skip(header);
    }
}
