//! rustls is the oracle: each side of every connection can be either.

mod differential;
mod pair;
mod streams;
