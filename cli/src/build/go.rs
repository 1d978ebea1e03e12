//! Go: a module built into one static program.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use tombolo_oci::Platform;

use super::tools;

/// Builds the module's program: its own directory's, or the only one below `cmd`, or the one of this name. Blocks.
pub(super) fn build(dir: &Path, named: Option<&str>, into: &Path) -> anyhow::Result<PathBuf> {
    let go = tools::find("go").context(
        "a module of Go needs Go's toolchain, and there is none: install it (Debian: `apt install golang-go`), or deploy a directory with the built program in it",
    )?;
    let package = package(dir, named)?;
    let own = module(&std::fs::read_to_string(dir.join("go.mod")).unwrap_or_default());
    let name = package.rsplit('/').next().filter(|name| *name != ".").unwrap_or(&own);
    let program = into.join(name);
    let mut build = Command::new(go);
    // Nothing of this directory's path, of the repository's state or of the moment is in the program.
    build.args(["build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid="]);
    build.arg("-o").arg(&program).arg(&package).current_dir(dir).env("CGO_ENABLED", "0");
    // For the platform that the image says it is for.
    build.env("GOOS", "linux").env("GOARCH", Platform::host().architecture);
    tools::run(&mut build, &format!("building {}", dir.display()))?;
    match tools::is_program(&program) {
        true => Ok(program),
        false => bail!("{package} is no program: a function needs `package main`"),
    }
}

/// A module's name as its program's, which is the same wherever the directory stands: the last part of its path that is no
/// version.
fn module(text: &str) -> String {
    let path = text.lines().find_map(|line| line.trim().strip_prefix("module ")).unwrap_or_default();
    let path = path.split("//").next().unwrap_or_default().trim().trim_matches(['"', '`']);
    let is_version =
        |part: &&str| part.strip_prefix('v').is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()));
    let name = path.rsplit('/').find(|part| !part.is_empty() && !is_version(part));
    name.unwrap_or("main").to_owned()
}

fn package(dir: &Path, named: Option<&str>) -> anyhow::Result<String> {
    let mut programs: Vec<String> = dir
        .join("cmd")
        .read_dir()
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    programs.sort();
    if let Some(named) = named {
        return match programs.iter().any(|name| name == named) {
            true => Ok(format!("./cmd/{named}")),
            false => bail!("there is no cmd/{named}: after `--` comes the name of a directory below cmd"),
        };
    }
    let has_source = dir.read_dir().into_iter().flatten().flatten().any(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.ends_with(".go") && !name.ends_with("_test.go")
    });
    match programs.as_slice() {
        [only] if !has_source => Ok(format!("./cmd/{only}")),
        [_, _, ..] if !has_source => {
            bail!("there are several programs ({}): name one after `--`", programs.join(", "))
        }
        _ => Ok(".".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_program_is_named_after_its_module() {
        for (text, expected) in [
            ("module hello\n\ngo 1.21\n", "hello"),
            ("// A module.\nmodule \"git.example/a/server/v2\" // here\n", "server"),
            ("module v1\n", "main"),
            ("", "main"),
        ] {
            assert_eq!(module(text), expected, "{text}");
        }
    }

    #[test]
    fn the_program_is_found_where_modules_have_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("cmd/server")).unwrap();
        assert_eq!(package(dir.path(), None).unwrap(), "./cmd/server");
        fs::create_dir(dir.path().join("cmd/tool")).unwrap();
        assert!(package(dir.path(), None).unwrap_err().to_string().contains("server, tool"));
        assert_eq!(package(dir.path(), Some("tool")).unwrap(), "./cmd/tool");
        assert!(package(dir.path(), Some("other")).is_err());
        fs::write(dir.path().join("a_test.go"), "").unwrap();
        assert!(package(dir.path(), None).is_err());
        fs::write(dir.path().join("main.go"), "").unwrap();
        assert_eq!(package(dir.path(), None).unwrap(), ".");
    }
}
