//! Writing to standard output: tables for people, JSON and YAML for programs.
//!
//! Must not know what the values mean.

use std::io::{self, Write};

use anyhow::Context;
use serde_json::Value;

/// The reader of standard output went away, as `head` does. No error to talk about.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
pub(crate) struct PipeClosed;

/// Writes text to standard output at once.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(PipeClosed.into()),
        Err(error) => Err(error).context("standard output cannot be written"),
    }
}

pub(crate) fn json(value: &Value) -> String {
    format!("{value:#}\n")
}

pub(crate) fn yaml(value: &Value) -> anyhow::Result<String> {
    // As kubectl writes it: a long text stays on its line.
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false, compact_list_indent: true };
    let mut text = String::new();
    serde_saphyr::to_fmt_writer_with_options(&mut text, value, options)
        .context("the answer cannot be written as YAML")?;
    Ok(text)
}

/// Columns aligned with three spaces between them, as kubectl does; nothing after the last.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|title| title.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let head: Vec<String> = head.iter().map(|title| (*title).to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let width = *width;
            line.push_str(&format!("{cell:<width$}   "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = vec![vec!["hello".into(), "True".into()], vec!["a-longer-name".into(), String::new()]];
        assert_eq!(
            table(&["NAME", "READY"], &rows),
            "NAME            READY\nhello           True\na-longer-name\n"
        );
    }

    #[test]
    fn yaml_reads_back() {
        let value = serde_json::json!({"a": ["yes", "1", 1, true, null, ""], "b": {"c": "x: y\nz", "d": {}}});
        let text = yaml(&value).unwrap();
        assert_eq!(serde_saphyr::from_str::<Value>(&text).unwrap(), value, "{text}");
        let long = serde_json::json!({"items": [{"image": "i".repeat(200)}]});
        assert_eq!(yaml(&long).unwrap(), format!("items:\n- image: {}\n", "i".repeat(200)));
    }
}
