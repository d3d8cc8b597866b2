//! The mesh as a whole: real processes in network namespaces, real packets. One binary, so that it links once.

#[path = "mesh/admin.rs"]
mod admin;
#[path = "mesh/affinity.rs"]
mod affinity;
#[path = "mesh/applications.rs"]
mod applications;
#[path = "mesh/away.rs"]
mod away;
#[path = "mesh/balance.rs"]
mod balance;
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
#[path = "mesh/mariadb.rs"]
mod mariadb;
#[path = "mesh/nginx.rs"]
mod nginx;
#[path = "mesh/postgresql.rs"]
mod postgresql;
#[path = "mesh/reasons.rs"]
mod reasons;
#[path = "mesh/redis.rs"]
mod redis;
#[path = "mesh/required.rs"]
mod required;
#[path = "mesh/scene.rs"]
mod scene;
#[path = "mesh/series.rs"]
mod series;
#[path = "mesh/ssh.rs"]
mod ssh;
#[path = "mesh/talk.rs"]
mod talk;
#[path = "mesh/websocket.rs"]
mod websocket;
