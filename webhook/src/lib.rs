//! The injector: decides what a pod needs, and answers the API server.

pub mod registration;
