//! Asks `grpc.health.v1.Health/Check`, in cleartext, as kubelet does.

use std::{error::Error, net::SocketAddr};

use ::http::uri::PathAndQuery;
use tonic::{Request, client::Grpc, transport::Endpoint};
use tonic_prost::ProstCodec;

use super::perform::Fault;

const CHECK: &str = "/grpc.health.v1.Health/Check";
/// Of `HealthCheckResponse.ServingStatus`.
const SERVING: i32 = 1;
/// An answer has two bytes.
const ANSWER_MAX: usize = 10 * 1024;

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    pub(super) service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    pub(super) status: i32,
}

/// Whether `service` serves. The caller limits the time.
pub(super) async fn check(addr: SocketAddr, service: &str, agent: &str) -> Result<(), Fault> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}")).expect("an address makes a URI");
    let endpoint = endpoint.user_agent(agent).map_err(|error| failed(&error))?;
    let channel = endpoint.connect().await.map_err(|error| failed(&error))?;
    let mut grpc = Grpc::new(channel).max_decoding_message_size(ANSWER_MAX);
    grpc.ready().await.map_err(|error| failed(&error))?;
    let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let request = Request::new(HealthCheckRequest { service: service.to_owned() });
    // The message of an error is the application's; its code is not.
    let answer = grpc.unary(request, PathAndQuery::from_static(CHECK), codec).await;
    match answer.map_err(|status| Fault::Grpc(format!("{:?}", status.code())))?.into_inner().status {
        SERVING => Ok(()),
        other => Err(Fault::Grpc(format!("not serving, status {other}"))),
    }
}

fn failed(error: &(dyn Error + 'static)) -> Fault {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    Fault::Grpc(text)
}
