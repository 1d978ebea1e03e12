//! Compiles the two programs that tests deploy, as static programs, so that the test program carries them inside.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    println!("cargo::rerun-if-changed=build.rs");
    for (name, source) in [("hello", "../../examples/hello/src/main.rs"), ("subject", "programs/subject.rs")]
    {
        let source = here.join(source);
        println!("cargo::rerun-if-changed={}", source.display());
        let mut rustc = Command::new(variable("RUSTC"));
        rustc.args([
            "--crate-name",
            name,
            "--edition",
            "2024",
            "--crate-type",
            "bin",
            "--target",
            &variable("TARGET"),
        ]);
        rustc.args([
            "-C",
            "target-feature=+crt-static",
            "-C",
            "opt-level=s",
            "-C",
            "panic=abort",
            "-C",
            "strip=symbols",
        ]);
        let status = rustc.arg("-o").arg(PathBuf::from(variable("OUT_DIR")).join(name)).arg(&source).status();
        assert!(status.is_ok_and(|status| status.success()), "compiling {} failed", source.display());
    }
}
