//! SIGHUP: the configuration is read again and put into force as a whole, or not at all. Nobody is dropped.

use std::sync::Arc;

use super::StartError;
use crate::client::context::{ClientContext, Snapshot};
use crate::config::{Config, Sources, reload_difference};
use crate::logging::LoggingHandle;
use crate::pool::LoadedTls;

/// What a reload needs.
#[derive(Debug)]
pub(super) struct Reloader {
    sources: Sources,
    context: Arc<ClientContext>,
    logging: LoggingHandle,
}

impl Reloader {
    pub(super) fn new(sources: Sources, context: Arc<ClientContext>, logging: LoggingHandle) -> Self {
        Self {
            sources,
            context,
            logging,
        }
    }

    /// Reads and applies. What is wrong is logged, and nothing has changed then.
    pub(super) async fn reload(&self) {
        let loaded = match Config::load(&self.sources) {
            Ok(loaded) => loaded,
            Err(error) => return tracing::error!(%error, "reload: nothing has changed"),
        };
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        let config = Arc::new(loaded.config);
        let before = self.context.snapshot();
        // Whatever can fail comes first, so that a bad file changes nothing at all.
        let (snapshot, tls) = match self.prepare(&config).await {
            Ok(prepared) => prepared,
            Err(error) => return tracing::error!(%error, "reload: nothing has changed"),
        };
        if let Err(error) = self.logging.reload(&config.log) {
            return tracing::error!(%error, "reload: nothing has changed");
        }
        self.context.replace(snapshot);
        self.context.pools.reconfigure(config.clone(), tls);
        self.context.reloaded();
        let needs_restart = reload_difference(&before.config, &config);
        if needs_restart.is_empty() {
            tracing::info!("reloaded");
        } else {
            tracing::warn!(keys = %needs_restart.join(", "), "reloaded; these keys change at the next start only");
        }
    }

    /// Reads certificates and derives verifiers, which takes milliseconds of CPU per user.
    async fn prepare(&self, config: &Arc<Config>) -> Result<(Snapshot, LoadedTls), StartError> {
        let (context, next) = (self.context.clone(), config.clone());
        let preparing = tokio::task::spawn_blocking(move || {
            let tls = LoadedTls::of(&next)?;
            Ok((context.prepare(next)?, tls))
        });
        preparing.await.map_err(std::io::Error::other)?
    }
}
