//! The client's side before authentication (manual: protocol-flow-start-up, protocol-flow-ssl, protocol-flow-gssapi).
//!
//! [`Opening`] tells from the first bytes what comes: packets, TLS at once, or a browser. Then every startup packet goes
//! to [`Handshake::on_packet`]: SSLRequest and GSSENCRequest in either order, each once, and at last a CancelRequest or
//! the [`Login`]. [`postgres_switches`] reads the `options` parameter as PostgreSQL does.

use bytes::{Bytes, BytesMut};

use crate::wire::startup_packet::{BadStartupPacket, CancelKey, StartupMessage, StartupPacket};
use crate::wire::{Malformed, PROTOCOL_3_2, Report, SqlState, compose};

/// The application protocol that a direct TLS connection must name (trap 5).
pub const ALPN_PROTOCOL: &[u8] = b"postgresql";
/// The longest user or database name, in bytes (`NAMEDATALEN` - 1); PostgreSQL cuts a longer one.
pub const NAME_LEN_MAX: usize = 63;

/// The first byte of a TLS handshake record. As a startup packet it would announce 369 MB.
const TLS_HANDSHAKE_RECORD: u8 = 0x16;
/// How an HTTP request begins. As startup packets these would announce more than 1 GB.
const HTTP_METHODS: [&[u8; 4]; 10] = [
    b"GET ", b"POST", b"HEAD", b"PUT ", b"DELE", b"OPTI", b"PATC", b"CONN", b"TRAC", b"PRI ",
];
const HTTP_ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n\
    This port speaks the PostgreSQL protocol, not HTTP.\n";
/// A fatal handshake_failure alert (RFC 8446, section 6), which a TLS client can report.
const TLS_REFUSAL: &[u8] = &[0x15, 3, 1, 0, 2, 2, 40];

/// What a client's first bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// A startup packet.
    Packet,
    /// A TLS ClientHello without an SSLRequest before it.
    DirectTls,
    /// An HTTP request.
    Http,
}

impl Opening {
    /// Looks at the first bytes without taking them; `None` until one, or for all but TLS four, are there.
    pub fn recognise(bytes: &[u8]) -> Option<Self> {
        if bytes.first() == Some(&TLS_HANDSHAKE_RECORD) {
            return Some(Self::DirectTls);
        }
        let head = bytes.first_chunk::<4>()?;
        Some(if HTTP_METHODS.contains(&head) {
            Self::Http
        } else {
            Self::Packet
        })
    }
}

/// What a listener does about TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsOffer {
    /// There is no certificate, or this is a unix socket.
    Unavailable,
    /// Clients may.
    Offered,
    /// Clients must, to log in. A CancelRequest may come without, as old clients send it.
    Required,
}

/// What to do about an [`Opening`].
#[derive(Debug)]
pub enum OpeningStep {
    /// Read startup packets.
    Packets(Handshake),
    /// Do the TLS handshake.
    Tls(ExpectAlpn),
    /// Send this as it is, and close.
    Close(Bytes),
}

/// What to do about a startup packet.
#[derive(Debug)]
pub enum HandshakeStep {
    /// Send this byte, do the TLS handshake, and read the next packet inside it. The caller's buffer is empty: that
    /// was checked.
    AnswerThenTls(Bytes, Handshake),
    /// Send this byte and read the next packet.
    Answer(Bytes, Handshake),
    /// Cancel that client's query, answer nothing, and close.
    Cancel(CancelKey),
    /// Authenticate.
    Login(Box<Login>),
}

/// Why there is no login: to be sent as an ErrorResponse, then the connection is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub Report);

/// What a client asks for in its StartupMessage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// What is spoken from now on: what was asked for, at most 3.2. 3.1, which PostgreSQL never released, stays 3.1 as
    /// it does in PostgreSQL 18: long cancel keys come with 3.2 and above.
    pub version: u32,
    /// Never empty, at most [`NAME_LEN_MAX`] bytes.
    pub user: String,
    /// The user's name where none is given. Without meaning where `replication` is physical.
    pub database: String,
    /// A walsender needs a backend of its own.
    pub replication: Replication,
    /// Settings in the order in which PostgreSQL applies them: those of `options`, then the other parameters. A later
    /// one of the same name, whatever its case, wins.
    pub settings: Vec<(String, String)>,
    /// Switches in `options` other than `-c` and `--name`, as in `-S 64`: only PostgreSQL itself can follow them, in a
    /// backend that is opened with these very `parameters`.
    pub unsupported_switches: Vec<String>,
    /// Every parameter as sent, `user`, `database`, `options` and `replication` included.
    pub parameters: Vec<(String, String)>,
    /// A NegotiateProtocolVersion to send before anything else, once (trap 6).
    pub negotiate: Option<Bytes>,
}

impl Login {
    /// The value of a setting that PostgreSQL would end up with. Names of settings have no case.
    pub fn setting(&self, name: &str) -> Option<&str> {
        let last = self
            .settings
            .iter()
            .rev()
            .find(|(known, _)| known.eq_ignore_ascii_case(name));
        last.map(|(_, value)| value.as_str())
    }
}

/// The `replication` parameter (manual: protocol-replication).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Replication {
    /// An ordinary session.
    #[default]
    None,
    /// `replication=true`: connected to no database.
    Physical,
    /// `replication=database`.
    Logical,
}

/// A client that has not logged in, and what may come next.
#[derive(Debug)]
pub struct Handshake {
    tls: TlsOffer,
    channel: Channel,
}

/// What the client sends through, and which requests are used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Channel {
    Plain(Requests),
    Tls,
}

/// The encryption requests that were refused already: each may come once (trap 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Requests {
    None,
    Ssl,
    GssEnc,
    Both,
}

impl Handshake {
    /// A client that has sent nothing.
    pub const fn new(tls: TlsOffer) -> Self {
        Self {
            tls,
            channel: Channel::Plain(Requests::None),
        }
    }

    /// Takes what the client's first bytes are. Only for a connection's very first ones.
    pub fn on_opening(self, opening: Opening) -> OpeningStep {
        match (opening, self.tls) {
            (Opening::Packet, _) => OpeningStep::Packets(self),
            (Opening::DirectTls, TlsOffer::Unavailable) => OpeningStep::Close(Bytes::from_static(TLS_REFUSAL)),
            (Opening::DirectTls, tls) => OpeningStep::Tls(ExpectAlpn { tls }),
            (Opening::Http, _) => OpeningStep::Close(Bytes::from_static(HTTP_ANSWER)),
        }
    }

    /// Takes one whole startup packet. `behind` is how many bytes are in the caller's buffer behind it: none may be
    /// behind a request for encryption, because whoever is in between could have put them there (trap 3).
    pub fn on_packet(self, packet: &[u8], behind: usize) -> Result<HandshakeStep, Refusal> {
        match StartupPacket::parse(packet)? {
            StartupPacket::SslRequest => self.on_ssl_request(behind),
            StartupPacket::GssEncRequest => self.on_gssenc_request(behind),
            StartupPacket::CancelRequest(key) => Ok(HandshakeStep::Cancel(key)),
            StartupPacket::StartupMessage(message) => self.on_startup_message(message),
        }
    }

    fn on_ssl_request(self, behind: usize) -> Result<HandshakeStep, Refusal> {
        let requests = match self.channel {
            Channel::Plain(Requests::None) => Requests::Ssl,
            Channel::Plain(Requests::GssEnc) => Requests::Both,
            Channel::Plain(Requests::Ssl | Requests::Both) | Channel::Tls => return Err(request_again(5679)),
        };
        if behind > 0 {
            return Err(unencrypted_data("received unencrypted data after SSL request"));
        }
        let accept = self.tls != TlsOffer::Unavailable;
        let mut answer = BytesMut::new();
        compose::ssl_response(&mut answer, accept);
        Ok(if accept {
            HandshakeStep::AnswerThenTls(
                answer.freeze(),
                Self {
                    channel: Channel::Tls,
                    ..self
                },
            )
        } else {
            HandshakeStep::Answer(
                answer.freeze(),
                Self {
                    channel: Channel::Plain(requests),
                    ..self
                },
            )
        })
    }

    fn on_gssenc_request(self, behind: usize) -> Result<HandshakeStep, Refusal> {
        let requests = match self.channel {
            Channel::Plain(Requests::None) => Requests::GssEnc,
            Channel::Plain(Requests::Ssl) => Requests::Both,
            Channel::Plain(Requests::GssEnc | Requests::Both) | Channel::Tls => return Err(request_again(5680)),
        };
        if behind > 0 {
            return Err(unencrypted_data(
                "received unencrypted data after GSSAPI encryption request",
            ));
        }
        let mut answer = BytesMut::new();
        compose::gssenc_refusal(&mut answer);
        Ok(HandshakeStep::Answer(
            answer.freeze(),
            Self {
                channel: Channel::Plain(requests),
                ..self
            },
        ))
    }

    fn on_startup_message(self, message: StartupMessage) -> Result<HandshakeStep, Refusal> {
        if self.tls == TlsOffer::Required && self.channel != Channel::Tls {
            return Err(Refusal(
                Report::fatal(
                    SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
                    "connections to this address must be encrypted with TLS",
                )
                .with_hint("Set sslmode=require, or a stronger one, in the client's connection string."),
            ));
        }
        login(message).map(|login| HandshakeStep::Login(Box::new(login)))
    }
}

/// A direct TLS handshake is under way.
#[derive(Debug)]
pub struct ExpectAlpn {
    tls: TlsOffer,
}

impl ExpectAlpn {
    /// The TLS handshake is done, with this application protocol. Without the right one a browser could have been
    /// tricked into sending the bytes, so nothing of them is read (trap 5).
    pub fn on_tls(self, alpn: Option<&[u8]>) -> Result<Handshake, Refusal> {
        if alpn == Some(ALPN_PROTOCOL) {
            return Ok(Handshake {
                tls: self.tls,
                channel: Channel::Tls,
            });
        }
        Err(violation(
            "received direct SSL connection request without ALPN protocol negotiation extension",
        ))
    }
}

impl From<BadStartupPacket> for Refusal {
    fn from(bad: BadStartupPacket) -> Self {
        match bad {
            BadStartupPacket::Malformed(Malformed::Length) => violation("invalid length of startup packet"),
            BadStartupPacket::Malformed(_) => {
                violation("invalid startup packet layout: expected terminator as last byte")
            }
            BadStartupPacket::Version { .. } => Self(Report::fatal(SqlState::FEATURE_NOT_SUPPORTED, bad.to_string())),
            BadStartupPacket::Encoding => violation("startup parameters must be encoded in UTF-8"),
        }
    }
}

fn login(message: StartupMessage) -> Result<Login, Refusal> {
    let version = message.version.min(PROTOCOL_3_2);
    let is_newer = version < message.version;
    let negotiate = (is_newer || !message.protocol_options.is_empty()).then(|| {
        let mut out = BytesMut::new();
        compose::negotiate_protocol_version(&mut out, version, message.protocol_options.clone());
        out.freeze()
    });
    let given = |name| message.parameter(name).filter(|value| !value.is_empty());
    let user = given("user").map(truncated).ok_or_else(no_user)?;
    let database = given("database").map_or_else(|| user.clone(), truncated);
    let replication = given_replication(message.parameter("replication"))?;
    let Switches {
        mut settings,
        unsupported,
    } = postgres_switches(given("options").unwrap_or_default())?;
    // PostgreSQL compares these four with strcmp: `User` is a setting, and not one that exists.
    let is_setting = |name: &str| !matches!(name, "user" | "database" | "options" | "replication");
    settings.extend(message.parameters.iter().filter(|(name, _)| is_setting(name)).cloned());
    Ok(Login {
        version,
        user,
        database,
        replication,
        settings,
        unsupported_switches: unsupported,
        parameters: message.parameters,
        negotiate,
    })
}

/// PostgreSQL cuts names that no role or database can have; here never inside a character.
fn truncated(name: &str) -> String {
    let end = (0..=NAME_LEN_MAX.min(name.len()))
        .rev()
        .find(|&end| name.is_char_boundary(end));
    name.get(..end.unwrap_or(0)).unwrap_or_default().to_owned()
}

fn given_replication(value: Option<&str>) -> Result<Replication, Refusal> {
    match value {
        None => Ok(Replication::None),
        Some("database") => Ok(Replication::Logical),
        Some(value) => match parse_bool(value) {
            Some(true) => Ok(Replication::Physical),
            Some(false) => Ok(Replication::None),
            None => Err(Refusal(
                Report::fatal(
                    SqlState::INVALID_PARAMETER_VALUE,
                    format!("invalid value for parameter \"replication\": \"{value}\""),
                )
                .with_hint("Valid values are: \"false\", 0, \"true\", 1, \"database\"."),
            )),
        },
    }
}

/// PostgreSQL's `parse_bool`: a word or its beginning, in any case, as long as it is not just `o`.
fn parse_bool(value: &str) -> Option<bool> {
    let value = value.to_ascii_lowercase();
    let begins = |word: &str, len_min: usize| value.len() >= len_min && word.starts_with(&value);
    if begins("true", 1) || begins("yes", 1) || begins("on", 2) || value == "1" {
        Some(true)
    } else if begins("false", 1) || begins("no", 1) || begins("off", 2) || value == "0" {
        Some(false)
    } else {
        None
    }
}

/// What an `options` parameter says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Switches {
    /// From `-c name=value` and `--name=value`, in order.
    pub settings: Vec<(String, String)>,
    /// Every other switch that `postgres` knows, with its argument.
    pub unsupported: Vec<String>,
}

/// The switches of `postgres` that take an argument (manual: app-postgres).
const SWITCHES_WITH_ARGUMENT: &str = "BCcDdfhkNprStvW-";
/// Those that don't.
const SWITCHES_ALONE: &str = "bEeFijlnOPsT";

/// Reads an `options` parameter: words as `pg_split_opts` splits them, switches as getopt(3) does (trap 7).
pub fn postgres_switches(options: &str) -> Result<Switches, Refusal> {
    let mut switches = Switches::default();
    let mut words = split_options(options).into_iter();
    while let Some(word) = words.next() {
        let letters = match word.strip_prefix('-') {
            // getopt's own end of switches: nothing may follow it, because `postgres` takes no other argument here.
            Some("-") => return words.next().map_or(Ok(switches), |word| Err(invalid_argument(&word))),
            Some(letters) if !letters.is_empty() => letters,
            _ => return Err(invalid_argument(&word)),
        };
        for (index, letter) in letters.char_indices() {
            if SWITCHES_ALONE.contains(letter) {
                switches.unsupported.push(format!("-{letter}"));
                continue;
            }
            if !SWITCHES_WITH_ARGUMENT.contains(letter) {
                return Err(invalid_argument(&word));
            }
            let attached = letters
                .get(index + letter.len_utf8()..)
                .filter(|rest| !rest.is_empty())
                .map(str::to_owned);
            let argument = attached
                .or_else(|| words.next())
                .ok_or_else(|| invalid_argument(&word))?;
            match letter {
                'c' => switches.settings.push(long_option("-c ", &argument)?),
                '-' => switches.settings.push(long_option("--", &argument)?),
                _ => switches.unsupported.push(format!("-{letter} {argument}")),
            }
            break;
        }
    }
    Ok(switches)
}

/// `pg_split_opts`: words between white space, in which a backslash takes the next character as it is.
fn split_options(options: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = options.chars();
    while let Some(character) = characters.next() {
        match character {
            ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c' => words.extend(word.take()),
            '\\' => word.get_or_insert_default().extend(characters.next()),
            character => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    words
}

/// `ParseLongOption`: a name, in which a hyphen stands for an underscore, and a value.
fn long_option(switch: &str, argument: &str) -> Result<(String, String), Refusal> {
    match argument.split_once('=') {
        Some((name, value)) => Ok((name.replace('-', "_"), value.to_owned())),
        None => {
            let name = argument.replace('-', "_");
            Err(Refusal(Report::fatal(
                SqlState::SYNTAX_ERROR,
                format!("{switch}{name} requires a value"),
            )))
        }
    }
}

fn invalid_argument(word: &str) -> Refusal {
    let message = format!("invalid command-line argument for server process: {word}");
    Refusal(Report::fatal(SqlState::SYNTAX_ERROR, message).with_hint("Try \"postgres --help\" for more information."))
}

fn no_user() -> Refusal {
    Refusal(Report::fatal(
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        "no PostgreSQL user name specified in startup packet",
    ))
}

/// A request that was used up is read as a version, as PostgreSQL does it.
fn request_again(minor: u32) -> Refusal {
    BadStartupPacket::Version { major: 1234, minor }.into()
}

fn unencrypted_data(message: &'static str) -> Refusal {
    let Refusal(report) = violation(message);
    Refusal(report.with_detail(
        "This could be either a client-software bug or evidence of an attempted man-in-the-middle attack.",
    ))
}

fn violation(message: &'static str) -> Refusal {
    Refusal(Report::fatal(SqlState::PROTOCOL_VIOLATION, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::PROTOCOL_3_0;

    fn packet(build: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
        let mut out = BytesMut::new();
        build(&mut out);
        out.to_vec()
    }

    fn ssl() -> Vec<u8> {
        packet(compose::ssl_request)
    }

    fn gssenc() -> Vec<u8> {
        packet(compose::gssenc_request)
    }

    fn startup(version: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
        packet(|out| compose::startup_message(out, version, parameters.iter().copied()))
    }

    /// Feeds packets until one is refused or ends the handshake; returns the answers and the end.
    fn run(tls: TlsOffer, packets: &[Vec<u8>]) -> (Vec<u8>, Result<Option<HandshakeStep>, Refusal>) {
        let (mut handshake, mut answers) = (Handshake::new(tls), Vec::new());
        for packet in packets {
            match handshake.on_packet(packet, 0) {
                Ok(HandshakeStep::Answer(answer, next) | HandshakeStep::AnswerThenTls(answer, next)) => {
                    answers.extend(answer);
                    handshake = next;
                }
                end => return (answers, end.map(Some)),
            }
        }
        (answers, Ok(None))
    }

    fn log_in(version: u32, parameters: &[(&str, &str)]) -> Result<Login, Refusal> {
        match Handshake::new(TlsOffer::Offered).on_packet(&startup(version, parameters), 0) {
            Ok(HandshakeStep::Login(login)) => Ok(*login),
            Ok(other) => panic!("no login: {other:?}"),
            Err(refusal) => Err(refusal),
        }
    }

    fn pairs(settings: &[(&str, &str)]) -> Vec<(String, String)> {
        settings
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect()
    }

    #[test]
    fn trap_04_each_request_comes_once_in_either_order() {
        let user = || startup(PROTOCOL_3_0, &[("user", "app")]);
        for (tls, packets, answers, is_login) in [
            (TlsOffer::Offered, vec![user()], &b""[..], true),
            (TlsOffer::Offered, vec![ssl(), user()], b"S", true),
            (TlsOffer::Unavailable, vec![ssl(), user()], b"N", true),
            (TlsOffer::Offered, vec![gssenc(), user()], b"N", true),
            (TlsOffer::Offered, vec![gssenc(), ssl(), user()], b"NS", true),
            (TlsOffer::Unavailable, vec![ssl(), gssenc(), user()], b"NN", true),
            (TlsOffer::Unavailable, vec![gssenc(), ssl(), user()], b"NN", true),
            (TlsOffer::Required, vec![gssenc(), ssl(), user()], b"NS", true),
            (TlsOffer::Offered, vec![ssl(), ssl()], b"S", false),
            (TlsOffer::Offered, vec![ssl(), gssenc()], b"S", false),
            (TlsOffer::Unavailable, vec![ssl(), ssl()], b"N", false),
            (TlsOffer::Unavailable, vec![ssl(), gssenc(), ssl()], b"NN", false),
            (TlsOffer::Unavailable, vec![gssenc(), gssenc()], b"N", false),
            (TlsOffer::Unavailable, vec![gssenc(), ssl(), gssenc()], b"NN", false),
        ] {
            let (sent, end) = run(tls, &packets);
            assert_eq!(sent, answers, "{tls:?} {packets:?}");
            match end {
                Ok(Some(HandshakeStep::Login(_))) => assert!(is_login),
                Err(Refusal(report)) => {
                    assert!(!is_login, "{report}");
                    assert_eq!(report.sqlstate, SqlState::FEATURE_NOT_SUPPORTED);
                    assert!(
                        report.message.starts_with("unsupported frontend protocol 1234.56"),
                        "{report}"
                    );
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn trap_03_bytes_behind_a_request_for_encryption_are_refused() {
        for tls in [TlsOffer::Offered, TlsOffer::Unavailable] {
            for (request, message) in [
                (ssl(), "received unencrypted data after SSL request"),
                (gssenc(), "received unencrypted data after GSSAPI encryption request"),
            ] {
                let Refusal(report) = Handshake::new(tls).on_packet(&request, 1).unwrap_err();
                assert_eq!(
                    (report.sqlstate, &*report.message),
                    (SqlState::PROTOCOL_VIOLATION, message)
                );
                assert!(report.detail.is_some());
            }
        }
        let login = Handshake::new(TlsOffer::Offered).on_packet(&startup(PROTOCOL_3_0, &[("user", "app")]), 9);
        assert!(
            matches!(login, Ok(HandshakeStep::Login(_))),
            "a client may send its password ahead"
        );
    }

    #[test]
    fn trap_05_direct_tls_needs_its_application_protocol() {
        assert_eq!(Opening::recognise(&[0x16]), Some(Opening::DirectTls));
        let begin = |tls| Handshake::new(tls).on_opening(Opening::DirectTls);
        let OpeningStep::Tls(expect) = begin(TlsOffer::Required) else {
            panic!()
        };
        let handshake = expect.on_tls(Some(b"postgresql")).unwrap();
        assert!(
            handshake.on_packet(&ssl(), 0).is_err(),
            "trap 4: an SSLRequest inside TLS"
        );
        for alpn in [None, Some(&b"h2"[..])] {
            let OpeningStep::Tls(expect) = begin(TlsOffer::Offered) else {
                panic!()
            };
            assert_eq!(
                expect.on_tls(alpn).unwrap_err().0.sqlstate,
                SqlState::PROTOCOL_VIOLATION
            );
        }
        let OpeningStep::Close(alert) = begin(TlsOffer::Unavailable) else {
            panic!()
        };
        assert_eq!(&alert[..3], [0x15, 3, 1]);
    }

    #[test]
    fn a_browser_is_told_where_it_is() {
        assert_eq!(Opening::recognise(b""), None);
        assert_eq!(Opening::recognise(b"GET"), None);
        assert_eq!(Opening::recognise(b"GET / HTTP/1.1"), Some(Opening::Http));
        assert_eq!(Opening::recognise(&ssl()), Some(Opening::Packet));
        let OpeningStep::Close(answer) = Handshake::new(TlsOffer::Required).on_opening(Opening::Http) else {
            panic!()
        };
        assert!(answer.starts_with(b"HTTP/1.1 400 ") && answer.ends_with(b"not HTTP.\n"));
        assert!(matches!(
            Handshake::new(TlsOffer::Required).on_opening(Opening::Packet),
            OpeningStep::Packets(_)
        ));
    }

    #[test]
    fn tls_is_required_to_log_in_but_not_to_cancel() {
        let (_, end) = run(TlsOffer::Required, &[startup(PROTOCOL_3_0, &[("user", "app")])]);
        let Refusal(report) = end.unwrap_err();
        assert_eq!(report.sqlstate, SqlState::INVALID_AUTHORIZATION_SPECIFICATION);
        assert!(report.hint.is_some_and(|hint| hint.contains("sslmode")));
        let key = CancelKey {
            process_id: 5,
            secret: vec![1; 4].into(),
        };
        let (_, end) = run(TlsOffer::Required, &[packet(|out| compose::cancel_request(out, &key))]);
        assert!(matches!(end, Ok(Some(HandshakeStep::Cancel(named))) if named == key));
    }

    #[test]
    fn trap_06_newer_versions_and_options_are_negotiated_once() {
        let negotiated = |version: u32, parameters: &[(&str, &str)]| {
            let login = log_in(version, parameters).unwrap();
            (login.version & 0xffff, login.negotiate.map(|message| message.to_vec()))
        };
        let user = ("user", "app");
        for minor in [0, 1, 2] {
            assert_eq!(negotiated((3 << 16) | minor, &[user]), (minor, None));
        }
        let newest = b"v\0\0\0\x0c\0\x03\0\x02\0\0\0\0".to_vec();
        assert_eq!(negotiated((3 << 16) | 3, &[user]), (2, Some(newest.clone())));
        assert_eq!(negotiated((3 << 16) | 9999, &[user]), (2, Some(newest)));
        let greased = b"v\0\0\0\x18\0\x03\0\0\0\0\0\x01_pq_.grease\0".to_vec();
        assert_eq!(
            negotiated(PROTOCOL_3_0, &[("_pq_.grease", "x"), user]),
            (0, Some(greased))
        );
        for version in [2 << 16, 4 << 16] {
            let Refusal(report) = log_in(version, &[user]).unwrap_err();
            assert_eq!(report.sqlstate, SqlState::FEATURE_NOT_SUPPORTED);
            assert!(report.message.ends_with(".0: server supports 3.0 to 3.2"), "{report}");
        }
    }

    #[test]
    fn trap_08_the_database_defaults_to_the_user() {
        let login = log_in(PROTOCOL_3_0, &[("user", "app"), ("database", "")]).unwrap();
        assert_eq!((&*login.user, &*login.database), ("app", "app"));
        let long = "é".repeat(40);
        let login = log_in(PROTOCOL_3_0, &[("user", &long), ("database", "db")]).unwrap();
        assert_eq!((login.user.len(), &*login.database), (62, "db"));
        for parameters in [&[("database", "db")][..], &[("user", "")], &[("User", "app")]] {
            let Refusal(report) = log_in(PROTOCOL_3_0, parameters).unwrap_err();
            assert_eq!(
                report.to_string(),
                "FATAL: no PostgreSQL user name specified in startup packet (28000)"
            );
        }
    }

    #[test]
    fn trap_08_replication_is_a_boolean_or_a_database() {
        for (value, expected) in [
            ("database", Some(Replication::Logical)),
            ("true", Some(Replication::Physical)),
            ("T", Some(Replication::Physical)),
            ("on", Some(Replication::Physical)),
            ("YES", Some(Replication::Physical)),
            ("1", Some(Replication::Physical)),
            ("of", Some(Replication::None)),
            ("n", Some(Replication::None)),
            ("0", Some(Replication::None)),
            ("false", Some(Replication::None)),
            ("o", None),
            ("", None),
            ("Database", None),
            ("truely", None),
            (" true", None),
        ] {
            let login = log_in(PROTOCOL_3_0, &[("user", "app"), ("replication", value)]);
            assert_eq!(login.as_ref().ok().map(|login| login.replication), expected, "{value}");
            if let Err(Refusal(report)) = login {
                assert_eq!(report.sqlstate, SqlState::INVALID_PARAMETER_VALUE);
            }
        }
    }

    #[test]
    fn trap_08_settings_have_no_case_and_a_parameter_beats_options() {
        let login = log_in(
            PROTOCOL_3_0,
            &[
                ("user", "app"),
                ("options", "-c timezone=Asia/Tokyo -c work_mem=1MB"),
                ("TimeZone", "UTC"),
                ("application_name", "psql"),
            ],
        )
        .unwrap();
        assert_eq!(login.setting("TIMEZONE"), Some("UTC"));
        assert_eq!(login.setting("Work_Mem"), Some("1MB"));
        assert_eq!(login.setting("user"), None);
        let names: Vec<_> = login.settings.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["timezone", "work_mem", "TimeZone", "application_name"]);
        assert_eq!(login.parameters.len(), 4);
    }

    #[test]
    fn trap_07_options_are_split_as_postgresql_splits_them() {
        for (options, settings) in [
            ("", &[][..]),
            ("  \t ", &[]),
            ("-c a=b", &[("a", "b")]),
            ("-ca=b", &[("a", "b")]),
            ("--a=b", &[("a", "b")]),
            ("--", &[]),
            (
                "--search-path=x,y -c statement-timeout=5s",
                &[("search_path", "x,y"), ("statement_timeout", "5s")],
            ),
            (r"-c search_path=a,\ b", &[("search_path", "a, b")]),
            (r"-c a=b\\c", &[("a", r"b\c")]),
            (r"-c\ a=b", &[(" a", "b")]),
            ("-c a=b=c", &[("a", "b=c")]),
            ("-c a=", &[("a", "")]),
            ("-c app.tenant_id=7\n-c\x0ba=b\\", &[("app.tenant_id", "7"), ("a", "b")]),
            ("-- a=b", &[]),
        ] {
            let switches = postgres_switches(options);
            if options == "-- a=b" {
                assert!(switches.is_err(), "nothing may follow the end of switches");
                continue;
            }
            assert_eq!(
                switches.unwrap(),
                Switches {
                    settings: pairs(settings),
                    unsupported: vec![]
                },
                "{options:?}"
            );
        }
    }

    #[test]
    fn trap_07_other_switches_are_reported_and_unknown_ones_refused() {
        let switches = postgres_switches("-S 64 -eF -fs -c a=b -ec a=c -D/x").unwrap();
        assert_eq!(switches.settings, pairs(&[("a", "b"), ("a", "c")]));
        assert_eq!(switches.unsupported, ["-S 64", "-e", "-F", "-f s", "-e", "-D /x"]);
        for (options, message) in [
            ("a=b", "invalid command-line argument for server process: a=b"),
            ("-", "invalid command-line argument for server process: -"),
            ("-c", "invalid command-line argument for server process: -c"),
            ("-z", "invalid command-line argument for server process: -z"),
            ("-é", "invalid command-line argument for server process: -é"),
            ("-c work_mem", "-c work_mem requires a value"),
            ("--work-mem", "--work_mem requires a value"),
        ] {
            let Refusal(report) = postgres_switches(options).unwrap_err();
            assert_eq!((report.sqlstate, &*report.message), (SqlState::SYNTAX_ERROR, message));
        }
    }

    #[test]
    fn trap_02_broken_packets_are_refused_in_postgresqls_words() {
        for (packet, message) in [
            (vec![0, 0, 0, 7, 0, 3, 0], "invalid length of startup packet"),
            (vec![0xff; 8], "invalid length of startup packet"),
            (vec![], "invalid length of startup packet"),
            (
                vec![0, 0, 0, 8, 0, 3, 0, 0],
                "invalid startup packet layout: expected terminator as last byte",
            ),
            (
                vec![0, 0, 0, 12, 0, 3, 0, 0, b'u', 0, 0xff, 0],
                "startup parameters must be encoded in UTF-8",
            ),
        ] {
            let Refusal(report) = Handshake::new(TlsOffer::Offered).on_packet(&packet, 0).unwrap_err();
            assert_eq!(
                (report.sqlstate, &*report.message),
                (SqlState::PROTOCOL_VIOLATION, message)
            );
        }
    }
}
