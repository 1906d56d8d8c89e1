//! A client that comes before the catalog of its database was read.

use super::Session;
use crate::drain::Phase;

impl Session {
    /// Without the catalog every routine that a text mentions is suspicious, and would tie the client to its backend. A
    /// plain one mentions none, and need not wait; nobody waits for long, or twice.
    pub(super) async fn wait_for_catalog(&mut self, is_plain: bool) {
        if !self.pool.knows_catalog() {
            if is_plain {
                return;
            }
            tokio::select! {
                () = self.pool.know_catalog(self.settings.catalog_wait) => {}
                () = self.stream.left() => {}
                () = self.drain.reached(Phase::ClosingAll) => {}
            }
        }
        self.awaits_catalog = false;
    }
}
