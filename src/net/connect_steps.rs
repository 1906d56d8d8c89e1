//! The steps of opening a connection to PostgreSQL, told as they begin: what `pgsidecar diagnose` measures by.

use std::fmt;
use std::sync::Arc;

/// One step, in the order in which they come. Another attempt (the next host, another transport) begins at the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConnectStep {
    /// The name service is asked for the host's addresses.
    LookUp,
    /// TCP's handshake, or connect(2) on a unix socket.
    Connect,
    /// The SSLRequest and TLS's handshake.
    Tls,
    /// From the StartupMessage to the first ReadyForQuery.
    LogIn,
}

/// Is told of each step when it begins. The default tells nobody and costs a comparison.
#[derive(Clone, Default)]
pub struct StepObserver(Option<Arc<dyn Fn(ConnectStep) + Send + Sync>>);

impl StepObserver {
    /// Calls this at each step.
    pub fn new(observer: impl Fn(ConnectStep) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(observer)))
    }

    /// Says that a step begins.
    pub fn begins(&self, step: ConnectStep) {
        if let Some(observer) = &self.0 {
            observer(step);
        }
    }
}

impl fmt::Debug for StepObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StepObserver")
    }
}
