//! Compiles one source file that names no crate into a static program, for build scripts: with the compiler that builds the
//! package, so nothing has to be installed or run before.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles `source` to `$OUT_DIR/{name}`, again whenever it changes.
pub(crate) fn compile(name: &str, source: &Path) {
    println!("cargo::rerun-if-changed={}", source.display());
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(["--crate-name", &name.replace('-', "_"), "--edition", "2024", "--crate-type", "bin"]);
    rustc.args(["--target", &variable("TARGET")]);
    for option in ["target-feature=+crt-static", "opt-level=s", "panic=abort", "strip=symbols"] {
        rustc.args(["-C", option]);
    }
    // Set by cargo when the target has a linker of its own.
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg("-C").arg(format!("linker={linker}"));
    }
    match rustc.arg("-o").arg(PathBuf::from(variable("OUT_DIR")).join(name)).arg(source).status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("compiling {} failed: {status}", source.display()),
        Err(error) => panic!("the compiler cannot be run: {error}"),
    }
}

pub(crate) fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
