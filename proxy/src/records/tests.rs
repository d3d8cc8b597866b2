//! rustls is the oracle: each side of every connection can be either.

mod differential;
mod evil;
mod handshake;
mod hostile;
mod pair;
mod streams;
