//! What happens when something breaks. `docs/faults.md` is the table; each test reads its own row there and holds the
//! mesh to it, so that the document cannot say what is not so.

mod applications;
mod away;
mod certificates;
mod clock;
mod document;
pub(crate) mod form;
mod frames;
mod limits;
mod network;
mod proxies;
mod row;
mod tokens;
mod wire;
