//! Who stands in line for a backend, since when and until when; and the bell that is rung for them.
//!
//! A wait costs one entry here instead of a timer and two channels of its own: the pool's keeper looks at the deadlines,
//! and whoever learns that a login failed rings for all.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

use super::lock;

/// Those who wait for a backend of one pool, in the order of asking.
#[derive(Debug, Default)]
pub(crate) struct Line {
    standing: Mutex<Standing>,
}

#[derive(Debug, Default)]
struct Standing {
    last_number: u64,
    entries: VecDeque<Entry>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    since: Instant,
    deadline: Option<Instant>,
    waker: Option<Waker>,
    is_rung: bool,
}

/// A place in the line, until it is dropped.
#[derive(Debug)]
pub(crate) struct Ticket<'l> {
    line: &'l Line,
    number: u64,
    limit: Option<Duration>,
    deadline: Option<Instant>,
}

impl Line {
    /// Joins the line at `now`, for `limit` at most; `None` waits for ever.
    pub(crate) fn join(&self, now: Instant, limit: Option<Duration>) -> Ticket<'_> {
        let deadline = limit.and_then(|limit| now.checked_add(limit));
        let mut standing = lock(&self.standing);
        standing.last_number += 1;
        let number = standing.last_number;
        standing.entries.push_back(Entry {
            number,
            since: now,
            deadline,
            waker: None,
            is_rung: false,
        });
        Ticket {
            line: self,
            number,
            limit,
            deadline,
        }
    }

    pub(crate) fn len(&self) -> usize {
        lock(&self.standing).entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.standing).entries.is_empty()
    }

    /// How long the one has waited who has waited longest.
    pub(crate) fn oldest_wait(&self) -> Option<Duration> {
        lock(&self.standing).entries.front().map(|entry| entry.since.elapsed())
    }

    /// Something concerns everyone in line.
    pub(crate) fn ring(&self) {
        self.ring_where(|_| true);
    }

    /// Rings for those whose time is over. Says when the next one's is.
    pub(crate) fn ring_overdue(&self, now: Instant) -> Option<Instant> {
        self.ring_where(|entry| entry.deadline.is_some_and(|deadline| deadline <= now));
        let standing = lock(&self.standing);
        let ahead = standing.entries.iter().filter_map(|entry| entry.deadline);
        ahead.filter(|deadline| *deadline > now).min()
    }

    fn ring_where(&self, concerns: impl Fn(&Entry) -> bool) {
        let mut standing = lock(&self.standing);
        let concerned = standing.entries.iter_mut().filter(|entry| concerns(entry));
        let wakers: Vec<Waker> = concerned
            .filter_map(|entry| {
                entry.is_rung = true;
                entry.waker.take()
            })
            .collect();
        drop(standing);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Standing {
    /// Numbers ascend, so those who leave from the front are found at once.
    fn position(&self, number: u64) -> Option<usize> {
        match self.entries.front() {
            Some(entry) if entry.number == number => Some(0),
            _ => self.entries.binary_search_by_key(&number, |entry| entry.number).ok(),
        }
    }
}

impl Ticket<'_> {
    /// Ready when the bell was rung since the last time that it was; whoever is not concerned asks again.
    pub(crate) fn poll_rung(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut standing = lock(&self.line.standing);
        let Some(position) = standing.position(self.number) else {
            return Poll::Pending;
        };
        let Some(entry) = standing.entries.get_mut(position) else {
            return Poll::Pending;
        };
        if std::mem::take(&mut entry.is_rung) {
            return Poll::Ready(());
        }
        if !entry.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            entry.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// The limit, once it has passed.
    pub(crate) fn overdue(&self, now: Instant) -> Option<Duration> {
        self.deadline.filter(|deadline| *deadline <= now).and(self.limit)
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut standing = lock(&self.line.standing);
        let left = standing
            .position(self.number)
            .and_then(|position| standing.entries.remove(position));
        drop(standing);
        // Behind the lock: a waker's end is not ours.
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(3);

    fn is_rung(ticket: &Ticket<'_>) -> bool {
        ticket.poll_rung(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[tokio::test(start_paused = true)]
    async fn the_bell_for_the_overdue_says_when_to_ring_next() {
        let line = Line::default();
        let start = Instant::now();
        let (first, patient) = (line.join(start, Some(LIMIT)), line.join(start, None));
        let second = line.join(start + LIMIT, Some(LIMIT));
        assert_eq!(line.ring_overdue(start), Some(start + LIMIT));
        assert!(!is_rung(&first));
        assert_eq!(line.ring_overdue(start + LIMIT), Some(start + 2 * LIMIT));
        assert!(is_rung(&first) && !is_rung(&second) && !is_rung(&patient));
        assert!(!is_rung(&first), "it is heard once");
        assert_eq!(first.overdue(start + LIMIT), Some(LIMIT));
        assert_eq!(second.overdue(start + LIMIT), None);
        assert_eq!(line.ring_overdue(start + 2 * LIMIT), None);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_leaves_is_gone_from_the_middle_too() {
        let line = Line::default();
        let start = Instant::now();
        let tickets: Vec<_> = (0..3).map(|_| line.join(start, None)).collect();
        let mut tickets = tickets.into_iter();
        let (first, middle) = (tickets.next(), tickets.next());
        drop(middle);
        assert_eq!(line.len(), 2);
        line.ring();
        assert!(first.as_ref().is_some_and(is_rung) && tickets.as_slice().iter().all(is_rung));
        drop((first, tickets));
        assert!(line.is_empty() && line.oldest_wait().is_none());
    }
}
