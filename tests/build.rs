//! Generates the Rust side of `proto/`.

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure().compile_protos(&["proto/echo.proto", "proto/health.proto"], &["proto"])
}
