//! Callers as other languages' libraries make them, byte for byte, against a server on a real socket.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tombolo_device_api::v1beta1::registration_server::{Registration, RegistrationServer};
use tombolo_device_api::v1beta1::{Empty, RegisterRequest};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// Far longer than any machine needs.
const SOON: Duration = Duration::from_secs(30);

struct Desk(mpsc::Sender<String>);

#[tonic::async_trait]
impl Registration for Desk {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        self.0.send(request.into_inner().resource_name).await.unwrap();
        Ok(Response::new(Empty {}))
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn text(text: &str) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
}

/// A field that is put into the connection's table, its name in letters.
fn named(name: &str, value: &str) -> Vec<u8> {
    [&[0x40], &*text(name), &*text(value)].concat()
}

/// The authority, put into the table, its name by number.
fn by_number(value: &str) -> Vec<u8> {
    [&[0x41], &*text(value)].concat()
}

/// A call of `Register` with this field for the authority, and a message with this name of a resource. Of what it says,
/// only the authority may be put into the table.
fn call(stream: u32, authority: &[u8], resource: &str) -> Vec<u8> {
    let headers = [
        // POST, http
        vec![0x83, 0x86],
        [&[0x04], &*text("/v1beta1.Registration/Register")].concat(),
        authority.to_vec(),
        // The type is a name of the first table, the 31st.
        [&[0x0f, 0x10], &*text("application/grpc")].concat(),
        [&[0x00], &*text("te"), &*text("trailers")].concat(),
    ];
    let field = [&[3 << 3 | 2], &*text(resource)].concat();
    let length = u32::try_from(field.len()).unwrap().to_be_bytes();
    let message = [&[0], &length[..], &field].concat();
    [frame(1, 4, stream, &headers.concat()), frame(0, 1, stream, &message)].concat()
}

/// What reaches the service of calls with these authorities, one after the other on one connection.
async fn registered(authorities: &[Vec<u8>]) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("kubelet.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let (sender, mut received) = mpsc::channel(8);
    let desk = RegistrationServer::new(Desk(sender));
    let serving =
        Server::builder().add_service(desk).serve_with_incoming(tombolo_device_api::incoming(listener));
    let server = tokio::spawn(serving);
    let mut stream = UnixStream::connect(&socket).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&frame(4, 0, 0, &[])).await.unwrap();
    let mut names = Vec::new();
    for (at, authority) in authorities.iter().enumerate() {
        let id = 1 + 2 * u32::try_from(at).unwrap();
        stream.write_all(&call(id, authority, &format!("example.com/{at}"))).await.unwrap();
        names.push(timeout(SOON, received.recv()).await.expect("the call arrives").unwrap());
    }
    server.abort();
    names
}

#[tokio::test]
async fn a_sockets_path_is_let_in_as_an_authority() {
    let path = "/var/lib/kubelet/device-plugins/kubelet.sock";
    let escaped = path.replace('/', "%2F");
    for authority in
        [by_number(path), by_number(&escaped), named(":authority", &escaped), by_number("localhost"), vec![]]
    {
        assert_eq!(registered(std::slice::from_ref(&authority)).await, ["example.com/0"], "{authority:?}");
    }
}

#[tokio::test]
async fn later_calls_may_refer_to_what_the_first_one_said() {
    // The newest entry of the table is the 62nd: the first after those that every connection begins with.
    let again = vec![0x80 | 62];
    let other = named(":authority", "/run/b.sock");
    let calls = [by_number("/run/a.sock"), again.clone(), other, again, vec![0x80 | 63]];
    assert_eq!(registered(&calls).await, (0..5).map(|at| format!("example.com/{at}")).collect::<Vec<_>>());
}
