//! What needs pods that run, and longer than `make test` has: `make e2e`. One binary and one cluster for all.
#![cfg(feature = "full")]

#[path = "full/hooks.rs"]
mod hooks;
#[path = "full/index.rs"]
mod index;
#[path = "full/kinds.rs"]
mod kinds;
#[path = "full/metadata.rs"]
mod metadata;
#[path = "full/probes.rs"]
mod probes;
#[path = "full/scene.rs"]
mod scene;
#[path = "full/security.rs"]
mod security;
#[path = "full/settings.rs"]
mod settings;
