//! The function that tests deploy to look around from inside, and to misbehave: an HTTP server of the standard library.
//!
//! `MODE=exit` ends at once, `MODE=deaf` runs without listening, `MODE=late` listens after two seconds.
//! Paths: `/env`, `/read?FILE`, `/write?FILE`, `/wait?MS`, `/exit?CODE`, `/eat?MIB`, `/fork?COUNT`, `/log?TEXT`, `/stdin`,
//! `/echo` (gives the body back).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

fn main() {
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
        _ => {}
    }
    let port: u16 = std::env::var("PORT").ok().and_then(|text| text.parse().ok()).expect("PORT is set");
    let listener = TcpListener::bind(("0.0.0.0", port)).expect("the port is free");
    println!("listening");
    for connection in listener.incoming().flatten() {
        std::thread::spawn(move || {
            // Whoever asked may have gone.
            let _ = serve(connection);
        });
    }
}

fn serve(connection: TcpStream) -> std::io::Result<()> {
    let mut output = connection.try_clone()?;
    let mut input = BufReader::new(connection);
    loop {
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let target = line.split(' ').nth(1).unwrap_or("/").to_owned();
        let mut length = 0;
        loop {
            line.clear();
            input.read_line(&mut line)?;
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
        let answer = act(path, argument, body);
        write!(output, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len())?;
        output.write_all(&answer)?;
    }
}

fn act(path: &str, argument: &str, body: Vec<u8>) -> Vec<u8> {
    let number = || argument.parse::<u64>().unwrap_or(0);
    let shown = |result: std::io::Result<Vec<u8>>| result.unwrap_or_else(|error| format!("error {error}").into_bytes());
    match path {
        "/env" => std::env::vars().map(|(name, value)| format!("{name}={value}\n")).collect::<String>().into_bytes(),
        "/read" => shown(std::fs::read(argument)),
        "/write" => shown(std::fs::write(argument, vec![b'x'; 1 << 20]).map(|()| b"written".to_vec())),
        "/wait" => {
            std::thread::sleep(Duration::from_millis(number()));
            b"waited".to_vec()
        }
        "/exit" => std::process::exit(i32::try_from(number()).unwrap_or(1)),
        "/eat" => {
            let eaten = vec![1_u8; usize::try_from(number()).unwrap_or(0) << 20];
            format!("{}", eaten.iter().map(|byte| u64::from(*byte)).sum::<u64>()).into_bytes()
        }
        "/fork" => {
            let sleeper = |_| std::thread::Builder::new().spawn(|| std::thread::sleep(Duration::from_secs(3)));
            format!("{}", (0..number()).map(sleeper).take_while(Result::is_ok).count()).into_bytes()
        }
        "/log" => {
            println!("{argument}");
            b"logged".to_vec()
        }
        "/stdin" => {
            let mut bytes = Vec::new();
            shown(std::io::stdin().read_to_end(&mut bytes).map(|count| format!("{count} bytes, then the end").into_bytes()))
        }
        "/echo" => body,
        _ => format!("subject {}\n", std::env::var("VERSION").unwrap_or_default()).into_bytes(),
    }
}
