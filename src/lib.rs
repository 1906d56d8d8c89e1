//! pgsidecar: a PostgreSQL wire-protocol connection-pooling proxy that runs as a sidecar beside an app.
//!
//! # Layout
//!
//! From the bytes up: [`wire`] cuts and composes messages, [`protocol`] says what may happen next,
//! [`virtual_session`] knows what a client believes its session holds, [`net`] owns the sockets, [`backend`] is one
//! connection to PostgreSQL, [`pool`] decides who may use it, [`relay`] moves runs of bytes between a client and its
//! lease, [`client`] is one client's life and [`server`] the process's. [`config`], [`logging`], [`metrics`], [`admin`],
//! [`error`] and [`drain`] stand beside them; [`diagnose`] measures what a connection costs.

pub mod admin;
pub mod backend;
pub mod cli;
pub mod client;
pub mod config;
pub mod diagnose;
pub mod drain;
pub mod error;
#[doc(hidden)]
pub mod fuzzing;
pub mod logging;
pub mod metrics;
pub mod net;
pub mod pool;
pub mod protocol;
pub mod relay;
pub mod server;
pub mod virtual_session;
pub mod wire;
