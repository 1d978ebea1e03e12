//! Lists in pages: `limit`, `continue` and `resourceVersion`. All pages of a list show one version.
//!
//! A token holds the version and the last object shown, and nothing is kept for it: the state of that version is worked
//! out from the newest one for as long as the changes since are remembered.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use tombolo_api::meta::{ListMeta, Status};
use tombolo_hub_core::{Key, Kind, Object};

use super::answer::Refused;
use super::selector::Selector;
use crate::catalog::{Catalog, VersionError};

/// The form of a token: it changes when its members do.
const TOKEN_VERSION: &str = "tombolo.dev/v1";

/// Which part of a list is meant, and of which version.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ListPart {
    limit: Option<usize>,
    begin: Begin,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Begin {
    #[default]
    Newest,
    /// The newest version, which must not be older than this one.
    NotBefore(u64),
    Exactly(u64),
    Behind(Token),
}

/// What `continue` holds: opaque to clients.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Token {
    v: String,
    /// `resourceVersion` of the first page.
    rv: u64,
    namespace: String,
    name: String,
}

impl ListPart {
    pub(super) fn parse(
        limit: Option<u64>,
        continue_token: Option<&str>,
        version_match: Option<&str>,
        version: Option<u64>,
    ) -> Result<Self, Box<Status>> {
        let refused = |why: &str| Err(Box::new(Status::bad_request(why)));
        let token = continue_token.filter(|token| !token.is_empty());
        let begin = match (token, version_match.unwrap_or_default(), version) {
            (Some(_), _, Some(_)) => {
                return refused("specifying resource version is not allowed when using continue");
            }
            (Some(token), "", None) => Begin::Behind(Token::parse(token)?),
            (Some(_), ..) => return refused("resourceVersionMatch is forbidden when continue is used"),
            (None, "Exact", Some(version)) => Begin::Exactly(version),
            (None, "Exact", None) => {
                return refused(
                    "resourceVersionMatch: Exact is forbidden unless resourceVersion is provided",
                );
            }
            (None, "" | "NotOlderThan", version) => version.map_or(Begin::Newest, Begin::NotBefore),
            (None, ..) => {
                return refused(
                    "resourceVersionMatch: Unsupported value: supported values: \"Exact\", \"NotOlderThan\"",
                );
            }
        };
        let limit = limit.filter(|limit| *limit > 0);
        Ok(Self { limit: limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX)), begin })
    }

    /// The objects of this part of a list, and what to say of the list.
    pub(super) fn of(
        &self,
        catalog: &Catalog,
        kind: Kind,
        selector: &Selector,
    ) -> Result<(Vec<Object>, ListMeta), Refused> {
        let state = catalog.state();
        let (version, mut objects) = match &self.begin {
            Begin::NotBefore(version) if *version > state.version => {
                return Err(VersionError::TooLarge { asked: *version, current: state.version }.into());
            }
            Begin::Newest | Begin::NotBefore(_) => (state.version, state.snapshot.list(kind)),
            Begin::Exactly(version) => (*version, catalog.at(*version)?.list(kind)),
            Begin::Behind(token) => (token.rv, token.rest(catalog, kind)?),
        };
        objects.retain(|object| selector.matches(object.metadata()));
        let mut metadata = ListMeta { resource_version: version.to_string(), ..ListMeta::default() };
        if let Some(limit) = self.limit.filter(|limit| *limit < objects.len()) {
            let rest = objects.split_off(limit);
            metadata.continue_token =
                objects.last().map(|last| Token::behind(last, version).to_text()).unwrap_or_default();
            // Kubernetes does not count what a selector leaves over, and says so in its documentation.
            metadata.remaining_item_count =
                selector.is_all().then(|| i64::try_from(rest.len()).unwrap_or(i64::MAX));
        }
        Ok((objects, metadata))
    }
}

impl Token {
    fn behind(last: &Object, version: u64) -> Self {
        let Key { namespace, name } = last.key();
        Self { v: TOKEN_VERSION.into(), rv: version, namespace, name }
    }

    fn to_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).expect("a token is plain data"))
    }

    fn parse(text: &str) -> Result<Self, Box<Status>> {
        let json = URL_SAFE_NO_PAD.decode(text).ok();
        let token = json.and_then(|json| serde_json::from_slice::<Self>(&json).ok());
        token.filter(|token| token.v == TOKEN_VERSION).ok_or_else(|| {
            let why = "continue key is not valid: begin the list again without the continue parameter";
            Box::new(Status::bad_request(why))
        })
    }

    fn rest(&self, catalog: &Catalog, kind: Kind) -> Result<Vec<Object>, Refused> {
        let snapshot = catalog.at(self.rv).map_err(|error| match error {
            VersionError::Expired(_) => {
                let why = "The provided continue parameter is too old to display a consistent list result. You must \
                           start a new list without the continue parameter.";
                Refused::from(Status::failure(410, "Expired", why))
            }
            error => error.into(),
        })?;
        let last = Key::new(&self.namespace, &self.name);
        Ok(snapshot.list(kind).into_iter().filter(|object| object.key() > last).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_that_contradict_each_other_are_refused() {
        let token = Token { v: TOKEN_VERSION.into(), rv: 7, namespace: "n".into(), name: "a".into() };
        let text = token.to_text();
        let part = |limit, begin| Some(ListPart { limit, begin });
        for (limit, continue_token, version_match, version, expected) in [
            (None, None, None, None, part(None, Begin::Newest)),
            (Some(0), Some(""), Some(""), Some(3), part(None, Begin::NotBefore(3))),
            (Some(5), None, Some("Exact"), Some(3), part(Some(5), Begin::Exactly(3))),
            (Some(5), None, Some("NotOlderThan"), None, part(Some(5), Begin::Newest)),
            (Some(5), Some(text.as_str()), None, None, part(Some(5), Begin::Behind(token))),
            (None, None, Some("Exact"), None, None),
            (None, None, Some("Newest"), None, None),
            (None, Some(text.as_str()), None, Some(3), None),
            (None, Some(text.as_str()), Some("Exact"), None, None),
            (None, Some("rubbish"), None, None, None),
            (None, Some("e30"), None, None, None),
        ] {
            let parsed = ListPart::parse(limit, continue_token, version_match, version);
            assert_eq!(parsed.map_err(|status| status.code), expected.ok_or(400));
        }
    }
}
