//! What arrives where: heads, methods, bodies, and the router's refusals.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tombolo_agent_core::waits::Waits;

use crate::ground::{HOST, backend, body_text, ground, reason, table, text, until};

/// Answers with the request's head as it came.
async fn mirror(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let mut lines = vec![format!("{} {} {:?}", request.method(), request.uri(), request.version())];
    for (name, value) in request.headers() {
        lines.push(format!("{name}: {}", value.to_str().unwrap()));
    }
    lines.sort();
    text(lines.join("\n"))
}

/// A raw instance: gives the first connection and what was read up to the end of the head.
async fn head(listener: &TcpListener) -> (TcpStream, String) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let head = read_head(&mut stream).await;
    (stream, head)
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn heads_say_who_asked_and_keep_to_themselves_what_is_for_one_hop() {
    let ground = ground!();
    ground.serve("i1", mirror);
    ground.put(table(backend(&["i1"]))).await;
    let request = Request::get("/some/path?q=1")
        .header("host", "A.default.localhost:8080")
        .header("connection", "keep-alive, x-mine")
        .header("x-mine", "1")
        .header("keep-alive", "timeout=1")
        .header("proxy-authorization", "secret")
        .header("k-proxy-request", "activator")
        .header("x-forwarded-for", "9.9.9.9")
        .header("traceparent", "00-1-2-3")
        .body(Full::default());
    let answer = ground.client().await.send(request.unwrap()).await.unwrap();
    let expected = [
        "GET /some/path?q=1 HTTP/1.1",
        "forwarded: for=127.0.0.1;host=\"A.default.localhost:8080\";proto=http",
        "host: A.default.localhost:8080",
        "traceparent: 00-1-2-3",
        "x-forwarded-for: 9.9.9.9, 127.0.0.1",
        "x-forwarded-host: A.default.localhost:8080",
        "x-forwarded-proto: http",
    ];
    assert_eq!(body_text(&answer), expected.join("\n"));
}

#[tokio::test]
async fn an_absolute_target_comes_before_the_host_header() {
    let ground = ground!();
    ground.serve("i1", mirror);
    ground.put(table(backend(&["i1"]))).await;
    let answer = ground
        .raw(format!("GET http://{HOST}:1/x?y HTTP/1.1\r\nhost: other\r\nconnection: close\r\n\r\n"))
        .await;
    assert!(answer.contains("GET /x?y HTTP/1.1") && answer.contains(&format!("host: {HOST}:1")), "{answer}");
}

#[tokio::test]
async fn requests_that_cannot_be_routed_are_refused() {
    let ground = ground!();
    ground.serve_name("i1");
    ground.put(table(backend(&["i1"]))).await;
    let big = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nx-big: {}\r\n\r\n", "x".repeat(80 * 1024));
    for (request, status, reason) in [
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", "400", "BadRequest"),
        ("GET / HTTP/1.1\r\n\r\n", "400", "BadRequest"),
        ("GET / HTTP/1.1\r\nhost: a b\r\n\r\n", "400", "BadRequest"),
        ("GET / HTTP/1.1\r\nhost: nobody.default.localhost\r\n\r\n", "404", "UnknownHost"),
        ("CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n", "405", "MethodNotAllowed"),
        ("nonsense\r\n\r\n", "400", ""),
        ("GET / HTTP/1.1\r\nhost : a\r\n\r\n", "400", ""),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", "400", ""),
        (big.as_str(), "431", ""),
    ] {
        let mut stream = ground.connect().await;
        // The router may close before it has read everything.
        drop(stream.write_all(request.as_bytes()).await);
        let answer = read_head(&mut stream).await;
        let shown = &request[..request.len().min(60)];
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{shown}: {answer}");
        assert!(reason.is_empty() || answer.contains(&format!("x-tombolo-reason: {reason}")), "{answer}");
    }
    let answer = ground.get("/").await;
    assert_eq!((answer.status(), body_text(&answer)), (StatusCode::OK, "i1"), "still serves");
}

#[tokio::test]
async fn a_route_to_a_revision_that_is_not_here_is_unavailable() {
    let ground = ground!();
    let mut incomplete = table(backend(&[]));
    incomplete.revisions.clear();
    ground.put(incomplete).await;
    let answer = ground.get("/").await;
    assert_eq!((answer.status(), reason(&answer)), (StatusCode::SERVICE_UNAVAILABLE, "RevisionMissing"));
}

#[tokio::test]
async fn an_instance_that_cannot_be_reached_or_breaks_off_is_a_bad_gateway() {
    let ground = ground!();
    drop(ground.listen("i1"));
    ground.put(table(backend(&["i1"]))).await;
    let answer = ground.get("/").await;
    assert_eq!((answer.status(), reason(&answer)), (StatusCode::BAD_GATEWAY, "InstanceUnreachable"));

    let listener = ground.listen("i2");
    ground.put(table(backend(&["i2"]))).await;
    let (answer, _) = tokio::join!(ground.get("/"), async { drop(head(&listener).await) });
    assert_eq!((answer.status(), reason(&answer)), (StatusCode::BAD_GATEWAY, "InstanceReset"));
    assert_eq!(ground.in_flight(), 0);
}

#[tokio::test]
async fn heads_without_bodies_keep_their_length_and_the_connection() {
    let ground = ground!();
    let answer = |request: Request<Incoming>| async move {
        match (request.method(), request.uri().path()) {
            (&Method::HEAD, _) => Response::builder().header("content-length", "1234").body(Full::default()),
            (_, "/204") => Response::builder().status(204).body(Full::default()),
            (_, "/304") => Response::builder().status(304).header("etag", "\"x\"").body(Full::default()),
            _ => Ok(text("body")),
        }
        .unwrap()
    };
    ground.serve("i1", answer);
    ground.put(table(backend(&["i1"]))).await;
    let mut client = ground.client().await;
    for _ in 0..3 {
        let head = Request::head("/").header("host", HOST).body(Full::default()).unwrap();
        let answer = client.send(head).await.unwrap();
        assert_eq!((&answer.headers()["content-length"], answer.body().len()), (&"1234".parse().unwrap(), 0));
        assert_eq!(client.get("/204").await.status(), StatusCode::NO_CONTENT);
        assert_eq!(client.get("/304").await.headers()["etag"], "\"x\"");
        assert_eq!(client.get("/").await.body(), "body");
    }
    until("nothing is in flight", || ground.in_flight() == 0).await;
}

#[tokio::test]
async fn an_answer_without_content_has_no_length() {
    let ground = ground!();
    let listener = ground.listen("i1");
    ground.put(table(backend(&["i1"]))).await;
    let mut client = ground.connect().await;
    client.write_all(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
    let (mut instance, _) = head(&listener).await;
    for (status, kept) in [("204 No Content", false), ("304 Not Modified", true)] {
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 5\r\n\r\n");
        instance.write_all(answer.as_bytes()).await.unwrap();
        let seen = read_head(&mut client).await;
        assert!(seen.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{seen}");
        assert_eq!(seen.contains("content-length: 5\r\n"), kept, "{seen}");
        if !kept {
            client.write_all(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
            read_head(&mut instance).await;
        }
    }
}

#[tokio::test]
async fn http_1_0_clients_get_a_body_that_ends_with_the_connection() {
    let ground = ground!();
    let listener = ground.listen("i1");
    ground.put(table(backend(&["i1"]))).await;
    let answer = async {
        let (mut stream, head) = head(&listener).await;
        assert!(head.starts_with("GET /x HTTP/1.1\r\n"), "{head}");
        let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        stream.write_all(chunked).await.unwrap();
        stream
    };
    let (answer, _instance) =
        tokio::join!(ground.raw(format!("GET /x HTTP/1.0\r\nhost: {HOST}\r\n\r\n")), answer);
    assert!(answer.ends_with("\r\n\r\nabc") && !answer.contains("chunked"), "{answer}");
}

#[tokio::test]
async fn whether_the_body_is_wanted_is_for_the_instance_to_say() {
    let ground = ground!();
    let listener = ground.listen("i1");
    ground.put(table(backend(&["i1"]))).await;
    let request =
        format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\r\n");

    let mut client = ground.connect().await;
    client.write_all(request.as_bytes()).await.unwrap();
    let (mut instance, seen) = head(&listener).await;
    assert!(seen.contains("expect: 100-continue"), "{seen}");
    let early = tokio::time::timeout(Duration::from_millis(100), client.read_u8()).await;
    assert!(early.is_err(), "nobody has asked for the body yet");
    instance.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 100 "));
    client.write_all(b"body").await.unwrap();
    let mut body = [0; 4];
    instance.read_exact(&mut body).await.unwrap();
    assert_eq!(&body, b"body");
    instance.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 "));

    // Refused: no body is asked for.
    client.write_all(request.as_bytes()).await.unwrap();
    read_head(&mut instance).await;
    instance.write_all(b"HTTP/1.1 417 No\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 417 "));

    // An instance that does not know the question gets the body after a while.
    let mut client = ground.connect().await;
    client.write_all(request.as_bytes()).await.unwrap();
    let (mut instance, _) = head(&listener).await;
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 100 "));
    client.write_all(b"late").await.unwrap();
    instance.read_exact(&mut body).await.unwrap();
    assert_eq!(&body, b"late");
}

#[tokio::test]
async fn interim_answers_do_not_end_the_request() {
    let ground = ground!();
    let listener = ground.listen("i1");
    ground.put(table(backend(&["i1"]))).await;
    let instance = async {
        let (mut stream, _) = head(&listener).await;
        let answers =
            b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        stream.write_all(answers).await.unwrap();
        stream
    };
    let (answer, _instance) = tokio::join!(ground.get("/"), instance);
    assert_eq!((answer.status(), body_text(&answer)), (StatusCode::OK, "ok"));
}

#[tokio::test]
async fn chunks_and_trailers_pass_both_ways() {
    let ground = ground!();
    let listener = ground.listen("i1");
    ground.put(table(backend(&["i1"]))).await;
    let instance = async {
        let (mut stream, head) = head(&listener).await;
        assert!(head.contains("te: trailers") && head.contains("transfer-encoding: chunked"), "{head}");
        let mut body = String::new();
        while !body.ends_with("\r\n\r\n") {
            body.push(char::from(stream.read_u8().await.unwrap()));
        }
        let answer = "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 6\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        (body, stream)
    };
    let request = format!(
        "POST / HTTP/1.1\r\nhost: {HOST}\r\nte: trailers\r\nconnection: te, close\r\ntrailer: x-check\r\n\
         transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-check: 7\r\n\r\n"
    );
    let (answer, (body, _instance)) = tokio::join!(ground.raw(request), instance);
    assert_eq!(body, "2\r\nhi\r\n0\r\nx-check: 7\r\n\r\n");
    assert!(answer.ends_with("3\r\nabc\r\n0\r\nx-sum: 6\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn bodies_are_echoed_on_a_kept_connection() {
    let ground = ground!();
    ground.serve("i1", |request: Request<Incoming>| async move {
        text(request.into_body().collect().await.unwrap().to_bytes())
    });
    ground.put(table(backend(&["i1"]))).await;
    let mut client = ground.client().await;
    for size in [0, 1, 8 * 1024, 300 * 1024] {
        let sent = Bytes::from(vec![7; size]);
        let request = Request::post("/").header("host", HOST).body(Full::new(sent.clone())).unwrap();
        assert_eq!(*client.send(request).await.unwrap().body(), sent);
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_the_clients_fault() {
    let ground = ground!();
    let listener = ground.listen("i1");
    ground.put(table(backend(&["i1"]))).await;
    let request = format!(
        "POST / HTTP/1.1\r\nhost: {HOST}\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\nnonsense\r\n\r\n"
    );
    let (answer, _) = tokio::join!(ground.raw(request), listener.accept());
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request_at_the_instance() {
    let ground = ground!();
    let listener = ground.listen("i1");
    ground.put(table(backend(&["i1"]))).await;
    let mut client = ground.connect().await;
    client.write_all(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
    let (mut instance, _) = head(&listener).await;
    assert_eq!(ground.in_flight(), 1);
    let waits = || ground.meter.waits(&crate::ground::key("a"));
    assert_ne!(waits(), Waits::default(), "it waits for an answer");
    drop(client);
    assert_eq!(instance.read(&mut [0; 8]).await.unwrap(), 0, "the instance sees the end");
    until("nothing is in flight", || ground.in_flight() == 0).await;
    let seen = ground.meter.revision(&crate::ground::key("a")).unwrap();
    assert_eq!((seen.abandoned, seen.given_up, waits()), (1, 1, Waits::default()));
}

#[tokio::test]
async fn whoever_has_the_head_of_an_answer_does_not_wait_for_it() {
    let ground = ground!();
    let listener = ground.listen("i1");
    ground.put(table(backend(&["i1"]))).await;
    let mut client = ground.connect().await;
    client.write_all(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
    let (mut instance, _) = head(&listener).await;
    instance.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nfirst").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"first") {
        assert_ne!(client.read_buf(&mut answer).await.unwrap(), 0);
    }
    assert_eq!(ground.in_flight(), 1);
    assert_eq!(ground.meter.waits(&crate::ground::key("a")), Waits::default());
    drop(client);
    until("nothing is in flight", || ground.in_flight() == 0).await;
    let seen = ground.meter.revision(&crate::ground::key("a")).unwrap();
    assert_eq!((seen.abandoned, seen.given_up), (0, 0), "it was answered");
}
