//! Opening a backend: dial, TLS, login, over the hosts of an upstream as libpq does (manual: libpq-connect).

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::early_login::{EarlyAttempt, EarlyLogin};
use super::exchange::{cut_frame, fill};
use super::password::{self, Login};
use super::{Backend, BackendError, CancelTarget, ServerParameters, session_attributes};
use crate::config::{Host, PasswordSource, TargetSessionAttrs, UpstreamConfig};
use crate::net::dial::{Names, Transport, dial, transports};
use crate::net::tls::UpstreamTls;
use crate::net::{ConnectStep, PeerAddress, StepObserver, Stream};
use crate::protocol::backend_login::{
    BackendLogin, Established, LOGIN_MESSAGE_LEN_MAX, LoginFailure, LoginRequest, LoginSecret, LoginStep,
};
use crate::protocol::scram::SaltedKeys;
use crate::wire::{BackendTag, PROTOCOL_3_0, Report, Severity, SqlState};

/// What our logins ask for. A server before 18 answers a request for 3.2 with a negotiation and some poolers close, so
/// 3.0 until 3.2 brings a backend something (longer cancel keys are between us and the client).
const LOGIN_PROTOCOL_VERSION: u32 = PROTOCOL_3_0;

/// Everything that a login to one database as one user needs.
#[derive(Debug, Clone)]
pub struct Connector {
    /// Where to.
    pub upstream: Arc<UpstreamConfig>,
    /// Its TLS, loaded.
    pub tls: Arc<UpstreamTls>,
    /// Who knows the addresses of its hosts.
    pub names: Names,
    /// The user's name on the server.
    pub user: String,
    /// The database's name on the server.
    pub database: String,
    /// Where the password comes from.
    pub password: PasswordSource,
    /// The most SCRAM iterations that the server may ask for.
    pub scram_iterations_max: u32,
    /// Run on the new backend; an error refuses the login.
    pub connect_query: Option<String>,
    /// Keys of the last SCRAM login.
    pub salted: SaltedKeysCache,
    /// What the server asked for then.
    pub early: EarlyLogin,
}

/// The password of the last login that succeeded, and what SCRAM derived from it: the next login with the same password,
/// salt and iterations is spared some milliseconds of CPU.
#[derive(Clone, Default)]
pub struct SaltedKeysCache(Arc<Mutex<Option<Proven>>>);

struct Proven {
    password: Zeroizing<String>,
    keys: Option<SaltedKeys>,
}

impl SaltedKeysCache {
    fn find(&self, password: &str) -> Option<SaltedKeys> {
        let cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let proven = cached.as_ref().filter(|proven| proven.password.as_str() == password);
        proven.and_then(|proven| proven.keys.clone())
    }

    /// What opened PostgreSQL last.
    fn last_proven(&self) -> Option<LoginSecret> {
        let cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cached.as_ref().map(|proven| LoginSecret::Password {
            password: proven.password.clone(),
            salted: proven.keys.clone(),
        })
    }

    fn keep(&self, secret: &LoginSecret, keys: Option<SaltedKeys>) {
        if let LoginSecret::Password { password, .. } = secret {
            let password = password.clone();
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Proven { password, keys });
        }
    }
}

impl std::fmt::Debug for SaltedKeysCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SaltedKeysCache(***)")
    }
}

/// What one connection needs beyond its [`Connector`].
#[derive(Clone, Default)]
pub struct LoginOptions {
    /// A secret that a client's own login brought, used where the connector has no password.
    pub passed_secret: LoginSecret,
    /// Startup parameters of a dedicated backend; a pooled one has none, so that RESET ALL is neutral (trap 60).
    pub parameters: Vec<(String, String)>,
    /// Who is told of the steps.
    pub steps: StepObserver,
}

impl std::fmt::Debug for LoginOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoginOptions").finish_non_exhaustive()
    }
}

/// Why there is no backend.
#[derive(Debug, Clone)]
pub enum ConnectFailure {
    /// Asking again brings the same answer: PostgreSQL's own report (28xxx, 3D000, …), or ours where TLS or the
    /// upstream's settings forbid the login.
    Refused(Report),
    /// The server is down, starting up, full or not of the wanted kind: asking again later may succeed.
    Unavailable(Report),
}

impl ConnectFailure {
    /// What the client is told. It holds no address.
    pub fn report(&self) -> &Report {
        match self {
            Self::Refused(report) | Self::Unavailable(report) => report,
        }
    }

    /// PostgreSQL's or TLS's report, sorted by whether waiting helps (trap 77).
    fn from_report(report: Report) -> Self {
        let waiting_helps = matches!(report.sqlstate.class(), "08" | "53" | "57" | "58");
        if waiting_helps {
            Self::Unavailable(report)
        } else {
            Self::Refused(report)
        }
    }

    fn unavailable(message: impl Into<std::borrow::Cow<'static, str>>) -> Self {
        Self::Unavailable(Report::fatal(SqlState::CONNECTION_FAILURE, message))
    }
}

/// A failed attempt over one transport.
struct Attempt {
    failure: ConnectFailure,
    /// `Some(is_tls)` where the other transport may fare better: TLS failed, or PostgreSQL refused before it asked for
    /// authentication.
    tried_tls: Option<bool>,
}

impl Attempt {
    fn last(failure: ConnectFailure) -> Self {
        Self {
            failure,
            tried_tls: None,
        }
    }
}

impl Connector {
    /// Whether a backend opened by this one is as good as one opened by the other. A certificate that was loaded anew
    /// makes no difference.
    pub fn leads_to_the_same(&self, other: &Self) -> bool {
        self.upstream == other.upstream
            && self.user == other.user
            && self.database == other.database
            && self.connect_query == other.connect_query
    }

    /// Opens a backend. Ends by itself: each host has the upstream's `connect_timeout`.
    pub async fn connect(&self, options: &LoginOptions) -> Result<Backend, ConnectFailure> {
        let mut failure = ConnectFailure::unavailable("the upstream names no host");
        for wanted in passes(self.upstream.target_session_attrs) {
            for host in self.hosts() {
                match self.connect_host(host, *wanted, options).await {
                    Ok(backend) => return Ok(backend),
                    // A server that answered with a refusal is the answer; the other hosts aren't asked (as in libpq).
                    Err(ConnectFailure::Refused(report)) => {
                        return Err(ConnectFailure::Refused(from_host(report, host)));
                    }
                    Err(ConnectFailure::Unavailable(report)) => {
                        let report = from_host(report, host);
                        tracing::debug!(%report, "no login on this host");
                        failure = ConnectFailure::Unavailable(behind(&failure, report));
                    }
                }
            }
        }
        Err(failure)
    }

    /// The hosts in the order to try them: as written, or from a random one on.
    fn hosts(&self) -> impl Iterator<Item = &Host> {
        let hosts = &self.upstream.hosts;
        let start = match (self.upstream.load_balance_hosts, u64::try_from(hosts.len())) {
            (true, Ok(len)) if len > 1 => usize::try_from(getrandom::u64().unwrap_or(0) % len).unwrap_or(0),
            _ => 0,
        };
        hosts.iter().cycle().skip(start).take(hosts.len())
    }

    async fn connect_host(
        &self,
        host: &Host,
        wanted: TargetSessionAttrs,
        options: &LoginOptions,
    ) -> Result<Backend, ConnectFailure> {
        let connecting = async {
            let mut backend = self.log_in_to(host, options).await?;
            if !session_attributes::is_wanted(&mut backend, wanted)
                .await
                .map_err(backend_failure)?
            {
                return Err(ConnectFailure::unavailable(
                    "the server is not of the kind that target_session_attrs asks for",
                ));
            }
            self.run_connect_query(&mut backend).await?;
            Ok(backend)
        };
        within(self.upstream.connect_timeout, connecting).await
    }

    async fn run_connect_query(&self, backend: &mut Backend) -> Result<(), ConnectFailure> {
        let Some(sql) = &self.connect_query else {
            return Ok(());
        };
        match backend.query(sql).await.map_err(backend_failure)?.error {
            Some(report) => Err(ConnectFailure::Refused(report.with_severity(Severity::Fatal))),
            None => Ok(()),
        }
    }

    /// Whether the password may be another one at the next login.
    pub fn password_may_change(&self) -> bool {
        password::may_change(&self.password)
    }

    /// Logs in, and again where a rotated secret may explain the refusal (trap 88): with what is read anew, or, where the
    /// secret changed before PostgreSQL's own did, with the one that was right before.
    async fn log_in_to(&self, host: &Host, options: &LoginOptions) -> Result<Backend, ConnectFailure> {
        let secret = self.secret(host, options).await?;
        let refused = match self.try_transports(host, secret.clone(), options).await {
            Err(ConnectFailure::Refused(report))
                if report.sqlstate == SqlState::INVALID_PASSWORD && self.password_may_change() =>
            {
                report
            }
            done => return done,
        };
        let again = self.secret(host, options).await?;
        let other = if secret.is_same(&again) {
            self.salted.last_proven().filter(|proven| !secret.is_same(proven))
        } else {
            Some(again)
        };
        match other {
            Some(other) => self.try_transports(host, other, options).await,
            None => Err(ConnectFailure::Refused(refused)),
        }
    }

    async fn secret(&self, host: &Host, options: &LoginOptions) -> Result<LoginSecret, ConnectFailure> {
        let login = Login {
            host,
            database: &self.database,
            user: &self.user,
        };
        match password::read(&self.password, login).await {
            Ok(None) => Ok(options.passed_secret.clone()),
            Ok(Some(password)) => {
                let salted = self.salted.find(&password);
                Ok(LoginSecret::Password { password, salted })
            }
            Err(error) => {
                let report = Report::fatal(
                    SqlState::CONNECTION_FAILURE,
                    "the password for the database server can't be read",
                );
                Err(ConnectFailure::Unavailable(report.with_detail_log(error.to_string())))
            }
        }
    }

    async fn try_transports(
        &self,
        host: &Host,
        secret: LoginSecret,
        options: &LoginOptions,
    ) -> Result<Backend, ConnectFailure> {
        // The first failure is the one that is told; the latest one says whether another transport may fare better.
        let mut told = None;
        let mut tried_tls = None;
        for transport in transports(self.upstream.tls.sslmode) {
            let wants_tls = *transport != Transport::Plain;
            if told.is_some() && tried_tls != Some(!wants_tls) {
                break;
            }
            match self.attempt(host, *transport, secret.clone(), options).await {
                Ok(backend) => return Ok(backend),
                Err(attempt) => {
                    tried_tls = attempt.tried_tls;
                    told.get_or_insert(attempt.failure);
                }
            }
        }
        Err(told.unwrap_or_else(|| ConnectFailure::unavailable("the upstream's sslmode allows no transport")))
    }

    /// One login over one transport: where the server's question is known, with the answer ahead of it, and the plain way
    /// behind that if it fails.
    async fn attempt(
        &self,
        host: &Host,
        transport: Transport,
        secret: LoginSecret,
        options: &LoginOptions,
    ) -> Result<Backend, Attempt> {
        let stream = self.dial(host, transport, options).await?;
        options.steps.begins(ConnectStep::LogIn);
        let Some(early) = self.early_attempt(&stream) else {
            return self.log_in_over(stream, host, secret, None, options).await;
        };
        match self
            .log_in_over(stream, host, secret.clone(), Some(early.mechanisms()), options)
            .await
        {
            Ok(backend) => {
                early.succeeded();
                Ok(backend)
            }
            Err(attempt) => {
                drop(early);
                tracing::debug!(report = %attempt.failure.report(), "a login that began early failed; it is done again the plain way");
                let stream = self.dial(host, transport, options).await?;
                options.steps.begins(ConnectStep::LogIn);
                self.log_in_over(stream, host, secret, None, options).await
            }
        }
    }

    /// Only where there is one server that it can have been.
    fn early_attempt(&self, stream: &Stream) -> Option<EarlyAttempt<'_>> {
        let is_one = self.upstream.hosts.len() == 1;
        (self.upstream.early_login && is_one).then(|| self.early.begin(stream.is_tls()))?
    }

    async fn dial(&self, host: &Host, transport: Transport, options: &LoginOptions) -> Result<Stream, Attempt> {
        dial(host, &self.upstream, &self.tls, &self.names, transport, &options.steps)
            .await
            .map_err(|error| {
                if error.is_unavailable() {
                    let report =
                        Report::fatal(SqlState::CONNECTION_FAILURE, "could not connect to the database server");
                    Attempt::last(ConnectFailure::Unavailable(report.with_detail_log(error.message)))
                } else {
                    let report = Report::fatal(
                        SqlState::CONNECTION_FAILURE,
                        "could not connect to the database server securely",
                    )
                    .with_detail("TLS with the database server failed; the log of pgsidecar says why.")
                    .with_detail_log(error.message);
                    let tried_tls = (transport == Transport::TlsIfOffered).then_some(true);
                    Attempt {
                        failure: ConnectFailure::Refused(report),
                        tried_tls,
                    }
                }
            })
    }

    async fn log_in_over(
        &self,
        mut stream: Stream,
        host: &Host,
        secret: LoginSecret,
        expected: Option<Vec<String>>,
        options: &LoginOptions,
    ) -> Result<Backend, Attempt> {
        let request = LoginRequest {
            expected,
            ..self.request(&stream, secret.clone(), options).map_err(Attempt::last)?
        };
        let mut buffer = BytesMut::new();
        let established = log_in(&mut stream, &mut buffer, request)
            .await
            .map_err(|stop| Attempt {
                tried_tls: (!stop.password_asked).then(|| stream.is_tls()),
                failure: stop.failure,
            })?;
        self.salted.keep(&secret, established.salted.clone());
        self.early.learn(stream.is_tls(), &established.offered);
        Ok(self.backend(host, stream, buffer, established))
    }

    fn request(
        &self,
        stream: &Stream,
        secret: LoginSecret,
        options: &LoginOptions,
    ) -> Result<LoginRequest, ConnectFailure> {
        let mut nonce = [0; 18];
        getrandom::fill(&mut nonce).map_err(|_| ConnectFailure::unavailable("no random numbers"))?;
        let mut parameters = vec![
            ("user".to_owned(), self.user.clone()),
            ("database".to_owned(), self.database.clone()),
        ];
        parameters.extend(self.upstream.startup_parameters.iter().cloned());
        for (name, value) in &options.parameters {
            parameters.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
            parameters.push((name.clone(), value.clone()));
        }
        Ok(LoginRequest {
            version: LOGIN_PROTOCOL_VERSION,
            parameters,
            secret,
            user: self.user.clone(),
            channel_binding: self.upstream.channel_binding,
            tls_server_end_point: stream.tls_server_end_point().map(<[u8]>::to_vec),
            require_auth: self.upstream.require_auth.clone(),
            scram_iterations_max: self.scram_iterations_max,
            nonce,
            expected: None,
        })
    }

    fn backend(&self, host: &Host, stream: Stream, buffer: BytesMut, established: Established) -> Backend {
        // A cancel must reach this very server, not another address of the same name.
        let host = match (host, stream.peer()) {
            (Host::Tcp { host, port, .. }, PeerAddress::Tcp(address)) => Host::Tcp {
                host: host.clone(),
                hostaddr: Some(address.ip()),
                port: *port,
            },
            (host, _) => host.clone(),
        };
        let (upstream, tls) = (Arc::clone(&self.upstream), Arc::clone(&self.tls));
        let cancel = CancelTarget::new(established.cancel_key, host, upstream, tls, stream.is_tls());
        Backend::new(stream, buffer, ServerParameters::new(established.parameters), cancel)
    }
}

/// A login that ended without a session.
struct LoginStop {
    failure: ConnectFailure,
    /// PostgreSQL asked for authentication before it refused: it accepted the transport.
    password_asked: bool,
}

async fn log_in(stream: &mut Stream, buffer: &mut BytesMut, request: LoginRequest) -> Result<Established, LoginStop> {
    let mut password_asked = false;
    let stop = |failure, password_asked| LoginStop {
        failure,
        password_asked,
    };
    let (first, mut login) = BackendLogin::start(request).map_err(|failure| stop(login_failure(failure), true))?;
    stream
        .write_all(&first)
        .await
        .map_err(|error| stop(backend_failure(error.into()), false))?;
    loop {
        let message = match cut_frame(buffer, LOGIN_MESSAGE_LEN_MAX) {
            Ok(Some(message)) => message,
            Ok(None) => {
                fill(stream, buffer)
                    .await
                    .map_err(|error| stop(backend_failure(error), password_asked))?;
                continue;
            }
            Err(violation) => return Err(stop(violated(&violation), password_asked)),
        };
        password_asked |= message.tag == BackendTag::Authentication.byte();
        match login.on_frame(message.tag, &message.body) {
            Ok(LoginStep::Send(bytes, next)) => {
                login = next;
                stream
                    .write_all(&bytes)
                    .await
                    .map_err(|error| stop(backend_failure(error.into()), password_asked))?;
            }
            Ok(LoginStep::Next(next)) => login = next,
            Ok(LoginStep::Done(established)) => return Ok(established),
            Err(failure) => return Err(stop(login_failure(failure), password_asked)),
        }
    }
}

fn login_failure(failure: LoginFailure) -> ConnectFailure {
    match failure {
        LoginFailure::Refused(report) => ConnectFailure::from_report(report.with_severity(Severity::Fatal)),
        LoginFailure::Policy(report) => ConnectFailure::Refused(report),
        LoginFailure::Violation(violation) => violated(&violation),
        LoginFailure::AskedOtherwise => ConnectFailure::unavailable("the server asks for another login than before"),
    }
}

fn violated(violation: &crate::protocol::Violation) -> ConnectFailure {
    tracing::warn!(%violation, "the database server broke the protocol at login");
    ConnectFailure::Refused(Report::fatal(
        SqlState::PROTOCOL_VIOLATION,
        "the database server does not speak PostgreSQL's protocol",
    ))
}

fn backend_failure(error: BackendError) -> ConnectFailure {
    match error {
        BackendError::Fatal(report) => ConnectFailure::from_report(report),
        BackendError::Violation(violation) => violated(&violation),
        BackendError::Io(_) | BackendError::Closed => {
            ConnectFailure::unavailable("the database server closed the connection during the login")
        }
    }
}

async fn within(
    limit: Option<Duration>,
    connecting: impl Future<Output = Result<Backend, ConnectFailure>>,
) -> Result<Backend, ConnectFailure> {
    match limit {
        None => connecting.await,
        Some(limit) => timeout(limit, connecting).await.unwrap_or_else(|_| {
            Err(ConnectFailure::unavailable(
                "the database server did not answer within connect_timeout",
            ))
        }),
    }
}

/// The kinds of server to look for, one pass over the hosts each.
fn passes(wanted: TargetSessionAttrs) -> &'static [TargetSessionAttrs] {
    use TargetSessionAttrs as Wanted;
    match wanted {
        Wanted::Any => &[Wanted::Any],
        Wanted::ReadWrite => &[Wanted::ReadWrite],
        Wanted::ReadOnly => &[Wanted::ReadOnly],
        Wanted::Primary => &[Wanted::Primary],
        Wanted::Standby => &[Wanted::Standby],
        Wanted::PreferStandby => &[Wanted::Standby, Wanted::Any],
    }
}

/// Tells the log which host said so, where nothing else does.
fn from_host(report: Report, host: &Host) -> Report {
    if report.detail_log.is_some() {
        return report;
    }
    report.with_detail_log(format!("said by {}", host_name(host)))
}

/// The last host's report is told to the client; the log gets what every host said.
fn behind(earlier: &ConnectFailure, report: Report) -> Report {
    match (&earlier.report().detail_log, &report.detail_log) {
        (Some(earlier), Some(last)) if !last.0.contains(earlier.0.as_str()) => {
            let both = format!("{}; {}", earlier.0, last.0);
            report.with_detail_log(both)
        }
        _ => report,
    }
}

fn host_name(host: &Host) -> String {
    match host {
        Host::Tcp {
            host,
            hostaddr: Some(address),
            port,
        } if host.is_empty() => format!("{address}:{port}"),
        Host::Tcp { host, port, .. } => format!("{host}:{port}"),
        Host::Unix { directory, port } => format!("unix:{}:{port}", directory.display()),
    }
}
