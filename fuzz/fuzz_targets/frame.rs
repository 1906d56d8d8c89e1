//! Frames of either direction, and every view of their bodies.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pgsidecar::fuzzing::frame(data));
