//! The task against a link that is two channels: whole, cut, late, forged and repeated messages.

use ed25519_dalek::SigningKey;
use tombolo_api::manifest::SignedManifest;
use tombolo_api::report::Serving;

use super::*;
use crate::identity::Enrolment;
use crate::keep::tests::{kept, key, me};
use crate::restore::load;

struct Node {
    state: tempfile::TempDir,
    keep: Keep,
    received: mpsc::Sender<Received>,
    accepted: watch::Receiver<Option<Arc<Accepted>>>,
    wanted: watch::Receiver<BTreeSet<Digest>>,
    refusals: watch::Receiver<Refusals>,
    outbox: Outbox,
}

fn identity() -> Identity {
    use base64::Engine as _;
    let manifest_key = base64::engine::general_purpose::STANDARD.encode(key().verifying_key().as_bytes());
    let enrolment = Enrolment {
        node: me(),
        hub_url: String::new(),
        certificate_pem: String::new(),
        ca_pem: String::new(),
        manifest_key,
        mqtt_url: String::new(),
        registry: String::new(),
        pull_token: String::new(),
    };
    Identity { key_pem: String::new(), enrolment }
}

impl Node {
    async fn start() -> Self {
        let state = tempfile::tempdir().unwrap();
        let (keep, _) = Keep::open(state.path()).unwrap();
        let held = load(&keep, state.path(), &key().verifying_key(), &me()).await.map(Arc::new);
        let (received, inbox) = mpsc::channel(64);
        let (accepted, wanted, refusals) =
            (watch::Sender::new(held), watch::Sender::default(), watch::Sender::new(keep.refusals()));
        let outbox = Outbox::load(&keep);
        let node = Self {
            keep: keep.clone(),
            received,
            accepted: accepted.subscribe(),
            wanted: wanted.subscribe(),
            refusals: refusals.subscribe(),
            outbox: outbox.clone(),
            state,
        };
        let identity = watch::Sender::new(Some(Arc::new(identity()))).subscribe();
        let state_dir = node.state.path().to_owned();
        let sync =
            Sync { keep, me: me(), state_dir, identity, trust: None, accepted, wanted, refusals, outbox };
        tokio::spawn(sync.run(inbox));
        node.received.send(Received::Connected(true)).await.unwrap();
        node
    }

    async fn manifest(&self, bytes: &[u8]) {
        self.received.send(Received::Manifest(frame::encode(bytes).payload.into())).await.unwrap();
    }

    /// Answers what is asked for from `blobs` until generation `generation` is in force.
    async fn serve(&mut self, blobs: &BTreeMap<Digest, Vec<u8>>, generation: u64) -> BTreeSet<Digest> {
        let mut asked = BTreeSet::new();
        loop {
            if self.generation() == Some(generation) {
                return asked;
            }
            let wanted = self.wanted.borrow_and_update().clone();
            for digest in wanted {
                if asked.insert(digest) {
                    let payload = blobs[&digest].clone();
                    self.received.send(Received::Blob(digest, payload.into())).await.unwrap();
                }
            }
            tokio::select! {
                _ = self.wanted.changed() => {}
                _ = self.accepted.changed() => {}
                () = tokio::time::sleep(Duration::from_secs(20)) => panic!("nothing came of it"),
            }
        }
    }

    fn generation(&self) -> Option<u64> {
        self.accepted.borrow().as_ref().map(|accepted| accepted.serving.version.generation)
    }

    async fn refused(&mut self) -> Refused {
        let found = self.refusals.wait_for(|refusals| refusals.last.is_some()).await.unwrap();
        found.last.clone().unwrap()
    }
}

fn blobs(kept: &Kept) -> BTreeMap<Digest, Vec<u8>> {
    kept.contents.iter().map(|(digest, content)| (*digest, frame::encode_blob(content).payload)).collect()
}

#[tokio::test]
async fn only_missing_objects_are_fetched_and_the_state_is_durable_when_in_force() {
    let mut node = Node::start().await;
    let first = kept(1, &["a", "b"]);
    node.manifest(&first.manifest).await;
    assert_eq!(node.serve(&blobs(&first), 1).await.len(), 2);
    assert_eq!(node.keep.manifest().unwrap(), first);
    // The next one shares nothing by digest but for what is carried over here.
    let mut second = kept(2, &["c"]);
    let mut manifest = crate::accepted::unverified(&second.manifest).unwrap();
    manifest.objects.splice(0..0, crate::accepted::unverified(&first.manifest).unwrap().objects);
    second.manifest = SignedManifest::sign(&manifest, &key()).to_bytes();
    node.manifest(&second.manifest).await;
    let asked = node.serve(&blobs(&second), 2).await;
    assert_eq!(asked, second.contents.keys().copied().collect());
    assert_eq!(node.keep.manifest().unwrap().contents.len(), 3);
}

#[tokio::test]
async fn what_comes_in_pieces_is_the_same() {
    let mut node = Node::start().await;
    let names: Vec<String> = (0..2_000).map(|number| format!("s{number:04}")).collect();
    let large = kept(1, &names.iter().map(String::as_str).collect::<Vec<_>>());
    let framed = frame::encode(&large.manifest);
    assert!(!framed.chunks.is_empty());
    let mut all = blobs(&large);
    all.extend(framed.chunks);
    node.received.send(Received::Manifest(framed.payload.into())).await.unwrap();
    node.serve(&all, 1).await;
    assert_eq!(node.accepted.borrow().as_ref().unwrap().desired.routes.len(), 2_000);
}

#[tokio::test]
async fn older_forged_and_malformed_ones_are_refused_counted_and_told() {
    let mut node = Node::start().await;
    let now = kept(5, &["a"]);
    node.manifest(&now.manifest).await;
    node.serve(&blobs(&now), 5).await;
    let other_key = SigningKey::from_bytes(&[9; 32]);
    let forged =
        SignedManifest::sign(&crate::accepted::unverified(&kept(6, &[]).manifest).unwrap(), &other_key)
            .to_bytes();
    let mut count = 0;
    for (bytes, reason) in [
        (kept(4, &["a"]).manifest, "OlderGeneration"),
        (kept(5, &["b"]).manifest, "SameGenerationOtherContent"),
        (forged, "UnknownKey"),
        (kept(6, &["a"]).manifest[..70].to_vec(), "Malformed"),
    ] {
        node.manifest(&bytes).await;
        count += 1;
        let found = node.refusals.wait_for(|refusals| refusals.count == count).await.unwrap().clone();
        assert_eq!(found.last.unwrap().reason, reason);
    }
    assert_eq!(node.generation(), Some(5));
    assert_eq!(node.outbox.len(), 4);
    while node.keep.refusals().count != count {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The one held is no refusal, and a newer one clears the last.
    node.manifest(&now.manifest).await;
    let next = kept(6, &[]);
    node.manifest(&next.manifest).await;
    node.serve(&blobs(&next), 6).await;
    let refusals = node.refusals.wait_for(|refusals| refusals.last.is_none()).await.unwrap().clone();
    assert_eq!(refusals.count, count);
}

#[tokio::test]
async fn an_object_with_other_content_is_refused_and_the_state_stays() {
    let mut node = Node::start().await;
    let good = kept(1, &["a"]);
    node.manifest(&good.manifest).await;
    node.serve(&blobs(&good), 1).await;
    let next = kept(2, &["a"]);
    node.manifest(&next.manifest).await;
    let wanted = *node.wanted.wait_for(|wanted| !wanted.is_empty()).await.unwrap().iter().next().unwrap();
    let payload = frame::encode_blob(b"something else").payload;
    node.received.send(Received::Blob(wanted, payload.into())).await.unwrap();
    assert_eq!(node.refused().await.reason, "BadObject");
    assert_eq!(node.generation(), Some(1));
    // Delivered again with the right content it is taken.
    node.manifest(&next.manifest).await;
    node.serve(&blobs(&next), 2).await;
}

#[tokio::test(start_paused = true)]
async fn half_a_manifest_is_given_up_only_while_there_is_a_link() {
    let state = tempfile::tempdir().unwrap();
    let (keep, _) = Keep::open(state.path()).unwrap();
    let refusals = watch::Sender::default();
    let io = Sync {
        outbox: Outbox::load(&keep),
        keep,
        me: me(),
        state_dir: state.path().to_owned(),
        trust: None,
        identity: watch::Sender::new(Some(Arc::new(identity()))).subscribe(),
        accepted: watch::Sender::new(None),
        wanted: watch::Sender::default(),
        refusals: refusals.clone(),
    };
    let (received, inbox) = mpsc::channel(64);
    tokio::spawn(io.run(inbox));
    let payload = frame::encode(&kept(1, &["a"]).manifest).payload;
    received.send(Received::Manifest(payload.into())).await.unwrap();
    tokio::time::sleep(PIECE_DEADLINE * 3).await;
    assert_eq!(refusals.borrow().count, 0);
    received.send(Received::Connected(true)).await.unwrap();
    tokio::time::sleep(PIECE_DEADLINE + Duration::from_secs(1)).await;
    assert_eq!(refusals.borrow().last.as_ref().unwrap().reason, "ObjectsMissing");
}

#[tokio::test]
async fn a_displaced_manifest_is_taken_when_the_later_one_comes_to_nothing() {
    let mut node = Node::start().await;
    let real = kept(1, &["a"]);
    node.manifest(&real.manifest).await;
    node.wanted.wait_for(|wanted| !wanted.is_empty()).await.unwrap();
    // A list of pieces nobody has: its one piece is something else.
    let bogus = frame::encode(&vec![1; 200_000]);
    let Ok(Frame::Chunks(list)) = frame::decode(&bogus.payload) else { panic!("not cut") };
    node.received.send(Received::Manifest(bogus.payload.into())).await.unwrap();
    let chunk = list.chunks[0];
    node.wanted.wait_for(|wanted| wanted.contains(&chunk)).await.unwrap();
    node.received.send(Received::Blob(chunk, frame::encode_blob(b"x").payload.into())).await.unwrap();
    node.wanted.wait_for(|wanted| !wanted.contains(&chunk)).await.unwrap();
    node.serve(&blobs(&real), 1).await;
}

#[tokio::test]
async fn the_export_serves_when_the_store_had_to_start_empty() {
    let state = tempfile::tempdir().unwrap();
    let kept = kept(7, &["a", "b"]);
    let (keep, _) = Keep::open(state.path()).unwrap();
    assert_eq!(load(&keep, state.path(), &key().verifying_key(), &me()).await, None);
    export::write(state.path(), &kept).unwrap();
    let found = load(&keep, state.path(), &key().verifying_key(), &me()).await.unwrap();
    let version = tombolo_api::manifest::Version { epoch: 1, generation: 7 };
    assert_eq!(found.serving, Serving { version, digest: Digest::of(&kept.manifest) });
    assert_eq!(keep.manifest().unwrap(), kept);
    // The other way round: a store that is ahead renews the export.
    keep.accept(&crate::keep::tests::kept(8, &["a"])).await.unwrap();
    assert_eq!(
        load(&keep, state.path(), &key().verifying_key(), &me()).await.unwrap().serving.version.generation,
        8
    );
    assert_eq!(export::read(state.path()).unwrap(), crate::keep::tests::kept(8, &["a"]));
}
