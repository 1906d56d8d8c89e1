//! A network between pgsidecar and PostgreSQL that takes its time, as one between two zones of a cloud does.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Bytes on their way in one direction, at most in so many reads.
const IN_FLIGHT_MAX: usize = 1024;

/// A port on 127.0.0.1 behind which a server is farther away than it is. Dropping it cuts every connection.
#[derive(Debug)]
pub struct SlowLink {
    /// Where to connect to.
    pub port: u16,
    /// One way, in microseconds.
    delay: Arc<AtomicU64>,
    /// Times that something was sent to the server.
    sent: Arc<AtomicU64>,
    _accepting: JoinSet<()>,
}

impl SlowLink {
    /// A link to a port on 127.0.0.1 that takes no time yet.
    pub async fn to(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (delay, sent) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut accepting = JoinSet::new();
        let of_all = (Arc::clone(&delay), Arc::clone(&sent));
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let (delay, sent) = (Arc::clone(&of_all.0), Arc::clone(&of_all.1));
                connections.spawn(async move {
                    let far = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await?;
                    near.set_nodelay(true)?;
                    far.set_nodelay(true)?;
                    let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
                    let back = AtomicU64::new(0);
                    let there = carry(from_near, to_far, &delay, &sent);
                    let both = tokio::join!(there, carry(from_far, to_near, &delay, &back));
                    both.0.and(both.1)
                });
            }
        });
        Self {
            port,
            delay,
            sent,
            _accepting: accepting,
        }
    }

    /// How often something was sent to the server so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// From now on a message and its reply take this much longer together, half of it each.
    pub fn add_to_round_trip(&self, added: Duration) {
        let half = u64::try_from(added.as_micros() / 2).unwrap();
        self.delay.store(half, Ordering::Relaxed);
    }
}

/// Everything arrives as much later as the link takes, however much is on its way: it is long, not narrow.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    delay: &AtomicU64,
    sent: &AtomicU64,
) -> std::io::Result<()> {
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT_MAX);
    let reading = async {
        loop {
            let mut bytes = Vec::with_capacity(16 * 1024);
            let count = from.read_buf(&mut bytes).await.unwrap_or_default();
            sent.fetch_add(1, Ordering::Relaxed);
            let due = Instant::now() + Duration::from_micros(delay.load(Ordering::Relaxed));
            if count == 0 || sender.send((due, bytes)).await.is_err() {
                break;
            }
        }
        drop(sender);
    };
    let writing = async {
        while let Some((due, bytes)) = receiver.recv().await {
            tokio::time::sleep_until(due).await;
            to.write_all(&bytes).await?;
        }
        to.shutdown().await
    };
    tokio::join!(reading, writing).1
}
