//! The smallest useful function: answers every HTTP request with a greeting.
//!
//! It keeps Knative's runtime contract with nothing but the standard library: listens on `$PORT`, greets `$TARGET`,
//! names the revision it runs as (`$K_REVISION`), keeps connections alive, ends on SIGTERM. The `tombolo` command
//! compiles this one file by itself, so it names no other crate and no other file.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

/// Longest request head, bytes: far above what a proxy lets through.
const HEAD_BYTES_MAX: u64 = 64 * 1024;

/// A connection is a thread, so each is given little.
const STACK_BYTES: usize = 64 * 1024;

/// A connection without a request for this long is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// How long, and for how many bytes of a request's body, a connection that is being closed waits for its other end.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: u64 = 16 * 1024 * 1024;

fn main() -> ExitCode {
    sigterm::exit_on_it();
    let port = match std::env::var("PORT").as_deref().unwrap_or("8080").parse::<u16>() {
        Ok(port) => port,
        Err(_) => {
            eprintln!("PORT is not a port number");
            return ExitCode::FAILURE;
        }
    };
    let listener = match TcpListener::bind(("0.0.0.0", port)) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("cannot listen on port {port}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let greeting: &'static str = greeting().leak();
    println!("listening on port {port}");
    loop {
        let Ok((connection, _)) = listener.accept() else {
            // Out of descriptors or memory: what is served now has to end first.
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        // A thread that cannot be started drops the connection, which the caller sees as closed.
        let _ = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            // A broken connection concerns nobody but its other end.
            let _ = serve(connection, greeting);
        });
    }
}

fn greeting() -> String {
    let target = std::env::var("TARGET").unwrap_or_else(|_| "World".to_owned());
    match std::env::var("K_REVISION") {
        Ok(revision) => format!("Hello {target} from {revision}!\n"),
        Err(_) => format!("Hello {target}!\n"),
    }
}

/// Answers the requests of one connection until one side wants it closed.
fn serve(connection: TcpStream, greeting: &str) -> io::Result<()> {
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(IDLE_TIMEOUT))?;
    let mut output = connection.try_clone()?;
    let mut input = BufReader::with_capacity(8 * 1024, connection);
    while let Some(request) = read_head(&mut input)? {
        io::copy(&mut (&mut input).take(request.body_bytes), &mut io::sink())?;
        let connection = if request.close { "close" } else { "keep-alive" };
        let body = if request.head_only { "" } else { greeting };
        let length = greeting.len();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\nConnection: {connection}\r\n\r\n{body}"
        );
        output.write_all(answer.as_bytes())?;
        if request.close {
            // Closing with bytes unread would reset the connection, perhaps before the other end has read the answer.
            output.shutdown(Shutdown::Write)?;
            output.set_read_timeout(Some(LINGER))?;
            io::copy(&mut (&mut input).take(LINGER_BYTES_MAX), &mut io::sink())?;
            break;
        }
    }
    Ok(())
}

/// What of a request's head matters here.
struct Request {
    head_only: bool,
    body_bytes: u64,
    /// The connection ends after the answer: asked for, HTTP/1.0, or a body whose end is not announced by its length.
    close: bool,
}

/// Reads one request head; `None` at the end of the connection.
fn read_head(input: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let mut input = input.take(HEAD_BYTES_MAX);
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut request = Request {
        head_only: line.starts_with("HEAD "),
        body_bytes: 0,
        close: !line.trim_end().ends_with("HTTP/1.1"),
    };
    loop {
        line.clear();
        if input.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some((name, value)) = line.trim_end().split_once(':') else {
            return if line.trim_end().is_empty() {
                Ok(Some(request))
            } else {
                Err(io::ErrorKind::InvalidData.into())
            };
        };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => request.body_bytes = value.parse().map_err(|_| io::ErrorKind::InvalidData)?,
            "transfer-encoding" | "expect" => request.close = true,
            "connection" if value.eq_ignore_ascii_case("close") => request.close = true,
            _ => {}
        }
        if request.close {
            // The answer does not depend on the body, and nothing is read after it.
            request.body_bytes = 0;
        }
    }
}

/// Ending on SIGTERM. The first process of a pid namespace ignores every signal it has no handler for.
#[allow(unsafe_code)]
mod sigterm {
    use std::ffi::c_int;

    const SIGTERM: c_int = 15;

    unsafe extern "C" {
        fn signal(signum: c_int, handler: extern "C" fn(c_int)) -> usize;
        fn _exit(status: c_int) -> !;
    }

    extern "C" fn end(_signum: c_int) {
        // SAFETY: `_exit` is async-signal-safe and takes no pointer.
        unsafe { _exit(0) }
    }

    pub(crate) fn exit_on_it() {
        // SAFETY: `end` has the type a handler must have and calls only what is async-signal-safe.
        unsafe { signal(SIGTERM, end) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends bytes to a connection being served, and reads until it ends.
    fn talk(request: &str) -> String {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let mut caller = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (served, _) = listener.accept().unwrap();
        let server = std::thread::spawn(move || serve(served, "Hello!\n"));
        caller.write_all(request.as_bytes()).unwrap();
        caller.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        caller.read_to_string(&mut answer).unwrap();
        // A request that is none ends in an error of the connection, which is what the caller sees too.
        let _ = server.join().unwrap();
        answer
    }

    #[test]
    fn a_connection_is_kept_for_further_requests() {
        let answers = talk(
            "GET / HTTP/1.1\r\nHost: a\r\n\r\nPOST /x HTTP/1.1\r\nContent-Length: 5\r\n\r\n12345HEAD / HTTP/1.1\r\n\r\n",
        );
        assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), 3, "{answers}");
        assert_eq!(answers.matches("\r\n\r\nHello!\n").count(), 2, "{answers}");
        assert_eq!(answers.matches("Connection: keep-alive").count(), 3, "{answers}");
    }

    #[test]
    fn what_cannot_be_kept_is_answered_and_closed() {
        for request in [
            "GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ] {
            let answer = talk(request);
            assert!(
                answer.contains("Connection: close") && answer.ends_with("Hello!\n"),
                "{request:?}: {answer}"
            );
            assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
        }
    }

    #[test]
    fn what_is_no_request_gets_no_answer() {
        for nonsense in [
            "GET / HTTP/1.1\r\nno colon\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            "GET / HTTP/1.1\r\n",
        ] {
            assert_eq!(talk(nonsense), "", "{nonsense:?}");
        }
    }
}
