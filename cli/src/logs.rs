//! `logs`: prints what a service's instances wrote, as the hub passes it on from the nodes.
//!
//! A line comes as `NODE/INSTANCE TIME STREAM TAG TEXT`; tag `P` marks a part of a line that goes on in the next one.

use std::collections::BTreeMap;

use futures_util::StreamExt;

use crate::args;
use crate::hub::Hub;
use crate::kinds::Kind;
use crate::output;

/// Longest line put together from parts, bytes; a longer one is printed in pieces.
const LINE_BYTES_MAX: usize = 256 * 1024;

pub(crate) async fn run(hub: &Hub, args: &args::Logs) -> anyhow::Result<()> {
    // A service that does not exist has no log to wait for.
    let item = Kind::Service.item(&args.namespace, &args.name);
    hub.get(&item).await?;
    let path = item.replacen("serving.knative.dev/v1", "tombolo.dev/v1", 1);
    let answer = hub.stream(&format!("{path}/log?follow={}&tailLines={}", args.follow, args.tail)).await?;
    let mut chunks = answer.bytes_stream();
    let mut printer = Printer { whole: args.timestamps, ..Printer::default() };
    while let Some(chunk) = chunks.next().await {
        output::print(&printer.take(&chunk.map_err(|error| hub.failed(&error))?))?;
    }
    output::print(&printer.finish())
}

/// Turns bytes that arrive in any portions into lines for a person.
#[derive(Default)]
struct Printer {
    /// Print lines as they come.
    whole: bool,
    /// Bytes after the last newline.
    rest: Vec<u8>,
    /// Parts of a line that is not complete, by source.
    parts: BTreeMap<String, String>,
}

impl Printer {
    fn take(&mut self, chunk: &[u8]) -> String {
        let mut printed = String::new();
        for byte in chunk {
            if *byte == b'\n' || self.rest.len() >= LINE_BYTES_MAX {
                let line = std::mem::take(&mut self.rest);
                self.line(&String::from_utf8_lossy(&line), &mut printed);
            }
            if *byte != b'\n' {
                self.rest.push(*byte);
            }
        }
        printed
    }

    fn finish(mut self) -> String {
        let mut printed = String::new();
        if !self.rest.is_empty() {
            let line = std::mem::take(&mut self.rest);
            self.line(&String::from_utf8_lossy(&line), &mut printed);
        }
        for (source, text) in &self.parts {
            printed.push_str(&format!("{source} {text}\n"));
        }
        printed
    }

    fn line(&mut self, line: &str, printed: &mut String) {
        let mut fields = line.splitn(5, ' ');
        let (source, _time, _stream, tag) = (fields.next(), fields.next(), fields.next(), fields.next());
        let (false, Some(source), Some(tag)) = (self.whole, source, tag) else {
            printed.push_str(line);
            printed.push('\n');
            return;
        };
        let mut text = self.parts.remove(source).unwrap_or_default();
        text.push_str(fields.next().unwrap_or_default());
        if tag.starts_with('P') && text.len() < LINE_BYTES_MAX {
            self.parts.insert(source.to_owned(), text);
        } else {
            printed.push_str(&format!("{source} {text}\n"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_become_lines() {
        let mut printer = Printer::default();
        let mut printed =
            printer.take(b"n/i 2026-11-24T00:00:00Z stdout P one \nn/j 2026-11-24T00:00:00Z std");
        printed += &printer.take(b"err F other\nn/i 2026-11-24T00:00:00Z stdout F two\nn/i 2026 stdout F \n");
        printed += &printer.take(b"n/i t stdout F cut");
        printed += &printer.finish();
        assert_eq!(printed, "n/j other\nn/i one two\nn/i \nn/i cut\n");
    }

    #[test]
    fn whole_lines_stay_as_they_come() {
        let mut printer = Printer { whole: true, ..Printer::default() };
        assert_eq!(printer.take(b"n/i t stdout P one \n"), "n/i t stdout P one \n");
    }
}
