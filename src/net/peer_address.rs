//! Who is at the other end of a socket, as the kernel says it.

use std::fmt;
use std::net::SocketAddr;

use nix::unistd::{Uid, User};

/// The other end of a stream, learned once when it was connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerAddress {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A process on this machine (SO_PEERCRED): who it was when it connected.
    Unix {
        /// The effective user.
        uid: u32,
        /// The process, where the kernel tells it (it doesn't across process namespaces).
        pid: Option<i32>,
    },
}

impl PeerAddress {
    /// Whether nobody outside this machine can be there: a loopback address or a unix socket.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix { .. } => true,
        }
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix { uid, pid: Some(pid) } => write!(f, "[local] pid {pid} uid {uid}"),
            Self::Unix { uid, pid: None } => write!(f, "[local] uid {uid}"),
        }
    }
}

/// The system's name for a user, for `peer` authentication (manual: auth-peer). `None`: no such user, or it can't be
/// looked up.
pub fn user_name(uid: u32) -> Option<String> {
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_zero_is_root_and_nobody_has_the_last_number() {
        assert_eq!(user_name(0).as_deref(), Some("root"));
        assert_eq!(user_name(u32::MAX - 7), None);
    }

    #[test]
    fn loopback_in_either_family_is_local() {
        for (address, local) in [
            ("127.0.0.9:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("10.0.0.1:1", false),
        ] {
            assert_eq!(
                PeerAddress::Tcp(address.parse().unwrap()).is_local(),
                local,
                "{address}"
            );
        }
    }
}
