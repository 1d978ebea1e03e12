//! Users and passwords of registries, where `docker login` and `podman login` leave them.
//!
//! Programs that keep passwords for those tools are not asked. Must not know what a password is used for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use tombolo_oci::BasicAuth;

#[derive(Default, Deserialize)]
#[serde(default)]
struct File {
    auths: BTreeMap<String, Entry>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
}

/// What is kept for the registry at `host`; a file that cannot be read keeps nothing.
pub(super) fn of(host: &str) -> Option<BasicAuth> {
    files(|name| std::env::var_os(name).map(PathBuf::from).filter(|path| !path.as_os_str().is_empty()))
        .into_iter()
        .find_map(|path| find(&std::fs::read(path).ok()?, host))
}

/// In the order in which container tools look.
fn files(variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    [
        variable("REGISTRY_AUTH_FILE"),
        variable("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
        variable("DOCKER_CONFIG").map(|dir| dir.join("config.json")),
        variable("HOME").map(|home| home.join(".docker/config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn find(content: &[u8], host: &str) -> Option<BasicAuth> {
    let file: File = serde_json::from_slice(content).ok()?;
    let place = |key: &str| {
        let key = key.trim_start_matches("https://").trim_start_matches("http://");
        key.split('/').next().unwrap_or(key).to_owned()
    };
    let (_, entry) = file.auths.iter().find(|(key, _)| place(key) == host)?;
    let text = String::from_utf8(STANDARD.decode(entry.auth.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(BasicAuth { user: user.to_owned(), password: password.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_found_by_its_registry() {
        let file = br#"{"auths": {
            "registry.example": {"auth": "YTpiOmM="}, "https://other.example:5000/v1/": {"auth": "dTpw"},
            "kept.elsewhere": {}, "bad.example": {"auth": "%"}}}"#;
        let found = |host: &str| find(file, host).map(|auth| (auth.user, auth.password));
        let pair = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        assert_eq!(found("registry.example"), pair("a", "b:c"));
        assert_eq!(found("other.example:5000"), pair("u", "p"));
        for host in ["kept.elsewhere", "bad.example", "registry.example:5000", "example"] {
            assert_eq!(found(host), None, "{host}");
        }
        assert!(find(b"no json", "registry.example").is_none());
    }

    #[test]
    fn files_are_those_of_container_tools() {
        let all = files(|name| Some(PathBuf::from("/").join(name)));
        let expected = [
            "/REGISTRY_AUTH_FILE",
            "/XDG_RUNTIME_DIR/containers/auth.json",
            "/DOCKER_CONFIG/config.json",
            "/HOME/.docker/config.json",
        ];
        assert_eq!(all, expected.map(PathBuf::from));
        assert!(files(|_| None).is_empty());
    }
}
