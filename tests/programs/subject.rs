//! The function that tests deploy to look around from inside, and to misbehave: an HTTP server of the standard library.
//! As the first process of its namespace it ignores SIGTERM, having no handler for it, except with `MODE=polite`.
//!
//! `--exit CODE` only ends with that status. `MODE=exit` ends at once, `MODE=deaf` runs without listening, `MODE=late` listens
//! after two seconds, `MODE=failing` answers every request for `/` with 500, `MODE=cutting` breaks those answers off, `MODE=slow`
//! gives them after half a second, `MODE=silent` never.
//! Paths: `/env`, `/open?FILE`, `/read?FILE`, `/write?FILE`, `/mknod?FILE`, `/wait?MS`, `/pause?MS` (in the middle of the
//! answer), `/await?FILE` (makes it and waits until somebody removes it), `/exit?CODE`, `/eat?MIB`, `/hold?MIB` (until it
//! ends), `/model?MIB` (holds as much from the first such request on), `/fork?COUNT`, `/log?TEXT`, `/stdin`, `/echo` (gives the
//! body back), `/head` (gives the request's head back), `/tunnel` (switches protocols, to one that gives every byte back),
//! `/bytes?COUNT`, `/count` (how often it was asked this), `/status?CODE`, and for faults `/garbage` (no HTTP), `/cut?COUNT`
//! (ends after half of what it promised), `/flood?MIB` (prints so much as fast as it can), `/sicken` (from then on `/health`
//! answers 500).

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

static SICK: AtomicBool = AtomicBool::new(false);

static HELD: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

static COUNT: AtomicU64 = AtomicU64::new(0);

fn main() {
    // As the command of a probe it only ends.
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("--exit") {
        std::process::exit(arguments.next().and_then(|text| text.parse().ok()).unwrap_or(1));
    }
    let mode = std::env::var("MODE").unwrap_or_default();
    match mode.as_str() {
        "exit" => {
            println!("the subject refuses to run");
            std::process::exit(3);
        }
        "deaf" => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
        "late" => std::thread::sleep(Duration::from_secs(2)),
        "polite" => sigterm::exit_on_it(),
        _ => {}
    }
    let port: u16 = std::env::var("PORT").ok().and_then(|text| text.parse().ok()).expect("PORT is set");
    let listener = TcpListener::bind(("0.0.0.0", port)).expect("the port is free");
    println!("listening");
    for connection in listener.incoming().flatten() {
        // A thread that cannot be had drops the connection.
        let _ = std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
            // Whoever asked may have gone.
            let _ = serve(connection);
        });
    }
}

fn serve(connection: TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut output = connection.try_clone()?;
    let mut input = BufReader::new(connection);
    let (mut head, mut answer) = (String::new(), Vec::new());
    let mode = std::env::var("MODE").unwrap_or_default();
    let (failing, cutting, silent) = (mode == "failing", mode == "cutting", mode == "silent");
    loop {
        head.clear();
        if input.read_line(&mut head)? == 0 {
            return Ok(());
        }
        let target = head.split(' ').nth(1).unwrap_or("/").to_owned();
        let mut length = 0;
        loop {
            let begin = head.len();
            input.read_line(&mut head)?;
            let line = &head[begin..];
            if line.trim().is_empty() {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        input.read_exact(&mut body)?;
        let (path, argument) = target.split_once('?').unwrap_or((&target, ""));
        while silent && path == "/" {
            std::thread::sleep(Duration::from_secs(3600));
        }
        if mode == "slow" && path == "/" {
            std::thread::sleep(Duration::from_millis(500));
        }
        let (path, argument) = if cutting && path == "/" { ("/cut", "1000") } else { (path, argument) };
        if let Some(broken) = break_off(path, argument) {
            return output.write_all(&broken);
        }
        if path == "/tunnel" {
            output.write_all(b"HTTP/1.1 101 Switched\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")?;
            return io::copy(&mut input, &mut output).map(drop);
        }
        let status = match path {
            "/status" => argument,
            "/health" if SICK.load(Ordering::Relaxed) => "500",
            "/" if failing => "500",
            _ => "200",
        };
        let body = if path == "/head" { head.clone().into_bytes() } else { act(path, argument, body) };
        answer.clear();
        write!(answer, "HTTP/1.1 {status} Said\r\nContent-Length: {}\r\n\r\n", body.len())?;
        answer.extend_from_slice(&body);
        if path == "/pause" {
            let (begin, end) = answer.split_at(answer.len() - body.len() / 2);
            output.write_all(begin)?;
            std::thread::sleep(Duration::from_millis(argument.parse().unwrap_or(0)));
            output.write_all(end)?;
            continue;
        }
        output.write_all(&answer)?;
    }
}

/// What is sent instead of an answer, before the connection is closed.
fn break_off(path: &str, argument: &str) -> Option<Vec<u8>> {
    match path {
        "/garbage" => Some(b"\x16\x03\x01 this is not HTTP\r\n\r\n".to_vec()),
        "/cut" => {
            let promised: usize = argument.parse().unwrap_or(0);
            let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {promised}\r\n\r\n").into_bytes();
            answer.resize(answer.len() + promised / 2, b'x');
            Some(answer)
        }
        _ => None,
    }
}

fn act(path: &str, argument: &str, body: Vec<u8>) -> Vec<u8> {
    let number = || argument.parse::<u64>().unwrap_or(0);
    let shown = |result: io::Result<Vec<u8>>| result.unwrap_or_else(|error| format!("error {error}").into_bytes());
    match path {
        "/env" => std::env::vars().map(|(name, value)| format!("{name}={value}\n")).collect::<String>().into_bytes(),
        "/open" => shown(std::fs::File::open(argument).map(|_| b"opened".to_vec())),
        "/read" => shown(std::fs::read(argument)),
        "/write" => shown(std::fs::write(argument, vec![b'x'; 1 << 20]).map(|()| b"written".to_vec())),
        "/mknod" => shown(node::make(argument).map(|()| b"made".to_vec())),
        "/wait" => {
            std::thread::sleep(Duration::from_millis(number()));
            b"waited".to_vec()
        }
        "/pause" => b"paused".to_vec(),
        "/await" => shown(std::fs::write(argument, "").map(|()| {
            while std::fs::exists(argument).unwrap_or(true) {
                std::thread::sleep(Duration::from_millis(10));
            }
            b"waited".to_vec()
        })),
        "/hold" => {
            let held = vec![1_u8; usize::try_from(number()).unwrap_or(0) << 20];
            HELD.lock().unwrap_or_else(PoisonError::into_inner).push(held);
            b"held".to_vec()
        }
        "/model" => {
            let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
            if held.is_empty() {
                held.push(vec![1_u8; usize::try_from(number()).unwrap_or(0) << 20]);
            }
            drop(held);
            std::thread::sleep(Duration::from_millis(300));
            b"inferred".to_vec()
        }
        "/exit" => std::process::exit(i32::try_from(number()).unwrap_or(1)),
        "/eat" => {
            let eaten = vec![1_u8; usize::try_from(number()).unwrap_or(0) << 20];
            format!("{}", eaten.iter().map(|byte| u64::from(*byte)).sum::<u64>()).into_bytes()
        }
        "/fork" => {
            // None ends before the last one was made, however slow the machine.
            let gate = Arc::new(Mutex::new(()));
            let shut = gate.lock();
            let sleeper = |_| {
                let gate = Arc::clone(&gate);
                std::thread::Builder::new().spawn(move || drop(gate.lock()))
            };
            let made = (0..number()).map(sleeper).take_while(Result::is_ok).count();
            drop(shut);
            format!("{made}").into_bytes()
        }
        "/log" => {
            println!("{argument}");
            b"logged".to_vec()
        }
        "/flood" => {
            let mebibyte = [b"x".repeat(1023), b"\n".to_vec()].concat().repeat(1024);
            let mut output = io::stdout().lock();
            let written = (0..number()).take_while(|_| output.write_all(&mebibyte).is_ok()).count();
            format!("{written}").into_bytes()
        }
        "/stdin" => {
            let mut bytes = Vec::new();
            shown(io::stdin().read_to_end(&mut bytes).map(|count| format!("{count} bytes, then the end").into_bytes()))
        }
        "/sicken" => {
            SICK.store(true, Ordering::Relaxed);
            b"sick".to_vec()
        }
        "/echo" => body,
        "/count" => format!("{}", COUNT.fetch_add(1, Ordering::Relaxed) + 1).into_bytes(),
        "/bytes" => vec![b'x'; usize::try_from(number()).unwrap_or(0)],
        _ => format!("subject {}\n", std::env::var("VERSION").unwrap_or_default()).into_bytes(),
    }
}

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

mod node {
    use std::ffi::{CString, c_char, c_int};
    use std::io;

    /// A character device that anybody may open, and its number: nobody's.
    const MODE: u32 = 0o20666;
    const NUMBER: u64 = 240 << 8 | 7;

    unsafe extern "C" {
        fn mknod(path: *const c_char, mode: u32, device: u64) -> c_int;
    }

    pub(crate) fn make(path: &str) -> io::Result<()> {
        let path = CString::new(path)?;
        // SAFETY: the path outlives the call.
        match unsafe { mknod(path.as_ptr(), MODE, NUMBER) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
