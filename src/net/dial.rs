//! Connecting to PostgreSQL: names looked up each time (trap 81), every address tried, then TLS as sslmode has it.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::{TcpSocket, UnixStream, lookup_host};
use tokio::time::timeout;

use super::connect_steps::{ConnectStep, StepObserver};
use super::idle::IdleState;
use super::socket_options::SocketOptions;
use super::stream::Stream;
use super::tls::UpstreamTls;
use super::tls::upstream_tls::Begins;
use super::unix_socket;
use crate::config::{Host, SslMode, UpstreamConfig};
use crate::wire::compose;

/// How long one address may stay silent before the next one is tried beside it (RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);
/// How many of a name's addresses are tried.
const ADDRESSES_MAX: usize = 32;

/// What one attempt sends its bytes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// No TLS.
    Plain,
    /// TLS if the server has it, otherwise the same connection without.
    TlsIfOffered,
    /// TLS or nothing.
    TlsRequired,
}

/// The attempts that an sslmode allows, in libpq's order. The next one is for when TLS failed or the login was refused
/// (28000: pg_hba.conf can tell hostssl from hostnossl), not for when the server can't be reached.
pub fn transports(sslmode: SslMode) -> &'static [Transport] {
    match sslmode {
        SslMode::Disable => &[Transport::Plain],
        SslMode::Allow => &[Transport::Plain, Transport::TlsRequired],
        SslMode::Prefer => &[Transport::TlsIfOffered, Transport::Plain],
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Transport::TlsRequired],
    }
}

/// Why a server was not reached. Fault: Backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DialError {
    /// What happened.
    pub kind: DialErrorKind,
    /// One line for the operator: the address and what the system or the server said.
    pub message: String,
}

/// What went wrong while dialing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DialErrorKind {
    /// The name has no address (now).
    UnknownHost,
    /// Nobody listens there.
    Refused,
    /// There is no way there.
    Unreachable,
    /// `connect_timeout` has passed.
    TimedOut,
    /// The connection was accepted and then closed: a server that starts, stops or has no process to spare.
    Closed,
    /// TLS is required and the server has none.
    TlsRefused,
    /// The handshake or the verification of the certificate failed.
    TlsFailed,
    /// The server's answer is not PostgreSQL's.
    Protocol,
    /// This machine's own fault: descriptors, permissions.
    Local,
}

impl DialError {
    fn new(kind: DialErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// Whether waiting may help: the server, or the way to it, is down. An unknown host counts, because a cluster's name
    /// service forgets a server while it restarts.
    pub fn is_unavailable(&self) -> bool {
        match self.kind {
            DialErrorKind::UnknownHost
            | DialErrorKind::Refused
            | DialErrorKind::Unreachable
            | DialErrorKind::TimedOut
            | DialErrorKind::Closed => true,
            DialErrorKind::TlsRefused | DialErrorKind::TlsFailed | DialErrorKind::Protocol | DialErrorKind::Local => {
                false
            }
        }
    }
}

/// Who says what addresses a name has. Nothing is remembered: each connect asks (trap 81).
#[derive(Debug, Clone, Default)]
pub enum Names {
    /// The system: its files, its name service.
    #[default]
    System,
    /// A test, which may change its mind at any time.
    #[cfg(test)]
    Scripted(std::sync::Arc<std::sync::Mutex<Vec<std::net::IpAddr>>>),
}

impl Names {
    async fn look_up(&self, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        match self {
            Self::System => Ok(lookup_host((name, port)).await?.take(ADDRESSES_MAX).collect()),
            #[cfg(test)]
            Self::Scripted(answer) => {
                let answer = answer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                Ok(answer.iter().map(|address| (*address, port).into()).collect())
            }
        }
    }
}

/// Connects to one host within `connect_timeout`, ready for the StartupMessage. A caller that bounds login as well puts
/// its own deadline around this; dropping the future closes everything. Unix sockets never get TLS, whatever is asked
/// for, as with libpq.
pub async fn dial(
    host: &Host,
    upstream: &UpstreamConfig,
    tls: &UpstreamTls,
    names: &Names,
    transport: Transport,
    steps: &StepObserver,
) -> Result<Stream, DialError> {
    let connect = connect(host, upstream, tls, names, transport, steps);
    let Some(limit) = upstream.connect_timeout else {
        return connect.await;
    };
    timeout(limit, connect).await.unwrap_or_else(|_| {
        let message = format!("connection to {} timed out after {limit:?}", HostName(host));
        Err(DialError::new(DialErrorKind::TimedOut, message))
    })
}

async fn connect(
    host: &Host,
    upstream: &UpstreamConfig,
    tls: &UpstreamTls,
    names: &Names,
    transport: Transport,
    steps: &StepObserver,
) -> Result<Stream, DialError> {
    match host {
        Host::Unix { directory, port } => {
            steps.begins(ConnectStep::Connect);
            connect_unix(&unix_socket::path(directory, *port)).await
        }
        Host::Tcp { host: name, .. } => {
            steps.begins(ConnectStep::LookUp);
            let addresses = addresses(host, upstream, names).await?;
            steps.begins(ConnectStep::Connect);
            let stream = connect_tcp(host, addresses, SocketOptions::from(upstream)).await?;
            if transport != Transport::Plain {
                steps.begins(ConnectStep::Tls);
            }
            secure(stream, host, name, tls, transport).await
        }
    }
}

async fn addresses(host: &Host, upstream: &UpstreamConfig, names: &Names) -> Result<Vec<SocketAddr>, DialError> {
    let mut addresses: Vec<SocketAddr> = match host {
        Host::Tcp {
            hostaddr: Some(address),
            port,
            ..
        } => vec![(*address, *port).into()],
        Host::Tcp { host: name, port, .. } => names
            .look_up(name, *port)
            .await
            .map_err(|error| unknown_host(host, &error.to_string()))?,
        Host::Unix { .. } => Vec::new(),
    };
    if addresses.is_empty() {
        return Err(unknown_host(host, "no address"));
    }
    if upstream.load_balance_hosts {
        shuffle(&mut addresses);
    }
    Ok(addresses)
}

fn unknown_host(host: &Host, reason: &str) -> DialError {
    let message = format!(
        "could not translate host name of {} to an address: {reason}",
        HostName(host)
    );
    DialError::new(DialErrorKind::UnknownHost, message)
}

/// Fisher-Yates by the system's generator. Without one the order stays as it came.
fn shuffle(addresses: &mut [SocketAddr]) {
    for end in (1..addresses.len()).rev() {
        let Ok(random) = getrandom::u32() else { return };
        let pick = usize::try_from(random).unwrap_or_default() % (end + 1);
        addresses.swap(end, pick);
    }
}

type Attempt = Pin<Box<dyn Future<Output = Result<Stream, DialError>> + Send>>;

/// Tries the addresses in order: the next one as soon as one has failed, or beside it when it has been silent for
/// [`STAGGER`]. The first connection wins, the others are closed.
async fn connect_tcp(host: &Host, addresses: Vec<SocketAddr>, options: SocketOptions) -> Result<Stream, DialError> {
    let mut waiting = addresses.into_iter();
    let mut running: Vec<Attempt> = Vec::new();
    let mut failures: Vec<DialError> = Vec::new();
    while let Some(address) = waiting.next() {
        running.push(Box::pin(connect_address(address, options)));
        let race = first_of(&mut running);
        let outcome = if waiting.len() == 0 {
            Some(race.await)
        } else {
            timeout(STAGGER, race).await.ok()
        };
        match outcome {
            Some(Ok(stream)) => return Ok(stream),
            Some(Err(failure)) => failures.push(failure),
            None => {}
        }
    }
    while !running.is_empty() {
        match first_of(&mut running).await {
            Ok(stream) => return Ok(stream),
            Err(failure) => failures.push(failure),
        }
    }
    let kind = failures
        .last()
        .map_or(DialErrorKind::UnknownHost, |failure| failure.kind);
    let reasons: Vec<_> = failures.into_iter().map(|failure| failure.message).collect();
    Err(DialError::new(
        kind,
        format!("connection to {} failed: {}", HostName(host), reasons.join("; ")),
    ))
}

/// Waits for one of the attempts to end and takes it out. Never ends where there is none.
async fn first_of(running: &mut Vec<Attempt>) -> Result<Stream, DialError> {
    poll_fn(|cx| {
        for position in 0..running.len() {
            if let Some(Poll::Ready(outcome)) = running.get_mut(position).map(|attempt| attempt.as_mut().poll(cx)) {
                drop(running.swap_remove(position));
                return Poll::Ready(outcome);
            }
        }
        Poll::Pending
    })
    .await
}

async fn connect_address(address: SocketAddr, options: SocketOptions) -> Result<Stream, DialError> {
    let failed = |error: io::Error| DialError::new(kind_of(&error), format!("{address}: {error}"));
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }
    .map_err(failed)?;
    options.apply(&socket).map_err(failed)?;
    socket
        .connect(address)
        .await
        .map(|socket| Stream::from_tcp_peer(socket, address))
        .map_err(failed)
}

async fn connect_unix(path: &Path) -> Result<Stream, DialError> {
    UnixStream::connect(path)
        .await
        .and_then(Stream::from_unix)
        .map_err(|error| {
            let kind = match error.kind() {
                // A server that is down has taken its file with it; one whose queue is full says EAGAIN.
                io::ErrorKind::NotFound | io::ErrorKind::WouldBlock => DialErrorKind::Refused,
                _ => kind_of(&error),
            };
            DialError::new(kind, format!("connection to {} failed: {error}", path.display()))
        })
}

async fn secure(
    mut stream: Stream,
    host: &Host,
    name: &str,
    tls: &UpstreamTls,
    transport: Transport,
) -> Result<Stream, DialError> {
    if transport == Transport::Plain {
        return Ok(stream);
    }
    let offered = match tls.begins() {
        Begins::Directly => true,
        Begins::WithSslRequest => is_tls_offered(&mut stream, host).await?,
    };
    match transport {
        _ if offered => tls.connect(stream, name).await.map_err(|error| {
            let message = format!("TLS to {} failed: {error}", HostName(host));
            DialError::new(handshake_failure(&error, transport), message)
        }),
        Transport::TlsRequired => {
            let message = format!("{} does not support SSL, but SSL was required", HostName(host));
            Err(DialError::new(DialErrorKind::TlsRefused, message))
        }
        Transport::TlsIfOffered | Transport::Plain => Ok(stream),
    }
}

/// A connection that breaks off in the handshake is a server that went away. Where TLS is only preferred it may as well
/// be one that can't do it, and going on without (which then says whether it is there) is what libpq does.
fn handshake_failure(error: &io::Error, transport: Transport) -> DialErrorKind {
    match (error.kind(), kind_of(error)) {
        (_, kind @ (DialErrorKind::TimedOut | DialErrorKind::Unreachable)) => kind,
        (io::ErrorKind::UnexpectedEof, _) | (_, DialErrorKind::Closed) if transport == Transport::TlsRequired => {
            DialErrorKind::Closed
        }
        _ => DialErrorKind::TlsFailed,
    }
}

/// SSLRequest, and the one byte that answers it (manual: protocol-flow-ssl).
async fn is_tls_offered(stream: &mut Stream, host: &Host) -> Result<bool, DialError> {
    let broken = |error: io::Error| {
        let kind = if kind_of(&error) == DialErrorKind::Local {
            DialErrorKind::Local
        } else {
            DialErrorKind::Closed
        };
        DialError::new(kind, format!("{} broke off at the SSLRequest: {error}", HostName(host)))
    };
    let mut request = BytesMut::new();
    compose::ssl_request(&mut request);
    stream.write_all(&request).await.map_err(broken)?;
    // Room for one byte: what stands behind it must stay in the socket.
    let mut room = BytesMut::with_capacity(1);
    let mut answer = room.split_off(room.capacity().saturating_sub(1));
    stream.read_buf(&mut answer).await.map_err(broken)?;
    let refuse = |kind, what| Err(DialError::new(kind, format!("{} {what}", HostName(host))));
    match answer.first() {
        // Trap 3: whoever put bytes in behind the answer could have them taken for the encrypted server's.
        Some(b'S') if stream.try_peek_idle() == IdleState::HasData => refuse(
            DialErrorKind::Protocol,
            "sent unencrypted data behind its answer to the SSLRequest",
        ),
        Some(b'S') => Ok(true),
        Some(b'N') => Ok(false),
        // Its text is not shown: anyone on the way could have written it.
        Some(b'E') => refuse(DialErrorKind::Closed, "answered the SSLRequest with an error"),
        Some(_) => refuse(
            DialErrorKind::Protocol,
            "answered the SSLRequest with something that PostgreSQL doesn't say",
        ),
        None => refuse(DialErrorKind::Closed, "closed the connection at the SSLRequest"),
    }
}

fn kind_of(error: &io::Error) -> DialErrorKind {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => DialErrorKind::Refused,
        io::ErrorKind::TimedOut => DialErrorKind::TimedOut,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown => {
            DialErrorKind::Unreachable
        }
        // No address of ours can go there: IPv6 without a route.
        io::ErrorKind::AddrNotAvailable => DialErrorKind::Unreachable,
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe => {
            DialErrorKind::Closed
        }
        _ => DialErrorKind::Local,
    }
}

/// A host as an operator knows it.
struct HostName<'a>(&'a Host);

impl fmt::Display for HostName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Host::Tcp {
                host,
                hostaddr: Some(address),
                port,
            } if host.is_empty() => write!(f, "{address} port {port}"),
            Host::Tcp { host, port, .. } => write!(f, "{host} port {port}"),
            Host::Unix { directory, port } => write!(f, "{}", unix_socket::path(directory, *port).display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::config::{ChannelBinding, PasswordSource, TargetSessionAttrs, UpstreamTlsConfig};
    use crate::net::ClientTls;
    use crate::net::test_certificates::{Files, own_root, upstream_config};

    fn upstream(tls: UpstreamTlsConfig) -> UpstreamConfig {
        UpstreamConfig {
            hosts: Vec::new(),
            load_balance_hosts: false,
            target_session_attrs: TargetSessionAttrs::Any,
            user: "app".into(),
            dbname: "app".into(),
            password: PasswordSource::None,
            tls,
            channel_binding: ChannelBinding::Prefer,
            require_auth: None,
            connect_timeout: Some(Duration::from_secs(10)),
            startup_parameters: Vec::new(),
            tcp_keepalive: None,
            tcp_user_timeout: Some(Duration::from_secs(7)),
            early_login: true,
        }
    }

    fn tcp(host: &str, hostaddr: Option<&str>, port: u16) -> Host {
        Host::Tcp {
            host: host.into(),
            hostaddr: hostaddr.map(|address| address.parse::<IpAddr>().unwrap()),
            port,
        }
    }

    async fn dial_to(host: &Host, tls: UpstreamTlsConfig, transport: Transport) -> Result<Stream, DialError> {
        let connector = UpstreamTls::new(&tls).unwrap();
        dial(
            host,
            &upstream(tls),
            &connector,
            &Names::System,
            transport,
            &StepObserver::default(),
        )
        .await
    }

    /// A server that reads the SSLRequest and answers with these bytes.
    async fn answers(listener: TcpListener, answer: &[u8]) -> TcpStream {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = [0; 8];
        socket.read_exact(&mut request).await.unwrap();
        assert_eq!(request, [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]);
        socket.write_all(answer).await.unwrap();
        socket
    }

    async fn outcome(answer: &[u8], transport: Transport) -> Result<Stream, DialError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = tcp("localhost", Some("127.0.0.1"), listener.local_addr().unwrap().port());
        let dialing = dial_to(&host, upstream_config(SslMode::Prefer, None), transport);
        let serving = async {
            let mut socket = answers(listener, answer).await;
            socket.shutdown().await.unwrap();
            socket
        };
        let (dialed, _socket) = tokio::join!(dialing, serving);
        dialed
    }

    #[test]
    fn the_order_of_attempts_is_libpqs() {
        use Transport::{Plain, TlsIfOffered, TlsRequired};
        assert_eq!(transports(SslMode::Disable), [Plain]);
        assert_eq!(transports(SslMode::Allow), [Plain, TlsRequired]);
        assert_eq!(transports(SslMode::Prefer), [TlsIfOffered, Plain]);
        for mode in [SslMode::Require, SslMode::VerifyCa, SslMode::VerifyFull] {
            assert_eq!(transports(mode), [TlsRequired]);
        }
    }

    #[tokio::test]
    async fn trap_03_bytes_behind_the_answer_are_refused() {
        let error = outcome(b"S\x15\x03\x01", Transport::TlsRequired).await.unwrap_err();
        assert_eq!(error.kind, DialErrorKind::Protocol);
        assert!(error.message.contains("unencrypted data"), "{error}");
    }

    #[tokio::test]
    async fn each_answer_to_an_ssl_request_has_its_meaning() {
        use DialErrorKind::{Closed, Protocol, TlsRefused};
        assert!(!outcome(b"N", Transport::TlsIfOffered).await.unwrap().is_tls());
        for (answer, kind, is_unavailable) in [
            (&b"N"[..], TlsRefused, false),
            (b"ESomeone's words\0", Closed, true),
            (b"", Closed, true),
            (b"HTTP/1.1 400\r\n", Protocol, false),
        ] {
            let error = outcome(answer, Transport::TlsRequired).await.unwrap_err();
            assert_eq!((error.kind, error.is_unavailable()), (kind, is_unavailable), "{error}");
            assert!(!error.message.contains("words"), "{error}");
        }
        // A server that says S and leaves.
        assert_eq!(
            outcome(b"S", Transport::TlsIfOffered).await.unwrap_err().kind,
            DialErrorKind::TlsFailed
        );
    }

    async fn serve_tls(listener: TcpListener, tls: ClientTls, direct: bool) -> io::Result<Stream> {
        if direct {
            let mut stream = Stream::from_tcp(listener.accept().await?.0)?;
            let mut ahead = BytesMut::with_capacity(64);
            stream.read_buf(&mut ahead).await?;
            return tls.accept(stream, ahead).await;
        }
        let stream = Stream::from_tcp(answers(listener, b"S").await)?;
        tls.accept(stream, BytesMut::new()).await
    }

    #[tokio::test]
    async fn tls_is_begun_with_a_request_or_directly() {
        let files = Files::new();
        let shown = own_root("localhost", &rcgen::PKCS_ECDSA_P256_SHA256);
        for direct in [false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let host = tcp("localhost", Some("127.0.0.1"), listener.local_addr().unwrap().port());
            let mut config = upstream_config(SslMode::VerifyFull, Some(files.write("root.crt", &shown.pem)));
            config.direct = direct;
            let serving = serve_tls(listener, files.server(&shown, |_| ()), direct);
            let (dialed, served) = tokio::join!(dial_to(&host, config, Transport::TlsRequired), serving);
            let (mut dialed, mut served) = (dialed.unwrap(), served.unwrap());
            assert!(dialed.is_tls() && !dialed.is_unix());
            dialed.write_all(b"startup").await.unwrap();
            let mut buf = BytesMut::with_capacity(64);
            served.read_buf(&mut buf).await.unwrap();
            assert_eq!(&buf[..], b"startup");
        }
    }

    #[tokio::test]
    async fn a_wrong_certificate_is_told_and_waiting_does_not_help() {
        let files = Files::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = tcp("localhost", Some("127.0.0.1"), listener.local_addr().unwrap().port());
        let shown = own_root("other", &rcgen::PKCS_ECDSA_P256_SHA256);
        let config = upstream_config(SslMode::VerifyFull, Some(files.write("root.crt", &shown.pem)));
        let serving = serve_tls(listener, files.server(&shown, |_| ()), false);
        let (dialed, _) = tokio::join!(dial_to(&host, config, Transport::TlsRequired), serving);
        let error = dialed.unwrap_err();
        assert_eq!((error.kind, error.is_unavailable()), (DialErrorKind::TlsFailed, false));
        let expected = "server certificate for \"other\" does not match host name \"localhost\"";
        assert!(error.message.ends_with(expected), "{error}");
    }

    #[tokio::test]
    async fn trap_81_every_address_is_tried_and_a_silent_one_delays_little() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let at = |address: &str| SocketAddr::new(address.parse().unwrap(), port);
        let options = SocketOptions::from(&upstream(upstream_config(SslMode::Disable, None)));
        let host = tcp("db", None, port);
        // 127.0.0.2 refuses; the second address answers.
        let stream = connect_tcp(&host, vec![at("127.0.0.2"), at("127.0.0.1")], options)
            .await
            .unwrap();
        let socket = socket2::SockRef::from(stream.tcp().unwrap());
        assert!(socket.tcp_nodelay().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(7)));
        let error = connect_tcp(&host, vec![at("127.0.0.2"), at("127.0.0.3")], options)
            .await
            .unwrap_err();
        assert_eq!(error.kind, DialErrorKind::Refused);
        assert!(
            error.message.contains("127.0.0.2") && error.message.contains("127.0.0.3"),
            "{error}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_attempt_does_not_hold_up_the_next() {
        let (winner, _peer) = Stream::pair().unwrap();
        let mut running: Vec<Attempt> = vec![Box::pin(std::future::pending())];
        assert!(timeout(STAGGER, first_of(&mut running)).await.is_err());
        running.push(Box::pin(async { Ok(winner) }));
        assert!(first_of(&mut running).await.is_ok());
        assert_eq!(running.len(), 1);
    }

    #[tokio::test]
    async fn names_that_do_not_exist_ports_that_refuse_and_missing_sockets_are_told_apart() {
        let plain = || upstream_config(SslMode::Disable, None);
        let error = dial_to(&tcp("no-such-host.invalid", None, 5432), plain(), Transport::Plain)
            .await
            .unwrap_err();
        assert_eq!(
            (error.kind, error.is_unavailable()),
            (DialErrorKind::UnknownHost, true),
            "{error}"
        );
        let free = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let error = dial_to(&tcp("", Some("127.0.0.1"), free), plain(), Transport::Plain)
            .await
            .unwrap_err();
        assert_eq!(
            (error.kind, error.is_unavailable()),
            (DialErrorKind::Refused, true),
            "{error}"
        );
        let directory = tempfile::tempdir().unwrap();
        let unix = Host::Unix {
            directory: directory.path().into(),
            port: 5432,
        };
        let error = dial_to(&unix, plain(), Transport::TlsRequired).await.unwrap_err();
        assert_eq!(
            (error.kind, error.is_unavailable()),
            (DialErrorKind::Refused, true),
            "{error}"
        );
        let _listener = std::os::unix::net::UnixListener::bind(directory.path().join(".s.PGSQL.5432")).unwrap();
        let stream = dial_to(&unix, plain(), Transport::TlsRequired).await.unwrap();
        assert!(stream.is_unix() && !stream.is_tls());
    }

    #[tokio::test]
    async fn a_server_that_never_answers_is_given_up_at_the_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = tcp("localhost", Some("127.0.0.1"), listener.local_addr().unwrap().port());
        let config = upstream_config(SslMode::Require, None);
        let mut upstream = upstream(config.clone());
        upstream.connect_timeout = Some(Duration::from_millis(50));
        let tls = UpstreamTls::new(&config).unwrap();
        let error = dial(
            &host,
            &upstream,
            &tls,
            &Names::System,
            Transport::TlsRequired,
            &StepObserver::default(),
        )
        .await
        .unwrap_err();
        assert_eq!(
            (error.kind, error.is_unavailable()),
            (DialErrorKind::TimedOut, true),
            "{error}"
        );
    }
}
