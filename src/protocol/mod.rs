//! What may happen next. Sans-IO: frames in, steps out, randomness and time passed in. No tokio, no socket, no log.
//!
//! One form everywhere: a linear protocol consumes itself, `on_frame(self, …) -> Result<Step, Violation>`, and its step
//! carries the next state; the long-lived [`pipeline`] takes `&mut self`.

pub mod backend_login;
pub mod client_auth;
pub mod handshake;
pub mod md5;
pub mod pipeline;
pub mod scram;

use crate::wire::Malformed;

/// A peer broke the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A message that can't come here.
    #[error("expected {expected}, got message type {got:?}")]
    Unexpected {
        /// What the state waits for.
        expected: &'static str,
        /// The type byte that came, as a character.
        got: char,
    },
    /// A body that does not hold what its type promises.
    #[error("malformed {message}: {cause}")]
    Malformed {
        /// The message's name.
        message: &'static str,
        /// What is wrong with it.
        cause: Malformed,
    },
    /// A rule of the exchange is broken.
    #[error("{0}")]
    Rule(&'static str),
}
