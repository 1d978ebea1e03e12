//! The recorded files, line by line. Knows nothing of what is in them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use flate2::read::GzDecoder;
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};
use tombolo_agent_core::actual::Moment;

/// Where the recordings' clocks start, Unix milliseconds: divisible by every window's granularity.
const START_MS: u64 = 946_684_800_000;

pub(crate) fn lines(name: &str) -> impl Iterator<Item = Value> {
    // The router replays some of them too.
    let recorded = concat!(env!("CARGO_MANIFEST_DIR"), "/../core/tests/recorded");
    let path = Path::new(recorded).join(format!("{name}.jsonl.gz"));
    let file = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    BufReader::new(GzDecoder::new(file)).lines().map(|line| exact(&line.unwrap()))
}

/// `text` with its numbers read to the last digit, as serde_json does only when compiled for it: a decision rounds up.
fn exact(text: &str) -> Value {
    match text.trim_start().as_bytes()[0] {
        b'{' => {
            let fields: BTreeMap<String, &RawValue> = serde_json::from_str(text).unwrap();
            let fields = fields.into_iter().map(|(key, value)| (key, exact(value.get())));
            Value::Object(fields.collect::<Map<_, _>>())
        }
        b'[' => {
            let items: Vec<&RawValue> = serde_json::from_str(text).unwrap();
            Value::Array(items.into_iter().map(|item| exact(item.get())).collect())
        }
        b'-' | b'0'..=b'9' if text.contains(['.', 'e', 'E']) => {
            Value::Number(Number::from_f64(text.trim().parse().unwrap()).unwrap())
        }
        _ => serde_json::from_str(text).unwrap(),
    }
}

/// `ms` after the recording's start.
pub(crate) fn at(ms: &Value) -> Moment {
    Moment(START_MS.checked_add_signed(ms.as_i64().unwrap()).unwrap())
}

pub(crate) fn ms(seconds: &Value) -> u64 {
    (seconds.as_f64().unwrap() * 1000.0).round() as u64
}

pub(crate) fn count(value: &Value) -> u32 {
    value.as_u64().unwrap().try_into().unwrap()
}

/// At least as many of each as the stored recordings hold, so that no replay passes on less.
pub(crate) fn assert_replayed<const N: usize>(replayed: [u32; N], stored: [u32; N]) {
    assert!(replayed.iter().zip(stored).all(|(ours, stored)| *ours >= stored), "{replayed:?} of {stored:?}");
}
