//! SCRAM messages and verifiers, to both sides of the exchange.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pgsidecar::fuzzing::scram(data));
