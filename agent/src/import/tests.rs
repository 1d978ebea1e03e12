//! Bundles against a node that is two stores and a task: whole, cut off, damaged, for others, older, and again.

use std::collections::BTreeSet;

use ed25519_dalek::{SigningKey, VerifyingKey};
use tokio::sync::mpsc;
use tombolo_api::Digest;
use tombolo_api::bundle::{Descriptor, Index, LAYOUT, Member, member};
use tombolo_api::desired::{Encoded, RevisionObject, encode_revision};
use tombolo_api::manifest::{FORMAT, Manifest, SignedManifest};
use tombolo_api::serving::{Container, RevisionSpec};
use tombolo_oci::{BuildOptions, FileEntry, Platform, RunConfig, Source, Store, build_directory, image};

use super::*;
use crate::keep::Keep;
use crate::keep::tests::{key, me};
use crate::sync::Sync;

type Blobs = BTreeMap<Digest, Vec<u8>>;

/// A tar of these members.
fn tar(members: &[(Member, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (member, content) in members {
        bytes.extend(member::header(member, content.len() as u64));
        bytes.extend(content);
        bytes.extend(vec![0; member::padding(content.len() as u64)]);
    }
    bytes.extend(member::END);
    bytes
}

/// What a bundle is made of.
struct Made {
    manifest: Vec<u8>,
    index: Index,
    documents: Blobs,
    image: Digest,
    layer: (Digest, Vec<u8>),
}

impl Made {
    fn new(node: &str, generation: u64, content: &[u8], key: &SigningKey) -> Self {
        let (image, mut documents, layer) = image_of(content);
        let object = revision(&image);
        let manifest = Manifest {
            format: FORMAT,
            node: node.parse().unwrap(),
            generation,
            epoch: 1,
            hub_time_s: 1,
            objects: vec![object.entry.clone()],
        };
        let signed = SignedManifest::sign(&manifest, key).to_bytes();
        let listed = [
            Descriptor::of_manifest(&manifest, &signed),
            Descriptor::of_object(&object.entry),
            Descriptor::of_image("hub.tombolo/a", image::OCI_MANIFEST, image, documents[&image].len() as u64),
        ];
        documents.insert(object.entry.digest, object.bytes);
        Self { manifest: signed, index: Index::new(listed, None), documents, image, layer }
    }

    fn members(&self) -> Vec<(Member, Vec<u8>)> {
        let blob = |(digest, content): (Digest, Vec<u8>)| (Member::Blob(digest), content);
        let documents = self.documents.clone().into_iter();
        let manifest = (Digest::of(&self.manifest), self.manifest.clone());
        [(Member::Layout, LAYOUT.as_bytes().to_vec()), (Member::Index, self.index.to_bytes()), blob(manifest)]
            .into_iter()
            .chain(documents.map(blob))
            .chain([blob(self.layer.clone())])
            .collect()
    }

    fn tar(&self) -> Vec<u8> {
        tar(&self.members())
    }
}

/// The manifest's digest, the documents, the layer.
fn image_of(content: &[u8]) -> (Digest, Blobs, (Digest, Vec<u8>)) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let files = vec![FileEntry { path: "content".into(), executable: false, content: content.to_vec() }];
    let options = BuildOptions {
        source: Source::Files(files),
        config: RunConfig { entrypoint: vec!["/content".into()], ..RunConfig::default() },
        platform: Platform::host(),
    };
    let built = build_directory(&options, &store).unwrap();
    let mut blobs: Blobs = store
        .blobs()
        .unwrap()
        .into_keys()
        .map(|digest| (digest, std::fs::read(store.blob_path(&digest)).unwrap()))
        .collect();
    let is_document = |digest: &Digest| *digest == built.manifest || *digest == built.config;
    let layer = *blobs.keys().find(|digest| !is_document(digest)).unwrap();
    let content = blobs.remove(&layer).unwrap();
    (built.manifest, blobs, (layer, content))
}

fn revision(image: &Digest) -> Encoded {
    let container = Container { image: format!("hub.tombolo/a@{image}"), ..Container::default() };
    encode_revision(&RevisionObject {
        namespace: "default".into(),
        name: "a-00001".into(),
        uid: "u".into(),
        service: "a".into(),
        configuration: "a".into(),
        annotations: BTreeMap::new(),
        spec: RevisionSpec { containers: vec![container], ..RevisionSpec::default() },
        verification: None,
    })
}

/// Noise, which no layer's compression makes shorter.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| byte()).collect()
}

struct Node {
    dir: tempfile::TempDir,
    ground: Ground,
    bundles: Bundles,
    accepted: watch::Receiver<Option<Arc<Accepted>>>,
}

impl Node {
    fn start(trust: Option<VerifyingKey>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (keep, _) = Keep::open(dir.path()).unwrap();
        let images = Store::open(&dir.path().join("images")).unwrap();
        let (sync, received) = mpsc::channel(4);
        let (accepted, in_force) = watch::channel(None);
        let task = Sync {
            keep: keep.clone(),
            me: me(),
            state_dir: dir.path().to_owned(),
            identity: watch::Sender::new(None).subscribe(),
            trust,
            accepted,
            wanted: watch::Sender::default(),
            refusals: watch::Sender::default(),
            outbox: Outbox::load(&keep),
        };
        tokio::spawn(task.run(received));
        let ground = Ground { me: me(), keep: keep.clone(), images, sync, room: None };
        Self { dir, ground, bundles: Bundles::load(&keep, None), accepted: in_force }
    }

    fn trusting() -> Self {
        Self::start(Some(key().verifying_key()))
    }

    /// With how many bytes of layers were copied.
    async fn import(&mut self, bytes: &[u8]) -> (Outcome, u64) {
        let path = self.dir.path().join("a.tombolo");
        std::fs::write(&path, bytes).unwrap();
        let copying = Copying::default();
        let outcome = self.ground.import(&path, &mut self.bundles, false, &copying).await.unwrap();
        (outcome, copying.bytes().0)
    }

    async fn refusal(&mut self, bytes: &[u8]) -> ImportError {
        self.import(bytes).await.0.unwrap_err()
    }

    fn generation(&self) -> Option<u64> {
        self.accepted.borrow().as_ref().map(|accepted| accepted.serving.version.generation)
    }

    fn has(&self, image: &Digest) -> bool {
        image::summary(&self.ground.images, image, &Platform::host()).unwrap().is_some()
    }
}

#[tokio::test]
async fn what_is_imported_is_complete_durable_and_not_imported_again() {
    let mut node = Node::trusting();
    let made = Made::new(me().as_str(), 3, &noise(100_000), &key());
    let (outcome, copied) = node.import(&made.tar()).await;
    let imported = outcome.unwrap();
    assert_eq!((imported.version.generation, imported.is_same, imported.images), (3, false, 1));
    assert_eq!(copied, made.layer.1.len() as u64);
    assert!(node.generation() == Some(3) && node.has(&made.image));
    assert_eq!(node.ground.keep.manifest().unwrap().manifest, made.manifest);
    let (again, copied) = node.import(&made.tar()).await;
    assert_eq!((again.unwrap().is_same, copied), (true, 0));
    let path = node.dir.path().join("a.tombolo");
    assert!(node.ground.import(&path, &mut node.bundles, true, &Copying::default()).await.is_none());
    // Images that went missing come back with the very manifest that is in force.
    node.ground.images.retain(&tombolo_oci::store::Keep::default()).unwrap();
    assert!(!node.has(&made.image));
    let (again, copied) = node.import(&made.tar()).await;
    assert!(again.unwrap().is_same && copied > 0 && node.has(&made.image));
}

#[tokio::test]
async fn what_the_link_would_refuse_is_refused_and_changes_nothing() {
    let mut node = Node::trusting();
    node.import(&Made::new(me().as_str(), 3, b"three", &key()).tar()).await.0.unwrap();
    let other_key = SigningKey::from_bytes(&[9; 32]);
    let of = |node: &str, generation: u64, key: &SigningKey| Made::new(node, generation, b"other", key);
    let mut forged = of(me().as_str(), 9, &key());
    let text = String::from_utf8(forged.manifest.clone()).unwrap();
    forged.manifest = text.replace("\\\"generation\\\":9", "\\\"generation\\\":10").into_bytes();
    forged.index.manifests[0].digest = Digest::of(&forged.manifest);
    // Says on the outside that it is for this node.
    let mut dressed = of("other", 9, &key());
    dressed.index.manifests[0].annotations.insert(tombolo_api::bundle::NODE.into(), me().to_string());
    for (reason, made) in [
        ("OlderGeneration", of(me().as_str(), 2, &key())),
        ("SameGenerationOtherContent", of(me().as_str(), 3, &key())),
        ("UnknownKey", of(me().as_str(), 9, &other_key)),
        ("BadSignature", forged),
        ("WrongNode", of("other", 9, &key())),
        ("WrongNode", dressed),
    ] {
        let error = node.refusal(&made.tar()).await;
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.is_final(), "{error}");
        assert!(node.generation() == Some(3) && !node.has(&made.image), "{reason}");
    }
    let error = node.refusal(&of("other", 9, &key()).tar()).await.to_string();
    assert!(error.contains("for other, this is"), "{error}");
    let error = Node::start(None).refusal(&of(me().as_str(), 4, &key()).tar()).await;
    assert_eq!((error.reason(), error.is_final()), ("NoKey", false));
}

/// A stick that is pulled out again and again: what was copied once is not copied again, and nothing is in force before all of
/// it is there.
#[tokio::test]
async fn goes_on_where_it_broke_off() {
    let mut node = Node::trusting();
    let made = Made::new(me().as_str(), 3, &noise(1_000_000), &key());
    let (whole, size) = (made.tar(), made.layer.1.len() as u64);
    let start = whole.len() - size as usize;
    let (mut total, mut cut) = (0, 0);
    while cut < whole.len() {
        let (outcome, copied) = node.import(&whole[..cut]).await;
        match outcome {
            // Of the tar, its end alone is missing.
            Ok(_) => assert!(cut + 2048 > whole.len(), "{cut}"),
            Err(error) => {
                assert!(["NotABundle", "BundleTruncated"].contains(&error.reason()), "{cut}: {error}");
                assert_eq!(node.generation(), None, "{cut}");
            }
        }
        total += copied;
        cut += if cut < start { 307 } else { 100_003 };
    }
    let (outcome, copied) = node.import(&whole).await;
    outcome.unwrap();
    assert_eq!(total + copied, size, "every byte once");
    assert!(node.generation() == Some(3) && node.has(&made.image));
}

#[tokio::test]
async fn damage_is_named_and_nothing_of_it_is_taken() {
    let made = Made::new(me().as_str(), 3, &noise(50_000), &key());
    for (index, (member, content)) in made.members().iter().enumerate().skip(2) {
        let Member::Blob(digest) = member else { panic!("the rest are blobs") };
        let mut members = made.members();
        let middle = content.len() / 2;
        members[index].1[middle] ^= 1;
        let mut node = Node::trusting();
        let error = node.refusal(&tar(&members)).await;
        assert_eq!(error.reason(), "BlobDamaged", "{error}");
        assert!(error.to_string().contains(&digest.to_string()), "{error}");
        assert!(node.generation().is_none() && !node.ground.images.contains(digest));
        // And the sound one is taken afterwards.
        node.import(&made.tar()).await.0.unwrap();
        assert!(node.has(&made.image));
    }
}

#[tokio::test]
async fn a_bundle_that_goes_on_from_another_says_which() {
    let made = Made::new(me().as_str(), 3, &noise(50_000), &key());
    let base = Digest::of(b"base");
    let index = Index::new(made.index.manifests.clone(), Some(&base));
    let mut members = made.members();
    members.pop();
    members[1].1 = index.to_bytes();
    let mut node = Node::trusting();
    let error = node.refusal(&tar(&members)).await;
    assert_eq!(error.reason(), "BlobMissing");
    let text = error.to_string();
    assert!(text.contains(&base.to_string()[..19]) && text.contains(&made.layer.0.to_string()), "{text}");
    // What was taken stays until the rest comes.
    assert!(node.bundles.pins().all().is_superset(&BTreeSet::from([made.image, made.layer.0])));
    let mut longer = made.members();
    longer.last_mut().unwrap().1.push(0);
    assert_eq!(node.refusal(&tar(&longer)).await.reason(), "BlobDamaged");
    assert_eq!(node.generation(), None);
}
