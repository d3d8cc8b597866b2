//! The mesh as a whole: real processes in network namespaces, real packets. One binary, so that it links once.

#[path = "mesh/applications.rs"]
mod applications;
#[path = "mesh/basic.rs"]
mod basic;
#[path = "mesh/certificate.rs"]
mod certificate;
#[path = "mesh/common.rs"]
mod common;
#[path = "mesh/evidence.rs"]
mod evidence;
#[path = "mesh/grpc.rs"]
mod grpc;
#[path = "mesh/ipv6.rs"]
mod ipv6;
#[path = "mesh/mariadb.rs"]
mod mariadb;
#[path = "mesh/nginx.rs"]
mod nginx;
#[path = "mesh/postgresql.rs"]
mod postgresql;
#[path = "mesh/redis.rs"]
mod redis;
#[path = "mesh/ssh.rs"]
mod ssh;
#[path = "mesh/websocket.rs"]
mod websocket;
