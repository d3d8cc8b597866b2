//! The mesh as a whole: real processes in network namespaces, real packets. One binary, so that it links once.

#[path = "mesh/basic.rs"]
mod basic;
#[path = "mesh/common.rs"]
mod common;
#[path = "mesh/endings.rs"]
mod endings;
#[path = "mesh/labels.rs"]
mod labels;
#[path = "mesh/peers.rs"]
mod peers;
#[path = "mesh/places.rs"]
mod places;
#[path = "mesh/streams.rs"]
mod streams;
