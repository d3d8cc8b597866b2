//! The parts against real API servers, without nodes. One binary, so that it links once. What needs pods that run is in
//! `e2e/tests`.

#[path = "apiserver/control_plane.rs"]
mod control_plane;
#[path = "apiserver/destination/mod.rs"]
mod destination;
