//! Lists of known content, layers put together from edited ones, and registries that lie.

use std::io::Write as _;
use std::os::unix::fs::FileExt as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use tombolo_api::Digest;

use super::*;
use crate::layer::Limits;
use crate::store::Store;

/// Content without repetitions; the same for the same seed, for ever.
fn noise(seed: u32, length: usize) -> Vec<u8> {
    let mut state = seed;
    let bytes = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    bytes.take(length).collect()
}

fn list_of(content: &[u8]) -> ChunkList {
    ChunkList::of(std::io::Cursor::new(content.to_vec()), &Limits::default()).unwrap()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

/// What a registry sends for a selection.
fn sent(blob: &[u8], list: &ChunkList, selection: &Selection) -> Vec<u8> {
    let mut out = Vec::new();
    write_selected(std::io::Cursor::new(blob.to_vec()), list, selection, &mut out).unwrap();
    out
}

/// Puts `new` together in `store`, which has `old`; bytes that came.
fn rebuild(store: &Store, old: &[u8], new: &[u8]) -> usize {
    let base = store.put(old).unwrap();
    let blob = new.to_vec();
    let list = list_of(&blob);
    assert_eq!(list.diff_id(), Digest::of(new));
    let list = ChunkList::decode(&list.encode()).unwrap();
    let mut rebuilding = Rebuilding::begin(store, list.clone()).unwrap();
    rebuilding.search(&base).unwrap();
    let mut came = 0;
    while let Some(selection) = rebuilding.selection() {
        let selection = Selection::decode(&selection.encode(), list.len()).unwrap();
        let answer = sent(&blob, &list, &selection);
        came += answer.len();
        let mut arriving = Arriving::new(&selection);
        answer.chunks(777).for_each(|piece| arriving.take(piece, &mut rebuilding).unwrap());
        assert!(arriving.is_complete());
    }
    assert_eq!(rebuilding.missing(), 0);
    rebuilding.finish().unwrap();
    assert_eq!(std::fs::read(store.blob_path(&Digest::of(new))).unwrap(), new);
    assert_eq!(std::fs::read_dir(store.root().join("deltas")).unwrap().count(), 0);
    came
}

/// The cuts, the list's bytes and a selection's are a format between versions: when one of these numbers changes, the list needs another
/// name.
#[test]
fn the_format_is_what_it_was() {
    let list = list_of(&noise(1, 1_000_000));
    let lengths: Vec<u32> = list.lengths().collect();
    let begins = [9_837, 38_600, 19_568, 43_710, 70_420, 29_369, 56_213];
    assert_eq!(lengths[..begins.len()], begins, "{lengths:?}");
    let encoded = list.encode();
    assert_eq!(&encoded[..8], b"TMBLCHK1");
    assert_eq!(encoded.len(), 52 + 15 * lengths.len() + 32);
    let expected = "sha256:862a8d7d208167ab87c605f64a91aa715138d52120b055d63575ef3e3bfa8b00";
    assert_eq!(Digest::of(&encoded).to_string(), expected);
    let selection = Selection::of([0, 1, 2, 9, 500, 501, 70_000].into_iter()).unwrap();
    assert_eq!(selection.encode(), [0, 3, 6, 1, 0xea, 3, 2, 0xfa, 0x9e, 4, 1]);
}

#[test]
fn cuts_depend_on_content_alone() {
    struct Dribble(Vec<u8>, usize);
    impl std::io::Read for Dribble {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let count = (self.0.len() - self.1).min(buffer.len()).min(1 + self.1 % 4099);
            buffer[..count].copy_from_slice(&self.0[self.1..self.1 + count]);
            self.1 += count;
            Ok(count)
        }
    }
    let content = noise(2, 700_001);
    let dribbled = ChunkList::of(Dribble(content.clone(), 0), &Limits::default()).unwrap();
    assert_eq!(dribbled, list_of(&content));
    assert_eq!(dribbled, list_of(&gzip(&content)));
    let mut chunks = Chunks::new(&content[..]);
    let mut whole = Vec::new();
    while let Some(chunk) = chunks.next_chunk().unwrap() {
        assert!(chunk.len() <= chunks::MAX);
        whole.extend_from_slice(chunk);
    }
    assert_eq!(whole, content);
    assert!(list_of(&[]).is_empty());
}

#[test]
fn a_line_more_costs_a_chunk_or_two() {
    let (_dir, store) = store();
    let old = noise(3, 4_000_000);
    let mut new = old.clone();
    new.splice(2_000_000..2_000_000, *b"one line more\n");
    let came = rebuild(&store, &old, &new);
    assert!(came < 200_000, "{came} bytes came");
    // Without a change nothing has to come at all.
    let (_dir, store) = self::store();
    assert_eq!(rebuild(&store, &old, &old), 0);
}

/// A layer of one repeated chunk is asked for it once, and put together in no time.
#[test]
fn equal_chunks_come_once() {
    let (_dir, store) = store();
    let mut new = vec![0; 40 * chunks::MAX];
    new.extend(noise(4, 100_000));
    let came = rebuild(&store, &noise(5, 300_000), &new);
    assert!(came < 130_000, "{came} bytes came");
}

/// One change of a layer.
#[derive(Clone, Debug)]
enum Edit {
    Insert(usize, u32, usize),
    Delete(usize, usize),
    Move(usize, usize, usize),
    Replace(usize, u8),
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        (any::<usize>(), any::<u32>(), 0..90_000usize)
            .prop_map(|(at, seed, len)| Edit::Insert(at, seed, len)),
        (any::<usize>(), 0..200_000usize).prop_map(|(at, len)| Edit::Delete(at, len)),
        (any::<usize>(), 0..200_000usize, any::<usize>())
            .prop_map(|(from, len, to)| Edit::Move(from, len, to)),
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Edit::Replace(at, byte)),
    ]
}

fn apply(content: &mut Vec<u8>, edit: &Edit) {
    let place = |at: usize, content: &[u8]| at % (content.len() + 1);
    match *edit {
        Edit::Insert(at, seed, length) => {
            let at = place(at, content);
            content.splice(at..at, noise(seed, length));
        }
        Edit::Delete(at, length) => {
            let at = place(at, content);
            content.drain(at..content.len().min(at + length));
        }
        Edit::Move(from, length, to) => {
            let from = place(from, content);
            let moved: Vec<u8> = content.drain(from..content.len().min(from + length)).collect();
            let to = place(to, content);
            content.splice(to..to, moved);
        }
        Edit::Replace(at, byte) => {
            let at = place(at, content);
            content.get_mut(at).into_iter().for_each(|old| *old = byte);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn what_is_put_together_is_what_it_was(seed: u32, length in 0..900_000usize, edits in prop::collection::vec(edit(), 0..5)) {
        let (_dir, store) = store();
        let old = noise(seed, length);
        let mut new = old.clone();
        edits.iter().for_each(|edit| apply(&mut new, edit));
        rebuild(&store, &old, &new);
    }

    #[test]
    fn selections_survive_their_encoding(chosen in prop::collection::btree_set(0..100_000u32, 1..300)) {
        let selection = Selection::of(chosen.iter().copied()).unwrap();
        prop_assert_eq!(selection.indices().collect::<Vec<_>>(), chosen.iter().copied().collect::<Vec<_>>());
        prop_assert_eq!(Selection::decode(&selection.encode(), 100_000).unwrap(), selection);
    }

    /// Whatever bytes come, reading them ends in a list or a refusal.
    #[test]
    fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..400), count in 0..70_000usize) {
        let _ = Selection::decode(&bytes, count);
        let _ = ChunkList::decode(&bytes);
        let mut list = b"TMBLCHK1".to_vec();
        list.extend(bytes);
        let _ = ChunkList::decode(&list);
    }
}

/// A list with something changed and its own sum made right again.
fn forged(encoded: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = encoded[..encoded.len() - 32].to_vec();
    change(&mut bytes);
    let sum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&sum);
    bytes
}

#[test]
fn lists_that_lie_are_refused() {
    let encoded = list_of(&noise(6, 300_000)).encode();
    let refusal = |bytes: &[u8]| ChunkList::decode(bytes).unwrap_err();
    assert_eq!(refusal(b""), ListError::Format);
    assert_eq!(refusal(&encoded[..40]), ListError::Format);
    assert_eq!(refusal(&forged(&encoded, |bytes| bytes[7] = b'2')), ListError::Format);
    assert!(matches!(refusal(&encoded[..encoded.len() - 1]), ListError::Length { .. }));
    assert!(matches!(refusal(&forged(&encoded, |bytes| bytes[48] ^= 1)), ListError::Length { .. }));
    assert_eq!(refusal(&forged(&encoded, |bytes| bytes[48..52].fill(0xff))), ListError::TooMany);
    let mut damaged = encoded.clone();
    damaged[60] ^= 1;
    assert_eq!(refusal(&damaged), ListError::Damaged);
    assert!(matches!(refusal(&forged(&encoded, |bytes| bytes[40] ^= 1)), ListError::Size { .. }));
    assert_eq!(refusal(&forged(&encoded, |bytes| bytes[52..55].fill(0))), ListError::Chunk(0));
    assert_eq!(refusal(&forged(&encoded, |bytes| bytes[52..55].fill(0xff))), ListError::Chunk(0xff_ffff));
}

#[test]
fn selections_that_lie_are_refused() {
    let refusal = |bytes: &[u8]| Selection::decode(bytes, 10).unwrap_err();
    assert_eq!(refusal(&[]), SelectionError::Empty);
    assert_eq!(refusal(&[1]), SelectionError::Truncated);
    assert_eq!(refusal(&[0x81]), SelectionError::Truncated);
    assert_eq!(refusal(&[0, 11]), SelectionError::Beyond);
    assert_eq!(refusal(&[0xff, 0xff, 0xff, 0xff]), SelectionError::Beyond);
    assert_eq!(refusal(&[3, 0]), SelectionError::Runs);
    assert_eq!(refusal(&[0, 1, 0, 1]), SelectionError::Runs);
    let many: Vec<u8> = std::iter::repeat_n([1, 1], 5000).flatten().collect();
    assert_eq!(Selection::decode(&many, 20_000).unwrap_err(), SelectionError::Runs);
    // Every second one of a long list: one request after the other, each within its bound.
    let first = Selection::of((0..200_000).step_by(2)).unwrap();
    assert_eq!(first.indices().count(), 4096);
    assert!(first.encode().len() <= MAX_SELECTION);
}

/// Chunks of another content, more than asked for, no gzip, and a bomb.
#[test]
fn chunks_that_lie_are_refused() {
    let (_dir, store) = store();
    let new = noise(7, 500_000);
    let list = list_of(&new);
    let mut rebuilding = Rebuilding::begin(&store, list.clone()).unwrap();
    let selection = rebuilding.selection().unwrap();
    let honest = sent(&new, &list, &selection);
    let mut take = |bytes: &[u8]| Arriving::new(&selection).take(bytes, &mut rebuilding);
    assert!(matches!(take(b"not gzip at all"), Err(RebuildError::Compression(_))));
    assert!(matches!(take(&gzip(&noise(8, 500_000))), Err(RebuildError::Chunk)));
    assert!(matches!(take(&gzip(&vec![0; 16 << 20])), Err(RebuildError::Chunk)));
    let mut surplus = new.clone();
    surplus.extend([0; 5000]);
    assert!(matches!(take(&gzip(&surplus)), Err(RebuildError::Surplus)));
    // What came before the lie was found is right all the same.
    assert_eq!(rebuilding.missing(), 0);
    assert!(honest.len() > 400_000);
    rebuilding.finish().unwrap();
}

/// The list names chunks that are not the layer it says: the whole is thrown away.
#[test]
fn a_wrong_whole_never_becomes_a_blob() {
    let (_dir, store) = store();
    let content = noise(9, 300_000);
    let other = Digest::of(b"other");
    let encoded = forged(&list_of(&content).encode(), |bytes| bytes[8..40].copy_from_slice(other.as_bytes()));
    let list = ChunkList::decode(&encoded).unwrap();
    assert_eq!(list.diff_id(), other);
    let mut rebuilding = Rebuilding::begin(&store, list).unwrap();
    let base = store.put(&content).unwrap();
    rebuilding.search(&base).unwrap();
    assert_eq!(rebuilding.missing(), 0);
    assert!(rebuilding.finish().is_err());
    assert!(!store.contains(&other));
    assert!(Rebuilding::resume(&store, &other).unwrap().is_none());
}

/// Killed between two chunks: what was written is found by its digests, what was half written is not taken.
#[test]
fn goes_on_where_it_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let new = noise(10, 1_000_000);
    let blob = gzip(&new);
    let list = list_of(&blob);
    let diff_id = list.diff_id();
    {
        let store = Store::open(dir.path()).unwrap();
        let mut rebuilding = Rebuilding::begin(&store, list.clone()).unwrap();
        let selection = rebuilding.selection().unwrap();
        let answer = sent(&blob, &list, &selection);
        let mut arriving = Arriving::new(&selection);
        arriving.take(&answer[..answer.len() / 2], &mut rebuilding).unwrap();
        assert!(!arriving.is_complete());
    }
    let store = Store::open(dir.path()).unwrap();
    let rebuilding = Rebuilding::resume(&store, &diff_id).unwrap().unwrap();
    let missing = rebuilding.missing();
    assert!((300_000..700_000).contains(&missing), "{missing}");
    let selection = rebuilding.selection().unwrap();
    let wanted: u64 =
        selection.indices().map(|index| u64::from(list.lengths().nth(index as usize).unwrap())).sum();
    assert_eq!(wanted, missing, "nothing twice");
    drop(rebuilding);
    // A power cut took what was written last.
    let content =
        std::fs::OpenOptions::new().write(true).open(dir.path().join("deltas").join(diff_id.hex())).unwrap();
    content.write_all_at(&[0; 10], 5000).unwrap();
    let mut rebuilding = Rebuilding::resume(&store, &diff_id).unwrap().unwrap();
    assert!(rebuilding.missing() > missing);
    let selection = rebuilding.selection().unwrap();
    Arriving::new(&selection).take(&sent(&blob, &list, &selection), &mut rebuilding).unwrap();
    rebuilding.finish().unwrap();
    assert!(store.verify(&diff_id).unwrap());
    assert!(Rebuilding::resume(&store, &diff_id).unwrap().is_none());
}

#[test]
fn a_saved_list_of_another_format_is_forgotten() {
    let (_dir, store) = store();
    let list = list_of(&noise(11, 100_000));
    let diff_id = list.diff_id();
    drop(Rebuilding::begin(&store, list).unwrap());
    let path = store.root().join("deltas").join(diff_id.hex() + ".list");
    std::fs::write(&path, b"TMBLCHK9").unwrap();
    assert!(Rebuilding::resume(&store, &diff_id).unwrap().is_none());
    assert!(!path.exists());
}

/// A blob that no list is made of, before it has cost more than its limit.
#[test]
fn bombs_have_no_list() {
    let bomb = gzip(&vec![0; 10 << 20]);
    let limits = Limits { bytes: 1 << 20, ..Limits::default() };
    assert!(ChunkList::of(std::io::Cursor::new(bomb.clone()), &limits).is_err());
    let limits = Limits { ratio: 10, ratio_from: 1 << 20, ..Limits::default() };
    assert!(ChunkList::of(std::io::Cursor::new(bomb), &limits).is_err());
    let truncated = gzip(&noise(12, 100_000));
    let truncated = truncated[..truncated.len() / 2].to_vec();
    assert!(ChunkList::of(std::io::Cursor::new(truncated), &Limits::default()).is_err());
}

#[test]
fn what_nobody_wants_is_removed() {
    let (_dir, store) = store();
    let lists = [list_of(&noise(13, 50_000)), list_of(&noise(14, 50_000))];
    let ids = lists.each_ref().map(ChunkList::diff_id);
    lists.into_iter().for_each(|list| drop(Rebuilding::begin(&store, list).unwrap()));
    let kept = store.put(b"a layer that was put together").unwrap();
    let keep = crate::store::Keep { layers: [ids[0], kept].into(), ..Default::default() };
    store.retain(&keep).unwrap();
    assert!(store.contains(&kept));
    assert!(Rebuilding::resume(&store, &ids[0]).unwrap().is_some());
    assert!(Rebuilding::resume(&store, &ids[1]).unwrap().is_none());
    assert_eq!(std::fs::read_dir(store.root().join("deltas")).unwrap().count(), 2);
}
