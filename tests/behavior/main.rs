//! The behaviour of pgsidecar as its users see it: the built program as a child process between real clients and a real
//! PostgreSQL, or a scripted one for what PostgreSQL won't do on request. One binary, one module per behaviour.

#![allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking")]

mod architecture;
mod audit;
mod auth;
mod auth_query;
mod breakage;
mod cancel;
mod client_tls;
mod command_line;
mod config_file;
mod copy;
mod databases;
mod deferred_begin;
mod diagnose;
mod drain;
mod first_catalog;
mod fuzz_corpus;
mod ledger_answers;
mod limits;
mod listeners;
mod metrics;
mod notifications;
mod pin_ends;
mod pin_quota;
mod pins;
mod pools;
mod prepared_statements;
mod process;
mod protocol;
mod reload;
mod rereading;
mod round_trips;
mod sequences;
mod settings;
mod sql_prepare;
mod startup;
mod startup_parameters;
mod startup_resets;
mod support;
mod threads;
mod transaction_pooling;
mod traps;
mod twins;
mod unreported_settings;
mod upstream;
