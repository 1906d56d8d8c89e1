//! Room for sockets: the soft limit of file descriptors is raised to the hard one at start (trap 89).

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors that are no client's: backends, listeners, logs, the endpoint.
const RESERVED: u64 = 256;

/// Raises the limit, and says so when `limits.max_clients` does not fit into it.
pub(super) fn raise_limit(max_clients: u32) {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return;
    };
    let raised = if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok()
    } else {
        true
    };
    let limit = if raised { hard } else { soft };
    let wanted = u64::from(max_clients) + RESERVED;
    if limit < wanted {
        tracing::warn!(
            limit,
            wanted,
            "the limit of file descriptors is too low for limits.max_clients"
        );
    }
}
