//! Requests and replies in any order, through the queue of what a backend owes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pgsidecar::fuzzing::pipeline(data));
