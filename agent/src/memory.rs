//! What the process's start-up touched and nothing needs afterwards. Must not know the agent.

use std::fs;
use std::os::raw::c_void;

/// Unmaps the pages of this program's own code, most of which only start-up ran: those that are needed come back from the
/// page cache at a touch, the rest is memory that the kernel can have. Returns the bytes of code.
pub fn unmap_code() -> std::io::Result<usize> {
    let program = fs::read_link("/proc/self/exe")?.display().to_string();
    let mut bytes = 0;
    for line in fs::read_to_string("/proc/self/maps")?.lines() {
        let mut fields = line.split_whitespace();
        let (Some(range), Some(permissions)) = (fields.next(), fields.next()) else { continue };
        // Code only: pages that were written to, relocated data among them, exist nowhere else.
        if permissions != "r-xp" || !line.ends_with(&program) {
            continue;
        }
        let bounds = range
            .split_once('-')
            .map(|(start, end)| (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16)));
        if let Some((Ok(start), Ok(end))) = bounds {
            unmap(start, end - start)?;
            bytes += end - start;
        }
    }
    Ok(bytes)
}

#[allow(unsafe_code)]
fn unmap(start: usize, length: usize) -> std::io::Result<()> {
    // SAFETY: the range is a mapping of this process that the kernel named a moment ago, of a file, never written to: its
    // pages read the same after they have been dropped. Code is never unmapped in this process.
    let result = unsafe { libc::madvise(start as *mut c_void, length, libc::MADV_DONTNEED) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_goes_on_without_its_pages() {
        let bytes = unmap_code().unwrap();
        assert!(bytes > 100_000, "{bytes}");
        // Code that has to come back first.
        let text = format!("{:?}", std::collections::BTreeMap::from([("a", 1.5)]));
        assert_eq!(text, "{\"a\": 1.5}");
    }
}
