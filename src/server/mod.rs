//! The process: bind, serve, reload, drain.
//!
//! [`listener`] accepts clients, [`signals`] hears the operator, [`reload`] puts another configuration into force,
//! [`descriptors`] makes room for sockets, [`heap`] gives memory back. [`run`] is the whole life in order.

mod descriptors;
mod heap;
mod listener;
mod reload;
mod signals;
mod status;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;

use crate::admin::{self, AdminState};
use crate::client::context::{BadSnapshot, ClientContext, Snapshot};
use crate::client::warm::{self, WarmClients};
use crate::config::{Config, DrainMode, Sources};
use crate::drain::{Drain, Phase};
use crate::logging::LoggingHandle;
use crate::metrics::{Metrics, stats_loop};
use crate::net::{BindError, SocketOptions, TlsConfigError};
use crate::pool::Pools;
use signals::{Signal, Signals};

/// Between the deadline, at which clients between transactions are closed, and the closing of the rest.
const LAST_GRACE: Duration = Duration::from_secs(1);
/// How long closed clients may take to clean up after themselves.
const CLEANUP_GRACE: Duration = Duration::from_secs(6);

/// Why the process can't serve.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The metrics address.
    #[error("metrics.listen: can't listen on {address}: {cause}")]
    MetricsBind {
        /// Where.
        address: std::net::SocketAddr,
        /// Why not.
        cause: std::io::Error,
    },
    /// A certificate, key or user.
    #[error(transparent)]
    Snapshot(#[from] BadSnapshot),
    /// A certificate or key of an upstream.
    #[error("upstream: {0}")]
    UpstreamTls(#[from] TlsConfigError),
    /// The system refused something that is always there.
    #[error("{0}")]
    System(#[from] std::io::Error),
}

/// Serves until told to stop. Returns when the last client is gone or was closed.
pub async fn run(config: Config, sources: Sources, logging: LoggingHandle) -> Result<(), StartError> {
    let config = Arc::new(config);
    let room = descriptors::raise_limit(&config);
    let mut signals = Signals::new()?;
    let metrics = Metrics::new();
    metrics.declare_pin_reasons(&crate::relay::pin_labels());
    metrics.declare_surprises(&crate::pool::surprise_labels());
    let mut mock_key = [0; 32];
    getrandom::fill(&mut mock_key).map_err(BadSnapshot::from)?;
    let snapshot = Snapshot::new(config.clone(), mock_key)?;
    let pools = Arc::new(Pools::new(config.clone(), metrics.clone())?);
    let context = ClientContext::new(snapshot, mock_key, pools, metrics.clone(), room);
    let listeners = listener::bind(&config)?;
    let admin_listener = bind_admin(&config).await?;
    announce(&config, &listeners, admin_listener.as_ref());

    let drain = Arc::new(Drain::new());
    let (stop_serving, stopped) = tokio::sync::watch::channel(false);
    let source = status::source(&config, &context, &listeners, drain.clone());
    let mut tasks = tokio::task::JoinSet::new();
    if let Some(listener) = admin_listener {
        let state = AdminState {
            metrics: metrics.clone(),
            status: source,
        };
        tasks.spawn(admin::serve(listener, state, until_true(stopped.clone())));
    }
    if let Some(interval) = config.log.stats_interval {
        tasks.spawn(stats_loop(metrics.clone(), interval, until_true(stopped.clone())));
    }
    tasks.spawn(sweep_warm_clients(context.warm.clone(), until_true(stopped.clone())));
    tasks.spawn(heap::keep_small(drain.clone(), until_true(stopped.clone())));
    let accepting = listener::spawn(listeners, &context, &drain);
    warm_up(&context);
    let reloader = reload::Reloader::new(sources, context.clone(), logging);

    hear_until_told_to_stop(&mut signals, &reloader).await;
    metrics.readiness().set_draining();
    drain_clients(&context, &drain, &mut signals, accepting).await;
    context.pools.close();
    let _ = stop_serving.send(true);
    while tasks.join_next().await.is_some() {}
    tracing::info!("stopped");
    Ok(())
}

async fn bind_admin(config: &Config) -> Result<Option<TcpListener>, StartError> {
    let Some(address) = config.metrics.listen else {
        return Ok(None);
    };
    let bound = TcpListener::bind(address).await;
    bound
        .map(Some)
        .map_err(|cause| StartError::MetricsBind { address, cause })
}

fn announce(config: &Config, listeners: &[listener::Open], admin: Option<&TcpListener>) {
    let addresses: Vec<_> = listeners.iter().map(|open| open.listener.local_address()).collect();
    let metrics = admin
        .and_then(|admin| admin.local_addr().ok())
        .map_or_else(|| "off".to_owned(), |at| at.to_string());
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        listen = %addresses.join(","),
        metrics = %metrics,
        upstream = %config.upstream.masked_url(),
        mode = ?config.pool.mode,
        "pgsidecar serves"
    );
}

/// Opens the warm backends and reads the catalog before any client came.
fn warm_up(context: &Arc<ClientContext>) {
    context.pools.start();
    let context = context.clone();
    tokio::spawn(async move {
        let Ok(pool) = context.pools.pool(&context.pools.default_key()) else {
            return;
        };
        // A database that is down is no reason not to serve: clients are told, and every login tries again.
        if pool.learn().await.is_ok() {
            pool.begin_to_know_catalog();
        }
    });
}

async fn hear_until_told_to_stop(signals: &mut Signals, reloader: &reload::Reloader) {
    loop {
        match signals.next().await {
            Signal::Reload => reloader.reload().await,
            Signal::Stop => return,
        }
    }
}

/// Ends every client within the configured grace: see `drain:` in config.yaml.
async fn drain_clients(
    context: &Arc<ClientContext>,
    drain: &Arc<Drain>,
    signals: &mut Signals,
    accepting: listener::Accepting,
) {
    let config = context.snapshot().config.clone();
    let started = Instant::now();
    tracing::info!(clients = drain.clients(), mode = ?config.drain.mode, deadline = ?config.drain.deadline, "draining");
    let accepting = match config.drain.mode {
        DrainMode::Sidecar => Some(accepting),
        DrainMode::Server => {
            accepting.stop();
            None
        }
    };
    drain.advance(Phase::Draining);
    let asked_again = tokio::select! {
        () = drain.all_gone() => false,
        () = tokio::time::sleep(config.drain.deadline) => false,
        () = second_stop(signals) => true,
    };
    if let Some(accepting) = accepting {
        accepting.stop();
    }
    if !asked_again {
        drain.advance(Phase::ClosingIdle);
        tokio::select! {
            () = drain.all_gone() => {}
            () = tokio::time::sleep(LAST_GRACE) => {}
            () = second_stop(signals) => {}
        }
    }
    drain.advance(Phase::ClosingAll);
    let _ = tokio::time::timeout(CLEANUP_GRACE, drain.all_gone()).await;
    tracing::info!(took = ?started.elapsed(), left = drain.clients(), "drained");
}

async fn sweep_warm_clients(warm: Arc<WarmClients>, stopped: impl Future<Output = ()>) {
    let mut sweep = tokio::time::interval(warm::SWEEP_EVERY);
    tokio::pin!(stopped);
    loop {
        tokio::select! {
            _ = sweep.tick() => warm.sweep(),
            () = &mut stopped => return,
        }
    }
}

async fn second_stop(signals: &mut Signals) {
    while signals.next().await != Signal::Stop {}
}

async fn until_true(mut stopped: tokio::sync::watch::Receiver<bool>) {
    // An error means that the sender is gone, and so is the process.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// The socket options of the sockets that clients come by.
fn client_socket_options(config: &Config) -> SocketOptions {
    SocketOptions::from(&config.upstream)
}
