//! gRPC through the mesh: streams both ways at once, begun by the client or by the server.

use std::{any::Any, net::SocketAddr, pin::Pin, thread::JoinHandle};

use hauberk_lab::Pod;
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, Streaming, transport::Channel};

use crate::{
    applications::{Application, show_alone},
    common::LIMIT,
};
use echo::{
    Message,
    echo_client::EchoClient,
    echo_server::{Echo, EchoServer},
};

mod echo {
    #![allow(missing_docs, unreachable_pub, reason = "generated code")]
    tonic::include_proto!("echo");
}

const GREETING: &str = "a-greeting-of-grpc-e6a2";
const MESSAGE: &str = "a-message-of-grpc-47c9";
/// Messages that are under way without having been answered.
const AT_ONCE: usize = 1000;

pub(crate) const GRPC: Application =
    Application { name: "grpc", port: 50051, start, talk, connections: 1, markers: &[GREETING, MESSAGE] };

#[test]
fn grpc_streams_both_ways_through_the_mesh_whoever_speaks_first() {
    show_alone(&GRPC);
}

type Messages = Pin<Box<dyn Stream<Item = Result<Message, Status>> + Send>>;

struct Server;

#[tonic::async_trait]
impl Echo for Server {
    type AnswerStream = Messages;
    type GreetStream = Messages;

    async fn answer(&self, heard: Request<Streaming<Message>>) -> Result<Response<Messages>, Status> {
        Ok(Response::new(Box::pin(heard.into_inner())))
    }

    async fn greet(&self, heard: Request<Streaming<Message>>) -> Result<Response<Messages>, Status> {
        let greeting = tokio_stream::once(Ok(message(GREETING)));
        Ok(Response::new(Box::pin(greeting.chain(heard.into_inner()))))
    }
}

/// A thread inside the pod that serves until this is dropped.
struct Running(Option<oneshot::Sender<()>>, Option<JoinHandle<()>>);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.take());
        drop(self.1.take().map(JoinHandle::join));
    }
}

fn start(pod: &Pod, port: u16) -> Vec<Box<dyn Any>> {
    let (stop, stopped) = oneshot::channel::<()>();
    let (listens, listening) = std::sync::mpsc::channel();
    let pod = pod.clone();
    let serving = std::thread::spawn(move || {
        pod.enter(|| {
            runtime().block_on(async {
                let listener = TcpListener::bind(("::", port)).await.expect("the port is free");
                listens.send(()).expect("the test waits for it");
                let served = tonic::transport::Server::builder().add_service(EchoServer::new(Server));
                let connections = TcpListenerStream::new(listener);
                // Ends, too, when the other end of the channel is gone.
                let stopped = async { drop(stopped.await) };
                served.serve_with_incoming_shutdown(connections, stopped).await.expect("serves");
            });
        });
    });
    listening.recv_timeout(LIMIT).expect("the server listens");
    vec![Box::new(Running(Some(stop), Some(serving)))]
}

fn talk(client: &Pod, _server: &Pod, at: SocketAddr) {
    client.enter(|| {
        runtime().block_on(async {
            let channel = Channel::from_shared(format!("http://{at}")).expect("an address");
            let mut client = EchoClient::connect(channel).await.expect("connects");
            client_first(&mut client).await;
            server_first(&mut client).await;
        });
    });
}

/// One message after the other, each answered before the next; then many before any answer is read.
async fn client_first(client: &mut EchoClient<Channel>) {
    let (say, said) = mpsc::channel(AT_ONCE);
    say.send(message(MESSAGE)).await.expect("there is room");
    let mut heard = within(client.answer(ReceiverStream::new(said))).await.expect("is answered").into_inner();
    assert_eq!(next(&mut heard).await, MESSAGE);
    for number in 0..10 {
        say.send(message(&number.to_string())).await.expect("the stream is open");
        assert_eq!(next(&mut heard).await, number.to_string());
    }
    for number in 0..AT_ONCE {
        within(say.send(message(&format!("{MESSAGE} {number}")))).await.expect("the stream is open");
    }
    for number in 0..AT_ONCE {
        assert_eq!(next(&mut heard).await, format!("{MESSAGE} {number}"));
    }
    drop(say);
    assert!(within(heard.message()).await.expect("a clean end").is_none());
}

/// The client is silent until it has been greeted.
async fn server_first(client: &mut EchoClient<Channel>) {
    let (say, said) = mpsc::channel(1);
    let mut heard = within(client.greet(ReceiverStream::new(said))).await.expect("is answered").into_inner();
    assert_eq!(next(&mut heard).await, GREETING);
    say.send(message(MESSAGE)).await.expect("the stream is open");
    assert_eq!(next(&mut heard).await, MESSAGE);
    drop(say);
    assert!(within(heard.message()).await.expect("a clean end").is_none());
}

async fn next(heard: &mut Streaming<Message>) -> String {
    within(heard.message()).await.expect("no error").expect("not the end").text
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    timeout(LIMIT, what).await.expect("comes in time")
}

fn message(text: &str) -> Message {
    Message { text: text.to_owned() }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("descriptors are free")
}
