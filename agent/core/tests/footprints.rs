//! The golden encoding of stored footprints: an agent must go on with what the one before it wrote.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use tombolo_agent_core::actual::{Moment, RevisionActual};
use tombolo_agent_core::memory::{Footprint, Footprints, Learnt};
use tombolo_agent_core::stored::StoredError;
use tombolo_api::{Digest, RevisionKey};

const GOLDEN: &str = include_str!("golden/footprints-1.json");

#[test]
fn what_version_1_wrote_of_footprints_is_read_and_written_the_same() {
    let seen = Footprint { least_bytes: 20 << 20, most_bytes: 104 << 20, served: false };
    let of =
        [("a-00001", Learnt::Seen(seen)), ("b-00001", Learnt::Nothing), ("c-00001", Learnt::Inherited(seen))];
    let known = |name: &str, memory| RevisionActual {
        memory,
        ..RevisionActual::new(Digest::of(name.as_bytes()), true, Moment::default())
    };
    let known: BTreeMap<_, _> = of
        .into_iter()
        .map(|(name, memory)| (RevisionKey::new("default", name), known(name, memory)))
        .collect();
    let footprints = Footprints::among(&known);
    assert_eq!(String::from_utf8(footprints.encode()).unwrap(), GOLDEN.trim_end());
    assert_eq!(Footprints::decode(GOLDEN.as_bytes()).unwrap(), footprints);
}

#[test]
fn footprints_that_cannot_be_read_are_told_apart() {
    assert!(matches!(Footprints::decode(b"[]"), Err(StoredError::Malformed(_))));
    let newer = GOLDEN.replacen("\"version\":1", "\"version\":2", 1);
    assert!(matches!(Footprints::decode(newer.as_bytes()), Err(StoredError::Version { found: 2, .. })));
    let unknown = GOLDEN.replacen("mostBytes", "peakBytes", 1);
    assert!(matches!(Footprints::decode(unknown.as_bytes()), Err(StoredError::Malformed(_))));
}
