//! Against a server that plays a registry, its token service, and the storage it redirects to.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode as Status, Uri};
use axum::response::{IntoResponse, Response};
use tombolo_api::Digest;

use super::*;
use crate::client::{BasicAuth, Endpoint, Scheme};
use crate::reference::{Repository, Target};

const MANIFEST: &[u8] = br#"{"schemaVersion":2,"config":{"mediaType":"x/y","digest":
    "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}"#;

/// What the registry and its service do, and what they were asked.
#[derive(Default)]
struct Play {
    asked: Mutex<Vec<String>>,
    /// The right token.
    token: Mutex<String>,
    /// What the service answers, if not that token.
    answer: Option<(Status, &'static str)>,
    /// The realm, if not this very server.
    realm: Option<String>,
    /// Where blobs are.
    storage: Option<String>,
    /// The answers before the first right one.
    before: Mutex<Vec<Response>>,
    password: Option<&'static str>,
}

type Shared = Arc<Play>;

async fn serve(play: Play) -> (Shared, Client) {
    let play = Arc::new(play);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let app = Router::new().fallback(answer).with_state((play.clone(), address.clone()));
    tokio::spawn(async move { axum::serve(listener, app).await });
    let auth = play.password.map(|password| BasicAuth { user: "me".into(), password: password.into() });
    let client = Client::new(Endpoint { scheme: Scheme::Http, address, auth, server_name: None }).unwrap();
    (play, client)
}

async fn answer(
    State((play, address)): State<(Shared, String)>,
    uri: Uri,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let authorization =
        headers.get("authorization").map_or("none", |value| value.to_str().unwrap()).to_owned();
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    play.asked.lock().unwrap().push(format!("{}{query} {authorization}", uri.path()));
    let token = play.token.lock().unwrap().clone();
    if uri.path() == "/token" {
        return match play.answer {
            Some(answer) => answer.into_response(),
            None => format!(r#"{{"token":"{token}","expires_in":300}}"#).into_response(),
        };
    }
    if let Some(before) = play.before.lock().unwrap().pop() {
        return before;
    }
    if authorization != format!("Bearer {token}") {
        let realm = play.realm.clone().unwrap_or_else(|| format!("http://{address}/token"));
        let challenge =
            format!("Bearer realm=\"{realm}\",service=\"r.test\",scope=\"repository:team/a:pull\"");
        return (Status::UNAUTHORIZED, [("www-authenticate", challenge)], "{}").into_response();
    }
    match &play.storage {
        Some(storage) if uri.path().contains("/blobs/") => {
            (Status::TEMPORARY_REDIRECT, [("location", storage.clone())]).into_response()
        }
        _ => MANIFEST.into_response(),
    }
}

async fn resolve(client: &Client) -> Result<Digest, TransferError> {
    client.resolve(&"team/a".parse().unwrap(), &"v1".parse::<Target>().unwrap()).await
}

fn with_token(token: &str) -> Play {
    Play { token: Mutex::new(token.into()), ..Play::default() }
}

#[tokio::test]
async fn a_token_is_asked_for_once_and_again_when_it_is_not_taken() {
    let (play, client) = serve(with_token("one")).await;
    assert_eq!(resolve(&client).await.unwrap(), Digest::of(MANIFEST));
    resolve(&client).await.unwrap();
    let manifest = "/v2/team/a/manifests/v1";
    let service = "/token?service=r.test&scope=repository%3Ateam%2Fa%3Apull none";
    let expected = [
        format!("{manifest} none"),
        service.to_owned(),
        format!("{manifest} Bearer one"),
        format!("{manifest} Bearer one"),
    ];
    assert_eq!(*play.asked.lock().unwrap(), expected);

    // It has expired at the registry, or says too little.
    play.asked.lock().unwrap().clear();
    *play.token.lock().unwrap() = "two".into();
    resolve(&client).await.unwrap();
    let expected = [format!("{manifest} Bearer one"), service.to_owned(), format!("{manifest} Bearer two")];
    assert_eq!(*play.asked.lock().unwrap(), expected);
}

#[tokio::test]
async fn a_token_that_lasts_no_time_is_not_kept() {
    let answer = Some((Status::OK, r#"{"access_token":"one","expires_in":1}"#));
    let (play, client) = serve(Play { answer, ..with_token("one") }).await;
    for _ in 0..2 {
        resolve(&client).await.unwrap();
    }
    assert_eq!(play.asked.lock().unwrap().iter().filter(|line| line.starts_with("/token")).count(), 2);
}

#[tokio::test]
async fn the_password_goes_to_the_service_and_the_token_to_the_registry_only() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let storage = Router::new().fallback({
        let seen = seen.clone();
        move |headers: HeaderMap| async move {
            seen.lock().unwrap().push(headers.contains_key("authorization"));
            Bytes::from_static(b"blob")
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = format!("http://{}/blob", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, storage).await });

    let play = Play { storage: Some(place), password: Some("secret"), ..with_token("one") };
    let (play, client) = serve(play).await;
    let repository: Repository = "team/a".parse().unwrap();
    let mut blob = client.open_blob(&repository, &Digest::of(b"blob"), 0).await.unwrap();
    assert_eq!((blob.start(), blob.size()), (0, 4));
    assert_eq!(blob.next().await.unwrap().unwrap(), "blob");
    assert_eq!(*seen.lock().unwrap(), [false]);
    let asked = play.asked.lock().unwrap();
    assert!(asked[1].starts_with("/token") && asked[1].ends_with(" Basic bWU6c2VjcmV0"), "{asked:?}");
    assert!(asked[2].ends_with(" Bearer one"), "{asked:?}");
}

#[tokio::test]
async fn each_way_to_get_no_token_is_told() {
    for (status, content, reason, told) in [
        (Status::UNAUTHORIZED, "", "RegistryUnauthorized", "check its user and password"),
        (Status::FORBIDDEN, "", "RegistryUnauthorized", "check its user and password"),
        (Status::NOT_FOUND, "", "RegistryUnauthorized", "check its user and password"),
        (Status::INTERNAL_SERVER_ERROR, "on fire", "RegistryRefused", "status 500: on fire"),
        (Status::OK, "<html>", "RegistryRefused", "does not answer with a token"),
        (Status::OK, "{}", "RegistryRefused", "without a token"),
        (Status::OK, "{\"token\":\"a\\nb\"}", "RegistryRefused", "without a token"),
        (Status::OK, "{\"token\":\"another\"}", "RegistryUnauthorized", "team/a:v1"),
    ] {
        let (_play, client) = serve(Play { answer: Some((status, content)), ..with_token("one") }).await;
        let error = resolve(&client).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{status} {content}: {error}");
        assert!(error.to_string().contains(told), "{status} {content}: {error}");
    }
    let nowhere = Some("http://127.0.0.1:1/token".to_owned());
    let (_play, client) = serve(Play { realm: nowhere, ..with_token("one") }).await;
    let error = resolve(&client).await.unwrap_err();
    assert!(
        matches!(&error, TransferError::Unreachable { address, .. } if address == "http://127.0.0.1:1"),
        "{error}"
    );
    let (_play, client) = serve(Play { realm: Some("nonsense".into()), ..with_token("one") }).await;
    assert!(resolve(&client).await.unwrap_err().to_string().contains("is no URL"));
}

#[tokio::test]
async fn a_busy_registry_is_asked_again_when_it_says() {
    let busy = |seconds: &'static str| (Status::TOO_MANY_REQUESTS, [("retry-after", seconds)], "slow down");
    let before = vec![busy("0").into_response(), busy("1").into_response()];
    let (play, client) = serve(Play { before: Mutex::new(before), ..with_token("one") }).await;
    let begin = Instant::now();
    resolve(&client).await.unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(1), "it said when");
    assert_eq!(play.asked.lock().unwrap().len(), 5);

    // Too long to wait here, or no word on how long: whoever asked decides.
    for answer in [busy("3600").into_response(), (Status::TOO_MANY_REQUESTS, "slow down").into_response()] {
        let (_play, client) = serve(Play { before: Mutex::new(vec![answer]), ..with_token("one") }).await;
        let error = resolve(&client).await.unwrap_err();
        assert!(error.is_retryable() && error.to_string().ends_with("status 429: slow down"), "{error}");
    }
}

#[tokio::test]
async fn what_is_no_manifest_is_no_image() {
    for content in ["<html>please log in</html>", "{}", ""] {
        let (_play, client) =
            serve(Play { before: Mutex::new(vec![content.into_response()]), ..with_token("one") }).await;
        let error = resolve(&client).await.unwrap_err();
        assert!(matches!(error, TransferError::Broken { .. }), "{content}: {error}");
    }
    let answer =
        (Status::INTERNAL_SERVER_ERROR, "{\"errors\":[{\"code\":\"UNKNOWN\",\"message\":\"no disk\"}]}");
    let before = Mutex::new(vec![answer.into_response()]);
    let (_play, client) = serve(Play { before, ..with_token("one") }).await;
    assert!(resolve(&client).await.unwrap_err().to_string().ends_with("status 500: no disk"));
}

#[test]
fn challenges_are_read() {
    let read = |text: &str| {
        Challenge::parse(text)
            .map(|it| (it.realm, it.service.unwrap_or_default(), it.scope.unwrap_or_default()))
    };
    let all = |realm: &str, service: &str, scope: &str| {
        Some((realm.to_owned(), service.to_owned(), scope.to_owned()))
    };
    for (text, expected) in [
        (
            r#"Bearer realm="https://a/t",service="s",scope="repository:x:pull,push""#,
            all("https://a/t", "s", "repository:x:pull,push"),
        ),
        (
            r#"bearer Service="s", realm="https://a/t", error="insufficient_scope""#,
            all("https://a/t", "s", ""),
        ),
        ("Bearer realm=https://a/t,service=s", all("https://a/t", "s", "")),
        (r#"Bearer realm="https://a"#, None),
        (r#"Bearer service="s""#, None),
        (r#"Basic realm="x""#, None),
        ("Bearer", None),
        ("", None),
    ] {
        assert_eq!(read(text), expected, "{text}");
    }
}
