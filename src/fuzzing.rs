//! What `fuzz/` attacks, and what the test `fuzz_corpus` replays its corpus through: one function per target, named as
//! it. Each takes any bytes and must return; what it asserts on the way must hold for any peer. Not part of the API.
//!
//! Streams of messages are real wire bytes behind one byte that selects a variant, so that a capture is a corpus file.

mod ledger;
mod pipeline;
mod sql;

use zeroize::Zeroizing;

use crate::protocol::backend_login::{BackendLogin, ChannelBinding, LoginRequest, LoginSecret, LoginStep};
use crate::protocol::client_auth::{AuthRandom, AuthRequest, AuthStep, ClientAuth, Exchange, StoredCredential};
use crate::protocol::handshake::{Handshake, HandshakeStep, Opening, OpeningStep, TlsOffer, postgres_switches};
use crate::protocol::md5::Md5Hash;
use crate::protocol::scram::{
    ClientBinding, MockSecret, SCRAM_SHA_256, ScramClient, ScramKeys, ScramSecret, ScramServer, ScramVerdict,
    ServerBinding, Verifier,
};
use crate::wire::backend_message::{ParameterStatus, ReportFields, TransactionStatus, command_tag};
use crate::wire::frontend_message::{BindHead, Execute, Named, Parse, Query};
use crate::wire::startup_packet::StartupPacket;
use crate::wire::{BackendTag, FrontendTag, Header, PROTOCOL_3_0, PROTOCOL_3_2};

/// Small, so that an execution costs microseconds.
const ITERATIONS: u32 = 2;

/// A target's name and its function.
pub type Target = (&'static str, fn(&[u8]));

/// Every target: the names of `fuzz/fuzz_targets/` and of the directories in `fuzz/corpus/`.
pub const TARGETS: [Target; 8] = [
    ("startup_packet", startup_packet),
    ("scram", scram),
    ("client_auth", client_auth),
    ("backend_login", backend_login),
    ("frame", frame),
    ("pipeline", pipeline),
    ("sql", sql),
    ("ledger", ledger),
];

/// Requests and replies in any order. See the module for their encoding.
pub fn pipeline(data: &[u8]) {
    self::pipeline::run(data);
}

/// Clients that share backends. See the module for its encoding.
pub fn ledger(data: &[u8]) {
    self::ledger::run(data);
}

/// Texts of statements. See the module for their encoding.
pub fn sql(data: &[u8]) {
    self::sql::run(data);
}

/// A client's bytes before authentication. The first byte chooses the listener's TLS.
pub fn startup_packet(data: &[u8]) {
    let Some((selector, mut stream)) = data.split_first() else {
        return;
    };
    let tls = match selector % 3 {
        0 => TlsOffer::Unavailable,
        1 => TlsOffer::Offered,
        _ => TlsOffer::Required,
    };
    let handshake = match Opening::recognise(stream).map(|opening| Handshake::new(tls).on_opening(opening)) {
        Some(OpeningStep::Packets(handshake)) => Ok(handshake),
        Some(OpeningStep::Tls(expect)) => expect.on_tls((selector & 0x80 != 0).then_some(b"postgresql")),
        Some(OpeningStep::Close(_)) | None => return,
    };
    let Ok(mut handshake) = handshake else { return };
    let mut answers = 0;
    while let Ok(Some(len)) = StartupPacket::frame_len(stream) {
        let Some((packet, rest)) = stream.split_at_checked(len) else {
            return;
        };
        stream = rest;
        // The bytes behind stand for what comes later, so that one file can hold a whole handshake.
        match handshake.on_packet(packet, 0) {
            Ok(HandshakeStep::Answer(_, next) | HandshakeStep::AnswerThenTls(_, next)) => handshake = next,
            Ok(HandshakeStep::Login(login)) => return check_login(&login),
            Ok(HandshakeStep::Cancel(_)) | Err(_) => return,
        }
        answers += 1;
        assert!(answers <= 2, "each request for encryption is answered once");
    }
}

fn check_login(login: &crate::protocol::handshake::Login) {
    assert!(!login.user.is_empty() && login.user.len() <= 63 && !login.database.is_empty());
    assert!((PROTOCOL_3_0..=PROTOCOL_3_2).contains(&login.version));
    for (name, value) in &login.settings {
        assert!(login.setting(name).is_some());
        let quoted: String = format!("{name}={value}")
            .chars()
            .flat_map(|character| ['\\', character])
            .collect();
        let again = postgres_switches(&format!("-c {quoted}")).map(|switches| switches.settings.len());
        assert_eq!(again, Ok(1), "whatever is quoted is one setting");
    }
}

/// SCRAM messages, a line each, to both sides. The first byte chooses the channel binding.
pub fn scram(data: &[u8]) {
    let Some((selector, rest)) = data.split_first() else {
        return;
    };
    let mut lines = rest.split(|byte| *byte == b'\n');
    let (first, second) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    if let Some(verifier) = std::str::from_utf8(first).ok().and_then(Verifier::parse) {
        assert_eq!(Verifier::parse(&verifier.to_text()), Some(verifier));
    }
    let server_binding = match selector % 3 {
        0 => ServerBinding::Unavailable,
        1 => ServerBinding::Declined,
        _ => ServerBinding::EndPoint(vec![1; 32]),
    };
    let verifier = Verifier::derive("sesame", b"salt", ITERATIONS);
    if let Ok((server_first, next)) = ScramServer::new(verifier, server_binding, &[0; 18]).client_first(first) {
        assert!(server_first.starts_with("r="));
        if let Ok(ScramVerdict::Proven { client_key, .. }) = next.client_final(second) {
            assert_eq!(client_key, ScramKeys::derive("sesame", b"salt", ITERATIONS).client_key);
        }
    }
    let client_binding = match selector % 3 {
        0 => ClientBinding::Unsupported,
        1 => ClientBinding::NotOffered,
        _ => ClientBinding::EndPoint(vec![1; 32]),
    };
    let (_, client) = ScramClient::start(secret(), client_binding, &[0; 18], ITERATIONS);
    if let Ok((client_final, next)) = client.server_first(first) {
        assert!(client_final.starts_with("c="));
        drop(next.server_final(second));
    }
}

fn secret() -> ScramSecret {
    ScramSecret::Password(Zeroizing::new("sesame".to_owned()), None)
}

/// A client's frames while it authenticates. The first byte chooses what it is asked, and what is stored.
pub fn client_auth(data: &[u8]) {
    let Some((selector, stream)) = data.split_first() else {
        return;
    };
    let exchange = match selector % 3 {
        0 => Exchange::ScramSha256,
        1 => Exchange::Md5,
        _ => Exchange::Password,
    };
    let verifier = || Verifier::derive("sesame", b"salt", ITERATIONS);
    let stored = match (selector / 3) % 4 {
        0 => StoredCredential::Password {
            password: Zeroizing::new("sesame".to_owned()),
            verifier: verifier(),
        },
        1 => StoredCredential::Md5(Md5Hash::of("sesame", "app")),
        2 => StoredCredential::Verifier(verifier()),
        _ => StoredCredential::Unknown,
    };
    let mock = MockSecret::new([0; 32], ITERATIONS);
    let (_, mut auth) = ClientAuth::start(AuthRequest {
        exchange,
        user: "app",
        stored: &stored,
        channel_binding: (selector & 0x80 != 0).then(|| vec![1; 32]),
        random: AuthRandom {
            nonce: [0; 18],
            md5_salt: [0; 4],
        },
        mock: &mock,
    });
    for (header, body) in Frames(stream) {
        match auth.on_message(header.tag, body) {
            Ok(AuthStep::Send(_, next)) => auth = next,
            Ok(AuthStep::Accepted { .. }) => {
                return assert!(
                    !matches!(stored, StoredCredential::Unknown),
                    "nobody can be an unknown user"
                );
            }
            Ok(AuthStep::Refused(_) | AuthStep::WrongPassword(..)) | Err(_) => return,
        }
    }
}

/// A server's frames while we log in to it. The first byte chooses what we know and insist on.
pub fn backend_login(data: &[u8]) {
    let Some((selector, stream)) = data.split_first() else {
        return;
    };
    let version = if selector & 0x80 == 0 {
        PROTOCOL_3_0
    } else {
        PROTOCOL_3_2
    };
    let request = LoginRequest {
        version,
        parameters: vec![("user".to_owned(), "app".to_owned())],
        user: "app".to_owned(),
        secret: match selector % 3 {
            0 => LoginSecret::None,
            1 => LoginSecret::Password {
                password: Zeroizing::new("sesame".to_owned()),
                salted: None,
            },
            _ => LoginSecret::Keys(ScramKeys::derive("sesame", b"salt", ITERATIONS)),
        },
        channel_binding: match (selector / 3) % 3 {
            0 => ChannelBinding::Prefer,
            1 => ChannelBinding::Disable,
            _ => ChannelBinding::Require,
        },
        tls_server_end_point: (selector & 0x40 != 0).then(|| vec![1; 32]),
        require_auth: None,
        scram_iterations_max: ITERATIONS,
        nonce: [0; 18],
        expected: (selector & 0x80 != 0).then(|| vec![SCRAM_SHA_256.to_owned()]),
    };
    let Ok((_, mut login)) = BackendLogin::start(request) else {
        return;
    };
    for (header, body) in Frames(stream) {
        match login.on_frame(header.tag, body) {
            Ok(LoginStep::Send(_, next) | LoginStep::Next(next)) => login = next,
            Ok(LoginStep::Done(established)) => return assert!(established.negotiated_version <= version),
            Err(_) => return,
        }
    }
}

/// Any bytes as a stream of frames in either direction, each looked at by every view that its type has.
pub fn frame(data: &[u8]) {
    for (header, body) in Frames(data) {
        if let Ok(tag) = header.frontend() {
            look_at_frontend_message(tag, body);
        }
        if let Ok(tag) = header.backend() {
            look_at_backend_message(tag, body);
        }
    }
}

fn look_at_frontend_message(tag: FrontendTag, body: &[u8]) {
    match tag {
        FrontendTag::Query => drop(Query::parse(body)),
        FrontendTag::Parse => drop(Parse::parse(body)),
        FrontendTag::Bind => drop(BindHead::parse(body)),
        FrontendTag::Describe | FrontendTag::Close => drop(Named::parse(body)),
        FrontendTag::Execute => drop(Execute::parse(body)),
        _ => {}
    }
}

fn look_at_backend_message(tag: BackendTag, body: &[u8]) {
    match tag {
        BackendTag::ReadyForQuery => drop(TransactionStatus::parse(body)),
        BackendTag::ParameterStatus => drop(ParameterStatus::parse(body)),
        BackendTag::CommandComplete => drop(command_tag(body)),
        BackendTag::ErrorResponse | BackendTag::NoticeResponse => {
            drop(ReportFields::parse(body).map(|fields| fields.to_report()));
        }
        _ => {}
    }
}

/// Whole frames from the front of a stream; ends at a broken header or an incomplete body.
struct Frames<'a>(&'a [u8]);

impl<'a> Iterator for Frames<'a> {
    type Item = (Header, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = Header::peek(self.0).ok().flatten()?;
        let (frame, rest) = self.0.split_at_checked(header.frame_len())?;
        self.0 = rest;
        frame.get(crate::wire::HEADER_LEN..).map(|body| (header, body))
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    /// A target under as many reproducible random inputs, of these lengths in turn. `PGSIDECAR_FUZZ_ROUNDS` and
    /// `PGSIDECAR_FUZZ_SEED` (not 0) make a longer run of it, and another.
    pub(super) fn returns_for_random_inputs(target: fn(&[u8]), rounds: usize, lengths: Range<usize>) {
        let number = |variable| Some(std::env::var(variable).ok()?.parse::<u64>().unwrap());
        let rounds = number("PGSIDECAR_FUZZ_ROUNDS").map_or(rounds, |rounds| rounds.try_into().unwrap());
        let mut seed = number("PGSIDECAR_FUZZ_SEED").unwrap_or(0x9e37_79b9_7f4a_7c15);
        let mut byte = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed.to_be_bytes()[0]
        };
        for length in lengths.cycle().take(rounds) {
            let data: Vec<u8> = (0..length).map(|_| byte()).collect();
            assert!(std::panic::catch_unwind(|| target(&data)).is_ok(), "{data:?}");
        }
    }
}
