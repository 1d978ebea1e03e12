//! Compiles `examples/hello` into a static program for `tombolo up --demo`, which embeds it and so needs no compiler.
//!
//! The same compiler that builds the command builds this; nothing has to be installed or run before.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let source = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("../examples/hello/src/main.rs");
    let program = PathBuf::from(variable("OUT_DIR")).join("hello");
    println!("cargo::rerun-if-changed={}", source.display());
    println!("cargo::rerun-if-changed=build.rs");

    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(["--crate-name", "hello", "--edition", "2024", "--crate-type", "bin"]);
    rustc.args(["--target", &variable("TARGET")]);
    rustc.args([
        "-C",
        "target-feature=+crt-static",
        "-C",
        "opt-level=3",
        "-C",
        "panic=abort",
        "-C",
        "strip=symbols",
    ]);
    // Set by cargo when the target has a linker of its own.
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg("-C").arg(format!("linker={linker}"));
    }
    let done = rustc.arg("-o").arg(&program).arg(&source).status();
    match done {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("compiling examples/hello failed: {status}"),
        Err(error) => panic!("the compiler cannot be run: {error}"),
    }
}
