//! One connected socket: TCP or unix, plain or TLS.
//!
//! Deliberately not `AsyncRead`: the layers above read into a buffer that they chose, write several slices at once and
//! wait for readiness without owning a buffer, and nothing else can be done with it.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncWrite, Interest, Ready};
use tokio::net::{TcpStream, UnixStream};

use super::idle::{self, IdleProbe, IdleState, ProbedFd};
use super::peer_address::PeerAddress;
use super::plain::{self, poll_read_into, poll_write_slice, poll_write_slices};
use super::tls::session::{Socket, TlsSession};

/// How often a peer that has sent something is looked at, while nobody reads it.
const HANG_UP_TICK: Duration = Duration::from_millis(50);

/// One connected socket. Small while idle: what TLS needs is boxed.
pub struct Stream {
    // Before `kind`: dropped first, so that no probe looks at a number that is already closed.
    probed: ProbedFd,
    kind: Kind,
    peer: PeerAddress,
}

enum Kind {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsSession>),
}

impl Stream {
    /// Takes over a connected TCP socket. Its options are the caller's business.
    pub fn from_tcp(socket: TcpStream) -> io::Result<Self> {
        let address = socket.peer_addr()?;
        Ok(Self::from_tcp_peer(socket, address))
    }

    /// The same where the address is known already: one system call less.
    pub(super) fn from_tcp_peer(socket: TcpStream, address: SocketAddr) -> Self {
        Self {
            probed: ProbedFd::default(),
            kind: Kind::Tcp(socket),
            peer: PeerAddress::Tcp(address),
        }
    }

    /// Takes over a connected unix socket.
    pub fn from_unix(socket: UnixStream) -> io::Result<Self> {
        let credentials = socket.peer_cred()?;
        let peer = PeerAddress::Unix {
            uid: credentials.uid(),
            pid: credentials.pid(),
        };
        Ok(Self {
            probed: ProbedFd::default(),
            kind: Kind::Unix(socket),
            peer,
        })
    }

    /// Two connected ends inside this process, for tests of the layers above.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (here, there) = UnixStream::pair()?;
        Ok((Self::from_unix(here)?, Self::from_unix(there)?))
    }

    /// Ready when a read would not wait: plaintext is buffered, the socket is readable, or it is at its end. Needs no
    /// buffer, so an idle session owns none.
    ///
    /// A false alarm is possible (part of a TLS record came; the last read filled its buffer exactly): the
    /// [`poll_read`](Self::poll_read) that follows is then pending, and its buffer can be given back meanwhile.
    #[inline]
    pub fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.kind {
            Kind::Tcp(socket) => socket.poll_read_ready(cx),
            Kind::Unix(socket) => socket.poll_read_ready(cx),
            Kind::Tls(session) => session.poll_read_ready(cx),
        }
    }

    /// Reads into the room that `buf` has, which the caller reserved, and never grows it. 0 is the end: of the socket,
    /// or of TLS with or without its goodbye (trap 94: OpenSSL 3 clients leave without). No room is an error of kind
    /// `InvalidInput`, since it would look like the end.
    ///
    /// A plain socket costs one system call when there is something to read, and the next call after a read that left
    /// room costs none until more has come.
    #[inline]
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut BytesMut) -> Poll<io::Result<usize>> {
        if buf.len() == buf.capacity() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "no room in the read buffer",
            )));
        }
        match &mut self.kind {
            Kind::Tcp(socket) => poll_read_into(socket, cx, buf),
            Kind::Unix(socket) => poll_read_into(socket, cx, buf),
            Kind::Tls(session) => session.poll_read(cx, buf),
        }
    }

    /// Writes one slice. As [`poll_write_vectored`](Self::poll_write_vectored), but cheaper in the kernel.
    #[inline]
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.kind {
            Kind::Tcp(socket) => poll_write_slice(socket, cx, bytes),
            Kind::Unix(socket) => poll_write_slice(socket, cx, bytes),
            Kind::Tls(session) => session.poll_write_vectored(cx, &[IoSlice::new(bytes)]),
        }
    }

    /// Writes from several slices at once and tells how many bytes were taken. On TLS they may still be with us until
    /// [`poll_flush`](Self::poll_flush).
    #[inline]
    pub fn poll_write_vectored(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match &mut self.kind {
            Kind::Tcp(socket) => poll_write_slices(socket, cx, slices),
            Kind::Unix(socket) => poll_write_slices(socket, cx, slices),
            Kind::Tls(session) => session.poll_write_vectored(cx, slices),
        }
    }

    /// Hands what TLS still holds to the kernel; nothing to do on a plain socket.
    #[inline]
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.kind {
            Kind::Tcp(_) | Kind::Unix(_) => Poll::Ready(Ok(())),
            Kind::Tls(session) => session.poll_flush(cx),
        }
    }

    /// Says that no more bytes will come from us (after TLS's goodbye). A peer that has already gone is no error.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shutdown = match &mut self.kind {
            Kind::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Kind::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
            Kind::Tls(session) => session.poll_shutdown(cx),
        };
        shutdown.map(|result| match result {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            result => result,
        })
    }

    /// Waits for [`poll_read_ready`](Self::poll_read_ready). Cancel-safe.
    pub async fn read_ready(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_read_ready(cx)).await
    }

    /// Waits for [`poll_read`](Self::poll_read). Cancel-safe: nothing was read if it is dropped.
    pub async fn read_buf(&mut self, buf: &mut BytesMut) -> io::Result<usize> {
        poll_fn(|cx| self.poll_read(cx, buf)).await
    }

    /// Writes it all and flushes. Not cancel-safe: how much was written is lost if it is dropped.
    pub async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let taken = poll_fn(|cx| self.poll_write(cx, bytes)).await?;
            bytes = bytes
                .get(taken..)
                .filter(|_| taken > 0)
                .ok_or(io::ErrorKind::WriteZero)?;
        }
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Waits for [`poll_shutdown`](Self::poll_shutdown).
    pub async fn shutdown(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_shutdown(cx)).await
    }

    /// Whether the runtime, which hears of every arrival, has heard of none: no system call. What came since it last
    /// listened (microseconds on a busy thread) is not known yet; [`try_peek_idle`](Self::try_peek_idle) asks the kernel.
    pub fn has_been_quiet(&mut self) -> bool {
        match &mut self.kind {
            Kind::Tcp(socket) => !plain::is_readable(socket),
            Kind::Unix(socket) => !plain::is_readable(socket),
            Kind::Tls(session) => {
                let mut cx = Context::from_waker(std::task::Waker::noop());
                session.poll_read_ready(&mut cx).is_pending()
            }
        }
    }

    /// Looks, without waiting and without consuming, whether anything came: the check of a pooled backend before it is
    /// handed out. On TLS the records of TLS itself (session tickets, key updates) are dealt with and are no data.
    pub fn try_peek_idle(&mut self) -> IdleState {
        match &mut self.kind {
            Kind::Tcp(socket) => idle::peek(socket.as_raw_fd()),
            Kind::Unix(socket) => idle::peek(socket.as_raw_fd()),
            Kind::Tls(session) => session.try_peek_idle(),
        }
    }

    /// Ends when the other side has closed its half of the connection, also behind bytes that nobody has read yet: a
    /// driver says Terminate before it closes. For waits in which nothing is read from this stream. Cancel-safe.
    pub async fn left(&mut self) {
        while self.read_ready().await.is_ok() && self.try_peek_idle() != IdleState::Closed {
            if self.readiness().await.is_ok_and(|ready| ready.is_read_closed()) {
                return;
            }
            // The runtime tells readiness once, and the bytes are not ours to take.
            tokio::time::sleep(HANG_UP_TICK).await;
        }
    }

    async fn readiness(&self) -> io::Result<Ready> {
        match &self.kind {
            Kind::Tcp(socket) => socket.ready(Interest::READABLE).await,
            Kind::Unix(socket) => socket.ready(Interest::READABLE).await,
            Kind::Tls(session) => session.readiness().await,
        }
    }

    /// A way to look at this stream while someone else owns it.
    pub fn idle_probe(&self) -> IdleProbe {
        self.probed.probe(self.raw_fd())
    }

    /// The socket's number, for log lines and tests. Whoever keeps it must not outlive the stream.
    pub fn raw_fd(&self) -> RawFd {
        match &self.kind {
            Kind::Tcp(socket) => socket.as_raw_fd(),
            Kind::Unix(socket) => socket.as_raw_fd(),
            Kind::Tls(session) => session.raw_fd(),
        }
    }

    /// Whether what is written is encrypted.
    pub fn is_tls(&self) -> bool {
        matches!(self.kind, Kind::Tls(_))
    }

    /// Whether the socket is a unix socket.
    pub fn is_unix(&self) -> bool {
        matches!(self.peer, PeerAddress::Unix { .. })
    }

    /// Who is at the other end.
    pub fn peer(&self) -> PeerAddress {
        self.peer
    }

    /// The data of SCRAM's channel binding `tls-server-end-point` (RFC 5929): a hash of the server's certificate, which
    /// is the peer's where we are the client and our own where we are the server. `None` without TLS, and where the
    /// certificate's signature names no hash (Ed25519): no -PLUS then.
    pub fn tls_server_end_point(&self) -> Option<&[u8]> {
        self.tls()?.end_point()
    }

    /// The common name of the certificate that the peer showed and that was verified. `None` without one.
    pub fn peer_certificate_common_name(&self) -> Option<&str> {
        self.tls()?.common_name()
    }

    /// The application protocol that was agreed on in TLS.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.tls()?.alpn()
    }

    fn tls(&self) -> Option<&TlsSession> {
        match &self.kind {
            Kind::Tls(session) => Some(session),
            Kind::Tcp(_) | Kind::Unix(_) => None,
        }
    }

    /// The plain TCP socket, for tests to ask the kernel about.
    #[cfg(test)]
    pub(super) fn tcp(&self) -> Option<&TcpStream> {
        match &self.kind {
            Kind::Tcp(socket) => Some(socket),
            Kind::Unix(_) | Kind::Tls(_) => None,
        }
    }

    /// Takes a plain stream apart, so that TLS can be put on its socket. TLS inside TLS is refused (trap 4).
    pub(super) fn into_plain(self) -> io::Result<PlainParts> {
        let socket = match self.kind {
            Kind::Tcp(socket) => Socket::Tcp(socket),
            Kind::Unix(socket) => Socket::Unix(socket),
            Kind::Tls(_) => return Err(io::Error::new(io::ErrorKind::InvalidInput, "TLS inside TLS")),
        };
        Ok(PlainParts {
            socket,
            rest: StreamRest {
                probed: self.probed,
                peer: self.peer,
            },
        })
    }

    /// Puts a stream together again around its TLS session.
    pub(super) fn from_tls(session: TlsSession, rest: StreamRest) -> Self {
        Self {
            probed: rest.probed,
            kind: Kind::Tls(Box::new(session)),
            peer: rest.peer,
        }
    }
}

/// A plain stream on its way to TLS.
pub(super) struct PlainParts {
    pub(super) socket: Socket,
    pub(super) rest: StreamRest,
}

/// What a stream keeps when its socket gets TLS.
pub(super) struct StreamRest {
    probed: ProbedFd,
    peer: PeerAddress,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({}{})", if self.is_tls() { "TLS, " } else { "" }, self.peer)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use bytes::BufMut;
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::config::SslMode;
    use crate::net::UpstreamTls;
    use crate::net::test_certificates::{Files, handshake, own_root, upstream_config};

    async fn tcp_pair() -> (Stream, Stream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        (Stream::from_tcp(client).unwrap(), Stream::from_tcp(server).unwrap())
    }

    async fn tls_pair() -> (Stream, Stream) {
        let files = Files::new();
        let server = files.server(&own_root("db", &rcgen::PKCS_ECDSA_P256_SHA256), |_| ());
        let client = UpstreamTls::new(&upstream_config(SslMode::Require, None)).unwrap();
        let (accepted, connected) = handshake(&server, &client, "db").await;
        (accepted.unwrap(), connected.unwrap())
    }

    async fn pairs() -> [(Stream, Stream); 3] {
        [tcp_pair().await, Stream::pair().unwrap(), tls_pair().await]
    }

    fn is_read_ready(stream: &mut Stream) -> bool {
        stream
            .poll_read_ready(&mut Context::from_waker(Waker::noop()))
            .is_ready()
    }

    #[test]
    fn an_idle_stream_is_small() {
        assert!(size_of::<Stream>() <= 128, "{}", size_of::<Stream>());
    }

    #[tokio::test]
    async fn reads_fill_the_room_and_never_grow_the_buffer() {
        for (mut here, mut there) in pairs().await {
            let sent: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
            let reading = async {
                let mut received = Vec::new();
                let mut buf = BytesMut::with_capacity(1000);
                let capacity = buf.capacity();
                loop {
                    let read = here.read_buf(&mut buf).await.unwrap();
                    assert_eq!(buf.capacity(), capacity);
                    if read == 0 {
                        return received;
                    }
                    received.extend_from_slice(&buf);
                    buf.clear();
                }
            };
            let writing = async {
                there.write_all(&sent).await.unwrap();
                there.shutdown().await.unwrap();
            };
            let (received, ()) = tokio::join!(reading, writing);
            assert!(received == sent);
            let mut full = BytesMut::with_capacity(1);
            full.put_bytes(0, full.capacity());
            assert_eq!(
                here.read_buf(&mut full).await.unwrap_err().kind(),
                io::ErrorKind::InvalidInput
            );
        }
    }

    #[tokio::test]
    async fn several_slices_are_written_at_once_and_flushed() {
        for (mut here, mut there) in pairs().await {
            let slices = [
                IoSlice::new(b"head"),
                IoSlice::new(b""),
                IoSlice::new(b"name"),
                IoSlice::new(b"tail"),
            ];
            assert_eq!(poll_fn(|cx| here.poll_write_vectored(cx, &slices)).await.unwrap(), 12);
            poll_fn(|cx| here.poll_flush(cx)).await.unwrap();
            let mut buf = BytesMut::with_capacity(64);
            while buf.len() < 12 {
                there.read_buf(&mut buf).await.unwrap();
            }
            assert_eq!(&buf[..], b"headnametail");
        }
    }

    #[tokio::test]
    async fn readiness_is_told_without_a_buffer_while_plaintext_waits_and_at_the_end() {
        for (mut here, mut there) in pairs().await {
            assert!(!is_read_ready(&mut here));
            there.write_all(b"abcdef").await.unwrap();
            here.read_ready().await.unwrap();
            let mut buf = BytesMut::with_capacity(4);
            let room = buf.capacity().min(4);
            let read = here.read_buf(&mut buf).await.unwrap();
            assert!(read >= room);
            if read < 6 {
                assert!(is_read_ready(&mut here), "{here:?}: the rest waits");
                let mut rest = BytesMut::with_capacity(64);
                assert_eq!(here.read_buf(&mut rest).await.unwrap(), 6 - read);
            }
            assert!(!is_read_ready(&mut here), "{here:?}: all is read");
            drop(there);
            here.read_ready().await.unwrap();
            for _ in 0..2 {
                assert_eq!(here.read_buf(&mut BytesMut::with_capacity(8)).await.unwrap(), 0);
                assert!(is_read_ready(&mut here));
            }
        }
    }

    #[tokio::test]
    async fn peeking_tells_quiet_from_data_and_the_end_and_takes_nothing() {
        for (mut here, mut there) in pairs().await {
            let probe = here.idle_probe();
            assert_eq!(
                (here.try_peek_idle(), probe.state()),
                (IdleState::Quiet, IdleState::Quiet)
            );
            there.write_all(b"FATAL").await.unwrap();
            // Loopback and unix sockets deliver within the write.
            assert_eq!(probe.state(), IdleState::HasData);
            assert_eq!(here.try_peek_idle(), IdleState::HasData);
            assert_eq!(here.try_peek_idle(), IdleState::HasData);
            assert!(is_read_ready(&mut here) || !here.is_tls());
            let mut buf = BytesMut::with_capacity(64);
            here.read_buf(&mut buf).await.unwrap();
            assert_eq!(&buf[..], b"FATAL");
            assert_eq!(here.try_peek_idle(), IdleState::Quiet);
            drop(there);
            assert_eq!(here.try_peek_idle(), IdleState::Closed);
            drop(here);
            assert_eq!(probe.state(), IdleState::Closed);
        }
    }

    #[tokio::test]
    async fn a_probe_outlives_its_stream_without_holding_or_mistaking_the_socket() {
        let (here, mut there) = tcp_pair().await;
        let probe = here.idle_probe();
        drop(here);
        assert_eq!(there.read_buf(&mut BytesMut::with_capacity(8)).await.unwrap(), 0);
        let (_reuses_the_number, mut speaks) = tcp_pair().await;
        speaks.write_all(b"x").await.unwrap();
        assert_eq!(probe.clone().state(), IdleState::Closed);
    }

    /// A pair where the peer holds the raw socket, so that TLS can be cut off or fed in pieces.
    async fn tls_over_a_relay() -> (Stream, Stream, UnixStream, UnixStream) {
        let files = Files::new();
        let server = files.server(&own_root("db", &rcgen::PKCS_ECDSA_P256_SHA256), |_| ());
        let client = UpstreamTls::new(&upstream_config(SslMode::Require, None)).unwrap();
        let (server_end, mut near_server) = UnixStream::pair().unwrap();
        let (client_end, mut near_client) = UnixStream::pair().unwrap();
        let handshakes = async {
            tokio::join!(
                server.accept(Stream::from_unix(server_end).unwrap(), BytesMut::new()),
                client.connect(Stream::from_unix(client_end).unwrap(), "db")
            )
        };
        let (accepted, connected) = tokio::select! {
            outcome = handshakes => outcome,
            _ = tokio::io::copy_bidirectional(&mut near_server, &mut near_client) => panic!("ended early"),
        };
        (accepted.unwrap(), connected.unwrap(), near_server, near_client)
    }

    #[tokio::test]
    async fn trap_94_an_end_without_close_notify_is_an_end_and_what_came_before_is_read() {
        let (mut server, mut client, near_server, mut near_client) = tls_over_a_relay().await;
        server.write_all(b"last words").await.unwrap();
        let mut record = BytesMut::with_capacity(4096);
        let mut near_server = Stream::from_unix(near_server).unwrap();
        near_server.read_buf(&mut record).await.unwrap();
        near_client.write_all(&record).await.unwrap();
        drop(near_client);
        let mut buf = BytesMut::with_capacity(64);
        assert_eq!(client.read_buf(&mut buf).await.unwrap(), 10);
        assert!(is_read_ready(&mut client));
        assert_eq!(client.read_buf(&mut buf).await.unwrap(), 0);
        assert_eq!(client.try_peek_idle(), IdleState::Closed);
    }

    #[tokio::test]
    async fn half_a_record_is_no_data_and_a_forged_one_is_an_error_behind_the_good_ones() {
        let (mut server, mut client, near_server, mut near_client) = tls_over_a_relay().await;
        server.write_all(b"good").await.unwrap();
        let mut near_server = Stream::from_unix(near_server).unwrap();
        let mut record = BytesMut::with_capacity(4096);
        near_server.read_buf(&mut record).await.unwrap();
        let half = record.len() / 2;
        near_client.write_all(&record[..half]).await.unwrap();
        assert_eq!(client.try_peek_idle(), IdleState::Quiet);
        near_client.write_all(&record[half..]).await.unwrap();
        near_client
            .write_all(b"\x17\x03\x03\x00\x20this is thirty-two bytes of junk")
            .await
            .unwrap();
        let mut buf = BytesMut::with_capacity(64);
        let mut outcome = client.read_buf(&mut buf).await;
        if outcome.is_ok() {
            assert_eq!(&buf[..], b"good");
            assert!(is_read_ready(&mut client), "the error waits to be told");
            outcome = client.read_buf(&mut buf).await;
        }
        assert!(outcome.is_err());
        assert_eq!(client.read_buf(&mut buf).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn writing_to_a_peer_that_does_not_read_waits() {
        for (mut here, there) in pairs().await {
            let bytes = vec![0; 1 << 20];
            let mut cx = Context::from_waker(Waker::noop());
            poll_fn(|cx| here.poll_write_vectored(cx, &[IoSlice::new(b"x")]))
                .await
                .unwrap();
            let mut taken = 0;
            while let Poll::Ready(written) =
                here.poll_write_vectored(&mut cx, &[IoSlice::new(&bytes), IoSlice::new(b"y")])
            {
                taken += written.unwrap();
                assert!(taken < 64 << 20, "bounded");
            }
            drop(there);
        }
    }
}
