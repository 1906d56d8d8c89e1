//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, both sides, as pure objects (RFC 5802, RFC 7677; manual: sasl-authentication).
//!
//! [`ScramServer`] takes client-first and returns what takes client-final; [`ScramClient`] is its mirror. Channel
//! binding is tls-server-end-point (RFC 5929): a hash of the server's certificate that the caller passes in. Nonces and
//! salts are passed in too. [`Verifier`] is what pg_authid stores.

use std::fmt;
use std::ops::RangeInclusive;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::Violation;
use crate::wire::{Report, SqlState};

/// The mechanism without channel binding, as named in AuthenticationSASL.
pub const SCRAM_SHA_256: &str = "SCRAM-SHA-256";
/// The mechanism with channel binding.
pub const SCRAM_SHA_256_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// The longest SCRAM message that PostgreSQL reads from a client (`PG_MAX_SASL_MESSAGE_LENGTH`), in bytes.
pub const CLIENT_MESSAGE_LEN_MAX: usize = 1024;
/// The longest SCRAM message that libpq reads from a server, in bytes (trap 84: long nonces).
pub const SERVER_MESSAGE_LEN_MAX: usize = 2000;
/// The one channel binding type that PostgreSQL knows, as a client's gs2 header.
const GS2_HEADER_PLUS: &str = "p=tls-server-end-point,,";

type HmacSha256 = Hmac<Sha256>;

/// 32 bytes that are worth a password: shown nowhere, compared in constant time, wiped when dropped.
#[derive(Clone)]
pub struct ScramKey(Zeroizing<[u8; 32]>);

impl ScramKey {
    /// Wraps the bytes of a key.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The key itself.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// SHA-256 of this key: a StoredKey, where this is a ClientKey.
    fn hashed(&self) -> Self {
        Self::new(Sha256::digest(*self.0).into())
    }

    /// HMAC-SHA-256 with this key.
    fn sign(&self, message: &[u8]) -> Self {
        Self::new(keyed(&*self.0).chain_update(message).finalize().into_bytes().into())
    }

    fn xor(&self, other: &Self) -> Self {
        let mut bytes = *self.0;
        bytes
            .iter_mut()
            .zip(other.0.iter())
            .for_each(|(byte, mask)| *byte ^= mask);
        Self::new(bytes)
    }

    fn from_base64(text: &str) -> Option<Self> {
        BASE64.decode(text).ok()?.try_into().ok().map(Self::new)
    }

    fn to_base64(&self) -> String {
        BASE64.encode(*self.0)
    }
}

impl PartialEq for ScramKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&*other.0).into()
    }
}

impl Eq for ScramKey {}

impl fmt::Debug for ScramKey {
    /// Never shows the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScramKey(***)")
    }
}

/// What a client proves with (ClientKey) and a server answers with (ServerKey). Whoever holds both can log in without
/// the password: that is how a login is passed through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScramKeys {
    /// HMAC of the salted password and `Client Key`.
    pub client_key: ScramKey,
    /// HMAC of the salted password and `Server Key`.
    pub server_key: ScramKey,
}

impl ScramKeys {
    /// Derives both keys. Costs `iterations` HMACs: about a millisecond for 4096.
    pub fn derive(password: &str, salt: &[u8], iterations: u32) -> Self {
        let salted = salted_password(password, salt, iterations);
        Self {
            client_key: salted.sign(b"Client Key"),
            server_key: salted.sign(b"Server Key"),
        }
    }
}

/// Keys together with the salt and iterations that they were derived for: worth caching by whoever logs in often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaltedKeys {
    /// As the server asked.
    pub iterations: u32,
    /// As the server sent it.
    pub salt: Box<[u8]>,
    /// What they lead to.
    pub keys: ScramKeys,
}

/// What a server stores instead of a password: `SCRAM-SHA-256$4096:salt$StoredKey:ServerKey`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verifier {
    /// At least 1.
    pub iterations: u32,
    /// 16 bytes where PostgreSQL made it.
    pub salt: Box<[u8]>,
    /// SHA-256 of the ClientKey.
    pub stored_key: ScramKey,
    /// What the server proves itself with.
    pub server_key: ScramKey,
}

impl Verifier {
    /// Reads pg_authid's form; `None` if the text is not a verifier.
    pub fn parse(text: &str) -> Option<Self> {
        let (settings, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let (iterations, salt) = settings.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let verifier = Self {
            iterations: posit_number(iterations)?,
            salt: BASE64.decode(salt).ok()?.into(),
            stored_key: ScramKey::from_base64(stored_key)?,
            server_key: ScramKey::from_base64(server_key)?,
        };
        (!verifier.salt.is_empty()).then_some(verifier)
    }

    /// The verifier of a password. Costs what [`ScramKeys::derive`] costs.
    pub fn derive(password: &str, salt: &[u8], iterations: u32) -> Self {
        let keys = ScramKeys::derive(password, salt, iterations);
        Self {
            iterations: iterations.max(1),
            salt: salt.into(),
            stored_key: keys.client_key.hashed(),
            server_key: keys.server_key,
        }
    }

    /// Whether this is the password's verifier. Costs what [`ScramKeys::derive`] costs.
    pub fn matches(&self, password: &str) -> bool {
        ScramKeys::derive(password, &self.salt, self.iterations).server_key == self.server_key
    }

    /// The verifier in pg_authid's form. As good as a password to whoever may guess offline: keep it from logs.
    pub fn to_text(&self) -> Zeroizing<String> {
        let salt = BASE64.encode(&self.salt);
        let (stored_key, server_key) = (self.stored_key.to_base64(), self.server_key.to_base64());
        Zeroizing::new(format!(
            "SCRAM-SHA-256${}:{salt}${stored_key}:{server_key}",
            self.iterations
        ))
    }
}

/// What answers are made of for users who don't exist, so that the same name always shows the same salt.
#[derive(Debug, Clone)]
pub struct MockSecret {
    key: ScramKey,
    iterations: u32,
}

impl MockSecret {
    /// `key` comes from the operating system's generator, once per process; `iterations` should be what real users have.
    pub fn new(key: [u8; 32], iterations: u32) -> Self {
        Self {
            key: ScramKey::new(key),
            iterations: iterations.max(1),
        }
    }

    /// A verifier that nobody has the password of.
    pub fn verifier(&self, user: &str) -> Verifier {
        let salt = self.key.sign(format!("salt {user}").as_bytes());
        Verifier {
            iterations: self.iterations,
            salt: salt.expose().get(..16).unwrap_or_default().into(),
            stored_key: self.key.sign(format!("stored {user}").as_bytes()),
            server_key: self.key.sign(format!("server {user}").as_bytes()),
        }
    }
}

/// Which of the two mechanisms the client chose, and what our certificate hashes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerBinding {
    /// SCRAM-SHA-256, and PLUS was not offered.
    Unavailable,
    /// SCRAM-SHA-256 although PLUS was offered: a client that claims we didn't offer it (`y`) was lied to.
    Declined,
    /// SCRAM-SHA-256-PLUS with this tls-server-end-point hash.
    EndPoint(Vec<u8>),
}

/// We are the server and wait for client-first.
#[derive(Debug)]
pub struct ScramServer {
    verifier: Verifier,
    binding: ServerBinding,
    nonce: String,
}

/// We are the server, have sent server-first and wait for client-final.
#[derive(Debug)]
pub struct ScramServerFinal {
    verifier: Verifier,
    /// What `c=` must say, in base64.
    expected_binding: String,
    is_plus: bool,
    nonce: String,
    /// client-first-bare and server-first: the beginning of AuthMessage.
    auth_message: String,
}

/// The end of the exchange on the server's side.
#[derive(Debug)]
pub enum ScramVerdict {
    /// The client knows the password.
    Proven {
        /// server-final, to be sent in AuthenticationSASLFinal.
        server_final: String,
        /// The client's own key, recovered from its proof.
        client_key: ScramKey,
    },
    /// It doesn't.
    WrongPassword,
}

impl ScramServer {
    /// Starts an exchange for one verifier; `nonce` comes from the operating system's generator.
    pub fn new(verifier: Verifier, binding: ServerBinding, nonce: &[u8; 18]) -> Self {
        Self {
            verifier,
            binding,
            nonce: BASE64.encode(nonce),
        }
    }

    /// Reads client-first and returns server-first. A refusal is in PostgreSQL's words.
    pub fn client_first(self, message: &[u8]) -> Result<(String, ScramServerFinal), Report> {
        let message = from_client(message)?;
        let (flag, rest) = message.split_once(',').ok_or_else(|| malformed("Comma expected."))?;
        let (authzid, bare) = rest.split_once(',').ok_or_else(|| malformed("Comma expected."))?;
        self.check_gs2_flag(flag)?;
        if authzid.starts_with('a') {
            return Err(unsupported(
                "client uses authorization identity, but it is not supported",
            ));
        }
        if !authzid.is_empty() {
            return Err(malformed("Unexpected attribute in client-first-message."));
        }
        let client_nonce = client_nonce(bare)?;
        let nonce = format!("{client_nonce}{}", self.nonce);
        let Verifier { iterations, salt, .. } = &self.verifier;
        let server_first = format!("r={nonce},s={},i={iterations}", BASE64.encode(salt));
        let mut binding_data = format!("{flag},,").into_bytes();
        let is_plus = matches!(self.binding, ServerBinding::EndPoint(_));
        if let ServerBinding::EndPoint(hash) = &self.binding {
            binding_data.extend(hash);
        }
        let next = ScramServerFinal {
            expected_binding: BASE64.encode(binding_data),
            is_plus,
            nonce,
            auth_message: format!("{bare},{server_first}"),
            verifier: self.verifier,
        };
        Ok((server_first, next))
    }

    fn check_gs2_flag(&self, flag: &str) -> Result<(), Report> {
        let is_plus = matches!(self.binding, ServerBinding::EndPoint(_));
        match flag {
            "n" | "y" if is_plus => Err(malformed(
                "The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding data.",
            )),
            "y" if self.binding == ServerBinding::Declined => Err(Report::fatal(
                SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
                "SCRAM channel binding negotiation error",
            )
            .with_detail(
                "The client supports SCRAM channel binding but thinks the server does not.  However, this server does support channel binding.",
            )),
            "n" | "y" => Ok(()),
            flag if flag.starts_with("p=") && !is_plus => Err(malformed(
                "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes channel binding data.",
            )),
            "p=tls-server-end-point" => Ok(()),
            flag if flag.starts_with("p=") => {
                Err(violation(format!("unsupported SCRAM channel-binding type \"{}\"", flag.get(2..).unwrap_or_default())))
            }
            _ => Err(malformed("Unexpected channel-binding flag.")),
        }
    }
}

impl ScramServerFinal {
    /// The same exchange judged by another password: what was stored has changed since server-first was sent. Costs what
    /// [`ScramKeys::derive`] costs.
    #[must_use]
    pub fn with_password(self, password: &str) -> Self {
        let Verifier { iterations, salt, .. } = &self.verifier;
        Self {
            verifier: Verifier::derive(password, salt, *iterations),
            ..self
        }
    }

    /// The same exchange judged by another verifier; `None` where that has another salt than the client was told.
    pub fn with_verifier(self, verifier: &Verifier) -> Option<Self> {
        let was_told = self.verifier.salt == verifier.salt && self.verifier.iterations == verifier.iterations;
        was_told.then(|| Self {
            verifier: verifier.clone(),
            ..self
        })
    }

    /// Reads client-final and judges the proof. A refusal is in PostgreSQL's words.
    pub fn client_final(&self, message: &[u8]) -> Result<ScramVerdict, Report> {
        let message = from_client(message)?;
        let (without_proof, proof) = message
            .split_once(",p=")
            .ok_or_else(|| malformed("The proof is missing."))?;
        let mut attributes = without_proof.split(',');
        let binding = expect_attribute(attributes.next(), 'c')?;
        let nonce = expect_attribute(attributes.next(), 'r')?;
        expect_extensions(attributes)?;
        if binding != self.expected_binding {
            return Err(self.binding_refusal());
        }
        if !bool::from(nonce.as_bytes().ct_eq(self.nonce.as_bytes())) {
            return Err(violation("invalid SCRAM response").with_detail("Nonce does not match."));
        }
        let proof =
            ScramKey::from_base64(proof).ok_or_else(|| malformed("Malformed proof in client-final-message."))?;
        let auth_message = format!("{},{without_proof}", self.auth_message);
        let client_key = proof.xor(&self.verifier.stored_key.sign(auth_message.as_bytes()));
        if client_key.hashed() != self.verifier.stored_key {
            return Ok(ScramVerdict::WrongPassword);
        }
        let signature = self.verifier.server_key.sign(auth_message.as_bytes());
        Ok(ScramVerdict::Proven {
            server_final: format!("v={}", signature.to_base64()),
            client_key,
        })
    }

    fn binding_refusal(&self) -> Report {
        if self.is_plus {
            Report::fatal(
                SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
                "SCRAM channel binding check failed",
            )
        } else {
            violation("unexpected SCRAM channel-binding attribute in client-final-message")
        }
    }
}

/// What a client logs in with.
#[derive(Clone)]
pub enum ScramSecret {
    /// The password, and keys of an earlier login that are used when the server asks for the same salt and iterations.
    Password(Zeroizing<String>, Option<SaltedKeys>),
    /// Keys that were recovered from another exchange with the same verifier.
    Keys(ScramKeys),
}

impl fmt::Debug for ScramSecret {
    /// Never shows the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password(..) => "ScramSecret::Password(***)",
            Self::Keys(_) => "ScramSecret::Keys(***)",
        })
    }
}

/// What a client does about channel binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientBinding {
    /// `n`: we don't support it, or don't want it.
    Unsupported,
    /// `y`: we do, but the server did not offer it. A server that did sees the downgrade.
    NotOffered,
    /// `p`: SCRAM-SHA-256-PLUS with this tls-server-end-point hash.
    EndPoint(Vec<u8>),
}

impl ClientBinding {
    /// The mechanism that this needs.
    pub const fn mechanism(&self) -> &'static str {
        match self {
            Self::Unsupported | Self::NotOffered => SCRAM_SHA_256,
            Self::EndPoint(_) => SCRAM_SHA_256_PLUS,
        }
    }

    const fn gs2_header(&self) -> &'static str {
        match self {
            Self::Unsupported => "n,,",
            Self::NotOffered => "y,,",
            Self::EndPoint(_) => GS2_HEADER_PLUS,
        }
    }
}

/// Why a client ends the exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScramClientError {
    /// The server broke the rules, or could not prove that it knows the password.
    Violation(Violation),
    /// The server said no with RFC 5802's `e=`, which PostgreSQL itself never does.
    Refused(String),
}

/// We are the client, have sent client-first and wait for server-first.
#[derive(Debug)]
pub struct ScramClient {
    secret: ScramSecret,
    binding: ClientBinding,
    nonce: String,
    iterations_allowed: RangeInclusive<u32>,
}

/// We are the client, have sent client-final and wait for server-final.
#[derive(Debug)]
pub struct ScramClientFinal {
    signature: ScramKey,
    salted: Option<SaltedKeys>,
}

impl ScramClient {
    /// Starts an exchange and returns client-first. `nonce` comes from the operating system's generator; a server that
    /// asks for more than `iterations_max` iterations is refused, because each costs us CPU.
    pub fn start(secret: ScramSecret, binding: ClientBinding, nonce: &[u8; 18], iterations_max: u32) -> (String, Self) {
        let nonce = BASE64.encode(nonce);
        let client_first = format!("{}{}", binding.gs2_header(), client_first_bare(&nonce));
        (
            client_first,
            Self {
                secret,
                binding,
                nonce,
                iterations_allowed: 1..=iterations_max,
            },
        )
    }

    /// Reads server-first and returns client-final. Derives keys where none are cached: about a millisecond for 4096
    /// iterations.
    pub fn server_first(self, message: &[u8]) -> Result<(String, ScramClientFinal), ScramClientError> {
        let server_first = from_server(message)?;
        let ServerFirst {
            nonce,
            salt,
            iterations,
        } = self.read_server_first(server_first).map_err(rule)?;
        let mut binding_data = self.binding.gs2_header().as_bytes().to_vec();
        if let ClientBinding::EndPoint(hash) = &self.binding {
            binding_data.extend(hash);
        }
        let without_proof = format!("c={},r={nonce}", BASE64.encode(binding_data));
        let auth_message = format!("{},{server_first},{without_proof}", client_first_bare(&self.nonce));
        let (keys, salted) = self.secret.keys(salt, iterations);
        let client_signature = keys.client_key.hashed().sign(auth_message.as_bytes());
        let proof = keys.client_key.xor(&client_signature).to_base64();
        let signature = keys.server_key.sign(auth_message.as_bytes());
        Ok((
            format!("{without_proof},p={proof}"),
            ScramClientFinal { signature, salted },
        ))
    }

    fn read_server_first<'a>(&self, message: &'a str) -> Result<ServerFirst<'a>, &'static str> {
        let mut attributes = message.split(',');
        let mut next = |name| attributes.next().and_then(|text| attribute(text, name));
        let nonce = next('r').ok_or("malformed SCRAM message: nonce expected in server-first-message")?;
        let salt = next('s').ok_or("malformed SCRAM message: salt expected in server-first-message")?;
        let iterations =
            next('i').ok_or("malformed SCRAM message: iteration count expected in server-first-message")?;
        if !attributes.all(is_extension) {
            return Err("malformed SCRAM message: garbage at the end of server-first-message");
        }
        match nonce.strip_prefix(&self.nonce) {
            Some(theirs) if !theirs.is_empty() && is_nonce(theirs) => {}
            _ => return Err("invalid SCRAM response: nonce mismatch"),
        }
        let salt = BASE64
            .decode(salt)
            .ok()
            .filter(|salt| !salt.is_empty())
            .ok_or("malformed SCRAM message: invalid salt")?;
        let iterations = posit_number(iterations).ok_or("malformed SCRAM message: invalid iteration count")?;
        if !self.iterations_allowed.contains(&iterations) {
            return Err("the server asks for more SCRAM iterations than scram_iterations_max allows");
        }
        Ok(ServerFirst {
            nonce,
            salt: salt.into(),
            iterations,
        })
    }
}

impl ScramClientFinal {
    /// Reads server-final. Success means that the server knows the password's verifier; returns keys worth caching.
    pub fn server_final(self, message: &[u8]) -> Result<Option<SaltedKeys>, ScramClientError> {
        let message = from_server(message)?;
        let mut attributes = message.split(',');
        let first = attributes.next().unwrap_or_default();
        if let Some(error) = attribute(first, 'e') {
            return Err(ScramClientError::Refused(error.to_owned()));
        }
        let signature = attribute(first, 'v')
            .and_then(ScramKey::from_base64)
            .ok_or_else(|| rule("malformed SCRAM message: server signature expected in server-final-message"))?;
        if !attributes.all(is_extension) {
            return Err(rule(
                "malformed SCRAM message: garbage at the end of server-final-message",
            ));
        }
        if signature != self.signature {
            return Err(rule(
                "incorrect server signature: the server does not know the password",
            ));
        }
        Ok(self.salted)
    }
}

impl ScramSecret {
    /// The keys for a salt, and what of them is worth caching.
    fn keys(self, salt: Box<[u8]>, iterations: u32) -> (ScramKeys, Option<SaltedKeys>) {
        match self {
            Self::Keys(keys) => (keys, None),
            Self::Password(_, Some(cached)) if cached.iterations == iterations && cached.salt == salt => {
                (cached.keys.clone(), Some(cached))
            }
            Self::Password(password, _) => {
                let keys = ScramKeys::derive(&password, &salt, iterations);
                (keys.clone(), Some(SaltedKeys { iterations, salt, keys }))
            }
        }
    }
}

struct ServerFirst<'a> {
    nonce: &'a str,
    salt: Box<[u8]>,
    iterations: u32,
}

/// PostgreSQL knows the user from the StartupMessage; libpq leaves it empty here.
fn client_first_bare(nonce: &str) -> String {
    format!("n=,r={nonce}")
}

fn client_nonce(client_first_bare: &str) -> Result<&str, Report> {
    if client_first_bare.starts_with('m') {
        return Err(unsupported("client requires an unsupported SCRAM extension"));
    }
    let mut attributes = client_first_bare.split(',');
    expect_attribute(attributes.next(), 'n')?;
    let nonce = expect_attribute(attributes.next(), 'r')?;
    if nonce.is_empty() || !is_nonce(nonce) {
        return Err(violation("non-printable characters in SCRAM nonce"));
    }
    expect_extensions(attributes).map(|()| nonce)
}

/// RFC 5802's `printable`: the comma is gone already, because it separates attributes.
fn is_nonce(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The value of `text`, if it is the attribute of this name.
fn attribute(text: &str, name: char) -> Option<&str> {
    text.strip_prefix(name)?.strip_prefix('=')
}

/// An optional attribute that we don't know, and may ignore: a letter, `=` and a value. `m` is mandatory, so not one.
fn is_extension(text: &str) -> bool {
    matches!(text.as_bytes(), [name, b'=', _, ..] if name.is_ascii_alphabetic() && *name != b'm')
}

fn expect_attribute(text: Option<&str>, name: char) -> Result<&str, Report> {
    text.and_then(|text| attribute(text, name))
        .ok_or_else(|| malformed(format!("Expected attribute \"{name}\".")))
}

fn expect_extensions<'a>(mut attributes: impl Iterator<Item = &'a str>) -> Result<(), Report> {
    if attributes.all(is_extension) {
        Ok(())
    } else {
        Err(malformed("Attribute expected."))
    }
}

/// RFC 5802's `posit-number`, within 32 bits.
fn posit_number(text: &str) -> Option<u32> {
    let is_canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    is_canonical.then(|| text.parse().ok()).flatten()
}

/// A message as text, or PostgreSQL's refusal of one that is empty, too long or no text.
fn from_client(message: &[u8]) -> Result<&str, Report> {
    if message.is_empty() {
        return Err(malformed("The message is empty."));
    }
    if message.len() > CLIENT_MESSAGE_LEN_MAX {
        return Err(malformed("The message is too long."));
    }
    text_of(message).ok_or_else(|| malformed("The message is not text."))
}

fn from_server(message: &[u8]) -> Result<&str, ScramClientError> {
    if message.len() > SERVER_MESSAGE_LEN_MAX {
        return Err(rule("malformed SCRAM message: too long"));
    }
    text_of(message).ok_or_else(|| rule("malformed SCRAM message: not text"))
}

fn text_of(message: &[u8]) -> Option<&str> {
    std::str::from_utf8(message)
        .ok()
        .filter(|text| !text.chars().any(char::is_control))
}

fn rule(rule: &'static str) -> ScramClientError {
    ScramClientError::Violation(Violation::Rule(rule))
}

fn malformed(detail: impl Into<String>) -> Report {
    violation("malformed SCRAM message").with_detail(detail)
}

fn violation(message: impl Into<std::borrow::Cow<'static, str>>) -> Report {
    Report::fatal(SqlState::PROTOCOL_VIOLATION, message)
}

fn unsupported(message: &'static str) -> Report {
    Report::fatal(SqlState::FEATURE_NOT_SUPPORTED, message)
}

/// RFC 5802's Hi(): PBKDF2 with HMAC-SHA-256 and one block of output.
fn salted_password(password: &str, salt: &[u8], iterations: u32) -> ScramKey {
    let prf = keyed(prepared(password).as_bytes());
    let mut round = ScramKey::new(
        prf.clone()
            .chain_update(salt)
            .chain_update([0, 0, 0, 1])
            .finalize()
            .into_bytes()
            .into(),
    );
    let mut salted = round.clone();
    for _ in 1..iterations {
        round = ScramKey::new(prf.clone().chain_update(*round.0).finalize().into_bytes().into());
        salted
            .0
            .iter_mut()
            .zip(round.0.iter())
            .for_each(|(byte, mask)| *byte ^= mask);
    }
    salted
}

/// SASLprep, or the password as it is where SASLprep prohibits it: so PostgreSQL does it on both sides (`pg_saslprep`).
fn prepared(password: &str) -> Zeroizing<String> {
    let prepared = stringprep::saslprep(password)
        .ok()
        .filter(|prepared| !prepared.is_empty());
    Zeroizing::new(prepared.map_or_else(|| password.to_owned(), std::borrow::Cow::into_owned))
}

fn keyed(key: &[u8]) -> HmacSha256 {
    HmacSha256::new_from_slice(key).expect("HMAC takes a key of any length")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT_7677: &str = "W22ZaJ0SNY7soEsUEjb6gQ==";
    const NONCE: &[u8; 18] = b"abcdefghijklmnopqr";

    fn verifier() -> Verifier {
        Verifier::derive("pencil", &BASE64.decode(SALT_7677).unwrap(), 4096)
    }

    /// RFC 7677, section 3: user `user`, password `pencil`. Its nonces are put in from outside.
    fn rfc_7677_server() -> ScramServer {
        ScramServer {
            verifier: verifier(),
            binding: ServerBinding::Unavailable,
            nonce: "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0".into(),
        }
    }

    const CLIENT_FIRST_7677: &[u8] = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const CLIENT_FINAL_7677: &[u8] = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
        p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    #[test]
    fn rfc_7677_vectors_on_the_server_side() {
        let (server_first, next) = rfc_7677_server().client_first(CLIENT_FIRST_7677).unwrap();
        assert_eq!(
            server_first,
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        );
        let ScramVerdict::Proven {
            server_final,
            client_key,
        } = next.client_final(CLIENT_FINAL_7677).unwrap()
        else {
            panic!("the proof of the RFC is refused")
        };
        assert_eq!(server_final, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        assert_eq!(
            client_key,
            ScramKeys::derive("pencil", &verifier().salt, 4096).client_key
        );
    }

    /// The RFC's client sends a user name, ours leaves it empty, so its vectors are checked below that.
    #[test]
    fn rfc_7677_vectors_of_the_keys() {
        let auth_message = "n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
            s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let keys = ScramKeys::derive("pencil", &BASE64.decode(SALT_7677).unwrap(), 4096);
        let proof = keys
            .client_key
            .xor(&keys.client_key.hashed().sign(auth_message.as_bytes()));
        assert_eq!(proof.to_base64(), "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
        assert_eq!(
            keys.server_key.sign(auth_message.as_bytes()).to_base64(),
            "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
        );
    }

    #[test]
    fn a_wrong_proof_is_no_error_but_a_verdict() {
        let (_, next) = rfc_7677_server().client_first(CLIENT_FIRST_7677).unwrap();
        let wrong = String::from_utf8_lossy(CLIENT_FINAL_7677).replace("p=dHzb", "p=AHzb");
        assert!(matches!(
            next.client_final(wrong.as_bytes()),
            Ok(ScramVerdict::WrongPassword)
        ));
    }

    #[test]
    fn a_verifier_reads_back_and_checks_a_password() {
        let verifier = Verifier::derive("geheim", b"0123456789abcdef", 10);
        assert_eq!(Verifier::parse(&verifier.to_text()), Some(verifier.clone()));
        assert!(verifier.matches("geheim"));
        assert!(!verifier.matches("Geheim"));
        for text in [
            "",
            "SCRAM-SHA-256$",
            "SCRAM-SHA-256$0:YQ==$YQ==:YQ==",
            "SCRAM-SHA-256$4096:$:",
            "SCRAM-SHA-1$4096:YQ==$YQ==:YQ==",
            "SCRAM-SHA-256$+4:YQ==$YQ==:YQ==",
        ] {
            assert_eq!(Verifier::parse(text), None, "{text}");
        }
        assert!(!format!("{verifier:?}").contains(&verifier.stored_key.to_base64()));
    }

    /// Trap 87: SASLprep maps what looks alike; what it prohibits is used as it is, as PostgreSQL does.
    #[test]
    fn trap_87_passwords_are_prepared_as_postgresql_prepares_them() {
        assert_eq!(&*prepared("I\u{ad}X"), "IX");
        assert_eq!(&*prepared("\u{2168}"), "IX");
        assert_eq!(&*prepared("a\u{a0}b"), "a b");
        assert_eq!(&*prepared("\u{7}bell"), "\u{7}bell");
        assert_eq!(&*prepared("\u{627}1"), "\u{627}1");
        assert_eq!(&*prepared("\u{ad}"), "\u{ad}");
        assert_eq!(prepared(&"x".repeat(65_535)).len(), 65_535);
    }

    /// Runs both sides against each other and returns the server's verdict and the client's.
    fn exchange(
        secret: ScramSecret,
        client: ClientBinding,
        server: ServerBinding,
    ) -> Result<Result<Option<SaltedKeys>, ScramClientError>, Option<Report>> {
        let verifier = Verifier::derive("pencil", b"salt", 8);
        let (client_first, client) = ScramClient::start(secret, client, NONCE, 8);
        let server = ScramServer::new(verifier, server, b"stuvwxyz0123456789");
        let (server_first, server) = server.client_first(client_first.as_bytes()).map_err(Some)?;
        let (client_final, client) = client.server_first(server_first.as_bytes()).unwrap();
        match server.client_final(client_final.as_bytes()).map_err(Some)? {
            ScramVerdict::Proven { server_final, .. } => Ok(client.server_final(server_final.as_bytes())),
            ScramVerdict::WrongPassword => Err(None),
        }
    }

    fn password(password: &str) -> ScramSecret {
        ScramSecret::Password(Zeroizing::new(password.into()), None)
    }

    #[test]
    fn both_sides_agree_with_and_without_channel_binding() {
        let hash = || vec![7; 32];
        for (client, server) in [
            (ClientBinding::Unsupported, ServerBinding::Unavailable),
            (ClientBinding::NotOffered, ServerBinding::Unavailable),
            (ClientBinding::Unsupported, ServerBinding::Declined),
            (ClientBinding::EndPoint(hash()), ServerBinding::EndPoint(hash())),
        ] {
            let salted = exchange(password("pencil"), client.clone(), server.clone())
                .unwrap()
                .unwrap()
                .unwrap();
            assert_eq!((salted.iterations, &*salted.salt), (8, &b"salt"[..]));
            let cached = ScramSecret::Password(Zeroizing::new("not looked at".into()), Some(salted.clone()));
            assert_eq!(
                exchange(cached, client.clone(), server.clone()).unwrap(),
                Ok(Some(salted.clone()))
            );
            assert_eq!(
                exchange(ScramSecret::Keys(salted.keys), client.clone(), server.clone()).unwrap(),
                Ok(None)
            );
            assert_eq!(exchange(password("wrong"), client, server), Err(None));
        }
    }

    #[test]
    fn trap_83_a_downgrade_and_a_foreign_channel_are_refused() {
        let refused = |client, server| exchange(password("pencil"), client, server).unwrap_err().unwrap();
        let downgrade = refused(ClientBinding::NotOffered, ServerBinding::Declined);
        assert_eq!(downgrade.sqlstate, SqlState::INVALID_AUTHORIZATION_SPECIFICATION);
        assert_eq!(downgrade.message, "SCRAM channel binding negotiation error");
        let foreign = refused(
            ClientBinding::EndPoint(vec![7; 32]),
            ServerBinding::EndPoint(vec![8; 32]),
        );
        assert_eq!(foreign.message, "SCRAM channel binding check failed");
        let none = refused(ClientBinding::Unsupported, ServerBinding::EndPoint(vec![8; 32]));
        assert_eq!(none.message, "malformed SCRAM message");
        let unasked = refused(ClientBinding::EndPoint(vec![7; 32]), ServerBinding::Unavailable);
        assert_eq!(unasked.sqlstate, SqlState::PROTOCOL_VIOLATION);
    }

    #[test]
    fn trap_83_odd_client_messages_are_refused() {
        let long = format!("n,,n=,r={}", "x".repeat(CLIENT_MESSAGE_LEN_MAX));
        for (message, code) in [
            ("", "08P01"),
            ("n", "08P01"),
            ("n,", "08P01"),
            ("n,,", "08P01"),
            ("x,,n=,r=abc", "08P01"),
            ("n,a=me,n=,r=abc", "0A000"),
            ("n,b=me,n=,r=abc", "08P01"),
            ("n,,m=must,n=,r=abc", "0A000"),
            ("n,,r=abc", "08P01"),
            ("n,,n=", "08P01"),
            ("n,,n=,r=", "08P01"),
            ("n,,n=,r=a b", "08P01"),
            ("n,,n=,r=é", "08P01"),
            ("n,,n=,r=abc,m=must", "08P01"),
            ("n,,n=,r=abc,", "08P01"),
            ("n,,n=,r=abc,9=x", "08P01"),
            ("p=tls-unique,,n=,r=abc", "08P01"),
            (&long, "08P01"),
        ] {
            let server = ScramServer::new(verifier(), ServerBinding::Unavailable, NONCE);
            assert_eq!(
                server.client_first(message.as_bytes()).unwrap_err().sqlstate.as_str(),
                code,
                "{message}"
            );
        }
        let server = ScramServer::new(verifier(), ServerBinding::EndPoint(vec![1]), NONCE);
        let other_type = server.client_first(b"p=tls-unique,,n=,r=abc").unwrap_err();
        assert_eq!(
            other_type.message,
            "unsupported SCRAM channel-binding type \"tls-unique\""
        );
        let server = ScramServer::new(verifier(), ServerBinding::Unavailable, NONCE);
        assert!(server.client_first(b"n,,n=user,r=abc,x=ignored").is_ok());
    }

    #[test]
    fn odd_client_finals_are_refused() {
        let good = String::from_utf8_lossy(CLIENT_FINAL_7677).into_owned();
        for message in [
            String::new(),
            "c=biws".into(),
            good.replace("c=biws", "c=eSws"),
            good.replace("c=biws,", ""),
            good.replace("r=rO", "r=RO"),
            good.replace("$k0", "$k0x"),
            good.replace("p=", "q="),
            good.replace("p=dHzb", "p="),
            format!("{good},x=y"),
            format!("{good},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="),
            good.replace(",p=", ",m=a,p="),
            good.replace(",p=", ",,p="),
        ] {
            let (_, next) = rfc_7677_server().client_first(CLIENT_FIRST_7677).unwrap();
            assert!(next.client_final(message.as_bytes()).is_err(), "{message}");
        }
    }

    #[test]
    fn trap_84_odd_server_firsts_are_refused() {
        let nonce = BASE64.encode(NONCE);
        let long = format!("r={nonce}{},s=c2FsdA==,i=8", "x".repeat(SERVER_MESSAGE_LEN_MAX));
        let first = |message: &str| {
            let (_, client) = ScramClient::start(password("pencil"), ClientBinding::Unsupported, NONCE, 8);
            client.server_first(message.as_bytes()).map(|_| ())
        };
        for message in [
            String::new(),
            format!("r={nonce},s=c2FsdA==,i=8"),
            "r=another,s=c2FsdA==,i=8".into(),
            format!("m=must,r={nonce}x,s=c2FsdA==,i=8"),
            format!("r={nonce}x,s=c2FsdA==,i=0"),
            format!("r={nonce}x,s=c2FsdA==,i=-1"),
            format!("r={nonce}x,s=c2FsdA==,i=9"),
            format!("r={nonce}x,s=c2FsdA==,i=4294967296"),
            format!("r={nonce}x,s=c2FsdA==,i="),
            format!("r={nonce}x,s=,i=8"),
            format!("r={nonce}x,s=?,i=8"),
            format!("r={nonce}x,s=c2FsdA=="),
            format!("r={nonce}x,s=c2FsdA==,i=8,"),
            format!("r={nonce}x,s=c2FsdA==,i=8,m=must"),
            format!("r={nonce} x,s=c2FsdA==,i=8"),
            long,
        ] {
            assert!(
                matches!(first(&message), Err(ScramClientError::Violation(_))),
                "{message}"
            );
        }
        assert_eq!(first(&format!("r={nonce}x,s=c2FsdA==,i=8,x=ignored")), Ok(()));
    }

    #[test]
    fn trap_84_the_server_signature_is_verified() {
        let end = |message: &str| {
            let (_, client) = ScramClient::start(password("pencil"), ClientBinding::Unsupported, NONCE, 8);
            let first = format!("r={}x,s=c2FsdA==,i=8", BASE64.encode(NONCE));
            let (_, client) = client.server_first(first.as_bytes()).unwrap();
            client.server_final(message.as_bytes()).unwrap_err()
        };
        assert_eq!(
            end("e=invalid-proof"),
            ScramClientError::Refused("invalid-proof".into())
        );
        for message in [
            "",
            "v=",
            "v=YQ==",
            "x=y",
            "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
        ] {
            assert!(matches!(end(message), ScramClientError::Violation(_)), "{message}");
        }
    }

    #[test]
    fn trap_83_the_mock_verifier_is_stable_per_user() {
        let mock = MockSecret::new([9; 32], 4096);
        assert_eq!(mock.verifier("nobody"), mock.verifier("nobody"));
        assert_ne!(mock.verifier("nobody").salt, mock.verifier("someone").salt);
        assert_ne!(
            MockSecret::new([8; 32], 4096).verifier("nobody").salt,
            mock.verifier("nobody").salt
        );
        assert_eq!(
            (mock.verifier("nobody").salt.len(), mock.verifier("nobody").iterations),
            (16, 4096)
        );
    }
}
