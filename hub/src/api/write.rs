//! What a write request does to the catalog: the decisions made inside a transaction, on the state as it is then.

use serde_json::Value;
use tombolo_api::meta::Status;
use tombolo_api::serving::GROUP;
use tombolo_api::serving::admission::{self, Admission};
use tombolo_hub_core::{Key, Kind, Object, hosts};

use super::USER;
use super::patch::Edit;
use super::validation::{Decoding, FieldValidation};
use crate::catalog::{Catalog, Change, State, WriteError};
use crate::clock;

/// What became of a write.
#[derive(Debug)]
pub(super) struct Written {
    /// As stored; of a dry run, as it would be.
    pub(super) object: Object,
    pub(super) created: bool,
    pub(super) warnings: Vec<String>,
}

/// Which part of an object a request changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Everything but the status.
    Whole,
    Status,
}

/// How a write is to be done.
#[derive(Debug, Default)]
pub(super) struct Manner {
    pub(super) dry_run: bool,
    pub(super) validation: FieldValidation,
    /// Paths of fields that the request's body holds more than once.
    pub(super) repeated: Vec<String>,
}

/// What a deletion must find.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Preconditions {
    uid: Option<String>,
    resource_version: Option<String>,
}

/// Facts for an admission, made before the transaction: a core takes no chances.
struct Facts {
    now: String,
    uid: String,
    name_suffix: String,
}

type Decision = Result<(Object, Vec<String>), Box<Status>>;

/// Creates an object in `namespace`.
pub(super) async fn create(
    catalog: &Catalog,
    kind: Kind,
    namespace: String,
    sent: Value,
    manner: Manner,
) -> Result<Written, WriteError> {
    let facts = Facts::new();
    run(catalog, manner.dry_run, move |state| {
        let (object, warnings) = new_object(state, kind, &namespace, &sent, &manner, &facts)?;
        Ok((object, warnings, true))
    })
    .await
}

/// Changes a part of an object. One that is not there is only made by an apply.
pub(super) async fn edit(
    catalog: &Catalog,
    kind: Kind,
    key: Key,
    (part, edit): (Part, Edit),
    manner: Manner,
) -> Result<Written, WriteError> {
    let facts = Facts::new();
    run(catalog, manner.dry_run, move |state| match (state.snapshot.get(kind, &key), part, edit) {
        (None, Part::Whole, Edit::Apply(mut sent)) => {
            named(&mut sent, &key)?;
            let (object, warnings) = new_object(state, kind, &key.namespace, &sent, &manner, &facts)?;
            Ok((object, warnings, true))
        }
        (None, ..) => Err(not_found(kind, &key.name)),
        (Some(current), part, edit) => {
            let (whole, decoding) = (matches!(edit, Edit::Replace(_)), edit.decoding(kind.name()));
            let sent = edit.apply(current.to_json())?;
            is_current(kind, &current, &sent, whole)?;
            let (object, warnings) = match part {
                Part::Whole => {
                    let request = facts.admission(&key.namespace);
                    let admitted = admit(kind, &sent, Some(&current), &manner, decoding, &request)?;
                    hosts_are_free(state, &admitted.0, Some(&current))?;
                    admitted
                }
                Part::Status => {
                    manner.validation.check(decoding, &sent, &manner.repeated, &[])?;
                    (with_status(kind, &current, sent)?, manner.warnings(Vec::new()))
                }
            };
            Ok((object, warnings, false))
        }
    })
    .await
}

/// An object with the status that was sent, and nothing else of it.
fn with_status(kind: Kind, current: &Object, mut sent: Value) -> Result<Object, Box<Status>> {
    let mut object = current.to_json();
    object["status"] = sent.get_mut("status").map(Value::take).unwrap_or_else(|| serde_json::json!({}));
    Object::from_json(kind, object).map_err(|error| Box::new(Status::bad_request(format!("status: {error}"))))
}

/// Deletes an object and everything it owns. Returns it as it last was.
pub(super) async fn delete(
    catalog: &Catalog,
    kind: Kind,
    key: Key,
    preconditions: Preconditions,
    dry_run: bool,
) -> Result<Object, WriteError> {
    let (_, object) = catalog
        .transact(move |state| {
            let object = state.snapshot.get(kind, &key).ok_or_else(|| not_found(kind, &key.name))?;
            preconditions.check(kind, &object)?;
            may_go(state, kind, &key)?;
            let changes = if dry_run { Vec::new() } else { state.removal(&object) };
            Ok((changes, object))
        })
        .await?;
    Ok(object)
}

/// Deletes all of a kind that `selected` selects, with what they own. Returns them.
pub(super) async fn delete_all(
    catalog: &Catalog,
    kind: Kind,
    selected: impl Fn(&Object) -> bool + Send + 'static,
    dry_run: bool,
) -> Result<Vec<Object>, WriteError> {
    let (_, objects) = catalog
        .transact(move |state| {
            let objects: Vec<Object> = state.snapshot.list(kind).into_iter().filter(selected).collect();
            for object in &objects {
                may_go(state, kind, &object.key())?;
            }
            let changes = if dry_run {
                Vec::new()
            } else {
                objects.iter().flat_map(|object| state.removal(object)).collect()
            };
            Ok((changes, objects))
        })
        .await?;
    Ok(objects)
}

pub(super) fn not_found(kind: Kind, name: &str) -> Box<Status> {
    Box::new(Status::not_found(kind.plural(), GROUP, name))
}

async fn run(
    catalog: &Catalog,
    dry_run: bool,
    decide: impl FnOnce(&State) -> Result<(Object, Vec<String>, bool), Box<Status>> + Send + 'static,
) -> Result<Written, WriteError> {
    let (mut stored, (draft, warnings, created)) = catalog
        .transact(move |state| {
            let (object, warnings, created) = decide(state)?;
            let changes = if dry_run { Vec::new() } else { vec![Change::Put(object.clone())] };
            Ok((changes, (object, warnings, created)))
        })
        .await?;
    Ok(Written { object: stored.pop().unwrap_or(draft), created, warnings })
}

fn new_object(
    state: &State,
    kind: Kind,
    namespace: &str,
    sent: &Value,
    manner: &Manner,
    facts: &Facts,
) -> Decision {
    if !state.namespaces.contains_key(namespace) {
        return Err(Box::new(Status::namespace_not_found(namespace)));
    }
    let decoding = Decoding::Object(kind.name());
    let (object, warnings) = admit(kind, sent, None, manner, decoding, &facts.admission(namespace))?;
    if state.snapshot.get(kind, &object.key()).is_some() {
        return Err(Box::new(Status::already_exists(kind.plural(), GROUP, &object.metadata().name)));
    }
    hosts_are_free(state, &object, None)?;
    Ok((object, warnings))
}

/// Fields that nobody knows come first: they often are what the other mistakes come from.
fn admit(
    kind: Kind,
    sent: &Value,
    current: Option<&Object>,
    manner: &Manner,
    decoding: Decoding,
    request: &Admission<'_>,
) -> Decision {
    let unknown = admission::unknown_fields(kind.name(), sent);
    manner.validation.check(decoding, sent, &manner.repeated, &unknown)?;
    let (object, warnings) = admit_kind(kind, sent, current, request)?;
    Ok((object, manner.warnings(warnings)))
}

fn admit_kind(kind: Kind, sent: &Value, current: Option<&Object>, request: &Admission<'_>) -> Decision {
    use std::sync::Arc;
    Ok(match (kind, current) {
        (Kind::Service, current) => {
            let current =
                current.and_then(|it| if let Object::Service(it) = it { Some(&**it) } else { None });
            let admitted = admission::admit_service(sent, current, request)?;
            (Object::Service(Arc::new(admitted.object)), admitted.warnings)
        }
        (Kind::Configuration, current) => {
            let current =
                current.and_then(|it| if let Object::Configuration(it) = it { Some(&**it) } else { None });
            let admitted = admission::admit_configuration(sent, current, request)?;
            (Object::Configuration(Arc::new(admitted.object)), admitted.warnings)
        }
        (Kind::Route, current) => {
            let current = current.and_then(|it| if let Object::Route(it) = it { Some(&**it) } else { None });
            let admitted = admission::admit_route(sent, current, request)?;
            (Object::Route(Arc::new(admitted.object)), admitted.warnings)
        }
        (Kind::Revision, Some(Object::Revision(current))) => {
            let admitted = admission::admit_revision_update(sent, current, request)?;
            (Object::Revision(Arc::new(admitted.object)), admitted.warnings)
        }
        // Revisions are made by Configurations only.
        (Kind::Revision, _) => return Err(Box::new(Status::method_not_allowed())),
    })
}

/// Whether nobody else has a host that an object asks for. One that it had before is the Route's condition's to tell of.
fn hosts_are_free(state: &State, object: &Object, current: Option<&Object>) -> Result<(), Box<Status>> {
    match hosts::taken(object, current, &state.snapshot) {
        None => Ok(()),
        Some(taken) => Err(admission::refusal(&taken.value, &taken.path, &taken.why())),
    }
}

/// Gives an applied object the name of its path, unless it has one.
fn named(sent: &mut Value, key: &Key) -> Result<(), Box<Status>> {
    match sent.pointer("/metadata/name").and_then(Value::as_str) {
        None | Some("") => {
            if !sent["metadata"].is_object() {
                sent["metadata"] = serde_json::json!({});
            }
            sent["metadata"]["name"] = key.name.clone().into();
            Ok(())
        }
        Some(name) if name == key.name => Ok(()),
        Some(name) => {
            let (name, url) = (name.to_owned(), &key.name);
            let why = format!("the name of the object ({name}) does not match the name on the URL ({url})");
            Err(Box::new(Status::bad_request(why)))
        }
    }
}

/// Optimistic concurrency: what the client sent is of the version that is stored.
fn is_current(kind: Kind, current: &Object, sent: &Value, must_say_version: bool) -> Result<(), Box<Status>> {
    let metadata = current.metadata();
    let text = |field: &str| sent["metadata"][field].as_str().unwrap_or_default();
    let version = text("resourceVersion");
    if version.is_empty() && must_say_version {
        let cause = tombolo_api::meta::StatusCause {
            reason: "FieldValueInvalid".into(),
            message: "Invalid value: 0: must be specified for an update".into(),
            field: "metadata.resourceVersion".into(),
        };
        return Err(Box::new(Status::invalid(kind.name(), GROUP, &metadata.name, vec![cause])));
    }
    let uid = text("uid");
    let uid = (!uid.is_empty()).then(|| uid.to_owned());
    let resource_version = (!version.is_empty()).then(|| version.to_owned());
    Preconditions { uid, resource_version }.check(kind, current)
}

fn may_go(state: &State, kind: Kind, key: &Key) -> Result<(), Box<Status>> {
    match state.snapshot.revision_in_use(key).filter(|_| kind == Kind::Revision) {
        None => Ok(()),
        Some(why) => Err(Box::new(Status::conflict_because(kind.plural(), GROUP, &key.name, &why))),
    }
}

impl Manner {
    fn warnings(&self, admission: Vec<String>) -> Vec<String> {
        self.validation.warnings(&self.repeated, admission)
    }
}

impl Preconditions {
    fn check(&self, kind: Kind, object: &Object) -> Result<(), Box<Status>> {
        let metadata = object.metadata();
        if let Some(uid) = self.uid.as_ref().filter(|uid| **uid != metadata.uid) {
            let found = &metadata.uid;
            let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {found}");
            return Err(Box::new(Status::conflict_because(kind.plural(), GROUP, &metadata.name, &why)));
        }
        match &self.resource_version {
            Some(version) if *version != metadata.resource_version => {
                Err(Box::new(Status::conflict(kind.plural(), GROUP, &metadata.name)))
            }
            _ => Ok(()),
        }
    }
}

impl Facts {
    fn new() -> Self {
        Self { now: clock::now_rfc3339(), uid: uuid::Uuid::new_v4().to_string(), name_suffix: name_suffix() }
    }

    fn admission<'a>(&'a self, namespace: &'a str) -> Admission<'a> {
        Admission { namespace, user: USER, now: &self.now, uid: &self.uid, name_suffix: &self.name_suffix }
    }
}

/// Five letters and digits, without those that make words: Kubernetes' alphabet.
fn name_suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let random = uuid::Uuid::new_v4();
    random.as_bytes()[..5]
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]))
        .collect()
}
