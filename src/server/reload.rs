//! SIGHUP: the configuration is read again and put into force as a whole, or not at all. Nobody is dropped.

use std::sync::Arc;

use crate::client::context::ClientContext;
use crate::config::{Config, Sources, reload_difference};
use crate::logging::LoggingHandle;

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
        if let Err(error) = self.logging.reload(&config.log) {
            return tracing::error!(%error, "reload: nothing has changed");
        }
        // Deriving verifiers takes milliseconds of CPU per user.
        let (context, next) = (self.context.clone(), config.clone());
        let replaced = tokio::task::spawn_blocking(move || context.replace(next)).await;
        match replaced {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return tracing::error!(%error, "reload: nothing has changed"),
            Err(error) => return tracing::error!(%error, "reload failed"),
        }
        if let Err(error) = self.context.pools.reconfigure(config.clone()) {
            return tracing::error!(%error, "reload: the pools keep the old configuration");
        }
        let needs_restart = reload_difference(&before.config, &config);
        if needs_restart.is_empty() {
            tracing::info!("reloaded");
        } else {
            tracing::warn!(keys = %needs_restart.join(", "), "reloaded; these keys change at the next start only");
        }
    }
}
