//! `hauberk-webhook`.

fn main() {}
