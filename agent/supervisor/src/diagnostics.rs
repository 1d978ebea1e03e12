//! The supervisor's own messages, one line each on standard error.
//!
//! A subscriber of its own instead of `tracing-subscriber`, because it must fall silent in forked workers: there
//! standard error is about to become the container's, and the container runtime reports by its results. What those leave out,
//! a worker can have [witnessed](Witness).

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use time::OffsetDateTime;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

static SILENT: AtomicBool = AtomicBool::new(false);

/// Where what the container runtime says of errors goes in a worker; negative: nowhere.
static WITNESS: AtomicI32 = AtomicI32::new(-1);

/// Longest that is kept of what it says at once, bytes.
const HEARD_MAX: usize = 1024;

/// The container runtime's own targets.
const RUNTIME: &str = "libcontainer";

/// Writes what this crate reports from now on.
pub(crate) fn start() {
    // Fails when a test has set another one, which then gets the events.
    let _ = tracing::subscriber::set_global_default(Lines);
}

/// Says nothing more in this process: it is a forked worker.
pub(crate) fn silence() {
    SILENT.store(true, Ordering::Relaxed);
}

/// Keeps what the container runtime says of errors in this process and in those that it forks.
pub(crate) struct Witness {
    heard: OwnedFd,
    /// Written to by its number.
    _told: OwnedFd,
}

impl Witness {
    pub(crate) fn begin() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (heard, told) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        WITNESS.store(told.as_raw_fd(), Ordering::Relaxed);
        Ok(Self { heard, _told: told })
    }

    /// The next that was said, if there is more.
    pub(crate) fn next(&self) -> Option<String> {
        let mut buffer = [0; HEARD_MAX];
        let length = recv(self.heard.as_raw_fd(), &mut buffer, MsgFlags::empty()).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        WITNESS.store(-1, Ordering::Relaxed);
    }
}

fn bear_witness(event: &Event<'_>) {
    let witness = WITNESS.load(Ordering::Relaxed);
    if witness >= 0 && *event.metadata().level() == Level::ERROR {
        let mut line = Line { message: String::new(), fields: String::new() };
        event.record(&mut line);
        let text = format!("{}{}", line.message, line.fields);
        // What does not fit was not the first that went wrong.
        let _ = send(witness, &text.as_bytes()[..text.len().min(HEARD_MAX)], MsgFlags::MSG_NOSIGNAL);
    }
}

struct Lines;

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event()
            && *metadata.level() <= Level::INFO
            && (metadata.target().starts_with("tombolo_supervisor") || metadata.target().starts_with(RUNTIME))
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        if SILENT.load(Ordering::Relaxed) {
            return bear_witness(event);
        }
        if event.metadata().target().starts_with(RUNTIME) {
            return;
        }
        let mut line = Line { message: String::new(), fields: String::new() };
        event.record(&mut line);
        let mut text = String::new();
        let _ = write!(text, "{} ", Timestamp(OffsetDateTime::now_utc()));
        let _ = writeln!(
            text,
            "{:>5} supervisor: {}{}",
            event.metadata().level().as_str(),
            line.message,
            line.fields
        );
        // Nobody to tell when the log cannot be written.
        let _ = io::stderr().write_all(text.as_bytes());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

/// RFC 3339 in UTC with nanoseconds, as the CRI log format wants it.
pub(crate) struct Timestamp(pub(crate) OffsetDateTime);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(t) = self;
        let (year, month, day) = (t.year(), u8::from(t.month()), t.day());
        let (hour, minute, second, nanosecond) = t.to_hms_nano();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanosecond:09}Z")
    }
}
