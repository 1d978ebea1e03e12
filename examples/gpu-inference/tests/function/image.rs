//! The image: that its files are all the program needs, the driver's library included, and not too many.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::ground::{fake, program};

/// What README.md promises, bytes.
const IMAGE_BYTES_MAX: u64 = 40_000_000;

/// Bytes of all files below, links not followed.
fn bytes_below(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry"));
    let bytes = entries.map(|entry| match entry.metadata().expect("a file") {
        metadata if metadata.is_dir() => bytes_below(&entry.path()),
        metadata => metadata.len(),
    });
    bytes.sum()
}

#[test]
fn the_image_is_small_and_holds_what_the_program_and_a_driver_need() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path().join("image");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("image");
    let made = Command::new(script).arg(&root).arg(program()).status().expect("the script runs");
    assert!(made.success());
    let bytes = bytes_below(&root);
    assert!(bytes < IMAGE_BYTES_MAX, "{bytes}");
    // What a driver's library and its compiler are linked with, beside the program's own.
    for library in ["libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libgcc_s.so.1"]
    {
        assert!(root.join("usr/lib").join(library).is_file(), "{library}");
    }
    // Wherever a node has its driver's libraries, they land where the image's linker looks.
    for place in
        ["usr/lib64", "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "lib/x86_64-linux-gnu"]
    {
        fs::copy(fake(), root.join(place).join("libcuda.so.1")).expect("it is a directory");
        let mut inside = Command::new("chroot");
        inside
            .arg(&root)
            .args(["/gpu-inference", "--self-check"])
            .env_remove("LD_LIBRARY_PATH")
            .env("DEVICE", "cuda");
        let output = inside.output().expect("chroot is there");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        if said.contains("Operation not permitted") {
            eprintln!("SKIPPED: running in the image needs root");
            return;
        }
        assert!(output.status.success() && said.contains("cuda:Fake GPU: 349 of 360"), "{place}: {said}");
        fs::remove_file(root.join("usr/lib/libcuda.so.1")).expect("that is where it landed");
    }
}
