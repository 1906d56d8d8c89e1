//! Load for `benches/pgbouncer` that psql and pgbench can't make: logins by a client that derives its SCRAM keys once
//! (libpq derives them at each login, and that hides the pooler), thousands of idle sessions, and results of any size.
//!
//! ```text
//! connect_load connect PORT USER PASSWORD DATABASE CLIENTS SECONDS   connect, SELECT 1, close, again and again
//! connect_load idle    PORT USER PASSWORD DATABASE COUNT             log in, SELECT 1 once, stay until stdin ends
//! connect_load drain   PORT USER PASSWORD DATABASE SQL               read a whole result, keep nothing of it
//! ```

#![allow(clippy::unwrap_used, reason = "a load generator that can't go on stops")]

use std::collections::HashMap;
use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::BytesMut;
use hmac::{Hmac, Mac};
use pgsidecar::wire::{FrontendTag, PROTOCOL_3_0, compose};
use sha2::{Digest, Sha256};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [mode, port, user, password, database, rest @ ..] = words.as_slice() else {
        panic!("connect_load connect|idle|drain PORT USER PASSWORD DATABASE …");
    };
    let target = Target {
        port: port.parse().unwrap(),
        user,
        password,
        database,
    };
    match (*mode, rest) {
        ("connect", [clients, seconds]) => connect(target, clients.parse().unwrap(), seconds.parse().unwrap()),
        ("idle", [count]) => idle(target, count.parse().unwrap()),
        ("drain", [sql]) => drain(target, sql),
        _ => panic!("unknown mode or missing arguments: {mode} {rest:?}"),
    }
}

#[derive(Clone, Copy)]
struct Target<'a> {
    port: u16,
    user: &'a str,
    password: &'a str,
    database: &'a str,
}

/// Prints how many times all clients together came and went, and in how many seconds.
fn connect(target: Target<'_>, clients: usize, seconds: f64) {
    let began = Instant::now();
    let end = began + Duration::from_secs_f64(seconds);
    let total: u64 = std::thread::scope(|scope| {
        let run = || {
            let (mut keys, mut count) = (Keys::default(), 0u64);
            while Instant::now() < end {
                let mut session = Session::log_in(target, &mut keys);
                session.query("SELECT 1");
                session.terminate();
                count += 1;
            }
            count
        };
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(run)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    println!("{total} {:.3}", began.elapsed().as_secs_f64());
}

/// Prints `ready` once all sessions are there.
fn idle(target: Target<'_>, count: usize) {
    let mut keys = Keys::default();
    let sessions: Vec<Session> = (0..count)
        .map(|_| {
            let mut session = Session::log_in(target, &mut keys);
            session.query("SELECT 1");
            session
        })
        .collect();
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    drop(sessions);
}

/// Prints how many bytes the result had.
fn drain(target: Target<'_>, sql: &str) {
    let mut session = Session::log_in(target, &mut Keys::default());
    println!("{}", session.query(sql));
    session.terminate();
}

struct Session {
    stream: BufReader<TcpStream>,
    out: BytesMut,
}

impl Session {
    fn log_in(target: Target<'_>, keys: &mut Keys) -> Self {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, target.port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut session = Self {
            stream: BufReader::new(stream),
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
        let mut total = 0;
        loop {
            let (tag, len) = self.header();
            total += len + 5;
            if tag == b'E' {
                let mut body = Vec::new();
                self.stream.by_ref().take(len).read_to_end(&mut body).unwrap();
                panic!("{sql}: {}", String::from_utf8_lossy(&body));
            }
            std::io::copy(&mut self.stream.by_ref().take(len), &mut std::io::sink()).unwrap();
            if tag == b'Z' {
                return total;
            }
        }
    }

    fn terminate(mut self) {
        compose::bare_frontend(&mut self.out, FrontendTag::Terminate);
        self.flush();
    }

    fn flush(&mut self) {
        self.stream.get_mut().write_all(&self.out).unwrap();
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
struct Keys(HashMap<(String, u32), Vec<u8>>);

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

    fn last(&self, challenge: &str, password: &str, keys: &mut Keys) -> String {
        let attribute = |name: &str| challenge.split(',').find_map(|part| part.strip_prefix(name)).unwrap();
        let (salt, iterations) = (attribute("s="), attribute("i=").parse().unwrap());
        let salted = keys.0.entry((salt.to_owned(), iterations)).or_insert_with(|| {
            let salt = BASE64.decode(salt).unwrap();
            salted_password(password.as_bytes(), &salt, iterations)
        });
        let without_proof = format!("c=biws,r={}", attribute("r="));
        let signed = format!("{},{challenge},{without_proof}", self.first_bare);
        let client_key = hmac(salted, b"Client Key");
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
