//! A long way to a database, for `tests/django`: forwards TCP from one loopback port to another, each byte half a round trip
//! late. It costs next to nothing of the processors that it shares with what is measured.
//!
//! ```text
//! far_link LISTEN_PORT DESTINATION_PORT ROUND_TRIP_MS COUNTS_PORT
//! ```
//!
//! The first byte of a connection waits a whole round trip more: what TCP's own handshake would have taken. Whoever connects
//! to COUNTS_PORT is told how many connections were made so far. Ends at the end of its standard input, which whoever starts
//! it holds open and loses when it ends itself. Tokio's own timers would add one or two milliseconds to each way.

#![allow(clippy::unwrap_used, reason = "a link that can't be set up stops")]

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;
use tokio::time::Instant;

/// What is read at once.
const PIECE_LEN: usize = 1 << 14;
/// Pieces on their way in one direction before the sender has to wait: at most 4 MiB.
const PIECES_IN_FLIGHT_MAX: usize = 256;
const BACKLOG: u32 = 1000;

#[derive(Clone, Copy)]
struct Link {
    listen_port: u16,
    destination_port: u16,
    round_trip: Duration,
    counts_port: u16,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen_port, destination_port, round_trip_ms, counts_port] = arguments.as_slice() else {
        panic!("far_link LISTEN_PORT DESTINATION_PORT ROUND_TRIP_MS COUNTS_PORT");
    };
    let link = Link {
        listen_port: listen_port.parse().unwrap(),
        destination_port: destination_port.parse().unwrap(),
        round_trip: Duration::from_millis(round_trip_ms.parse().unwrap()),
        counts_port: counts_port.parse().unwrap(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let over = end_of_input();
    LocalSet::new().block_on(&runtime, async {
        tokio::select! {
            ended = link.serve() => ended.unwrap(),
            _ = over => {}
        }
    });
}

/// Dropped when standard input ends.
fn end_of_input() -> oneshot::Receiver<()> {
    let (held, over) = oneshot::channel();
    std::thread::spawn(move || {
        let _held = held;
        io::copy(&mut io::stdin().lock(), &mut io::sink())
    });
    over
}

impl Link {
    async fn serve(self) -> io::Result<()> {
        let (connections, counts) = (listen(self.listen_port)?, listen(self.counts_port)?);
        let so_far = Cell::new(0);
        tokio::try_join!(self.accept(connections, &so_far), tell(counts, &so_far)).map(|((), ())| ())
    }

    async fn accept(self, connections: TcpListener, so_far: &Cell<u64>) -> io::Result<()> {
        loop {
            let (near, _) = connections.accept().await?;
            so_far.set(so_far.get() + 1);
            tokio::task::spawn_local(self.carry(near, Instant::now()));
        }
    }

    /// Until both directions have ended, or one end can't be written to any more.
    async fn carry(self, mut near: TcpStream, accepted: Instant) -> io::Result<()> {
        let mut far = TcpStream::connect((Ipv4Addr::LOCALHOST, self.destination_port)).await?;
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        let ((from_near, to_near), (from_far, to_far)) = (near.split(), far.split());
        let delay = self.round_trip / 2;
        let there = forward(from_near, to_far, delay, accepted + self.round_trip);
        let back = forward(from_far, to_near, delay, accepted);
        tokio::try_join!(there, back).map(|((), ())| ())
    }
}

async fn tell(counts: TcpListener, so_far: &Cell<u64>) -> io::Result<()> {
    loop {
        let (mut asking, _) = counts.accept().await?;
        // Who asks and goes away is not an error of the link.
        let _ = asking.write_all(format!("{}\n", so_far.get()).as_bytes()).await;
    }
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv4Addr::LOCALHOST, port).into())?;
    socket.listen(BACKLOG)
}

/// Everything that is read, its end included, is written `delay` later, and not before the connection is up.
async fn forward(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    delay: Duration,
    not_before: Instant,
) -> io::Result<()> {
    let (on_the_way, mut arriving) = mpsc::channel::<(Instant, Box<[u8]>)>(PIECES_IN_FLIGHT_MAX);
    let receive = async move {
        let mut buffer = [0; PIECE_LEN];
        loop {
            // A connection that breaks ends late, too.
            let len = from.read(&mut buffer).await.unwrap_or(0);
            let due = Instant::now().max(not_before) + delay;
            let piece = buffer.get(..len).unwrap_or_default();
            if on_the_way.send((due, piece.into())).await.is_err() || len == 0 {
                return Ok(());
            }
        }
    };
    let mut timer = Timer::new()?;
    let deliver = async move {
        while let Some((due, piece)) = arriving.recv().await {
            timer.sleep_until(due).await?;
            if piece.is_empty() {
                return to.shutdown().await;
            }
            to.write_all(&piece).await?;
        }
        Ok(())
    };
    tokio::try_join!(receive, deliver).map(|((), ())| ())
}

/// The kernel's, to the microsecond.
struct Timer {
    timer: TimerFd,
    /// The same timer, which is read like a pipe: eight bytes when it expires.
    expirations: pipe::Receiver,
}

impl Timer {
    fn new() -> io::Result<Self> {
        let timer = TimerFd::new(
            ClockId::CLOCK_MONOTONIC,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        )?;
        let expirations = pipe::Receiver::from_file_unchecked(File::from(timer.as_fd().try_clone_to_owned()?))?;
        Ok(Self { timer, expirations })
    }

    async fn sleep_until(&mut self, due: Instant) -> io::Result<()> {
        let wait = due.saturating_duration_since(Instant::now());
        // Zero would disarm it.
        if !wait.is_zero() {
            let expiration = Expiration::OneShot(TimeSpec::from_duration(wait));
            self.timer.set(expiration, TimerSetTimeFlags::empty())?;
            self.expirations.read_exact(&mut [0; 8]).await?;
        }
        Ok(())
    }
}
