//! Whether what a namespace demands of its images' signatures can be followed. Looks at keys and words; must not know images.

use tombolo_api::meta::{ObjectMeta, Status, StatusCause};
use tombolo_api::verification::{KEYS, Trust, TrustError, parse_keys};
use tombolo_oci::signature::PublicKey;

/// Refuses annotations that say what cannot be done.
pub(super) fn check(metadata: &ObjectMeta) -> Result<(), Box<Status>> {
    let refuse = |annotation: &str, message: String| {
        let cause = StatusCause {
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: {message}"),
            field: format!("metadata.annotations[{annotation}]"),
        };
        Box::new(Status::invalid("Namespace", "", &metadata.name, vec![cause]))
    };
    let of_trust = |error: TrustError| refuse(error.annotation(), error.to_string());
    Trust::of(&metadata.annotations).map_err(of_trust)?;
    let keys = parse_keys(metadata.annotations.get(KEYS).map_or("", String::as_str)).map_err(of_trust)?;
    for (number, key) in keys.iter().enumerate() {
        if let Err(error) = PublicKey::from_pem(&key.pem) {
            let which = if key.name.is_empty() { format!("key {}", number + 1) } else { key.name.clone() };
            return Err(refuse(KEYS, format!("{KEYS}: {which}: {error}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAsZTyV6tPwRcc4DZ2LtwaHy0ikC8UeQIQ1SCLmvS+6IU=\n-----END PUBLIC KEY-----\n";

    fn checked(annotations: &[(&str, &str)]) -> Result<(), String> {
        let annotations = annotations.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let metadata = ObjectMeta { name: "shop".into(), annotations, ..ObjectMeta::default() };
        check(&metadata).map_err(|status| {
            assert_eq!(status.code, 422);
            status.message
        })
    }

    #[test]
    fn a_demand_that_cannot_be_met_is_refused_with_what_to_do() {
        let policy = tombolo_api::verification::POLICY;
        assert_eq!(checked(&[]), Ok(()));
        assert_eq!(checked(&[(policy, "require"), (KEYS, KEY)]), Ok(()));
        let damaged = KEY.replace("MCow", "MCox");
        let named = format!("release\n{damaged}");
        for (annotations, says) in [
            (vec![(policy, "always")], "none of require, warn and off"),
            (vec![(policy, "require")], "needs keys"),
            (vec![(policy, "require"), (KEYS, damaged.as_str())], "key 1: it is no public key"),
            (vec![(KEYS, named.as_str())], "release: it is no public key"),
            (vec![(KEYS, "-----BEGIN CERTIFICATE-----")], "only public keys"),
        ] {
            let message = checked(&annotations).unwrap_err();
            assert!(message.contains(says), "{message}");
        }
    }
}
