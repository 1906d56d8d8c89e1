//! Room for sockets: the soft limit of file descriptors is raised to the hard one at start, and what does not fit into it
//! is refused before backends and the metrics endpoint starve (trap 89).

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::Config;

/// Descriptors that are neither a client's nor a pooled backend's: listeners, logs, the endpoint, cancels, clients that
/// are being told that there is no room.
const RESERVED: u64 = 256;

/// Raises the limit, says so when `limits.max_clients` does not fit into it, and returns how many client connections do.
pub(super) fn raise_limit(config: &Config) -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return usize::MAX;
    };
    let raised = if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok()
    } else {
        true
    };
    let limit = if raised { hard } else { soft };
    let room = room(limit, u64::from(config.pool.max_total));
    let wanted = u64::from(config.limits.max_clients);
    if room < wanted {
        tracing::warn!(
            limit,
            room,
            wanted,
            "the limit of file descriptors is too low for limits.max_clients; clients beyond the room are refused"
        );
    }
    usize::try_from(room).unwrap_or(usize::MAX)
}

/// What is left for clients; at least half of it.
fn room(limit: u64, backends: u64) -> u64 {
    limit.saturating_sub(RESERVED + backends).max(limit / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_what_backends_leave_and_at_least_half() {
        assert_eq!(room(10_336, 80), 10_000);
        assert_eq!(room(200, 80), 100);
        assert_eq!(room(u64::MAX, 80), u64::MAX - 336);
    }
}
