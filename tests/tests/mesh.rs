//! The mesh as a whole: real processes in network namespaces, real packets. One binary, so that it links once.

#[path = "mesh/affinity.rs"]
mod affinity;
#[path = "mesh/balance.rs"]
mod balance;
#[path = "mesh/basic.rs"]
mod basic;
#[path = "mesh/common.rs"]
mod common;
#[path = "mesh/reasons.rs"]
mod reasons;
#[path = "mesh/required.rs"]
mod required;
#[path = "mesh/scene.rs"]
mod scene;
#[path = "mesh/talk.rs"]
mod talk;
