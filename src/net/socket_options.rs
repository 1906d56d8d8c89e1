//! What every TCP socket is set to (trap 91): no Nagle delay, keepalive and a bound on unacknowledged bytes.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::SockRef;

use crate::config::{TcpKeepalive, UpstreamConfig};

/// How a vanished peer is noticed on TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketOptions {
    /// Probes of a silent peer; `None` leaves keepalive off: a peer that lost power then holds its socket for ever.
    pub keepalive: Option<TcpKeepalive>,
    /// How long sent bytes may stay unacknowledged (TCP_USER_TIMEOUT); `None`: the system's own limit, a quarter of an hour.
    pub user_timeout: Option<Duration>,
}

impl Default for SocketOptions {
    /// The defaults of config.yaml: a probe after 30 s, every 10 s, three times; 30 s unacknowledged.
    fn default() -> Self {
        let keepalive = TcpKeepalive {
            idle: Duration::from_secs(30),
            interval: Duration::from_secs(10),
            count: 3,
        };
        Self {
            keepalive: Some(keepalive),
            user_timeout: Some(Duration::from_secs(30)),
        }
    }
}

impl From<&UpstreamConfig> for SocketOptions {
    fn from(upstream: &UpstreamConfig) -> Self {
        Self {
            keepalive: upstream.tcp_keepalive,
            user_timeout: upstream.tcp_user_timeout,
        }
    }
}

impl SocketOptions {
    /// Sets them on a socket. On a listening socket they hold for every connection that it accepts: Linux copies them,
    /// which spares five system calls per client.
    pub(super) fn apply(&self, socket: &impl AsFd) -> io::Result<()> {
        let socket = SockRef::from(socket);
        socket.set_tcp_nodelay(true)?;
        match &self.keepalive {
            Some(keepalive) => socket.set_tcp_keepalive(
                &socket2::TcpKeepalive::new()
                    .with_time(keepalive.idle)
                    .with_interval(keepalive.interval)
                    .with_retries(keepalive.count),
            )?,
            None => socket.set_keepalive(false)?,
        }
        socket.set_tcp_user_timeout(self.user_timeout)
    }
}
