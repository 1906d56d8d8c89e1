//! How clients prove who they are: `auth:`, `auth_query:`, `peer_users:`, `tls:`, and whose logins count where `users:` is
//! empty.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::databases::Databases;
use super::error::Problem;
use super::file::{AuthQueryFile, File, ScalarOr, TlsFile};
use super::listen::{self, requires_tls};
use super::path::KeyPath;
use super::scalar::Scalar;
use super::section::Section;
use super::sources::Sources;
use super::upstream::Resolved;
use super::users;
use super::{AuthConfig, AuthMethod, AuthQueryConfig, ClientTlsConfig, ClientTlsMode, ListenerConfig, UserConfig};

/// `users:`; without it, and without `auth_query:`, the logins of the upstreams.
pub(super) fn who_may_log_in(
    file: &File,
    listeners: &[ListenerConfig],
    auth: &AuthConfig,
    general: &Resolved,
    databases: &Databases,
    sources: &Sources,
) -> Result<Vec<UserConfig>, Problem> {
    if let Some(entries) = file.users.as_ref().filter(|entries| !entries.is_empty()) {
        return users::resolve(entries, listeners, sources);
    }
    if auth.query.is_some() {
        return Ok(Vec::new());
    }
    let user = &general.upstream.user;
    if general.known_password.is_none() && users::needs_password(listeners) {
        return Err(Problem::new(
            KeyPath::dotted("users"),
            format!(
                "the upstream has no password that is known at start, so clients can't prove that they are {user:?}; say \
                 who may log in, such as users: [{{name: {user}, password_file: /run/secrets/{user}}}], or set auth_query"
            ),
        ));
    }
    let mut users: Vec<UserConfig> = Vec::new();
    let own = databases
        .iter()
        .flat_map(BTreeMap::values)
        .filter_map(|database| database.own.as_ref());
    for login in [general]
        .into_iter()
        .chain(own.filter(|own| own.known_password.is_some()))
    {
        let Resolved {
            upstream,
            known_password,
            ..
        } = login;
        if !users.iter().any(|user| user.name == upstream.user) {
            users.push(users::of_upstream(
                &upstream.user,
                &upstream.password,
                known_password.as_ref(),
            ));
        }
    }
    Ok(users)
}

pub(super) fn auth(file: &File, listeners: &[ListenerConfig], tls: &ClientTlsConfig) -> Result<AuthConfig, Problem> {
    let at = Section::named("auth");
    let section = file.auth.clone().unwrap_or_default();
    let scram_iterations = at.read(
        "scram_iterations",
        &section.scram_iterations,
        |it| it.count(1, 10_000_000),
        4096,
    )?;
    let overheard = listeners.iter().find(|listener| {
        let is_private = listener.address.is_private() || requires_tls(listener.tls.unwrap_or(tls.mode));
        listener.auth == AuthMethod::ScramSha256 && !is_private
    });
    if let Some(listener) = overheard.filter(|_| scram_iterations < 4096) {
        let address = &listener.address;
        let message = format!(
            "below 4096 is for exchanges that no one can overhear, but {address} is neither loopback, a unix socket, nor \
             TLS only"
        );
        return Err(at.problem("scram_iterations", message));
    }
    if section.query.is_some() && file.auth_query.is_some() {
        return Err(at.problem("query", "auth_query is set as well; they are the same key"));
    }
    if section.peer_users.is_some() && file.peer_users.is_some() {
        return Err(at.problem(
            "peer_users",
            "the top-level peer_users is set as well; they are the same key",
        ));
    }
    let (query_path, query) = match &section.query {
        Some(query) => (KeyPath::dotted("auth.query"), query.clone()),
        None => (
            KeyPath::dotted("auth_query"),
            file.auth_query.clone().unwrap_or_default(),
        ),
    };
    let (peers_path, peers) = match section.peer_users {
        Some(peers) => (KeyPath::dotted("auth.peer_users"), peers),
        None => (
            KeyPath::dotted("peer_users"),
            file.peer_users.clone().unwrap_or_default(),
        ),
    };
    Ok(AuthConfig {
        scram_iterations,
        scram_iterations_max: at.read(
            "scram_iterations_max",
            &section.scram_iterations_max,
            |it| it.count(1, 10_000_000),
            100_000,
        )?,
        query: auth_query(&query, query_path)?,
        peer_users: peer_users(&peers, &peers_path)?,
    })
}

fn auth_query(file: &AuthQueryFile, path: KeyPath) -> Result<Option<AuthQueryConfig>, Problem> {
    let at = Section::at(path);
    let database = at.read_if("database", &file.database, Scalar::text)?;
    let user = at.read_if("user", &file.user, Scalar::text)?;
    let cache_ttl = at.read(
        "cache_ttl",
        &file.cache_ttl,
        Scalar::duration_or_zero,
        Duration::from_secs(60),
    )?;
    let negative_ttl = at.read(
        "negative_ttl",
        &file.negative_ttl,
        Scalar::duration_or_zero,
        Duration::from_secs(5),
    )?;
    let Some(query) = at.read("query", &file.query, Scalar::text_or_none, None)? else {
        return match database.or(user) {
            Some(_) => Err(at.problem("query", "is missing")),
            None => Ok(None),
        };
    };
    if !query.contains("$1") {
        return Err(at.problem("query", "must have $1 in it, for the user's name"));
    }
    Ok(Some(AuthQueryConfig {
        query,
        database,
        user,
        cache_ttl,
        negative_ttl,
    }))
}

fn peer_users(
    file: &BTreeMap<String, ScalarOr<Vec<Scalar>>>,
    path: &KeyPath,
) -> Result<BTreeMap<String, Vec<String>>, Problem> {
    let names = |(system_user, names): (&String, &ScalarOr<Vec<Scalar>>)| {
        let names = match names {
            ScalarOr::Scalar(name) => vec![name.text()],
            ScalarOr::Full(names) => names.iter().map(Scalar::text).collect(),
        };
        let names: Result<Vec<String>, String> = names.into_iter().collect();
        let names = names.map_err(|message| Problem::new(path.key(system_user), message))?;
        Ok((system_user.clone(), names))
    };
    file.iter().map(names).collect()
}

pub(super) fn client_tls(file: &TlsFile, sources: &Sources) -> Result<ClientTlsConfig, Problem> {
    let at = Section::named("tls");
    let readable = |key: &str, value: &Option<Scalar>| -> Result<Option<PathBuf>, Problem> {
        let path = at.path_if(key, value)?;
        let read = path.as_deref().map(|path: &Path| sources.read(path)).transpose();
        read.map(|_| path).map_err(|message| at.problem(key, message))
    };
    Ok(ClientTlsConfig {
        mode: at.read(
            "mode",
            &file.mode,
            |it| it.word(listen::TLS_MODES),
            ClientTlsMode::Disable,
        )?,
        cert: readable("cert", &file.cert)?,
        key: readable("key", &file.key)?,
        client_ca: readable("client_ca", &file.client_ca)?,
    })
}

/// Files that the modes in use can't do without.
pub(super) fn check_client_tls(tls: &ClientTlsConfig, listeners: &[ListenerConfig]) -> Result<(), Problem> {
    let at = Section::named("tls");
    let modes = || {
        listeners
            .iter()
            .map(|listener| listener.tls.unwrap_or(tls.mode))
            .chain([tls.mode])
    };
    let needs = |key: &str, value: &Option<PathBuf>, is_needed: bool, why: &str| {
        if is_needed && value.is_none() {
            Err(at.problem(key, format!("is needed for {why}")))
        } else {
            Ok(())
        }
    };
    let is_any = modes().any(|mode| mode != ClientTlsMode::Disable);
    needs("cert", &tls.cert, is_any, "TLS towards clients")?;
    needs("key", &tls.key, is_any, "TLS towards clients")?;
    let verifies = modes().any(|mode| mode == ClientTlsMode::VerifyFull);
    needs(
        "client_ca",
        &tls.client_ca,
        verifies,
        "mode verify-full: it vouches for the clients' certificates",
    )
}
