//! Whether `up` may do what it does: it makes namespaces, mounts and cgroups, which takes root.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::anyhow;

pub(super) fn check() -> anyhow::Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("tombolo"));
    Err(anyhow!(
        "`tombolo up` runs containers, which takes root: run  {}",
        with_sudo(program.into(), std::env::args_os().skip(1))
    ))
}

/// The same command line again, as root.
fn with_sudo(program: OsString, arguments: impl Iterator<Item = OsString>) -> String {
    let words = std::iter::once(program).chain(arguments).map(|word| quoted(&word.to_string_lossy()));
    std::iter::once("sudo".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_to_type_is_the_same_again() {
        let line = with_sudo(
            "/b/tombolo".into(),
            ["up", "--state-dir", "/a b/it's"].into_iter().map(OsString::from),
        );
        assert_eq!(line, r"sudo /b/tombolo up --state-dir '/a b/it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
