//! Whether an image may be run: what a namespace demands of signatures, and the signatures that were found.
//!
//! The demand is written as annotations of the Namespace and travels to nodes in every revision's object, with the signatures, so
//! that a node asks nobody. Must not know cryptography: keys are texts here.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// On a Namespace: `require`, `warn` or `off` (the default).
pub const POLICY: &str = "tombolo.dev/image-signatures";
/// On a Namespace: public keys as PEM; a line before a block is the key's name. One of them has to have signed.
pub const KEYS: &str = "tombolo.dev/image-signature-keys";

/// Keys of one namespace: some teams, each with the former and the next key.
pub const KEYS_MAX: usize = 16;

/// Longest annotation with keys, bytes: [`KEYS_MAX`] of the largest that there are.
pub const KEYS_TEXT_MAX: usize = 32 * 1024;

/// Longest name of a key, characters.
pub const KEY_NAME_MAX: usize = 63;

const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const END: &str = "-----END PUBLIC KEY-----";

/// What becomes of an image that none of the keys has signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// No instance of it is started.
    Require,
    /// It runs, and its revision says so.
    Warn,
}

/// A key that images are signed with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrustedKey {
    /// Empty: it goes by its fingerprint.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// One block, as `cosign generate-key-pair` writes it.
    pub pem: String,
}

/// One signature of an image, of any key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageSignature {
    /// What was signed, byte for byte: JSON that names the image's digest.
    pub payload: String,
    /// Base64.
    pub signature: String,
    /// Of a payload in a DSSE envelope (a sigstore bundle): its type, which is signed too. Empty: simple signing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub payload_type: String,
}

/// What was found of an image's signatures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ImageSignatures {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub found: Vec<ImageSignature>,
    /// What else is attached to the image that looks like a signature and is none that is understood, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub passed_over: Vec<String>,
}

/// What a namespace demands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    pub policy: Policy,
    /// At least one.
    pub keys: Vec<TrustedKey>,
}

/// All that a node needs to judge an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Verification {
    pub policy: Policy,
    pub keys: Vec<TrustedKey>,
    #[serde(default)]
    pub signatures: ImageSignatures,
}

/// Why a namespace's annotations cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    #[error("{POLICY}: {0:?} is none of require, warn and off")]
    Policy(String),
    #[error("{POLICY}: {0} needs keys: write the public key (cosign.pub) into {KEYS} first, or with it")]
    NoKeys(String),
    #[error("{KEYS}: line {line}: {what}")]
    Keys { line: usize, what: String },
    #[error(
        "{KEYS}: it has more than {KEYS_MAX} keys or {KEYS_TEXT_MAX} bytes: remove those that sign nothing any more"
    )]
    TooLarge,
}

impl TrustError {
    /// The annotation that is wrong.
    pub fn annotation(&self) -> &'static str {
        match self {
            Self::Policy(_) | Self::NoKeys(_) => POLICY,
            Self::Keys { .. } | Self::TooLarge => KEYS,
        }
    }
}

impl Trust {
    /// What a namespace with these annotations demands; `None`: nothing. Keys are checked also where they are not used yet.
    pub fn of(annotations: &BTreeMap<String, String>) -> Result<Option<Self>, TrustError> {
        let keys = parse_keys(annotations.get(KEYS).map_or("", String::as_str))?;
        let word = annotations.get(POLICY).map_or("off", |word| word.trim());
        let policy = match word {
            "require" => Policy::Require,
            "warn" => Policy::Warn,
            "off" => return Ok(None),
            other => return Err(TrustError::Policy(other.to_owned())),
        };
        if keys.is_empty() {
            return Err(TrustError::NoKeys(word.to_owned()));
        }
        Ok(Some(Self { policy, keys }))
    }
}

/// The keys of an annotation, named by the line before each.
pub fn parse_keys(text: &str) -> Result<Vec<TrustedKey>, TrustError> {
    if text.len() > KEYS_TEXT_MAX {
        return Err(TrustError::TooLarge);
    }
    let mut keys: Vec<TrustedKey> = Vec::new();
    let mut name = String::new();
    let mut block: Option<String> = None;
    for (index, line) in text.lines().map(str::trim).enumerate() {
        let wrong = |what: String| TrustError::Keys { line: index + 1, what };
        match (&mut block, line) {
            (None, "") => {}
            (None, BEGIN) => block = Some(format!("{BEGIN}\n")),
            (None, line) if line.starts_with("-----") => {
                return Err(wrong(format!(
                    "{line:?}: only public keys belong here, as blocks that begin with {BEGIN}"
                )));
            }
            (None, line) => name = key_name(line, &name).map_err(wrong)?,
            (Some(_), END) => {
                let pem = format!("{}{END}\n", block.take().unwrap_or_default());
                keys.push(TrustedKey { name: std::mem::take(&mut name), pem });
            }
            (Some(pem), line) if is_base64(line) => {
                pem.push_str(line);
                pem.push('\n');
            }
            (Some(_), line) => return Err(wrong(format!("{line:?} does not belong into a key"))),
        }
    }
    let end = || TrustError::Keys { line: text.lines().count(), what: format!("the last key has no {END}") };
    match (block, name.as_str()) {
        (Some(_), _) => return Err(end()),
        (None, "") => {}
        (None, name) => {
            let what = format!("after the name {name:?} there is no {BEGIN}");
            return Err(TrustError::Keys { line: text.lines().count(), what });
        }
    }
    let mut seen = BTreeSet::new();
    keys.retain(|key| seen.insert(key.pem.clone()));
    if keys.len() > KEYS_MAX { Err(TrustError::TooLarge) } else { Ok(keys) }
}

fn key_name(line: &str, before: &str) -> Result<String, String> {
    let name = line.trim_start_matches('#').trim_end_matches(':').trim();
    let fits = name.chars().count() <= KEY_NAME_MAX && !name.chars().any(char::is_control);
    if !before.is_empty() || name.is_empty() || !fits {
        let rule = format!(
            "a line before a key is its name, of at most {KEY_NAME_MAX} characters; all else is blocks of PEM"
        );
        return Err(format!("{line:?}: {rule}"));
    }
    Ok(name.to_owned())
}

fn is_base64(line: &str) -> bool {
    !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: &str = "-----BEGIN PUBLIC KEY-----\nMFkw\nEw==\n-----END PUBLIC KEY-----\n";
    const OTHER: &str = "-----BEGIN PUBLIC KEY-----\nMFkx\n-----END PUBLIC KEY-----\n";

    fn of(policy: Option<&str>, keys: Option<&str>) -> Result<Option<Trust>, TrustError> {
        let pairs = [(POLICY, policy), (KEYS, keys)];
        Trust::of(&pairs.into_iter().filter_map(|(key, value)| Some((key.into(), value?.into()))).collect())
    }

    #[test]
    fn a_namespace_says_what_it_demands() {
        assert_eq!(of(None, None), Ok(None));
        assert_eq!(of(Some("off"), Some(BLOCK)), Ok(None));
        // Two commands write two annotations: the keys first.
        assert_eq!(of(None, Some(BLOCK)), Ok(None));
        let two = format!("release 2026:\n{BLOCK}\n# next\n{OTHER}");
        let trust = of(Some("require"), Some(&two)).unwrap().unwrap();
        assert_eq!(trust.policy, Policy::Require);
        let names: Vec<_> = trust.keys.iter().map(|key| key.name.as_str()).collect();
        assert_eq!(names, ["release 2026", "next"]);
        assert_eq!(trust.keys[0].pem, BLOCK);
        assert_eq!(of(Some("warn"), Some(BLOCK)).unwrap().unwrap().keys[0].name, "");
    }

    #[test]
    fn indented_blocks_and_the_same_key_twice_are_taken() {
        let indented = BLOCK.replace('\n', "\r\n   ");
        let keys = parse_keys(&format!("{indented}\n{BLOCK}")).unwrap();
        assert_eq!(keys, [TrustedKey { name: String::new(), pem: BLOCK.into() }]);
    }

    #[test]
    fn what_cannot_be_followed_is_refused_with_what_to_do() {
        let many = (0..=KEYS_MAX).map(|n| OTHER.replace("MFkx", &format!("MFkx{n:04}"))).collect::<String>();
        let long = "x".repeat(KEY_NAME_MAX + 1);
        for (policy, keys, says) in [
            (Some("requier"), None, "none of require, warn and off"),
            (Some("require"), None, "cosign.pub"),
            (Some("warn"), Some("\n"), "needs keys"),
            (None, Some("-----BEGIN PUBLIC KEY-----\nMFkw\n"), "has no -----END"),
            (None, Some("-----BEGIN EC PRIVATE KEY-----\nMFkw\n"), "only public keys"),
            (None, Some("-----BEGIN PUBLIC KEY-----\nM F\n"), "line 2"),
            (None, Some("name\n"), "there is no -----BEGIN"),
            (None, Some("one\ntwo\n"), "is its name"),
            (None, Some(long.as_str()), "63 characters"),
            (None, Some(many.as_str()), "more than 16 keys"),
        ] {
            let error = of(policy, keys).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
            let annotation = error.annotation();
            assert!(error.to_string().starts_with(annotation), "{error}");
        }
    }
}
