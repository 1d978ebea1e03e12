//! A Namespace in Kubernetes' protobuf, which is all that `kubectl create namespace` sends. Of the object only what a
//! namespace has here is read: name, version, labels and annotations. Pure.
//!
//! ```text
//! "k8s\0" Unknown { 1: TypeMeta { 1: apiVersion, 2: kind }, 2: Namespace { 1: ObjectMeta { 1: name, 6: resourceVersion,
//! 11: labels, 12: annotations } } }
//! ```

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// How every such body begins.
const MAGIC: &[u8] = b"k8s\0";

/// Reads a body as the JSON object it stands for. `None`: it is no such message.
pub(super) fn object(bytes: &[u8]) -> Option<Value> {
    let envelope = fields(bytes.strip_prefix(MAGIC)?)?;
    let types = fields(last(&envelope, 1)?)?;
    let namespace = fields(last(&envelope, 2)?)?;
    let metadata = fields(last(&namespace, 1).unwrap_or_default())?;
    Some(json!({
        "apiVersion": text(&types, 1)?,
        "kind": text(&types, 2)?,
        "metadata": {
            "name": text(&metadata, 1)?,
            "resourceVersion": text(&metadata, 6)?,
            "labels": map(&metadata, 11)?,
            "annotations": map(&metadata, 12)?,
        },
    }))
}

type Fields<'a> = Vec<(u64, &'a [u8])>;

/// The length-delimited fields of a message by number; others are passed over.
fn fields(mut rest: &[u8]) -> Option<Fields<'_>> {
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        match tag & 7 {
            0 => drop(varint(&mut rest)?),
            1 => rest = rest.get(8..)?,
            2 => {
                let len = usize::try_from(varint(&mut rest)?).ok()?;
                let (content, behind) = rest.split_at_checked(len)?;
                fields.push((tag >> 3, content));
                rest = behind;
            }
            5 => rest = rest.get(4..)?,
            _ => return None,
        }
    }
    Some(fields)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, behind) = rest.split_first()?;
        *rest = behind;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Of a field that is there more than once, the last counts.
fn last<'a>(fields: &Fields<'a>, number: u64) -> Option<&'a [u8]> {
    fields.iter().rev().find(|(found, _)| *found == number).map(|(_, content)| *content)
}

/// A text; empty if it is absent.
fn text(fields: &Fields<'_>, number: u64) -> Option<String> {
    std::str::from_utf8(last(fields, number).unwrap_or_default()).ok().map(str::to_owned)
}

fn map(all: &Fields<'_>, number: u64) -> Option<BTreeMap<String, String>> {
    let entries = all.iter().filter(|(found, _)| *found == number);
    entries
        .map(|(_, entry)| fields(entry).and_then(|entry| Some((text(&entry, 1)?, text(&entry, 2)?))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What kubectl 1.32 sent for `kubectl create namespace foo`.
    const SENT: &[u8] = b"k8s\0\n\x0f\n\x02v1\x12\tNamespace\x12\x1b\n\x13\n\x03foo\x12\0\x1a\0\"\0*\x002\08\0B\0\x12\0\x1a\x02\n\0\x1a\0\"\0";

    #[test]
    fn what_kubectl_sends_is_read() {
        let read = object(SENT).unwrap();
        assert_eq!((&read["apiVersion"], &read["kind"]), (&json!("v1"), &json!("Namespace")));
        assert_eq!(read["metadata"]["name"], "foo");
        let labelled =
            b"k8s\0\n\x0f\n\x02v1\x12\tNamespace\x12\x12\n\x10\n\x03foo\x5a\x09\n\x01a\x12\x04b\xc3\xa9c";
        assert_eq!(object(labelled).unwrap()["metadata"]["labels"], json!({"a": "béc"}));
    }

    #[test]
    fn rubbish_is_refused() {
        for bytes in
            [&b""[..], b"{}", b"k8s\0", b"k8s\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", &SENT[..30]]
        {
            assert_eq!(object(bytes), None, "{bytes:?}");
        }
        // No cut of it is read as something else.
        for len in 0..SENT.len() {
            let whole = object(&SENT[..len]).is_none_or(|it| it["metadata"]["name"] == "foo");
            assert!(whole, "{len}");
        }
    }
}
