//! The file of a listening unix socket: made with its permissions, replacing a stale one only, removed when it is ours.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};

/// The path that libpq looks for: `<directory>/.s.PGSQL.<port>`.
pub(super) fn path(directory: &Path, port: u16) -> PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
}

/// A socket file that goes when this is dropped, if it is still the one that we made.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|now| now.dev() == self.device && now.ino() == self.inode);
        if ours {
            // Nobody can be told; a file that stays is found stale by the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds and listens. Nobody whom `mode` shuts out can connect at any moment.
pub(super) fn listen(path: &Path, mode: u32, backlog: i32) -> io::Result<(Socket, SocketFile)> {
    let address = SockAddr::unix(path)?;
    // Two starters must not both find the same file stale. The lock is the directory's own, so it leaves nothing behind.
    let lock = path
        .parent()
        .and_then(|directory| fs::File::open(directory).ok())
        .and_then(|directory| Flock::lock(directory, FlockArg::LockExclusiveNonblock).ok());
    let socket = match bind(&address, mode) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && lock.is_some() && is_stale(path, &address)? => {
            fs::remove_file(path)?;
            bind(&address, mode)?
        }
        result => result?,
    };
    let metadata = fs::symlink_metadata(path)?;
    let file = SocketFile {
        path: path.into(),
        device: metadata.dev(),
        inode: metadata.ino(),
    };
    socket.listen(backlog)?;
    // The umask may have taken bits that the mode grants.
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    socket.set_nonblocking(true)?;
    Ok((socket, file))
}

/// Linux gives the file the mode of the unbound socket, less the umask: it is never wider than `mode`.
fn bind(address: &SockAddr, mode: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    fchmod(socket.as_fd(), Mode::from_bits_truncate(mode))?;
    socket.bind(address)?;
    Ok(socket)
}

/// Whether a socket is there that nobody listens on. Anything that isn't a socket is never touched.
fn is_stale(path: &Path, address: &SockAddr) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "the file exists and is no socket",
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    // Non-blocking: a listener whose queue is full answers EAGAIN, and lives.
    let probe = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    Ok(probe
        .connect(address)
        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused))
}
