//! Clients that share backends, their settings, and a PostgreSQL of a few hundred lines.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pgsidecar::fuzzing::ledger(data));
