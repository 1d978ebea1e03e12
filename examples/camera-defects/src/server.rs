//! The function's HTTP side: what can be asked, and how it is answered. Must not know how a camera works.
#![allow(unsafe_code)]

use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use crate::eye::{Eye, Sight};
use crate::reference;

/// Longest request head, bytes, and longest body that is passed over.
const HEAD_BYTES_MAX: u64 = 16 * 1024;
const BODY_BYTES_MAX: u64 = 1 << 20;

/// A connection without a request for this long is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// A connection is a thread, so each is given little.
const STACK_BYTES: usize = 256 << 10;

/// How long to wait when no descriptor or memory is left: what is served now has to end first.
const NO_ROOM: Duration = Duration::from_millis(10);

const USAGE: &str = "\
Looks through a camera.

  GET /inspect   looks at the next frame: {defect, count, defects: [{x, y, width, height, pixels, difference}], brightness, frame, micros}
  GET /check     looks at made-up pictures of which the answer is known
  GET /healthz   whether the camera gives frames
";

/// Serves for ever.
pub(crate) fn serve(listener: &TcpListener, eye: &Eye) {
    loop {
        let Ok((connection, _)) = listener.accept() else {
            std::thread::sleep(NO_ROOM);
            continue;
        };
        let eye = eye.clone();
        // A thread that cannot be started drops the connection, which the caller sees as closed.
        let _ = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            // A broken connection concerns nobody but its other end.
            let _ = answer_all(connection, &eye);
        });
    }
}

struct Answer {
    status: &'static str,
    kind: &'static str,
    text: String,
}

impl Answer {
    fn json(status: &'static str, text: String) -> Self {
        Self { status, kind: "application/json", text }
    }

    fn plain(status: &'static str, text: impl Into<String>) -> Self {
        Self { status, kind: "text/plain; charset=utf-8", text: text.into() }
    }
}

/// Answers the requests of one connection until one side wants it closed.
fn answer_all(connection: TcpStream, eye: &Eye) -> io::Result<()> {
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(IDLE_TIMEOUT))?;
    let mut output = connection.try_clone()?;
    let mut input = BufReader::new(connection);
    while let Some(request) = read_head(&mut input)? {
        let answer = answer(&request, eye);
        let Answer { status, kind, text } = answer;
        let (length, after) = (text.len(), if request.is_last { "close" } else { "keep-alive" });
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: {after}\r\n\r\n"
        );
        output.write_all((head + &text).as_bytes())?;
        if request.is_last {
            return Ok(());
        }
        io::copy(&mut (&mut input).take(request.body_bytes), &mut io::sink())?;
    }
    Ok(())
}

struct Request {
    method: String,
    path: String,
    body_bytes: u64,
    is_last: bool,
}

/// The next request's head; none at the end, or where there is none that can be read.
fn read_head(input: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let mut lines = input.take(HEAD_BYTES_MAX);
    let mut line = String::new();
    if lines.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(None) };
    let mut request = Request { method, path, body_bytes: 0, is_last: false };
    loop {
        line.clear();
        if lines.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let Some((name, value)) = line.trim_end().split_once(':') else { return Ok(Some(request)) };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => request.body_bytes = value.trim().parse().unwrap_or(u64::MAX),
            // A body in pieces is not waited for.
            "transfer-encoding" => request.is_last = true,
            "connection" => request.is_last |= value.trim().eq_ignore_ascii_case("close"),
            _ => {}
        }
        request.is_last |= request.body_bytes > BODY_BYTES_MAX;
    }
}

fn answer(request: &Request, eye: &Eye) -> Answer {
    if request.method != "GET" {
        return Answer::plain("405 Method Not Allowed", "only GET\n");
    }
    match request.path.split('?').next().unwrap_or_default() {
        "/inspect" => match eye.see() {
            Ok(sight) => Answer::json("200 OK", told(&sight)),
            Err(blind) => Answer::plain("503 Service Unavailable", format!("{blind}\n")),
        },
        "/healthz" => match eye.see() {
            Ok(_) => Answer::plain("200 OK", "the camera gives frames\n"),
            Err(blind) => Answer::plain("503 Service Unavailable", format!("{blind}\n")),
        },
        "/check" => {
            let checked = reference::check();
            let status = if checked.is_passed() { "200 OK" } else { "500 Internal Server Error" };
            let reference::Checked { pictures, agree, right } = checked;
            Answer::json(status, format!("{{\"pictures\":{pictures},\"agree\":{agree},\"right\":{right}}}\n"))
        }
        "/" => Answer::plain("200 OK", USAGE),
        _ => Answer::plain("404 Not Found", USAGE),
    }
}

fn told(sight: &Sight) -> String {
    let Sight { verdict, frame, micros } = sight;
    let mut defects = String::new();
    for defect in &verdict.defects {
        let comma = if defects.is_empty() { "" } else { "," };
        let crate::defects::Defect { x, y, width, height, pixels, difference } = defect;
        // Writing to a string cannot fail.
        let _ = write!(
            defects,
            "{comma}{{\"x\":{x},\"y\":{y},\"width\":{width},\"height\":{height},\"pixels\":{pixels},\"difference\":{difference}}}"
        );
    }
    let (is_defect, count, brightness) = (verdict.count > 0, verdict.count, verdict.brightness);
    format!(
        "{{\"defect\":{is_defect},\"count\":{count},\"defects\":[{defects}],\"brightness\":{brightness},\"frame\":{frame},\"micros\":{micros}}}\n"
    )
}

/// Ends the program at SIGTERM; what is answered then is cut off.
pub(crate) fn exit_on_sigterm() {
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

    // SAFETY: `end` has the type that a handler must have and calls only what is async-signal-safe.
    unsafe { signal(SIGTERM, end) };
}
