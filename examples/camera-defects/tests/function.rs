//! The program as it runs: a pipe plays a camera that can be made to show anything, and devices that every machine has play others.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde_json::Value;

const WIDTH: usize = 64;
const HEIGHT: usize = 48;

/// Far longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(60);

struct Function {
    child: Child,
    port: u16,
}

fn command(variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_camera-defects"));
    command.env_clear().env("PORT", "0").env("WIDTH", WIDTH.to_string()).env("HEIGHT", HEIGHT.to_string());
    command.envs(variables.iter().copied()).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

impl Function {
    fn start(camera: &Path, format: &str) -> Self {
        let mut child =
            command(&[("CAMERAS", camera.to_str().unwrap()), ("FORMAT", format)]).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().rsplit_once(' ').unwrap().1.parse().unwrap();
        Self { child, port }
    }

    fn get(&self, path: &str) -> (u16, String) {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(connection, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    fn inspect(&self) -> Value {
        let (status, body) = self.get("/inspect");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An even surface with a bright square on it, or without.
fn frame(defect: Option<(usize, usize)>) -> Vec<u8> {
    let mut pixels = vec![90; WIDTH * HEIGHT];
    if let Some((x, y)) = defect {
        for row in y..y + 5 {
            pixels[row * WIDTH + x..row * WIDTH + x + 5].fill(190);
        }
    }
    pixels
}

fn camera(directory: &Path) -> PathBuf {
    let path = directory.join("camera");
    mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    path
}

/// Shows frames to whoever reads, then closes.
fn show(camera: &Path, frames: Vec<Vec<u8>>) -> std::thread::JoinHandle<()> {
    let camera = camera.to_owned();
    std::thread::spawn(move || {
        let mut pipe = File::options().write(true).open(camera).unwrap();
        frames.iter().for_each(|frame| pipe.write_all(frame).unwrap());
    })
}

#[test]
fn a_defect_is_seen_where_it_is_and_a_good_part_is_good() {
    let directory = tempfile::tempdir().unwrap();
    let camera = camera(directory.path());
    let function = Function::start(&camera, "grey");
    let shown = show(&camera, vec![frame(None), frame(Some((20, 30))), frame(None)]);
    for (number, is_defect) in [(1, false), (2, true), (3, false)] {
        let seen = function.inspect();
        assert_eq!((&seen["frame"], &seen["defect"]), (&number.into(), &is_defect.into()), "{seen}");
        if is_defect {
            let defect = &seen["defects"][0];
            let (x, y) = (defect["x"].as_u64().unwrap(), defect["y"].as_u64().unwrap());
            assert!((18..=20).contains(&x) && (28..=30).contains(&y), "{seen}");
            assert_eq!(seen["count"], 1);
        }
    }
    shown.join().unwrap();
}

#[test]
fn of_two_bytes_a_pixel_the_first_is_brightness() {
    let directory = tempfile::tempdir().unwrap();
    let camera = camera(directory.path());
    let function = Function::start(&camera, "yuyv");
    let colour = frame(Some((30, 20))).into_iter().flat_map(|pixel| [pixel, pixel.wrapping_mul(7)]).collect();
    let shown = show(&camera, vec![colour]);
    let seen = function.inspect();
    assert_eq!((&seen["defect"], &seen["count"]), (&true.into(), &1.into()), "{seen}");
    shown.join().unwrap();
}

#[test]
fn a_camera_that_goes_is_told_and_one_that_comes_back_is_used() {
    let directory = tempfile::tempdir().unwrap();
    let camera = camera(directory.path());
    let function = Function::start(&camera, "grey");
    let shown = show(&camera, vec![frame(None)]);
    assert_eq!(function.get("/healthz").0, 200);
    shown.join().unwrap();
    // Whoever showed has closed it.
    let (status, body) = function.get("/inspect");
    assert_eq!(status, 503, "{body}");
    fs::remove_file(&camera).unwrap();
    let (status, body) = function.get("/healthz");
    assert!(status == 503 && body.contains("No such file"), "{status} {body}");
    mkfifo(&camera, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let shown = show(&camera, vec![frame(Some((30, 10)))]);
    assert_eq!(function.inspect()["defect"], true);
    shown.join().unwrap();
}

#[test]
fn a_device_that_gives_bytes_is_a_camera() {
    let dark = Function::start(Path::new("/dev/zero"), "grey");
    let seen = dark.inspect();
    assert_eq!((&seen["brightness"], &seen["defect"]), (&0.into(), &false.into()), "{seen}");
    let noise = Function::start(Path::new("/dev/urandom"), "grey");
    let seen = noise.inspect();
    assert!((100..156).contains(&seen["brightness"].as_i64().unwrap()), "{seen}");
    assert_eq!(seen["defect"], false, "noise is the surface's own roughness: {seen}");
}

#[test]
fn it_checks_itself_and_says_what_can_be_asked() {
    let function = Function::start(Path::new("/dev/zero"), "grey");
    let (status, body) = function.get("/check");
    assert_eq!((status, body.as_str()), (200, "{\"pictures\":12,\"agree\":12,\"right\":12}\n"));
    assert!(function.get("/").1.contains("GET /inspect"));
    assert_eq!(function.get("/nothing").0, 404);
}

#[test]
fn what_is_wrong_with_its_environment_is_named() {
    for (variables, said) in [
        (&[][..], "CAMERAS is not set"),
        (&[("CAMERAS", "/dev/zero"), ("WIDTH", "0")], "WIDTH=0"),
        (&[("CAMERAS", "/dev/zero"), ("FORMAT", "jpeg")], "FORMAT=jpeg"),
        (&[("CAMERAS", "/dev/zero"), ("PORT", "x")], "PORT=x"),
    ] {
        let output = command(variables).stderr(Stdio::piped()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(said), "{text}");
    }
}

#[test]
fn it_ends_when_told_to() {
    let mut function = Function::start(Path::new("/dev/zero"), "grey");
    kill(Pid::from_raw(function.child.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert!(function.child.wait().unwrap().success());
}
