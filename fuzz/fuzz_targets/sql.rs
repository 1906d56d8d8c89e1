//! Texts of statements, any bytes: cut into tokens, read for their effects, shown in a log.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pgsidecar::fuzzing::sql(data));
