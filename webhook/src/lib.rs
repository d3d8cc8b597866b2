//! The injector: decides what a pod needs, and answers the API server.

mod app;
mod certificate;
mod decide;
pub mod inject;
mod known;
mod metrics;
mod namespaces;
pub mod registration;
mod review;
mod run;
mod server;
mod sources;

pub use certificate::Lifetimes;
pub use known::{NativeSidecars, Source};
pub use run::{Config, RunError, Webhook};
pub use server::Limits;
