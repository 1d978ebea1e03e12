//! What is to be deployed: told from the one word a person typed, and the directory it names.

use std::path::Path;

use tombolo_oci::ImageReference;

use crate::build::Tree;
use crate::exit::WrongUse;

/// Longest name of a service: with its revisions' suffixes it must stay a DNS label.
const NAME_MAX: usize = 57;

/// What is to be deployed.
#[derive(Debug)]
pub(super) enum Source {
    /// A directory with a project.
    Project(Tree),
    Image(ImageReference),
}

impl Source {
    pub(super) fn of(word: &str) -> anyhow::Result<Self> {
        let path = Path::new(word);
        if path.exists() || word.starts_with(['.', '/']) {
            return Tree::of_directory(path).map(Self::Project);
        }
        match word.parse() {
            Ok(reference) => Ok(Self::Image(reference)),
            Err(why) => Err(WrongUse(format!("{word} is no directory here, and as an image: {why}")).into()),
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
            Self::Project(tree) => &tree.name,
            Self::Image(reference) => reference.repository.as_str().rsplit('/').next().unwrap_or_default(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_a_directory_or_an_image() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(Source::of(dir.path().to_str().unwrap()).unwrap(), Source::Project(_)));
        assert!(matches!(Source::of("hub.example:5000/a/hello:1").unwrap(), Source::Image(_)));
        for (word, says) in [
            (file.to_str().unwrap(), "is a file"),
            ("./nothing-here", "there is no directory"),
            ("nothing-here", "names no registry"),
        ] {
            let error = Source::of(word).unwrap_err();
            assert!(error.is::<WrongUse>() && error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn services_are_named_after_their_source() {
        let dir = tempfile::tempdir().unwrap();
        for (own, expected) in [
            ("Hello_World", Some("hello-world")),
            ("x", Some("x")),
            ("my.fn-", Some("my-fn")),
            ("7up", None),
            ("__", None),
        ] {
            let path = dir.path().join(own);
            std::fs::create_dir(&path).unwrap();
            let source = Source::of(path.to_str().unwrap()).unwrap();
            assert_eq!(source.service_name(None).ok().as_deref(), expected, "{own}");
        }
        let image = Source::Image("hub.example/team/greeter".parse().unwrap());
        assert_eq!(image.service_name(None).unwrap(), "greeter");
        assert_eq!(image.service_name(Some("other")).unwrap(), "other");
        for bad in ["", "A", "a.b", "-a", "a-", "7a", &"a".repeat(NAME_MAX + 1)] {
            assert!(image.service_name(Some(bad)).is_err(), "{bad}");
        }
    }
}
