//! Where clients connect: TCP addresses and unix sockets.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener, ToSocketAddrs};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

use super::socket_options::SocketOptions;
use super::stream::Stream;
use super::unix_socket::{self, SocketFile};
use crate::config::ListenAddress;

/// Connections that the kernel keeps for us until they are accepted (trap 93: workers that start together). The kernel
/// lowers it to net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// One address that clients connect to. A unix socket's file goes when this is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: ListenerSocket,
    address: String,
}

#[derive(Debug)]
enum ListenerSocket {
    Tcp(TcpListener),
    Unix(
        UnixListener,
        #[allow(dead_code, reason = "held for its drop")] SocketFile,
    ),
}

/// Why an address can't be listened on, in one line. Fault: the operator's.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {}", Reason(.cause))]
pub struct BindError {
    /// The address, as a user would write it.
    pub address: String,
    /// What the system said.
    #[source]
    pub cause: io::Error,
}

impl Listener {
    /// Listens on every address that the configured one stands for: those that a host name resolves to, one for a unix
    /// socket. With port 0 the system chooses one port for all of them. An address family that this machine doesn't have
    /// is passed over as long as another is there. Looks names up while it waits: call it at start and reload only,
    /// inside the runtime.
    pub fn bind(address: &ListenAddress, unix_socket_mode: u32) -> Result<Vec<Self>, BindError> {
        match address {
            ListenAddress::Tcp { host, port } => bind_tcp(host, *port),
            ListenAddress::Unix { directory, port } => {
                let path = unix_socket::path(directory, *port);
                bind_unix(&path, unix_socket_mode)
                    .map(|listener| vec![listener])
                    .map_err(|cause| BindError {
                        address: path.display().to_string(),
                        cause,
                    })
            }
        }
    }

    /// Sets how vanished clients are noticed from the next accept on. Without it: [`SocketOptions::default`].
    pub fn set_options(&self, options: &SocketOptions) -> io::Result<()> {
        match &self.socket {
            ListenerSocket::Tcp(socket) => options.apply(socket),
            ListenerSocket::Unix(..) => Ok(()),
        }
    }

    /// Waits for the next client. An error is about that one client or about our file descriptors (EMFILE): the caller
    /// goes on, and after EMFILE not at once (trap 89). Cancel-safe.
    pub async fn accept(&self) -> io::Result<Stream> {
        match &self.socket {
            // Its options were inherited from the listening socket.
            ListenerSocket::Tcp(socket) => {
                let (socket, address) = socket.accept().await?;
                Ok(Stream::from_tcp_peer(socket, address))
            }
            ListenerSocket::Unix(socket, _) => Stream::from_unix(socket.accept().await?.0),
        }
    }

    /// The address as a client would be given it: `127.0.0.1:6432`, with the port that the system chose, or the socket's
    /// path.
    pub fn local_address(&self) -> String {
        self.address.clone()
    }
}

fn bind_tcp(host: &str, port: u16) -> Result<Vec<Listener>, BindError> {
    let failed = |cause| BindError {
        address: format!("{host}:{port}"),
        cause,
    };
    let mut listeners: Vec<Listener> = Vec::new();
    let mut port = port;
    let mut passed_over = None;
    for mut address in resolve(host, port).map_err(failed)? {
        address.set_port(port);
        match bind_one_tcp(address) {
            Ok((listener, bound)) => {
                port = bound.port();
                listeners.push(listener);
            }
            Err(cause) if is_missing_family(&cause) => passed_over = Some(cause),
            Err(cause) => {
                return Err(BindError {
                    address: address.to_string(),
                    cause,
                });
            }
        }
    }
    match passed_over {
        Some(cause) if listeners.is_empty() => Err(failed(cause)),
        _ if listeners.is_empty() => Err(failed(io::Error::new(io::ErrorKind::NotFound, "unknown host"))),
        _ => Ok(listeners),
    }
}

fn bind_one_tcp(address: SocketAddr) -> io::Result<(Listener, SocketAddr)> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // As PostgreSQL does it: `::` and `0.0.0.0` are two addresses.
        socket.set_only_v6(true)?;
    }
    SocketOptions::default().apply(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let socket = TcpListener::from_std(StdTcpListener::from(socket))?;
    let bound = socket.local_addr()?;
    Ok((
        Listener {
            socket: ListenerSocket::Tcp(socket),
            address: bound.to_string(),
        },
        bound,
    ))
}

fn bind_unix(path: &Path, mode: u32) -> io::Result<Listener> {
    let (socket, file) = unix_socket::listen(path, mode, BACKLOG)?;
    let socket = UnixListener::from_std(StdUnixListener::from(std::os::fd::OwnedFd::from(socket)))?;
    Ok(Listener {
        socket: ListenerSocket::Unix(socket, file),
        address: path.display().to_string(),
    })
}

/// `*` is every address of either family, as in PostgreSQL's listen_addresses.
fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if host == "*" {
        return Ok(vec![([0, 0, 0, 0], port).into(), ([0u16; 8], port).into()]);
    }
    let mut addresses = Vec::new();
    for address in (host, port).to_socket_addrs()? {
        // The system's own answer may name one address twice (/etc/hosts).
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

fn is_missing_family(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT)
}

/// The cause in an operator's words.
struct Reason<'a>(&'a io::Error);

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.kind() {
            io::ErrorKind::AddrInUse => f.write_str("the address is taken; is another server running there?"),
            io::ErrorKind::PermissionDenied => f.write_str("permission denied"),
            io::ErrorKind::AddrNotAvailable => f.write_str("this machine has no such address"),
            io::ErrorKind::NotFound => f.write_str("no such host or directory"),
            // What a name lookup says has no kind of its own.
            _ => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    use std::path::PathBuf;

    use bytes::BytesMut;
    use socket2::SockRef;
    use tokio::net::{TcpStream, UnixStream};

    use super::*;
    use crate::net::PeerAddress;

    fn tcp(host: &str, port: u16) -> ListenAddress {
        ListenAddress::Tcp {
            host: host.into(),
            port,
        }
    }

    fn unix(directory: &Path) -> ListenAddress {
        ListenAddress::Unix {
            directory: directory.into(),
            port: 6432,
        }
    }

    fn only(listeners: Result<Vec<Listener>, BindError>) -> Listener {
        let mut listeners = listeners.unwrap();
        assert_eq!(listeners.len(), 1);
        listeners.pop().unwrap()
    }

    #[tokio::test]
    async fn trap_91_an_accepted_socket_has_no_delay_keepalive_and_a_user_timeout() {
        let listener = only(Listener::bind(&tcp("127.0.0.1", 0), 0));
        let _client = TcpStream::connect(listener.local_address()).await.unwrap();
        let accepted = listener.accept().await.unwrap();
        assert!(matches!(accepted.peer(), PeerAddress::Tcp(address) if address.ip().is_loopback()));
        let options = SockRef::from(accepted.tcp().unwrap());
        assert!(options.tcp_nodelay().unwrap());
        assert!(options.keepalive().unwrap());
        assert_eq!(options.tcp_keepalive_time().unwrap().as_secs(), 30);
        assert_eq!(options.tcp_keepalive_interval().unwrap().as_secs(), 10);
        assert_eq!(options.tcp_keepalive_retries().unwrap(), 3);
        assert_eq!(options.tcp_user_timeout().unwrap().unwrap().as_secs(), 30);
    }

    #[tokio::test]
    async fn a_taken_port_is_one_clear_line() {
        let listener = only(Listener::bind(&tcp("127.0.0.1", 0), 0));
        let port = listener.local_address().parse::<SocketAddr>().unwrap().port();
        let error = Listener::bind(&tcp("127.0.0.1", port), 0).unwrap_err().to_string();
        let expected =
            format!("cannot listen on 127.0.0.1:{port}: the address is taken; is another server running there?");
        assert_eq!(error, expected);
    }

    #[tokio::test]
    async fn an_unknown_host_and_a_foreign_address_are_refused() {
        let error = Listener::bind(&tcp("no-such-host.invalid", 1), 0)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("cannot listen on no-such-host.invalid:1: "),
            "{error}"
        );
        let error = Listener::bind(&tcp("192.0.2.1", 0), 0).unwrap_err().to_string();
        assert_eq!(error, "cannot listen on 192.0.2.1:0: this machine has no such address");
    }

    #[tokio::test]
    async fn several_addresses_share_the_port_that_the_system_chose() {
        let listeners = Listener::bind(&tcp("*", 0), 0).unwrap();
        let ports: Vec<_> = listeners
            .iter()
            .map(|l| l.local_address().parse::<SocketAddr>().unwrap().port())
            .collect();
        assert!(ports.iter().all(|port| *port != 0 && *port == ports[0]), "{ports:?}");
    }

    #[tokio::test]
    async fn a_unix_socket_has_libpqs_name_its_mode_and_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let listener = only(Listener::bind(&unix(directory.path()), 0o750));
        let path = directory.path().join(".s.PGSQL.6432");
        assert_eq!(PathBuf::from(listener.local_address()), path);
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o750);
        let mut client = Stream::from_unix(UnixStream::connect(&path).await.unwrap()).unwrap();
        let mut accepted = listener.accept().await.unwrap();
        let own = nix::unistd::getuid().as_raw();
        assert!(matches!(accepted.peer(), PeerAddress::Unix { uid, pid: Some(_) } if uid == own));
        client.write_all(b"x").await.unwrap();
        assert_eq!(accepted.read_buf(&mut BytesMut::with_capacity(8)).await.unwrap(), 1);
        drop(listener);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(".s.PGSQL.6432");
        drop(StdUnixListener::bind(&path).unwrap());
        let listener = only(Listener::bind(&unix(directory.path()), 0o700));
        assert!(UnixStream::connect(&path).await.is_ok());
        let error = Listener::bind(&unix(directory.path()), 0o700).unwrap_err().to_string();
        assert!(
            error.ends_with("the address is taken; is another server running there?"),
            "{error}"
        );
        assert!(UnixStream::connect(&path).await.is_ok());
        drop(listener);
    }

    #[tokio::test]
    async fn what_is_no_socket_is_not_touched_and_anothers_socket_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(".s.PGSQL.6432");
        std::fs::write(&path, b"precious").unwrap();
        assert!(Listener::bind(&unix(directory.path()), 0o700).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        std::fs::remove_file(&path).unwrap();
        let listener = only(Listener::bind(&unix(directory.path()), 0o700));
        std::fs::remove_file(&path).unwrap();
        let other = StdUnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists());
        drop(other);
    }

    #[tokio::test]
    async fn a_path_that_is_too_long_or_a_missing_directory_is_an_error() {
        let long = PathBuf::from(format!("/tmp/{}", "d".repeat(120)));
        assert!(Listener::bind(&unix(&long), 0o700).is_err());
        let error = Listener::bind(&unix(Path::new("/no/such/directory")), 0o700)
            .unwrap_err()
            .to_string();
        assert!(error.ends_with("no such host or directory"), "{error}");
    }
}
