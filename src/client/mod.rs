//! One client connection, accept to close.
//!
//! [`startup`] reads the first packets, [`mod@authenticate`] proves who the client is ([`credentials`] and [`auth_query`]
//! know of it), [`greeting`] answers without the database where it can, [`session`] serves. [`context`] is what all of them are given. [`warm`] lets busy
//! ones keep their buffers.

pub mod auth_query;
pub mod authenticate;
pub mod context;
pub mod credentials;
pub mod greeting;
pub mod session;
pub mod startup;
pub mod warm;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use crate::drain::{DrainSignal, Phase};
use crate::error;
use crate::metrics::ClientState;
use crate::net::Stream;
use crate::protocol::handshake::Login;
use crate::wire::{Report, SqlState, compose};
use authenticate::{Denied, authenticate};
use context::{ClientContext, Door, Snapshot};
use greeting::{Greeted, greet};
use session::{Beginning, Session};
use startup::{Arrival, receive};

/// Serves one accepted connection until it ends.
pub async fn serve(stream: Stream, door: Door, context: Arc<ClientContext>, drain: DrainSignal) {
    let snapshot = context.snapshot();
    let log = snapshot.config.log.connections;
    let peer = stream.peer();
    let _counted = drain.guard();
    let Some(_connection) = context.connection_place() else {
        let mut stream = stream;
        return Box::pin(turn_away(&mut stream, "The limit of file descriptors", &context)).await;
    };
    // Boxed: what a login needs is no part of what an idle client costs.
    // What is rare in it is boxed once more: it is allocated and moved as large as its largest part.
    let arrived = Box::pin(arrive(stream, door, &context, &snapshot, drain.clone())).await;
    let Some((mut session, _place, beginning)) = arrived else {
        return;
    };
    if log {
        tracing::info!(client = %peer, "connected");
    }
    session.run(beginning).await;
    if log {
        tracing::info!(client = %peer, "disconnected");
    }
}

/// Boxed: a future keeps room for a session in each place that it is moved through.
type Arrived = (Box<Session>, context::Place, Option<Box<Beginning>>);

/// Everything up to the greeting, within the bounds on clients and on those that have not proved who they are.
async fn arrive(
    mut stream: Stream,
    door: Door,
    context: &Arc<ClientContext>,
    snapshot: &Arc<Snapshot>,
    mut drain: DrainSignal,
) -> Option<Arrived> {
    let Some(unauthenticated) = context.unauthenticated_place(snapshot.config.limits.max_unauthenticated) else {
        Box::pin(turn_away(&mut stream, "limits.max_unauthenticated", context)).await;
        return None;
    };
    let started = Instant::now();
    let login = log_in(stream, door, context, snapshot, unauthenticated);
    let session_drain = drain.clone();
    let arrived = tokio::select! {
        arrived = login => arrived,
        _ = drain.changed_to(Phase::ClosingAll) => None?,
    };
    let (stream, greeted, early, place) = arrived?;
    context.metrics.observe_client_login(started.elapsed());
    let gauge = context.metrics.client(ClientState::Idle);
    let (session, dedicated) = Session::new(stream, greeted, context.clone(), snapshot.clone(), gauge, session_drain);
    Some((Box::new(session), place, Beginning::of(early, dedicated)))
}

/// `None` where `limits.client_login_timeout` has passed.
async fn within<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline.into(), future).await.ok(),
        None => Some(future.await),
    }
}

/// Handshake and authentication, within `limits.client_login_timeout`; then the greeting.
async fn log_in(
    stream: Stream,
    door: Door,
    context: &Arc<ClientContext>,
    snapshot: &Arc<Snapshot>,
    unauthenticated: context::Place,
) -> Option<(Stream, Greeted, BytesMut, context::Place)> {
    let limits = &snapshot.config.limits;
    let deadline = limits
        .client_login_timeout
        .and_then(|limit| Instant::now().checked_add(limit));
    let (mut stream, login, mut read) = first_packets(stream, door, context, snapshot, deadline).await?;
    context.metrics.client_connected();
    let Some(place) = context.client_place(limits.max_clients) else {
        let report = error::too_many_clients("limits.max_clients");
        Box::pin(last_words(&mut stream, &report, context)).await;
        return None;
    };
    let proving = async {
        if let Some(words) = &login.negotiate {
            stream.write_all(words).await?;
        }
        authenticate(&mut stream, &mut read, &login, door, context, snapshot).await
    };
    let authenticated = match within(deadline, proving).await {
        Some(Ok(authenticated)) => authenticated,
        Some(Err(Denied::Gone)) => return None,
        denied => {
            let report = match denied {
                Some(Err(Denied::Refused(report))) => report,
                _ => error::login_too_long(),
            };
            tracing::info!(client = %stream.peer(), user = %login.user, sqlstate = %report.sqlstate, "a login was refused");
            // Who knows of the refusal may try again in its place. How many are being told, max_unauthenticated bounds.
            drop(place);
            Box::pin(last_words(&mut stream, &report, context)).await;
            return None;
        }
    };
    drop(unauthenticated);
    let greeted = tokio::select! {
        greeted = greet(context, &login, authenticated, stream.peer()) => greeted,
        () = stream.left() => return None,
    };
    match greeted {
        Ok(greeted) => {
            stream.write_all(&greeted.words).await.ok()?;
            Some((stream, greeted, read, place))
        }
        Err(report) => {
            tracing::info!(client = %stream.peer(), user = %login.user, database = %login.database, sqlstate = %report.sqlstate, message = %report.message, "a login could not be served");
            if report.sqlstate == SqlState::INVALID_PASSWORD {
                // PostgreSQL has another password than the one that was looked up.
                context.auth_query.forget(&login.user);
            }
            Box::pin(last_words(&mut stream, &report, context)).await;
            None
        }
    }
}

/// What comes before the authentication; `None` where nobody wants to log in.
async fn first_packets(
    stream: Stream,
    door: Door,
    context: &Arc<ClientContext>,
    snapshot: &Arc<Snapshot>,
    deadline: Option<Instant>,
) -> Option<(Stream, Box<Login>, BytesMut)> {
    // A peer that has not said what it wants is told nothing at its deadline, as PostgreSQL does it.
    match within(deadline, receive(stream, door, snapshot, context)).await? {
        Ok(Arrival::Login(stream, login, read)) => Some((stream, login, read)),
        Ok(Arrival::Cancel(key)) => {
            let limit = snapshot.config.pool.cancel_timeout;
            let outcome = Box::pin(context.cancel_keys.cancel(&key, limit)).await;
            context.metrics.cancel_handled(outcome);
            None
        }
        Ok(Arrival::Gone) => None,
        Err(error) => {
            tracing::debug!(%error, "a client went away before its login");
            None
        }
    }
}

/// How long last words may take to leave, and to be read before the connection is closed under them.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);
/// What is read of a peer that still talks while it is told to go.
const UNHEARD_MAX: usize = 64 * 1024;

/// There is no place: the peer is told so, unless too many are being told.
async fn turn_away(stream: &mut Stream, bound: &str, context: &Arc<ClientContext>) {
    if let Some(_told) = context.turned_away_place() {
        last_words(stream, &error::too_many_clients(bound), context).await;
    }
}

/// Sends an ErrorResponse and closes; a peer that doesn't take it is not waited for.
async fn last_words(stream: &mut Stream, report: &Report, context: &ClientContext) {
    context.metrics.error_sent(report.sqlstate);
    let mut words = BytesMut::new();
    compose::report(&mut words, report);
    close_with(stream, &words).await;
}

/// Sends bytes and closes. What the peer still sends is read and dropped, within bounds: a socket that is closed with
/// something unread resets the connection, and the peer would lose what it was told.
async fn close_with(stream: &mut Stream, words: &[u8]) {
    let said = async {
        stream.write_all(words).await?;
        stream.shutdown().await?;
        let mut unheard = BytesMut::with_capacity(4096);
        let mut len = 0;
        while len < UNHEARD_MAX {
            unheard.clear();
            match stream.read_buf(&mut unheard).await? {
                0 => break,
                read => len += read,
            }
        }
        Ok::<(), std::io::Error>(())
    };
    let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, said).await;
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_allocates_and_moves_little() {
        fn future_len<F>(
            _: impl Fn(Stream, Door, &'static Arc<ClientContext>, &'static Arc<Snapshot>, DrainSignal) -> F,
        ) -> usize {
            size_of::<F>()
        }
        let login = future_len(arrive);
        assert!(login <= 3584, "{login} bytes of future");
    }

    #[test]
    fn an_idle_client_takes_little_memory() {
        fn future_len<A, B, C, D, F>(_: impl Fn(A, B, C, D) -> F) -> usize {
            size_of::<F>()
        }
        let task = future_len(serve);
        let session = size_of::<Session>();
        assert!(
            task + session <= 1536,
            "{task} bytes of future and {session} of session"
        );
    }
}
