//! One client connection, accept to close.
//!
//! [`startup`] reads the first packets, [`authenticate`] proves who the client is ([`credentials`] and [`auth_query`]
//! know of it), [`greeting`] answers without the database where it can, [`session`] serves. [`context`] is what all of
//! them are given.

pub mod auth_query;
pub mod authenticate;
pub mod context;
pub mod credentials;
pub mod greeting;
pub mod session;
pub mod startup;

use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;

use crate::drain::{DrainSignal, Phase};
use crate::error;
use crate::metrics::ClientState;
use crate::net::Stream;
use crate::wire::{Report, compose};
use authenticate::{Denied, authenticate};
use context::{ClientContext, Door, Snapshot};
use greeting::{Greeted, greet};
use session::Session;
use startup::{Arrival, receive};

/// Serves one accepted connection until it ends.
pub async fn serve(stream: Stream, door: Door, context: Arc<ClientContext>, drain: DrainSignal) {
    let snapshot = context.snapshot();
    let log = snapshot.config.log.connections;
    let peer = stream.peer();
    let _counted = drain.guard();
    // Boxed: what a login needs is no part of what an idle client costs.
    let arrived = Box::pin(arrive(stream, door, &context, &snapshot, drain.clone())).await;
    let Some((session, early, dedicated)) = arrived else {
        return;
    };
    let _place = session.1;
    if log {
        tracing::info!(client = %peer, "connected");
    }
    session.0.run(early, dedicated).await;
    if log {
        tracing::info!(client = %peer, "disconnected");
    }
}

type Arrived = ((Session, context::Place), BytesMut, Option<crate::pool::Lease>);

/// Everything up to the greeting, within `limits.client_login_timeout` and the bounds on clients.
async fn arrive(
    mut stream: Stream,
    door: Door,
    context: &Arc<ClientContext>,
    snapshot: &Arc<Snapshot>,
    mut drain: DrainSignal,
) -> Option<Arrived> {
    let limits = &snapshot.config.limits;
    let Some(_waiting) = context.unauthenticated_place(limits.max_unauthenticated) else {
        last_words(
            &mut stream,
            &error::too_many_clients("limits.max_unauthenticated"),
            context,
        )
        .await;
        return None;
    };
    let started = Instant::now();
    let login = log_in(stream, door, context, snapshot);
    let session_drain = drain.clone();
    let arrived = tokio::select! {
        arrived = within(limits.client_login_timeout, login) => arrived?,
        _ = drain.changed_to(Phase::ClosingAll) => None?,
    };
    let (stream, greeted, early, place) = arrived?;
    context.metrics.observe_client_login(started.elapsed());
    let gauge = context.metrics.client(ClientState::Idle);
    let (session, dedicated) = Session::new(stream, greeted, context.clone(), snapshot.clone(), gauge, session_drain);
    Some(((session, place), early, dedicated))
}

async fn within<T>(limit: Option<std::time::Duration>, future: impl Future<Output = T>) -> Option<T> {
    match limit {
        Some(limit) => tokio::time::timeout(limit, future).await.ok(),
        None => Some(future.await),
    }
}

/// Handshake, authentication and greeting.
async fn log_in(
    stream: Stream,
    door: Door,
    context: &Arc<ClientContext>,
    snapshot: &Arc<Snapshot>,
) -> Option<(Stream, Greeted, BytesMut, context::Place)> {
    let (mut stream, login, mut read) = match receive(stream, door, snapshot).await {
        Ok(Arrival::Login(stream, login, read)) => (stream, login, read),
        Ok(Arrival::Cancel(key)) => {
            let outcome = context
                .cancel_keys
                .cancel(&key, snapshot.config.pool.cancel_timeout)
                .await;
            context.metrics.cancel_handled(outcome);
            return None;
        }
        Ok(Arrival::Gone) => return None,
        Err(error) => {
            tracing::debug!(%error, "a client went away before its login");
            return None;
        }
    };
    context.metrics.client_connected();
    let Some(place) = context.client_place(snapshot.config.limits.max_clients) else {
        last_words(&mut stream, &error::too_many_clients("limits.max_clients"), context).await;
        return None;
    };
    if let Some(words) = &login.negotiate {
        stream.write_all(words).await.ok()?;
    }
    let authenticated = match authenticate(&mut stream, &mut read, &login, door, context, snapshot).await {
        Ok(authenticated) => authenticated,
        Err(Denied::Refused(report)) => {
            tracing::info!(client = %stream.peer(), user = %login.user, sqlstate = %report.sqlstate, "a login was refused");
            last_words(&mut stream, &report, context).await;
            return None;
        }
        Err(Denied::Gone) => return None,
    };
    match greet(context, &login, authenticated, stream.peer().to_string()).await {
        Ok(greeted) => {
            stream.write_all(&greeted.words).await.ok()?;
            Some((stream, greeted, read, place))
        }
        Err(report) => {
            tracing::info!(client = %stream.peer(), user = %login.user, database = %login.database, sqlstate = %report.sqlstate, message = %report.message, "a login could not be served");
            last_words(&mut stream, &report, context).await;
            None
        }
    }
}

/// Sends an ErrorResponse and closes; a peer that doesn't take it is not waited for.
async fn last_words(stream: &mut Stream, report: &Report, context: &ClientContext) {
    context.metrics.error_sent(report.sqlstate);
    let mut words = BytesMut::new();
    compose::report(&mut words, report);
    let said = async {
        stream.write_all(&words).await?;
        stream.shutdown().await
    };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), said).await;
}
