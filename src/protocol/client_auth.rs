//! We are the server: a client proves who it is (manual: protocol-flow-start-up, sasl-authentication, auth-password).
//!
//! [`ClientAuth::start`] returns the first Authentication message and the state that takes the client's answer. Every
//! `p` message goes to [`ClientAuth::on_message`], until it says [`AuthStep::Accepted`] or [`AuthStep::Refused`].
//! AuthenticationOk is the greeting's, not ours.

use std::fmt;

use bytes::{Bytes, BytesMut};
use pgwire::messages::startup::Authentication;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::Violation;
use super::md5::Md5Hash;
use super::scram::{
    CLIENT_MESSAGE_LEN_MAX, MockSecret, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramKey, ScramServer, ScramServerFinal,
    ScramVerdict, ServerBinding, Verifier,
};
use crate::wire::{FrontendTag, Malformed, Reader, Report, SqlState, compose};

/// The longest password that is read (`PG_MAX_AUTH_TOKEN_LENGTH`), in bytes, its terminator included.
pub const PASSWORD_LEN_MAX: usize = 65_535;

/// How a listener's clients prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the names are pg_hba.conf's")]
pub enum AuthMethod {
    #[default]
    ScramSha256,
    Md5,
    Password,
    Cert,
    Trust,
    Peer,
}

impl AuthMethod {
    /// The exchange of messages that this method needs; `None` where the caller decides without one.
    pub const fn exchange(self) -> Option<Exchange> {
        match self {
            Self::ScramSha256 => Some(Exchange::ScramSha256),
            Self::Md5 => Some(Exchange::Md5),
            Self::Password => Some(Exchange::Password),
            Self::Cert | Self::Trust | Self::Peer => None,
        }
    }
}

/// The methods of [`AuthMethod`] in which the client is asked something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exchange {
    /// SCRAM-SHA-256, with PLUS offered first where there is a channel to bind to.
    ScramSha256,
    /// md5, or SCRAM-SHA-256 for a user of whom only a SCRAM verifier is stored, as PostgreSQL does.
    Md5,
    /// The password as it is.
    Password,
}

/// What is stored of a user.
#[derive(Clone)]
pub enum StoredCredential {
    /// The password, and a verifier that was derived from it once, at start or reload.
    Password {
        /// In UTF-8.
        password: Zeroizing<String>,
        /// Of this password.
        verifier: Verifier,
    },
    /// pg_authid's md5 hash. Can't be proven by SCRAM.
    Md5(Md5Hash),
    /// pg_authid's SCRAM verifier.
    Verifier(Verifier),
    /// There is no such user, or it may not log in: the same messages as for a known one, and always a refusal.
    Unknown,
}

impl fmt::Debug for StoredCredential {
    /// Never shows the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password(***)",
            Self::Md5(_) => "Md5(***)",
            Self::Verifier(_) => "Verifier(***)",
            Self::Unknown => "Unknown",
        })
    }
}

/// What the operating system's generator must fill for one login.
#[derive(Debug, Clone, Copy)]
pub struct AuthRandom {
    /// Our half of the SCRAM nonce.
    pub nonce: [u8; 18],
    /// The salt of an md5 exchange.
    pub md5_salt: [u8; 4],
}

/// One login.
#[derive(Debug)]
pub struct AuthRequest<'a> {
    /// The listener's, from [`AuthMethod::exchange`].
    pub exchange: Exchange,
    /// As the StartupMessage names it.
    pub user: &'a str,
    /// What is known of that user.
    pub stored: &'a StoredCredential,
    /// The tls-server-end-point hash of the certificate that this client was shown; `None` without TLS.
    pub channel_binding: Option<Vec<u8>>,
    /// Fresh for this login.
    pub random: AuthRandom,
    /// The process's own.
    pub mock: &'a MockSecret,
}

/// What the login taught us of the user's password.
#[derive(Clone, Default)]
pub struct Learned {
    /// From the `password` method: the password itself.
    pub password: Option<Zeroizing<String>>,
    /// From SCRAM: the ClientKey, with which the user can be logged in wherever the same verifier is stored.
    pub client_key: Option<ScramKey>,
}

impl fmt::Debug for Learned {
    /// Never shows the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = |is_known| if is_known { "***" } else { "none" };
        write!(
            f,
            "Learned({}, {})",
            known(self.password.is_some()),
            known(self.client_key.is_some())
        )
    }
}

/// What comes next.
#[derive(Debug)]
pub enum AuthStep {
    /// Send this and wait for the client's next message.
    Send(Bytes, ClientAuth),
    /// The client is who it says.
    Accepted {
        /// AuthenticationSASLFinal where the exchange has one, else empty. AuthenticationOk follows it.
        send: Bytes,
        /// What can be used towards PostgreSQL.
        learned: Learned,
    },
    /// The proof does not fit what is stored. Where that may be out of date, [`Proof::holds_for`] what is stored now;
    /// else send this and close.
    WrongPassword(Report, Proof),
    /// It broke the exchange's rules: send this and close.
    Refused(Report),
}

/// What a client answered, to be judged once more by what is stored of its password now.
#[derive(Debug)]
pub struct Proof(Answer);

#[derive(Debug)]
enum Answer {
    Scram(ScramServerFinal, Vec<u8>),
    Md5([u8; 4], Hidden),
    Password(Hidden),
}

impl Proof {
    /// [`AuthStep::Accepted`]'s message and lesson, if the client has proved this credential. A SCRAM proof can be judged
    /// by a password, or by a verifier of the same salt. May cost what [`Verifier::derive`] costs.
    pub fn holds_for(self, user: &str, stored: &StoredCredential) -> Option<(Bytes, Learned)> {
        match self.0 {
            Answer::Scram(scram, client_final) => {
                let scram = match stored {
                    StoredCredential::Password { password, .. } => scram.with_password(password),
                    StoredCredential::Verifier(verifier) => scram.with_verifier(verifier)?,
                    StoredCredential::Md5(_) | StoredCredential::Unknown => return None,
                };
                proven(scram.client_final(&client_final).ok()?)
            }
            Answer::Md5(salt, answer) => {
                let hash = match stored {
                    StoredCredential::Password { password, .. } => Md5Hash::of(password, user),
                    StoredCredential::Md5(hash) => hash.clone(),
                    StoredCredential::Verifier(_) | StoredCredential::Unknown => return None,
                };
                let is_right: bool = hash.answer(salt).as_bytes().ct_eq(answer.0.as_bytes()).into();
                is_right.then(|| (Bytes::new(), Learned::default()))
            }
            Answer::Password(sent) => stored.is_password(&sent.0, user).then(|| {
                let learned = Learned {
                    password: Some(sent.0),
                    client_key: None,
                };
                (Bytes::new(), learned)
            }),
        }
    }
}

fn proven(verdict: ScramVerdict) -> Option<(Bytes, Learned)> {
    match verdict {
        ScramVerdict::Proven {
            server_final,
            client_key,
        } => {
            let learned = Learned {
                password: None,
                client_key: Some(client_key),
            };
            Some((authentication(&Authentication::SASLFinal(server_final.into())), learned))
        }
        ScramVerdict::WrongPassword => None,
    }
}

/// A client's authentication, waiting for its next message.
#[derive(Debug)]
pub struct ClientAuth(State);

#[derive(Debug)]
enum State {
    SaslInitialResponse(ExpectSaslInitialResponse),
    ClientFirst(ExpectClientFirst),
    ClientFinal(ExpectClientFinal),
    Md5Password(ExpectMd5Password),
    Password(ExpectPassword),
}

impl ClientAuth {
    /// The first message to the client, and the state that takes its answer.
    pub fn start(request: AuthRequest<'_>) -> (Bytes, Self) {
        match (request.exchange, request.stored) {
            (Exchange::Password, _) => ExpectPassword::start(request),
            (Exchange::Md5, StoredCredential::Password { password, .. }) => {
                let hash = Md5Hash::of(password, request.user);
                ExpectMd5Password::start(&request, Some(&hash))
            }
            (Exchange::Md5, StoredCredential::Md5(hash)) => ExpectMd5Password::start(&request, Some(hash)),
            (Exchange::Md5, StoredCredential::Unknown) => ExpectMd5Password::start(&request, None),
            (Exchange::Md5, StoredCredential::Verifier(_)) | (Exchange::ScramSha256, _) => {
                ExpectSaslInitialResponse::start(request)
            }
        }
    }

    /// The longest body that [`Self::on_message`] takes now, in bytes: refuse a longer one by its header.
    pub const fn message_len_max(&self) -> usize {
        match self.0 {
            State::SaslInitialResponse(_) | State::ClientFirst(_) | State::ClientFinal(_) => SASL_BODY_LEN_MAX,
            State::Md5Password(_) | State::Password(_) => PASSWORD_LEN_MAX,
        }
    }

    /// Takes the client's next message: its type byte and its body.
    pub fn on_message(self, tag: u8, body: &[u8]) -> Result<AuthStep, Violation> {
        if tag != FrontendTag::Authentication.byte() {
            return Err(Violation::Unexpected {
                expected: self.expected(),
                got: char::from(tag),
            });
        }
        if body.len() > self.message_len_max() {
            return Err(Violation::Malformed {
                message: self.expected(),
                cause: Malformed::Length,
            });
        }
        let message = self.expected();
        match self.0 {
            State::SaslInitialResponse(state) => state.on_message(body),
            State::ClientFirst(state) => Ok(state.on_message(body)),
            State::ClientFinal(state) => Ok(state.on_message(body)),
            State::Md5Password(state) => state.on_message(body),
            State::Password(state) => state.on_message(body),
        }
        .map_err(|cause| Violation::Malformed { message, cause })
    }

    const fn expected(&self) -> &'static str {
        match self.0 {
            State::SaslInitialResponse(_) => "SASLInitialResponse",
            State::ClientFirst(_) | State::ClientFinal(_) => "SASLResponse",
            State::Md5Password(_) | State::Password(_) => "PasswordMessage",
        }
    }
}

/// A mechanism name, a length and a SCRAM message.
const SASL_BODY_LEN_MAX: usize = CLIENT_MESSAGE_LEN_MAX + 64;

/// Whether anyone can pass: for [`StoredCredential::Unknown`] and for md5 hashes nobody can, whatever the proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Account {
    Known,
    Mock,
}

/// AuthenticationSASL is sent: the client chooses a mechanism.
#[derive(Debug)]
struct ExpectSaslInitialResponse {
    user: String,
    verifier: Verifier,
    account: Account,
    channel_binding: Option<Vec<u8>>,
    nonce: [u8; 18],
}

impl ExpectSaslInitialResponse {
    fn start(request: AuthRequest<'_>) -> (Bytes, ClientAuth) {
        let (verifier, account) = match request.stored {
            StoredCredential::Password { verifier, .. } | StoredCredential::Verifier(verifier) => {
                (verifier.clone(), Account::Known)
            }
            StoredCredential::Md5(_) | StoredCredential::Unknown => {
                (request.mock.verifier(request.user), Account::Mock)
            }
        };
        let plus = request.channel_binding.is_some().then_some(SCRAM_SHA_256_PLUS);
        let mechanisms = plus.into_iter().chain([SCRAM_SHA_256]).map(str::to_owned).collect();
        let next = Self {
            user: request.user.to_owned(),
            verifier,
            account,
            channel_binding: request.channel_binding,
            nonce: request.random.nonce,
        };
        (
            authentication(&Authentication::SASL(mechanisms)),
            ClientAuth(State::SaslInitialResponse(next)),
        )
    }

    fn on_message(self, body: &[u8]) -> Result<AuthStep, Malformed> {
        let mut reader = Reader::new(body);
        let (mechanism, len) = (reader.cstr()?, reader.i32()?);
        let client_first = match usize::try_from(len) {
            Ok(len) => Some(reader.bytes(len)?),
            Err(_) if len == -1 => None,
            Err(_) => return Err(Malformed::Length),
        };
        reader.finish()?;
        let binding = match (mechanism, self.channel_binding) {
            (mechanism, None) if mechanism == SCRAM_SHA_256.as_bytes() => ServerBinding::Unavailable,
            (mechanism, Some(_)) if mechanism == SCRAM_SHA_256.as_bytes() => ServerBinding::Declined,
            (mechanism, Some(hash)) if mechanism == SCRAM_SHA_256_PLUS.as_bytes() => ServerBinding::EndPoint(hash),
            _ => return Ok(AuthStep::Refused(invalid_mechanism())),
        };
        let scram = ScramServer::new(self.verifier, binding, &self.nonce);
        let next = ExpectClientFirst {
            user: self.user,
            account: self.account,
            scram,
        };
        Ok(match client_first {
            Some(client_first) => next.on_message(client_first),
            // RFC 4422: a client may leave its first message for an empty challenge.
            None => AuthStep::Send(
                authentication(&Authentication::SASLContinue(Bytes::new())),
                ClientAuth(State::ClientFirst(next)),
            ),
        })
    }
}

/// A mechanism is chosen, client-first has not come.
#[derive(Debug)]
struct ExpectClientFirst {
    user: String,
    account: Account,
    scram: ScramServer,
}

impl ExpectClientFirst {
    fn on_message(self, client_first: &[u8]) -> AuthStep {
        match self.scram.client_first(client_first) {
            Ok((server_first, scram)) => AuthStep::Send(
                authentication(&Authentication::SASLContinue(server_first.into())),
                ClientAuth(State::ClientFinal(ExpectClientFinal {
                    user: self.user,
                    account: self.account,
                    scram,
                })),
            ),
            Err(report) => AuthStep::Refused(report),
        }
    }
}

/// server-first is sent: the client proves its key.
#[derive(Debug)]
struct ExpectClientFinal {
    user: String,
    account: Account,
    scram: ScramServerFinal,
}

impl ExpectClientFinal {
    fn on_message(self, client_final: &[u8]) -> AuthStep {
        let verdict = match self.scram.client_final(client_final) {
            Ok(verdict) => verdict,
            Err(report) => return AuthStep::Refused(report),
        };
        match (proven(verdict), self.account) {
            (Some((send, learned)), Account::Known) => AuthStep::Accepted { send, learned },
            _ => AuthStep::WrongPassword(
                wrong_password(&self.user),
                Proof(Answer::Scram(self.scram, client_final.to_vec())),
            ),
        }
    }
}

/// AuthenticationMD5Password is sent.
#[derive(Debug)]
struct ExpectMd5Password {
    user: String,
    salt: [u8; 4],
    /// `None`: nobody can know it.
    expected: Option<Hidden>,
}

impl ExpectMd5Password {
    fn start(request: &AuthRequest<'_>, hash: Option<&Md5Hash>) -> (Bytes, ClientAuth) {
        let salt = request.random.md5_salt;
        let next = Self {
            user: request.user.to_owned(),
            salt,
            expected: hash.map(|hash| Hidden(hash.answer(salt))),
        };
        (
            authentication(&Authentication::MD5Password(salt.to_vec())),
            ClientAuth(State::Md5Password(next)),
        )
    }

    fn on_message(self, body: &[u8]) -> Result<AuthStep, Malformed> {
        let answer = password_message(body)?;
        let is_right = self
            .expected
            .is_some_and(|expected| expected.0.as_bytes().ct_eq(answer).into());
        Ok(match (answer, is_right) {
            (b"", _) => AuthStep::Refused(empty_password()),
            (_, true) => AuthStep::Accepted {
                send: Bytes::new(),
                learned: Learned::default(),
            },
            (answer, false) => {
                let answer = Hidden(Zeroizing::new(String::from_utf8_lossy(answer).into_owned()));
                AuthStep::WrongPassword(wrong_password(&self.user), Proof(Answer::Md5(self.salt, answer)))
            }
        })
    }
}

/// AuthenticationCleartextPassword is sent.
#[derive(Debug)]
struct ExpectPassword {
    user: String,
    stored: StoredCredential,
}

impl ExpectPassword {
    fn start(request: AuthRequest<'_>) -> (Bytes, ClientAuth) {
        let next = Self {
            user: request.user.to_owned(),
            stored: request.stored.clone(),
        };
        (
            authentication(&Authentication::CleartextPassword),
            ClientAuth(State::Password(next)),
        )
    }

    /// Where a verifier is stored this costs as much as [`Verifier::matches`].
    fn on_message(self, body: &[u8]) -> Result<AuthStep, Malformed> {
        let sent = password_message(body)?;
        if sent.is_empty() {
            return Ok(AuthStep::Refused(empty_password()));
        }
        // Every secret that is stored here is UTF-8, so nothing else can be right.
        let Ok(sent) = std::str::from_utf8(sent) else {
            return Ok(AuthStep::Refused(wrong_password(&self.user)));
        };
        let password = Zeroizing::new(sent.to_owned());
        if !self.stored.is_password(sent, &self.user) {
            let proof = Proof(Answer::Password(Hidden(password)));
            return Ok(AuthStep::WrongPassword(wrong_password(&self.user), proof));
        }
        Ok(AuthStep::Accepted {
            send: Bytes::new(),
            learned: Learned {
                password: Some(password),
                client_key: None,
            },
        })
    }
}

impl StoredCredential {
    fn is_password(&self, sent: &str, user: &str) -> bool {
        match self {
            // Hashed first, so that the comparison tells nothing of the length either.
            Self::Password { password, .. } => Sha256::digest(password.as_bytes())
                .ct_eq(&Sha256::digest(sent.as_bytes()))
                .into(),
            Self::Md5(hash) => hash.is_of(sent, user),
            Self::Verifier(verifier) => verifier.matches(sent),
            Self::Unknown => false,
        }
    }
}

/// A string that `Debug` doesn't show.
struct Hidden(Zeroizing<String>);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The string of a PasswordMessage.
fn password_message(body: &[u8]) -> Result<&[u8], Malformed> {
    let mut reader = Reader::new(body);
    let password = reader.cstr()?;
    reader.finish().map(|()| password)
}

fn authentication(message: &Authentication) -> Bytes {
    let mut out = BytesMut::new();
    compose::authentication(&mut out, message);
    out.freeze()
}

fn wrong_password(user: &str) -> Report {
    Report::fatal(
        SqlState::INVALID_PASSWORD,
        format!("password authentication failed for user \"{user}\""),
    )
}

fn empty_password() -> Report {
    Report::fatal(SqlState::INVALID_PASSWORD, "empty password returned by client")
}

fn invalid_mechanism() -> Report {
    Report::fatal(
        SqlState::PROTOCOL_VIOLATION,
        "client selected an invalid SASL authentication mechanism",
    )
}

#[cfg(test)]
mod tests {
    use super::super::scram::{ClientBinding, ScramClient, ScramKeys, ScramSecret};
    use super::*;

    const RANDOM: AuthRandom = AuthRandom {
        nonce: [1; 18],
        md5_salt: [1, 2, 3, 4],
    };

    fn verifier(password: &str) -> Verifier {
        Verifier::derive(password, b"0123456789abcdef", 16)
    }

    fn every_credential(password: &str) -> [StoredCredential; 3] {
        [
            StoredCredential::Password {
                password: Zeroizing::new(password.into()),
                verifier: verifier(password),
            },
            StoredCredential::Md5(Md5Hash::of(password, "app")),
            StoredCredential::Verifier(verifier(password)),
        ]
    }

    fn start(exchange: Exchange, stored: &StoredCredential, channel_binding: Option<Vec<u8>>) -> (Bytes, ClientAuth) {
        let mock = MockSecret::new([7; 32], 16);
        ClientAuth::start(AuthRequest {
            exchange,
            user: "app",
            stored,
            channel_binding,
            random: RANDOM,
            mock: &mock,
        })
    }

    /// A client that follows whatever it is asked. Returns the last step, and the types of what it was sent.
    fn login(
        exchange: Exchange,
        stored: &StoredCredential,
        password: &str,
        channel: Option<Vec<u8>>,
    ) -> (AuthStep, Vec<i32>) {
        let (sent, auth) = start(exchange, stored, channel.clone());
        let code = |message: &[u8]| Reader::new(&message[5..]).i32().unwrap();
        let mut codes = vec![code(&sent)];
        let step = match codes[0] {
            3 => auth.on_message(b'p', &[password.as_bytes(), b"\0"].concat()),
            5 => {
                let answer = Md5Hash::of(password, "app").answer(sent[9..13].try_into().unwrap());
                auth.on_message(b'p', &[answer.as_bytes(), b"\0"].concat())
            }
            10 => {
                let binding = channel.map_or(ClientBinding::Unsupported, ClientBinding::EndPoint);
                let secret = ScramSecret::Password(Zeroizing::new(password.into()), None);
                let mechanism = binding.mechanism();
                assert!(
                    sent[9..].starts_with(&[mechanism.as_bytes(), b"\0"].concat()),
                    "the strongest one comes first"
                );
                let (first, client) = ScramClient::start(secret, binding, &[2; 18], 16);
                let AuthStep::Send(sent, auth) = auth.on_message(b'p', &sasl_initial(mechanism, &first)).unwrap()
                else {
                    panic!("client-first is refused")
                };
                codes.push(code(&sent));
                let (last, _) = client.server_first(&sent[9..]).unwrap();
                auth.on_message(b'p', last.as_bytes())
            }
            _ => panic!("asked for something else"),
        };
        (step.unwrap(), codes)
    }

    fn sasl_initial(mechanism: &str, data: &str) -> Vec<u8> {
        let mut out = BytesMut::new();
        compose::sasl_initial_response(&mut out, mechanism, data.as_bytes());
        out[5..].to_vec()
    }

    fn refusal(step: AuthStep) -> Report {
        match step {
            AuthStep::Refused(report) | AuthStep::WrongPassword(report, _) => report,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn every_method_accepts_what_it_can_check() {
        for (index, stored) in every_credential("sesame").iter().enumerate() {
            for (exchange, codes) in [
                (Exchange::ScramSha256, vec![10, 11]),
                (Exchange::Md5, if index == 2 { vec![10, 11] } else { vec![5] }),
                (Exchange::Password, vec![3]),
            ] {
                let (step, seen) = login(exchange, stored, "sesame", None);
                assert_eq!(seen, codes, "{exchange:?} {stored:?}");
                if (exchange, index) == (Exchange::ScramSha256, 1) {
                    // An md5 hash can't answer a SCRAM exchange.
                    refusal(step);
                    continue;
                }
                let AuthStep::Accepted { send, learned } = step else {
                    panic!("{exchange:?} {stored:?}")
                };
                assert_eq!(!send.is_empty(), codes.len() == 2, "AuthenticationSASLFinal");
                assert_eq!(learned.password.is_some(), exchange == Exchange::Password);
                let keys = ScramKeys::derive("sesame", b"0123456789abcdef", 16);
                assert_eq!(learned.client_key, (codes.len() == 2).then_some(keys.client_key));
            }
        }
    }

    #[test]
    fn a_wrong_password_reads_as_postgresql_says_it() {
        for stored in every_credential("sesame") {
            for exchange in [Exchange::ScramSha256, Exchange::Md5, Exchange::Password] {
                let report = refusal(login(exchange, &stored, "Sesame", None).0);
                assert_eq!(
                    report.to_string(),
                    "FATAL: password authentication failed for user \"app\" (28P01)"
                );
            }
        }
    }

    #[test]
    fn trap_83_an_unknown_user_sees_what_a_known_one_sees() {
        let [known, ..] = every_credential("sesame");
        for exchange in [Exchange::ScramSha256, Exchange::Md5, Exchange::Password] {
            let (unknown_step, unknown_codes) = login(exchange, &StoredCredential::Unknown, "sesame", None);
            let (known_step, known_codes) = login(exchange, &known, "wrong", None);
            assert_eq!(unknown_codes, known_codes);
            assert_eq!(refusal(unknown_step), refusal(known_step));
        }
        let salt_of = |login: u8| {
            let (_, auth) = start(Exchange::ScramSha256, &StoredCredential::Unknown, None);
            let first = format!("n,,n=,r=nonce{login}");
            let AuthStep::Send(sent, _) = auth.on_message(b'p', &sasl_initial(SCRAM_SHA_256, &first)).unwrap() else {
                panic!("refused too early")
            };
            String::from_utf8_lossy(&sent).split(",s=").nth(1).map(str::to_owned)
        };
        assert_eq!(salt_of(1), salt_of(2));
        assert!(salt_of(1).is_some());
    }

    #[test]
    fn trap_83_plus_is_offered_where_there_is_a_channel() {
        let [stored, ..] = every_credential("sesame");
        let (step, _) = login(Exchange::ScramSha256, &stored, "sesame", Some(vec![5; 32]));
        assert!(matches!(step, AuthStep::Accepted { .. }));
        let (_, auth) = start(Exchange::ScramSha256, &stored, Some(vec![5; 32]));
        let downgraded = refusal(
            auth.on_message(b'p', &sasl_initial(SCRAM_SHA_256, "y,,n=,r=abc"))
                .unwrap(),
        );
        assert_eq!(downgraded.message, "SCRAM channel binding negotiation error");
        let (_, auth) = start(Exchange::ScramSha256, &stored, None);
        let not_offered = refusal(
            auth.on_message(b'p', &sasl_initial(SCRAM_SHA_256_PLUS, "n,,n=,r=abc"))
                .unwrap(),
        );
        assert_eq!(
            not_offered.message,
            "client selected an invalid SASL authentication mechanism"
        );
    }

    #[test]
    fn a_client_may_leave_its_first_message_for_an_empty_challenge() {
        let [stored, ..] = every_credential("sesame");
        let (_, auth) = start(Exchange::ScramSha256, &stored, None);
        let Ok(AuthStep::Send(sent, auth)) = auth.on_message(b'p', b"SCRAM-SHA-256\0\xff\xff\xff\xff") else {
            panic!()
        };
        assert_eq!(&sent[..], b"R\0\0\0\x08\0\0\0\x0b");
        assert!(matches!(auth.on_message(b'p', b"n,,n=,r=abc"), Ok(AuthStep::Send(..))));
    }

    /// Trap 88: the password was changed between its reading and the client's proof.
    #[test]
    fn trap_88_a_wrong_proof_can_be_judged_by_what_is_stored_now() {
        let [changed, changed_hash, changed_verifier] = every_credential("changed");
        for (exchange, old, judges) in [
            (
                Exchange::ScramSha256,
                &every_credential("old")[0],
                vec![(&changed, true), (&changed_verifier, true)],
            ),
            (
                Exchange::ScramSha256,
                &StoredCredential::Unknown,
                vec![(&changed, true), (&changed_verifier, false)],
            ),
            (
                Exchange::ScramSha256,
                &changed_hash,
                vec![(&changed_hash, false), (&StoredCredential::Unknown, false)],
            ),
            (
                Exchange::Md5,
                &every_credential("old")[1],
                vec![(&changed_hash, true), (&changed, true)],
            ),
            (
                Exchange::Md5,
                &every_credential("old")[0],
                vec![(&changed_verifier, false)],
            ),
            (
                Exchange::Password,
                &every_credential("old")[2],
                vec![(&changed_verifier, true), (&changed_hash, true)],
            ),
            (
                Exchange::Password,
                &every_credential("old")[2],
                vec![(&every_credential("other")[2], false)],
            ),
        ] {
            for (stored, holds) in judges {
                let AuthStep::WrongPassword(_, proof) = login(exchange, old, "changed", None).0 else {
                    panic!("{exchange:?}: not wrong")
                };
                let judged = proof.holds_for("app", stored);
                assert_eq!(judged.is_some(), holds, "{exchange:?} {stored:?}");
                let has_last_words = judged.is_some_and(|(send, _)| !send.is_empty());
                assert_eq!(has_last_words, holds && exchange == Exchange::ScramSha256);
            }
        }
    }

    #[test]
    fn broken_messages_are_violations() {
        let [stored, ..] = every_credential("sesame");
        for (exchange, tag, body) in [
            (Exchange::ScramSha256, b'Q', &b"SCRAM-SHA-256\0\0\0\0\0"[..]),
            (Exchange::ScramSha256, b'p', b""),
            (Exchange::ScramSha256, b'p', b"SCRAM-SHA-256"),
            (Exchange::ScramSha256, b'p', b"SCRAM-SHA-256\0\0\0\0\x09n,,"),
            (Exchange::ScramSha256, b'p', b"SCRAM-SHA-256\0\xff\xff\xff\xfe"),
            (Exchange::ScramSha256, b'p', b"SCRAM-SHA-256\0\0\0\0\x01n,,"),
            (Exchange::ScramSha256, b'p', &[b'x'; SASL_BODY_LEN_MAX + 1]),
            (Exchange::Md5, b'p', b"md5"),
            (Exchange::Md5, b'X', b""),
            (Exchange::Password, b'p', b"sesame"),
            (Exchange::Password, b'p', b"sesame\0sesame\0"),
        ] {
            let (_, auth) = start(exchange, &stored, None);
            assert!(auth.on_message(tag, body).is_err(), "{exchange:?} {body:?}");
        }
    }

    #[test]
    fn an_empty_password_is_refused_as_such() {
        for stored in every_credential("") {
            let (_, auth) = start(Exchange::Password, &stored, None);
            assert_eq!(
                refusal(auth.on_message(b'p', b"\0").unwrap()).message,
                "empty password returned by client"
            );
        }
    }

    #[test]
    fn trap_87_a_password_of_64_kilobytes_is_accepted_and_no_longer_one() {
        let long = "é".repeat((PASSWORD_LEN_MAX - 1) / 2);
        let [stored, ..] = every_credential(&long);
        assert!(matches!(
            login(Exchange::Password, &stored, &long, None).0,
            AuthStep::Accepted { .. }
        ));
        assert!(matches!(
            login(Exchange::ScramSha256, &stored, &long, None).0,
            AuthStep::Accepted { .. }
        ));
        let (_, auth) = start(Exchange::Password, &stored, None);
        assert!(auth.on_message(b'p', &[long.as_bytes(), b"x\0\0"].concat()).is_err());
        let (_, auth) = start(Exchange::Password, &stored, None);
        refusal(auth.on_message(b'p', b"\xff\xfe\0").unwrap());
    }

    #[test]
    fn nothing_secret_is_shown() {
        for stored in every_credential("sesame") {
            for exchange in [Exchange::ScramSha256, Exchange::Md5, Exchange::Password] {
                assert!(!format!("{:?}", start(exchange, &stored, None).1).contains("sesame"));
            }
            assert!(!format!("{:?}", login(Exchange::Password, &stored, "sesame", None).0).contains("sesame"));
        }
    }
}
