//! A client's frames while we authenticate it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pgsidecar::fuzzing::client_auth(data));
