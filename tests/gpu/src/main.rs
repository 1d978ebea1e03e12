//! `ask ADDRESS HOST PATH [FILE]`: one request over HTTP/1.1 to `ADDRESS` for `HOST`, a POST of the file's bytes if there is one.
//! Prints the answer's body; exit 0: it was a 200, 1: it was not, 2: there was none. For machines that have no other client.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;

/// A request may have to wait for an instance to start.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (address, host, path, file) = match arguments.as_slice() {
        [address, host, path] => (address, host, path, None),
        [address, host, path, file] => (address, host, path, Some(file)),
        _ => {
            eprintln!("usage: ask ADDRESS HOST PATH [FILE]");
            return ExitCode::from(2);
        }
    };
    let answer =
        file.map(std::fs::read).transpose().and_then(|body| ask(address, host, path, body.as_deref()));
    match answer {
        Ok((status, body)) => {
            let _ = io::stdout().write_all(&body);
            if status == 200 {
                return ExitCode::SUCCESS;
            }
            eprintln!("ask: {host}{path} answered {status}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("ask: {host}{path}: {error}");
            ExitCode::from(2)
        }
    }
}

/// The status and the body of the answer.
fn ask(address: &str, host: &str, path: &str, body: Option<&[u8]>) -> io::Result<(u16, Vec<u8>)> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    let (method, body) = body.map_or(("GET", &[][..]), |body| ("POST", body));
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    connection.write_all(&[head.as_bytes(), body].concat())?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer)?;
    parse(&answer).ok_or_else(|| io::Error::other("that is no answer of HTTP/1.1"))
}

fn parse(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let is_chunked = head.lines().any(|line| line.eq_ignore_ascii_case("transfer-encoding: chunked"));
    let body = &answer[end + 4..];
    Some((status, if is_chunked { dechunked(body)? } else { body.to_vec() }))
}

fn dechunked(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n")?;
        let size =
            usize::from_str_radix(std::str::from_utf8(&rest[..end]).ok()?.split(';').next()?, 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend(rest.get(..size)?);
        rest = rest.get(size + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_status_and_a_body() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", Some((200, b"hi".to_vec()))),
            (
                "HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n3;x\r\n fi\r\n0\r\n\r\n",
                Some((503, b"hi fi".to_vec())),
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhi", None),
            ("hello", None),
        ] {
            assert_eq!(parse(answer.as_bytes()), expected, "{answer}");
        }
    }
}
