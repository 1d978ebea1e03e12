//! Compiles the programs, so that whoever runs a test needs no compiler.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "../../cli/static_program.rs"]
mod static_program;

use static_program::{compile, variable};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../../cli/static_program.rs");
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    compile("hello", &here.join("../../examples/hello/src/main.rs"));
    let camera = here.join("../../examples/camera-defects/src");
    println!("cargo::rerun-if-changed={}", camera.display());
    compile("camera-defects", &camera.join("main.rs"));
    compile("subject", &here.join("subject.rs"));
    compile("guest", &here.join("guest.rs"));
    build("grpc", &here.join("grpc"));
}

/// A program that names crates is a package: cargo builds it, apart from the build that waits for this script.
fn build(name: &str, package: &Path) {
    println!("cargo::rerun-if-changed={}", package.display());
    println!("cargo::rerun-if-changed=../../Cargo.lock");
    let (target, out) = (variable("TARGET"), PathBuf::from(variable("OUT_DIR")));
    let mut cargo = Command::new(variable("CARGO"));
    cargo.args(["build", "--quiet", "--locked", "--release", "--config", "profile.release.lto=false"]);
    cargo.args(["--target", &target, "--manifest-path"]).arg(package.join("Cargo.toml"));
    cargo.arg("--target-dir").arg(out.join("packages"));
    // What wraps the compiler for the outer build, clippy for one, builds nothing.
    cargo
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    let status = cargo.status();
    assert!(status.is_ok_and(|status| status.success()), "building {} failed", package.display());
    let built = out.join("packages").join(target).join("release").join(name);
    fs::copy(built, out.join(name)).expect("cargo has built it");
}
