//! Label values as closed enums: a peer can't invent one, so it can't grow the number of series.

macro_rules! labels {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $label:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_meta])* $variant,)* }

        impl $name {
            /// Every value, in the order of their [`index`](Self::index).
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The label's text.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }

            /// The place in [`ALL`](Self::ALL).
            #[must_use]
            pub const fn index(self) -> usize {
                self as usize
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

labels! {
    /// What a logged-in client does now: `pgsidecar_clients{state}`.
    ClientState {
        /// It holds a backend.
        Active = "active",
        /// It has asked for a backend and has none yet.
        Waiting = "waiting",
        /// It holds nothing and has asked for nothing.
        Idle = "idle",
    }
}

labels! {
    /// What a backend does now: `pgsidecar_backends{state}`.
    BackendState {
        /// A client holds it until the end of its transaction or session.
        Active = "active",
        /// Nobody holds it.
        Idle = "idle",
        /// It is being opened, or logging in.
        Connecting = "connecting",
        /// A client keeps it beyond its transactions because of what it left in the session.
        Pinned = "pinned",
        /// It hears notifications for the pool's clients.
        Listening = "listening",
    }
}

labels! {
    /// Why a backend was closed: `pgsidecar_backend_closed_total{reason}`.
    CloseReason {
        /// It was older than `pool.max_lifetime`.
        Lifetime = "lifetime",
        /// Nobody used it for `pool.idle_timeout`.
        IdleTimeout = "idle_timeout",
        /// It sent a FATAL, its socket closed, or it broke the protocol.
        Broken = "broken",
        /// Cleaning it failed or took longer than `pool.reset_timeout`.
        ResetFailed = "reset_failed",
        /// Its client left at a point where it can't be cleaned.
        ClientGone = "client_gone",
        /// A cancel that may still be under way could hit the next owner.
        Cancelled = "cancelled",
        /// It holds state that no cleaning reaches.
        NotClean = "not_clean",
        /// The configuration that it was opened under is no longer valid.
        Reload = "reload",
        /// The process is ending.
        Drain = "drain",
        /// Another pool needed its place under `pool.max_total`, or its pool was closed.
        Evicted = "evicted",
        /// PostgreSQL refused what it was opened for.
        Refused = "refused",
        /// It was dedicated to one client (session mode, replication), which has left.
        SessionEnd = "session_end",
    }
}

labels! {
    /// What became of a CancelRequest: `pgsidecar_cancels_total{outcome}`.
    CancelOutcome {
        /// PostgreSQL was sent it.
        Forwarded = "forwarded",
        /// The client was taken out of the queue and told 57014.
        Dequeued = "dequeued",
        /// The client ran nothing.
        Idle = "idle",
        /// No client has this key.
        UnknownKey = "unknown_key",
        /// PostgreSQL did not take it within `pool.cancel_timeout`; the backend was discarded.
        TimedOut = "timed_out",
    }
}

labels! {
    /// Where relayed bytes went: `pgsidecar_bytes_total{direction}`.
    Direction {
        /// From a client to PostgreSQL.
        ToBackend = "to_backend",
        /// From PostgreSQL to a client.
        ToClient = "to_client",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_is_the_place_in_all() {
        for (place, reason) in CloseReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), place);
        }
    }

    #[test]
    fn labels_are_snake_case_words() {
        let labels = CloseReason::ALL
            .iter()
            .map(|l| l.as_str())
            .chain(CancelOutcome::ALL.iter().map(|l| l.as_str()));
        for label in labels {
            assert!(label.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{label}");
        }
    }
}
