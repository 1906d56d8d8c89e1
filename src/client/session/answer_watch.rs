//! The time that a backend has to answer a question of ours behind its client's reply (`pool.reset_timeout`).
//!
//! Nobody waits for the answer, and so nobody's patience bounds it: a backend that hangs in it would be held for as long as its
//! client is still.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::{Sleep, sleep_until};

use super::{Session, Then};
use crate::error;
use crate::relay::{Exchange, Loss, Rules};

/// The deadline of the question that is under way.
#[derive(Debug, Default)]
pub struct AnswerWatch(Option<Pin<Box<Sleep>>>);

impl AnswerWatch {
    /// Ready when what was asked at `since` has not been answered for `limit`.
    pub fn poll_overdue(&mut self, cx: &mut Context<'_>, since: Option<Instant>, limit: Duration) -> Poll<()> {
        let Some(deadline) = since.and_then(|since| since.checked_add(limit)) else {
            self.0 = None;
            return Poll::Pending;
        };
        let deadline = deadline.into();
        let timer = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() != deadline {
            // Of another question.
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(cx)
    }
}

impl Session {
    /// The backend does not tell what the client's settings have become: it is closed, and the client with it, whose session
    /// could not be made again.
    pub(super) async fn on_unanswered(&mut self, exchange: &mut Exchange, rules: &Rules) -> Option<Then> {
        self.answer_watch = AnswerWatch::default();
        let is_idle = !exchange.owes_reply() || !exchange.commit_at_risk();
        let loss = Loss {
            last_words: is_idle.then(error::settings_untold),
            cause: "it did not tell what its client's settings have become within pool.reset_timeout".to_owned(),
            runs_on: true,
            untouched: false,
        };
        self.on_loss(exchange, rules, loss, 0).await
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_question_has_its_own_deadline() {
        let limit = Duration::from_secs(5);
        let mut watch = AnswerWatch::default();
        let mut cx = Context::from_waker(Waker::noop());
        let first = tokio::time::Instant::now();
        assert!(watch.poll_overdue(&mut cx, Some(first.into_std()), limit).is_pending());
        tokio::time::advance(Duration::from_secs(4)).await;
        let second = tokio::time::Instant::now();
        tokio::time::advance(Duration::from_secs(4)).await;
        assert!(watch.poll_overdue(&mut cx, Some(second.into_std()), limit).is_pending());
        assert!(watch.poll_overdue(&mut cx, None, limit).is_pending());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(watch.poll_overdue(&mut cx, None, limit).is_pending());
        assert!(watch.poll_overdue(&mut cx, Some(second.into_std()), limit).is_ready());
    }
}
