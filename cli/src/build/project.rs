//! What a project says itself of how it is built: `[build]` of its `tombolo.toml`.

use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;

use super::command;
use super::detect::Language;

/// Largest project file, bytes: it holds a few lines.
const BYTES_MAX: u64 = 64 * 1024;

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    build: Build,
}

/// `[build]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Build {
    pub(super) language: Option<Language>,
    /// An image's name, `host` or `scratch`.
    pub(super) base: Option<String>,
    command: Option<Command>,
    /// If there are any, only files that fit one of these are in the image.
    pub(super) include: Vec<String>,
    pub(super) exclude: Vec<String>,
    /// Version of Python in the base image, such as `3.12`, where it does not say so itself.
    pub(super) python: Option<String>,
}

/// A line, or its words.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Command {
    Line(String),
    Words(Vec<String>),
}

impl Build {
    pub(super) fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("tombolo.toml");
        let cannot = || format!("{} cannot be read", path.display());
        match path.metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error).with_context(cannot),
            Ok(found) if found.len() > BYTES_MAX => {
                anyhow::bail!("{} has more than {BYTES_MAX} bytes: is it a project's file?", path.display())
            }
            Ok(_) => {}
        }
        let text = std::fs::read_to_string(&path).with_context(cannot)?;
        let file: File =
            toml::from_str(&text).with_context(|| format!("{} is not understood", path.display()))?;
        Ok(file.build)
    }

    pub(super) fn command(&self) -> anyhow::Result<Option<Vec<String>>> {
        match &self.command {
            None => Ok(None),
            Some(Command::Words(words)) => Ok(Some(words.clone()).filter(|words| !words.is_empty())),
            Some(Command::Line(line)) => command::of_line(line).context("command in tombolo.toml").map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Build> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tombolo.toml"), text).unwrap();
        Build::read(dir.path())
    }

    #[test]
    fn a_project_says_how_it_is_built() {
        assert_eq!(Build::read(tempfile::tempdir().unwrap().path()).unwrap(), Build::default());
        let build =
            read("[build]\nlanguage = \"python\"\nbase = \"host\"\ncommand = \"python3 x.py -v\"").unwrap();
        assert_eq!((build.language, build.base.as_deref()), (Some(Language::Python), Some("host")));
        assert_eq!(build.command().unwrap().unwrap(), ["python3", "x.py", "-v"]);
        let words = read("[build]\ncommand = [\"a b\", \"c\"]").unwrap().command().unwrap();
        assert_eq!(words.unwrap(), ["a b", "c"]);
    }

    #[test]
    fn what_is_not_known_is_refused_with_its_place() {
        for (text, says) in [
            ("[build]\nlangauge = \"python\"", "langauge"),
            ("[build]\nlanguage = \"cobol\"", "cobol"),
            ("[biuld]", "biuld"),
        ] {
            let error = format!("{:#}", read(text).unwrap_err());
            assert!(error.contains(says) && error.contains("tombolo.toml"), "{error}");
        }
    }
}
