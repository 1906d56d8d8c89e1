//! Reads and writes of plain sockets that try first and ask to be woken after.
//!
//! tokio's own `poll_read` and `poll_write` ask the runtime before each system call, which costs as much as the rest.

use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

/// What tokio's sockets have in common and no trait of its names: to try at once, and to be told when to try again.
pub(super) trait Plain {
    fn try_read_buf(&self, buf: &mut BytesMut) -> io::Result<usize>;
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;
    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;
    fn try_io(&self, interest: Interest, io: impl FnMut() -> io::Result<()>) -> io::Result<()>;
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

macro_rules! plain {
    ($socket:ty) => {
        impl Plain for $socket {
            #[inline]
            fn try_read_buf(&self, buf: &mut BytesMut) -> io::Result<usize> {
                self.try_read_buf(buf)
            }
            #[inline]
            fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
                self.try_write(bytes)
            }
            #[inline]
            fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
                self.try_write_vectored(slices)
            }
            #[inline]
            fn try_io(&self, interest: Interest, io: impl FnMut() -> io::Result<()>) -> io::Result<()> {
                self.try_io(interest, io)
            }
            #[inline]
            fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.poll_read_ready(cx)
            }
            #[inline]
            fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.poll_write_ready(cx)
            }
        }
    };
}

plain!(TcpStream);
plain!(UnixStream);

/// Whether the runtime knows of something to read. Asks nobody to be woken.
#[inline]
pub(super) fn is_readable(socket: &impl Plain) -> bool {
    socket.try_io(Interest::READABLE, || Ok(())).is_ok()
}

/// Reads at once where the socket is known to be readable; else, and when that was wrong, asks to be woken.
#[inline]
pub(super) fn poll_read_into(socket: &impl Plain, cx: &mut Context<'_>, buf: &mut BytesMut) -> Poll<io::Result<usize>> {
    loop {
        match read_at_once(socket, buf) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(socket.poll_read_ready(cx))?,
            read => return Poll::Ready(read),
        }
    }
}

/// A read that leaves room has emptied the socket, which is then known as not readable: the next read costs nothing until
/// more has come. Known as of before the read, so that what comes meanwhile is not missed.
#[inline]
fn read_at_once(socket: &impl Plain, buf: &mut BytesMut) -> io::Result<usize> {
    let room = buf.capacity() - buf.len();
    let mut read = Err(io::ErrorKind::WouldBlock.into());
    let _ = socket.try_io(Interest::READABLE, || {
        read = socket.try_read_buf(buf);
        match &read {
            Ok(count) if *count > 0 && *count < room => Err(io::ErrorKind::WouldBlock.into()),
            _ => Ok(()),
        }
    });
    read
}

/// Writes at once where the socket is not known to be full; else asks to be woken. As with reads, a short write has filled
/// the socket.
#[inline]
fn poll_write_of(
    socket: &impl Plain,
    cx: &mut Context<'_>,
    len: usize,
    write: impl Fn() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        let mut written = Err(io::ErrorKind::WouldBlock.into());
        let _ = socket.try_io(Interest::WRITABLE, || {
            written = write();
            match &written {
                Ok(count) if *count > 0 && *count < len => Err(io::ErrorKind::WouldBlock.into()),
                _ => Ok(()),
            }
        });
        match written {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(socket.poll_write_ready(cx))?,
            written => return Poll::Ready(written),
        }
    }
}

#[inline]
pub(super) fn poll_write_slice(socket: &impl Plain, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    poll_write_of(socket, cx, bytes.len(), || socket.try_write(bytes))
}

#[inline]
pub(super) fn poll_write_slices(
    socket: &impl Plain,
    cx: &mut Context<'_>,
    slices: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let len = slices.iter().map(|slice| slice.len()).sum();
    poll_write_of(socket, cx, len, || socket.try_write_vectored(slices))
}
