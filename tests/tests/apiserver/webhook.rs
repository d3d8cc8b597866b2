//! The webhook before real API servers: as its own ServiceAccount, with the rights that `hauberk install` grants and no
//! others.

#[path = "webhook/bytes.rs"]
mod bytes;
#[path = "webhook/entries.rs"]
mod entries;
#[path = "webhook/reviews.rs"]
mod reviews;
#[path = "webhook/rotation.rs"]
mod rotation;
#[path = "webhook/scene.rs"]
mod scene;
#[path = "webhook/security.rs"]
mod security;
