//! Building a Cargo package into one static program. Must not know what becomes of the program.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, anyhow};
use serde::Deserialize;

use super::tools;

/// Everything the program needs is in it, so that its image needs no other file.
const STATIC: &str = "-Ctarget-feature=+crt-static";

const INSTALL: &str =
    "a Cargo package is built by cargo and rustc (without them, deploy a directory with a program in it)";

/// Builds the package in `dir` and finds its program: the only one, or the one that is named. Blocks.
pub(super) fn build(dir: &Path, named: Option<&str>) -> anyhow::Result<PathBuf> {
    let target = host(dir)?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(dir);
    // With a target, the flags reach the program alone; build scripts and macros are built for here, as ever.
    cargo.args(["build", "--release", "--bins", "--message-format=json-render-diagnostics"]);
    cargo.args(["--target", &target]);
    match flags(&target, |name| std::env::var_os(name)) {
        Flags::Config(setting) => cargo.arg("--config").arg(setting),
        Flags::Variable(name, value) => cargo.env(name, value),
    };
    let messages = tools::answer(&mut cargo, &format!("building {}", dir.display())).context(INSTALL)?;
    choose(&programs(&messages), named).with_context(|| format!("building {}", dir.display()))
}

/// The target the directory's toolchain builds for by itself.
fn host(dir: &Path) -> anyhow::Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let asked =
        tools::answer(Command::new(rustc).arg("-vV").current_dir(dir), "asking the compiler for its target");
    let output = asked.context(INSTALL)?;
    let text = String::from_utf8_lossy(&output);
    let line = text.lines().find_map(|line| line.strip_prefix("host: "));
    line.map(str::to_owned).context("rustc does not say which target it builds for")
}

/// How the compiler is told to link statically, beside the flags that are set already.
#[derive(Debug, PartialEq, Eq)]
enum Flags {
    Config(String),
    Variable(&'static str, OsString),
}

/// Cargo takes flags from one place only, variables before configuration; so ours go where it looks.
fn flags(target: &str, variable: impl Fn(&str) -> Option<OsString>) -> Flags {
    for (name, separator) in [("CARGO_ENCODED_RUSTFLAGS", "\u{1f}"), ("RUSTFLAGS", " ")] {
        if let Some(mut value) = variable(name).filter(|value| !value.is_empty()) {
            value.push(separator);
            value.push(STATIC);
            return Flags::Variable(name, value);
        }
    }
    Flags::Config(format!("target.{target}.rustflags=[\"{STATIC}\"]"))
}

/// The programs cargo says it has built.
fn programs(messages: &[u8]) -> Vec<PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
    }
    let lines = messages.split(|byte| *byte == b'\n');
    lines.filter_map(|line| serde_json::from_slice::<Message>(line).ok()?.executable).collect()
}

fn choose(programs: &[PathBuf], named: Option<&str>) -> anyhow::Result<PathBuf> {
    let name = |program: &PathBuf| program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let names = || programs.iter().map(name).collect::<Vec<_>>().join(", ");
    match (named, programs) {
        (_, []) => Err(anyhow!("the package has no program: a function needs a src/main.rs")),
        (Some(named), all) => {
            let found = all.iter().find(|program| name(program) == named);
            found
                .cloned()
                .ok_or_else(|| anyhow!("no program is named {named}: after `--` comes one of {}", names()))
        }
        (None, [only]) => Ok(only.clone()),
        (None, _) => Err(anyhow!("there are several programs ({}): name one after `--`", names())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_the_environment_are_kept() {
        let with = |set: &'static str| move |name: &str| (name == set).then(|| OsString::from("-Cx"));
        assert_eq!(
            flags("t", |_| None),
            Flags::Config("target.t.rustflags=[\"-Ctarget-feature=+crt-static\"]".into())
        );
        assert_eq!(
            flags("t", with("RUSTFLAGS")),
            Flags::Variable("RUSTFLAGS", "-Cx -Ctarget-feature=+crt-static".into())
        );
        assert_eq!(
            flags("t", with("CARGO_ENCODED_RUSTFLAGS")),
            Flags::Variable("CARGO_ENCODED_RUSTFLAGS", "-Cx\u{1f}-Ctarget-feature=+crt-static".into())
        );
    }

    #[test]
    fn the_program_is_the_only_one_or_the_named_one() {
        let messages = br#"{"reason":"compiler-artifact","executable":null}
{"reason":"compiler-artifact","executable":"/t/release/a"}
not json
{"reason":"compiler-artifact","executable":"/t/release/b"}
{"reason":"build-finished","success":true}"#;
        let both = programs(messages);
        assert_eq!(both, [PathBuf::from("/t/release/a"), "/t/release/b".into()]);
        assert_eq!(choose(&both[..1], None).unwrap(), both[0]);
        assert_eq!(choose(&both, Some("b")).unwrap(), both[1]);
        for (all, named, says) in
            [(&both[..], None, "several"), (&both[..], Some("c"), "named c"), (&[], None, "no program")]
        {
            let error = choose(all, named).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
