//! A client that costs little: one request on one connection with blocking calls, so that what is measured is the other end.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Longest wait for one answer.
const LIMIT: Duration = Duration::from_secs(30);

/// Pause between attempts at a program that does not listen yet.
const PACE: Duration = Duration::from_micros(100);

/// A question for one host.
pub(crate) struct Request<'a> {
    pub(crate) host: &'a str,
    pub(crate) path: &'a str,
    /// Posted.
    pub(crate) body: &'a [u8],
}

/// A connection that stays for several questions.
pub(crate) struct Connection {
    stream: TcpStream,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, LIMIT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(Self { stream })
    }

    /// The answer's status, and the time to its last byte.
    pub(crate) fn ask(&mut self, request: &Request<'_>) -> std::io::Result<(u16, Duration)> {
        let Request { host, path, body } = request;
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {host}.default.localhost\r\nContent-Length: {length}\r\n\r\n"
        );
        let message = [head.as_bytes(), body].concat();
        let began = Instant::now();
        self.stream.write_all(&message)?;
        let mut answer = Vec::with_capacity(4096);
        let mut part = [0; 4096];
        loop {
            let count = self.stream.read(&mut part)?;
            answer.extend_from_slice(&part[..count]);
            if let Some(status) = complete(&answer) {
                return Ok((status, began.elapsed()));
            }
            if count == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// The status of an answer of which nothing is missing. Its length stands in its head.
fn complete(answer: &[u8]) -> Option<u16> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = fields.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length: usize = lengths.next()?.1.trim().parse().ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    (answer.len() - end >= length).then_some(status)
}

/// One request; the answer's status, and the time from before the connection to the last byte.
pub(crate) fn ask(address: SocketAddr, host: &str, path: &str) -> std::io::Result<(u16, Duration)> {
    let began = Instant::now();
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::with_capacity(4096);
    stream.read_to_end(&mut answer)?;
    let took = began.elapsed();
    let status = answer.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    Ok((status.unwrap_or(0), took))
}

/// A request that must succeed; its time.
pub(crate) fn time(address: SocketAddr, host: &str) -> Duration {
    let (status, took) = ask(address, host, "/").expect("an answer");
    assert_eq!(status, 200, "{host}");
    took
}

/// Asks again and again until there is an answer.
pub(crate) fn until_answer(address: SocketAddr, host: &str) {
    let began = Instant::now();
    while !ask(address, host, "/").is_ok_and(|(status, _)| status == 200) {
        assert!(began.elapsed() < LIMIT, "no answer from {address}");
        std::thread::sleep(PACE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_complete_when_its_length_is_there() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
        assert_eq!(complete(whole), Some(200));
        for end in 0..whole.len() {
            assert_eq!(complete(&whole[..end]), None, "{end}");
        }
        assert_eq!(complete(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"), Some(503));
    }
}
