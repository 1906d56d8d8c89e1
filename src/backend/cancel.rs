//! Stopping a backend's query from a second socket (manual: protocol-flow-canceling-requests).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use bytes::BytesMut;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::config::{Host, UpstreamConfig};
use crate::net::StepObserver;
use crate::net::dial::{Names, Transport, dial};
use crate::net::tls::UpstreamTls;
use crate::wire::compose;
use crate::wire::startup_packet::CancelKey;

/// Where and with which key one backend is cancelled, and how many cancels for it are on their way.
///
/// A backend must not serve anyone else while a cancel for it is in flight: PostgreSQL's signal would hit the next
/// owner's query (trap 71).
#[derive(Debug)]
pub struct CancelTarget {
    /// `None`: this server gives no keys, a cancel can do nothing (trap 10).
    key: Option<CancelKey>,
    host: Host,
    upstream: Arc<UpstreamConfig>,
    tls: Arc<UpstreamTls>,
    transport: Transport,
    in_flight: AtomicU32,
    /// A cancel was sent and the server did not close its connection in time: it may strike at any moment.
    overdue: AtomicBool,
    landed: Notify,
}

/// What became of a cancel that was sent to PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelSent {
    /// PostgreSQL took it and closed the connection: the signal has been sent, or the key named nothing.
    Landed,
    /// Nothing was sent: no key, or no connection.
    NotSent,
    /// It was sent, and its connection is still open at the deadline.
    Overdue,
}

/// One cancel in flight. While it lives, the backend can't be given back.
#[derive(Debug)]
#[must_use]
pub struct InFlight(Arc<CancelTarget>);

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.landed.notify_waiters();
        }
    }
}

impl CancelTarget {
    /// `is_tls`: the session's own connection is encrypted, so the cancel's will be (libpq 17 does the same).
    pub fn new(
        key: Option<CancelKey>,
        host: Host,
        upstream: Arc<UpstreamConfig>,
        tls: Arc<UpstreamTls>,
        is_tls: bool,
    ) -> Self {
        let transport = if is_tls {
            Transport::TlsRequired
        } else {
            Transport::Plain
        };
        let (in_flight, overdue, landed) = (AtomicU32::new(0), AtomicBool::new(false), Notify::new());
        Self {
            key,
            host,
            upstream,
            tls,
            transport,
            in_flight,
            overdue,
            landed,
        }
    }

    /// The backend's process id, for logs; `None` where the server gave no key.
    pub fn process_id(&self) -> Option<u32> {
        self.key.as_ref().map(|key| key.process_id)
    }

    /// Announces a cancel, so that the backend stays with its owner until the guard is dropped.
    pub fn announce(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight(Arc::clone(self))
    }

    /// Whether no cancel is on its way and none may strike later. One load each.
    pub fn is_quiet(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) == 0 && !self.overdue.load(Ordering::Acquire)
    }

    /// Waits until no cancel is in flight; false where one may still strike: the backend must be closed then.
    ///
    /// Ends by itself, because every cancel has a deadline of its own.
    pub async fn quiet(&self) -> bool {
        loop {
            let landed = self.landed.notified();
            tokio::pin!(landed);
            landed.as_mut().enable();
            if self.in_flight.load(Ordering::Acquire) == 0 {
                return !self.overdue.load(Ordering::Acquire);
            }
            landed.await;
        }
    }

    /// Sends a CancelRequest and waits until the server has closed the connection: only then is the signal sent.
    pub async fn send(self: &Arc<Self>, deadline: Instant) -> CancelSent {
        let _in_flight = self.announce();
        let Some(key) = &self.key else {
            return CancelSent::NotSent;
        };
        // Its host has the address that the session is on.
        let steps = StepObserver::default();
        let dialing = dial(
            &self.host,
            &self.upstream,
            &self.tls,
            &Names::System,
            self.transport,
            &steps,
        );
        let mut stream = match timeout_at(deadline, dialing).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(_)) | Err(_) => return CancelSent::NotSent,
        };
        let mut request = BytesMut::new();
        compose::cancel_request(&mut request, key);
        let closed = async {
            stream.write_all(&request).await?;
            // The server answers nothing. Whatever comes instead is not read into memory without end.
            let mut answer = BytesMut::with_capacity(64);
            while stream.read_buf(&mut answer).await? > 0 {
                answer.clear();
            }
            Ok::<(), std::io::Error>(())
        };
        match timeout_at(deadline, closed).await {
            // A reset closes it just as well.
            Ok(Ok(()) | Err(_)) => CancelSent::Landed,
            Err(_) => {
                self.overdue.store(true, Ordering::Release);
                CancelSent::Overdue
            }
        }
    }
}
