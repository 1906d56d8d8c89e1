//! We are the client: logging in to PostgreSQL (manual: protocol-flow-start-up).
//!
//! [`BackendLogin::start`] returns the StartupMessage; every message of PostgreSQL's goes to [`BackendLogin::on_frame`]
//! until it says [`LoginStep::Done`]. Reading top to bottom is the manual's order: an authentication request, the SASL
//! exchange, AuthenticationOk, ParameterStatus and BackendKeyData, ReadyForQuery. Where it is known what the server will ask
//! for, the SASL exchange begins with the StartupMessage, a round trip earlier.

use std::fmt;

use bytes::{Bytes, BytesMut};
use zeroize::Zeroizing;

use super::Violation;
use super::md5::Md5Hash;
use super::scram::{
    ClientBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, SaltedKeys, ScramClient, ScramClientError, ScramClientFinal,
    ScramKeys, ScramSecret,
};
use crate::wire::backend_message::{ParameterStatus, ReportFields, TransactionStatus};
use crate::wire::startup_packet::CancelKey;
use crate::wire::{
    BackendTag, Malformed, PROTOCOL_3_0, PROTOCOL_3_2, Reader, Report, STARTUP_PACKET_LEN_MAX, SqlState, compose,
};

/// The longest body that is read during a login, in bytes: twice what libpq allows for an error (`MAX_ERRLEN`).
pub const LOGIN_MESSAGE_LEN_MAX: usize = 60_000;
/// The length word, the version and the terminator of a StartupMessage, in bytes.
const STARTUP_MESSAGE_FIXED_LEN: usize = 9;
/// How many different settings a server may report at login. PostgreSQL 18 reports 15.
const PARAMETERS_MAX: usize = 256;
/// What their names and values may take together, in bytes.
const PARAMETERS_LEN_MAX: usize = 65_536;
/// The secret of a BackendKeyData in protocol 3.2, in bytes (4 in 3.0).
const SECRET_LEN: std::ops::RangeInclusive<usize> = 4..=256;
/// How many SASL mechanisms of one server are remembered, and how long their names may be, in bytes.
const OFFERED_MAX: usize = 8;
const MECHANISM_LEN_MAX: usize = 64;
/// The names that libpq's `require_auth` knows; each may stand behind a `!`, then all must.
pub const REQUIRE_AUTH_METHODS: [&str; 7] = ["password", "md5", "gss", "sspi", "scram-sha-256", "oauth", "none"];

/// libpq's channel_binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the names are libpq's")]
pub enum ChannelBinding {
    Disable,
    #[default]
    Prefer,
    Require,
}

/// What we can answer with when PostgreSQL asks.
#[derive(Clone, Default)]
pub enum LoginSecret {
    /// Nothing: the server must trust us, or know our certificate.
    #[default]
    None,
    /// A password or token of up to 64 kB.
    Password {
        /// In UTF-8.
        password: Zeroizing<String>,
        /// From an earlier [`Established`], to spare the key derivation.
        salted: Option<SaltedKeys>,
    },
    /// Keys of the client that we log in for. Good for SCRAM only, and only where the same verifier is stored.
    Keys(ScramKeys),
    /// pg_authid's md5 hash of the password. Good for md5 only, for which it is as good as the password.
    Md5(Md5Hash),
}

impl LoginSecret {
    /// Whether both open the same doors. Keys that were derived on the way make no difference.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::None, Self::None) => true,
            (Self::Password { password: one, .. }, Self::Password { password: other, .. }) => one == other,
            (Self::Keys(one), Self::Keys(other)) => one == other,
            (Self::Md5(one), Self::Md5(other)) => one == other,
            _ => false,
        }
    }
}

impl fmt::Debug for LoginSecret {
    /// Never shows the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Password { .. } => "Password(***)",
            Self::Keys(_) => "Keys(***)",
            Self::Md5(_) => "Md5(***)",
        })
    }
}

/// One login.
#[derive(Debug)]
pub struct LoginRequest {
    /// [`PROTOCOL_3_0`] or [`PROTOCOL_3_2`].
    pub version: u32,
    /// `user`, `database`, `options` and settings.
    pub parameters: Vec<(String, String)>,
    /// The user again, as md5 needs it.
    pub user: String,
    /// What we know.
    pub secret: LoginSecret,
    /// libpq's setting of the same name.
    pub channel_binding: ChannelBinding,
    /// The hash of the certificate that the server showed us; `None` without TLS.
    pub tls_server_end_point: Option<Vec<u8>>,
    /// libpq's list of what the server may ask for (see [`REQUIRE_AUTH_METHODS`]); `None`: anything.
    pub require_auth: Option<Vec<String>>,
    /// The most SCRAM iterations that we do for a server.
    pub scram_iterations_max: u32,
    /// Our half of the SCRAM nonce, from the operating system's generator, fresh for this login.
    pub nonce: [u8; 18],
    /// The SASL mechanisms that this server offered at its last login, where the exchange is to begin before it asks.
    pub expected: Option<Vec<String>>,
}

/// A logged-in connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Established {
    /// The settings that the server reports, in the order in which they first came. A value is the bytes that came; one
    /// whose name is not UTF-8 is left out.
    pub parameters: Vec<(String, Vec<u8>)>,
    /// `None` where the server sends none (trap 10): its queries can't be cancelled.
    pub cancel_key: Option<CancelKey>,
    /// What both sides speak from now on.
    pub negotiated_version: u32,
    /// SCRAM keys worth keeping for the next login with the same password.
    pub salted: Option<SaltedKeys>,
    /// The SASL mechanisms that the server offered, worth expecting of it the next time; empty where it asked for none.
    pub offered: Vec<String>,
}

/// What comes next.
#[derive(Debug)]
pub enum LoginStep {
    /// Send this, then wait for the next message.
    Send(Bytes, BackendLogin),
    /// Wait for the next message.
    Next(BackendLogin),
    /// ReadyForQuery came.
    Done(Established),
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoginFailure {
    /// PostgreSQL said no, in its own words.
    #[error("{0}")]
    Refused(Report),
    /// The server does not speak the protocol, or could not prove that it knows the password.
    #[error("{0}")]
    Violation(#[from] Violation),
    /// Our own configuration forbids what the server asks for, or lacks it: no password, require_auth, channel_binding.
    #[error("{0}")]
    Policy(Report),
    /// The server asks for something else than at its last login: the login must begin anew, without an expectation.
    #[error("the server asks for something else than it did last time")]
    AskedOtherwise,
}

/// A login, waiting for PostgreSQL's next message.
#[derive(Debug)]
pub struct BackendLogin(State);

#[derive(Debug)]
enum State {
    Authentication(ExpectAuthentication),
    SaslOffer(ExpectSaslOffer),
    SaslContinue(ExpectSaslContinue),
    SaslFinal(ExpectSaslFinal),
    AuthenticationOk(ExpectAuthenticationOk),
    ReadyForQuery(ExpectReadyForQuery),
}

impl BackendLogin {
    /// The StartupMessage, with the beginning of the SASL exchange behind it where the server is known to ask for that, and the
    /// state that takes the answer. Fails if PostgreSQL could not read so many parameters.
    pub fn start(request: LoginRequest) -> Result<(Bytes, Self), LoginFailure> {
        let parameters_len: usize = request
            .parameters
            .iter()
            .map(|(name, value)| name.len() + value.len() + 2)
            .sum();
        if parameters_len > STARTUP_PACKET_LEN_MAX - STARTUP_MESSAGE_FIXED_LEN {
            let report = Report::fatal(
                SqlState::PROGRAM_LIMIT_EXCEEDED,
                "the startup parameters exceed 10000 bytes",
            );
            return Err(LoginFailure::Policy(report));
        }
        let mut out = BytesMut::new();
        let parameters = request
            .parameters
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        compose::startup_message(&mut out, request.version, parameters);
        let policy = AuthPolicy {
            channel_binding: request.channel_binding,
            tls_server_end_point: request.tls_server_end_point,
            require_auth: request.require_auth,
        };
        let next = ExpectAuthentication {
            version: Version::Requested(request.version),
            policy,
            user: request.user,
            secret: request.secret,
            scram_iterations_max: request.scram_iterations_max,
            nonce: request.nonce,
        };
        match request.expected {
            Some(offered) => next.begin_early(out, offered),
            None => Ok((out.freeze(), Self(State::Authentication(next)))),
        }
    }

    /// Takes PostgreSQL's next message: its type byte and its body.
    pub fn on_frame(self, tag: u8, body: &[u8]) -> Result<LoginStep, LoginFailure> {
        let unexpected = Violation::Unexpected {
            expected: self.expected(),
            got: char::from(tag),
        };
        if body.len() > LOGIN_MESSAGE_LEN_MAX {
            return Err(malformed(self.expected(), Malformed::Length));
        }
        let tag = BackendTag::from_byte(tag).ok_or(unexpected.clone())?;
        match (self.0, tag) {
            (_, BackendTag::ErrorResponse) => Err(refused(body)),
            (state, BackendTag::NoticeResponse) => Ok(LoginStep::Next(Self(state))),
            (State::Authentication(state), BackendTag::Authentication) => state.on_authentication(body),
            (State::Authentication(state), BackendTag::NegotiateProtocolVersion) => state.on_negotiate(body),
            (State::SaslOffer(state), BackendTag::Authentication) => state.on_authentication(body),
            (State::SaslOffer(_), BackendTag::NegotiateProtocolVersion) => Err(LoginFailure::AskedOtherwise),
            (State::SaslContinue(state), BackendTag::Authentication) => state.on_authentication(body),
            (State::SaslFinal(state), BackendTag::Authentication) => state.on_authentication(body),
            (State::AuthenticationOk(state), BackendTag::Authentication) => state.on_authentication(body),
            (State::ReadyForQuery(state), BackendTag::ParameterStatus) => state.on_parameter_status(body),
            (State::ReadyForQuery(state), BackendTag::BackendKeyData) => state.on_backend_key_data(body),
            (State::ReadyForQuery(state), BackendTag::ReadyForQuery) => state.on_ready_for_query(body),
            _ => Err(unexpected.into()),
        }
    }

    const fn expected(&self) -> &'static str {
        match self.0 {
            State::Authentication(_) | State::SaslOffer(_) => "an authentication request",
            State::SaslContinue(_) => "AuthenticationSASLContinue",
            State::SaslFinal(_) => "AuthenticationSASLFinal",
            State::AuthenticationOk(_) => "AuthenticationOk",
            State::ReadyForQuery(_) => "ReadyForQuery",
        }
    }
}

/// The StartupMessage is sent.
#[derive(Debug)]
struct ExpectAuthentication {
    version: Version,
    policy: AuthPolicy,
    user: String,
    secret: LoginSecret,
    scram_iterations_max: u32,
    nonce: [u8; 18],
}

impl ExpectAuthentication {
    /// The server is older than the version that we asked for. We ask for no protocol options, so it can refuse none.
    fn on_negotiate(mut self, body: &[u8]) -> Result<LoginStep, LoginFailure> {
        let Version::Requested(requested) = self.version else {
            return Err(Violation::Rule("the server sent NegotiateProtocolVersion twice").into());
        };
        let mut reader = Reader::new(body);
        let mut fields = || Ok((reader.u32()?, reader.u32()?, reader.finish()?));
        let (newest, options, ()) = fields().map_err(|cause| malformed("NegotiateProtocolVersion", cause))?;
        // 3.1 was never released (pqcomm.h reserves it), so nobody can mean it.
        if options != 0 || newest >= requested || !matches!(newest, PROTOCOL_3_0 | PROTOCOL_3_2) {
            return Err(Violation::Rule("the server negotiated a protocol version that does not exist").into());
        }
        self.version = Version::Negotiated(newest);
        Ok(LoginStep::Next(BackendLogin(State::Authentication(self))))
    }

    fn on_authentication(self, body: &[u8]) -> Result<LoginStep, LoginFailure> {
        let asked = AuthenticationRequest::parse(body).map_err(|cause| malformed("Authentication", cause))?;
        self.policy.check(&asked)?;
        match asked {
            AuthenticationRequest::Ok => Ok(self.authenticated()),
            AuthenticationRequest::CleartextPassword => {
                let password = Zeroizing::new(self.password()?.to_owned());
                Ok(self.send_password(&password))
            }
            AuthenticationRequest::Md5Password(salt) => {
                let hash = match &self.secret {
                    LoginSecret::Md5(hash) => hash.clone(),
                    _ => Md5Hash::of(self.password()?, &self.user),
                };
                Ok(self.send_password(&hash.answer(salt)))
            }
            AuthenticationRequest::Sasl(mechanisms) => {
                let (first, next) = self.start_sasl(&mechanisms)?;
                Ok(LoginStep::Send(first, BackendLogin(State::SaslContinue(next))))
            }
            AuthenticationRequest::SaslContinue(_) | AuthenticationRequest::SaslFinal(_) => {
                Err(Violation::Rule("the server continued a SASL exchange that was not begun").into())
            }
            AuthenticationRequest::Gss | AuthenticationRequest::Sspi | AuthenticationRequest::Other(_) => Err(policy(
                "the server asks for an authentication method that pgsidecar does not have (GSSAPI, SSPI or other)",
            )),
        }
    }

    fn password(&self) -> Result<&str, LoginFailure> {
        match &self.secret {
            LoginSecret::Password { password, .. } if !password.is_empty() => Ok(password),
            LoginSecret::Password { .. } | LoginSecret::None => Err(no_password()),
            LoginSecret::Keys(_) => Err(policy(
                "the server asks for the password itself, and only SCRAM keys of this user are known",
            )),
            LoginSecret::Md5(_) => Err(policy(
                "the server asks for the password itself, and only its md5 hash is known",
            )),
        }
    }

    fn send_password(self, password: &str) -> LoginStep {
        let mut out = BytesMut::new();
        compose::password(&mut out, password);
        let next = ExpectAuthenticationOk {
            version: self.version,
            salted: None,
            offered: Vec::new(),
        };
        LoginStep::Send(out.freeze(), BackendLogin(State::AuthenticationOk(next)))
    }

    /// Answers what the server will ask for, as if it had.
    fn begin_early(self, mut out: BytesMut, offered: Vec<String>) -> Result<(Bytes, BackendLogin), LoginFailure> {
        let mechanisms: Vec<&str> = offered.iter().map(String::as_str).collect();
        self.policy.check(&AuthenticationRequest::Sasl(mechanisms.clone()))?;
        let (first, next) = self.start_sasl(&mechanisms)?;
        out.extend_from_slice(&first);
        let state = State::SaslOffer(ExpectSaslOffer { offered, next });
        Ok((out.freeze(), BackendLogin(state)))
    }

    fn start_sasl(self, mechanisms: &[&str]) -> Result<(Bytes, ExpectSaslContinue), LoginFailure> {
        let binding = self.policy.client_binding(mechanisms)?;
        let secret = match self.secret {
            LoginSecret::Password { password, salted } if !password.is_empty() => {
                ScramSecret::Password(password, salted)
            }
            LoginSecret::Password { .. } | LoginSecret::None => return Err(no_password()),
            LoginSecret::Keys(keys) => ScramSecret::Keys(keys),
            LoginSecret::Md5(_) => {
                return Err(policy(
                    "the server asks for SCRAM-SHA-256, and only the md5 hash of the password is known",
                ));
            }
        };
        let mechanism = binding.mechanism();
        let (client_first, scram) = ScramClient::start(secret, binding, &self.nonce, self.scram_iterations_max);
        let mut out = BytesMut::new();
        compose::sasl_initial_response(&mut out, mechanism, client_first.as_bytes());
        let next = ExpectSaslContinue {
            version: self.version,
            scram,
            offered: worth_expecting(mechanisms),
        };
        Ok((out.freeze(), next))
    }

    /// The server asked for nothing: trust, peer or a certificate.
    fn authenticated(self) -> LoginStep {
        ExpectReadyForQuery::after_authentication(self.version, None, Vec::new())
    }
}

fn worth_expecting(mechanisms: &[&str]) -> Vec<String> {
    let is_short = |name: &&str| name.len() <= MECHANISM_LEN_MAX;
    match mechanisms.len() <= OFFERED_MAX && mechanisms.iter().all(is_short) {
        true => mechanisms.iter().map(ToString::to_string).collect(),
        false => Vec::new(),
    }
}

/// client-first is sent behind the StartupMessage. That the server offers what it offered the last time is what makes the choice
/// of the mechanism, and what client-first says of channel binding, true (trap 84).
#[derive(Debug)]
struct ExpectSaslOffer {
    offered: Vec<String>,
    next: ExpectSaslContinue,
}

impl ExpectSaslOffer {
    fn on_authentication(self, body: &[u8]) -> Result<LoginStep, LoginFailure> {
        match AuthenticationRequest::parse(body).map_err(|cause| malformed("Authentication", cause))? {
            AuthenticationRequest::Sasl(mechanisms) if mechanisms == self.offered => {
                Ok(LoginStep::Next(BackendLogin(State::SaslContinue(self.next))))
            }
            _ => Err(LoginFailure::AskedOtherwise),
        }
    }
}

/// client-first is sent.
#[derive(Debug)]
struct ExpectSaslContinue {
    version: Version,
    scram: ScramClient,
    offered: Vec<String>,
}

impl ExpectSaslContinue {
    fn on_authentication(self, body: &[u8]) -> Result<LoginStep, LoginFailure> {
        let asked = AuthenticationRequest::parse(body).map_err(|cause| malformed("Authentication", cause))?;
        let AuthenticationRequest::SaslContinue(server_first) = asked else {
            return Err(
                Violation::Rule("AuthenticationSASLContinue expected: the server broke off the SASL exchange").into(),
            );
        };
        let (client_final, scram) = self.scram.server_first(server_first).map_err(scram_failure)?;
        let mut out = BytesMut::new();
        compose::sasl_response(&mut out, client_final.as_bytes());
        let next = ExpectSaslFinal {
            version: self.version,
            scram,
            offered: self.offered,
        };
        Ok(LoginStep::Send(out.freeze(), BackendLogin(State::SaslFinal(next))))
    }
}

/// client-final is sent. AuthenticationOk without the server's signature is refused: whoever sends it may not know the
/// password (trap 84).
#[derive(Debug)]
struct ExpectSaslFinal {
    version: Version,
    scram: ScramClientFinal,
    offered: Vec<String>,
}

impl ExpectSaslFinal {
    fn on_authentication(self, body: &[u8]) -> Result<LoginStep, LoginFailure> {
        let asked = AuthenticationRequest::parse(body).map_err(|cause| malformed("Authentication", cause))?;
        let AuthenticationRequest::SaslFinal(server_final) = asked else {
            return Err(Violation::Rule("AuthenticationSASLFinal expected: the server did not prove its key").into());
        };
        let salted = self.scram.server_final(server_final).map_err(scram_failure)?;
        let next = ExpectAuthenticationOk {
            version: self.version,
            salted,
            offered: self.offered,
        };
        Ok(LoginStep::Next(BackendLogin(State::AuthenticationOk(next))))
    }
}

/// All that we were asked for is sent.
#[derive(Debug)]
struct ExpectAuthenticationOk {
    version: Version,
    salted: Option<SaltedKeys>,
    offered: Vec<String>,
}

impl ExpectAuthenticationOk {
    fn on_authentication(self, body: &[u8]) -> Result<LoginStep, LoginFailure> {
        match AuthenticationRequest::parse(body).map_err(|cause| malformed("Authentication", cause))? {
            AuthenticationRequest::Ok => Ok(ExpectReadyForQuery::after_authentication(
                self.version,
                self.salted,
                self.offered,
            )),
            _ => Err(Violation::Rule("AuthenticationOk expected: the server asked to authenticate twice").into()),
        }
    }
}

/// We are authenticated; the server starts its session and tells its settings.
#[derive(Debug)]
struct ExpectReadyForQuery {
    established: Established,
    parameters_len: usize,
}

impl ExpectReadyForQuery {
    fn after_authentication(version: Version, salted: Option<SaltedKeys>, offered: Vec<String>) -> LoginStep {
        let negotiated_version = match version {
            Version::Requested(version) | Version::Negotiated(version) => version,
        };
        let established = Established {
            parameters: Vec::new(),
            cancel_key: None,
            negotiated_version,
            salted,
            offered,
        };
        LoginStep::Next(BackendLogin(State::ReadyForQuery(Self {
            established,
            parameters_len: 0,
        })))
    }

    fn on_parameter_status(mut self, body: &[u8]) -> Result<LoginStep, LoginFailure> {
        let status = ParameterStatus::parse(body).map_err(|cause| malformed("ParameterStatus", cause))?;
        // Counted even where a value replaces another, so that repetition is bounded too.
        self.parameters_len += body.len();
        let parameters = &mut self.established.parameters;
        let value = status.value.to_vec();
        match (
            std::str::from_utf8(status.name),
            parameters.iter_mut().find(|(known, _)| known.as_bytes() == status.name),
        ) {
            (_, Some((_, known))) => *known = value,
            (Ok(name), None) => parameters.push((name.to_owned(), value)),
            (Err(_), None) => {}
        }
        if parameters.len() > PARAMETERS_MAX || self.parameters_len > PARAMETERS_LEN_MAX {
            return Err(Violation::Rule("the server reports too many settings").into());
        }
        Ok(LoginStep::Next(BackendLogin(State::ReadyForQuery(self))))
    }

    fn on_backend_key_data(mut self, body: &[u8]) -> Result<LoginStep, LoginFailure> {
        let mut reader = Reader::new(body);
        let process_id = reader.u32().map_err(|cause| malformed("BackendKeyData", cause))?;
        let secret = reader.rest();
        let is_long_version = self.established.negotiated_version >= PROTOCOL_3_2;
        if !(SECRET_LEN.contains(&secret.len()) && (is_long_version || secret.len() == *SECRET_LEN.start())) {
            return Err(malformed("BackendKeyData", Malformed::Length));
        }
        if self.established.cancel_key.is_some() {
            return Err(Violation::Rule("the server sent BackendKeyData twice").into());
        }
        self.established.cancel_key = Some(CancelKey {
            process_id,
            secret: secret.into(),
        });
        Ok(LoginStep::Next(BackendLogin(State::ReadyForQuery(self))))
    }

    fn on_ready_for_query(self, body: &[u8]) -> Result<LoginStep, LoginFailure> {
        match TransactionStatus::parse(body) {
            Ok(TransactionStatus::Idle) => Ok(LoginStep::Done(self.established)),
            Ok(_) => Err(Violation::Rule("a new connection is in a transaction").into()),
            Err(cause) => Err(malformed("ReadyForQuery", cause)),
        }
    }
}

/// What both sides speak, and whether the server had its one say in it.
#[derive(Debug, Clone, Copy)]
enum Version {
    Requested(u32),
    Negotiated(u32),
}

/// What our own configuration lets a server ask for.
#[derive(Debug)]
struct AuthPolicy {
    channel_binding: ChannelBinding,
    tls_server_end_point: Option<Vec<u8>>,
    require_auth: Option<Vec<String>>,
}

impl AuthPolicy {
    /// As libpq's `check_expected_areq`: nothing secret is sent for a request that fails here.
    fn check(&self, asked: &AuthenticationRequest<'_>) -> Result<(), LoginFailure> {
        let (method, says) = match asked {
            AuthenticationRequest::Ok => ("none", "server did not complete authentication"),
            AuthenticationRequest::CleartextPassword => ("password", "server requested a cleartext password"),
            AuthenticationRequest::Md5Password(_) => ("md5", "server requested a hashed password"),
            AuthenticationRequest::Gss => ("gss", "server requested GSSAPI authentication"),
            AuthenticationRequest::Sspi => ("sspi", "server requested SSPI authentication"),
            AuthenticationRequest::Sasl(_)
            | AuthenticationRequest::SaslContinue(_)
            | AuthenticationRequest::SaslFinal(_) => ("scram-sha-256", "server requested SASL authentication"),
            AuthenticationRequest::Other(_) => ("", "server requested an unknown authentication type"),
        };
        if let Some(list) = self.require_auth.as_ref().filter(|list| !allows(list, method)) {
            let list = list.join(",");
            return Err(policy(format!(
                "authentication method requirement \"{list}\" failed: {says}"
            )));
        }
        match (self.channel_binding, asked) {
            (ChannelBinding::Require, AuthenticationRequest::Ok) => Err(policy(
                "channel binding required, but server authenticated client without channel binding",
            )),
            (ChannelBinding::Require, AuthenticationRequest::Sasl(_)) => Ok(()),
            (ChannelBinding::Require, _) => Err(policy(
                "channel binding required but not supported by server's authentication request",
            )),
            (ChannelBinding::Disable | ChannelBinding::Prefer, _) => Ok(()),
        }
    }

    /// The strongest mechanism of the whole list, wherever in it that stands (trap 84).
    fn client_binding(&self, mechanisms: &[&str]) -> Result<ClientBinding, LoginFailure> {
        let offers_plus = mechanisms.contains(&SCRAM_SHA_256_PLUS);
        match (self.channel_binding, &self.tls_server_end_point) {
            (ChannelBinding::Prefer | ChannelBinding::Require, Some(hash)) if offers_plus => {
                Ok(ClientBinding::EndPoint(hash.clone()))
            }
            (ChannelBinding::Require, None) => Err(policy("channel binding required, but SSL not in use")),
            (ChannelBinding::Require, Some(_)) => Err(policy(
                "channel binding is required, but server did not offer an authentication method that supports channel binding",
            )),
            _ if !mechanisms.contains(&SCRAM_SHA_256) => Err(policy(
                "none of the server's SASL authentication mechanisms are supported",
            )),
            (ChannelBinding::Prefer, Some(_)) => Ok(ClientBinding::NotOffered),
            _ => Ok(ClientBinding::Unsupported),
        }
    }
}

/// libpq's require_auth: a list of what is allowed, or of what is not, each behind a `!`.
fn allows(list: &[String], method: &str) -> bool {
    let names = |entry: &String| entry.strip_prefix('!').unwrap_or(entry) == method;
    let is_negated = list.first().is_some_and(|entry| entry.starts_with('!'));
    list.iter().any(names) != is_negated
}

/// An Authentication message (manual: protocol-message-formats), its structure checked.
#[derive(Debug, PartialEq, Eq)]
enum AuthenticationRequest<'a> {
    Ok,
    CleartextPassword,
    Md5Password([u8; 4]),
    Gss,
    Sspi,
    /// Mechanism names. One that isn't UTF-8 is none that we know.
    Sasl(Vec<&'a str>),
    SaslContinue(&'a [u8]),
    SaslFinal(&'a [u8]),
    /// A code that we don't know, or that nobody has used for decades.
    Other(u32),
}

impl<'a> AuthenticationRequest<'a> {
    fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let request = match reader.u32()? {
            0 => Self::Ok,
            3 => Self::CleartextPassword,
            5 => Self::Md5Password(reader.u32()?.to_be_bytes()),
            7 => Self::Gss,
            9 => Self::Sspi,
            10 => return Self::sasl(reader),
            11 => return Ok(Self::SaslContinue(reader.rest())),
            12 => return Ok(Self::SaslFinal(reader.rest())),
            code => return Ok(Self::Other(code)),
        };
        reader.finish().map(|()| request)
    }

    fn sasl(mut reader: Reader<'a>) -> Result<Self, Malformed> {
        let mut mechanisms = Vec::new();
        loop {
            match reader.cstr()? {
                b"" => return reader.finish().map(|()| Self::Sasl(mechanisms)),
                name => mechanisms.extend(std::str::from_utf8(name)),
            }
        }
    }
}

fn refused(body: &[u8]) -> LoginFailure {
    match ReportFields::parse(body) {
        Ok(fields) => LoginFailure::Refused(fields.to_report()),
        Err(cause) => malformed("ErrorResponse", cause),
    }
}

fn scram_failure(error: ScramClientError) -> LoginFailure {
    match error {
        ScramClientError::Violation(violation) => violation.into(),
        ScramClientError::Refused(error) => LoginFailure::Refused(Report::fatal(
            SqlState::INVALID_PASSWORD,
            format!("error received from server in SCRAM exchange: {error}"),
        )),
    }
}

fn malformed(message: &'static str, cause: Malformed) -> LoginFailure {
    Violation::Malformed { message, cause }.into()
}

fn no_password() -> LoginFailure {
    policy("the server asks for a password, and none is configured")
}

fn policy(message: impl Into<std::borrow::Cow<'static, str>>) -> LoginFailure {
    LoginFailure::Policy(Report::fatal(SqlState::INVALID_AUTHORIZATION_SPECIFICATION, message))
}

#[cfg(test)]
mod tests {
    use super::super::scram::{ScramServer, ScramServerFinal, ScramVerdict, ServerBinding, Verifier};
    use super::*;
    use pgwire::messages::startup::Authentication;

    fn request() -> LoginRequest {
        LoginRequest {
            version: PROTOCOL_3_2,
            parameters: vec![("user".into(), "app".into()), ("database".into(), "db".into())],
            user: "app".into(),
            secret: LoginSecret::Password {
                password: Zeroizing::new("sesame".into()),
                salted: None,
            },
            channel_binding: ChannelBinding::Prefer,
            tls_server_end_point: None,
            require_auth: None,
            scram_iterations_max: 16,
            nonce: [3; 18],
            expected: None,
        }
    }

    fn start(request: LoginRequest) -> BackendLogin {
        BackendLogin::start(request).unwrap().1
    }

    fn authentication(message: &Authentication) -> Vec<u8> {
        let mut out = BytesMut::new();
        compose::authentication(&mut out, message);
        out[5..].to_vec()
    }

    fn sasl(mechanisms: &[&str]) -> Vec<u8> {
        authentication(&Authentication::SASL(
            mechanisms.iter().map(ToString::to_string).collect(),
        ))
    }

    fn sent(step: Result<LoginStep, LoginFailure>) -> (Bytes, BackendLogin) {
        match step {
            Ok(LoginStep::Send(sent, login)) => (sent, login),
            other => panic!("nothing sent: {other:?}"),
        }
    }

    fn next(step: Result<LoginStep, LoginFailure>) -> BackendLogin {
        match step {
            Ok(LoginStep::Next(login)) => login,
            other => panic!("not the next state: {other:?}"),
        }
    }

    fn done(step: Result<LoginStep, LoginFailure>) -> Established {
        match step {
            Ok(LoginStep::Done(established)) => established,
            other => panic!("not done: {other:?}"),
        }
    }

    fn violation(step: Result<LoginStep, LoginFailure>) -> Violation {
        match step {
            Err(LoginFailure::Violation(violation)) => violation,
            other => panic!("no violation: {other:?}"),
        }
    }

    fn forbidden(step: Result<LoginStep, LoginFailure>) -> String {
        match step {
            Err(LoginFailure::Policy(report)) => report.message.into_owned(),
            other => panic!("not forbidden: {other:?}"),
        }
    }

    /// Lets a server of our own check the first message. Returns what it wants to see next.
    fn scram_server(sent: &[u8], binding: ServerBinding) -> (Vec<u8>, ScramServerFinal) {
        let mut reader = Reader::new(&sent[5..]);
        reader.cstr().unwrap();
        reader.i32().unwrap();
        let server = ScramServer::new(Verifier::derive("sesame", b"salt", 16), binding, &[4; 18]);
        let (server_first, server) = server.client_first(reader.rest()).unwrap();
        (
            authentication(&Authentication::SASLContinue(server_first.into())),
            server,
        )
    }

    fn scram_login(request: LoginRequest, mechanisms: &[&str], binding: ServerBinding) -> Established {
        let (initial, login) = sent(start(request).on_frame(b'R', &sasl(mechanisms)));
        let (server_first, server) = scram_server(&initial, binding);
        let (last, login) = sent(login.on_frame(b'R', &server_first));
        let Ok(ScramVerdict::Proven { server_final, .. }) = server.client_final(&last[5..]) else {
            panic!()
        };
        let login = next(login.on_frame(b'R', &authentication(&Authentication::SASLFinal(server_final.into()))));
        let login = next(login.on_frame(b'R', &0u32.to_be_bytes()));
        done(login.on_frame(b'Z', b"I"))
    }

    #[test]
    fn a_trusting_server_is_entered_and_its_settings_are_kept() {
        let (startup, login) = BackendLogin::start(request()).unwrap();
        assert_eq!(&startup[..8], b"\0\0\0\x1e\0\x03\0\x02");
        let login = next(login.on_frame(b'R', &[0; 4]));
        let login = next(login.on_frame(b'S', b"TimeZone\0UTC\0"));
        let login = next(login.on_frame(b'N', b"SNOTICE\0\0"));
        let login = next(login.on_frame(b'S', b"in_hot_standby\0off\0"));
        let login = next(login.on_frame(b'S', b"TimeZone\0Asia/Tokyo\0"));
        let login = next(login.on_frame(b'K', &[&7u32.to_be_bytes()[..], &[9; 32]].concat()));
        let established = done(login.on_frame(b'Z', b"I"));
        assert_eq!(
            established,
            Established {
                parameters: vec![
                    ("TimeZone".into(), "Asia/Tokyo".into()),
                    ("in_hot_standby".into(), "off".into())
                ],
                cancel_key: Some(CancelKey {
                    process_id: 7,
                    secret: vec![9; 32].into()
                }),
                negotiated_version: PROTOCOL_3_2,
                salted: None,
                offered: Vec::new(),
            }
        );
    }

    fn expecting(mechanisms: &[&str]) -> LoginRequest {
        LoginRequest {
            expected: Some(mechanisms.iter().map(ToString::to_string).collect()),
            tls_server_end_point: Some(vec![5; 32]),
            ..request()
        }
    }

    #[test]
    fn a_login_that_knows_the_question_begins_with_the_answer() {
        let both = [SCRAM_SHA_256_PLUS, SCRAM_SHA_256];
        let (begin, login) = BackendLogin::start(expecting(&both)).unwrap();
        let startup_len = u32::from_be_bytes(*begin.first_chunk().unwrap()) as usize;
        let (startup, initial) = begin.split_at(startup_len);
        assert_eq!(startup, BackendLogin::start(request()).unwrap().0);
        let (server_first, server) = scram_server(initial, ServerBinding::EndPoint(vec![5; 32]));
        let login = next(login.on_frame(b'R', &sasl(&both)));
        let (last, login) = sent(login.on_frame(b'R', &server_first));
        let Ok(ScramVerdict::Proven { server_final, .. }) = server.client_final(&last[5..]) else {
            panic!()
        };
        let login = next(login.on_frame(b'R', &authentication(&Authentication::SASLFinal(server_final.into()))));
        let login = next(login.on_frame(b'R', &0u32.to_be_bytes()));
        assert_eq!(done(login.on_frame(b'Z', b"I")).offered, both);
    }

    /// Whoever stands between must not get by with an offer that hides channel binding.
    #[test]
    fn trap_84_a_server_that_asks_otherwise_than_expected_ends_the_attempt() {
        let both = [SCRAM_SHA_256_PLUS, SCRAM_SHA_256];
        let early = || BackendLogin::start(expecting(&both)).unwrap().1;
        for asked in [
            sasl(&[SCRAM_SHA_256]),
            sasl(&[SCRAM_SHA_256, SCRAM_SHA_256_PLUS]),
            0u32.to_be_bytes().to_vec(),
            3u32.to_be_bytes().to_vec(),
            authentication(&Authentication::SASLContinue(b"r=x"[..].into())),
        ] {
            assert_eq!(early().on_frame(b'R', &asked).err(), Some(LoginFailure::AskedOtherwise));
        }
        let negotiate = [&PROTOCOL_3_0.to_be_bytes()[..], &0u32.to_be_bytes()].concat();
        assert_eq!(
            early().on_frame(b'v', &negotiate).err(),
            Some(LoginFailure::AskedOtherwise)
        );
        assert!(
            violation(early().on_frame(b'R', b"\0\0"))
                .to_string()
                .contains("Authentication")
        );
    }

    #[test]
    fn what_may_not_be_asked_for_is_not_answered_ahead() {
        let forbidden = LoginRequest {
            require_auth: Some(vec!["md5".to_owned()]),
            ..expecting(&[SCRAM_SHA_256])
        };
        assert!(matches!(BackendLogin::start(forbidden), Err(LoginFailure::Policy(_))));
        let unbound = LoginRequest {
            channel_binding: ChannelBinding::Require,
            tls_server_end_point: None,
            ..expecting(&[SCRAM_SHA_256])
        };
        assert!(matches!(BackendLogin::start(unbound), Err(LoginFailure::Policy(_))));
    }

    #[test]
    fn an_offer_of_many_mechanisms_is_not_remembered() {
        let mut many = vec![SCRAM_SHA_256; OFFERED_MAX];
        assert_eq!(worth_expecting(&many).len(), OFFERED_MAX);
        many.push("X");
        assert!(worth_expecting(&many).is_empty());
        assert!(worth_expecting(&["M".repeat(MECHANISM_LEN_MAX + 1).as_str()]).is_empty());
    }

    #[test]
    fn passwords_are_sent_as_they_are_asked_for() {
        let (cleartext, login) = sent(start(request()).on_frame(b'R', &3u32.to_be_bytes()));
        assert_eq!(&cleartext[..], b"p\0\0\0\x0bsesame\0");
        next(login.on_frame(b'R', &[0; 4]));
        let (hashed, login) = sent(start(request()).on_frame(b'R', b"\0\0\0\x05salt"));
        let expected = Md5Hash::of("sesame", "app").answer(*b"salt");
        assert_eq!(&hashed[5..], [expected.as_bytes(), b"\0"].concat());
        next(login.on_frame(b'R', &[0; 4]));
    }

    #[test]
    fn an_md5_hash_opens_md5_and_nothing_else() {
        let secret = || LoginSecret::Md5(Md5Hash::of("sesame", "app"));
        let with_hash = || LoginRequest {
            secret: secret(),
            ..request()
        };
        let (hashed, _) = sent(start(with_hash()).on_frame(b'R', b"\0\0\0\x05salt"));
        let expected = Md5Hash::of("sesame", "app").answer(*b"salt");
        assert_eq!(&hashed[5..], [expected.as_bytes(), b"\0"].concat());
        assert!(start(with_hash()).on_frame(b'R', &3u32.to_be_bytes()).is_err());
        assert!(
            start(with_hash())
                .on_frame(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0")
                .is_err()
        );
        assert!(secret().is_same(&secret()) && !secret().is_same(&LoginSecret::None));
    }

    #[test]
    fn scram_succeeds_and_its_keys_can_be_used_again() {
        let first = scram_login(request(), &["SCRAM-SHA-256"], ServerBinding::Unavailable);
        let salted = first.salted.clone().unwrap();
        let with = |secret| LoginRequest { secret, ..request() };
        let cached = LoginSecret::Password {
            password: Zeroizing::new("unread".into()),
            salted: first.salted,
        };
        let again = scram_login(with(cached), &["SCRAM-SHA-256"], ServerBinding::Unavailable);
        assert_eq!(again.salted.as_ref(), Some(&salted));
        let passed = scram_login(
            with(LoginSecret::Keys(salted.keys)),
            &["SCRAM-SHA-256"],
            ServerBinding::Unavailable,
        );
        assert_eq!(passed.salted, None);
    }

    #[test]
    fn trap_84_plus_is_chosen_wherever_it_stands_in_the_list() {
        let tls = |mode| LoginRequest {
            tls_server_end_point: Some(vec![5; 32]),
            channel_binding: mode,
            ..request()
        };
        let plus = || ServerBinding::EndPoint(vec![5; 32]);
        for list in [
            ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"],
            ["SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"],
        ] {
            scram_login(tls(ChannelBinding::Prefer), &list, plus());
            scram_login(tls(ChannelBinding::Require), &list, plus());
            scram_login(tls(ChannelBinding::Disable), &list, ServerBinding::Declined);
            scram_login(request(), &list, ServerBinding::Declined);
        }
        scram_login(
            tls(ChannelBinding::Prefer),
            &["X", "SCRAM-SHA-256"],
            ServerBinding::Unavailable,
        );
        let (initial, _) = sent(start(tls(ChannelBinding::Prefer)).on_frame(b'R', &sasl(&["SCRAM-SHA-256"])));
        assert!(
            initial.windows(3).any(|flag| flag == b"y,,"),
            "a server that did offer it must see the downgrade"
        );
    }

    #[test]
    fn channel_binding_require_accepts_nothing_less() {
        let required = |hash: Option<Vec<u8>>| {
            start(LoginRequest {
                channel_binding: ChannelBinding::Require,
                tls_server_end_point: hash,
                ..request()
            })
        };
        let tls = || Some(vec![5; 32]);
        for (hash, body) in [
            (tls(), [0; 4].to_vec()),
            (tls(), 3u32.to_be_bytes().to_vec()),
            (tls(), b"\0\0\0\x05salt".to_vec()),
            (tls(), sasl(&["SCRAM-SHA-256"])),
            (None, sasl(&["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"])),
        ] {
            assert!(
                forbidden(required(hash).on_frame(b'R', &body)).starts_with("channel binding"),
                "{body:?}"
            );
        }
    }

    #[test]
    fn require_auth_has_libpqs_meaning() {
        let list = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
        for (text, allowed) in [
            ("password", vec!["password"]),
            ("md5,scram-sha-256", vec!["md5", "scram-sha-256"]),
            ("none", vec!["none"]),
            ("!none", vec!["password", "md5", "scram-sha-256"]),
            ("!password,!md5", vec!["scram-sha-256", "none"]),
            ("scram-sha-256,none", vec!["scram-sha-256", "none"]),
        ] {
            for (method, body) in [
                ("none", [0; 4].to_vec()),
                ("password", 3u32.to_be_bytes().to_vec()),
                ("md5", b"\0\0\0\x05salt".to_vec()),
                ("scram-sha-256", sasl(&["SCRAM-SHA-256"])),
            ] {
                let step = start(LoginRequest {
                    require_auth: Some(list(text)),
                    ..request()
                })
                .on_frame(b'R', &body);
                assert_eq!(step.is_ok(), allowed.contains(&method), "{text}: {method}");
            }
        }
        let required = LoginRequest {
            require_auth: Some(list("md5")),
            ..request()
        };
        assert_eq!(
            forbidden(start(required).on_frame(b'R', &3u32.to_be_bytes())),
            "authentication method requirement \"md5\" failed: server requested a cleartext password"
        );
    }

    #[test]
    fn what_we_cannot_answer_is_said() {
        let with = |secret| start(LoginRequest { secret, ..request() });
        let keys = || LoginSecret::Keys(ScramKeys::derive("sesame", b"salt", 1));
        for body in [3u32.to_be_bytes().to_vec(), b"\0\0\0\x05salt".to_vec()] {
            assert_eq!(
                forbidden(with(LoginSecret::None).on_frame(b'R', &body)),
                "the server asks for a password, and none is configured"
            );
            assert!(forbidden(with(keys()).on_frame(b'R', &body)).contains("only SCRAM keys"));
        }
        forbidden(with(LoginSecret::None).on_frame(b'R', &sasl(&["SCRAM-SHA-256"])));
        for body in [
            7u32.to_be_bytes(),
            9u32.to_be_bytes(),
            2u32.to_be_bytes(),
            99u32.to_be_bytes(),
        ] {
            forbidden(with(keys()).on_frame(b'R', &body));
        }
        forbidden(with(keys()).on_frame(b'R', &sasl(&["OAUTHBEARER"])));
        forbidden(with(keys()).on_frame(b'R', &sasl(&[])));
        forbidden(with(keys()).on_frame(b'R', &sasl(&["SCRAM-SHA-256-PLUS"])));
    }

    #[test]
    fn trap_84_a_scram_exchange_can_be_neither_shortened_nor_repeated() {
        let ok = [0; 4];
        let begun = || sent(start(request()).on_frame(b'R', &sasl(&["SCRAM-SHA-256"])));
        violation(begun().1.on_frame(b'R', &ok));
        violation(begun().1.on_frame(b'R', &sasl(&["SCRAM-SHA-256"])));
        violation(begun().1.on_frame(b'S', b"a\0b\0"));
        let continued = || {
            let (initial, login) = begun();
            let (server_first, server) = scram_server(&initial, ServerBinding::Unavailable);
            let (last, login) = sent(login.on_frame(b'R', &server_first));
            (login, server_first, server.client_final(&last[5..]).unwrap())
        };
        violation(continued().0.on_frame(b'R', &ok));
        let (login, server_first, _) = continued();
        violation(login.on_frame(b'R', &server_first));
        let (login, _, _) = continued();
        violation(login.on_frame(b'R', &authentication(&Authentication::SASLFinal("v=AAAA".into()))));
        let (login, _, verdict) = continued();
        let ScramVerdict::Proven { server_final, .. } = verdict else {
            panic!()
        };
        let last = authentication(&Authentication::SASLFinal(server_final.into()));
        violation(next(login.on_frame(b'R', &last)).on_frame(b'R', &last));
        violation(start(request()).on_frame(b'R', &last));
        violation(next(start(request()).on_frame(b'R', &ok)).on_frame(b'R', &ok));
    }

    #[test]
    fn a_refusal_is_postgresqls_own() {
        let step = start(request()).on_frame(b'E', b"SFATAL\0VFATAL\0C3D000\0Mdatabase \"db\" does not exist\0\0");
        let Err(LoginFailure::Refused(report)) = step else {
            panic!()
        };
        assert_eq!(report.to_string(), "FATAL: database \"db\" does not exist (3D000)");
        let late = next(start(request()).on_frame(b'R', &[0; 4])).on_frame(b'E', b"SFATAL\0Mtoo late\0\0");
        assert!(matches!(late, Err(LoginFailure::Refused(_))));
        let (_, login) = sent(start(request()).on_frame(b'R', &sasl(&["SCRAM-SHA-256"])));
        let refused = login.on_frame(
            b'R',
            &authentication(&Authentication::SASLContinue("e=other-error".into())),
        );
        assert!(matches!(refused, Err(LoginFailure::Violation(_))));
    }

    #[test]
    fn trap_06_an_older_server_is_negotiated_with_once() {
        let older = [PROTOCOL_3_0.to_be_bytes(), [0; 4]].concat();
        let login = next(start(request()).on_frame(b'v', &older));
        let login = next(login.on_frame(b'R', &[0; 4]));
        let login = next(login.on_frame(b'K', &[0; 8]));
        assert_eq!(done(login.on_frame(b'Z', b"I")).negotiated_version, PROTOCOL_3_0);
        violation(next(start(request()).on_frame(b'v', &older)).on_frame(b'v', &older));
        violation(next(start(request()).on_frame(b'R', &[0; 4])).on_frame(b'v', &older));
        violation(
            start(LoginRequest {
                version: PROTOCOL_3_0,
                ..request()
            })
            .on_frame(b'v', &older),
        );
        for (newest, options) in [
            ((3 << 16) | 1, 0u32),
            (PROTOCOL_3_2, 0),
            ((3 << 16) | 9, 0),
            (2 << 16, 0),
            (PROTOCOL_3_0, 1),
        ] {
            let body = [newest.to_be_bytes(), options.to_be_bytes()].concat();
            violation(start(request()).on_frame(b'v', &body));
        }
    }

    #[test]
    fn trap_10_a_server_without_cancel_keys_is_no_error() {
        let login = next(start(request()).on_frame(b'R', &[0; 4]));
        assert_eq!(done(login.on_frame(b'Z', b"I")).cancel_key, None);
    }

    #[test]
    fn cancel_keys_have_the_length_of_their_version() {
        let ready = |version| next(start(LoginRequest { version, ..request() }).on_frame(b'R', &[0; 4]));
        for (version, len, is_good) in [
            (PROTOCOL_3_0, 4, true),
            (PROTOCOL_3_0, 32, false),
            (PROTOCOL_3_2, 4, true),
            (PROTOCOL_3_2, 256, true),
            (PROTOCOL_3_2, 257, false),
            (PROTOCOL_3_2, 3, false),
        ] {
            let step = ready(version).on_frame(b'K', &vec![0; 4 + len]);
            assert_eq!(step.is_ok(), is_good, "{len} bytes in {version:#x}");
        }
        violation(next(ready(PROTOCOL_3_0).on_frame(b'K', &[0; 8])).on_frame(b'K', &[0; 8]));
    }

    #[test]
    fn trap_02_short_and_odd_messages_are_violations() {
        for (tag, body) in [
            (b'R', &b""[..]),
            (b'R', b"\0\0\0"),
            (b'R', b"\0\0\0\x00\0"),
            (b'R', b"\0\0\0\x05abc"),
            (b'R', b"\0\0\0\x0aSCRAM-SHA-256"),
            (b'R', b"\0\0\0\x0aSCRAM-SHA-256\0"),
            (b'R', b"\0\0\0\x0a\0\0"),
            (b'v', b"\0"),
            (b'v', b"\0\x03\0\0\xff\xff\xff\xff"),
            (b'E', b"SFATAL"),
            (b'Z', b"I"),
            (b'S', b"a\0b\0"),
            (b'K', &[0; 8]),
            (b'H', b""),
            (0, b""),
            (b'N', &[0; LOGIN_MESSAGE_LEN_MAX + 1]),
        ] {
            violation(start(request()).on_frame(tag, body));
        }
        for (tag, body) in [
            (b'S', &b"a\0b"[..]),
            (b'K', b"\0"),
            (b'Z', b"T"),
            (b'Z', b""),
            (b'D', b""),
            (b'R', b""),
        ] {
            violation(next(start(request()).on_frame(b'R', &[0; 4])).on_frame(tag, body));
        }
    }

    #[test]
    fn the_servers_settings_are_bounded() {
        let mut login = next(start(request()).on_frame(b'R', &[0; 4]));
        for index in 0..PARAMETERS_MAX {
            login = next(login.on_frame(b'S', format!("setting{index}\0on\0").as_bytes()));
        }
        violation(login.on_frame(b'S', b"one too many\0on\0"));
        let large = format!("setting\0{}\0", "x".repeat(40_000));
        let login = next(start(request()).on_frame(b'R', &[0; 4]));
        violation(next(login.on_frame(b'S', large.as_bytes())).on_frame(b'S', large.as_bytes()));
    }

    #[test]
    fn trap_87_tokens_of_64_kilobytes_are_sent_whole() {
        let token = "t".repeat(65_000);
        let secret = LoginSecret::Password {
            password: Zeroizing::new(token.clone()),
            salted: None,
        };
        let (cleartext, _) = sent(start(LoginRequest { secret, ..request() }).on_frame(b'R', &3u32.to_be_bytes()));
        assert_eq!(&cleartext[5..], [token.as_bytes(), b"\0"].concat());
    }

    #[test]
    fn trap_01_a_startup_message_over_postgresqls_limit_is_not_sent() {
        let with = |len| LoginRequest {
            parameters: vec![("user".into(), "x".repeat(len))],
            ..request()
        };
        assert_eq!(
            BackendLogin::start(with(9_985)).unwrap().0.len(),
            STARTUP_PACKET_LEN_MAX
        );
        assert!(matches!(BackendLogin::start(with(9_986)), Err(LoginFailure::Policy(_))));
    }

    #[test]
    fn nothing_secret_is_shown() {
        let login = start(request());
        assert!(!format!("{login:?}").contains("sesame"));
        let (_, login) = sent(login.on_frame(b'R', &sasl(&["SCRAM-SHA-256"])));
        assert!(!format!("{login:?}").contains("sesame"));
    }
}
