//! Looking at a socket that nobody reads, without taking a byte from it.
//!
//! PostgreSQL speaks to an idle backend only to say that it is over (57P01, 57P05, an end of file) or that a setting
//! changed. A peek at hand-out, and a sweep over the pooled ones, notice both without a query.

use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

/// What an idle socket has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleState {
    /// Nothing came: fit for use.
    Quiet,
    /// Bytes wait to be read. On TLS a probe can't tell messages from the protocol's own records;
    /// [`super::Stream::try_peek_idle`] can.
    HasData,
    /// End of file, an error, or the stream is gone.
    Closed,
}

/// A way to look at a stream that someone else owns. It keeps no socket open: when its stream is dropped it says
/// [`IdleState::Closed`] from then on.
#[derive(Debug, Clone)]
pub struct IdleProbe(Arc<Mutex<Option<RawFd>>>);

impl IdleProbe {
    /// Peeks without waiting and without consuming: one system call.
    pub fn state(&self) -> IdleState {
        // The lock is held across the call, so that the number can't be closed and given to another socket meanwhile.
        lock(&self.0).map_or(IdleState::Closed, peek)
    }
}

/// The number that probes of one stream share, taken from them before the socket is closed.
#[derive(Debug, Default)]
pub(super) struct ProbedFd(OnceLock<Arc<Mutex<Option<RawFd>>>>);

impl ProbedFd {
    pub(super) fn probe(&self, fd: RawFd) -> IdleProbe {
        IdleProbe(self.0.get_or_init(|| Arc::new(Mutex::new(Some(fd)))).clone())
    }
}

impl Drop for ProbedFd {
    fn drop(&mut self) {
        if let Some(shared) = self.0.get() {
            *lock(shared) = None;
        }
    }
}

/// One MSG_PEEK that never waits.
pub(super) fn peek(fd: RawFd) -> IdleState {
    loop {
        return match recv(fd, &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
            Ok(0) => IdleState::Closed,
            Ok(_) => IdleState::HasData,
            Err(Errno::EAGAIN) => IdleState::Quiet,
            Err(Errno::EINTR) => continue,
            Err(_) => IdleState::Closed,
        };
    }
}

fn lock(shared: &Mutex<Option<RawFd>>) -> MutexGuard<'_, Option<RawFd>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
