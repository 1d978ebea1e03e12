//! Images of other registries: where they come from, and what of them is kept here, so that a site fetches them once.
//!
//! ```text
//! a node asks ─▶ kept? ─▶ answer
//!                  └─▶ fetch ─▶ {state_dir}/cache/partial ─▶ verified ─▶ kept
//!                        └─ every byte that has come goes on to all who ask, the last one when the whole is verified
//! ```
//!
//! Content is asked for by digest and verified by it. For nodes is fetched what a revision names, and what lies under a
//! configured prefix: they cannot have the hub ask anybody they like. Must not know HTTP as nodes speak it.

mod fetch;
mod keep;
mod source;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, watch};
use tombolo_api::Digest;
use tombolo_oci::image::MAX_DOCUMENT;
use tombolo_oci::{Client, HUB_HOST, ImageReference, Repository, Store, StoreError, Target, TransferError};

pub(crate) use fetch::Coming;
use fetch::Fetches;
use source::Source;

use crate::catalog::State;
use crate::config::RegistryConfig;

/// A handle of what comes from other registries.
#[derive(Clone)]
pub(crate) struct Upstreams(Arc<Inner>);

struct Inner {
    /// The longest prefix first.
    sources: Vec<Source>,
    /// By a source's prefix, or by the host that is asked itself.
    clients: Mutex<BTreeMap<String, Client>>,
    cache: Store,
    fetches: Fetches,
    /// Something has come that may be more than the cache is to hold.
    grown: Notify,
    state: watch::Receiver<Arc<State>>,
}

/// Why there is no content of another registry.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    #[error(
        "no revision names an image of {0}, and no prefix in [[registry.upstreams]] of the hub's configuration covers it: deploy \
         one, or add the prefix"
    )]
    Unknown(String),
    #[error("the hub cannot fetch {name}")]
    Transfer {
        name: String,
        #[source]
        source: Arc<TransferError>,
    },
    #[error("the registry of {0} has not answered the hub yet: try again")]
    Slow(String),
    #[error("the hub's cache failed: {0}")]
    Store(#[from] StoreError),
}

impl UpstreamError {
    /// What is to be done about a failed transfer, to be told behind it.
    pub(crate) fn advice(error: &TransferError) -> &'static str {
        match error {
            TransferError::Unauthorized { .. } => ", in [[registry.upstreams]] of the hub's configuration",
            TransferError::Untrusted { .. } => {
                ": check url and ca_file, in [[registry.upstreams]] of the hub's configuration"
            }
            _ => "",
        }
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    /// Gets what it has to run.
    Node,
    /// Whoever may write to the hub may have it fetch anything.
    Person,
}

/// A blob that is asked for.
pub(crate) enum Blob {
    Here(Store),
    Coming(Coming),
}

impl Upstreams {
    /// Opens the cache in `root`, made if absent. Blocks.
    pub(crate) fn open(
        root: &Path,
        config: &RegistryConfig,
        state: watch::Receiver<Arc<State>>,
    ) -> Result<Self, StoreError> {
        let external = config.external.iter().map(|external| external.at(HUB_HOST));
        let configured = config.upstreams.iter().cloned().chain(external);
        let mut sources: Vec<Source> = configured.map(Source::new).collect();
        sources.sort_by_key(|source| std::cmp::Reverse(source.prefix().len()));
        let cache = Store::open(root)?;
        let (clients, fetches, grown) = (Mutex::default(), Fetches::default(), Notify::new());
        Ok(Self(Arc::new(Inner { sources, clients, cache, fetches, grown, state })))
    }

    /// Whether the hub's own registry is another one.
    pub(crate) fn is_external(&self) -> bool {
        self.0.sources.iter().any(|source| source.prefix() == HUB_HOST)
    }

    /// A client of the registry that the hub's own is.
    pub(crate) async fn external(&self) -> Result<Client, TransferError> {
        let any: Repository = "any".parse().expect("it is a repository's name");
        Ok(self.client(HUB_HOST, &any).await?.0)
    }

    /// The digest that an image's name stands for now, as its registry or its mirror says.
    pub(crate) async fn resolve(&self, reference: &ImageReference) -> Result<Digest, TransferError> {
        let (client, repository) = self.client(&reference.host, &reference.repository).await?;
        let resolved = client.resolve(&repository, &reference.target).await;
        self.learn(&reference.host, &reference.repository, resolved.as_ref().err());
        resolved
    }

    /// The same for somebody who may only ask for what the hub fetches.
    pub(crate) async fn resolve_for(
        &self,
        asker: Asker,
        reference: &ImageReference,
    ) -> Result<Digest, UpstreamError> {
        let name = self.allowed(asker, &reference.host, &reference.repository)?;
        let resolved = self.resolve(reference).await;
        resolved.map_err(|error| UpstreamError::Transfer { name, source: Arc::new(error) })
    }

    /// A client for a repository, and what the repository is called there.
    pub(crate) async fn client(
        &self,
        host: &str,
        repository: &Repository,
    ) -> Result<(Client, Repository), TransferError> {
        let source = self.source(host, repository);
        let key = source.map_or(host, Source::prefix).to_owned();
        let known = self.clients().get(&key).cloned();
        let client = match known {
            Some(client) => client,
            None => {
                let (source, host) = (source.cloned(), host.to_owned());
                let made = tokio::task::spawn_blocking(move || match source {
                    Some(source) => source.client(),
                    None => source::direct(&host),
                });
                let client = made.await.map_err(|error| TransferError::Client(error.to_string()))??;
                self.clients().insert(key, client.clone());
                client
            }
        };
        let repository = source.map_or(Ok(repository.clone()), |source| source.there(repository))?;
        Ok((client, repository))
    }

    /// A manifest or an index, kept from now on.
    pub(crate) async fn document(
        &self,
        asker: Asker,
        host: &str,
        repository: &Repository,
        digest: Digest,
    ) -> Result<Vec<u8>, UpstreamError> {
        // Whoever asks for the same meanwhile finds it here.
        let _claim = self.0.cache.claim(&digest).await;
        if let Some(content) = self.kept(digest).await? {
            return Ok(content);
        }
        let name = self.allowed(asker, host, repository)?;
        let failed = |error| UpstreamError::Transfer { name: name.clone(), source: Arc::new(error) };
        let (client, there) = self.client(host, repository).await.map_err(failed)?;
        let asked = client.manifest(&there, &Target::Digest(digest)).await;
        self.learn(host, repository, asked.as_ref().err());
        let (_, content) = asked.map_err(failed)?;
        let (cache, content) = (self.0.cache.clone(), content.to_vec());
        Ok(blocking(move || cache.put(&content).map(|_| content)).await?)
    }

    /// A blob: here, or on its way.
    pub(crate) async fn blob(
        &self,
        asker: Asker,
        host: &str,
        repository: &Repository,
        digest: Digest,
    ) -> Result<Blob, UpstreamError> {
        if self.has(digest).await? {
            return Ok(Blob::Here(self.0.cache.clone()));
        }
        let name = self.allowed(asker, host, repository)?;
        let stage = self.fetch(host, repository, digest, &name);
        Coming::start(self.0.cache.clone(), digest, name, stage).await.map(Blob::Coming)
    }

    /// A document that is here.
    async fn kept(&self, digest: Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let cache = self.0.cache.clone();
        blocking(move || match cache.read_blob(&digest, MAX_DOCUMENT) {
            Ok(content) => {
                keep::touch(&cache, &digest);
                Ok(Some(content))
            }
            Err(StoreError::Missing(_)) => Ok(None),
            // Fetched again.
            Err(StoreError::DigestMismatch { .. }) => cache.remove_blob(&digest).map(|()| None),
            Err(error) => Err(error),
        })
        .await
    }

    async fn has(&self, digest: Digest) -> Result<bool, StoreError> {
        let cache = self.0.cache.clone();
        blocking(move || {
            let here = cache.contains(&digest);
            if here {
                keep::touch(&cache, &digest);
            }
            Ok(here)
        })
        .await
    }

    /// The name of a repository whose content the hub fetches for nodes.
    fn allowed(&self, asker: Asker, host: &str, repository: &Repository) -> Result<String, UpstreamError> {
        let name = format!("{host}/{repository}");
        if asker == Asker::Person {
            return Ok(name);
        }
        let state = self.0.state.borrow().clone();
        let is_it = |image: &str| {
            let reference = image.parse::<ImageReference>();
            reference.is_ok_and(|it| it.host == host && it.repository == *repository)
        };
        let mut named = state.snapshot.revisions.values().flat_map(|revision| &revision.spec.containers);
        if self.source(host, repository).is_some() || named.any(|container| is_it(&container.image)) {
            Ok(name)
        } else {
            Err(UpstreamError::Unknown(name))
        }
    }

    fn source(&self, host: &str, repository: &Repository) -> Option<&Source> {
        self.0.sources.iter().find(|source| source.covers(host, repository))
    }

    /// After a refusal the password is read again, and whom to believe where a certificate is not believed.
    fn learn(&self, host: &str, repository: &Repository, error: Option<&TransferError>) {
        if let Some(TransferError::Unauthorized { .. } | TransferError::Untrusted { .. }) = error {
            let key = self.source(host, repository).map_or(host, Source::prefix);
            self.clients().remove(key);
        }
    }

    fn clients(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Client>> {
        self.0.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs what blocks on the disk elsewhere.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        let path = PathBuf::from("the cache");
        Err(StoreError::Io { act: "finish work on", path, source: std::io::Error::other(error) })
    })
}

#[cfg(test)]
impl Upstreams {
    /// No other registry is known; the cache is below `dir`.
    pub(crate) fn none(dir: &Path) -> Self {
        let (_, state) = watch::channel(Arc::default());
        Self::open(&dir.join("cache"), &RegistryConfig::default(), state)
            .expect("a new directory can be opened")
    }
}

#[cfg(test)]
mod tests;
