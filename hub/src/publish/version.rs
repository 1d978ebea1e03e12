//! Which version the next manifest has. Pure but for [`epoch`].

use tombolo_api::manifest::Version;
use tombolo_api::report::Serving;
use tombolo_store::{Batch, Store};

use super::{OpenError, Published};

const EPOCH_KEY: &str = "m/epoch";

/// Versions that a node may claim to serve and be believed; beyond, it only wants to make the hub's counter run over.
const BELIEVED_MAX: u64 = 1 << 62;

/// The epoch of this store: made from the clock when the store is new, raised when something of it was lost.
pub(super) fn epoch(store: &Store, complete: bool, now_s: u64) -> Result<u64, OpenError> {
    let stored =
        store.get(EPOCH_KEY)?.and_then(|value| std::str::from_utf8(&value).ok()?.parse::<u64>().ok());
    let epoch = match stored {
        Some(epoch) if complete => return Ok(epoch),
        Some(epoch) => now_s.max(epoch + 1),
        None => now_s,
    };
    tracing::info!(epoch, "the hub begins an epoch");
    let mut batch = Batch::new();
    batch.put(EPOCH_KEY, epoch.to_string());
    store.commit(batch)?;
    Ok(epoch)
}

/// The version after `last`, and after what the node serves if that is newer: then this store went back in time unnoticed.
pub(super) fn next(last: Option<Version>, epoch: u64, serving: Option<Serving>) -> Version {
    let newest = last.max(believed(serving).map(|serving| serving.version)).unwrap_or_default();
    Version { epoch: epoch.max(newest.epoch), generation: newest.generation + 1 }
}

/// Whether the node serves something newer than the hub gave it, or another thing under the same version.
pub(super) fn is_ahead(serving: Option<Serving>, published: Published) -> bool {
    believed(serving).is_some_and(|serving| {
        let same = serving.version == published.version;
        serving.version > published.version || (same && serving.digest != published.digest)
    })
}

fn believed(serving: Option<Serving>) -> Option<Serving> {
    serving
        .filter(|serving| serving.version.epoch < BELIEVED_MAX && serving.version.generation < BELIEVED_MAX)
}

#[cfg(test)]
mod tests {
    use tombolo_api::Digest;

    use super::*;

    fn version(epoch: u64, generation: u64) -> Version {
        Version { epoch, generation }
    }

    fn serving(epoch: u64, generation: u64, content: &str) -> Option<Serving> {
        Some(Serving { version: version(epoch, generation), digest: Digest::of(content.as_bytes()) })
    }

    #[test]
    fn versions_only_grow() {
        for (last, epoch, serving, expected) in [
            (None, 5, None, version(5, 1)),
            (Some(version(5, 1)), 5, None, version(5, 2)),
            (Some(version(5, 7)), 9, None, version(9, 8)),
            (Some(version(5, 1)), 5, serving(5, 4, ""), version(5, 5)),
            (Some(version(5, 1)), 5, serving(6, 2, ""), version(6, 3)),
            (None, 5, serving(4, 4, ""), version(5, 5)),
            (Some(version(5, 1)), 5, serving(5, u64::MAX, ""), version(5, 2)),
            (Some(version(5, 1)), 5, serving(u64::MAX, 1, ""), version(5, 2)),
        ] {
            let next = next(last, epoch, serving);
            assert_eq!(next, expected, "{last:?} {epoch} {serving:?}");
            assert!(Some(next) > last);
        }
    }

    #[test]
    fn a_node_that_is_ahead_is_noticed() {
        let published = Published { version: version(5, 3), digest: Digest::of(b"x") };
        for (serving, ahead) in [
            (None, false),
            (serving(5, 2, "y"), false),
            (serving(5, 3, "x"), false),
            (serving(5, 3, "y"), true),
            (serving(5, 4, "y"), true),
            (serving(6, 1, "y"), true),
            (serving(6, u64::MAX, "y"), false),
        ] {
            assert_eq!(is_ahead(serving, published), ahead, "{serving:?}");
        }
    }

    #[test]
    fn the_epoch_stays_until_something_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        assert_eq!(epoch(&store, true, 100).unwrap(), 100);
        assert_eq!(epoch(&store, true, 200).unwrap(), 100);
        assert_eq!(epoch(&store, false, 200).unwrap(), 200);
        assert_eq!(epoch(&store, false, 150).unwrap(), 201);
        assert_eq!(epoch(&store, true, 300).unwrap(), 201);
    }
}
