//! A PostgreSQL that does what the test says: stalls, lies, dies in the middle. It records all that it was sent.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use pgsidecar::wire::backend_message::TransactionStatus;
use pgsidecar::wire::startup_packet::{CancelKey, StartupMessage, StartupPacket};
use pgsidecar::wire::{Report, SqlState, compose};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::raw_client::Message;
use super::sidecar::Builder;
use super::{DEADLINE, eventually};

/// The name of the database that fakes serve; the role is `app`.
pub const DATABASE: &str = "fake";

/// A listening fake. Dropping it closes all of its connections.
#[derive(Debug)]
pub struct FakeBackend {
    /// TCP on 127.0.0.1.
    pub port: u16,
    state: Arc<State>,
    accepting: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    sessions: Mutex<Vec<Recorded>>,
    cancels: Mutex<Vec<CancelKey>>,
    /// While true, connections that brought a CancelRequest are kept open.
    holding_cancels: watch::Sender<bool>,
}

/// What one session was sent.
#[derive(Debug, Clone, Default)]
pub struct Recorded {
    /// The StartupMessage's parameters.
    pub parameters: Vec<(String, String)>,
    /// Every message behind it, in order.
    pub messages: Vec<Message>,
    /// The other side hung up, or the script ended.
    pub ended: bool,
}

impl Recorded {
    /// The type bytes of the messages: `PBES`.
    pub fn tags(&self) -> String {
        self.messages.iter().map(|message| char::from(message.tag)).collect()
    }
}

/// A script ends with an error where the other side hung up before it wanted to.
pub type Outcome = std::io::Result<()>;

impl FakeBackend {
    /// Listens, and runs `script` on every connection that sends a StartupMessage. TLS and GSS are declined, and
    /// CancelRequests recorded, without it.
    pub async fn start<S, F>(script: S) -> Self
    where
        S: Fn(FakeSession) -> F + Send + Sync + 'static,
        F: Future<Output = Outcome> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (holding_cancels, _) = watch::channel(false);
        let state = Arc::new(State {
            sessions: Mutex::default(),
            cancels: Mutex::default(),
            holding_cancels,
        });
        let (shared, script) = (Arc::clone(&state), Arc::new(script));
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (state, script) = (Arc::clone(&shared), Arc::clone(&script));
                connections.spawn(async move {
                    if let Ok(Some(session)) = greet(stream, state).await {
                        let (state, number) = (Arc::clone(&session.state), session.number);
                        let _ = script(session).await;
                        state.record(number, |recorded| recorded.ended = true);
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { port, state, accepting }
    }

    /// One that logs everybody in and answers every request as [`FakeSession::serve`] does.
    pub async fn obliging() -> Self {
        Self::start(|mut session| async move {
            session.login().await?;
            session.serve().await
        })
        .await
    }

    /// The URL that pgsidecar gets.
    pub fn url(&self) -> String {
        format!(
            "postgres://app:app_password@127.0.0.1:{}/{DATABASE}?sslmode=disable",
            self.port
        )
    }

    /// A sidecar in front, which opens no backend before it needs one.
    pub fn sidecar(&self) -> Builder {
        Builder::default().upstream(self.url()).set("POOL__MIN_IDLE", "0")
    }

    /// What each session was sent so far, in the order in which they came.
    pub fn sessions(&self) -> Vec<Recorded> {
        self.state
            .sessions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until this many sessions have come.
    pub async fn wait_sessions(&self, count: usize) -> Vec<Recorded> {
        let come = async || Some(self.sessions()).filter(|sessions| sessions.len() >= count);
        eventually(&format!("{count} sessions"), come).await
    }

    /// Waits until a session has been sent these messages, wherever in its stream: `wait_tags(0, "PBES")`.
    pub async fn wait_tags(&self, session: usize, tags: &str) {
        let sent = async || self.sessions().get(session)?.tags().contains(tags).then_some(());
        eventually(&format!("{tags} in session {session} of {:?}", self.tags()), sent).await;
    }

    /// The tags that each session was sent.
    pub fn tags(&self) -> Vec<String> {
        self.sessions().iter().map(Recorded::tags).collect()
    }

    /// The keys of the CancelRequests so far.
    pub fn cancels(&self) -> Vec<CancelKey> {
        self.state
            .cancels
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until this many CancelRequests have come.
    pub async fn wait_cancels(&self, count: usize) -> Vec<CancelKey> {
        eventually(&format!("{count} cancels"), async || {
            Some(self.cancels()).filter(|keys| keys.len() >= count)
        })
        .await
    }

    /// Keeps the connections of CancelRequests open (`true`), as a PostgreSQL that is slow to fork does, or lets go.
    pub fn hold_cancels(&self, hold: bool) {
        self.state.holding_cancels.send_replace(hold);
    }
}

impl Drop for FakeBackend {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl State {
    fn record(&self, number: usize, change: impl FnOnce(&mut Recorded)) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(recorded) = sessions.get_mut(number) {
            change(recorded);
        }
    }
}

/// Reads first packets up to a StartupMessage; `None` for a CancelRequest.
async fn greet(mut stream: TcpStream, state: Arc<State>) -> std::io::Result<Option<FakeSession>> {
    stream.set_nodelay(true)?;
    loop {
        let mut packet = vec![0; 4];
        stream.read_exact(&mut packet).await?;
        let len = StartupPacket::frame_len(&packet)
            .ok()
            .flatten()
            .ok_or(std::io::ErrorKind::InvalidData)?;
        packet.resize(len, 0);
        stream.read_exact(&mut packet[4..]).await?;
        match StartupPacket::parse(&packet).map_err(std::io::Error::other)? {
            StartupPacket::SslRequest | StartupPacket::GssEncRequest => stream.write_all(b"N").await?,
            StartupPacket::CancelRequest(key) => {
                let mut holding = state.holding_cancels.subscribe();
                state.cancels.lock().unwrap_or_else(PoisonError::into_inner).push(key);
                let _ = holding.wait_for(|hold| !hold).await;
                return Ok(None);
            }
            StartupPacket::StartupMessage(startup) => return Ok(Some(FakeSession::new(stream, state, startup))),
        }
    }
}

/// One connection, seen from PostgreSQL's side.
#[derive(Debug)]
pub struct FakeSession {
    stream: TcpStream,
    state: Arc<State>,
    received: BytesMut,
    /// 0 for the first session of this fake.
    pub number: usize,
    /// What it asked for.
    pub startup: StartupMessage,
}

impl FakeSession {
    fn new(stream: TcpStream, state: Arc<State>, startup: StartupMessage) -> Self {
        let mut sessions = state.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let number = sessions.len();
        sessions.push(Recorded {
            parameters: startup.parameters.clone(),
            ..Recorded::default()
        });
        drop(sessions);
        Self {
            stream,
            state,
            received: BytesMut::new(),
            number,
            startup,
        }
    }

    /// The key that [`Self::login`] gives to this session.
    pub fn cancel_key(&self) -> CancelKey {
        let process_id = 1000 + u32::try_from(self.number).unwrap_or(0);
        CancelKey {
            process_id,
            secret: process_id.to_be_bytes().into(),
        }
    }

    /// Lets the client in without a password and greets it as PostgreSQL 15 does.
    pub async fn login(&mut self) -> Outcome {
        self.login_with::<&str>(&[]).await
    }

    /// The same with other values of some parameters.
    pub async fn login_with<V: AsRef<[u8]>>(&mut self, other: &[(&str, V)]) -> Outcome {
        let mut greeting = BytesMut::new();
        compose::frame(&mut greeting, b'R', &[&0u32.to_be_bytes()]);
        for (name, value) in PARAMETERS {
            let value = other
                .iter()
                .find(|(known, _)| *known == name)
                .map_or(value.as_bytes(), |(_, value)| value.as_ref());
            compose::parameter_status(&mut greeting, name, value);
        }
        compose::backend_key_data(&mut greeting, &self.cancel_key());
        compose::ready_for_query(&mut greeting, TransactionStatus::Idle);
        self.send(&greeting).await
    }

    /// Refuses the login.
    pub async fn refuse(&mut self, sqlstate: SqlState, message: &'static str) -> Outcome {
        self.report(&Report::fatal(sqlstate, message)).await
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) -> Outcome {
        self.stream.write_all(bytes).await
    }

    /// Sends an ErrorResponse or NoticeResponse.
    pub async fn report(&mut self, report: &Report) -> Outcome {
        let mut out = BytesMut::new();
        compose::report(&mut out, report);
        self.send(&out).await
    }

    /// Sends a CommandComplete and a ReadyForQuery.
    pub async fn complete(&mut self, command: &str, status: TransactionStatus) -> Outcome {
        let mut out = BytesMut::new();
        compose::frame(&mut out, b'C', &[command.as_bytes(), b"\0"]);
        compose::ready_for_query(&mut out, status);
        self.send(&out).await
    }

    /// Reads one message; an error where the other side hung up.
    pub async fn message(&mut self) -> std::io::Result<Message> {
        loop {
            if let Some(message) = Message::cut(&mut self.received).map_err(std::io::Error::other)? {
                self.state
                    .record(self.number, |recorded| recorded.messages.push(message.clone()));
                return Ok(message);
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads messages up to and including the first with this tag.
    pub async fn until(&mut self, tag: u8) -> std::io::Result<Message> {
        loop {
            let message = self.message().await?;
            if message.tag == tag {
                return Ok(message);
            }
        }
    }

    /// Reads up to a Query whose text contains `part`; other Querys (a prelude's, a reset's) are answered on the way.
    pub async fn until_query(&mut self, part: &str) -> std::io::Result<Message> {
        loop {
            let message = self.until(b'Q').await?;
            if String::from_utf8_lossy(&message.body).contains(part) {
                return Ok(message);
            }
            self.complete("SET", TransactionStatus::Idle).await?;
        }
    }

    /// Answers every request plainly until the client leaves: each Query with one row `ok`, BEGIN and COMMIT with their
    /// status, each extended message with its completion, Sync with ReadyForQuery.
    pub async fn serve(&mut self) -> Outcome {
        let mut status = TransactionStatus::Idle;
        loop {
            let message = self.message().await?;
            let mut out = BytesMut::new();
            match message.tag {
                b'Q' => {
                    let sql = String::from_utf8_lossy(&message.body).to_ascii_uppercase();
                    status = answer_query(&mut out, &sql, status);
                    compose::ready_for_query(&mut out, status);
                }
                b'P' => compose::frame(&mut out, b'1', &[]),
                b'B' => compose::frame(&mut out, b'2', &[]),
                b'C' => compose::frame(&mut out, b'3', &[]),
                b'D' => compose::frame(&mut out, b'n', &[]),
                b'E' => row_and_completion(&mut out),
                b'S' => compose::ready_for_query(&mut out, status),
                b'X' => return Ok(()),
                _ => {}
            }
            self.send(&out).await?;
        }
    }

    /// Does nothing more, with the connection open, until the other side hangs up.
    pub async fn stall(&mut self) -> Outcome {
        loop {
            self.message().await?;
        }
    }

    /// Neither reads nor writes for as long as the fake lives.
    pub async fn freeze(&mut self) -> Outcome {
        std::future::pending().await
    }

    /// Waits for `duration` before the script goes on: a slow server, not a guess of when something has happened.
    pub async fn delay(&mut self, duration: Duration) {
        assert!(duration <= DEADLINE, "a test would wait longer than it may");
        let _ = tokio::time::timeout(duration, std::future::pending::<()>()).await;
    }

    /// Resets the connection: the other side reads ECONNRESET.
    pub fn reset(self) -> Outcome {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))
    }
}

const PARAMETERS: [(&str, &str); 13] = [
    ("application_name", ""),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("default_transaction_read_only", "off"),
    ("in_hot_standby", "off"),
    ("integer_datetimes", "on"),
    ("IntervalStyle", "postgres"),
    ("is_superuser", "off"),
    ("server_encoding", "UTF8"),
    ("server_version", "15.0 (fake)"),
    ("session_authorization", "app"),
    ("standard_conforming_strings", "on"),
    ("TimeZone", "UTC"),
];

fn answer_query(out: &mut BytesMut, sql: &str, status: TransactionStatus) -> TransactionStatus {
    let (command, status) = match sql.split([' ', ';', '\0']).next().unwrap_or("") {
        "BEGIN" => ("BEGIN", TransactionStatus::InTransaction),
        "COMMIT" => ("COMMIT", TransactionStatus::Idle),
        "ROLLBACK" => ("ROLLBACK", TransactionStatus::Idle),
        "SET" => ("SET", status),
        "DISCARD" => ("DISCARD ALL", status),
        _ => {
            compose::frame(out, b'T', &[ROW_DESCRIPTION]);
            row_and_completion(out);
            return status;
        }
    };
    compose::frame(out, b'C', &[command.as_bytes(), b"\0"]);
    status
}

fn row_and_completion(out: &mut BytesMut) {
    compose::frame(out, b'D', &[b"\0\x01\0\0\0\x02ok"]);
    compose::frame(out, b'C', &[b"SELECT 1\0"]);
}

/// One column `answer` of type text.
const ROW_DESCRIPTION: &[u8] = b"\0\x01answer\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::process::psql;
    use crate::support::raw_client::{RawClient, bind, cancel, execute, parse, sync, together};

    #[tokio::test]
    async fn psql_takes_an_obliging_fake_for_postgresql() {
        let fake = FakeBackend::obliging().await;
        assert_eq!(
            psql(&fake.url(), &["SELECT 1", "BEGIN", "COMMIT"]).await.ok(),
            "ok\nBEGIN\nCOMMIT"
        );
        let sessions = fake.wait_sessions(1).await;
        assert!(sessions[0].tags().starts_with("QQQ"), "{sessions:?}");
    }

    #[tokio::test]
    async fn a_script_may_hang_up_and_cancels_are_recorded() {
        let fake = FakeBackend::start(|mut session| async move {
            session.login().await?;
            session.until(b'S').await?;
            session.report(&Report::fatal(SqlState::ADMIN_SHUTDOWN, "gone")).await
        })
        .await;
        let mut client = RawClient::login(fake.port, "app", "", DATABASE).await;
        client
            .send(&together(&[parse("", "x"), bind("", "", &[]), execute("", 0), sync()]))
            .await;
        assert_eq!(client.until_closed().await[0].sqlstate(), "57P01");
        let key = client.cancel_key.clone().expect("the fake gave one");
        cancel(fake.port, &key).await;
        assert_eq!(fake.wait_cancels(1).await, [key]);
        fake.wait_tags(0, "PBES").await;
    }
}
