//! What a proxy has to do to headers: find the host, take away what concerns one hop only, say who asked.
//!
//! Pure; it must not know routes, instances or connections.

use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, Entry, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue,
    TE, TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use http::uri::Authority;
use http::{StatusCode, Uri, Version};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Whether a request came by its host's default shares.
const DEFAULT_ROUTE: HeaderName = HeaderName::from_static("knative-serving-default-route");

/// A platform's question to itself.
const PROBE: HeaderName = HeaderName::from_static("k-network-probe");

/// Comes with some of these questions, and goes back with their answers.
pub(crate) const PROBE_HASH: HeaderName = HeaderName::from_static("k-network-hash");

/// How the user agents of Kubernetes' and Knative's probes begin.
const PROBE_AGENTS: [&str; 5] = [
    "kube-probe/",
    "Knative-Activator-Probe",
    "Knative-Queue-Proxy-Probe",
    "Knative-Ingress-Probe",
    "Knative-Autoscaling-Probe",
];

/// Never removed because a `Connection` header names them: they are end to end, or added here.
const NOT_PER_HOP: [HeaderName; 6] =
    [HOST, CONTENT_LENGTH, FORWARDED, X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST];

/// The authority a request is meant for, or why there is none.
///
/// `:authority` or an absolute request target comes before `Host` (RFC 9112, 3.2.2).
pub(crate) fn authority(uri: &Uri, headers: &HeaderMap) -> Result<HeaderValue, &'static str> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err("the request has more than one Host header");
    }
    let value = match uri.authority() {
        Some(authority) => {
            HeaderValue::try_from(authority.as_str()).map_err(|_| "the request's authority is malformed")?
        }
        None => host.ok_or("the request has no Host header")?.clone(),
    };
    let text = value.to_str().map_err(|_| "the request's Host is not ASCII")?;
    match text.parse::<Authority>() {
        Ok(authority) if !authority.host().is_empty() && !text.contains('@') => Ok(value),
        _ => Err("the request's Host is malformed"),
    }
}

/// Whether [`authority`] would say `known`, at the cost of a comparison. `false` may also mean that it has to be looked at.
pub(crate) fn has_authority(uri: &Uri, headers: &HeaderMap, known: &HeaderValue) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    match (uri.authority(), hosts.next(), hosts.next()) {
        (None, Some(host), None) => host == known,
        (Some(authority), _, None) => authority.as_str().as_bytes() == known.as_bytes(),
        _ => false,
    }
}

/// The host of an authority as route tables spell it: no port, lower case, no trailing dot.
pub(crate) fn host_name(authority: &str) -> String {
    let port = authority.rfind(':').filter(|colon| !authority[*colon..].contains(']'));
    let host = &authority[..port.unwrap_or(authority.len())];
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Who asked, written once for each client connection.
pub(crate) struct Client {
    address: HeaderValue,
    forwarded_for: String,
    /// `http` or `https`.
    proto: &'static str,
}

impl Client {
    pub(crate) fn new(address: IpAddr, secure: bool) -> Self {
        let node = match address.to_canonical() {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("\"[{v6}]\""),
        };
        let address = HeaderValue::try_from(address.to_canonical().to_string()).expect("an address is ASCII");
        Self { address, forwarded_for: format!("for={node}"), proto: if secure { "https" } else { "http" } }
    }

    /// This hop's element of `Forwarded`, for requests to one authority.
    pub(crate) fn forwarded(&self, authority: &HeaderValue) -> HeaderValue {
        let host = authority.to_str().unwrap_or_default();
        HeaderValue::try_from(format!("{};host=\"{host}\";proto={}", self.forwarded_for, self.proto))
            .expect("a checked authority is ASCII without quotes")
    }
}

/// Where a request comes from and where it wants to.
#[derive(Clone, Copy)]
pub(crate) struct Hop<'a> {
    pub(crate) client: &'a Client,
    pub(crate) authority: &'a HeaderValue,
    /// This hop's element of `Forwarded`.
    pub(crate) forwarded: &'a HeaderValue,
}

/// What a request asks of the hop as such.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Wish {
    /// The protocol to switch to.
    pub(crate) upgrade: Option<HeaderValue>,
    /// To be told whether its body is wanted (`Expect: 100-continue`).
    pub(crate) expects_continue: bool,
}

/// Make a request's headers fit for the instance.
///
/// `found`: what [`Found::in_headers`] says of them.
pub(crate) fn prepare_request(
    headers: &mut HeaderMap,
    found: Found,
    version: Version,
    to_http2: bool,
    Hop { client, authority, forwarded }: Hop<'_>,
) -> Wish {
    let mut wish = if found.hop { take_hop_headers(headers, true, to_http2) } else { Wish::default() };
    if version != Version::HTTP_11 || to_http2 {
        wish = Wish::default();
    }
    if found.internal {
        remove_internal(headers);
    }
    if version == Version::HTTP_2 && !to_http2 {
        join_cookies(headers);
    }
    if to_http2 {
        headers.remove(HOST);
    } else {
        headers.insert(HOST, authority.clone());
    }
    append(headers, FORWARDED, forwarded);
    append(headers, X_FORWARDED_FOR, &client.address);
    headers.entry(X_FORWARDED_PROTO).or_insert(HeaderValue::from_static(client.proto));
    headers.entry(X_FORWARDED_HOST).or_insert_with(|| authority.clone());
    if let Some(protocol) = &wish.upgrade {
        set_upgrade(headers, protocol.clone());
    }
    if wish.expects_continue {
        headers.insert(EXPECT, HeaderValue::from_static("100-continue"));
    }
    wish
}

/// Tell the program whether its share of the traffic chose it, or a header of the request; on hosts that leave no choice, nothing.
pub(crate) fn set_default_route(headers: &mut HeaderMap, default_route: Option<bool>) {
    let Some(default_route) = default_route else {
        headers.remove(DEFAULT_ROUTE);
        return;
    };
    let text = if default_route { "true" } else { "false" };
    headers.insert(DEFAULT_ROUTE, HeaderValue::from_static(text));
}

/// Make a prepared request's headers fit for an instance that speaks the other version of HTTP.
pub(crate) fn change_protocol(headers: &mut HeaderMap, to_http2: bool, authority: &HeaderValue) {
    if to_http2 {
        for name in [HOST, CONNECTION, UPGRADE, EXPECT] {
            headers.remove(name);
        }
        return;
    }
    join_cookies(headers);
    headers.insert(HOST, authority.clone());
    if headers.contains_key(TE) {
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
}

/// Make an answer's headers fit for the client. Upgrade headers stay with a 101.
pub(crate) fn prepare_answer(status: StatusCode, headers: &mut HeaderMap) {
    // What has no body has no length either (RFC 9110, 8.6). A 304 tells the length of what it stands for.
    if status == StatusCode::NO_CONTENT || status.is_informational() {
        headers.remove(CONTENT_LENGTH);
    }
    let found = Found::in_headers(headers);
    if found.hop {
        let protocol = take_hop_headers(headers, false, false).upgrade;
        if let (StatusCode::SWITCHING_PROTOCOLS, Some(protocol)) = (status, protocol) {
            set_upgrade(headers, protocol);
        }
    }
    if found.internal {
        remove_internal(headers);
    }
}

fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.append(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// What one pass over the headers finds; most requests have none of it.
#[derive(Clone, Copy, Default)]
pub(crate) struct Found {
    hop: bool,
    internal: bool,
    /// Its user agent may be a probe's.
    suspect_agent: bool,
}

impl Found {
    pub(crate) fn in_headers(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        for (name, value) in headers {
            found.hop |= is_hop(name);
            found.internal |= is_internal(name);
            found.suspect_agent |= name == USER_AGENT && matches!(value.as_bytes(), [b'k' | b'K', ..]);
        }
        found
    }

    /// Whether the request only asks whether it would be served.
    pub(crate) fn probe(self, headers: &HeaderMap) -> Option<Probe> {
        if self.internal
            && let Some(what) = headers.get(PROBE)
        {
            return Some(match what.as_bytes() {
                b"queue" => Probe::Instance,
                b"activator" => Probe::Router,
                b"probe" => Probe::Route(headers.get(PROBE_HASH).cloned()),
                _ => Probe::Unknown,
            });
        }
        let agent = self.suspect_agent.then(|| headers.get(USER_AGENT))??.as_bytes();
        PROBE_AGENTS.iter().any(|probe| agent.starts_with(probe.as_bytes())).then_some(Probe::Router)
    }
}

/// What a probe asks for. Probes reach no instance, wake none, and count nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    /// `queue`: is an instance ready?
    Instance,
    /// `activator`, and a prober's user agent: would a request be served, after a while?
    Router,
    /// `probe`: does the host lead anywhere? With the word to give back.
    Route(Option<HeaderValue>),
    Unknown,
}

fn is_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "transfer-encoding"
            | "upgrade"
            | "expect"
            | "http2-settings"
    )
}

/// Headers by which a platform's own parts talk to each other; from outside they would be forged.
fn is_internal(name: &HeaderName) -> bool {
    let name = name.as_str();
    matches!(name.as_bytes()[0], b'k' | b'x')
        && (name.starts_with("x-tombolo-")
            || matches!(
                name,
                "k-network-probe"
                    | "k-network-hash"
                    | "k-proxy-request"
                    | "k-original-host"
                    | "knative-activator-probe"
                    | "knative-queue-proxy-probe"
                    | "knative-ingress-probe"
                    | "knative-autoscaling-probe"
                    | "knative-serving-default-route"
            ))
}

/// Remove what is meant for one hop, and say what it asked for. `request`: that trailers are understood is told on.
fn take_hop_headers(headers: &mut HeaderMap, request: bool, to_http2: bool) -> Wish {
    let mut named = Vec::new();
    for value in headers.get_all(CONNECTION) {
        let tokens = value.to_str().unwrap_or_default().split(',');
        named.extend(tokens.filter_map(|token| HeaderName::try_from(token.trim()).ok()));
    }
    // HTTP/2 by upgrade would take all later requests of the connection past the routes.
    let upgrade = headers
        .remove(UPGRADE)
        .filter(|protocol| named.contains(&UPGRADE) && !protocol.as_bytes().eq_ignore_ascii_case(b"h2c"));
    let expects_continue =
        headers.remove(EXPECT).is_some_and(|what| what.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let trailers = request && {
        let mut elements =
            headers.get_all(TE).iter().filter_map(|te| te.to_str().ok()).flat_map(|te| te.split(','));
        elements.any(|element| element.trim().eq_ignore_ascii_case("trailers"))
    };
    if headers.remove(TRANSFER_ENCODING).is_some() {
        headers.remove(CONTENT_LENGTH);
    }
    headers.remove(CONNECTION);
    headers.remove(TE);
    for name in
        ["keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization", "http2-settings"]
    {
        headers.remove(name);
    }
    for name in named.iter().filter(|name| !NOT_PER_HOP.contains(name)) {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        if !to_http2 {
            headers.insert(CONNECTION, HeaderValue::from_static("te"));
        }
    }
    Wish { upgrade, expects_continue }
}

fn remove_internal(headers: &mut HeaderMap) {
    let internal: Vec<_> = headers.keys().filter(|name| is_internal(name)).cloned().collect();
    for name in internal {
        headers.remove(name);
    }
}

/// HTTP/2 may split cookies over several fields; HTTP/1 may not (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_some() {
        let all: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
            headers.insert(COOKIE, joined);
        }
    }
}

/// Add an element to a list header, in one line: some programs read only the first.
fn append(headers: &mut HeaderMap, name: HeaderName, element: &HeaderValue) {
    match headers.entry(name) {
        Entry::Vacant(entry) => drop(entry.insert(element.clone())),
        Entry::Occupied(mut entry) => {
            let mut list: Vec<_> = entry.iter().map(HeaderValue::as_bytes).collect();
            list.push(element.as_bytes());
            if let Ok(joined) = HeaderValue::from_bytes(&list.join(&b", "[..])) {
                entry.insert(joined);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap());
        }
        map
    }

    fn prepared(lines: &[(&str, &str)], version: Version, to_http2: bool) -> (HeaderMap, Wish) {
        let client = Client::new("10.0.0.9".parse().unwrap(), false);
        let authority = HeaderValue::from_static("a.default.localhost:8080");
        let mut map = headers(lines);
        let forwarded = client.forwarded(&authority);
        let found = Found::in_headers(&map);
        let hop = Hop { client: &client, authority: &authority, forwarded: &forwarded };
        let wish = prepare_request(&mut map, found, version, to_http2, hop);
        (map, wish)
    }

    #[test]
    fn host_names() {
        for (authority, host) in [
            ("A.Default.Example", "a.default.example"),
            ("a.b:8080", "a.b"),
            ("a.b.:80", "a.b"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
        ] {
            assert_eq!(host_name(authority), host, "{authority}");
        }
    }

    #[test]
    fn probes_are_recognised() {
        let probe = |lines| {
            let map = headers(lines);
            Found::in_headers(&map).probe(&map)
        };
        for (lines, expected) in [
            (&[("k-network-probe", "queue")][..], Some(Probe::Instance)),
            (&[("K-Network-Probe", "activator")], Some(Probe::Router)),
            (&[("k-network-probe", "probe")], Some(Probe::Route(None))),
            (
                &[("k-network-probe", "probe"), ("k-network-hash", "1")],
                Some(Probe::Route(Some(HeaderValue::from_static("1")))),
            ),
            (&[("k-network-probe", "x")], Some(Probe::Unknown)),
            (&[("user-agent", "kube-probe/1.31")], Some(Probe::Router)),
            (&[("user-agent", "Knative-Ingress-Probe")], Some(Probe::Router)),
            (&[("user-agent", "kurl")], None),
            (&[("user-agent", "curl"), ("k-network-hash", "1")], None),
            (&[], None),
        ] {
            assert_eq!(probe(lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn authorities() {
        let origin = Uri::from_static("/x");
        let get = |uri: &Uri, lines| authority(uri, &headers(lines)).map(|v| v.to_str().unwrap().to_owned());
        assert_eq!(get(&origin, &[("host", "a.b:1")]), Ok("a.b:1".into()));
        assert_eq!(get(&Uri::from_static("http://c.d/x"), &[("host", "a.b")]), Ok("c.d".into()));
        for bad in [
            &[][..],
            &[("host", "a"), ("host", "b")],
            &[("host", "a b")],
            &[("host", "u@a")],
            &[("host", "")],
        ] {
            assert!(get(&origin, bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn one_hop_headers_stay_behind() {
        let (map, wish) = prepared(
            &[
                ("connection", "keep-alive, X-Secret, host"),
                ("keep-alive", "timeout=5"),
                ("x-secret", "1"),
                ("te", "gzip"),
                ("transfer-encoding", "chunked"),
                ("content-length", "5"),
                ("upgrade", "websocket"),
                ("k-network-probe", "queue"),
                ("x-tombolo-reason", "Forged"),
                ("traceparent", "00-1"),
                ("accept", "*/*"),
            ],
            Version::HTTP_11,
            false,
        );
        assert_eq!(wish, Wish::default(), "Connection does not name the upgrade");
        let mut names: Vec<_> = map.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let expected = [
            "accept",
            "forwarded",
            "host",
            "traceparent",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
        ];
        assert_eq!(names, expected);
        assert_eq!(map["forwarded"], "for=10.0.0.9;host=\"a.default.localhost:8080\";proto=http");
    }

    #[test]
    fn forwarding_is_appended_and_kept() {
        let before = [
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-for", "2.2.2.2"),
            ("forwarded", "for=1.1.1.1"),
            ("x-forwarded-proto", "https"),
        ];
        let (map, _) = prepared(&before, Version::HTTP_11, false);
        assert_eq!(map["x-forwarded-for"], "1.1.1.1, 2.2.2.2, 10.0.0.9");
        assert_eq!(map.get_all("x-forwarded-for").iter().count(), 1);
        assert!(map["forwarded"].to_str().unwrap().starts_with("for=1.1.1.1, for=10.0.0.9;"));
        assert_eq!(map["x-forwarded-proto"], "https");
        let v6 = Client::new("::1".parse().unwrap(), true).forwarded(&HeaderValue::from_static("h"));
        assert_eq!(v6, "for=\"[::1]\";host=\"h\";proto=https");
    }

    #[test]
    fn upgrades_pass_to_http1_only() {
        let ask = [("connection", "Upgrade"), ("upgrade", "websocket")];
        let (map, wish) = prepared(&ask, Version::HTTP_11, false);
        assert_eq!(wish.upgrade.unwrap(), "websocket");
        assert_eq!(
            (map["connection"].to_str().unwrap(), &map["upgrade"]),
            ("upgrade", &"websocket".parse().unwrap())
        );
        for (version, to_http2) in
            [(Version::HTTP_11, true), (Version::HTTP_2, false), (Version::HTTP_10, false)]
        {
            let (map, wish) = prepared(&ask, version, to_http2);
            assert!(
                wish.upgrade.is_none() && !map.contains_key("upgrade") && !map.contains_key("connection")
            );
        }
        let h2c = [("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c"), ("http2-settings", "AAM")];
        let (map, wish) = prepared(&h2c, Version::HTTP_11, false);
        assert!(
            wish.upgrade.is_none() && !map.contains_key("upgrade") && !map.contains_key("http2-settings")
        );
    }

    #[test]
    fn trailers_and_expectations_are_told_on() {
        let lines = [("connection", "TE"), ("te", "trailers, gzip"), ("expect", "100-Continue")];
        let (map, wish) = prepared(&lines, Version::HTTP_11, false);
        assert!(wish.expects_continue);
        assert_eq!(map["te"], "trailers");
        assert_eq!(
            (map["connection"].as_bytes(), map["expect"].as_bytes()),
            (&b"te"[..], &b"100-continue"[..])
        );
        let (map, wish) = prepared(&lines, Version::HTTP_11, true);
        assert!(!wish.expects_continue && !map.contains_key("expect") && !map.contains_key("connection"));
        assert_eq!(map["te"], "trailers");
    }

    #[test]
    fn a_known_authority_is_recognised() {
        let known = HeaderValue::from_static("a.b:1");
        let origin = Uri::from_static("/x");
        for (uri, lines, expected) in [
            (&origin, &[("host", "a.b:1")][..], true),
            (&origin, &[("host", "a.b")], false),
            (&origin, &[("host", "a.b:1"), ("host", "a.b:1")], false),
            (&origin, &[], false),
            (&Uri::from_static("http://a.b:1/x"), &[("host", "c")], true),
            (&Uri::from_static("http://c/x"), &[("host", "a.b:1")], false),
        ] {
            assert_eq!(has_authority(uri, &headers(lines), &known), expected, "{uri} {lines:?}");
        }
    }

    #[test]
    fn http2_differences() {
        let (map, _) = prepared(&[("cookie", "a=1"), ("cookie", "b=2")], Version::HTTP_2, false);
        assert_eq!(map["cookie"], "a=1; b=2");
        let (map, _) = prepared(&[("te", "trailers"), ("host", "a")], Version::HTTP_2, true);
        assert_eq!(map["te"], "trailers");
        assert!(!map.contains_key("host"), "the URI carries it");
    }

    #[test]
    fn answers_lose_one_hop_headers() {
        let mut map = headers(&[
            ("connection", "close"),
            ("transfer-encoding", "chunked"),
            ("server", "x"),
            ("x-tombolo-reason", "F"),
        ]);
        prepare_answer(StatusCode::OK, &mut map);
        assert_eq!(map, headers(&[("server", "x")]));
        let mut map = headers(&[("connection", "Upgrade"), ("upgrade", "websocket")]);
        prepare_answer(StatusCode::SWITCHING_PROTOCOLS, &mut map);
        assert_eq!(map, headers(&[("connection", "upgrade"), ("upgrade", "websocket")]));
    }

    #[test]
    fn an_answer_that_never_has_a_body_has_no_length() {
        for (status, length) in [(200, true), (304, true), (205, true), (204, false), (101, false)] {
            let mut map = headers(&[("content-length", "5")]);
            prepare_answer(StatusCode::from_u16(status).unwrap(), &mut map);
            assert_eq!(map.contains_key(CONTENT_LENGTH), length, "{status}");
        }
    }
}
