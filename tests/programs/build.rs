//! Compiles the programs, so that whoever runs a test needs no compiler.

use std::path::PathBuf;

#[path = "../../cli/static_program.rs"]
mod static_program;

use static_program::{compile, variable};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../../cli/static_program.rs");
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    compile("hello", &here.join("../../examples/hello/src/main.rs"));
    compile("subject", &here.join("subject.rs"));
    compile("guest", &here.join("guest.rs"));
}
