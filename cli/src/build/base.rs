//! The image below: the one that is named, the hub's own for the language, or this machine's interpreter.

use std::fmt;

use anyhow::{Context as _, bail};
use tombolo_oci::{BaseImage, HUB_HOST, ImageReference, Repository, TransferError};

use super::detect::Language;
use super::registry::Registry;
use crate::exit::WrongUse;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Scratch,
    Host,
    Image(ImageReference),
    /// This repository of the hub's if it is there, else the host.
    Usual(&'static str),
}

/// What is taken.
#[derive(Clone, Debug)]
pub(super) enum Found {
    Scratch,
    Host,
    Image(Box<Named>),
}

/// An image and where it is.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) image: BaseImage,
    pub(super) place: Place,
}

/// A repository, of the hub's or, through the hub, of another registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) repository: Repository,
    pub(super) mirrored: Option<String>,
}

impl Wish {
    pub(super) fn of(asked: Option<&str>, language: Language) -> Result<Self, WrongUse> {
        match asked {
            Some("scratch") => Ok(Self::Scratch),
            Some("host") => Ok(Self::Host),
            Some(name) => reference(name).map(Self::Image),
            None => Ok(language.default_base().map_or(Self::Scratch, Self::Usual)),
        }
    }

    /// Looks it up. Without a registry, nothing is there.
    pub(super) async fn find(&self, registry: Option<&Registry>) -> anyhow::Result<Found> {
        match self {
            Self::Scratch => Ok(Found::Scratch),
            Self::Host => Ok(Found::Host),
            Self::Image(reference) => {
                let Some(registry) = registry else {
                    bail!(
                        "--base {reference} is looked up at the hub, which --hub must name as http://HOST:PORT"
                    )
                };
                let image = look_up(registry, reference).await;
                image
                    .map(|image| Found::Image(Box::new(image)))
                    .with_context(|| format!("the base image {reference} cannot be used"))
            }
            Self::Usual(repository) => {
                let Some(registry) = registry else { return Ok(Found::Host) };
                let reference = reference(repository)?;
                match look_up(registry, &reference).await {
                    Ok(image) => Ok(Found::Image(Box::new(image))),
                    Err(
                        TransferError::NotFound { .. }
                        | TransferError::Unreachable { .. }
                        | TransferError::Untrusted { .. }
                        | TransferError::Timeout { .. },
                    ) => Ok(Found::Host),
                    Err(error) => {
                        Err(error).with_context(|| format!("the base image {reference} cannot be used"))
                    }
                }
            }
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scratch => f.write_str("scratch (nothing)"),
            Self::Host => f.write_str("host (this machine's own files)"),
            Self::Image(named) => write!(f, "{} ({})", named.name, named.image.digest.short()),
        }
    }
}

async fn look_up(registry: &Registry, reference: &ImageReference) -> Result<Named, TransferError> {
    let mirrored = (reference.host != HUB_HOST).then(|| reference.host.clone());
    let place = Place { repository: reference.repository.clone(), mirrored };
    let image = registry.base(&place, &reference.target).await?;
    Ok(Named { name: reference.to_string(), image, place })
}

/// An image's name; without a host, one of the hub's.
fn reference(name: &str) -> Result<ImageReference, WrongUse> {
    let wrong = |why: String| WrongUse(format!("--base {name}: {why}; or use `host` or `scratch`"));
    let first = name.split('/').next().unwrap_or_default();
    if name.contains('/') && is_host(first) {
        return name
            .parse()
            .map_err(|error: tombolo_oci::reference::ReferenceError| wrong(error.to_string()));
    }
    let text = format!("{HUB_HOST}/{name}");
    let parsed: Result<ImageReference, _> = text.parse();
    parsed.map_err(|error| wrong(error.to_string()))
}

/// Whether the first part of an image's name is a registry, as container tools tell it.
pub(super) fn is_host(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost"
}

/// Version of Python that an image says it has, as official ones do.
pub(super) fn python(image: &BaseImage) -> Option<String> {
    image.run.env.iter().find_map(|line| line.strip_prefix("PYTHON_VERSION=")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_named_or_usual() {
        let of = |asked: Option<&str>, language| Wish::of(asked, language).unwrap();
        assert_eq!(of(None, Language::Rust), Wish::Scratch);
        assert_eq!(of(None, Language::Python), Wish::Usual("base/python"));
        assert_eq!(of(Some("host"), Language::Files), Wish::Host);
        for (name, expected) in [
            ("base/python:3", "hub.tombolo/base/python:3"),
            ("python", "hub.tombolo/python:latest"),
            ("registry.example/a/b", "registry.example/a/b:latest"),
            ("localhost:5000/a:1", "localhost:5000/a:1"),
        ] {
            let Wish::Image(reference) = of(Some(name), Language::Python) else { panic!("{name}") };
            assert_eq!(reference.to_string(), expected);
        }
        assert!(Wish::of(Some("Not A Name"), Language::Python).is_err());
    }

    #[tokio::test]
    async fn without_a_hub_this_machine_is_the_base() {
        let found = Wish::Usual("base/python").find(None).await.unwrap();
        assert!(matches!(found, Found::Host), "{found}");
        let named = Wish::of(Some("a/b"), Language::Python).unwrap();
        assert!(named.find(None).await.is_err());
    }
}
