//! The dynamic linker's cache (`/etc/ld.so.cache`, glibc's format 1.1): where libraries are. Pure; knows no library.

use std::path::PathBuf;

const NEW: &[u8] = b"glibc-ld.so.cache1.1";

/// The format before it, which may stand in front, and the sizes of its head and entries.
const OLD: &[u8] = b"ld.so-1.7.0";
const OLD_HEAD: usize = 16;
const OLD_ENTRY: usize = 12;

const HEAD: usize = 48;
const ENTRY: usize = 24;

/// The byte of an entry's flags that says for which machine it is, for this one.
const MACHINE: u32 = if cfg!(target_arch = "x86_64") {
    0x03
} else if cfg!(target_arch = "aarch64") {
    0x0a
} else {
    0
};

/// Paths of the libraries of this machine's kind that are called `name`, such as `libcuda.so.1`. What is no cache has none.
pub(crate) fn find(cache: &[u8], name: &str) -> Vec<PathBuf> {
    find_in(cache, name).unwrap_or_default()
}

fn find_in(cache: &[u8], name: &str) -> Option<Vec<PathBuf>> {
    let start = if cache.starts_with(OLD) {
        let end = OLD_HEAD + number(cache, OLD_HEAD - 4)? * OLD_ENTRY;
        end.next_multiple_of(8)
    } else {
        0
    };
    let cache = cache.get(start..)?;
    if !cache.starts_with(NEW) {
        return None;
    }
    let count = number(cache, NEW.len())?;
    let mut found = Vec::new();
    for entry in 0..count {
        let at = HEAD + entry * ENTRY;
        let flags = u32::try_from(number(cache, at)?).ok()?;
        if (flags >> 8) & 0xff == MACHINE && text(cache, number(cache, at + 4)?)? == name {
            found.push(PathBuf::from(text(cache, number(cache, at + 8)?)?));
        }
    }
    Some(found)
}

/// Numbers have the machine's own order of bytes: the cache is made on it.
fn number(cache: &[u8], at: usize) -> Option<usize> {
    let bytes = cache.get(at..at.checked_add(4)?)?;
    usize::try_from(u32::from_ne_bytes(bytes.try_into().ok()?)).ok()
}

fn text(cache: &[u8], at: usize) -> Option<&str> {
    let bytes = cache.get(at..)?;
    let end = bytes.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&bytes[..end]).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A cache with these names and paths.
    pub(crate) fn cache(entries: &[(u32, &str, &str)]) -> Vec<u8> {
        let mut strings = Vec::new();
        let mut table = Vec::new();
        let start = HEAD + entries.len() * ENTRY;
        for (machine, name, path) in entries {
            let mut place = |text: &str| {
                let at = u32::try_from(start + strings.len()).unwrap();
                strings.extend_from_slice(text.as_bytes());
                strings.push(0);
                at
            };
            for number in [machine << 8 | 3, place(name), place(path), 0, 0, 0] {
                table.extend_from_slice(&u32::to_ne_bytes(number));
            }
        }
        let mut all = NEW.to_vec();
        all.extend_from_slice(&u32::try_from(entries.len()).unwrap().to_ne_bytes());
        all.extend_from_slice(&u32::try_from(strings.len()).unwrap().to_ne_bytes());
        all.resize(HEAD, 0);
        all.extend(table);
        all.extend(strings);
        all
    }

    #[test]
    fn libraries_of_this_machine_are_found() {
        let cache = cache(&[
            (MACHINE, "libcuda.so.1", "/usr/lib64/libcuda.so.1"),
            (MACHINE + 1, "libcuda.so.1", "/usr/lib/libcuda.so.1"),
            (MACHINE, "libcuda.so", "/usr/lib64/libcuda.so"),
        ]);
        assert_eq!(find(&cache, "libcuda.so.1"), [PathBuf::from("/usr/lib64/libcuda.so.1")]);
        assert!(find(&cache, "libc.so.6").is_empty());
        let mut both = OLD.to_vec();
        both.push(0);
        both.extend_from_slice(&1_u32.to_ne_bytes());
        both.resize(32, 0);
        both.extend(cache);
        assert_eq!(find(&both, "libcuda.so.1").len(), 1);
    }

    #[test]
    fn the_cache_of_this_machine_names_its_c_library() {
        let Ok(cache) = std::fs::read("/etc/ld.so.cache") else {
            eprintln!("SKIPPED: no glibc on this machine");
            return;
        };
        assert!(!find(&cache, "libc.so.6").is_empty());
    }

    proptest! {
        #[test]
        fn what_is_no_cache_has_no_libraries(tail in prop::collection::vec(any::<u8>(), 0..200), old in any::<bool>()) {
            let mut bytes = if old { OLD.to_vec() } else { NEW.to_vec() };
            bytes.extend(tail);
            find(&bytes, "libcuda.so.1");
        }
    }
}
