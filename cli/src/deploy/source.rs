//! What is to be deployed: told from the one word a person typed, and the directory it names.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use tombolo_oci::ImageReference;

use crate::exit::WrongUse;

/// Longest name of a service: with its revisions' suffixes it must stay a DNS label.
const NAME_MAX: usize = 57;

/// Programs that are taken by their name, in this order.
const PROGRAMS: [&str; 2] = ["run", "main"];

/// What is to be deployed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A Cargo package.
    Package(PathBuf),
    /// A directory whose files are the image.
    Files(PathBuf),
    Image(ImageReference),
}

impl Source {
    pub(super) fn of(word: &str) -> anyhow::Result<Self> {
        let path = Path::new(word);
        match path.metadata() {
            Ok(found) if found.is_dir() => {
                // So that `.` has a name.
                let dir = path.canonicalize().with_context(|| format!("{word} cannot be opened"))?;
                Ok(if dir.join("Cargo.toml").is_file() { Self::Package(dir) } else { Self::Files(dir) })
            }
            Ok(_) => Err(WrongUse(format!("{word} is a file: name the directory it is in")).into()),
            Err(_) if word.starts_with(['.', '/']) => {
                Err(WrongUse(format!("there is no directory {word}")).into())
            }
            Err(_) => match word.parse() {
                Ok(reference) => Ok(Self::Image(reference)),
                Err(why) => {
                    Err(WrongUse(format!("{word} is no directory here, and as an image: {why}")).into())
                }
            },
        }
    }

    /// The name of the service: as asked for, or made from the source's own.
    pub(super) fn service_name(&self, asked: Option<&str>) -> Result<String, WrongUse> {
        if let Some(name) = asked {
            return if is_name(name) {
                Ok(name.to_owned())
            } else {
                Err(WrongUse(format!("--name {name:?} {NAME_RULE}")))
            };
        }
        let own = match self {
            Self::Package(dir) | Self::Files(dir) => {
                dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
            }
            Self::Image(reference) => {
                reference.repository.as_str().rsplit('/').next().unwrap_or_default().to_owned()
            }
        };
        let fit = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let name: String = own.chars().map(fit).take(NAME_MAX).collect();
        let name = name.trim_matches('-');
        if is_name(name) {
            Ok(name.to_owned())
        } else {
            Err(WrongUse(format!("{own:?} makes no name for a service: give one with --name")))
        }
    }
}

const NAME_RULE: &str = "is no name for a service: use up to 57 lower-case letters, digits and `-`, starting with a letter, not ending with `-`";

/// A DNS-1035 label.
fn is_name(name: &str) -> bool {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    name.len() <= NAME_MAX
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(word)
        && !name.ends_with('-')
}

/// The command that runs in the image made of `dir`: the one asked for, or the program found there. A first word that
/// names a file of the directory becomes its place in the image.
pub(super) fn command(dir: &Path, asked: &[String]) -> anyhow::Result<Vec<String>> {
    if let Some((program, arguments)) = asked.split_first() {
        let inside = program.trim_start_matches("./");
        let program = match program.starts_with('/') || !dir.join(inside).is_file() {
            true => program.clone(),
            false => format!("/{inside}"),
        };
        return Ok(std::iter::once(program).chain(arguments.iter().cloned()).collect());
    }
    let mut programs = Vec::new();
    let unreadable = || format!("{} cannot be read", dir.display());
    for entry in dir.read_dir().with_context(unreadable)? {
        let entry = entry.with_context(unreadable)?;
        let metadata = entry.path().metadata();
        let Ok(name) = entry.file_name().into_string() else { continue };
        if metadata.is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0) {
            programs.push(name);
        }
    }
    programs.sort();
    let by_name = PROGRAMS.iter().find(|name| programs.iter().any(|program| program == *name));
    match (by_name, programs.as_slice()) {
        (Some(name), _) => Ok(vec![format!("/{name}")]),
        (None, [only]) => Ok(vec![format!("/{only}")]),
        (None, []) => Err(anyhow!(
            "{} has no Cargo.toml and no executable file: put a program there, named `run` or `main`, or say what to run after `--`",
            dir.display()
        )),
        (None, many) => Err(anyhow!(
            "{} has several executable files ({}): name one `run` or `main`, or say what to run after `--`",
            dir.display(),
            many.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(dir: &Path, name: &str, mode: u32) {
        std::fs::write(dir.join(name), "#!").unwrap();
        std::fs::set_permissions(dir.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_word_is_a_directory_or_an_image() {
        let dir = tempfile::tempdir().unwrap();
        let (files, package) = (dir.path().join("files"), dir.path().join("package"));
        for made in [&files, &package] {
            std::fs::create_dir(made).unwrap();
        }
        put(&package, "Cargo.toml", 0o644);
        let of = |path: &Path| Source::of(path.to_str().unwrap());
        assert!(matches!(of(&files).unwrap(), Source::Files(_)));
        assert!(matches!(of(&package).unwrap(), Source::Package(_)));
        assert!(matches!(Source::of("hub.example:5000/a/hello:1").unwrap(), Source::Image(_)));
        for (word, says) in [
            (package.join("Cargo.toml").to_str().unwrap(), "is a file"),
            ("./nothing-here", "there is no directory"),
            ("nothing-here", "names no registry"),
        ] {
            let error = Source::of(word).unwrap_err();
            assert!(error.is::<WrongUse>() && error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn services_are_named_after_their_source() {
        for (dir, name) in [("/a/Hello_World", "hello-world"), ("/a/x", "x"), ("/a/my.fn-", "my-fn")] {
            assert_eq!(Source::Files(dir.into()).service_name(None).unwrap(), name);
        }
        for nameless in ["/", "/a/7up", "/a/__"] {
            assert!(Source::Files(nameless.into()).service_name(None).is_err(), "{nameless}");
        }
        let image = Source::Image(
            "hub.example/team/greeter@sha256:"
                .parse()
                .unwrap_or_else(|_| "hub.example/team/greeter".parse().unwrap()),
        );
        assert_eq!(image.service_name(None).unwrap(), "greeter");
        assert_eq!(image.service_name(Some("other")).unwrap(), "other");
        for bad in ["", "A", "a.b", "-a", "a-", "7a", &"a".repeat(NAME_MAX + 1)] {
            assert!(image.service_name(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn programs_are_found_by_convention() {
        let dir = tempfile::tempdir().unwrap();
        let found = || command(dir.path(), &[]).map_err(|error| error.to_string());
        put(dir.path(), "data", 0o644);
        assert!(found().unwrap_err().contains("no executable file"));
        put(dir.path(), "server", 0o755);
        assert_eq!(found().unwrap(), ["/server"]);
        put(dir.path(), "tool", 0o755);
        assert!(found().unwrap_err().contains("(server, tool)"));
        put(dir.path(), "main", 0o755);
        assert_eq!(found().unwrap(), ["/main"]);
        put(dir.path(), "run", 0o755);
        assert_eq!(found().unwrap(), ["/run"]);
    }

    #[test]
    fn an_asked_command_is_found_in_the_image() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "server", 0o755);
        let asked = |words: &[&str]| {
            command(dir.path(), &words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()).unwrap()
        };
        assert_eq!(asked(&["./server", "./x"]), ["/server", "./x"]);
        assert_eq!(asked(&["server"]), ["/server"]);
        assert_eq!(asked(&["/bin/sh"]), ["/bin/sh"]);
        assert_eq!(asked(&["sh", "-c"]), ["sh", "-c"]);
    }
}
