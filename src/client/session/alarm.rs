//! A time at which a session looks at something again.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep, sleep_until};

/// At most one time, boxed, so that a session that waits for none pays a word.
#[derive(Debug, Default)]
pub struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Rings then, and not when it was to ring before.
    pub fn set(&mut self, when: Instant) {
        self.0 = Some(Box::pin(sleep_until(when)));
    }

    /// Ready once, when the time has come.
    pub fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(timer) = self.0.as_mut() else {
            return Poll::Pending;
        };
        let polled = timer.as_mut().poll(cx);
        if polled.is_ready() {
            self.0 = None;
        }
        polled
    }
}
