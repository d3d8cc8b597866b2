//! placeholder
pub mod bypass;
pub mod init;
