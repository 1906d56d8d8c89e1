//! `upstream:` and `databases:`: which server each name leads to.

use std::collections::BTreeMap;

use super::error::Problem;
use super::file::{DatabaseFile, File, KeepaliveFile, ScalarOr, UpstreamFile};
use super::path::KeyPath;
use super::resolve::{check_sizes, pool_override};
use super::scalar::{Scalar, is_off};
use super::section::Section;
use super::sources::Sources;
use super::upstream::{self, Resolved, Scope, UpstreamKeys};
use super::{Config, DatabaseConfig, Host, ListenAddress, PoolConfig, TcpKeepalive};

/// An entry of `databases:`, and the login of its own upstream if it has one.
pub(super) struct Database {
    pub(super) config: DatabaseConfig,
    pub(super) own: Option<Resolved>,
}

pub(super) type Databases = Option<BTreeMap<String, Database>>;

/// The general upstream and those of `databases:`.
pub(super) fn upstreams(
    file: &File,
    pool: &PoolConfig,
    sources: &Sources,
    warnings: &mut Vec<String>,
) -> Result<(Resolved, Databases), Problem> {
    let path = KeyPath::dotted("upstream");
    let keys = upstream_keys(file.upstream.as_ref().unwrap_or(&UpstreamFile::default()), &path)?;
    let databases = databases(file, &keys, pool, sources, warnings)?;
    let is_named = keys.url.is_some()
        || ["PGHOST", "PGHOSTADDR", "PGSERVICE"]
            .into_iter()
            .any(|name| sources.variable(name).is_some());
    let url = path.key("url");
    if is_named {
        let general = upstream::resolve(&keys, Scope::General, sources, warnings);
        return general
            .map(|general| (general, databases))
            .map_err(|message| blame(&path, message));
    }
    // Where every database has an upstream of its own, no name leads to the general one; the first stands in for it.
    let mut own = databases
        .iter()
        .flat_map(BTreeMap::values)
        .map(|database| database.own.as_ref());
    let first = own.next().flatten().filter(|_| own.all(|it| it.is_some()));
    let general = first.map(|first| Resolved {
        upstream: first.upstream.clone(),
        names_dbname: first.names_dbname,
        known_password: first.known_password.clone(),
    });
    let missing = "no upstream is given; set --upstream, PGSIDECAR_UPSTREAM, PGSIDECAR_UPSTREAM_FILE or upstream.url to \
                   the database's URL, such as postgres://app:secret@db.example:5432/app";
    Ok((general.ok_or_else(|| Problem::new(url, missing))?, databases))
}

/// A problem of an upstream belongs to one of our keys, or to the URL.
fn blame(path: &KeyPath, message: String) -> Problem {
    for key in ["password_file", "password_command"] {
        if let Some(message) = message.strip_prefix(key).and_then(|rest| rest.strip_prefix(": ")) {
            return Problem::new(path.key(key), message);
        }
    }
    Problem::new(path.key("url"), message)
}

fn upstream_keys(file: &UpstreamFile, path: &KeyPath) -> Result<UpstreamKeys, Problem> {
    let at = Section::at(path.clone());
    let keys = UpstreamKeys {
        url: at.read_if("url", &file.url, Scalar::text)?,
        password_file: at.path_if("password_file", &file.password_file)?,
        password_command: at.read_if("password_command", &file.password_command, Scalar::text)?,
        connect_timeout: at.read_if("connect_timeout", &file.connect_timeout, Scalar::duration_or_off)?,
        tcp_keepalive: tcp_keepalive(file.tcp_keepalive.as_ref(), &path.key("tcp_keepalive"))?,
        tcp_user_timeout: at.read_if("tcp_user_timeout", &file.tcp_user_timeout, Scalar::duration_or_off)?,
        early_login: at.read_if("early_login", &file.early_login, |it| it.word(upstream::EARLY_LOGINS))?,
    };
    if keys.password_file.is_some() && keys.password_command.is_some() {
        return Err(at.problem("password_command", "password_file is set as well; set one of them"));
    }
    Ok(keys)
}

fn tcp_keepalive(
    file: Option<&ScalarOr<KeepaliveFile>>,
    path: &KeyPath,
) -> Result<Option<Option<TcpKeepalive>>, Problem> {
    let at = Section::at(path.clone());
    match file {
        None => Ok(None),
        Some(ScalarOr::Scalar(Scalar::Bool(false) | Scalar::Integer(0))) => Ok(Some(None)),
        Some(ScalarOr::Scalar(Scalar::Text(text))) if is_off(text) => Ok(Some(None)),
        Some(ScalarOr::Scalar(_)) => Err(Problem::new(
            path.clone(),
            "must be off, or a mapping such as {idle: 30s, interval: 10s, count: 3}",
        )),
        Some(ScalarOr::Full(file)) => Ok(Some(Some(TcpKeepalive {
            idle: at.read("idle", &file.idle, Scalar::duration, upstream::TCP_KEEPALIVE.idle)?,
            interval: at.read(
                "interval",
                &file.interval,
                Scalar::duration,
                upstream::TCP_KEEPALIVE.interval,
            )?,
            count: at.read(
                "count",
                &file.count,
                |it| it.count(1, 127),
                upstream::TCP_KEEPALIVE.count,
            )?,
        }))),
    }
}

fn databases(
    file: &File,
    general: &UpstreamKeys,
    pool: &PoolConfig,
    sources: &Sources,
    warnings: &mut Vec<String>,
) -> Result<Databases, Problem> {
    let path = KeyPath::dotted("databases");
    let Some(entries) = &file.databases else {
        return Ok(None);
    };
    if entries.is_empty() {
        return Err(Problem::new(
            path,
            "is empty, so no database could be reached; leave it out for all of the upstream's",
        ));
    }
    let mut databases = BTreeMap::new();
    for (name, entry) in entries {
        let path = path.key(name);
        let entry = entry.clone().unwrap_or_default();
        let database = database(&entry, &path, general, sources, warnings)?;
        check_sizes(&pool.overridden(&database.config.pool))
            .map_err(|message| Problem::new(path.key("pool").key("min_idle"), message))?;
        databases.insert(name.clone(), database);
    }
    Ok(Some(databases))
}

fn database(
    file: &DatabaseFile,
    path: &KeyPath,
    general: &UpstreamKeys,
    sources: &Sources,
    warnings: &mut Vec<String>,
) -> Result<Database, Problem> {
    let at = Section::at(path.clone());
    let own_path = path.key("upstream");
    let own_keys = match &file.upstream {
        None => None,
        Some(ScalarOr::Scalar(url)) => {
            let url = url.text().map_err(|message| at.problem("upstream", message))?;
            Some(UpstreamKeys {
                url: Some(url),
                ..UpstreamKeys::default()
            })
        }
        Some(ScalarOr::Full(file)) => Some(upstream_keys(file, &own_path)?),
    };
    let own = own_keys.map(|keys| {
        if keys.url.is_none() {
            return Err(Problem::new(own_path.key("url"), "is missing"));
        }
        let keys = UpstreamKeys {
            connect_timeout: keys.connect_timeout.or(general.connect_timeout),
            tcp_keepalive: keys.tcp_keepalive.or(general.tcp_keepalive),
            tcp_user_timeout: keys.tcp_user_timeout.or(general.tcp_user_timeout),
            early_login: keys.early_login.or(general.early_login),
            ..keys
        };
        upstream::resolve(&keys, Scope::Database, sources, warnings).map_err(|message| match &file.upstream {
            Some(ScalarOr::Scalar(_)) => at.problem("upstream", message),
            _ => blame(&own_path, message),
        })
    });
    let own = own.transpose()?;
    let named = own
        .as_ref()
        .filter(|own| own.names_dbname)
        .map(|own| own.upstream.dbname.clone());
    let pool = file
        .pool
        .as_ref()
        .map(|pool| pool_override(pool, &path.key("pool")))
        .transpose()?;
    let config = DatabaseConfig {
        upstream: own.as_ref().map(|own| own.upstream.clone()),
        dbname: at.read_if("dbname", &file.dbname, Scalar::text)?.or(named),
        user: at.read_if("user", &file.user, Scalar::text)?,
        pool: pool.unwrap_or_default(),
    };
    Ok(Database { config, own })
}

/// An upstream that is our own listener would have us connect to ourselves without end: easily done where PGHOST and
/// PGPORT, meant for the app, are in our environment too.
pub(super) fn refuse_loop(config: &Config) -> Result<(), Problem> {
    let own = config
        .databases
        .iter()
        .flatten()
        .filter_map(|(_, database)| database.upstream.as_ref());
    for upstream in [&config.upstream].into_iter().chain(own) {
        for listener in &config.listen {
            if upstream.hosts.iter().any(|host| is_same(host, &listener.address)) {
                let message = format!(
                    "is pgsidecar's own address ({}); it must be the database's",
                    listener.address
                );
                return Err(Problem::new(KeyPath::dotted("upstream.url"), message));
            }
        }
    }
    Ok(())
}

fn is_same(host: &Host, address: &ListenAddress) -> bool {
    match (host, address) {
        (
            Host::Unix { directory, port },
            ListenAddress::Unix {
                directory: own,
                port: own_port,
            },
        ) => directory == own && port == own_port,
        (
            Host::Tcp { host, hostaddr, port },
            ListenAddress::Tcp {
                host: own,
                port: own_port,
            },
        ) => {
            let host = hostaddr.map_or_else(|| host.clone(), |address| address.to_string());
            let is_local = ListenAddress::Tcp {
                host: host.clone(),
                port: *port,
            }
            .is_private();
            let listens_locally = ["0.0.0.0", "::", "localhost", "127.0.0.1"].contains(&own.as_str());
            port == own_port && (host == *own || is_local && listens_locally)
        }
        _ => false,
    }
}
