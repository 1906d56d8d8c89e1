//! An established TLS session over a socket, in either role.

use std::fmt;
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsStream;

use super::super::idle::{self, IdleState};

/// A plain socket.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// What rustls reads from: bytes that were read before it was known that they are TLS, then the socket.
#[derive(Debug)]
pub(crate) struct TlsSocket {
    ahead: BytesMut,
    socket: Socket,
}

/// What was learned of the certificates in the handshake.
#[derive(Debug, Default)]
pub(crate) struct Certificates {
    pub(crate) end_point: Option<Box<[u8]>>,
    pub(crate) common_name: Option<Box<str>>,
}

/// An established session.
pub(crate) struct TlsSession {
    stream: TlsStream<TlsSocket>,
    certificates: Certificates,
    reading: Reading,
}

/// How far reading has come.
enum Reading {
    Open,
    /// The end was seen, and is told at each read from now on.
    Ended,
    /// It failed behind bytes that were still good; told at the next read.
    Failed(io::Error),
}

impl TlsSession {
    pub(crate) fn new(stream: TlsStream<TlsSocket>, certificates: Certificates) -> Self {
        Self {
            stream,
            certificates,
            reading: Reading::Open,
        }
    }

    pub(crate) fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (socket, state) = self.stream.get_ref();
        // rustls wants to read unless plaintext waits or the peer said goodbye: in both cases a read gets its answer.
        let answer_is_here = !matches!(self.reading, Reading::Open) || !state.wants_read();
        if answer_is_here {
            Poll::Ready(Ok(()))
        } else {
            socket.poll_read_ready(cx)
        }
    }

    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut BytesMut) -> Poll<io::Result<usize>> {
        match std::mem::replace(&mut self.reading, Reading::Ended) {
            Reading::Ended => return Poll::Ready(Ok(0)),
            Reading::Failed(error) => return Poll::Ready(Err(error)),
            Reading::Open => self.reading = Reading::Open,
        }
        let before = buf.len();
        // A record holds 16 kB and rustls shows pieces of it: fill the buffer with what is here.
        while buf.len() < buf.capacity() {
            match Pin::new(&mut self.stream).poll_fill_buf(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok([])) => self.reading = Reading::Ended,
                Poll::Ready(Ok(piece)) => {
                    let taken = piece.len().min(buf.capacity() - buf.len());
                    buf.extend_from_slice(&piece[..taken]);
                    Pin::new(&mut self.stream).consume(taken);
                    continue;
                }
                // Trap 94: an end without close_notify. PostgreSQL's messages tell where they end themselves.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.reading = Reading::Ended;
                }
                Poll::Ready(Err(error)) => self.reading = Reading::Failed(error),
            }
            break;
        }
        match buf.len() - before {
            0 if matches!(self.reading, Reading::Open) => Poll::Pending,
            0 => match std::mem::replace(&mut self.reading, Reading::Ended) {
                Reading::Failed(error) => Poll::Ready(Err(error)),
                Reading::Open | Reading::Ended => Poll::Ready(Ok(0)),
            },
            read => Poll::Ready(Ok(read)),
        }
    }

    pub(crate) fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    /// Deals with the records that are here, whatever the runtime knows of the socket's readiness, and says whether
    /// plaintext came of it.
    pub(crate) fn try_peek_idle(&mut self) -> IdleState {
        if !matches!(self.reading, Reading::Open) {
            return IdleState::Closed;
        }
        loop {
            match self.plaintext_state() {
                IdleState::Quiet => {}
                state => return state,
            }
            match idle::peek(self.raw_fd()) {
                // The rest is up to read_tls: both an end and an error show there.
                IdleState::HasData | IdleState::Closed => {}
                IdleState::Quiet => return IdleState::Quiet,
            }
            match self.read_records() {
                Ok(0) => return IdleState::Closed,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return IdleState::Quiet,
                Err(_) => return IdleState::Closed,
            }
        }
    }

    /// What rustls holds already.
    fn plaintext_state(&mut self) -> IdleState {
        let state = match &mut self.stream {
            TlsStream::Client(stream) => stream.get_mut().1.process_new_packets(),
            TlsStream::Server(stream) => stream.get_mut().1.process_new_packets(),
        };
        match state {
            Ok(state) if state.plaintext_bytes_to_read() > 0 => IdleState::HasData,
            Ok(state) if state.peer_has_closed() => IdleState::Closed,
            Ok(_) => IdleState::Quiet,
            Err(_) => IdleState::Closed,
        }
    }

    /// Reads once past the runtime, without waiting.
    fn read_records(&mut self) -> io::Result<usize> {
        let mut socket = NonBlocking(self.raw_fd());
        match &mut self.stream {
            TlsStream::Client(stream) => stream.get_mut().1.read_tls(&mut socket),
            TlsStream::Server(stream) => stream.get_mut().1.read_tls(&mut socket),
        }
    }

    /// Waits for the socket's readiness to be read, without reading.
    pub(crate) async fn readiness(&self) -> io::Result<Ready> {
        match &self.stream.get_ref().0.socket {
            Socket::Tcp(socket) => socket.ready(Interest::READABLE).await,
            Socket::Unix(socket) => socket.ready(Interest::READABLE).await,
        }
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        match &self.stream.get_ref().0.socket {
            Socket::Tcp(socket) => socket.as_raw_fd(),
            Socket::Unix(socket) => socket.as_raw_fd(),
        }
    }

    pub(crate) fn end_point(&self) -> Option<&[u8]> {
        self.certificates.end_point.as_deref()
    }

    pub(crate) fn common_name(&self) -> Option<&str> {
        self.certificates.common_name.as_deref()
    }

    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        self.stream.get_ref().1.alpn_protocol()
    }
}

impl fmt::Debug for TlsSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSession")
            .field("certificates", &self.certificates)
            .finish_non_exhaustive()
    }
}

/// A socket that is read at once or not at all.
struct NonBlocking(RawFd);

impl Read for NonBlocking {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match recv(self.0, buf, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EINTR) => {}
                result => return result.map_err(io::Error::from),
            }
        }
    }
}

impl TlsSocket {
    pub(crate) fn new(ahead: BytesMut, socket: Socket) -> Self {
        Self { ahead, socket }
    }

    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.socket {
            _ if !self.ahead.is_empty() => Poll::Ready(Ok(())),
            Socket::Tcp(socket) => socket.poll_read_ready(cx),
            Socket::Unix(socket) => socket.poll_read_ready(cx),
        }
    }
}

impl AsyncRead for TlsSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return match &mut self.socket {
                Socket::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
                Socket::Unix(socket) => Pin::new(socket).poll_read(cx, buf),
            };
        }
        let taken = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead[..taken]);
        self.ahead.advance(taken);
        if self.ahead.is_empty() {
            // Frees its memory for the life of the session.
            self.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Tcp(socket) => Pin::new(socket).poll_write(cx, buf),
            Socket::Unix(socket) => Pin::new(socket).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Socket::Unix(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(match &mut self.socket {
            Socket::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Socket::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
        })?;
        Poll::Ready(Ok(()))
    }
}
