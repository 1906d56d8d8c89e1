//! LISTEN without a backend of one's own: the pool's listener hears, and the client is told between its transactions.
//!
//! The client's LISTEN runs on its backend all the same, in its transaction, so that PostgreSQL decides whether it may
//! and whether it commits. Before the message that may commit it is sent, the listener has to listen: what was committed
//! before that is not for the client, all after it is. The backend is told to stop before anyone else has it, and what
//! it hears itself meanwhile is thrown away. See decision 9.

use std::collections::VecDeque;
use std::task::{Context, Poll};

use super::to_backend::Next;
use super::{Exchange, Outcome, Parties};
use crate::config::PoolMode;
use crate::error;
use crate::pool::{Awaited, MayNotify, Notifying, Subscription};
use crate::protocol::Violation;
use crate::protocol::pipeline::{Fate, Request};
use crate::virtual_session::Note;
use crate::virtual_session::listening::{Channel, ListenStep, command};
use crate::virtual_session::pins::{PinReason, PinSet};
use crate::virtual_session::statement_effects::Effects;
use crate::wire::backend_message::{Notification, TransactionStatus};
use crate::wire::frontend_message::Execute;
use crate::wire::{HEADER_LEN, Header, Report, compose};

/// What tells a session's channels.
const SHOWN_BY: &[u8] = b"pg_listening_channels";

/// What is under way of a client's listening.
#[derive(Debug, Default)]
pub(super) struct ListenProgress {
    /// What the request under way does when its tags come.
    steps: VecDeque<ListenStep>,
    /// The request under way is one of those: what follows waits until it is answered.
    is_under_way: bool,
    /// The message at hand, as it will be sent.
    decided: Option<Decided>,
    /// Portals whose Execute does such a thing.
    portals: Vec<(Box<[u8]>, Vec<ListenStep>)>,
    /// The shared listener was asked, and has not answered.
    awaited: Option<Awaited>,
    /// It has, and nobody has looked yet. `None` inside: there is no listener.
    answered: Option<Option<u64>>,
    /// A round that began with the request that is under way.
    early: Option<Awaited>,
    /// The shared listener hears channels for the client whose LISTEN has not been decided on.
    has_asked: bool,
    /// The first notification that is heard of what commits now.
    since: u64,
    /// An error came since the last ReadyForQuery.
    pub(super) has_failed: bool,
    /// Whether it was asked that nobody be taken for another in the message at hand.
    senders: Senders,
    /// The transaction at hand may notify: if the client listens, it hears that first.
    pub(super) may_notify: bool,
    /// The same, while others listen who are to be told who did.
    notifier: Option<MayNotify>,
    /// A ReadyForQuery waits for the listener.
    is_holding_ready: bool,
    /// The client can't be told of everything.
    unheard: Option<Report>,
}

/// See [`ListenProgress::decided`].
#[derive(Debug)]
struct Decided {
    steps: Vec<ListenStep>,
    /// Its LISTEN is for the backend alone, which stays with the client.
    natively: bool,
}

/// Of a message that may notify: whether the listener has come back from a round trip for it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Senders {
    #[default]
    NotAsked,
    Asked,
    Known,
}

/// Whether the listener hears what a LISTEN adds.
enum Heard {
    Yes,
    No,
}

impl ListenProgress {
    /// Asks again for an answer that was awaited. True when it has come.
    pub(super) fn poll_awaited(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(awaited) = &mut self.awaited else {
            return false;
        };
        match awaited.poll(cx) {
            Poll::Pending => false,
            Poll::Ready(answer) => {
                self.awaited = None;
                self.answered = Some(answer);
                true
            }
        }
    }

    /// A ReadyForQuery waits for the listener: nothing more is read from the backend.
    pub(super) const fn is_holding_ready(&self) -> bool {
        self.is_holding_ready
    }

    /// A portal of this name is about to be another one.
    pub(super) fn forget_portal(&mut self, portal: &[u8]) {
        self.portals.retain(|(name, _)| **name != *portal);
    }

    /// The tags of commands are to be looked at.
    pub(super) fn watches_tags(&self) -> bool {
        !self.steps.is_empty()
    }
}

// --- the client's messages ---

impl Exchange {
    /// A message that changes what the client listens to is not answered yet: what follows it waits.
    pub(super) fn awaits_listening(&mut self, parties: &Parties<'_>) -> bool {
        if self.pipeline.is_quiet() {
            self.listens.is_under_way = false;
            return false;
        }
        // A later transaction's notifications would be told with this one's.
        let notifies = parties.subscription.is_some() && self.listens.may_notify && !self.pipeline.is_unsynced();
        (self.listens.is_under_way || notifies) && !self.pipeline.awaits_copy_data()
    }

    /// A statement may notify: whoever hears of it is to be told who did.
    pub(super) fn before_notifying(&mut self, effects: &Effects, parties: &Parties<'_>) -> Option<Next> {
        let pool = &parties.rules.pool;
        if !pool.has_listeners() || !effects.may_notify() {
            return None;
        }
        if self.listens.awaited.is_some() {
            return Some(Next::Held);
        }
        match self.listens.senders {
            Senders::NotAsked => {}
            Senders::Asked => {
                self.listens.answered = None;
                self.listens.senders = Senders::Known;
                return None;
            }
            Senders::Known => return None,
        }
        let listens = parties.subscription.is_some();
        if listens && self.pipeline.owed().0 > 0 {
            // An earlier transaction would be told of this one's.
            return Some(self.await_replies());
        }
        let lease = self.lease.as_ref().filter(|_| listens || effects.notifies)?;
        if !pool.is_sender_in_doubt(lease, listens) {
            return None;
        }
        self.listens.awaited = Some(pool.listeners_round());
        self.listens.senders = Senders::Asked;
        Some(Next::Held)
    }

    /// What may notify is being sent.
    pub(super) fn note_notifier(&mut self, notifies: bool, parties: &Parties<'_>) {
        self.listens.may_notify = true;
        self.listens.senders = Senders::NotAsked;
        if !parties.rules.pool.has_listeners() {
            return;
        }
        let how = match notifies {
            true => Notifying::Certainly,
            false => Notifying::Perhaps,
        };
        let is_known = |known: &MayNotify| known.how() >= how;
        if let Some(lease) = self
            .lease
            .as_ref()
            .filter(|_| !self.listens.notifier.as_ref().is_some_and(is_known))
        {
            // The old one ends first, and would end the new one's note.
            self.listens.notifier = None;
            self.listens.notifier = parties.rules.pool.may_notify(lease, how);
        }
    }

    /// A Query that has to do with listening is sent alone, and where it may commit a LISTEN only when the listener
    /// listens.
    pub(super) fn before_listening(
        &mut self,
        effects: &Effects,
        parties: &mut Parties<'_>,
    ) -> Result<Option<Next>, Report> {
        if parties.session.listening().is_none() && !effects.listens() {
            return Ok(None);
        }
        let pending = is_pending(parties);
        let Some(decided) = self.decide(effects, parties)? else {
            // It may end the implicit transaction of a LISTEN before it.
            return Ok(match pending && self.pipeline.status() == TransactionStatus::Idle {
                true => self.before_commit(Vec::new(), parties).err(),
                false => None,
            });
        };
        let commits =
            effects.listens() || effects.ends_transaction || self.pipeline.status() == TransactionStatus::Idle;
        Ok(self.hold_for(decided, commits, parties))
    }

    /// The same for an Execute.
    pub(super) fn before_execute(&mut self, header: Header, parties: &mut Parties<'_>) -> Option<Next> {
        if self.listens.portals.is_empty() {
            return None;
        }
        let Some(body) = self.up.whole_body(header) else {
            return Some(Next::Wants(header.frame_len()));
        };
        // PostgreSQL says what is wrong with one that can't be read.
        let portal = Execute::parse(body).ok()?.portal;
        let (_, steps) = self.listens.portals.iter().find(|(name, _)| **name == *portal)?;
        let steps = steps.clone();
        let commits = steps
            .iter()
            .any(|step| matches!(step, ListenStep::Listen(_) | ListenStep::End));
        let natively = false;
        self.hold_for(Decided { steps, natively }, commits, parties)
    }

    /// The same for a Sync, which commits what was not begun with BEGIN.
    pub(super) fn before_sync(&mut self, parties: &mut Parties<'_>) -> Option<Next> {
        let commits = is_pending(parties) && self.pipeline.status() == TransactionStatus::Idle;
        if commits {
            self.before_commit(Vec::new(), parties).err()
        } else {
            None
        }
    }

    /// The same for a Bind, whose portal is looked at when it is executed, and which ends with its transaction.
    pub(super) fn before_bind(&mut self, effects: &Effects, parties: &Parties<'_>) -> Option<Next> {
        let concerns = effects.listens() || (parties.session.listening().is_some() && !effects.is_none());
        (concerns && self.pipeline.owed().0 > 0).then(|| self.await_replies())
    }

    /// Whether a LISTEN of these effects would be the backend's own.
    pub(super) fn would_listen_natively(&self, effects: &Effects, parties: &Parties<'_>) -> bool {
        let decided = self.decide(effects, parties).ok().flatten();
        decided.is_none_or(|decided| decided.natively)
    }

    /// A portal was bound to a statement of these effects.
    pub(super) fn listening_bound(
        &mut self,
        portal: &[u8],
        effects: &Effects,
        parties: &mut Parties<'_>,
    ) -> Result<(), Report> {
        if parties.session.listening().is_none() && !effects.listens() {
            return Ok(());
        }
        if let Some(decided) = self.decide(effects, parties)? {
            if decided.natively {
                self.pin(PinReason::Listen, parties);
            }
            if !decided.steps.is_empty() {
                self.listens.portals.push((portal.into(), decided.steps));
            }
        }
        Ok(())
    }

    /// The message that was decided on is being sent.
    pub(super) fn listening_sent(&mut self, parties: &mut Parties<'_>) {
        let Some(Decided { steps, natively }) = self.listens.decided.take() else {
            return;
        };
        if natively {
            self.pin(PinReason::Listen, parties);
        }
        let listens = steps.iter().any(|step| matches!(step, ListenStep::Listen(_)));
        if let Some(lease) = self.lease.as_mut().filter(|_| listens) {
            lease.state.listens = true;
        }
        self.listens.is_under_way = true;
        self.listens.steps = steps.into();
    }

    /// What a text does to the channels, and whether its LISTENs are the backend's own; `None` where it does nothing.
    fn decide(&self, effects: &Effects, parties: &Parties<'_>) -> Result<Option<Decided>, Report> {
        let steps = match ListenStep::of(effects) {
            Ok(steps) => steps,
            // It pins, and is PostgreSQL's business alone.
            Err(_) if parties.session.listening().is_none() => Vec::new(),
            Err(_) => return Err(error::unreadable_channel()),
        };
        let has_pending = parties
            .session
            .listening()
            .is_some_and(|listening| listening.is_pending());
        if has_pending && effects.pins.contains(PinReason::Unlexable) {
            return Err(error::unreadable_channel());
        }
        let is_void = |step: &ListenStep| matches!(step, ListenStep::Listen(channel) if channel.is_empty());
        if steps.iter().any(is_void) {
            // PostgreSQL refuses the whole text.
            return Ok(None);
        }
        let concerns = has_pending || steps.iter().any(ListenStep::is_of_channels);
        if !effects.listens() && (steps.is_empty() || !concerns) {
            return Ok(None);
        }
        let natively = effects.listens() && self.listens_natively(&steps, effects, parties);
        let mut decided = Decided { steps, natively };
        if natively {
            decided.leave_to_backend(parties);
        }
        Ok(Some(decided))
    }

    /// A client that keeps its backend anyway listens there; so does one that the listener can't hear for.
    fn listens_natively(&self, steps: &[ListenStep], effects: &Effects, parties: &Parties<'_>) -> bool {
        let mut pins = effects.pins;
        pins.remove(PinReason::Listen);
        pins.remove(PinReason::Setting);
        let added = steps.iter().filter_map(|step| match step {
            ListenStep::Listen(channel) if !is_shared(channel, parties) => Some(channel),
            _ => None,
        });
        let mut count = parties.session.listening().map_or(0, |listening| listening.len());
        let mut is_plain = true;
        for channel in added {
            count += 1;
            is_plain &= channel.is_ascii();
        }
        parties.rules.mode == PoolMode::Session
            || parties.session.pins().counted() != PinSet::EMPTY
            || !pins.is_empty()
            || !is_plain
            || count > parties.rules.client_channels
            || speaks_otherwise(parties)
            || steps.is_empty()
    }

    fn hold_for(&mut self, mut decided: Decided, commits: bool, parties: &mut Parties<'_>) -> Option<Next> {
        if !self.pipeline.is_quiet() {
            return Some(self.await_replies());
        }
        if commits {
            let listens = |step: &ListenStep| match step {
                ListenStep::Listen(channel) => Some(channel.clone()),
                _ => None,
            };
            let channels: Vec<Channel> = decided.steps.iter().filter_map(listens).collect();
            let wanted = !channels.is_empty() || pending_listens(parties) > 0;
            let heard = match wanted {
                true => self.before_commit(channels, parties),
                false => Ok(Heard::Yes),
            };
            match heard {
                Ok(Heard::Yes) => {}
                Ok(Heard::No) => {
                    decided.natively = true;
                    decided.leave_to_backend(parties);
                }
                Err(stop) => return Some(stop),
            }
        }
        self.listens.decided = Some(decided);
        None
    }

    /// The message at hand may commit a LISTEN: it waits until the listener listens to what it adds.
    fn before_commit(&mut self, mut channels: Vec<Channel>, parties: &mut Parties<'_>) -> Result<Heard, Next> {
        if !self.pipeline.is_quiet() {
            return Err(self.await_replies());
        }
        if self.listens.awaited.is_some() {
            return Err(Next::Held);
        }
        match self.listens.answered.take() {
            None => {
                let pending = parties.session.listening().into_iter();
                channels.extend(pending.flat_map(|listening| listening.pending_listens()).cloned());
                let rules = parties.rules;
                let new = || Box::new(Subscription::new(&rules.pool, rules.client_notification_bytes));
                let subscription = parties.subscription.get_or_insert_with(new);
                self.listens.awaited = Some(subscription.listen(&channels));
                self.listens.has_asked = true;
                Err(Next::Held)
            }
            Some(Some(since)) => {
                self.listens.since = since;
                Ok(Heard::Yes)
            }
            Some(None) => {
                self.listen_natively(parties);
                Ok(Heard::No)
            }
        }
    }

    /// A statement that asks for the session's channels outside a block gets a backend that listens to them.
    pub(super) fn show_channels(&mut self, header: Header, effects: &Effects, parties: &Parties<'_>) {
        let outside = self.pipeline.status() == TransactionStatus::Idle && !self.pipeline.is_unsynced();
        let Some(listening) = parties.session.listening().filter(|_| effects.reads_session && outside) else {
            return;
        };
        let asks = |text: &[u8]| text.eq_ignore_ascii_case(SHOWN_BY);
        if !self.up.body_prefix(header).windows(SHOWN_BY.len()).any(asks) {
            return;
        }
        let mut sql = Vec::new();
        for channel in listening.channels() {
            command(&mut sql, b"LISTEN ", channel);
        }
        if let Some(lease) = self.lease.as_mut() {
            lease.state.listens = true;
            lease.state.unnamed_dropped();
            self.expect(Request::Query, Fate::Swallow, Note::None);
            self.up.say(|out| compose::query(out, &sql));
        }
    }

    /// There is no listener: what the transaction at hand adds is heard by the client's own backend.
    fn listen_natively(&mut self, parties: &mut Parties<'_>) {
        if pending_listens(parties) > 0 {
            parties.session.listening_mut().forget_pending_listens();
            self.pin(PinReason::Listen, parties);
        }
        keep_subscription(parties);
    }

    /// A text that nobody read is being sent: what it does to a LISTEN that is not decided on yet can't be told.
    pub(super) fn listening_unread(&mut self, parties: &Parties<'_>) {
        if is_pending(parties) {
            self.listens.unheard = Some(error::unreadable_channel());
        }
    }

    /// The transaction at hand is gone with its backend, or was never sent.
    pub(super) fn listening_lost(&mut self, parties: &mut Parties<'_>) {
        self.listens = ListenProgress::default();
        if is_pending(parties) {
            parties.session.listening_mut().roll_back();
        }
        if parties.subscription.is_some() {
            keep_subscription(parties);
        }
    }
}

impl Decided {
    /// LISTENs are the backend's own, but of channels that are heard already.
    fn leave_to_backend(&mut self, parties: &Parties<'_>) {
        self.steps.retain(|step| match step {
            ListenStep::Listen(channel) => is_shared(channel, parties),
            _ => true,
        });
    }
}

fn is_pending(parties: &Parties<'_>) -> bool {
    parties
        .session
        .listening()
        .is_some_and(|listening| listening.is_pending())
}

fn pending_listens(parties: &Parties<'_>) -> usize {
    let listening = parties.session.listening();
    listening.map_or(0, |listening| listening.pending_listens().count())
}

fn is_shared(channel: &[u8], parties: &Parties<'_>) -> bool {
    parties
        .session
        .listening()
        .is_some_and(|listening| listening.has(channel))
}

/// The listener's payloads are in the server's own choice of encoding.
fn speaks_otherwise(parties: &Parties<'_>) -> bool {
    parties.session.settings().value("client_encoding").is_some()
}

/// The listener hears no more for the client than what it listens to.
fn keep_subscription(parties: &mut Parties<'_>) {
    parties.session.drop_empty_listening();
    match (parties.session.listening(), &mut *parties.subscription) {
        (Some(listening), Some(subscription)) => subscription.keep_only(|channel| listening.has(channel)),
        (None, _) => *parties.subscription = None,
        (Some(_), None) => {}
    }
}

// --- PostgreSQL's messages ---

impl Exchange {
    /// The tag of a command: one that was waited for has happened.
    pub(super) fn on_listening_tag(&mut self, tag: &[u8], parties: &mut Parties<'_>) {
        if self.listens.steps.front().is_some_and(|step| step.has_tag(tag))
            && let Some(step) = self.listens.steps.pop_front()
        {
            let since = self.listens.since;
            parties.session.listening_mut().complete(step, tag, since);
        }
    }

    /// The backend notifies by itself: that is for clients who listen there, and nobody else.
    pub(super) fn on_notification(&mut self, header: Header, parties: &Parties<'_>) -> Result<(), Outcome> {
        let body = self.down.whole_body(header).unwrap_or_default();
        let heard = match Notification::parse(body) {
            Ok(heard) => heard,
            Err(cause) => {
                let message = "NotificationResponse";
                return Err(self.broken_backend(&Violation::Malformed { message, cause }));
            }
        };
        let keeps = parties.rules.mode == PoolMode::Session || !parties.session.pins().is_empty();
        if !keeps || is_shared(heard.channel, parties) {
            self.down.skip(header);
            return Ok(());
        }
        let own = self.lease.as_ref().filter(|lease| {
            let process_id = lease.cancel_target().process_id();
            process_id == Some(heard.process_id)
        });
        match own.and_then(|lease| lease.holder().process_id()) {
            Some(process_id) => self.down.pass_behind(header, HEADER_LEN + 4, |out| {
                use bytes::BufMut;
                out.put_u8(header.tag);
                out.put_u32(u32::try_from(header.body_len + 4).unwrap_or(u32::MAX));
                out.put_u32(process_id);
            }),
            None => self.down.pass(header),
        }
        Ok(())
    }

    /// A client that listens is told of its transaction's end behind what was committed before it asked for that, and
    /// where it may have notified itself behind what came of it.
    pub(super) fn holds_ready(&mut self, header: Header, parties: &mut Parties<'_>) -> bool {
        let is_idle = self.down.whole_body(header) == Some(b"I".as_slice());
        if !is_idle || self.pipeline.head_is_ours() {
            return false;
        }
        if self.listens.awaited.is_none() && self.listens.answered.take().is_none() {
            self.listens.awaited = self.round_behind(parties);
        }
        self.listens.is_holding_ready = self.listens.awaited.is_some();
        self.listens.is_holding_ready
    }

    fn round_behind(&mut self, parties: &mut Parties<'_>) -> Option<Awaited> {
        if !self.listens.may_notify {
            return self.listens.early.take();
        }
        // Its transaction is over, and the round that begins now proves what came of it.
        self.listens.notifier = None;
        let subscription = parties.subscription.as_mut()?;
        Some(subscription.listen(&[]))
    }

    /// A request that ends with ReadyForQuery is being sent: meanwhile the listener hears what was committed before.
    pub(super) fn begin_round(&mut self, parties: &mut Parties<'_>) {
        if let Some(subscription) = parties.subscription.as_mut().filter(|_| !self.listens.may_notify) {
            self.listens.early = Some(subscription.listen(&[]));
        }
    }

    /// A ReadyForQuery of the client's: what its transaction changed is decided, and it is told what was heard.
    pub(super) fn listening_at_ready(&mut self, status: TransactionStatus, parties: &mut Parties<'_>) {
        let has_failed = std::mem::take(&mut self.listens.has_failed);
        let is_unanswered = !self.listens.steps.is_empty() && !has_failed;
        self.listens.steps.clear();
        if status == TransactionStatus::Idle && self.pipeline.is_quiet() {
            self.listens.notifier = None;
            self.listens.may_notify = false;
        }
        if parties.session.listening().is_none() && parties.subscription.is_none() {
            return;
        }
        if is_unanswered {
            self.listens.unheard = Some(error::unreadable_channel());
        }
        if status != TransactionStatus::Idle {
            return;
        }
        self.listens.portals.clear();
        let has_asked = std::mem::take(&mut self.listens.has_asked);
        if is_pending(parties) || has_asked || parties.session.listening().is_none_or(|it| it.is_empty()) {
            let (since, listening) = (self.listens.since, parties.session.listening_mut());
            match has_failed {
                true => listening.roll_back(),
                false => listening.commit(since),
            }
            keep_subscription(parties);
        }
        self.tell_notifications(parties);
    }

    /// Tells what the listener has heard, where the client can be told now. Ready where it can't be told of everything.
    pub(super) fn poll_notifications(&mut self, cx: &Context<'_>, parties: &mut Parties<'_>) -> Option<Outcome> {
        let subscription = parties.subscription.as_ref()?;
        if let Some(report) = subscription.ended(cx) {
            return Some(Outcome::Unheard(Box::new(report)));
        }
        let is_idle = self.pipeline.is_settled() && self.lost.is_none();
        if is_idle && self.down.is_written() && self.down_is_decided() {
            self.tell_notifications(parties);
        }
        let unheard = self.listens.unheard.take()?;
        Some(Outcome::Unheard(Box::new(unheard)))
    }

    fn tell_notifications(&mut self, parties: &Parties<'_>) {
        let (Some(subscription), Some(listening)) = (parties.subscription.as_ref(), parties.session.listening()) else {
            return;
        };
        for heard in subscription.take() {
            if !listening.hears(&heard.channel, heard.number) {
                continue;
            }
            if !heard.is_ascii && speaks_otherwise(parties) {
                self.listens.unheard = Some(error::notification_in_another_encoding());
                return;
            }
            self.down.say(|out| out.extend_from_slice(&heard.frame));
        }
    }
}
