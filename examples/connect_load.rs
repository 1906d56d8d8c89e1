//! Load for `benches/compare` that psql and pgbench can't make: logins by a client that derives its SCRAM keys once (libpq
//! derives them at each login, and that hides the pooler) and that are timed from connect to close, thousands of idle
//! sessions, results of any size and COPY in both directions.
//!
//! ```text
//! connect_load connect ADDRESS USER PASSWORD DATABASE CLIENTS SECONDS    connect, SELECT 1, close, again and again
//! connect_load burst   ADDRESS USER PASSWORD DATABASE CLIENTS SQL        all at once: connect, run it, close
//! connect_load idle    ADDRESS USER PASSWORD DATABASE COUNT,COUNT…       log in, SELECT 1 once, stay until stdin ends
//! connect_load fetch   ADDRESS USER PASSWORD DATABASE SECONDS SQL        read whole results, at least one, keep nothing
//! connect_load send    ADDRESS USER PASSWORD DATABASE SECONDS SQL BYTES  COPY FROM STDIN of so many bytes, at least one
//! ```
//!
//! ADDRESS is `tcp:PORT` or `tls:PORT` on 127.0.0.1, or `unix:PATH` of the socket itself. All but `idle` print a line for
//! each operation: the microsecond since 1970 at which it ended, the microseconds that it took, and the bytes of it.

#![allow(clippy::unwrap_used, reason = "a load generator that can't go on stops")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::BytesMut;
use hmac::{Hmac, Mac};
use pgsidecar::wire::{FrontendTag, PROTOCOL_3_0, compose};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use sha2::{Digest, Sha256};

/// A server that does not answer for so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// The bytes of one CopyData, as psql sends them.
const COPY_CHUNK_LEN: usize = 8192;
/// What is read at once. Ten thousand idle sessions hold as many of these.
const READ_LEN: usize = 32 * 1024;
/// What is written at once of a COPY.
const COPY_WRITE_LEN: usize = 65536;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [mode, address, user, password, database, rest @ ..] = words.as_slice() else {
        panic!("connect_load connect|burst|idle|fetch|send ADDRESS USER PASSWORD DATABASE …");
    };
    let target = Target {
        address: Address::parse(address),
        user,
        password,
        database,
    };
    let seconds = |text: &str| Duration::from_secs_f64(text.parse().unwrap());
    match (*mode, rest) {
        ("connect", [clients, time]) => tell(&connect(&target, clients.parse().unwrap(), seconds(time))),
        ("burst", [clients, sql]) => tell(&burst(&target, clients.parse().unwrap(), sql)),
        ("idle", [counts]) => idle(&target, counts.split(',').map(|count| count.parse().unwrap())),
        ("fetch", [time, sql]) => tell(&again(&target, seconds(time), |session| session.query(sql))),
        ("send", [time, sql, bytes]) => {
            let bytes = bytes.parse().unwrap();
            tell(&again(&target, seconds(time), |session| session.copy_in(sql, bytes)));
        }
        _ => panic!("unknown mode or missing arguments: {mode} {rest:?}"),
    }
}

struct Target<'a> {
    address: Address,
    user: &'a str,
    password: &'a str,
    database: &'a str,
}

enum Address {
    Tcp(u16),
    Tls(u16, Arc<rustls::ClientConfig>),
    Unix(String),
}

/// One thing that was done: when it ended, how long it took, and its bytes.
struct Operation {
    ended: SystemTime,
    took: Duration,
    bytes: u64,
}

impl Operation {
    fn since(began: Instant, bytes: u64) -> Self {
        Self {
            ended: SystemTime::now(),
            took: began.elapsed(),
            bytes,
        }
    }
}

fn tell(operations: &[Operation]) {
    let mut out = BufWriter::new(std::io::stdout().lock());
    for Operation { ended, took, bytes } in operations {
        let ended = ended.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros();
        writeln!(out, "{ended} {} {bytes}", took.as_micros()).unwrap();
    }
    out.flush().unwrap();
}

fn connect(target: &Target<'_>, clients: usize, time: Duration) -> Vec<Operation> {
    let keys = Keys::default();
    // The keys are derived before the first that counts.
    Session::log_in(target, &keys).terminate();
    let end = Instant::now() + time;
    in_threads(clients, || {
        let mut operations = Vec::new();
        while Instant::now() < end {
            let began = Instant::now();
            let mut session = Session::log_in(target, &keys);
            let bytes = session.query("SELECT 1");
            session.terminate();
            operations.push(Operation::since(began, bytes));
        }
        operations
    })
}

fn burst(target: &Target<'_>, clients: usize, sql: &str) -> Vec<Operation> {
    let (together, keys) = (Barrier::new(clients), Keys::default());
    in_threads(clients, || {
        together.wait();
        let began = Instant::now();
        let mut session = Session::log_in(target, &keys);
        let operation = Operation::since(began, session.query(sql));
        session.terminate();
        vec![operation]
    })
}

fn in_threads(count: usize, run: impl Fn() -> Vec<Operation> + Sync) -> Vec<Operation> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(&run)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

fn again(target: &Target<'_>, time: Duration, run: impl Fn(&mut Session) -> u64) -> Vec<Operation> {
    let mut session = Session::log_in(target, &Keys::default());
    let (end, mut operations) = (Instant::now() + time, Vec::new());
    while operations.is_empty() || Instant::now() < end {
        let began = Instant::now();
        let bytes = run(&mut session);
        operations.push(Operation::since(began, bytes));
    }
    session.terminate();
    operations
}

/// Prints `ready` whenever so many sessions are there, and goes on when it is given a line.
fn idle(target: &Target<'_>, counts: impl Iterator<Item = usize>) {
    let (keys, mut sessions) = (Keys::default(), Vec::new());
    let mut orders = std::io::stdin().lock();
    for count in counts {
        while sessions.len() < count {
            let mut session = Session::log_in(target, &keys);
            session.query("SELECT 1");
            sessions.push(session);
        }
        println!("ready");
        orders.read_line(&mut String::new()).unwrap();
    }
}

trait Transport: Read + Write + Send {}

impl<T: Read + Write + Send> Transport for T {}

impl Address {
    fn parse(text: &str) -> Self {
        match text.split_once(':') {
            Some(("tcp", port)) => Self::Tcp(port.parse().unwrap()),
            Some(("tls", port)) => Self::Tls(port.parse().unwrap(), Arc::new(tls_config())),
            Some(("unix", path)) => Self::Unix(path.to_owned()),
            _ => panic!("not an address: {text}"),
        }
    }

    fn connect(&self) -> Box<dyn Transport> {
        match self {
            Self::Tcp(port) => Box::new(tcp(*port)),
            Self::Tls(port, config) => {
                let mut stream = tcp(*port);
                let mut request = BytesMut::new();
                compose::ssl_request(&mut request);
                stream.write_all(&request).unwrap();
                let mut answer = [0];
                stream.read_exact(&mut answer).unwrap();
                assert_eq!(answer, *b"S", "TLS was refused");
                let name = ServerName::try_from("localhost").unwrap();
                let connection = rustls::ClientConnection::new(Arc::clone(config), name).unwrap();
                Box::new(rustls::StreamOwned::new(connection, stream))
            }
            Self::Unix(path) => {
                let stream = UnixStream::connect(path).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                Box::new(stream)
            }
        }
    }
}

fn tcp(port: u16) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// As libpq with `sslmode=require`: any certificate, and no session is resumed.
fn tls_config() -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate))
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    config
}

#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

struct Session {
    stream: BufReader<Box<dyn Transport>>,
    out: BytesMut,
}

impl Session {
    fn log_in(target: &Target<'_>, keys: &Keys) -> Self {
        let mut session = Self {
            stream: BufReader::with_capacity(READ_LEN, target.address.connect()),
            out: BytesMut::new(),
        };
        let parameters = [("user", target.user), ("database", target.database)];
        compose::startup_message(&mut session.out, PROTOCOL_3_0, parameters);
        session.flush();
        let exchange = Exchange::new();
        loop {
            let (tag, body) = session.message();
            match (tag, body.split_at_checked(4)) {
                (b'R', Some(([0, 0, 0, 10], _))) => {
                    compose::sasl_initial_response(&mut session.out, "SCRAM-SHA-256", exchange.first().as_bytes());
                    session.flush();
                }
                (b'R', Some(([0, 0, 0, 11], challenge))) => {
                    let challenge = std::str::from_utf8(challenge).unwrap();
                    let answer = exchange.last(challenge, target.password, keys);
                    compose::sasl_response(&mut session.out, answer.as_bytes());
                    session.flush();
                }
                (b'E', _) => panic!("login refused: {}", String::from_utf8_lossy(&body)),
                (b'Z', _) => return session,
                _ => {}
            }
        }
    }

    /// Sends a Query and reads up to ReadyForQuery; the bytes read.
    fn query(&mut self, sql: &str) -> u64 {
        compose::query(&mut self.out, sql.as_bytes());
        self.flush();
        self.read_up_to(b'Z')
    }

    /// Runs a COPY FROM STDIN with rows of this many bytes in all; the bytes of the rows.
    fn copy_in(&mut self, sql: &str, bytes: usize) -> u64 {
        compose::query(&mut self.out, sql.as_bytes());
        self.flush();
        self.read_up_to(b'G');
        let row = [&[b'x'; 1023][..], b"\n"].concat();
        let chunk = row.repeat(COPY_CHUNK_LEN / row.len());
        let mut sent = 0;
        while sent < bytes {
            while self.out.len() < COPY_WRITE_LEN && sent < bytes {
                compose::frame(&mut self.out, b'd', &[&chunk]);
                sent += chunk.len();
            }
            self.flush();
        }
        compose::frame(&mut self.out, b'c', &[]);
        self.flush();
        self.read_up_to(b'Z');
        u64::try_from(sent).unwrap()
    }

    fn read_up_to(&mut self, last: u8) -> u64 {
        let mut total = 0;
        loop {
            let (tag, len) = self.header();
            total += len + 5;
            if tag == b'E' {
                let mut body = Vec::new();
                self.stream.by_ref().take(len).read_to_end(&mut body).unwrap();
                panic!("refused: {}", String::from_utf8_lossy(&body));
            }
            self.skip(len);
            if tag == last {
                return total;
            }
        }
    }

    fn skip(&mut self, mut len: u64) {
        while len > 0 {
            let there = self.stream.fill_buf().unwrap().len();
            assert!(there > 0, "the connection ended inside a message");
            let step = there.min(usize::try_from(len).unwrap_or(usize::MAX));
            self.stream.consume(step);
            len -= step as u64;
        }
    }

    fn terminate(mut self) {
        compose::bare_frontend(&mut self.out, FrontendTag::Terminate);
        self.flush();
    }

    fn flush(&mut self) {
        let stream = self.stream.get_mut();
        stream.write_all(&self.out).unwrap();
        stream.flush().unwrap();
        self.out.clear();
    }

    fn header(&mut self) -> (u8, u64) {
        let mut header = [0; 5];
        self.stream.read_exact(&mut header).unwrap();
        let [tag, length @ ..] = header;
        (tag, u64::from(u32::from_be_bytes(length)) - 4)
    }

    fn message(&mut self) -> (u8, Vec<u8>) {
        let (tag, len) = self.header();
        let mut body = vec![0; usize::try_from(len).unwrap()];
        self.stream.read_exact(&mut body).unwrap();
        (tag, body)
    }
}

/// The salted password for each salt and iteration count that was asked for: derived once, as caching drivers do.
#[derive(Default)]
struct Keys(Mutex<HashMap<(String, u32), Vec<u8>>>);

impl Keys {
    /// Whoever else needs it meanwhile waits for it.
    fn salted_password(&self, password: &str, salt: &str, iterations: u32) -> Vec<u8> {
        let mut known = self.0.lock().unwrap();
        let derive = || salted_password(password.as_bytes(), &BASE64.decode(salt).unwrap(), iterations);
        known
            .entry((salt.to_owned(), iterations))
            .or_insert_with(derive)
            .clone()
    }
}

/// One SCRAM-SHA-256 exchange (RFC 5802). The server's signature is not checked: nothing secret follows.
struct Exchange {
    first_bare: String,
}

impl Exchange {
    fn new() -> Self {
        let mut nonce = [0; 18];
        getrandom::fill(&mut nonce).unwrap();
        Self {
            first_bare: format!("n=,r={}", BASE64.encode(nonce)),
        }
    }

    fn first(&self) -> String {
        format!("n,,{}", self.first_bare)
    }

    fn last(&self, challenge: &str, password: &str, keys: &Keys) -> String {
        let attribute = |name: &str| challenge.split(',').find_map(|part| part.strip_prefix(name)).unwrap();
        let (salt, iterations) = (attribute("s="), attribute("i=").parse().unwrap());
        let salted = keys.salted_password(password, salt, iterations);
        let without_proof = format!("c=biws,r={}", attribute("r="));
        let signed = format!("{},{challenge},{without_proof}", self.first_bare);
        let client_key = hmac(&salted, b"Client Key");
        let signature = hmac(&Sha256::digest(&client_key), signed.as_bytes());
        let proof: Vec<u8> = client_key.iter().zip(signature).map(|(key, byte)| key ^ byte).collect();
        format!("{without_proof},p={}", BASE64.encode(proof))
    }
}

fn hmac(key: &[u8], data: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(data);
    mac.finalize().into_bytes().to_vec()
}

fn salted_password(password: &[u8], salt: &[u8], iterations: u32) -> Vec<u8> {
    let mut block = hmac(password, &[salt, &1u32.to_be_bytes()].concat());
    let mut sum = block.clone();
    for _ in 1..iterations {
        block = hmac(password, &block);
        sum.iter_mut().zip(&block).for_each(|(sum, byte)| *sum ^= byte);
    }
    sum
}
