//! When a pinned client's backend is asked whether anything still holds it.

use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::alarm::Alarm;

/// How many times the first wait the longest may be.
const LONGEST: u32 = 128;

/// The wait of a pinned client that has been still since its last transaction, for the next question to its backend. Each
/// question that freed nothing doubles it.
#[derive(Debug, Default)]
pub struct PinWatch {
    alarm: Alarm,
    /// How many times the first wait.
    times: u32,
}

impl PinWatch {
    /// A transaction has ended, or a pin was added: the client is still from now on.
    pub fn begin(&mut self, first: Duration) {
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

    /// Ready when the client has been still for long enough.
    pub fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.alarm.poll_due(cx)
    }

    fn set(&mut self, first: Duration) {
        self.times = self.times.max(1);
        self.alarm.set(Instant::now() + first * self.times);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_question_in_vain_doubles_the_wait_up_to_a_bound() {
        let first = Duration::from_millis(50);
        let mut watch = PinWatch::default();
        watch.begin(first);
        let mut waits = vec![];
        for _ in 0..9 {
            let since = Instant::now();
            poll_fn(|cx| watch.poll_due(cx)).await;
            waits.push(since.elapsed().as_millis() / 50);
            watch.again(first);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 128]);
        watch.end();
        assert!(poll_fn(|cx| Poll::Ready(watch.poll_due(cx))).await.is_pending());
        watch.begin(first);
        let since = Instant::now();
        poll_fn(|cx| watch.poll_due(cx)).await;
        assert!(since.elapsed() < first * 2);
    }
}
