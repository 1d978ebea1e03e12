//! `new`: a project that can be deployed as it is, with a test that its language's own tool runs.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};

use crate::args;
use crate::args::Template;
use crate::exit::WrongUse;
use crate::output;

/// Stands in templates for the project's name.
const NAME: &str = "{{name}}";

/// The longest name: it becomes a service's.
const NAME_MAX: usize = 57;

/// A file of a template: its path and text.
type File = (&'static str, &'static str);

const RUST: [File; 3] = [
    ("Cargo.toml", include_str!("../templates/rust/Cargo.toml.in")),
    ("src/main.rs", include_str!("../templates/rust/main.rs.in")),
    (".gitignore", "/target\n"),
];

const PYTHON: [File; 4] = [
    ("main.py", include_str!("../templates/python/main.py")),
    ("test_main.py", include_str!("../templates/python/test_main.py")),
    ("requirements.txt", "# One package a line, such as: flask==3.0.3\n"),
    (".tomboloignore", "test_*.py\n"),
];

const NODE: [File; 4] = [
    ("package.json", include_str!("../templates/node/package.json")),
    ("server.js", include_str!("../templates/node/server.js")),
    ("server.test.js", include_str!("../templates/node/server.test.js")),
    (".tomboloignore", "*.test.js\n"),
];

const GO: [File; 3] = [
    ("go.mod", "module {{name}}\n\ngo 1.21\n"),
    ("main.go", include_str!("../templates/go/main.go")),
    ("main_test.go", include_str!("../templates/go/main_test.go")),
];

const STATIC: [File; 4] = [
    ("public/index.html", include_str!("../templates/static/index.html")),
    ("public/style.css", include_str!("../templates/static/style.css")),
    ("test.sh", include_str!("../templates/static/test.sh")),
    ("tombolo.toml", "[build]\nlanguage = \"web\"\nexclude = [\"test.sh\"]\n"),
];

impl Template {
    fn files(self) -> &'static [File] {
        match self {
            Self::Rust => &RUST,
            Self::Python => &PYTHON,
            Self::Node => &NODE,
            Self::Go => &GO,
            Self::Static => &STATIC,
        }
    }

    /// The command that runs its test.
    fn test(self) -> &'static str {
        match self {
            Self::Rust => "cargo test",
            Self::Python => "python3 -m unittest",
            Self::Node => "node --test",
            Self::Go => "go test",
            Self::Static => "sh test.sh",
        }
    }
}

pub(crate) fn run(args: &args::New) -> anyhow::Result<()> {
    let dir = &args.directory;
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let fits = name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(letter);
    if !fits || name.len() > NAME_MAX || name.ends_with('-') {
        return Err(WrongUse(format!(
            "{name:?} is no name for a project: use up to {NAME_MAX} lower-case letters, digits and `-`, starting with a letter"
        ))
        .into());
    }
    write(dir, &name, args.lang.files())?;
    let (shown, test) = (dir.display(), args.lang.test());
    output::print(&format!("Made {shown}\nTest:    cd {shown} && {test}\nDeploy:  tombolo deploy {shown}\n"))
}

/// Writes the files into a new directory. Nothing that is there is touched.
fn write(dir: &Path, name: &str, files: &[File]) -> anyhow::Result<()> {
    let cannot = || format!("{} cannot be made", dir.display());
    if dir.exists() && (!dir.is_dir() || dir.read_dir().with_context(cannot)?.next().is_some()) {
        bail!("{} is there already and not empty: choose another name, or remove it", dir.display());
    }
    for (path, text) in files {
        let path = dir.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(cannot)?;
        }
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o644).open(&path).with_context(cannot)?;
        file.write_all(text.replace(NAME, name).as_bytes()).with_context(cannot)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_has_its_name_and_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        for lang in [Template::Rust, Template::Python, Template::Node, Template::Go, Template::Static] {
            let directory = dir.path().join(format!("{lang:?}").to_lowercase());
            let args = args::New { lang, directory: directory.clone() };
            run(&args).unwrap();
            for (path, _) in lang.files() {
                let text = fs::read_to_string(directory.join(path)).unwrap();
                assert!(!text.contains(NAME), "{path}");
            }
            assert!(run(&args).unwrap_err().to_string().contains("there already"));
        }
        for bad in ["", "A", "7up", "a_b", "a-", "..", "a.b"] {
            let args = args::New { lang: Template::Go, directory: dir.path().join(bad) };
            assert!(run(&args).is_err(), "{bad}");
        }
    }
}
