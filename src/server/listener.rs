//! Accepting clients: one task per address; an error of one client or of the system never ends it.

use std::sync::Arc;
use std::time::Duration;

use crate::client::context::{ClientContext, Door};
use crate::client::serve;
use crate::config::{Config, ListenAddress};
use crate::drain::Drain;
use crate::net::{BindError, Listener};

/// How long accepting pauses when the system has no descriptor or memory for one more (trap 89).
const PAUSE: Duration = Duration::from_millis(50);

/// One address that clients can come by, and what it demands of them.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) listener: Listener,
    door: Door,
}

/// Binds every address of the configuration.
pub(super) fn bind(config: &Config) -> Result<Vec<Open>, BindError> {
    let options = super::client_socket_options(config);
    let mut open = Vec::new();
    for entry in &config.listen {
        let is_unix = matches!(entry.address, ListenAddress::Unix { .. });
        let door = Door::new(entry, config, is_unix);
        for listener in Listener::bind(&entry.address, entry.unix_socket_mode)? {
            if let Err(error) = listener.set_options(&options) {
                tracing::warn!(%error, address = %listener.local_address(), "socket options can't be set");
            }
            open.push(Open { listener, door });
        }
    }
    Ok(open)
}

/// The accepting tasks; they stop together.
#[derive(Debug)]
pub(super) struct Accepting(tokio::task::JoinSet<()>);

impl Accepting {
    /// Closes the addresses.
    pub(super) fn stop(mut self) {
        self.0.abort_all();
    }
}

/// Accepts on every address from now on.
pub(super) fn spawn(open: Vec<Open>, context: &Arc<ClientContext>, drain: &Arc<Drain>) -> Accepting {
    let mut tasks = tokio::task::JoinSet::new();
    for one in open {
        tasks.spawn(accept(one, context.clone(), drain.clone()));
    }
    Accepting(tasks)
}

async fn accept(open: Open, context: Arc<ClientContext>, drain: Arc<Drain>) {
    loop {
        match open.listener.accept().await {
            Ok(stream) => {
                tokio::spawn(serve(stream, open.door, context.clone(), drain.signal()));
            }
            Err(error) if is_of_one_client(&error) => {}
            Err(error) => {
                tracing::warn!(%error, address = %open.listener.local_address(), "can't accept a client; pausing");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// The client was gone before it was accepted.
fn is_of_one_client(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted | ErrorKind::NotConnected
    )
}
