//! When a pinned client's backend is asked whether anything still holds it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

/// How many times the first wait the longest may be.
const LONGEST: u32 = 128;

/// The wait of a pinned client that has been still since its last transaction, for the next question to its backend. Each
/// question that freed nothing doubles it.
#[derive(Debug, Default)]
pub struct PinWatch {
    timer: Option<Pin<Box<Sleep>>>,
    /// How many times the first wait.
    times: u32,
    /// How long the client had been still when the timer was set.
    waited: Duration,
}

impl PinWatch {
    /// A transaction has ended, or a pin was added: the client is still from now on.
    pub fn begin(&mut self, first: Duration) {
        self.waited = Duration::ZERO;
        self.set(first);
    }

    /// The question freed nothing. Asked again after twice as long.
    pub fn again(&mut self, first: Duration) {
        self.times = (self.times * 2).min(LONGEST);
        self.set(first);
    }

    /// Nothing is to be asked.
    pub fn end(&mut self) {
        *self = Self::default();
    }

    /// How long the client has been still, when the time to ask has come.
    pub fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        let Some(timer) = self.timer.as_mut() else {
            return Poll::Pending;
        };
        match timer.as_mut().poll(cx) {
            Poll::Ready(()) => {
                self.timer = None;
                Poll::Ready(self.waited)
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn set(&mut self, first: Duration) {
        self.times = self.times.max(1);
        let wait = first * self.times;
        self.waited += wait;
        self.timer = Some(Box::pin(sleep(wait)));
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_question_in_vain_doubles_the_wait_up_to_a_bound() {
        let first = Duration::from_millis(50);
        let mut watch = PinWatch::default();
        watch.begin(first);
        let mut still = vec![];
        for _ in 0..9 {
            still.push(poll_fn(|cx| watch.poll_due(cx)).await.as_millis());
            watch.again(first);
        }
        assert_eq!(still, [50, 150, 350, 750, 1550, 3150, 6350, 12750, 19150]);
        watch.begin(first);
        assert_eq!(
            poll_fn(|cx| watch.poll_due(cx)).await,
            first * LONGEST,
            "of one transaction's end"
        );
        watch.end();
        assert!(poll_fn(|cx| Poll::Ready(watch.poll_due(cx))).await.is_pending());
        watch.begin(first);
        assert_eq!(poll_fn(|cx| watch.poll_due(cx)).await, first);
    }
}
