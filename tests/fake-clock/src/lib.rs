//! Plays a machine whose clock is wrong, or is set while programs run: loaded before the C library (`LD_PRELOAD`), it adds to the
//! time of day the seconds that the file named by `FAKE_CLOCK` holds, read anew at every call. Clocks that only go forward are
//! left as they are, as by whoever sets a real clock.
//!
//! Must not know which program asks, nor what for.
#![allow(unsafe_code)]

use std::path::PathBuf;
use std::sync::OnceLock;

use libc::{CLOCK_REALTIME, CLOCK_REALTIME_COARSE, SYS_clock_gettime, c_int, clockid_t, time_t, timespec};

/// The variable that names the file.
const VARIABLE: &str = "FAKE_CLOCK";

/// What the kernel says, as clock_gettime(2), moved if it is the time of day.
///
/// # Safety
///
/// `now` points to a time that can be written, or to nothing that can, which the kernel refuses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: clockid_t, now: *mut timespec) -> c_int {
    // SAFETY: the kernel checks the pointer that the caller gives it.
    let result = unsafe { libc::syscall(SYS_clock_gettime, clock, now) };
    if result == 0 && matches!(clock, CLOCK_REALTIME | CLOCK_REALTIME_COARSE) {
        // SAFETY: the kernel has just written there, and the caller gave it for that.
        unsafe { (*now).tv_sec = (*now).tv_sec.saturating_add(offset_s()).max(0) };
    }
    if result == 0 { 0 } else { -1 }
}

/// Nothing while there is no file, or nothing in it that is a number.
fn offset_s() -> time_t {
    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let file = FILE.get_or_init(|| std::env::var_os(VARIABLE).map(PathBuf::from));
    let text = file.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}
