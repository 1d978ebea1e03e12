//! Which shared libraries a program needs on this machine, as its own dynamic loader finds them.
//!
//! The loader is asked, by the path that stands in the program (`PT_INTERP`): nobody else knows its search order.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// Longest path of a loader, bytes.
const PATH_MAX: u64 = 4096;

/// Program headers of one file that are looked at.
const HEADERS_MAX: u64 = 256;

/// The libraries of one file: where each is, by the name under which it is needed. The loader itself is one.
pub(super) type Libraries = BTreeMap<String, PathBuf>;

/// The dynamic loader that a program names; `None` if it needs none, or is no program at all.
pub(super) fn of_program(program: &Path) -> anyhow::Result<Option<PathBuf>> {
    let cannot = || format!("{} cannot be read", program.display());
    let mut file = File::open(program).with_context(cannot)?;
    let mut head = [0; 64];
    if file.read_exact(&mut head).is_err() || !is_elf(&head) {
        return Ok(None);
    }
    let wide = head[4] == 2;
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    let (start, size, count) = match wide {
        true => (number(&head[32..40]), number(&head[54..56]), number(&head[56..58])),
        false => (number(&head[28..32]), number(&head[42..44]), number(&head[44..46])),
    };
    for index in 0..count.min(HEADERS_MAX) {
        let mut header = [0; 56];
        let length = if wide { 56 } else { 32 };
        file.seek(SeekFrom::Start(start + index * size)).with_context(cannot)?;
        file.read_exact(&mut header[..length]).with_context(cannot)?;
        if number(&header[..4]) != 3 {
            continue;
        }
        let (offset, length) = match wide {
            true => (number(&header[8..16]), number(&header[32..40])),
            false => (number(&header[4..8]), number(&header[16..20])),
        };
        file.seek(SeekFrom::Start(offset)).with_context(cannot)?;
        let mut path = Vec::new();
        file.take(length.min(PATH_MAX)).read_to_end(&mut path).with_context(cannot)?;
        let path = String::from_utf8(path).with_context(cannot)?;
        return Ok(Some(PathBuf::from(path.trim_end_matches('\0'))));
    }
    Ok(None)
}

/// Whether this is a program or library of this machine's byte order.
fn is_elf(head: &[u8]) -> bool {
    head.starts_with(b"\x7fELF") && head[5] == if cfg!(target_endian = "little") { 1 } else { 2 }
}

/// What `loader` loads for `file`.
pub(super) fn libraries(loader: &Path, file: &Path) -> anyhow::Result<Libraries> {
    let mut command = Command::new(loader);
    command.arg("--list").arg(file).stdin(Stdio::null()).stderr(Stdio::null());
    command.env_remove("LD_PRELOAD").env_remove("LD_AUDIT");
    let output = command.output().with_context(|| format!("{} cannot be run", loader.display()))?;
    parse(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("libraries of {}", file.display()))
}

fn parse(text: &str) -> anyhow::Result<Libraries> {
    let mut found = Libraries::new();
    for line in text.lines().map(str::trim) {
        // `name => path (address)`, or `path (address)` of the loader; what the kernel gives has a name alone.
        let (name, rest) = match line.split_once(" => ") {
            Some((name, "not found")) => bail!("{name} is needed and not there: install it"),
            Some((name, rest)) => (name, rest),
            None => (line, line),
        };
        let path = rest.rsplit_once(" (").map_or(rest, |(path, _)| path);
        if path.starts_with('/') {
            let name = name.rsplit_once(" (").map_or(name, |(name, _)| name);
            let name = name.rsplit('/').next().unwrap_or(name);
            found.insert(name.to_owned(), path.into());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaders_list_is_read() {
        let text = "\tlinux-vdso.so.1 (0x00007f520663b000)\n\tlibz.so.1 => /lib/x/libz.so.1 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let found = parse(text).unwrap();
        let expected =
            [("ld-linux-x86-64.so.2", "/lib64/ld-linux-x86-64.so.2"), ("libz.so.1", "/lib/x/libz.so.1")];
        assert_eq!(found, expected.map(|(name, path)| (name.to_owned(), PathBuf::from(path))).into());
        assert!(parse("\tstatically linked\n").unwrap().is_empty());
        let error = parse("\tlibx.so.3 => not found\n").unwrap_err();
        assert!(error.to_string().contains("libx.so.3"), "{error}");
    }

    #[test]
    fn this_test_needs_a_loader_and_a_text_none() {
        let own = std::env::current_exe().unwrap();
        let loader = of_program(&own).unwrap().expect("tests are linked dynamically");
        assert!(libraries(&loader, &own).unwrap().keys().any(|name| name.starts_with("libc.")));
        let dir = tempfile::tempdir().unwrap();
        for content in [&b"#!/bin/sh\n"[..], &[0; 100], b"\x7fELF"] {
            std::fs::write(dir.path().join("a"), content).unwrap();
            assert_eq!(of_program(&dir.path().join("a")).unwrap(), None);
        }
    }
}
