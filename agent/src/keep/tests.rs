//! Acceptance against a store that is stopped at any moment, and what else is kept.

use ed25519_dalek::SigningKey;
use tombolo_agent_core::actual::{Moment, RevisionActual, Takeover};
use tombolo_agent_core::takeovers::Takeovers;
use tombolo_api::NodeId;
use tombolo_api::desired::{RouteObject, RouteTarget, encode_route};
use tombolo_api::manifest::{FORMAT, Manifest, SignedManifest};
use tombolo_api::report::{EventKind, RolledBack};

use super::*;
use crate::accepted::Accepted;

pub(crate) fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

pub(crate) fn me() -> NodeId {
    "press-7".parse().unwrap()
}

/// A signed manifest that names a route for each of `names`, with the routes. The routes depend on the generation.
pub(crate) fn kept(generation: u64, names: &[&str]) -> Kept {
    let mut contents = BTreeMap::new();
    let mut objects = Vec::new();
    for name in names {
        let target = RouteTarget {
            percent: 100,
            candidates: vec![format!("{name}-{generation:05}")],
            hosts: vec![],
            tag: String::new(),
            configuration: String::new(),
        };
        let hosts = vec![format!("{name}.default.localhost")];
        let route = RouteObject {
            namespace: "default".into(),
            name: (*name).into(),
            hosts,
            targets: vec![target],
            steering: vec![],
            rollout: None,
        };
        let encoded = encode_route(&route);
        contents.insert(encoded.entry.digest, encoded.bytes);
        objects.push(encoded.entry);
    }
    let manifest =
        Manifest { format: FORMAT, node: me(), generation, epoch: 1, hub_time_s: 1_700_000_000, objects };
    Kept { manifest: SignedManifest::sign(&manifest, &key()).to_bytes(), contents }
}

fn verified(keep: &Keep) -> Accepted {
    let kept = keep.manifest().unwrap();
    Accepted::verify(&kept.manifest, &key().verifying_key(), &me(), &kept.contents).unwrap()
}

#[tokio::test]
async fn accepting_replaces_everything_and_leaves_nothing_behind() {
    let state = tempfile::tempdir().unwrap();
    let (keep, damage) = Keep::open(state.path()).unwrap();
    assert_eq!((damage, keep.manifest()), (None, None));
    keep.put_refusals(&Refusals { count: 3, last: None }).await.unwrap();
    let (old, new) = (kept(1, &["a", "b"]), kept(2, &["b", "c"]));
    keep.accept(&old).await.unwrap();
    keep.accept(&new).await.unwrap();
    drop(keep);
    let (keep, _) = Keep::open(state.path()).unwrap();
    assert_eq!(verified(&keep).serving.version.generation, 2);
    assert_eq!(keep.manifest().unwrap(), new);
    assert_eq!(keep.scan(OBJECT).len(), 2);
    assert_eq!(keep.refusals().count, 3);
}

const CHILD: &str = "TOMBOLO_TEST_ACCEPT_IN";

/// Not a test by itself: the process that [`killed_at_any_moment_leaves_the_old_or_the_new`] kills.
#[tokio::test]
async fn accept_for_ever() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let (keep, _) = Keep::open(Path::new(&dir)).unwrap();
    let first = keep.manifest().map_or(0, |_| verified(&keep).serving.version.generation);
    for generation in first + 1.. {
        let names: &[&str] = if generation % 2 == 0 { &["a", "d"] } else { &["a", "b", "c"] };
        keep.accept(&kept(generation, names)).await.unwrap();
        std::fs::write(Path::new(&dir).join("acked"), generation.to_string()).unwrap();
    }
}

#[test]
fn killed_at_any_moment_leaves_the_old_or_the_new() {
    const ROUNDS: u64 = 12;
    let state = tempfile::tempdir().unwrap();
    let mut last = 0;
    for round in 0..ROUNDS {
        kill_child("keep::tests::accept_for_ever", CHILD, state.path(), round);
        let (keep, damage) = Keep::open(state.path()).unwrap();
        assert_eq!(damage, None);
        let Some(found) = keep.manifest() else { continue };
        let generation = verified(&keep).serving.version.generation;
        let acked: u64 = std::fs::read_to_string(state.path().join("acked"))
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        assert!(
            generation >= acked.max(last),
            "went back to {generation}: {acked} was acknowledged, {last} seen before"
        );
        assert_eq!(keep.scan(OBJECT).len(), found.contents.len(), "objects of another generation were left");
        last = generation;
    }
    assert!(last > ROUNDS, "the child did not get to work");
}

const RECORDING_CHILD: &str = "TOMBOLO_TEST_RECORD_IN";

/// The takeovers of a node with so many revisions.
fn takeovers(count: usize) -> Takeovers {
    let known = |number: usize| {
        let takeover = match number % 2 {
            0 => Takeover::Begun { started: None },
            _ => Takeover::Undone(RolledBack { reason: "NotReadyInTime".into(), message: "m".repeat(99) }),
        };
        let fresh = RevisionActual::new(Digest::of(b"a"), false, Moment::default());
        (RevisionKey::new("default", format!("a-{number:05}")), RevisionActual { takeover, ..fresh })
    };
    Takeovers::among(&(0..count).map(known).collect())
}

/// Not a test by itself: the process that [`a_record_is_whole_whenever_its_writer_is_killed`] kills.
#[tokio::test]
async fn record_for_ever() {
    let Ok(dir) = std::env::var(RECORDING_CHILD) else { return };
    let (keep, _) = Keep::open(Path::new(&dir)).unwrap();
    for count in 1.. {
        keep.put_record(Record::Takeovers, takeovers(count % 200).encode()).await.unwrap();
        std::fs::write(Path::new(&dir).join("acked"), count.to_string()).unwrap();
    }
}

#[test]
fn a_record_is_whole_whenever_its_writer_is_killed() {
    let state = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for round in 0..8 {
        kill_child("keep::tests::record_for_ever", RECORDING_CHILD, state.path(), round);
        let (keep, damage) = Keep::open(state.path()).unwrap();
        assert_eq!(damage, None);
        let Some(found) = keep.record(Record::Takeovers) else { continue };
        let acked: usize = std::fs::read_to_string(state.path().join("acked"))
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        let found = Takeovers::decode(&found).unwrap();
        let expected = [acked, acked + 1].map(|count| takeovers(count % 200));
        assert!(acked == 0 || expected.contains(&found), "round {round}: not what came after {acked}");
        seen += 1;
        let _ = std::fs::remove_file(state.path().join("acked"));
    }
    assert!(seen > 4, "the child did not get to work");
}

/// Runs a test of this program as a process of its own, and kills it in the middle.
fn kill_child(test: &str, variable: &str, state: &Path, round: u64) {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(variable, state)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(60 + round * 17 % 90));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn ready_revisions_and_events_come_back_in_order() {
    let state = tempfile::tempdir().unwrap();
    let (keep, _) = Keep::open(state.path()).unwrap();
    let (one, two) = (RevisionKey::new("default", "a-00001"), RevisionKey::new("default", "a-00002"));
    let digest = Digest::of(b"a");
    keep.change_ready(&[(one.clone(), Some(digest)), (two.clone(), Some(digest))].into()).await.unwrap();
    keep.change_ready(&[(one, None)].into()).await.unwrap();
    let event = |seq| Event {
        seq,
        time_ms: 1,
        reason: "R".into(),
        kind: EventKind::Normal,
        object: "node".into(),
        message: String::new(),
    };
    let meta = OutboxMeta { id: "o".into(), next_seq: 12 };
    keep.change_outbox(&meta, &[event(9), event(10), event(11)], &[]).await.unwrap();
    keep.change_outbox(&meta, &[], &[9]).await.unwrap();
    drop(keep);
    let (keep, _) = Keep::open(state.path()).unwrap();
    assert_eq!(keep.ready(), [(two, digest)].into());
    assert_eq!(keep.outbox().unwrap(), (meta, vec![event(10), event(11)]));
}
