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
    match flags(&target, &ours(dir), |name| std::env::var_os(name)) {
        Flags::Config(setting) => cargo.arg("--config").arg(setting),
        Flags::Variable(value) => cargo.env(ENCODED, value),
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

/// The flags a build adds: nothing of where the sources are is in the program.
fn ours(dir: &Path) -> Vec<String> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = variable("CARGO_HOME").or_else(|| variable("HOME").map(|home| home.join(".cargo")));
    let from = [(Some(dir.to_owned()), "/src"), (home, "/cargo")];
    // Of those that fit, the compiler takes the last.
    let remaps = from
        .into_iter()
        .filter_map(|(from, to)| Some(format!("--remap-path-prefix={}={to}", from?.to_str()?)));
    std::iter::once(STATIC.to_owned()).chain(remaps).collect()
}

/// How the compiler is told, beside the flags that are set already.
#[derive(Debug, PartialEq, Eq)]
enum Flags {
    Config(String),
    /// Of [`ENCODED`].
    Variable(OsString),
}

/// Flags that may hold spaces, the first place where cargo looks.
const ENCODED: &str = "CARGO_ENCODED_RUSTFLAGS";

/// What parts them.
const SEPARATOR: &str = "\u{1f}";

/// Cargo takes flags from one place only, variables before configuration; so ours go where it looks.
fn flags(target: &str, ours: &[String], variable: impl Fn(&str) -> Option<OsString>) -> Flags {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let plain = || {
        let value = set("RUSTFLAGS")?.into_string().ok()?;
        Some(OsString::from(value.split_whitespace().collect::<Vec<_>>().join(SEPARATOR)))
    };
    match set(ENCODED).or_else(plain) {
        Some(mut value) => {
            value.push(SEPARATOR);
            value.push(ours.join(SEPARATOR));
            Flags::Variable(value)
        }
        // JSON's strings are TOML's.
        None => Flags::Config(format!("target.{target}.rustflags={}", serde_json::json!(ours))),
    }
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
        let with = |set: &'static str| move |name: &str| (name == set).then(|| OsString::from("-Cx  -Cy"));
        let ours = ["-Ca".to_owned(), "-Cb c\"".to_owned()];
        assert_eq!(
            flags("t", &ours, |_| None),
            Flags::Config(r#"target.t.rustflags=["-Ca","-Cb c\""]"#.into())
        );
        assert_eq!(
            flags("t", &ours, with("RUSTFLAGS")),
            Flags::Variable("-Cx\u{1f}-Cy\u{1f}-Ca\u{1f}-Cb c\"".into())
        );
        assert_eq!(
            flags("t", &ours, with(ENCODED)),
            Flags::Variable("-Cx  -Cy\u{1f}-Ca\u{1f}-Cb c\"".into())
        );
    }

    #[test]
    fn where_the_sources_are_is_not_told() {
        let ours = ours(Path::new("/home/me/my project"));
        assert_eq!(ours[..2], [STATIC, "--remap-path-prefix=/home/me/my project=/src"]);
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
