//! The name and the help text of every metric, each once. docs/metrics.md explains them; scripts and dashboards depend
//! on them, so a rename is a breaking change.

/// One metric family: what stands in its `# HELP` line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
}

macro_rules! families {
    ($($constant:ident: $name:literal, $help:literal;)*) => {
        $(pub(super) const $constant: Family = Family { name: $name, help: $help };)*

        /// All of them, for the test that holds them to the conventions.
        #[cfg(test)]
        pub(super) const ALL: &[Family] = &[$($constant),*];
    };
}

families! {
    ACQUIRE: "pgsidecar_acquire_seconds", "Time from asking for a backend to having it, or to giving up.";
    BACKEND_CONNECT: "pgsidecar_backend_connect_seconds", "Time to open a backend connection that logged in.";
    CLIENT_LOGIN: "pgsidecar_client_login_seconds", "Time from accepting a client to the greeting that ends its login.";
    TRANSACTION: "pgsidecar_transaction_seconds", "Time from a transaction's first request to its last reply.";
    QUERY: "pgsidecar_query_seconds", "Time from a request to the ReadyForQuery that ends its reply.";
    CLIENTS: "pgsidecar_clients", "Clients that are logged in, by what they do now.";
    BACKENDS: "pgsidecar_backends", "Backend connections, by what they do now.";
    POOL_MAX_SIZE: "pgsidecar_pool_max_size", "Backend connections that the pool may hold at most.";
    OLDEST_WAIT: "pgsidecar_oldest_wait_seconds", "How long the first waiting client has waited; 0 if none.";
    UPSTREAM_UP: "pgsidecar_upstream_up", "1 if the last attempt to log in to PostgreSQL reached it, else 0.";
    CLIENT_CONNECTIONS: "pgsidecar_client_connections_total", "Client connections accepted.";
    BACKEND_CONNECTIONS: "pgsidecar_backend_connections_total", "Backend connections opened and logged in.";
    BACKEND_CLOSED: "pgsidecar_backend_closed_total", "Backend connections closed, by reason.";
    TRANSACTIONS: "pgsidecar_transactions_total", "Transactions completed, those of a single statement included.";
    QUERIES: "pgsidecar_queries_total", "Requests completed: each ends with one ReadyForQuery.";
    SETTING_ANSWERS: "pgsidecar_setting_answers_total", "SETs answered without PostgreSQL, which had accepted the value before.";
    BYTES: "pgsidecar_bytes_total", "Bytes of PostgreSQL messages relayed, by where they went.";
    ERRORS: "pgsidecar_errors_total", "ErrorResponses that clients were sent, by SQLSTATE.";
    PINS: "pgsidecar_pins_total", "Times that a client kept its backend beyond a transaction, by why.";
    PINS_REFUSED: "pgsidecar_pins_refused_total", "Statements refused because pool.max_pinned backends were kept already, by why they would have kept one.";
    AUDITS: "pgsidecar_audits_total", "Backends that were asked, when they were given back, what they hold.";
    AUDIT_SURPRISES: "pgsidecar_audit_surprises_total", "What backends held, when they were given back, and should not, by kind.";
    CANCELS: "pgsidecar_cancels_total", "CancelRequests received, by what became of them.";
    BUILD_INFO: "pgsidecar_build_info", "1, with the version that runs as a label.";
    PROCESS_CPU: "process_cpu_seconds_total", "User and system CPU time spent in seconds.";
    PROCESS_RESIDENT: "process_resident_memory_bytes", "Resident memory size in bytes.";
    PROCESS_START: "process_start_time_seconds", "Start time of the process since the Unix epoch in seconds.";
    PROCESS_MAX_FDS: "process_max_fds", "Maximum number of open file descriptors.";
}
