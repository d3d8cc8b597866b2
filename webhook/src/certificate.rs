//! The webhook's certificate: made by the leader, kept in a Secret, served by every replica, believed by API servers
//! through the registration. Nobody has to do anything about it, and no review fails for it.

mod bundle;
mod held;
mod keeper;
mod serving;
mod step;

pub use held::Lifetimes;
pub(crate) use keeper::Keeper;
pub(crate) use serving::{Serving, follow};
