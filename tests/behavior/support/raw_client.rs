//! A client that speaks the protocol's bytes: what drivers hide, and what no driver would send.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use pgsidecar::wire::backend_message::ReportFields;
use pgsidecar::wire::startup_packet::CancelKey;
use pgsidecar::wire::{FrontendTag, HEADER_LEN, Header, Malformed, PROTOCOL_3_0, Reader, Report, compose};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::rustls::{self, pki_types};

use super::DEADLINE;
use super::scram::ScramClient;

/// One message from the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The type byte.
    pub tag: u8,
    /// What follows the length word.
    pub body: Vec<u8>,
}

impl Message {
    /// Takes one whole message off the front of what was received, if it is there.
    pub fn cut(received: &mut BytesMut) -> Result<Option<Self>, Malformed> {
        let Some(header) = Header::peek(received)? else {
            return Ok(None);
        };
        if received.len() < header.frame_len() {
            return Ok(None);
        }
        let frame = received.split_to(header.frame_len());
        Ok(Some(Self {
            tag: header.tag,
            body: frame[HEADER_LEN..].to_vec(),
        }))
    }

    /// The fields of an ErrorResponse or NoticeResponse.
    #[track_caller]
    pub fn report(&self) -> Report {
        assert!(matches!(self.tag, b'E' | b'N'), "{self:?} is no report");
        ReportFields::parse(&self.body)
            .expect("a well-formed report")
            .to_report()
    }

    /// The SQLSTATE of an ErrorResponse or NoticeResponse.
    #[track_caller]
    pub fn sqlstate(&self) -> String {
        self.report().sqlstate.to_string()
    }

    /// The text columns of a DataRow; NULL reads `None`.
    #[track_caller]
    pub fn row(&self) -> Vec<Option<String>> {
        assert_eq!(self.tag, b'D', "{self:?} is no DataRow");
        let mut reader = Reader::new(&self.body);
        let columns = reader.i16().unwrap();
        (0..columns)
            .map(|_| {
                let len = usize::try_from(reader.i32().unwrap()).ok()?;
                Some(String::from_utf8_lossy(reader.bytes(len).unwrap()).into_owned())
            })
            .collect()
    }

    /// The tag of a CommandComplete.
    #[track_caller]
    pub fn command(&self) -> String {
        assert_eq!(self.tag, b'C', "{self:?} is no CommandComplete");
        String::from_utf8_lossy(self.body.strip_suffix(b"\0").unwrap()).into_owned()
    }
}

trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

/// A connection, from its first byte on.
pub struct RawClient {
    stream: Box<dyn Bytes>,
    received: BytesMut,
    /// What the server reported so far.
    pub parameters: Vec<(String, String)>,
    /// What BackendKeyData said.
    pub cancel_key: Option<CancelKey>,
    /// The authentication codes asked for, in order: 0 ok, 3 password, 5 md5, 10 SASL, 11, 12.
    pub authentication: Vec<u32>,
    /// Reads that brought something.
    reads: u32,
    /// The type byte of each message so far, repetitions left out.
    seen: String,
}

impl RawClient {
    /// Over TCP to 127.0.0.1.
    pub async fn connect(port: u16) -> Self {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .expect("somebody listens");
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }

    /// Over a unix socket.
    pub async fn connect_unix(path: &Path) -> Self {
        Self::over(UnixStream::connect(path).await.expect("somebody listens"))
    }

    /// Over TLS after an SSLRequest.
    pub async fn connect_tls(port: u16) -> Self {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .expect("somebody listens");
        let mut request = BytesMut::new();
        compose::ssl_request(&mut request);
        stream.write_all(&request).await.unwrap();
        let mut answer = [0];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"S", "the server offers TLS");
        Self::handshake(stream, &[]).await.expect("the handshake succeeds")
    }

    /// Over TLS from the first byte, with these ALPN names.
    pub async fn connect_direct_tls(port: u16, alpn: &[&str]) -> std::io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        Self::handshake(stream, alpn).await
    }

    /// Connects and logs in with whatever the server asks for.
    pub async fn login(port: u16, user: &str, password: &str, database: &str) -> Self {
        let mut client = Self::connect(port).await;
        client
            .log_in(user, password, &[("database", database)])
            .await
            .expect("the login succeeds");
        client
    }

    async fn handshake(stream: TcpStream, alpn: &[&str]) -> std::io::Result<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate))
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = pki_types::ServerName::try_from("localhost").unwrap();
        let connecting = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream);
        let stream = within(DEADLINE, "a TLS handshake", connecting).await?;
        Ok(Self::over(stream))
    }

    fn over(stream: impl Bytes + 'static) -> Self {
        Self {
            stream: Box::new(stream),
            received: BytesMut::new(),
            parameters: Vec::new(),
            cancel_key: None,
            authentication: Vec::new(),
            reads: 0,
            seen: String::new(),
        }
    }

    // Sending.

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) {
        within(DEADLINE, "a write", self.stream.write_all(bytes))
            .await
            .expect("the other side reads");
        within(DEADLINE, "a flush", self.stream.flush())
            .await
            .expect("the other side reads");
    }

    /// Sends bytes to a side that may have hung up.
    pub async fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        within(DEADLINE, "a write", self.stream.write_all(bytes)).await?;
        within(DEADLINE, "a flush", self.stream.flush()).await
    }

    /// Sends a StartupMessage.
    pub async fn startup(&mut self, version: u32, parameters: &[(&str, &str)]) {
        let mut packet = BytesMut::new();
        compose::startup_message(&mut packet, version, parameters.iter().copied());
        self.send(&packet).await;
    }

    /// Sends a Query.
    pub async fn query(&mut self, sql: &str) {
        self.send(&query(sql)).await;
    }

    /// Sends a Query and reads up to its ReadyForQuery.
    pub async fn ask(&mut self, sql: &str) -> Vec<Message> {
        self.query(sql).await;
        self.until_ready().await
    }

    /// Sends a Query that yields one row of one column, and returns that.
    pub async fn value(&mut self, sql: &str) -> String {
        let answer = self.ask(sql).await;
        let row = answer.iter().find(|message| message.tag == b'D');
        let row = row.unwrap_or_else(|| panic!("{sql}: no row in {}", shown(&answer)));
        row.row().remove(0).expect("not null")
    }

    /// The bare connection, for bytes that are no whole messages. What was received already is not in it.
    pub fn into_stream(self) -> impl tokio::io::AsyncRead + Unpin {
        self.stream
    }

    /// Half-closes: the other side reads an end of file and may still write.
    pub async fn shutdown(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    // Receiving.

    /// Reads one message.
    pub async fn message(&mut self) -> Message {
        match self.message_or_end().await {
            Some(message) => message,
            None => panic!("the connection was closed"),
        }
    }

    /// Reads one message of any size without keeping it: its tag and the length of its body.
    pub async fn pass_over(&mut self) -> (u8, usize) {
        let header = loop {
            if let Some(header) = Header::peek(&self.received).expect("a well-formed header") {
                break header;
            }
            let read = within(DEADLINE, "a message", self.stream.read_buf(&mut self.received)).await;
            assert_ne!(read.unwrap_or(0), 0, "the connection was closed");
        };
        let mut missing = header.frame_len();
        while missing > 0 {
            if self.received.is_empty() {
                self.received.reserve(64 * 1024);
                let read = within(DEADLINE, "a message", self.stream.read_buf(&mut self.received)).await;
                assert_ne!(read.unwrap_or(0), 0, "the connection ends inside a message");
            }
            let here = missing.min(self.received.len());
            let _ = self.received.split_to(here);
            missing -= here;
        }
        (header.tag, header.body_len)
    }

    /// Reads one message; `None` where the connection ends between two.
    pub async fn message_or_end(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = Message::cut(&mut self.received).expect("a well-formed header") {
                self.note(&message);
                return Some(message);
            }
            self.received.reserve(8192);
            let read = within(DEADLINE, "a message", self.stream.read_buf(&mut self.received)).await;
            self.reads += 1;
            if read.unwrap_or(0) == 0 {
                assert!(
                    self.received.is_empty(),
                    "the connection ends inside a message: {:?}",
                    self.received
                );
                return None;
            }
        }
    }

    /// Reads one byte that is no message: the answer to an SSLRequest or GSSENCRequest.
    pub async fn byte(&mut self) -> Option<u8> {
        if self.received.is_empty() {
            let read = within(DEADLINE, "a byte", self.stream.read_buf(&mut self.received)).await;
            if read.unwrap_or(0) == 0 {
                return None;
            }
        }
        Some(self.received.split_to(1)[0])
    }

    /// Reads up to and including the next ReadyForQuery.
    pub async fn until_ready(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            let message = match self.message_or_end().await {
                Some(message) => message,
                None => panic!("the connection was closed after {}", shown(&messages)),
            };
            let ready = message.tag == b'Z';
            messages.push(message);
            if ready {
                return messages;
            }
        }
    }

    /// The same, or to the end of the connection.
    pub async fn until_ready_or_end(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(message) = self.message_or_end().await {
            let ready = message.tag == b'Z';
            messages.push(message);
            if ready {
                break;
            }
        }
        messages
    }

    /// Reads as many messages as there are letters, spaces aside: `expect("1 2 D C Z")`. ParameterStatus and
    /// NoticeResponse are passed over where they are not named.
    pub async fn expect(&mut self, tags: &str) -> Vec<Message> {
        let mut messages: Vec<Message> = Vec::new();
        for tag in tags.bytes().filter(|byte| *byte != b' ') {
            let message = loop {
                let message = match self.message_or_end().await {
                    Some(message) => message,
                    None => panic!("expected {tags}, the connection was closed after {}", shown(&messages)),
                };
                if message.tag == tag || !matches!(message.tag, b'S' | b'N') {
                    break message;
                }
            };
            messages.push(message);
            let last = messages.last().expect("just pushed");
            assert_eq!(
                char::from(last.tag),
                char::from(tag),
                "expected {tags}, got {}",
                shown(&messages)
            );
        }
        messages
    }

    /// Reads to the end of the connection.
    pub async fn until_closed(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(message) = self.message_or_end().await {
            messages.push(message);
        }
        messages
    }

    /// Reads to the end of the connection what need not be messages.
    pub async fn bytes_until_closed(&mut self) -> Vec<u8> {
        while within(DEADLINE, "the end", self.stream.read_buf(&mut self.received))
            .await
            .unwrap_or(0)
            > 0
        {}
        self.received.split().to_vec()
    }

    /// Whether nothing comes within `quiet`, the connection staying open.
    pub async fn silent_for(&mut self, quiet: Duration) -> bool {
        self.received.is_empty()
            && tokio::time::timeout(quiet, self.stream.read_buf(&mut self.received))
                .await
                .is_err()
    }

    /// Reads to the end of the connection what are no messages.
    pub async fn text_until_closed(&mut self) -> String {
        while within(DEADLINE, "bytes", self.stream.read_buf(&mut self.received))
            .await
            .unwrap_or(0)
            > 0
        {}
        String::from_utf8_lossy(&self.received.split()).into_owned()
    }

    /// The type bytes of what came so far, each run of equal ones as one: `RSKZ` for a login.
    pub fn seen_once(&self) -> &str {
        &self.seen
    }

    /// Begins [`Self::seen_once`] anew.
    pub fn forget_seen(&mut self) {
        self.seen.clear();
    }

    fn note(&mut self, message: &Message) {
        let tag = char::from(message.tag);
        if !self.seen.ends_with(tag) {
            self.seen.push(tag);
        }
        let mut reader = Reader::new(&message.body);
        match message.tag {
            b'S' => {
                let mut text = || String::from_utf8_lossy(reader.cstr().unwrap()).into_owned();
                let (name, value) = (text(), text());
                self.parameters.retain(|(known, _)| *known != name);
                self.parameters.push((name, value));
            }
            b'K' => {
                let process_id = reader.u32().unwrap();
                self.cancel_key = Some(CancelKey {
                    process_id,
                    secret: reader.rest().into(),
                });
            }
            b'R' => self.authentication.push(reader.u32().unwrap()),
            _ => {}
        }
    }

    /// The last value of a reported parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    // Logging in.

    /// Sends a 3.0 StartupMessage and authenticates with whatever is asked for, up to ReadyForQuery; or the refusal.
    pub async fn log_in(&mut self, user: &str, password: &str, parameters: &[(&str, &str)]) -> Result<(), Report> {
        let parameters = [&[("user", user)], parameters].concat();
        self.startup(PROTOCOL_3_0, &parameters).await;
        self.authenticate(user, password).await
    }

    /// Answers authentication requests up to ReadyForQuery; or the refusal.
    pub async fn authenticate(&mut self, user: &str, password: &str) -> Result<(), Report> {
        let mut scram = ScramClient::new(password, "n,,", b"");
        loop {
            let message = self.message().await;
            match message.tag {
                b'R' => self.answer(&message, user, password, &mut scram).await,
                b'E' => return Err(message.report()),
                b'Z' => return Ok(()),
                _ => {}
            }
        }
    }

    /// The same as [`Self::authenticate`], and counts the times that it had to wait for more bytes.
    pub async fn authenticate_counting_reads(&mut self, user: &str, password: &str) -> Result<u32, Report> {
        let before = self.reads;
        self.authenticate(user, password).await.map(|()| self.reads - before)
    }

    /// Answers an AuthenticationSASL with the right proof, and does not wait for what comes of it.
    pub async fn prove(&mut self, password: &str, first: &Message) {
        let mut scram = ScramClient::new(password, "n,,", b"");
        self.answer(first, "", password, &mut scram).await;
        let challenge = self.message().await;
        self.answer(&challenge, "", password, &mut scram).await;
    }

    async fn answer(&mut self, request: &Message, user: &str, password: &str, scram: &mut ScramClient) {
        let mut reader = Reader::new(&request.body);
        let mut reply = BytesMut::new();
        let code = reader.u32().unwrap();
        let data = String::from_utf8_lossy(reader.rest()).into_owned();
        match code {
            0 => {}
            3 => compose::password(&mut reply, password),
            5 => compose::password(&mut reply, &md5_response(user, password, reader.rest())),
            10 => {
                assert!(
                    data.split('\0').any(|mechanism| mechanism == "SCRAM-SHA-256"),
                    "{data:?}"
                );
                compose::sasl_initial_response(&mut reply, "SCRAM-SHA-256", scram.first().as_bytes());
            }
            11 => compose::sasl_response(&mut reply, scram.last(&data).as_bytes()),
            12 => assert!(scram.accepts(&data), "the server's signature is wrong"),
            other => panic!("authentication request {other}"),
        }
        if !reply.is_empty() {
            self.send(&reply).await;
        }
    }
}

impl std::fmt::Debug for RawClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawClient")
            .field("cancel_key", &self.cancel_key)
            .finish_non_exhaustive()
    }
}

/// Sends a CancelRequest over TCP and waits until the server hangs up, as libpq does.
pub async fn cancel(port: u16, key: &CancelKey) {
    let mut client = RawClient::connect(port).await;
    let mut packet = BytesMut::new();
    compose::cancel_request(&mut packet, key);
    client.send(&packet).await;
    assert_eq!(client.byte().await, None, "a CancelRequest is answered with nothing");
}

/// The tags of these messages, and what an error says: for the text of a failure.
pub fn shown(messages: &[Message]) -> String {
    let show = |message: &Message| match message.tag {
        b'E' => format!("E({})", message.report()),
        tag => char::from(tag).to_string(),
    };
    messages.iter().map(show).collect::<Vec<_>>().join(" ")
}

/// The tags of these messages without a space: `12DCZ`.
pub fn tags(messages: &[Message]) -> String {
    messages.iter().map(|message| char::from(message.tag)).collect()
}

/// A Query.
pub fn query(sql: &str) -> BytesMut {
    let mut out = BytesMut::new();
    compose::query(&mut out, sql.as_bytes());
    out
}

/// A Parse whose parameter types PostgreSQL infers.
pub fn parse(name: &str, sql: &str) -> BytesMut {
    let mut out = BytesMut::new();
    compose::parse(&mut out, name.as_bytes(), format!("{sql}\0\0\0").as_bytes());
    out
}

/// A Bind of text parameters, results as text.
pub fn bind(portal: &str, statement: &str, parameters: &[&str]) -> BytesMut {
    let mut body = BytesMut::new();
    body.put_slice(format!("{portal}\0{statement}\0").as_bytes());
    body.put_u16(0);
    body.put_u16(u16::try_from(parameters.len()).unwrap());
    for parameter in parameters {
        body.put_u32(u32::try_from(parameter.len()).unwrap());
        body.put_slice(parameter.as_bytes());
    }
    body.put_u16(0);
    message(FrontendTag::Bind, &[&body])
}

/// A Describe of a statement (`kind` is `S`) or portal (`P`).
pub fn describe(kind: char, name: &str) -> BytesMut {
    message(
        FrontendTag::Describe,
        &[kind.to_string().as_bytes(), name.as_bytes(), b"\0"],
    )
}

/// A Close of a statement (`kind` is `S`) or portal (`P`).
pub fn close(kind: char, name: &str) -> BytesMut {
    message(
        FrontendTag::Close,
        &[kind.to_string().as_bytes(), name.as_bytes(), b"\0"],
    )
}

/// An Execute; `rows` of 0 means all.
pub fn execute(portal: &str, rows: u32) -> BytesMut {
    message(FrontendTag::Execute, &[portal.as_bytes(), b"\0", &rows.to_be_bytes()])
}

/// A Sync.
pub fn sync() -> BytesMut {
    message(FrontendTag::Sync, &[])
}

/// A Flush.
pub fn flush() -> BytesMut {
    message(FrontendTag::Flush, &[])
}

/// A Terminate.
pub fn terminate() -> BytesMut {
    message(FrontendTag::Terminate, &[])
}

/// A FunctionCall with binary arguments and result.
pub fn function_call(oid: u32, arguments: &[&[u8]]) -> BytesMut {
    let mut body = BytesMut::new();
    body.put_u32(oid);
    body.put_slice(&[0, 1, 0, 1]);
    body.put_u16(u16::try_from(arguments.len()).unwrap());
    for argument in arguments {
        body.put_u32(u32::try_from(argument.len()).unwrap());
        body.put_slice(argument);
    }
    body.put_u16(1);
    message(FrontendTag::FunctionCall, &[&body])
}

/// A CopyData.
pub fn copy_data(data: &[u8]) -> BytesMut {
    message(FrontendTag::CopyData, &[data])
}

/// A CopyDone.
pub fn copy_done() -> BytesMut {
    message(FrontendTag::CopyDone, &[])
}

/// A CopyFail.
pub fn copy_fail(reason: &str) -> BytesMut {
    message(FrontendTag::CopyFail, &[reason.as_bytes(), b"\0"])
}

/// Several messages as one write.
pub fn together(messages: &[BytesMut]) -> BytesMut {
    messages.iter().flat_map(|message| message.iter().copied()).collect()
}

fn message(tag: FrontendTag, parts: &[&[u8]]) -> BytesMut {
    let mut out = BytesMut::new();
    compose::frame(&mut out, tag.byte(), parts);
    out
}

fn md5_response(user: &str, password: &str, salt: &[u8]) -> String {
    use md5::{Digest, Md5};
    let hex = |digest: &[u8]| digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let stored = hex(&Md5::digest(format!("{password}{user}")));
    format!("md5{}", hex(&Md5::digest([stored.as_bytes(), salt].concat())))
}

async fn within<T>(deadline: Duration, what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(deadline, future)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {deadline:?}"))
}

/// The tests' client trusts whoever answers: certificates are the server side's own tests' business.
#[derive(Debug)]
struct AnyCertificate;

impl rustls::client::danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &pki_types::CertificateDer<'_>,
        _: &[pki_types::CertificateDer<'_>],
        _: &pki_types::ServerName<'_>,
        _: &[u8],
        _: pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::postgres::{PASSWORD, Postgres, USER};

    #[tokio::test]
    async fn every_login_of_postgresql_itself_is_understood() {
        let cluster = Postgres::shared();
        let database = cluster.create_database();
        for (user, password, asked) in [
            (USER, PASSWORD, &[10, 11, 12, 0][..]),
            ("hashed", "hashed_password", &[5, 0]),
            ("plain", "plain_password", &[3, 0]),
            ("trusted", "", &[0]),
        ] {
            let mut client = RawClient::login(database.port, user, password, &database.name).await;
            assert_eq!(client.authentication, asked);
            assert_eq!(client.value("SELECT session_user").await, user);
        }
        let mut client = RawClient::connect_tls(database.port).await;
        client
            .log_in(USER, PASSWORD, &[("database", &database.name)])
            .await
            .expect("the password is right");
        assert_eq!(
            client
                .value("SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
                .await,
            "true"
        );
        let socket = database.directory.join(format!(".s.PGSQL.{}", database.port));
        let mut client = RawClient::connect_unix(&socket).await;
        client
            .log_in(USER, PASSWORD, &[("database", &database.name)])
            .await
            .expect("the password is right");
        let refusal = RawClient::connect(database.port).await.log_in(USER, "wrong", &[]).await;
        assert_eq!(
            refusal.expect_err("the password is wrong").sqlstate.to_string(),
            "28P01"
        );
    }

    #[tokio::test]
    async fn postgresql_18_takes_tls_from_the_first_byte() {
        let database = Postgres::shared_18().create_database();
        let mut client = RawClient::connect_direct_tls(database.port, &["postgresql"])
            .await
            .expect("18 can");
        client
            .log_in(USER, PASSWORD, &[("database", &database.name)])
            .await
            .expect("the password is right");
        client
            .send(&together(&[
                parse("", "SELECT 1"),
                bind("", "", &[]),
                describe('P', ""),
                execute("", 0),
                sync(),
            ]))
            .await;
        client.expect("1 2 T D C Z").await;
    }

    #[tokio::test]
    async fn a_private_cluster_stops_and_starts_again() {
        let cluster = Postgres::private(crate::support::postgres::Version::Installed);
        let database = cluster.create_database();
        let mut client = RawClient::login(database.port, USER, PASSWORD, &database.name).await;
        cluster.stop("fast");
        assert_eq!(client.until_closed().await[0].sqlstate(), "57P01");
        cluster.start();
        RawClient::login(database.port, USER, PASSWORD, &database.name).await;
        let directory = cluster.directory.clone();
        drop(cluster);
        assert!(!directory.exists(), "a dropped cluster leaves nothing behind");
    }
}
