//! The only place that touches sockets: listening, dialing, TLS in both roles. It knows the eight bytes of an
//! SSLRequest and no other message.
//!
//! Reading order: [`stream`] is one connected socket, [`peer_address`] names who is at its other end, [`idle`] looks at
//! one that nobody reads, `plain` tries a plain socket before it waits, [`socket_options`] is what every TCP socket is set to, [`listen`] accepts clients,
//! `unix_socket` is the file that they find us by, [`mod@dial`] connects to PostgreSQL (and says so in [`connect_steps`]) and [`tls`] secures either side.

pub mod connect_steps;
pub mod dial;
pub mod idle;
pub mod listen;
pub mod peer_address;
mod plain;
pub mod socket_options;
pub mod stream;
#[cfg(test)]
mod test_certificates;
pub mod tls;
mod unix_socket;

pub use connect_steps::{ConnectStep, StepObserver};
pub use dial::{DialError, DialErrorKind, Transport, dial, transports};
pub use idle::{IdleProbe, IdleState};
pub use listen::{BindError, Listener};
pub use peer_address::{PeerAddress, user_name};
pub use socket_options::SocketOptions;
pub use stream::Stream;
pub use tls::{ClientTls, TlsConfigError, UpstreamTls};
