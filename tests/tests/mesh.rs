//! The mesh as a whole: real processes in network namespaces, real packets. One binary, so that it links once.

#[path = "mesh/basic.rs"]
mod basic;
#[path = "mesh/common.rs"]
mod common;
