//! Go: a module built into one static program.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use super::tools;

/// Builds the module's program: its own directory's, or the only one below `cmd`, or the one of this name. Blocks.
pub(super) fn build(dir: &Path, named: Option<&str>, into: &Path) -> anyhow::Result<PathBuf> {
    let go = tools::find("go").context(
        "a module of Go needs Go's toolchain, and there is none: install it (Debian: `apt install golang-go`), or deploy a directory with the built program in it",
    )?;
    let package = package(dir, named)?;
    let own = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = package.rsplit('/').next().filter(|name| *name != ".").unwrap_or(&own);
    let program = into.join(name);
    let mut build = Command::new(go);
    // Nothing of this directory's path, of the repository's state or of the moment is in the program.
    build.args(["build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid="]);
    build.arg("-o").arg(&program).arg(&package).current_dir(dir).env("CGO_ENABLED", "0");
    tools::run(&mut build, &format!("building {}", dir.display()))?;
    match tools::is_program(&program) {
        true => Ok(program),
        false => bail!("{package} is no program: a function needs `package main`"),
    }
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
