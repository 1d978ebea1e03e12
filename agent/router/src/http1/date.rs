//! The `Date` of answers (RFC 9110, 6.6.1), written once a second on each thread.
//!
//! It must not know answers.

use std::cell::Cell;
use std::time::{SystemTime, UNIX_EPOCH};

/// `Sun, 06 Nov 1994 08:49:37 GMT`.
const LENGTH: usize = 29;

thread_local! {
    static WRITTEN: Cell<(u64, [u8; LENGTH])> = const { Cell::new((u64::MAX, [0; LENGTH])) };
}

/// Write what time it is.
pub(super) fn put(out: &mut Vec<u8>) {
    let now = SystemTime::now();
    // A clock before 1970 is wrong anyway.
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (at, mut text) = WRITTEN.get();
    if at != second {
        let written = httpdate::fmt_http_date(UNIX_EPOCH + std::time::Duration::from_secs(second));
        if let Ok(fresh) = written.as_bytes().try_into() {
            text = fresh;
            WRITTEN.set((second, text));
        }
    }
    out.extend_from_slice(&text);
}
