//! How values, the root record and the commit mark are laid out in bytes. Pure: no files, no engine.
//!
//! A value is stored as one schema byte, the payload, and the CRC-32 of both (little endian). The root record says what the
//! whole tree should look like: the number of the last commit, how many items there are, and the sum of their fingerprints,
//! so that items that vanished or went back to an older value are noticed. The commit mark is a file beside the engine's
//! that repeats the number of the last commit: it gives away a log that lost its end.

/// The layout of values described above.
const SCHEMA: u8 = 1;

/// The root record's key. User keys never begin with NUL.
pub(crate) const ROOT_KEY: &[u8] = b"\0root";

/// What a record holds beside its payload, bytes.
const OVERHEAD: usize = 5;

/// `payload` as it is stored.
pub(crate) fn seal(payload: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(payload.len() + OVERHEAD);
    record.push(SCHEMA);
    record.extend_from_slice(payload);
    record.extend_from_slice(&crc32fast::hash(&record).to_le_bytes());
    record
}

/// The payload of a stored record, or `None` if the record is damaged.
pub(crate) fn unseal(record: &[u8]) -> Option<&[u8]> {
    let (body, crc) = record.split_last_chunk::<4>()?;
    let (schema, payload) = body.split_first()?;
    (*schema == SCHEMA && crc32fast::hash(body) == u32::from_le_bytes(*crc)).then_some(payload)
}

/// What the whole tree should look like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Root {
    /// Commits since the store was made.
    pub(crate) commit: u64,
    pub(crate) items: u64,
    /// Wrapping sum of the fingerprints of all items.
    pub(crate) sum: u64,
}

impl Root {
    pub(crate) fn add(&mut self, key: &[u8], record: &[u8]) {
        self.items += 1;
        self.sum = self.sum.wrapping_add(fingerprint(key, record));
    }

    pub(crate) fn remove(&mut self, key: &[u8], record: &[u8]) {
        self.items -= 1;
        self.sum = self.sum.wrapping_sub(fingerprint(key, record));
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::with_capacity(24);
        for number in [self.commit, self.items, self.sum] {
            payload.extend_from_slice(&number.to_le_bytes());
        }
        seal(&payload)
    }

    pub(crate) fn decode(record: &[u8]) -> Option<Self> {
        let payload: &[u8; 24] = unseal(record)?.try_into().ok()?;
        let number = |at: usize| u64::from_le_bytes(payload[at..at + 8].try_into().expect("eight bytes"));
        Some(Self { commit: number(0), items: number(8), sum: number(16) })
    }
}

/// Depends on the key and on the whole record. Only accidents are guarded against, so a mixed CRC is enough.
fn fingerprint(key: &[u8], record: &[u8]) -> u64 {
    let mut mixed = u64::from(crc32fast::hash(key)) << 32 | u64::from(crc32fast::hash(record));
    mixed = mixed.wrapping_add(record.len() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed ^ (mixed >> 27)
}

/// The content of the commit mark's file.
pub(crate) fn encode_mark(commit: u64) -> Vec<u8> {
    seal(&commit.to_le_bytes())
}

/// The commit a mark names; `None` if the mark is torn, which is no damage.
pub(crate) fn decode_mark(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(unseal(bytes)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_read_back_and_damage_shows() {
        let record = seal(b"payload");
        assert_eq!(unseal(&record), Some(&b"payload"[..]));
        assert_eq!(unseal(&seal(b"")), Some(&b""[..]));
        for at in 0..record.len() {
            let mut damaged = record.clone();
            damaged[at] ^= 1;
            assert_eq!(unseal(&damaged), None, "byte {at}");
            assert_eq!(unseal(&record[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn the_layout_is_stable() {
        assert_eq!(seal(b"a"), [1, b'a', 0x70, 0x72, 0x77, 0x62]);
        let root = Root { commit: 1, items: 2, sum: 3 };
        assert_eq!(Root::decode(&root.encode()), Some(root));
        assert_eq!(decode_mark(&encode_mark(7)), Some(7));
    }

    #[test]
    fn the_sum_forgets_order_but_not_content() {
        let (mut one, mut other) = (Root::default(), Root::default());
        one.add(b"a", b"1");
        one.add(b"b", b"2");
        other.add(b"b", b"2");
        other.add(b"a", b"1");
        assert_eq!(one, other);
        let mut swapped = Root::default();
        swapped.add(b"a", b"2");
        swapped.add(b"b", b"1");
        assert_ne!(one, swapped);
        one.remove(b"a", b"1");
        one.remove(b"b", b"2");
        assert_eq!(one, Root::default());
    }
}
