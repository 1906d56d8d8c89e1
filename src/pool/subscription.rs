//! What the clients of one pool want to hear: [`Desk`] is where they say so and where the shared listener finds it,
//! [`Subscription`] one client's part of it.
//!
//! Everything here is under one lock and waits for nothing. The listener works in rounds: one Query makes it listen to
//! what is new and stop listening to what nobody wants any more, and answers all who have asked since the last one. What
//! had committed when a round began has been heard when it ends: PostgreSQL tells a session of it before ReadyForQuery.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::{Notify, oneshot};

use super::backends::Pool;
use super::listener;
use super::lock;
use super::mailbox::{Mailbox, Notification};
use super::manager::PoolCore;
use super::notifiers::{Notifiers, Sender};
use crate::virtual_session::listening::{Channel, command};
use crate::wire::{BackendTag, Report};

/// Where the clients of one pool say what they want to hear.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    book: std::sync::Mutex<Book>,
    next_member: AtomicU64,
    /// As `Book::is_staffed`, for those who only look.
    is_open: AtomicBool,
    /// A round is wanted soon, so that senders are known again.
    is_round_due: AtomicBool,
    pub(super) news: Notify,
    pub(super) notifiers: Notifiers,
}

#[derive(Debug, Default)]
struct Book {
    /// The listener's task runs.
    is_staffed: bool,
    heard: HashMap<Channel, Heard>,
    /// Channels that somebody began or ceased to want.
    changed: Vec<Channel>,
    asked: Vec<Asked>,
    /// Notifications heard so far.
    count: u64,
}

/// A channel that somebody wants to hear.
#[derive(Debug, Default)]
struct Heard {
    members: HashMap<u64, Arc<Mailbox>>,
    /// PostgreSQL has confirmed it on the connection of now.
    is_in_force: bool,
    /// It has confirmed it on some connection.
    was_in_force: bool,
}

#[derive(Debug)]
struct Asked {
    answer: oneshot::Sender<u64>,
}

/// One exchange of the listener with PostgreSQL.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) sql: Vec<u8>,
    listens: Vec<Channel>,
    asked: Vec<Asked>,
    number: u64,
}

impl Desk {
    /// What is to be done now; `None` where nothing is.
    ///
    /// `is_due`: even if it is for nothing but to know the senders.
    pub(super) fn next_round(&self, is_due: bool) -> Option<Round> {
        let mut book = lock(&self.book);
        let mut sql = Vec::new();
        let mut listens = Vec::new();
        for channel in std::mem::take(&mut book.changed) {
            match book.heard.get(&channel) {
                Some(heard) if heard.members.is_empty() => {
                    book.heard.remove(&channel);
                    command(&mut sql, b"UNLISTEN ", &channel);
                }
                Some(heard) if !heard.is_in_force => {
                    command(&mut sql, b"LISTEN ", &channel);
                    listens.push(channel);
                }
                _ => {}
            }
        }
        let asked = std::mem::take(&mut book.asked);
        let is_due = is_due && self.is_round_due();
        if sql.is_empty() && asked.is_empty() && !is_due {
            return None;
        }
        self.is_round_due.store(false, Ordering::Release);
        // For pg_stat_activity, and where there is nothing to change for PostgreSQL to answer.
        sql.extend_from_slice(b"-- pgsidecar listens for its clients");
        let number = self.notifiers.round_begins();
        Some(Round {
            sql,
            listens,
            asked,
            number,
        })
    }

    /// PostgreSQL has done what the round asked.
    pub(super) fn finish(&self, round: Round) {
        self.notifiers.round_ended(round.number);
        let mut book = lock(&self.book);
        for channel in round.listens {
            if let Some(heard) = book.heard.get_mut(&channel) {
                heard.is_in_force = true;
                heard.was_in_force = true;
            }
        }
        for asked in round.asked {
            let _ = asked.answer.send(book.count);
        }
    }

    /// PostgreSQL has refused: who asked is told by the loss of the answer. False where someone loses what was in force.
    pub(super) fn refuse(&self, round: &Round) -> bool {
        let mut book = lock(&self.book);
        let is_known = |channel| book.heard.get(channel).is_some_and(|heard: &Heard| heard.was_in_force);
        if round.listens.iter().any(is_known) {
            return false;
        }
        for channel in &round.listens {
            book.heard.remove(channel);
        }
        true
    }

    /// A notification was heard: everyone who wants it gets it, in the order of this call.
    pub(super) fn deliver(&self, process_id: u32, channel: &[u8], payload: &[u8]) {
        let sender = self.notifiers.sender(process_id);
        let mut book = lock(&self.book);
        let number = book.count;
        book.count += 1;
        let Some(heard) = book.heard.get(channel) else {
            return;
        };
        let process_id = match sender {
            Sender::Client(client) => client,
            Sender::Stranger | Sender::Open => process_id,
        };
        let notification = Arc::new(Notification {
            number,
            channel: channel.into(),
            frame: frame(process_id, channel, payload),
            is_ascii: channel.is_ascii() && payload.is_ascii(),
        });
        for mailbox in heard.members.values() {
            mailbox.put(&notification);
        }
    }

    /// The connection is gone, and what was in force with it. With a report, everyone is told that it is so, and the
    /// listener's task ends; without one, whoever has asked is refused and the rest is asked for again.
    pub(super) fn lose(&self, told: Option<&Report>) {
        let mut book = lock(&self.book);
        book.asked.clear();
        for heard in book.heard.values_mut() {
            heard.is_in_force = false;
        }
        book.changed = book.heard.keys().cloned().collect();
        let Some(report) = told else { return };
        book.changed.clear();
        self.close(&mut book);
        for mailbox in book.heard.drain().flat_map(|(_, heard)| heard.members.into_values()) {
            mailbox.end(report);
        }
    }

    /// There will be no connection: who has asked is refused, and nobody had anything to lose.
    pub(super) fn give_up(&self) {
        let mut book = lock(&self.book);
        book.asked.clear();
        book.heard.clear();
        book.changed.clear();
        self.close(&mut book);
    }

    /// Nobody wants to hear anything now.
    pub(super) fn is_deserted(&self) -> bool {
        lock(&self.book).is_deserted()
    }

    /// The same; then the listener's task may end.
    pub(super) fn close_if_deserted(&self) -> bool {
        let mut book = lock(&self.book);
        if book.is_deserted() {
            self.close(&mut book);
        }
        !book.is_staffed
    }

    fn close(&self, book: &mut Book) {
        book.is_staffed = false;
        self.is_open.store(false, Ordering::Relaxed);
        self.notifiers.forget();
    }

    /// Who may have notified has ended its transaction: a round that begins from now on proves it.
    pub(super) fn want_round(&self) {
        if self.is_open() && !self.is_round_due.swap(true, Ordering::AcqRel) {
            self.news.notify_one();
        }
    }

    pub(super) fn is_round_due(&self) -> bool {
        self.is_round_due.load(Ordering::Acquire)
    }

    /// Whether anyone hears anything.
    pub(super) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// Answered when a round that begins from now on has ended; at once with nothing where nobody listens.
    pub(super) fn ask_for_round(&self) -> Awaited {
        let (answer, awaited) = oneshot::channel();
        let mut book = lock(&self.book);
        if book.is_staffed {
            book.asked.push(Asked { answer });
            drop(book);
            self.news.notify_one();
        }
        Awaited(awaited)
    }
}

impl Book {
    /// Takes a member out. True where nobody is left.
    fn leave(&mut self, channel: &Channel, member: u64) -> bool {
        let Some(heard) = self.heard.get_mut(channel) else {
            return false;
        };
        let is_last = heard.members.remove(&member).is_some() && heard.members.is_empty();
        if is_last {
            self.changed.push(channel.clone());
        }
        is_last
    }

    fn is_deserted(&self) -> bool {
        self.asked.is_empty() && self.heard.values().all(|heard| heard.members.is_empty())
    }
}

fn frame(process_id: u32, channel: &[u8], payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(11 + channel.len() + payload.len());
    let len = 4 + 4 + channel.len() + 1 + payload.len() + 1;
    out.put_u8(BackendTag::NotificationResponse.byte());
    out.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    out.put_u32(process_id);
    for text in [channel, payload] {
        out.put_slice(text);
        out.put_u8(0);
    }
    out.freeze()
}

/// One client's part in what the pool's shared listener hears. Dropped, the client hears nothing more.
#[derive(Debug)]
pub struct Subscription {
    core: Arc<PoolCore>,
    number: u64,
    mailbox: Arc<Mailbox>,
    channels: BTreeSet<Channel>,
}

/// The listener's answer, or that there is none.
#[derive(Debug)]
pub struct Awaited(oneshot::Receiver<u64>);

impl Awaited {
    /// Ready with the number of notifications heard when what was asked for had been done; `None` where it can't be.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<u64>> {
        Pin::new(&mut self.0).poll(cx).map(Result::ok)
    }
}

impl Subscription {
    /// Of a client that may leave so many bytes of notifications unread.
    pub fn new(pool: &Arc<Pool>, bytes_max: usize) -> Self {
        let core = Arc::clone(&pool.core);
        Self {
            number: core.desk.next_member.fetch_add(1, Ordering::Relaxed),
            mailbox: Mailbox::new(bytes_max),
            channels: BTreeSet::new(),
            core,
        }
    }

    /// Hears these channels too. The answer comes when PostgreSQL listens to them for the pool, and whatever had been
    /// committed before this call has been heard: what concerns the client has a number that is not smaller. Without
    /// channels, that alone.
    pub fn listen(&mut self, channels: &[Channel]) -> Awaited {
        let (answer, awaited) = oneshot::channel();
        let mut book = lock(&self.core.desk.book);
        for channel in channels {
            self.channels.insert(channel.clone());
            let heard = book.heard.entry(channel.clone()).or_default();
            heard.members.insert(self.number, Arc::clone(&self.mailbox));
            if !heard.is_in_force {
                book.changed.push(channel.clone());
            }
        }
        book.asked.push(Asked { answer });
        if !std::mem::replace(&mut book.is_staffed, true) {
            self.core.desk.is_open.store(true, Ordering::Relaxed);
            tokio::spawn(listener::run(Arc::clone(&self.core)));
        }
        drop(book);
        self.core.desk.news.notify_one();
        Awaited(awaited)
    }

    /// Hears no channel but these any more.
    pub fn keep_only(&mut self, keep: impl Fn(&[u8]) -> bool) {
        let mut book = lock(&self.core.desk.book);
        let mut is_unwanted = false;
        self.channels.retain(|channel| {
            let is_kept = keep(channel);
            if !is_kept && book.leave(channel, self.number) {
                is_unwanted = true;
            }
            is_kept
        });
        drop(book);
        if is_unwanted {
            self.core.desk.news.notify_one();
        }
    }

    /// Whether there is anything for the client; its task is woken when there is.
    pub fn has_mail(&self, cx: &Context<'_>) -> bool {
        self.mailbox.has_mail(cx)
    }

    /// Why the client can't be told of everything any more (FATAL), if it is so; its task is woken by anything new.
    pub fn ended(&self, cx: &Context<'_>) -> Option<Report> {
        self.mailbox.ended(cx)
    }

    /// What was heard since this was last called, in the order of commits.
    pub fn take(&self) -> VecDeque<Arc<Notification>> {
        self.mailbox.take()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.keep_only(|_| false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_postgresqls() {
        assert_eq!(
            &frame(258, b"ch", b"x")[..],
            b"A\0\0\0\x0d\0\0\x01\x02ch\0x\0".as_slice()
        );
    }

    #[test]
    fn a_round_answers_who_asked_and_a_refused_one_does_not() {
        let desk = Desk::default();
        let (answer, mut awaited) = oneshot::channel();
        {
            let mut book = lock(&desk.book);
            let heard = book.heard.entry(b"c".as_slice().into()).or_default();
            heard.members.insert(1, Mailbox::new(100));
            book.changed.push(b"c".as_slice().into());
            book.asked.push(Asked { answer });
        }
        desk.deliver(1, b"c", b"");
        let round = desk.next_round(true).unwrap();
        assert!(round.sql.starts_with(b"LISTEN \"c\"; --"));
        desk.finish(round);
        assert_eq!(awaited.try_recv(), Ok(1));
        assert!(desk.next_round(true).is_none() && !desk.is_deserted());
        let (answer, mut awaited) = oneshot::channel();
        {
            let mut book = lock(&desk.book);
            let heard = book.heard.entry(b"d".as_slice().into()).or_default();
            heard.members.insert(2, Mailbox::new(100));
            book.changed.push(b"d".as_slice().into());
            book.asked.push(Asked { answer });
        }
        let round = desk.next_round(true).unwrap();
        assert!(desk.refuse(&round), "nobody loses anything");
        drop(round);
        assert!(awaited.try_recv().is_err());
        desk.lose(None);
        let round = desk.next_round(true).unwrap();
        assert!(round.sql.starts_with(b"LISTEN \"c\"; --"));
        assert!(!desk.refuse(&round), "somebody did hear it");
    }

    #[test]
    fn what_nobody_wants_is_unlistened() {
        let desk = Desk::default();
        {
            let mut book = lock(&desk.book);
            book.heard.entry(b"c".as_slice().into()).or_default();
            book.changed.push(b"c".as_slice().into());
        }
        assert!(desk.is_deserted());
        assert!(desk.next_round(true).unwrap().sql.starts_with(b"UNLISTEN \"c\"; --"));
        assert!(desk.next_round(true).is_none());
    }
}
