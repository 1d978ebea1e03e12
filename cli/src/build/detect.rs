//! Which language a project is written in, told from its files.

use std::path::Path;

use clap::ValueEnum;
use serde::Deserialize;

use super::command;

/// How a directory becomes an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Language {
    /// A Cargo package
    Rust,
    Python,
    /// Node.js
    Node,
    Go,
    /// A Dockerfile or Containerfile, by buildah, podman or docker
    Dockerfile,
    /// Web pages, served as they are
    Web,
    /// A directory with a program in it, as it is
    Files,
}

/// Names of files that say how an image is built.
pub(super) const DOCKERFILES: [&str; 2] = ["Dockerfile", "Containerfile"];

impl Language {
    /// What is in `dir`. `can_dockerfile`: there is a program for Dockerfiles, so that one counts.
    pub(super) fn of(dir: &Path, can_dockerfile: bool) -> Self {
        let has = |name: &str| dir.join(name).is_file();
        let any = |names: &[&str]| names.iter().any(|name| has(name));
        if any(&DOCKERFILES) && can_dockerfile {
            // It says exactly how the image is to be made.
            Self::Dockerfile
        } else if has("Cargo.toml") {
            Self::Rust
        } else if has("go.mod") {
            Self::Go
        } else if has("package.json") {
            Self::Node
        } else if any(&["requirements.txt", "pyproject.toml"]) {
            Self::Python
        } else if command::has_named_program(dir) {
            Self::Files
        } else if any(&["main.py", "app.py"]) {
            Self::Python
        } else if command::programs(dir).is_ok_and(|programs| !programs.is_empty()) {
            Self::Files
        } else if any(&["index.html", "public/index.html"]) {
            Self::Web
        } else if any(&DOCKERFILES) {
            Self::Dockerfile
        } else {
            Self::Files
        }
    }

    /// A file that says another language, so that a person who means that one is told how to have it.
    pub(super) fn other(self, dir: &Path) -> Option<(&'static str, Self)> {
        const MARKS: [(&str, Language); 7] = [
            (DOCKERFILES[0], Language::Dockerfile),
            (DOCKERFILES[1], Language::Dockerfile),
            ("Cargo.toml", Language::Rust),
            ("go.mod", Language::Go),
            ("package.json", Language::Node),
            ("requirements.txt", Language::Python),
            ("pyproject.toml", Language::Python),
        ];
        let there = |(name, language): &(&str, Self)| *language != self && dir.join(name).is_file();
        // A Dockerfile stands beside such a file as a rule.
        MARKS.into_iter().find(there).filter(|_| self != Self::Dockerfile)
    }

    /// As `--language` has it.
    pub(super) fn word(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// For a person.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rust => "Rust",
            Self::Python => "Python",
            Self::Node => "Node.js",
            Self::Go => "Go",
            Self::Dockerfile => "a Dockerfile",
            Self::Web => "web pages",
            Self::Files => "a directory of files",
        }
    }

    /// Whether its tools keep directories of their own beside the sources.
    pub(super) fn is_project(self) -> bool {
        self != Self::Files
    }

    /// The repository at the hub that is asked for a base image if none is named.
    pub(super) fn default_base(self) -> Option<&'static str> {
        match self {
            Self::Python | Self::Web => Some("base/python"),
            Self::Node => Some("base/node"),
            Self::Rust | Self::Go | Self::Files | Self::Dockerfile => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_second_language_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["Cargo.toml", "package.json"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(Language::Rust.other(dir.path()), Some(("package.json", Language::Node)));
        assert_eq!(Language::Node.other(dir.path()), Some(("Cargo.toml", Language::Rust)));
        std::fs::write(dir.path().join("Dockerfile"), "").unwrap();
        assert_eq!(Language::Node.other(dir.path()), Some(("Dockerfile", Language::Dockerfile)));
        assert_eq!(Language::Dockerfile.other(dir.path()), None);
        std::fs::remove_file(dir.path().join("Dockerfile")).unwrap();
        std::fs::remove_file(dir.path().join("package.json")).unwrap();
        assert_eq!(Language::Rust.other(dir.path()), None);
        assert_eq!(Language::Node.word(), "node");
    }

    #[test]
    fn languages_are_told_from_files() {
        for (files, expected) in [
            (&["Cargo.toml", "main.py"][..], Language::Rust),
            (&["go.mod", "main.go"], Language::Go),
            (&["package.json", "index.html"], Language::Node),
            (&["requirements.txt", "+run"], Language::Python),
            (&["main.py"], Language::Python),
            (&["+main.py"], Language::Python),
            (&["app.py", "index.html"], Language::Python),
            (&["main.py", "+run"], Language::Files),
            (&["+server", "index.html"], Language::Files),
            (&["index.html"], Language::Web),
            (&["Dockerfile", "main.py"], Language::Dockerfile),
            (&["data"], Language::Files),
        ] {
            let dir = tempfile::tempdir().unwrap();
            for file in files {
                let (name, mode) = file.strip_prefix('+').map_or((*file, 0o644), |name| (name, 0o755));
                let path = dir.path().join(name);
                std::fs::write(&path, "").unwrap();
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            }
            assert_eq!(Language::of(dir.path(), true), expected, "{files:?}");
            if expected == Language::Dockerfile {
                assert_eq!(Language::of(dir.path(), false), Language::Python, "without a program for it");
            }
        }
    }
}
