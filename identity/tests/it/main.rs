//! The identity server and its clients over real sockets and real TLS, all on loopback.

mod agent;
mod ca;
mod certify;
mod grpc;
mod leaf;
mod mtls;
mod support;
mod trust;
