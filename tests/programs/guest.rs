//! What the tests run inside containers: does what its arguments say, one after the other, and prints what it finds.
//!
//! Names no crate.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int, c_long};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::exit;
use std::time::{Duration, Instant};

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn signal(signum: c_int, handler: extern "C" fn(c_int)) -> usize;
    fn _exit(status: c_int) -> !;
}

fn main() {
    for argument in std::env::args().skip(1) {
        let (act, value) = argument.split_once(':').unwrap_or((&argument, ""));
        perform(act, value);
        std::io::stdout().flush().expect("standard output works");
    }
}

fn perform(act: &str, value: &str) {
    match act {
        "exit" => exit(number(value)),
        "print" => println!("{value}"),
        "error" => eprintln!("{value} in {} pieces", 2),
        "partial" => print!("{value}"),
        "lines" => (0..number(value)).for_each(|line| println!("line {line}")),
        "sleep" => std::thread::sleep(Duration::from_secs(3600)),
        "wait" => std::thread::sleep(Duration::from_millis(number(value))),
        "spin" => loop {
            std::hint::black_box(0);
        },
        "burn" => burn(Duration::from_millis(number(value))),
        "eat" => drop(eat(number(value))),
        "hold" => std::mem::forget(eat(number(value))),
        "fork" => threads(number(value)),
        "cat" => println!("{value}={}", read(value)),
        "size" => println!("{value} has {}", fs::read(value).map_or(0, |bytes| bytes.len())),
        "link" => {
            println!("{value}={}", fs::read_link(value).map_or_else(show, |path| path.display().to_string()))
        }
        "ls" => list(value),
        "write" => println!("write {value}: {}", fs::write(value, "x").map_or_else(show, |()| "ok".into())),
        "owner" => owner(value),
        "fill" => fill(value),
        "open" => println!("open {value}: {}", fs::File::open(value).map_or_else(show, |_| "ok".into())),
        "node" => println!("node {value}: {}", node(value)),
        "stdin" => println!(
            "stdin has {} bytes",
            std::io::stdin().read_to_end(&mut Vec::new()).map_or(-1, |n| n as i64)
        ),
        "self" => println!("loopback: {}", loopback()),
        "term" => term(number(value)),
        "try" => attempts(),
        "environment" => environment(),
        "status" => println!("{}", status()),
        "report" => report(value),
        // Runs on when this program has ended.
        "child" => {
            let mut command = std::process::Command::new("/proc/self/exe");
            command.arg("sleep").stdout(std::process::Stdio::null());
            command.spawn().expect("a program can start itself");
        }
        // Another process that does this, and how it ends.
        "worker" => {
            let mut command = std::process::Command::new("/proc/self/exe");
            let ended = command.arg(value).stdout(std::process::Stdio::null()).status();
            println!("worker: {}", ended.expect("a program can start itself"));
        }
        "raise" => {
            let pid = std::process::id();
            // SAFETY: kill takes no pointer.
            unsafe { syscall(KILL, pid, number::<c_int>(value)) };
        }
        _ => panic!("no such act: {act}"),
    }
}

fn number<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is not a number"))
}

fn show(error: std::io::Error) -> String {
    format!("error {}", error.raw_os_error().unwrap_or(0))
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(show, |text| text.trim_end().replace('\n', "|"))
}

fn list(path: &str) {
    let mut names: Vec<String> = fs::read_dir(path)
        .map(|entries| {
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        })
        .unwrap_or_else(|error| vec![show(error)]);
    names.sort();
    println!("{path}={}", names.join(","));
}

fn owner(path: &str) {
    use std::os::unix::fs::MetadataExt as _;
    let owner =
        fs::metadata(path).map_or_else(show, |metadata| format!("{}:{}", metadata.uid(), metadata.gid()));
    println!("owner {path}: {owner}");
}

fn environment() {
    let mut all: Vec<String> = std::env::vars().map(|(name, value)| format!("{name}={value}")).collect();
    all.sort();
    println!("{} in {:?}", all.join(","), std::env::current_dir());
}

/// What of this process the kernel's checks depend on.
fn status() -> String {
    const LINES: [&str; 10] =
        ["Uid:", "Gid:", "Groups:", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp:"];
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let lines = text.lines().filter(|line| LINES.iter().any(|name| line.starts_with(name)));
    lines.chain(limits.lines().filter(|line| line.contains("open files"))).collect::<Vec<_>>().join("\n")
}

/// That, where it comes from and what it is told, into a file: nobody reads what a hook prints.
fn report(path: &str) {
    let mut told = String::new();
    // A function's program is told nothing.
    let _ = std::io::stdin().read_to_string(&mut told);
    let from = std::env::var("FROM").unwrap_or_default();
    let seen = ["exe", "cwd", "fd/0", "ns/mnt"].map(|name| fs::read_link(format!("/proc/1/{name}")).is_ok());
    let memory = fs::File::open("/proc/1/mem").is_ok();
    let text = format!("{}\nFROM={from}\nfirst: {seen:?} {memory}\n{told}\n", status());
    fs::write(path, text).expect("the file can be written");
}

fn burn(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::hint::black_box(0);
    }
}

fn eat(megabytes: usize) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for _ in 0..megabytes {
        all.push(vec![1_u8; 1 << 20]);
    }
    println!("ate {}", all.len());
    all
}

fn threads(most: usize) {
    let started = (0..most)
        .take_while(|_| {
            let sleeper = std::thread::Builder::new().stack_size(16 * 1024);
            sleeper.spawn(|| std::thread::sleep(Duration::from_secs(3600))).is_ok()
        })
        .count();
    println!("threads {started}");
}

fn fill(path: &str) {
    let mut written = 0;
    let mut file = fs::File::create(path).expect("the file can be made");
    let outcome = loop {
        match file.write(&[7; 65536]) {
            Ok(length) => written += length,
            Err(error) => break show(error),
        }
    };
    drop(file);
    let _ = fs::remove_file(path);
    println!("filled {written}: {outcome}");
}

fn loopback() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback is there");
    let address = listener.local_addr().expect("it is bound");
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).map_or_else(show, |_| "ok".into())
}

static mut TERM_STATUS: c_int = 0;

extern "C" fn on_term(_: c_int) {
    // SAFETY: written once before the handler is set; `_exit` is async-signal-safe.
    unsafe { _exit(TERM_STATUS) }
}

fn term(status: c_int) {
    // SAFETY: no other thread exists, and the handler has the type it must have.
    unsafe {
        TERM_STATUS = status;
        signal(15, on_term);
    }
}

#[cfg(target_arch = "x86_64")]
const KILL: c_long = 62;
#[cfg(target_arch = "aarch64")]
const KILL: c_long = 129;

/// `(name, number, arguments)` of system calls and what they give: 0 or an error number.
fn attempts() {
    #[cfg(target_arch = "x86_64")]
    let calls: &[(&str, c_long, [c_long; 3])] = &[
        ("unshare", 272, [0x1000_0000, 0, 0]),
        ("setns", 308, [0, 0, 0]),
        ("keyctl", 250, [0, 0, 0]),
        ("bpf", 321, [0, 0, 0]),
        ("userfaultfd", 323, [0, 0, 0]),
        ("io_uring_setup", 425, [1, 0, 0]),
        ("clone-newuser", 56, [0x1000_0000 | 17, 0, 0]),
        ("clone3", 435, [0, 0, 0]),
        ("newer", 499, [0, 0, 0]),
        ("vsock", 41, [40, 1, 0]),
        ("getpid", 39, [0, 0, 0]),
        ("reboot", 169, [0, 0, 0]),
        ("swapon", 167, [0, 0, 0]),
        ("open_by_handle_at", 304, [-100, 0, 0]),
        ("perf_event_open", 298, [0, 0, 0]),
        ("init_module", 175, [0, 0, 0]),
    ];
    #[cfg(target_arch = "aarch64")]
    let calls: &[(&str, c_long, [c_long; 3])] = &[
        ("unshare", 97, [0x1000_0000, 0, 0]),
        ("setns", 268, [0, 0, 0]),
        ("keyctl", 219, [0, 0, 0]),
        ("bpf", 280, [0, 0, 0]),
        ("clone-newuser", 220, [0x1000_0000 | 17, 0, 0]),
        ("clone3", 435, [0, 0, 0]),
        ("newer", 499, [0, 0, 0]),
        ("getpid", 172, [0, 0, 0]),
    ];
    for (name, number, [a, b, c]) in calls {
        // SAFETY: none of these calls writes through its arguments: they are numbers or null.
        let result = unsafe { syscall(*number, *a, *b, *c, 0 as c_long, 0 as c_long) };
        let outcome =
            if result < 0 { std::io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 };
        println!("try {name}: {outcome}");
    }
    let (source, target, kind) = (c("none"), c("/mnt"), c("tmpfs"));
    #[cfg(target_arch = "x86_64")]
    let (mount, mknod) = (165, 259);
    #[cfg(target_arch = "aarch64")]
    let (mount, mknod) = (40, 33);
    // SAFETY: the strings outlive the calls.
    let results = unsafe {
        [
            (
                "mount",
                syscall(mount, source.as_ptr(), target.as_ptr(), kind.as_ptr(), 0 as c_long, 0 as c_long),
            ),
            (
                "mknod",
                syscall(
                    mknod,
                    -100 as c_long,
                    c("/dev/kmsg").as_ptr() as *const c_char,
                    0o20666 as c_long,
                    0x10b as c_long,
                ),
            ),
        ]
    };
    for (name, result) in results {
        println!(
            "try {name}: {}",
            if result < 0 { std::io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 }
        );
    }
}

/// Makes a node of the kernel's log.
fn node(path: &str) -> String {
    #[cfg(target_arch = "x86_64")]
    let mknod = 259;
    #[cfg(target_arch = "aarch64")]
    let mknod = 33;
    let path = c(path);
    // SAFETY: the string outlives the call.
    let made = unsafe { syscall(mknod, -100 as c_long, path.as_ptr(), 0o20666 as c_long, 0x10b as c_long) };
    if made < 0 { show(std::io::Error::last_os_error()) } else { "ok".into() }
}

fn c(text: &str) -> CString {
    CString::new(text).expect("no zero byte")
}
