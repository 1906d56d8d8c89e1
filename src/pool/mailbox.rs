//! What the shared listener has heard for one client, until the client takes it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};

use bytes::Bytes;

use super::lock;
use crate::error;
use crate::wire::Report;

/// One NotificationResponse, shared by all who hear it.
#[derive(Debug)]
pub struct Notification {
    /// Counts what the pool's listener has heard, in the order of commits.
    pub number: u64,
    /// The channel's name.
    pub channel: Box<[u8]>,
    /// The message as the client gets it.
    pub frame: Bytes,
    /// It reads the same in every client encoding.
    pub is_ascii: bool,
}

/// Notifications on their way to one client, within a bound.
#[derive(Debug)]
pub(crate) struct Mailbox {
    bytes_max: usize,
    mail: Mutex<Mail>,
}

#[derive(Debug, Default)]
struct Mail {
    waiting: VecDeque<Arc<Notification>>,
    bytes: usize,
    waker: Option<Waker>,
    end: Option<Report>,
}

impl Mailbox {
    pub(crate) fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes_max,
            mail: Mutex::default(),
        })
    }

    pub(crate) fn put(&self, notification: &Arc<Notification>) {
        let mut mail = lock(&self.mail);
        if mail.end.is_some() {
            return;
        }
        mail.bytes += notification.frame.len() + size_of::<Arc<Notification>>();
        if mail.bytes > self.bytes_max {
            // Nothing is left out silently: the client has to begin anew.
            mail.end(error::too_many_notifications());
        } else {
            mail.waiting.push_back(Arc::clone(notification));
        }
        mail.wake();
    }

    /// The client can't be told of everything any more.
    pub(crate) fn end(&self, report: &Report) {
        let mut mail = lock(&self.mail);
        if mail.end.is_none() {
            mail.end(report.clone());
        }
        mail.wake();
    }

    /// Whether there is anything to tell; the task is woken when there is.
    pub(crate) fn has_mail(&self, cx: &Context<'_>) -> bool {
        let mut mail = lock(&self.mail);
        mail.wait(cx);
        mail.end.is_some() || !mail.waiting.is_empty()
    }

    /// Why nothing more comes, if it is so; the task is woken when anything changes.
    pub(crate) fn ended(&self, cx: &Context<'_>) -> Option<Report> {
        let mut mail = lock(&self.mail);
        mail.wait(cx);
        mail.end.clone()
    }

    pub(crate) fn take(&self) -> VecDeque<Arc<Notification>> {
        let mut mail = lock(&self.mail);
        mail.bytes = 0;
        std::mem::take(&mut mail.waiting)
    }
}

impl Mail {
    fn end(&mut self, report: Report) {
        self.waiting = VecDeque::new();
        self.bytes = 0;
        self.end = Some(report);
    }

    fn wait(&mut self, cx: &Context<'_>) {
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notification(len: usize) -> Arc<Notification> {
        Arc::new(Notification {
            number: 0,
            channel: b"c".as_slice().into(),
            frame: vec![0; len].into(),
            is_ascii: true,
        })
    }

    #[test]
    fn a_client_that_takes_nothing_is_told_to_go_and_keeps_nothing() {
        let mailbox = Mailbox::new(1000);
        let context = Context::from_waker(Waker::noop());
        assert!(!mailbox.has_mail(&context));
        mailbox.put(&notification(400));
        mailbox.put(&notification(400));
        assert!(mailbox.has_mail(&context) && mailbox.ended(&context).is_none());
        mailbox.put(&notification(400));
        assert_eq!(mailbox.ended(&context).unwrap().sqlstate.as_str(), "53400");
        assert!(mailbox.take().is_empty());
        mailbox.put(&notification(1));
        assert!(mailbox.take().is_empty(), "nothing follows a gap");
    }

    #[test]
    fn what_was_taken_makes_room() {
        let mailbox = Mailbox::new(1000);
        for _ in 0..10 {
            mailbox.put(&notification(500));
            assert_eq!(mailbox.take().len(), 1);
        }
        assert!(mailbox.ended(&Context::from_waker(Waker::noop())).is_none());
    }
}
