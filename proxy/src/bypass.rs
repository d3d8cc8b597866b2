//! stub
use hauberk_mesh::{Direction, Redirection};
#[allow(missing_docs)]
pub struct Sampler;
#[allow(missing_docs)]
pub struct Bypassed {
    pub direction: Direction,
    pub protocol: P,
    pub port: u16,
    pub count: u64,
}
#[allow(missing_docs)]
#[derive(Clone, Copy)]
pub struct P;
impl P {
    #[allow(missing_docs)]
    pub fn as_str(self) -> &'static str {
        "tcp"
    }
}
impl Sampler {
    #[allow(missing_docs)]
    pub fn new(_: Redirection) -> Self {
        Self
    }
    #[allow(missing_docs)]
    pub fn sample(&mut self) -> std::io::Result<Vec<Bypassed>> {
        Ok(vec![])
    }
}
