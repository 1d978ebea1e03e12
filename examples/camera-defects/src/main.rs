//! A function that looks through the camera it was given and says over HTTP whether there is a defect. It names no crate, so that
//! it is one static program, and that its whole image.

mod camera;
mod defects;
mod eye;
mod reference;
mod server;

use std::net::TcpListener;
use std::process::ExitCode;

use camera::{Camera, Format};
use eye::Eye;

/// Largest width and height, pixels.
const SIDE_MAX: usize = 8192;

fn main() -> ExitCode {
    // Before anything else: the first process of a container has to have a handler, or the signal is ignored.
    server::exit_on_sigterm();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("camera-defects: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let number = |name: &str, fallback: usize, most: usize| match variable(name) {
        None => Ok(fallback),
        Some(text) => {
            let number = text.parse().ok().filter(|number| (1..=most).contains(number));
            number.ok_or_else(|| format!("{name}={text}: a number from 1 to {most}"))
        }
    };
    // The generic plugin's profile names all cameras that a function has.
    let cameras = variable("CAMERAS").ok_or("CAMERAS is not set: ask for a camera in resources.limits")?;
    let format = match variable("FORMAT").as_deref() {
        None | Some("yuyv") => Format::Yuyv,
        Some("grey") => Format::Grey,
        Some(other) => return Err(format!("FORMAT={other}: yuyv or grey")),
    };
    let camera = Camera {
        path: cameras.split(',').next().unwrap_or_default().into(),
        width: number("WIDTH", 640, SIDE_MAX)?,
        height: number("HEIGHT", 480, SIDE_MAX)?,
        format,
    };
    let port = match variable("PORT").as_deref() {
        None => 8080,
        Some(text) => text.parse().map_err(|_| format!("PORT={text}: a number from 0 to 65535"))?,
    };
    let listener = TcpListener::bind(("0.0.0.0", port)).map_err(|error| format!("port {port}: {error}"))?;
    let port = listener.local_addr().map_err(|error| error.to_string())?.port();
    let (width, height) = (camera.width, camera.height);
    println!("{}, {width}x{height}: listens on port {port}", camera.path.display());
    let eye = Eye::open(camera).map_err(|error| format!("no thread for the camera: {error}"))?;
    server::serve(&listener, &eye);
    Ok(())
}
