//! A client's bytes before authentication: requests for encryption, cancel, login parameters.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pgsidecar::fuzzing::startup_packet(data));
