//! One connected socket: TCP or unix, plain or TLS.
//!
//! Deliberately not `AsyncRead`: the layers above read into a buffer that they chose, write several slices at once and
//! wait for readiness without owning a buffer, and nothing else can be done with it.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, RawFd};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::idle::{self, IdleProbe, IdleState, ProbedFd};
use super::peer_address::PeerAddress;
use super::tls::session::{Socket, TlsSession};

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
        let peer = PeerAddress::Tcp(socket.peer_addr()?);
        Ok(Self {
            probed: ProbedFd::default(),
            kind: Kind::Tcp(socket),
            peer,
        })
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
            let taken = poll_fn(|cx| self.poll_write_vectored(cx, &[IoSlice::new(bytes)])).await?;
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

    /// Looks, without waiting and without consuming, whether anything came: the check of a pooled backend before it is
    /// handed out. On TLS the records of TLS itself (session tickets, key updates) are dealt with and are no data.
    pub fn try_peek_idle(&mut self) -> IdleState {
        match &mut self.kind {
            Kind::Tcp(socket) => idle::peek(socket.as_raw_fd()),
            Kind::Unix(socket) => idle::peek(socket.as_raw_fd()),
            Kind::Tls(session) => session.try_peek_idle(),
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

/// One poll of tokio's own future, which reads into uninitialised memory and forgets readiness after a short read.
/// (`try_read_buf` does not forget it: each wait after a read would begin with a read in vain.)
#[inline]
fn poll_read_into(
    socket: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    buf: &mut BytesMut,
) -> Poll<io::Result<usize>> {
    pin!(socket.read_buf(buf)).poll(cx)
}

#[inline]
fn poll_write_slices(
    socket: &mut (impl AsyncWrite + Unpin),
    cx: &mut Context<'_>,
    slices: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    match slices {
        // Cheaper in the kernel, and tokio sees from a short write that the socket is full.
        [slice] => Pin::new(socket).poll_write(cx, slice),
        slices => Pin::new(socket).poll_write_vectored(cx, slices),
    }
}
