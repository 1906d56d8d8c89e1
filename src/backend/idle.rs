//! Looking at a backend that nobody uses: what it said meanwhile, without a query and without waiting.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::exchange::cut_frame;
use super::{Backend, Condition};
use crate::net::IdleState;
use crate::wire::backend_message::{ParameterStatus, ReportFields};
use crate::wire::{BackendTag, SqlState};

/// PostgreSQL says little to an idle session; a peer that says more is not one.
const IDLE_BODY_LEN_MAX: usize = 64 * 1024;
/// What one read may bring.
const READ_LEN: usize = 1024;

/// What a look at an idle backend came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleVerdict {
    /// It may be handed out.
    Usable,
    /// It ended, said something that can't come here, or is not clean. With PostgreSQL's own code where it gave one.
    Gone(Option<SqlState>),
}

impl Backend {
    /// Parses what came while nobody used this backend (traps 63, 75): a ParameterStatus is learned, notices and
    /// notifications are dropped; an ErrorResponse, the end of the stream or anything else ends it.
    pub fn check_idle(&mut self) -> IdleVerdict {
        let verdict = match (self.condition, self.stream.try_peek_idle()) {
            (Condition::Clean, IdleState::Quiet) if self.read_buffer.is_empty() => IdleVerdict::Usable,
            (Condition::Clean, IdleState::Quiet | IdleState::HasData) => self.absorb(),
            (Condition::Clean, IdleState::Closed) => match self.absorb() {
                IdleVerdict::Usable => IdleVerdict::Gone(None),
                gone => gone,
            },
            _ => IdleVerdict::Gone(None),
        };
        if verdict != IdleVerdict::Usable {
            self.mark_broken();
        }
        verdict
    }

    fn absorb(&mut self) -> IdleVerdict {
        let mut context = Context::from_waker(Waker::noop());
        loop {
            match cut_frame(&mut self.read_buffer, IDLE_BODY_LEN_MAX) {
                Ok(Some(message)) => match self.absorb_message(message.tag, &message.body) {
                    IdleVerdict::Usable => continue,
                    gone => return gone,
                },
                Ok(None) => {}
                Err(_) => return IdleVerdict::Gone(None),
            }
            self.read_buffer.reserve(READ_LEN);
            match self.stream.poll_read(&mut context, &mut self.read_buffer) {
                Poll::Ready(Ok(0) | Err(_)) => return IdleVerdict::Gone(None),
                Poll::Ready(Ok(_)) => {}
                // The rest of a message is on its way: who took it now would have to wait for that.
                Poll::Pending if !self.read_buffer.is_empty() => return IdleVerdict::Gone(None),
                Poll::Pending => return IdleVerdict::Usable,
            }
        }
    }

    fn absorb_message(&mut self, tag: u8, body: &[u8]) -> IdleVerdict {
        match BackendTag::from_byte(tag) {
            Some(BackendTag::ParameterStatus) => match ParameterStatus::parse(body) {
                Ok(status) => {
                    self.learn_parameter(&status);
                    // Nobody's SET can have done it: the server's configuration changed, and a session's own settings
                    // outrank that. So it is the neutral value.
                    if let Ok(name) = std::str::from_utf8(status.name) {
                        self.neutral_changed |= Arc::make_mut(&mut self.neutral).set(name, status.value);
                    }
                    IdleVerdict::Usable
                }
                Err(_) => IdleVerdict::Gone(None),
            },
            Some(BackendTag::NoticeResponse | BackendTag::NotificationResponse) => IdleVerdict::Usable,
            Some(BackendTag::ErrorResponse) => IdleVerdict::Gone(
                ReportFields::parse(body)
                    .ok()
                    .and_then(|fields| SqlState::from_bytes(fields.sqlstate)),
            ),
            _ => IdleVerdict::Gone(None),
        }
    }
}
