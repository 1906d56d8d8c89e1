//! Who the client is: finds what is stored of its user, drives the exchange, and says with what PostgreSQL is asked.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use zeroize::Zeroizing;

use super::context::{ClientContext, Door, Snapshot};
use super::credentials::KnownUser;
use crate::config::{AuthMethod, PasswordSource};
use crate::net::{PeerAddress, Stream, user_name};
use crate::protocol::backend_login::LoginSecret;
use crate::protocol::client_auth::{
    AuthRandom, AuthRequest, AuthStep, ClientAuth, Exchange, Learned, Proof, StoredCredential,
};
use crate::protocol::handshake::Login;
use crate::protocol::scram::ScramKeys;
use crate::wire::{HEADER_LEN, Header, Report, SqlState};

/// A client that has proved who it is.
#[derive(Debug)]
pub struct Authenticated {
    /// What PostgreSQL is asked with.
    pub password: PasswordSource,
    /// What the client's own login brought, where the configuration knows no password.
    pub passed: LoginSecret,
    /// The last message of the exchange; AuthenticationOk follows in the same write.
    pub last_words: bytes::Bytes,
}

impl Authenticated {
    /// What the client's own login opens at PostgreSQL, where the configuration knows nothing that does.
    pub fn secret_to_pass(&self) -> Option<LoginSecret> {
        let unknown = matches!(self.password, PasswordSource::None);
        (unknown && !matches!(self.passed, LoginSecret::None)).then(|| self.passed.clone())
    }
}

/// Why nobody is logged in.
#[derive(Debug)]
pub enum Denied {
    /// Tell it this and close.
    Refused(Report),
    /// It went away, or its socket failed.
    Gone,
}

impl From<std::io::Error> for Denied {
    fn from(_: std::io::Error) -> Self {
        Self::Gone
    }
}

/// A password that was looked up longer ago than this may have been changed since, and is looked up once more before a
/// client is turned away. Shorter, and wrong passwords would become as many questions to PostgreSQL.
const REREAD_AGE: Duration = Duration::from_secs(1);

/// Runs the door's method.
pub async fn authenticate(
    stream: &mut Stream,
    read: &mut BytesMut,
    login: &Login,
    door: Door,
    context: &Arc<ClientContext>,
    snapshot: &Arc<Snapshot>,
) -> Result<Authenticated, Denied> {
    let known = snapshot.credentials.find(&login.user);
    let Some(exchange) = door.auth.exchange() else {
        return immediate(stream, login, door.auth, known, snapshot);
    };
    let known = match known {
        Some(user) => Some(user),
        None => tokio::select! {
            found = Box::pin(context.auth_query.find(&login.user, Duration::MAX, snapshot, context)) => found.map_err(Denied::Refused)?,
            () = stream.left() => return Err(Denied::Gone),
        },
    };
    let unknown = StoredCredential::Unknown;
    let stored = known.as_ref().map_or(&unknown, |user| &user.stored);
    let (user, (last_words, learned)) = match run_exchange(stream, read, login, exchange, stored, snapshot).await? {
        Attempt::Accepted(accepted) => (known, accepted),
        Attempt::WrongPassword(report, proof) => {
            let second = Box::pin(second_look(login, proof, context, snapshot)).await;
            let (user, accepted) = second.ok_or(Denied::Refused(report))?;
            (Some(user), accepted)
        }
    };
    let Some(user) = user else {
        return Err(Denied::Refused(failed(door.auth, &login.user)));
    };
    if let Some(password) = &learned.password {
        snapshot.credentials.password_proven(&login.user, password);
        context.auth_query.password_proven(&login.user, password);
    }
    Ok(Authenticated {
        passed: passed_secret(&user.stored, &learned),
        password: user.upstream.clone().unwrap_or_default(),
        last_words,
    })
}

/// The password may have been changed since it was read: it is read once more before anyone is turned away.
async fn second_look(
    login: &Login,
    proof: Proof,
    context: &Arc<ClientContext>,
    snapshot: &Arc<Snapshot>,
) -> Option<(Arc<KnownUser>, Accepted)> {
    let user = match snapshot.credentials.find(&login.user) {
        Some(_) => snapshot.credentials.reread(&login.user).await?,
        None => {
            let found = context.auth_query.find(&login.user, REREAD_AGE, snapshot, context);
            found.await.ok().flatten()?
        }
    };
    let (name, judge) = (login.user.clone(), user.clone());
    // Judging may take a key derivation.
    let judged = tokio::task::spawn_blocking(move || proof.holds_for(&name, &judge.stored)).await;
    Some((user, judged.ok().flatten()?))
}

/// `trust`, `peer` and `cert`: the socket or its certificate has said who the client is.
fn immediate(
    stream: &Stream,
    login: &Login,
    method: AuthMethod,
    known: Option<Arc<KnownUser>>,
    snapshot: &Snapshot,
) -> Result<Authenticated, Denied> {
    let proven = match method {
        AuthMethod::Peer => peer_may_be(stream, &login.user, snapshot),
        AuthMethod::Cert => stream.peer_certificate_common_name() == Some(login.user.as_str()),
        _ => true,
    };
    match (proven, known) {
        (true, Some(user)) => Ok(Authenticated {
            passed: passed_secret(&user.stored, &Learned::default()),
            password: user.upstream.clone().unwrap_or_default(),
            last_words: bytes::Bytes::new(),
        }),
        _ => Err(Denied::Refused(failed(method, &login.user))),
    }
}

fn peer_may_be(stream: &Stream, user: &str, snapshot: &Snapshot) -> bool {
    let PeerAddress::Unix { uid, .. } = stream.peer() else {
        return false;
    };
    let Some(system_user) = user_name(uid) else {
        return false;
    };
    match snapshot.config.auth.peer_users.get(&system_user) {
        Some(allowed) => allowed.iter().any(|name| name == user),
        None => system_user == user,
    }
}

/// PostgreSQL's own words for a method that failed.
fn failed(method: AuthMethod, user: &str) -> Report {
    let name = match method {
        AuthMethod::Peer => "Peer",
        AuthMethod::Cert => "certificate",
        _ => "\"trust\"",
    };
    Report::fatal(
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        format!("{name} authentication failed for user \"{user}\""),
    )
}

type Accepted = (bytes::Bytes, Learned);

/// How an exchange ended that kept to its rules.
enum Attempt {
    Accepted(Accepted),
    WrongPassword(Report, Proof),
}

async fn run_exchange(
    stream: &mut Stream,
    read: &mut BytesMut,
    login: &Login,
    exchange: Exchange,
    stored: &StoredCredential,
    snapshot: &Snapshot,
) -> Result<Attempt, Denied> {
    // Where known users are asked for SCRAM on an md5 listener, because only their verifiers are stored, unknown ones are.
    let as_others = matches!(stored, StoredCredential::Unknown) && !snapshot.credentials.usual().md5;
    let exchange = match exchange {
        Exchange::Md5 if as_others => Exchange::ScramSha256,
        exchange => exchange,
    };
    let request = AuthRequest {
        exchange,
        user: &login.user,
        stored,
        channel_binding: stream.tls_server_end_point().map(<[u8]>::to_vec),
        random: random()?,
        mock: &snapshot.mock,
    };
    let (mut words, mut auth) = ClientAuth::start(request);
    loop {
        stream.write_all(&words).await?;
        let (tag, body) = read_message(stream, read, auth.message_len_max()).await?;
        match auth.on_message(tag, &body) {
            Ok(AuthStep::Send(next_words, next)) => (words, auth) = (next_words, next),
            Ok(AuthStep::Accepted { send, learned }) => return Ok(Attempt::Accepted((send, learned))),
            Ok(AuthStep::WrongPassword(report, proof)) => return Ok(Attempt::WrongPassword(report, proof)),
            Ok(AuthStep::Refused(report)) => return Err(Denied::Refused(report)),
            Err(violation) => {
                return Err(Denied::Refused(Report::fatal(
                    SqlState::PROTOCOL_VIOLATION,
                    violation.to_string(),
                )));
            }
        }
    }
}

fn random() -> Result<AuthRandom, Denied> {
    // One system call for both.
    let mut bytes = [0; 22];
    getrandom::fill(&mut bytes).map_err(|error| {
        tracing::error!(%error, "the system's random generator failed");
        Denied::Refused(Report::fatal(
            SqlState::INTERNAL_ERROR,
            "could not generate random salt",
        ))
    })?;
    let [nonce @ .., a, b, c, d] = bytes;
    let md5_salt = [a, b, c, d];
    Ok(AuthRandom { nonce, md5_salt })
}

/// Exactly one message, its length checked before anything is allocated for it.
async fn read_message(stream: &mut Stream, read: &mut BytesMut, len_max: usize) -> Result<(u8, BytesMut), Denied> {
    loop {
        let too_long = || Denied::Refused(Report::fatal(SqlState::PROTOCOL_VIOLATION, "invalid message length"));
        if let Some(header) = Header::peek(read).map_err(|_| too_long())? {
            if header.body_len > len_max {
                return Err(too_long());
            }
            if read.len() >= header.frame_len() {
                let mut frame = read.split_to(header.frame_len());
                return Ok((header.tag, frame.split_off(HEADER_LEN)));
            }
        }
        if read.capacity() == read.len() {
            read.reserve(1024);
        }
        if stream.read_buf(read).await? == 0 {
            return Err(Denied::Gone);
        }
    }
}

/// Where only a verifier or a hash is stored, that or the client's own proof opens PostgreSQL too.
fn passed_secret(stored: &StoredCredential, learned: &Learned) -> LoginSecret {
    let password = |password: &Zeroizing<String>| LoginSecret::Password {
        password: password.clone(),
        salted: None,
    };
    match (stored, &learned.password, &learned.client_key) {
        (_, Some(sent), _) => password(sent),
        (StoredCredential::Password { password: known, .. }, _, _) => password(known),
        (StoredCredential::Verifier(verifier), _, Some(client_key)) => LoginSecret::Keys(ScramKeys {
            client_key: client_key.clone(),
            server_key: verifier.server_key.clone(),
        }),
        (StoredCredential::Md5(hash), _, _) => LoginSecret::Md5(hash.clone()),
        (StoredCredential::Verifier(_) | StoredCredential::Unknown, _, _) => LoginSecret::None,
    }
}
