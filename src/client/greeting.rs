//! From a proven login to ReadyForQuery: without the database wherever its answers are known already.

use std::sync::Arc;

use bytes::BytesMut;

use super::authenticate::Authenticated;
use super::context::ClientContext;
use crate::backend::ServerParameters;
use crate::net::PeerAddress;
use crate::pool::{ClientCancel, Holder, Lease, LeaseError, Pool, PoolKey, SecretLength, StartupSettings};
use crate::protocol::handshake::{Login, Replication};
use crate::virtual_session::VirtualSession;
use crate::virtual_session::parameters::Settings;
use crate::virtual_session::pins::PinReason;
use crate::wire::backend_message::TransactionStatus;
use crate::wire::{PROTOCOL_3_2, Report, Severity, SqlState, compose};

/// A client that may begin its session.
#[derive(Debug)]
pub struct Greeted {
    /// Where its backends come from.
    pub pool: Arc<Pool>,
    /// Its ledger.
    pub session: VirtualSession,
    /// How pools and cancels know it.
    pub holder: Arc<Holder>,
    /// Its cancel key, for as long as it lives.
    pub cancel: ClientCancel,
    /// What a backend of its pool reports by itself.
    pub neutral: Arc<ServerParameters>,
    /// A backend of its own, where its startup parameters or replication need one.
    pub dedicated: Option<Lease>,
    /// Everything from the authentication's last words to ReadyForQuery, for one write.
    pub words: BytesMut,
}

/// Finds the client's pool, learns what must be learned, and composes the greeting.
pub async fn greet(
    context: &Arc<ClientContext>,
    login: &Login,
    authenticated: Authenticated,
    address: PeerAddress,
) -> Result<Greeted, Report> {
    let number = context.next_client();
    let length = if login.version >= PROTOCOL_3_2 {
        SecretLength::Long
    } else {
        SecretLength::Short
    };
    let cancel = context.cancel_keys.register(length).map_err(|error| {
        tracing::error!(%error, "the system's random generator failed");
        Report::fatal(SqlState::INTERNAL_ERROR, "could not generate random cancel key")
    })?;
    let holder = Holder::new(number, address, cancel.slot.clone());
    holder.set_process_id(cancel.key.process_id);
    let key = PoolKey {
        database: database_of(login, context),
        user: login.user.clone(),
    };
    if let Some(secret) = authenticated.secret_to_pass() {
        context.pools.pass_secret(&login.user, secret);
    }
    let pool = context.pools.pool(&key).map_err(|error| fatal(&error))?;
    if login.replication != Replication::None || !login.unsupported_switches.is_empty() {
        return Box::pin(with_own_backend(pool, holder, cancel, login, authenticated)).await;
    }
    let neutral = pool.learn().await.map_err(|error| fatal(&error))?;
    if !pool.knows_catalog() {
        pool.begin_to_know_catalog();
    }
    let settings = match pool.prove(&holder, &login.settings, &neutral).await {
        Ok(StartupSettings::Follow(settings)) => settings,
        Ok(StartupSettings::NeedOwnBackend) => {
            return Box::pin(with_own_backend(pool, holder, cancel, login, authenticated)).await;
        }
        Err(report) => return Err(report.with_severity(Severity::Fatal)),
    };
    let startup = Settings::new(
        settings
            .iter()
            .map(|(name, value)| (name.as_str().into(), value.as_str().into())),
    );
    if let Some(name) = startup.value("application_name") {
        holder.set_application_name(name);
    }
    let mut words = opening_words(&authenticated);
    for (name, value) in neutral.iter() {
        compose::parameter_status(&mut words, name, startup.value(name).map_or(value, str::as_bytes));
    }
    closing_words(&mut words, &cancel);
    // Also what equals the server's own value: a reload of its configuration must not change what the client asked for.
    let session = VirtualSession::new(number, pool.knowledge().ledger().clone(), startup, neutral.lexing());
    Ok(Greeted {
        pool,
        session,
        holder,
        cancel,
        neutral,
        dedicated: None,
        words,
    })
}

/// The database that the client's pool is of. Physical replication is connected to none, and need not name one.
fn database_of(login: &Login, context: &ClientContext) -> String {
    let names_one = login
        .parameters
        .iter()
        .any(|(name, value)| name == "database" && !value.is_empty());
    if login.replication == Replication::Physical && !names_one {
        context.pools.default_key().database
    } else {
        login.database.clone()
    }
}

/// Replication, and parameters that only a connection's start can set: PostgreSQL itself greets, by way of a backend
/// that no one else will ever have.
async fn with_own_backend(
    pool: Arc<Pool>,
    holder: Arc<Holder>,
    cancel: ClientCancel,
    login: &Login,
    authenticated: Authenticated,
) -> Result<Greeted, Report> {
    let own = ["user", "database"];
    let parameters: Vec<_> = login
        .parameters
        .iter()
        .filter(|(name, _)| !own.contains(&name.as_str()))
        .cloned()
        .collect();
    let lease = pool
        .dedicated(&holder, parameters)
        .await
        .map_err(|error| fatal(&error))?;
    let neutral = Arc::new(lease.parameters.clone());
    let mut words = opening_words(&authenticated);
    for (name, value) in neutral.iter() {
        compose::parameter_status(&mut words, name, value);
    }
    closing_words(&mut words, &cancel);
    if let Some(name) = login.setting("application_name") {
        holder.set_application_name(name);
    }
    let ledger = pool.knowledge().ledger().clone();
    let mut session = VirtualSession::new(holder.client_id(), ledger, Settings::default(), neutral.lexing());
    session.pin(PinReason::Replication);
    Ok(Greeted {
        pool,
        session,
        holder,
        cancel,
        neutral,
        dedicated: Some(lease),
        words,
    })
}

fn opening_words(authenticated: &Authenticated) -> BytesMut {
    let mut words = BytesMut::with_capacity(1024);
    words.extend_from_slice(&authenticated.last_words);
    compose::authentication_ok(&mut words);
    words
}

fn closing_words(words: &mut BytesMut, cancel: &ClientCancel) {
    compose::backend_key_data(words, &cancel.key);
    compose::ready_for_query(words, TransactionStatus::Idle);
}

/// At a login every refusal ends the connection.
fn fatal(error: &LeaseError) -> Report {
    error.report().with_severity(Severity::Fatal)
}
