//! A server that speaks just enough of the protocol, and does what a test says.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

use crate::pool::lock;
use crate::wire::backend_message::TransactionStatus;
use crate::wire::startup_packet::{CancelKey, StartupPacket};
use crate::wire::{BackendTag, HEADER_LEN, Header, Report, compose};

/// One server; dropped, it goes on until the test's runtime ends.
#[derive(Clone)]
pub(super) struct FakeServer(Arc<Shared>);

struct Shared {
    port: u16,
    script: Mutex<Script>,
    /// Counts the orders to say something on every open session.
    broadcast: watch::Sender<Vec<u8>>,
    sessions: AtomicUsize,
    logins: AtomicUsize,
    cancels: Mutex<Vec<CancelKey>>,
    cancelled: Notify,
    let_cancels_end: Notify,
    queries: Mutex<Vec<String>>,
}

#[derive(Default)]
struct Script {
    refusal: Option<Report>,
    login_delay: Duration,
    hold_cancels: bool,
}

impl FakeServer {
    pub(super) async fn start() -> Self {
        Self::start_at("127.0.0.1:0").await
    }

    pub(super) async fn start_at(address: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let server = Self(Arc::new(Shared {
            port: listener.local_addr().unwrap().port(),
            script: Mutex::default(),
            broadcast: watch::channel(Vec::new()).0,
            sessions: AtomicUsize::new(0),
            logins: AtomicUsize::new(0),
            cancels: Mutex::default(),
            cancelled: Notify::new(),
            let_cancels_end: Notify::new(),
            queries: Mutex::default(),
        }));
        let accepting = server.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(accepting.clone().serve(socket));
            }
        });
        server
    }

    pub(super) fn port(&self) -> u16 {
        self.0.port
    }

    /// Refuses logins from now on; `None` lets them in again.
    pub(super) fn refuse(&self, refusal: Option<Report>) {
        lock(&self.0.script).refusal = refusal;
    }

    pub(super) fn delay_logins(&self, delay: Duration) {
        lock(&self.0.script).login_delay = delay;
    }

    /// Keeps the connections of cancels open until [`end_cancels`](Self::end_cancels).
    pub(super) fn hold_cancels(&self) {
        lock(&self.0.script).hold_cancels = true;
    }

    pub(super) fn end_cancels(&self) {
        self.0.let_cancels_end.notify_waiters();
    }

    /// Waits for a cancel to come.
    pub(super) async fn cancel_came(&self) {
        self.0.cancelled.notified().await;
    }

    pub(super) fn cancels(&self) -> usize {
        lock(&self.0.cancels).len()
    }

    /// Sends these bytes on every open session; none close them.
    pub(super) fn say_to_all(&self, bytes: &[u8]) {
        self.0.broadcast.send_replace(bytes.to_vec());
    }

    /// Sessions open now.
    pub(super) fn sessions(&self) -> usize {
        self.0.sessions.load(Ordering::SeqCst)
    }

    /// Logins asked for so far, refused ones included.
    pub(super) fn logins(&self) -> usize {
        self.0.logins.load(Ordering::SeqCst)
    }

    pub(super) fn queries(&self) -> Vec<String> {
        lock(&self.0.queries).clone()
    }

    async fn serve(self, mut socket: TcpStream) {
        socket.set_nodelay(true).unwrap();
        let mut buffer = BytesMut::new();
        let Some(packet) = first_packet(&mut socket, &mut buffer).await else {
            return;
        };
        match packet {
            StartupPacket::CancelRequest(key) => self.cancel(key, socket).await,
            StartupPacket::StartupMessage(_) => self.session(socket, buffer).await,
            StartupPacket::SslRequest | StartupPacket::GssEncRequest => {}
        }
    }

    async fn cancel(self, key: CancelKey, socket: TcpStream) {
        let ended = self.0.let_cancels_end.notified();
        lock(&self.0.cancels).push(key);
        self.0.cancelled.notify_one();
        let held = lock(&self.0.script).hold_cancels;
        if held {
            ended.await;
        }
        drop(socket);
    }

    async fn session(self, mut socket: TcpStream, mut buffer: BytesMut) {
        self.0.logins.fetch_add(1, Ordering::SeqCst);
        let (delay, refusal) = {
            let script = lock(&self.0.script);
            (script.login_delay, script.refusal.clone())
        };
        tokio::time::sleep(delay).await;
        let mut out = BytesMut::new();
        if let Some(report) = refusal {
            compose::report(&mut out, &report);
            let _ = socket.write_all(&out).await;
            return;
        }
        let mut orders = self.0.broadcast.subscribe();
        self.0.sessions.fetch_add(1, Ordering::SeqCst);
        compose::authentication(&mut out, &pgwire::messages::startup::Authentication::Ok);
        compose::parameter_status(&mut out, "server_version", "15.7");
        compose::parameter_status(&mut out, "in_hot_standby", "off");
        compose::backend_key_data(
            &mut out,
            &CancelKey {
                process_id: 4242,
                secret: vec![1, 2, 3, 4].into(),
            },
        );
        compose::ready_for_query(&mut out, TransactionStatus::Idle);
        let _ = socket.write_all(&out).await;
        loop {
            tokio::select! {
                read = socket.read_buf(&mut buffer) => match read {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {
                        if !self.answer(&mut socket, &mut buffer).await {
                            break;
                        }
                    }
                },
                Ok(()) = orders.changed() => {
                    let bytes = orders.borrow_and_update().clone();
                    if bytes.is_empty() || socket.write_all(&bytes).await.is_err() {
                        break;
                    }
                }
            }
        }
        self.0.sessions.fetch_sub(1, Ordering::SeqCst);
    }

    async fn answer(&self, socket: &mut TcpStream, buffer: &mut BytesMut) -> bool {
        let mut out = BytesMut::new();
        while let Ok(Some(header)) = Header::peek(buffer) {
            if buffer.len() < header.frame_len() {
                break;
            }
            let mut frame = buffer.split_to(header.frame_len());
            frame.advance(HEADER_LEN);
            match header.tag {
                b'Q' => self.query(&mut out, &String::from_utf8_lossy(&frame[..frame.len() - 1])),
                b'X' => return false,
                _ => {}
            }
        }
        socket.write_all(&out).await.is_ok()
    }

    fn query(&self, out: &mut BytesMut, sql: &str) {
        lock(&self.0.queries).push(sql.to_owned());
        let status = match sql {
            "BEGIN" => TransactionStatus::InTransaction,
            // Answered by nobody.
            "hang" => return,
            _ => TransactionStatus::Idle,
        };
        compose::frame(out, BackendTag::CommandComplete.byte(), &[sql.as_bytes(), b"\0"]);
        compose::ready_for_query(out, status);
    }
}

async fn first_packet(socket: &mut TcpStream, buffer: &mut BytesMut) -> Option<StartupPacket> {
    loop {
        if let Ok(Some(len)) = StartupPacket::frame_len(buffer)
            && buffer.len() >= len
        {
            return StartupPacket::parse(&buffer.split_to(len)).ok();
        }
        if socket.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}
