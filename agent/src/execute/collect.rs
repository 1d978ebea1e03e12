//! Removes what nobody wants any more: images, logs, bundles. One task, which looks again whenever what is wanted changed, now and
//! then for what has become old, and when the disk is short; it never runs while an image is being prepared, and keeps whatever an
//! instance uses.
//!
//! ```text
//! old images ─▶ short of room? ─▶ leftovers of downloads ─▶ logs of ended instances ─▶ images, the longest unused first
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tombolo_agent_core::keeping::{self, Images};
use tombolo_api::desired::{Desired, RevisionObject};
use tombolo_api::{Digest, RevisionKey};
use tombolo_oci::image::{Config, Document, MAX_DOCUMENT, choose, summary};
use tombolo_oci::store::Keep;
use tombolo_oci::{ImageReference, Platform, Store};

use super::{Inner, Tools, image, lock, preload};
use crate::enrol::now_s;
use crate::log_files;
use tombolo_agent_core::supervision::InstanceId;

/// Between attempts while images are being prepared.
const BUSY_PAUSE: Duration = Duration::from_millis(500);

/// After a change, so that several are one pass.
const SETTLE: Duration = Duration::from_millis(200);

/// Between looks at how full the disk is and what has become old.
const LOOK: Duration = Duration::from_secs(60);

/// How often it is written how old images have become, if nothing else is to be: a restart costs no more of their age.
const WRITE_EACH: Duration = Duration::from_secs(keeping::UNSEEN_MAX_S);

/// The part of the disk that stays free at most: of a small one less than what is configured.
const KEEP_FREE_PART: u64 = 20;

/// The file below the state directory that says which images there are, and since when nobody wants them.
const RECORD: &str = "images.json";

/// What should stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Nothing is removed before desired state is known.
    known: bool,
    revisions: BTreeSet<RevisionKey>,
    images: keeping::Wanted,
    instances: BTreeSet<InstanceId>,
    /// Images that are to be fetched ahead of need.
    pub(super) preload: BTreeMap<Digest, ImageReference>,
}

/// How long images stay, and what is known of them.
pub(super) struct Shelf {
    record: PathBuf,
    images: Mutex<Images>,
    /// Images that have become ready since they were looked at, the last one last, each after its configuration.
    ready: Mutex<Vec<(String, Digest)>>,
    /// When they were looked at, and when written.
    looked: Mutex<Looked>,
    unused_s: u64,
    /// Bytes of the disk under which it is short.
    mark: u64,
    /// Bytes that have to be free, as somebody found who lacked them.
    needed: Mutex<u64>,
    short: Arc<Notify>,
}

/// Moments of this agent; `None`: in none of its own.
#[derive(Clone, Copy, Debug, Default)]
struct Looked {
    at: Option<Instant>,
    written: Option<Instant>,
}

impl Wanted {
    pub(super) fn of(
        desired: &Desired,
        instances: &BTreeMap<InstanceId, RevisionKey>,
        is_ready: impl Fn(&RevisionKey) -> bool,
    ) -> Self {
        let named = |object: &_| image::reference(object).ok().map(|(_, digest)| digest);
        let mut images = keeping::Wanted::of(desired, named, |object| is_ready(&object.key()));
        let objects = desired.revisions.values();
        let preload: BTreeMap<_, _> = objects.flat_map(|(_, object)| preload::named(object)).collect();
        images.images.extend(preload.keys());
        Self {
            known: true,
            revisions: desired.revisions.keys().chain(instances.values()).cloned().collect(),
            images,
            instances: instances.keys().cloned().collect(),
            preload,
        }
    }
}

impl Shelf {
    /// As it was left; tells the store what it is to leave free.
    pub(super) fn open(tools: &Tools) -> Self {
        let record = tools.state_dir.join(RECORD);
        let images = match fs::read(&record) {
            Ok(bytes) => Images::decode(&bytes),
            Err(error) => {
                if error.kind() != ErrorKind::NotFound {
                    tracing::warn!(%error, record = %record.display(), "it is not known which images were wanted");
                }
                Images::default()
            }
        };
        let configured = tools.keeping.keep_free_mib.saturating_mul(1 << 20);
        let floor = tools.images.size().map_or(configured, |size| configured.min(size / KEEP_FREE_PART));
        tools.images.keep_free(floor);
        Self {
            record,
            images: Mutex::new(images),
            ready: Mutex::default(),
            looked: Mutex::default(),
            unused_s: tools.keeping.keep_unused_hours.saturating_mul(3600),
            mark: floor.saturating_mul(2),
            needed: Mutex::new(0),
            short: Arc::default(),
        }
    }

    /// A revision is ready here: its image is a way back from now on, even if it is not wanted in a moment.
    pub(super) fn note_ready(&self, object: &RevisionObject) {
        if let Ok((_, image)) = image::reference(object) {
            lock(&self.ready).push((keeping::configuration_of(object), image));
        }
    }

    /// Images as old as they are now.
    fn aged(&self) -> MutexGuard<'_, Images> {
        let mut images = lock(&self.images);
        let looked = &mut lock(&self.looked).at;
        let passed_s = looked.map(|at| at.elapsed().as_secs());
        images.pass(now_s(), passed_s);
        // The part of a second that did not count yet counts next time.
        *looked =
            Some(looked.map_or_else(Instant::now, |at| at + Duration::from_secs(passed_s.unwrap_or(0))));
        images
    }

    /// Whether it should be written how old images have become.
    fn is_stale(&self) -> bool {
        lock(&self.looked).written.is_none_or(|at| at.elapsed() >= WRITE_EACH)
    }

    /// Writes what is known of images.
    fn write(&self, images: &Images) {
        match write(&self.record, &images.encode()) {
            Ok(()) => lock(&self.looked).written = Some(Instant::now()),
            // What is in memory counts; after a restart images stay a little longer.
            Err(error) => tracing::warn!(%error, "cannot record which images are wanted"),
        }
    }

    /// Bytes that should be free.
    fn goal(&self) -> u64 {
        self.mark.max(*lock(&self.needed))
    }
}

/// Frees `needed` bytes, now if nothing is being prepared, else as soon as that is so. Whether anything was removed.
pub(super) async fn make_room(inner: &Arc<Inner>, needed: u64) -> bool {
    *lock(&inner.shelf.needed) = needed;
    let Ok(_alone) = inner.collecting.try_write() else {
        inner.shelf.short.notify_one();
        return false;
    };
    let wanted = inner.wanted.borrow().clone();
    wanted.known && collected(inner, wanted).await
}

/// The task; ends with the executor.
pub(super) async fn run(inner: Weak<Inner>, mut wanted: watch::Receiver<Wanted>) {
    let Some(short) = inner.upgrade().map(|inner| inner.shelf.short.clone()) else { return };
    loop {
        let looks = tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() { return }
                tokio::time::sleep(SETTLE).await;
                false
            }
            () = short.notified() => false,
            () = tokio::time::sleep(LOOK) => true,
        };
        loop {
            let Some(inner) = inner.upgrade() else { return };
            if looks && !is_due(&inner, &wanted.borrow()) {
                break;
            }
            // Waiting for the lock would keep new images from being prepared behind a slow one.
            let Ok(_alone) = inner.collecting.try_write() else {
                drop(inner);
                tokio::time::sleep(BUSY_PAUSE).await;
                continue;
            };
            let wanted = wanted.borrow_and_update().clone();
            if wanted.known {
                collected(&inner, wanted).await;
            }
            break;
        }
    }
}

/// Whether something has become old, which is to be written at least, or room is short that could be had.
fn is_due(inner: &Inner, wanted: &Wanted) -> bool {
    let shelf = &inner.shelf;
    let loose = shelf.aged().loose(&wanted.images);
    let is_short = inner.tools.images.free().is_ok_and(|free| free < shelf.mark);
    let is_old = |(_, age): &(Digest, u64)| *age >= shelf.unused_s || shelf.is_stale();
    wanted.known && (is_short || loose.first().is_some_and(is_old))
}

async fn collected(inner: &Arc<Inner>, wanted: Wanted) -> bool {
    let inner = inner.clone();
    // A panic in there is logged by its own hook; the next pass is another chance.
    tokio::task::spawn_blocking(move || collect(&inner, &wanted)).await.unwrap_or(false)
}

/// Whether any image was removed.
fn collect(inner: &Arc<Inner>, wanted: &Wanted) -> bool {
    remove_bundles(inner, wanted);
    remove_logs(inner, wanted, false);
    let in_use = lock(&inner.in_use).clone();
    let mut needs = wanted.images.clone();
    needs.images.extend(in_use.values().filter_map(|used| used.image));
    let shelf = &inner.shelf;
    let (store, goal) = (&inner.tools.images, shelf.goal());
    let mut images = shelf.aged();
    let mut is_changed = false;
    for (configuration, image) in std::mem::take(&mut *lock(&shelf.ready)) {
        is_changed |= images.note_ready(&configuration, image);
    }
    is_changed |= images.note(&needs);
    let pinned = images.pinned(&needs);
    let loose = images.loose(&needs);
    let old = loose.partition_point(|(_, age)| *age >= shelf.unused_s);
    let is_short = || store.free().is_ok_and(|free| free < goal);

    let mut first = old;
    let mut removed = retain(inner, &pinned, &loose[first..]);
    if is_short() {
        remove_logs(inner, wanted, true);
    }
    while first < loose.len() && is_short() {
        first += 1;
        removed |= retain(inner, &pinned, &loose[first..]);
    }
    for (image, _) in &loose[..first] {
        images.forget(image);
        is_changed = true;
    }
    *lock(&shelf.needed) = 0;
    if is_changed || (first < loose.len() && shelf.is_stale()) {
        shelf.write(&images);
    }
    removed
}

fn remove_logs(inner: &Inner, wanted: &Wanted, short: bool) {
    let in_use = lock(&inner.in_use).clone();
    let keeps = |key: &RevisionKey| {
        wanted.revisions.contains(key) || in_use.values().any(|used| used.revision == *key)
    };
    let lives = |id: &InstanceId| wanted.instances.contains(id) || in_use.contains_key(id);
    if let Err(error) = log_files::collect(&inner.tools.state_dir, keeps, lives, short) {
        tracing::warn!(%error, "cannot remove old logs");
    }
}

/// Removes every image but these. Whether there was any.
fn retain(inner: &Inner, pinned: &BTreeSet<Digest>, loose: &[(Digest, u64)]) -> bool {
    let mut keep = Keep::default();
    for digest in pinned.iter().chain(loose.iter().map(|(image, _)| image)) {
        keep_image(&inner.tools.images, digest, &inner.platform, &mut keep);
    }
    let brought = inner.tools.pins.all();
    keep.blobs.extend(&brought);
    keep.layers.extend(brought);
    match inner.tools.images.retain(&keep) {
        Ok(removed) if removed.bytes > 0 => {
            tracing::info!(?removed, "removed images nobody wants");
            true
        }
        Ok(_) => false,
        Err(error) => {
            tracing::warn!(%error, "cannot remove images nobody wants");
            false
        }
    }
}

/// Replaces a file as a whole.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let fresh = path.with_extension("new");
    let written = fs::File::create(&fresh).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    if let Err(error) = written.and_then(|()| fs::rename(&fresh, path)) {
        let _ = fs::remove_file(&fresh);
        return Err(error);
    }
    Ok(())
}

fn remove_bundles(inner: &Inner, wanted: &Wanted) {
    // Listed before it is looked who uses them: one made meanwhile is not in the list.
    let Ok(entries) = fs::read_dir(inner.tools.run_dir.join("bundles")) else { return };
    let bundles: Vec<_> = entries.flatten().collect();
    let in_use = lock(&inner.in_use).clone();
    for bundle in bundles {
        let id = InstanceId(bundle.file_name().to_string_lossy().into_owned());
        if !wanted.instances.contains(&id) && !in_use.contains_key(&id) {
            let _ = fs::remove_dir_all(bundle.path());
        }
    }
}

/// Adds what there is of an image, complete or not: what was fetched of it need not be fetched again.
fn keep_image(store: &Store, digest: &Digest, platform: &Platform, keep: &mut Keep) {
    if let Ok(Some(summary)) = summary(store, digest, platform) {
        keep.blobs.extend(summary.blobs);
        keep.layers.extend(summary.diff_ids);
        return;
    }
    let mut next = Some(*digest);
    while let Some(digest) = next.take() {
        // Named before it is read: a download of it may be under way.
        if !keep.blobs.insert(digest) {
            return;
        }
        let Ok(content) = store.read_blob(&digest, MAX_DOCUMENT) else { return };
        match Document::parse(&digest, &content) {
            Ok(Document::Index(entries)) => {
                next = choose(&entries, platform).ok().map(|entry| entry.manifest.digest)
            }
            Ok(Document::Manifest(manifest)) => {
                keep.blobs.insert(manifest.config.digest);
                keep.blobs.extend(manifest.layers.iter().map(|layer| layer.digest));
                let config = store.read_blob(&manifest.config.digest, MAX_DOCUMENT).ok();
                let config = config.and_then(|content| Config::parse(&manifest.config.digest, &content).ok());
                keep.layers.extend(config.into_iter().flat_map(|config| config.diff_ids));
            }
            Err(_) => {}
        }
    }
}
