//! What must hold for long or under load: many connections, many new ones, certificates that change under them. Short in
//! `make test`, in full in `make soak`.

mod bytes;
mod client;
mod connections;
mod rate;
mod rotation;
