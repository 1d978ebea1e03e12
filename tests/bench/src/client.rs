//! A client that costs little: one request on one connection with blocking calls, so that what is measured is the other end.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Longest wait for one answer.
const LIMIT: Duration = Duration::from_secs(30);

/// Pause between attempts at a program that does not listen yet.
const PACE: Duration = Duration::from_micros(100);

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
