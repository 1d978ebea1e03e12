//! What a namespace demands of images' signatures, and whether revisions meet it, by what the hub found. Judges as nodes do; what
//! they say of it is among the conditions. Must not know where resources come from.

use std::collections::BTreeMap;

use serde_json::Value;
use tombolo_api::serving::ContainerStatus;
use tombolo_api::verification::{Policy, Trust};
use tombolo_oci::ImageReference;
use tombolo_oci::signature::Keys;

use crate::fields::{items, text};

/// The demand, and one line for each revision; nothing where nothing is demanded.
pub(super) fn lines(namespace: &Value, revisions: &[&Value]) -> Vec<String> {
    let annotations = namespace.pointer("/metadata/annotations").cloned().unwrap_or_default();
    let annotations: BTreeMap<String, String> = serde_json::from_value(annotations).unwrap_or_default();
    // What the hub keeps it has admitted.
    let Ok(Some(Trust { policy, keys })) = Trust::of(&annotations) else { return Vec::new() };
    let several = keys.len() > 1;
    let Ok(keys) = Keys::of(&keys) else { return Vec::new() };
    let names = if several { format!("one of {}", keys.names()) } else { keys.names() };
    let demand = match policy {
        Policy::Require => format!("required with {names}"),
        Policy::Warn => format!("expected with {names}, warned of if there is none"),
    };
    let judged = revisions.iter().map(|revision| judged(&keys, revision));
    std::iter::once(demand).chain(judged).collect()
}

fn judged(keys: &Keys, revision: &Value) -> String {
    let statuses = items(revision, "/status/containerStatuses").iter();
    let statuses =
        statuses.filter_map(|status| serde_json::from_value::<ContainerStatus>(status.clone()).ok());
    let verdicts: Vec<String> = statuses.map(|status| verdict(keys, &status)).collect();
    let verdict = if verdicts.is_empty() { NOT_KNOWN.to_owned() } else { verdicts.join("; ") };
    format!("{}: {verdict}", text(revision, "/metadata/name"))
}

const NOT_KNOWN: &str = "not looked for yet";

fn verdict(keys: &Keys, status: &ContainerStatus) -> String {
    let digest = status.image_digest.parse::<ImageReference>().ok().and_then(|image| image.target.digest());
    let (Some(digest), Some(signatures)) = (digest, &status.signatures) else { return NOT_KNOWN.to_owned() };
    let verdict = match keys.judge(&signatures.found, &digest) {
        Ok(maker) => return format!("signed with {maker}"),
        Err(None) => "not signed".to_owned(),
        Err(Some(fault)) => format!("not signed with it: {fault}"),
    };
    match signatures.passed_over.as_slice() {
        [] => verdict,
        passed_over => format!("{verdict}; passed over: {}", passed_over.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tombolo_api::verification::{KEYS, POLICY};

    // Made with OpenSSL.
    const KEY: &str = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEAsZTyV6tPwRcc4DZ2LtwaHy0ikC8UeQIQ1SCLmvS+6IU=\n-----END PUBLIC KEY-----\n";
    const SIGNATURE: &str =
        "P+9ikZbcP/z782ec0w1/OydzH6f8q1e5tpyyNeiDDbA3kVuuPpGdAeRxLjcyNs2mG+U68fSnpG6uMDXfE1ZTDQ==";
    const PAYLOAD: &str = concat!(
        r#"{"critical":{"identity":{"docker-reference":"hub/hello"},"image":{"docker-manifest-digest":"DIGEST"},"#,
        r#""type":"cosign container image signature"},"optional":null}"#
    );

    fn namespace(policy: &str) -> Value {
        json!({"metadata": {"annotations": {POLICY: policy, KEYS: format!("release:\n{KEY}"), "other": "x"}}})
    }

    fn revision(signatures: Value) -> Value {
        let image = format!("hub.tombolo/a@{}", tombolo_api::Digest::of(b"x"));
        json!({"metadata": {"name": "a-00001"}, "status": {"containerStatuses": [
            {"name": "user-container", "imageDigest": image, "signatures": signatures}]}})
    }

    #[test]
    fn a_demand_is_told_with_its_keys_and_whether_it_is_met() {
        let payload = PAYLOAD.replace("DIGEST", &tombolo_api::Digest::of(b"x").to_string());
        let good = json!({"payload": payload, "signature": SIGNATURE});
        let bad = json!({"payload": payload, "signature": "AAAA"});
        for (signatures, says) in [
            (json!({"found": [bad, good]}), "signed with release (sha256:"),
            (json!({"found": [bad]}), "not signed with it: it was made with another key"),
            (json!({}), "not signed"),
            (json!({"passedOver": ["an attestation (x)"]}), "not signed; passed over: an attestation (x)"),
            (Value::Null, NOT_KNOWN),
        ] {
            let lines = lines(&namespace("require"), &[&revision(signatures)]);
            assert!(lines[0].starts_with("required with release (sha256:"), "{lines:?}");
            assert!(lines.len() == 2 && lines[1].starts_with(&format!("a-00001: {says}")), "{lines:?}");
        }
        let unresolved = json!({"metadata": {"name": "a-00001"}});
        let warned = lines(&namespace("warn"), &[&unresolved]);
        assert!(warned[0].starts_with("expected with release (sha256:"), "{warned:?}");
        assert_eq!(warned[1], "a-00001: not looked for yet");
        let two = KEY.replace("sZTy", "xKjn");
        let two = json!({"metadata": {"annotations": {POLICY: "require", KEYS: format!("old:\n{KEY}new:\n{two}")}}});
        let several = lines(&two, &[]);
        assert!(several[0].starts_with("required with one of old (sha256:"), "{several:?}");
    }

    #[test]
    fn where_nothing_is_demanded_nothing_is_told() {
        for namespace in [namespace("off"), json!({"metadata": {}}), json!({})] {
            assert!(lines(&namespace, &[&revision(json!({}))]).is_empty());
        }
    }
}
