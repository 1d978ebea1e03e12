//! The supervisor's own messages, one line each on standard error.
//!
//! A subscriber of 60 lines instead of `tracing-subscriber`, because it must fall silent in forked workers: there
//! standard error is about to become the container's, and the container runtime reports by its results anyway.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use time::OffsetDateTime;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

static SILENT: AtomicBool = AtomicBool::new(false);

/// Writes what this crate reports from now on.
pub(crate) fn start() {
    // Fails when a test has set another one, which then gets the events.
    let _ = tracing::subscriber::set_global_default(Lines);
}

/// Says nothing more in this process: it is a forked worker.
pub(crate) fn silence() {
    SILENT.store(true, Ordering::Relaxed);
}

struct Lines;

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event()
            && *metadata.level() <= Level::INFO
            && metadata.target().starts_with("tombolo_supervisor")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        if SILENT.load(Ordering::Relaxed) {
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
        let _ = std::io::stderr().write_all(text.as_bytes());
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
