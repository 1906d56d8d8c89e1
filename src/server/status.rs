//! What the status page shows, gathered when somebody looks.

use std::sync::Arc;
use std::time::Instant;

use super::listener::Open;
use crate::admin::{PoolStatus, Status, StatusSource};
use crate::client::context::ClientContext;
use crate::config::Config;
use crate::drain::Drain;

/// The source of the status page.
pub(super) fn source(
    config: &Config,
    context: &Arc<ClientContext>,
    listeners: &[Open],
    drain: Arc<Drain>,
) -> StatusSource {
    let started = Instant::now();
    let listening: Vec<_> = listeners.iter().map(|open| open.listener.local_address()).collect();
    let upstream = config.upstream.masked_url();
    let context = Arc::downgrade(context);
    StatusSource::new(move || Status {
        uptime: started.elapsed(),
        listening: listening.clone(),
        upstream: upstream.clone(),
        phase: format!("{:?}", drain.phase()),
        pools: context.upgrade().map(|context| pools(&context)).unwrap_or_default(),
    })
}

fn pools(context: &ClientContext) -> Vec<PoolStatus> {
    use crate::metrics::BackendState;
    let all = context.pools.all();
    all.iter()
        .map(|pool| {
            let (key, status, metrics) = (pool.key(), pool.status(), pool.metrics());
            PoolStatus {
                database: key.database.clone(),
                user: key.user.clone(),
                mode: format!("{:?}", pool.mode()).to_lowercase(),
                active: metrics.backends_in(BackendState::Active),
                pinned: metrics.backends_in(BackendState::Pinned),
                idle: metrics.backends_in(BackendState::Idle),
                connecting: metrics.backends_in(BackendState::Connecting),
                max_size: status.max_size,
                waiting: status.waiting as u64,
                oldest_wait: status.oldest_wait,
            }
        })
        .collect()
}
