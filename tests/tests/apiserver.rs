//! The parts against real API servers, without nodes. One binary, so that it links once. What needs pods that run is in
//! `e2e/tests`.

#[path = "apiserver/cli.rs"]
mod cli;
#[path = "apiserver/cli_inject.rs"]
mod cli_inject;
#[path = "apiserver/cli_install.rs"]
mod cli_install;
#[path = "apiserver/cli_uninstall.rs"]
mod cli_uninstall;
#[path = "apiserver/control_plane.rs"]
mod control_plane;
#[path = "apiserver/destination/mod.rs"]
mod destination;
#[path = "apiserver/identity.rs"]
mod identity;
#[path = "apiserver/inject.rs"]
mod inject;
#[path = "apiserver/lease.rs"]
mod lease;
#[path = "apiserver/webhook.rs"]
mod webhook;
