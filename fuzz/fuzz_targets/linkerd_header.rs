#![no_main]
//! `hauberk_proxy::fuzzing::linkerd_header` says what is checked.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hauberk_proxy::fuzzing::linkerd_header(bytes));
