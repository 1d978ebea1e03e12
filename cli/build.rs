//! Compiles `examples/hello` into a static program for `tombolo up --demo`, which embeds it and so needs no compiler.

use std::path::PathBuf;

mod static_program;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=static_program.rs");
    let here = PathBuf::from(static_program::variable("CARGO_MANIFEST_DIR"));
    static_program::compile("hello", &here.join("../examples/hello/src/main.rs"));
}
