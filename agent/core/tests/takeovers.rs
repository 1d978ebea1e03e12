//! The golden encoding of stored takeovers: an agent must go on with what the one before it wrote.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use tombolo_agent_core::actual::{Moment, RevisionActual, Takeover};
use tombolo_agent_core::stored::StoredError;
use tombolo_agent_core::takeovers::Takeovers;
use tombolo_api::report::RolledBack;
use tombolo_api::{Digest, RevisionKey};

const GOLDEN: &str = include_str!("golden/takeovers-1.json");

fn known(takeovers: &[(&str, Takeover)]) -> BTreeMap<RevisionKey, RevisionActual> {
    let known = |name: &str, takeover: &Takeover| RevisionActual {
        takeover: takeover.clone(),
        ..RevisionActual::new(Digest::of(name.as_bytes()), false, Moment::default())
    };
    takeovers
        .iter()
        .map(|(name, takeover)| (RevisionKey::new("default", *name), known(name, takeover)))
        .collect()
}

#[test]
fn what_version_1_wrote_is_read_and_written_the_same() {
    let why = RolledBack { reason: "NotReadyInTime".into(), message: "it was not ready within 5 s".into() };
    let begun = Takeover::Begun { started: Some(Moment(7)) };
    let revisions =
        known(&[("a-00002", begun), ("b-00001", Takeover::None), ("c-00002", Takeover::Undone(why.clone()))]);
    let takeovers = Takeovers::among(&revisions);
    assert_eq!(String::from_utf8(takeovers.encode()).unwrap(), GOLDEN.trim_end());
    let read = Takeovers::decode(GOLDEN.as_bytes()).unwrap();
    assert_eq!(read, takeovers);
    let of = |name: &str, object: &str| {
        read.of(&RevisionKey::new("default", name), &Digest::of(object.as_bytes()))
    };
    assert_eq!(of("a-00002", "a-00002"), Takeover::Begun { started: None }, "it has its whole time again");
    assert_eq!(of("b-00001", "b-00001"), Takeover::None);
    assert_eq!(of("c-00002", "c-00002"), Takeover::Undone(why));
    assert_eq!(of("c-00002", "its next object"), Takeover::None, "another object is tried");
}

#[test]
fn what_cannot_be_read_is_told_apart() {
    assert!(matches!(Takeovers::decode(b""), Err(StoredError::Malformed(_))));
    let newer = GOLDEN.replacen("\"version\":1", "\"version\":2", 1);
    assert!(matches!(Takeovers::decode(newer.as_bytes()), Err(StoredError::Version { found: 2, .. })));
    let unknown = GOLDEN.replacen("\"begun\"", "\"paused\"", 1);
    assert!(matches!(Takeovers::decode(unknown.as_bytes()), Err(StoredError::Malformed(_))));
}
