//! Memory that the process holds and does not need. Must not know the agent.

use std::fs;
use std::io;
use std::os::raw::{c_int, c_void};

/// Arenas of the allocator at most: one for each of the router's threads, which are the busy ones.
const ARENAS_MAX: usize = 8;

/// Has all threads allocate from as many arenas as there are cores for them to run on. glibc's own limit is eight times that, and
/// what is free in one arena is of no use to the others. To be called before any other thread is started.
#[allow(unsafe_code)]
pub fn limit_arenas() {
    let arenas = std::thread::available_parallelism().map_or(1, usize::from).min(ARENAS_MAX);
    // SAFETY: sets a number inside the allocator, under its own lock.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, arenas as c_int) };
}

/// Gives back what the allocator holds free, whole pages of it.
#[allow(unsafe_code)]
pub fn trim() {
    // SAFETY: returns free pages to the kernel, one arena at a time under its lock; no allocation is touched.
    unsafe { libc::malloc_trim(0) };
}

/// Unmaps the pages of this program's own file, most of which only a burst of work touched: those that are needed come back
/// from the page cache at a touch, the rest is memory that the kernel can have. Returns the bytes of the ranges.
pub fn unmap_program() -> io::Result<usize> {
    let program = fs::read_link("/proc/self/exe")?.display().to_string();
    let mut bytes = 0;
    for (start, length) in unwritten(&fs::read_to_string("/proc/self/smaps")?, &program) {
        unmap(start, length)?;
        bytes += length;
    }
    Ok(bytes)
}

/// Start and length of the mappings of `program` that nobody can write and nobody has written. Relocated data is read-only too,
/// and exists nowhere else.
fn unwritten(smaps: &str, program: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        if let Some(anonymous) = line.strip_prefix("Anonymous:") {
            found.extend(candidate.take().filter(|_| anonymous.trim() == "0 kB"));
        } else if let Some((range, permissions)) = mapping(line) {
            let own = line.ends_with(program) && matches!(permissions, "r-xp" | "r--p");
            candidate = own.then_some(range);
        }
    }
    found
}

/// A mapping's first line, `START-END PERMISSIONS ...`: its start and length, and the permissions.
fn mapping(line: &str) -> Option<((usize, usize), &str)> {
    let mut fields = line.split(' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    Some(((start, end - start), fields.next()?))
}

#[allow(unsafe_code)]
fn unmap(start: usize, length: usize) -> io::Result<()> {
    // SAFETY: the range is a mapping of this process that the kernel named a moment ago, of a file, never written to: its
    // pages read the same after they have been dropped. The program's file is never unmapped in this process.
    let result = unsafe { libc::madvise(start as *mut c_void, length, libc::MADV_DONTNEED) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_goes_on_without_its_pages() {
        let bytes = unmap_program().unwrap();
        assert!(bytes > 100_000, "{bytes}");
        // Code, and data that was relocated, have to be there still.
        let text = format!("{:?}", std::collections::BTreeMap::from([("a", 1.5)]));
        assert_eq!(text, "{\"a\": 1.5}");
    }

    #[test]
    fn only_what_nobody_wrote_is_unmapped() {
        let smaps = "\
            1000-3000 r--p 00000000 fe:00 7   /bin/agent\nRss: 8 kB\nAnonymous:             0 kB\nVmFlags: rd\n\
            3000-4000 r-xp 00002000 fe:00 7   /bin/agent\nAnonymous:             0 kB\n\
            4000-5000 r--p 00003000 fe:00 7   /bin/agent\nAnonymous:             4 kB\n\
            5000-6000 rw-p 00004000 fe:00 7   /bin/agent\nAnonymous:             0 kB\n\
            6000-7000 rw-p 00000000 00:00 0   [heap]\nAnonymous:             0 kB\n\
            7000-8000 r-xp 00000000 fe:00 8   /lib/libc.so.6\nAnonymous:             0 kB\n";
        assert_eq!(unwritten(smaps, "/bin/agent"), [(0x1000, 0x2000), (0x3000, 0x1000)]);
    }

    #[test]
    fn freed_memory_between_what_is_held_goes_back() {
        let mut blocks: Vec<_> = (0..64 * 1024).map(|_| Some(vec![1u8; 1000])).collect();
        let held = |(number, block): (usize, &mut Option<Vec<u8>>)| {
            if number % 64 != 0 {
                *block = None;
            }
        };
        blocks.iter_mut().enumerate().for_each(held);
        let before = resident_bytes();
        trim();
        let after = resident_bytes();
        assert!(after + (32 << 20) < before, "{before} {after}");
        drop(blocks);
    }

    fn resident_bytes() -> usize {
        let statm = fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }
}
