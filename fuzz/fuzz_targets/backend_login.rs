//! A server's frames while we log in to it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pgsidecar::fuzzing::backend_login(data));
