#![no_main]
//! `hauberk_identity::server::fuzzing::csr` says what is checked.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hauberk_identity::server::fuzzing::csr(bytes));
