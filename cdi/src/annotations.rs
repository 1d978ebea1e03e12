//! Annotations: those of specifications and devices, whose keys are names as Kubernetes has them, and those by which a
//! container asks for devices.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de};

use crate::name::{InvalidName, QualifiedName};

/// Before the keys by which containers ask for devices; what comes after it is the asker's.
const ASKING: &str = "cdi.k8s.io/";

/// Keys and values of one map together, bytes: Kubernetes' limit.
const BYTES_MAX: usize = 256 << 10;

/// The part of a key before its `/` is a DNS name, the part after it a label: their longest, bytes.
const PREFIX_BYTES_MAX: usize = 253;
const NAME_BYTES_MAX: usize = 63;

pub(crate) fn annotations<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    let annotations = BTreeMap::<String, String>::deserialize(deserializer)?;
    if let Some(key) = annotations.keys().find(|key| !is_key(key)) {
        return Err(de::Error::custom(format!("{key:?} is no key of an annotation")));
    }
    let bytes: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > BYTES_MAX {
        return Err(de::Error::custom(format!("annotations have {bytes} bytes, at most are {BYTES_MAX}")));
    }
    Ok(annotations)
}

/// The devices that a container's annotations ask for, in the order of the keys: the value is a list with commas.
pub fn asked_for(annotations: &BTreeMap<String, String>) -> Result<Vec<QualifiedName>, InvalidName> {
    let values = annotations.iter().filter(|(key, _)| key.starts_with(ASKING)).map(|(_, value)| value);
    values.flat_map(|value| value.split(',')).map(|name| name.trim().parse()).collect()
}

fn is_key(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    prefix.is_none_or(is_domain) && name.len() <= NAME_BYTES_MAX && is_label(name, "-_.")
}

fn is_domain(domain: &str) -> bool {
    domain.len() <= PREFIX_BYTES_MAX
        && domain.to_ascii_lowercase().split('.').all(|label| is_label(label, "-"))
}

fn is_label(label: &str, between: &str) -> bool {
    let plain = |each: char| each.is_ascii_alphanumeric();
    label.starts_with(plain)
        && label.ends_with(plain)
        && label.chars().all(|each| plain(each) || between.contains(each))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_named_as_in_kubernetes() {
        for key in ["a", "vendor.com/a.b_c-d", "Vendor.com/x", "1/2"] {
            assert!(is_key(key), "{key}");
        }
        for key in ["", "/a", "a/", "a/b/c", "-a", "a-", "a b", "vendor_.com/a", "vendor..com/a"] {
            assert!(!is_key(key), "{key}");
        }
        assert!(!is_key(&"a".repeat(64)) && !is_key(&format!("{}/a", "a".repeat(254))));
    }

    #[test]
    fn a_container_asks_by_annotations() {
        let of = |pairs: &[(&str, &str)]| {
            let annotations = pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
            asked_for(&annotations).map(|names| names.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let asks = [("cdi.k8s.io/b", "a.b/c=2, a.b/c=3"), ("other", "x"), ("cdi.k8s.io/a", "a.b/c=1")];
        assert_eq!(of(&asks).unwrap(), ["a.b/c=1", "a.b/c=2", "a.b/c=3"]);
        assert!(of(&[("cdi.k8s.io/a", "gpu0")]).is_err());
        assert!(of(&[]).unwrap().is_empty());
    }

    #[test]
    fn all_of_them_together_have_an_end() {
        let read = |bytes: usize| {
            annotations(&serde_json::json!({ "key": "v".repeat(bytes) })).map_err(|error| error.to_string())
        };
        assert!(read(BYTES_MAX - 3).is_ok());
        assert!(read(BYTES_MAX - 2).unwrap_err().contains("at most are"));
    }
}
