//! Admission: from the JSON a user sent to a resource the hub keeps, or to the refusal Knative would answer. Pure: the
//! time, the user and what chance decides come in as arguments.
//!
//! The order is the reference's, and decides which refusal a user sees first: cut off unknown fields, read, fill in
//! defaults, Kubernetes' own checks (422), Knative's (400), the pod's (400), and last Tombolo's own: its annotations, and what it
//! does not serve yet.

mod annotations;
mod decode;
mod defaults;
mod diff;
mod dry_run;
mod field_error;
mod metadata;
mod pod;
mod probe;
mod published;
mod schema;
mod syntax;
mod tombolo;
mod traffic;
mod unserved;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use self::decode::{DecodeError, Findings};
use self::field_error::FieldErrors;
pub use self::published::{metadata_schema, spec_schema, unknown_fields};
use super::keys::{CREATOR, LAST_MODIFIER};
use super::{
    API_VERSION, Configuration, GROUP, Revision, RevisionSpec, RevisionTemplateSpec, Route, Service,
};
use crate::meta::{ObjectMeta, Status, StatusCause};

/// Where a request came from and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission<'a> {
    /// The namespace in the request's path.
    pub namespace: &'a str,
    pub user: &'a str,
    /// RFC 3339, whole seconds, UTC: `creationTimestamp` of what is created.
    pub now: &'a str,
    /// Uid of what is created.
    pub uid: &'a str,
    /// Five random characters of `[a-z0-9]`, the end of a generated name.
    pub name_suffix: &'a str,
}

/// A resource that may be stored, and what its user should hear nevertheless.
#[derive(Clone, Debug, PartialEq)]
pub struct Admitted<T> {
    pub object: T,
    /// For `Warning: 299 - "…"` headers: fields nobody knows, which were cut off.
    pub warnings: Vec<String>,
}

/// Processes and threads of an instance, as a resource.
pub const PIDS_RESOURCE: &str = "tombolo.dev/pids";

/// Whether a resource is one that device plugins offer: counted in whole pieces, and never given to two at a time. Kubernetes
/// calls it an extended resource.
pub fn is_extended(resource: &str) -> bool {
    resource.contains('/')
        && !resource.contains("kubernetes.io/")
        && !resource.starts_with("requests.")
        && resource != PIDS_RESOURCE
        && syntax::qualified_name(&format!("requests.{resource}")).is_empty()
}

/// The outcome of an admission.
pub type Result<T> = std::result::Result<Admitted<T>, Box<Status>>;

/// Admits a Service: a new one, or a change of `current`.
///
/// On a change `resourceVersion` is as the user sent it, for the caller to compare; uid, times, generation and status
/// are `current`'s, the generation one higher if the spec changed.
pub fn admit_service(input: &Value, current: Option<&Service>, request: &Admission<'_>) -> Result<Service> {
    let read = read::<super::ServiceSpec>(input, &SERVICE, current.map(|it| &it.metadata), request)?;
    let mut service = Service::new(read.metadata, read.spec);
    defaults::template(&mut service.spec.template);
    defaults::traffic(&mut service.spec.traffic, true);
    let same_spec = current.is_some_and(|it| it.spec == service.spec);
    stamp(&mut service.metadata, current.map(|it| &it.metadata), same_spec, request);
    kubernetes(
        &SERVICE,
        &service.metadata,
        Some(&service.spec.template.spec),
        &read.findings,
        "spec.template.spec",
    )?;

    let mut errors = metadata::knative(&service.metadata);
    errors.add(annotations::rollout(&service.metadata.annotations).via("annotations"));
    let mut errors = errors.via("metadata").also(read.findings.refusals());
    errors.add(template(&service.spec.template, &service.metadata, &read.findings).via("spec"));
    errors.add(traffic::targets(&service.spec.traffic, true).via("spec"));
    if let Some(current) = current {
        errors.add(metadata::creator_and_modifier(&current.metadata, &service.metadata, same_spec));
        errors.add(unchanged_name(&current.spec.template, &service.spec.template).via("spec.template"));
        service.status = current.status.clone();
    }
    denied(errors)?;
    runnable(&service.spec.template.spec, request)?;
    let own = tombolo::route(&service.metadata.annotations, &service.spec.traffic);
    denied(
        own.via("metadata.annotations")
            .also(unserved::metadata(&service.metadata))
            .also(traffic::hosts(&service.spec.traffic, &service.metadata.name).via("spec"))
            .also(own_template(&service.spec.template)),
    )?;
    let warnings = warnings(read.warnings, &service.spec.template);
    Ok(Admitted { object: service, warnings })
}

/// Admits a Configuration, see [`admit_service`].
pub fn admit_configuration(
    input: &Value,
    current: Option<&Configuration>,
    request: &Admission<'_>,
) -> Result<Configuration> {
    let read =
        read::<super::ConfigurationSpec>(input, &CONFIGURATION, current.map(|it| &it.metadata), request)?;
    let mut configuration = Configuration::new(read.metadata, read.spec);
    defaults::template(&mut configuration.spec.template);
    let same_spec = current.is_some_and(|it| it.spec == configuration.spec);
    stamp(&mut configuration.metadata, current.map(|it| &it.metadata), same_spec, request);
    let pod = &configuration.spec.template.spec;
    kubernetes(&CONFIGURATION, &configuration.metadata, Some(pod), &read.findings, "spec.template.spec")?;

    let mut errors =
        metadata::knative(&configuration.metadata).via("metadata").also(read.findings.refusals());
    errors.add(template(&configuration.spec.template, &configuration.metadata, &read.findings).via("spec"));
    if let Some(current) = current {
        if configuration.metadata.owner_references.is_empty() {
            errors.add(metadata::creator_and_modifier(&current.metadata, &configuration.metadata, same_spec));
        }
        errors.add(unchanged_name(&current.spec.template, &configuration.spec.template).via("spec.template"));
        configuration.status = current.status.clone();
    }
    denied(errors)?;
    runnable(&configuration.spec.template.spec, request)?;
    let own = tombolo::inherited(&configuration.metadata.annotations);
    denied(own.via("metadata.annotations").also(own_template(&configuration.spec.template)))?;
    let warnings = warnings(read.warnings, &configuration.spec.template);
    Ok(Admitted { object: configuration, warnings })
}

/// Admits a Route, see [`admit_service`].
pub fn admit_route(input: &Value, current: Option<&Route>, request: &Admission<'_>) -> Result<Route> {
    let read = read::<super::RouteSpec>(input, &ROUTE, current.map(|it| &it.metadata), request)?;
    let mut route = Route::new(read.metadata, read.spec);
    defaults::traffic(&mut route.spec.traffic, false);
    let same_spec = current.is_some_and(|it| it.spec == route.spec);
    stamp(&mut route.metadata, current.map(|it| &it.metadata), same_spec, request);
    kubernetes(&ROUTE, &route.metadata, None, &read.findings, "")?;

    let mut errors = metadata::knative(&route.metadata);
    errors.add(annotations::rollout(&route.metadata.annotations).via("annotations"));
    let mut errors = errors.via("metadata").also(traffic::targets(&route.spec.traffic, false).via("spec"));
    if let Some(current) = current {
        if route.metadata.owner_references.is_empty() {
            errors.add(metadata::creator_and_modifier(&current.metadata, &route.metadata, same_spec));
        }
        route.status = current.status.clone();
    }
    denied(errors)?;
    let own = tombolo::route(&route.metadata.annotations, &route.spec.traffic);
    denied(
        own.via("metadata.annotations")
            .also(unserved::metadata(&route.metadata))
            .also(traffic::hosts(&route.spec.traffic, &route.metadata.name).via("spec")),
    )?;
    Ok(Admitted { object: route, warnings: read.warnings })
}

/// Admits a user's change of a Revision: labels and annotations may change, the spec never.
pub fn admit_revision_update(input: &Value, current: &Revision, request: &Admission<'_>) -> Result<Revision> {
    let read = read::<RevisionSpec>(input, &REVISION, Some(&current.metadata), request)?;
    let mut revision = Revision::new(read.metadata, read.spec);
    let same_spec = current.spec == revision.spec;
    stamp(&mut revision.metadata, Some(&current.metadata), true, request);
    kubernetes(&REVISION, &revision.metadata, Some(&revision.spec), &read.findings, "spec")?;
    let mut errors = FieldErrors::none();
    if !same_spec || !read.findings.refused.is_empty() {
        let changes = diff::of_spec(&current.spec, &revision.spec);
        errors = FieldErrors::detailed("Immutable fields changed (-old +new)", &["spec"], changes);
    }
    // What nodes read of a Revision is as its template's was.
    errors.add(annotations::template(&revision.metadata.annotations).via("metadata.annotations"));
    denied(errors.also(own_annotations(&revision.metadata)))?;
    revision.status = current.status.clone();
    Ok(Admitted { object: revision, warnings: read.warnings })
}

/// One kind of resource to the steps that all kinds share.
struct Kind {
    kind: &'static str,
    schema: &'static schema::Object,
}

static SERVICE: Kind = Kind { kind: "Service", schema: &schema::SERVICE };
static CONFIGURATION: Kind = Kind { kind: "Configuration", schema: &schema::CONFIGURATION };
static ROUTE: Kind = Kind { kind: "Route", schema: &schema::ROUTE };
static REVISION: Kind = Kind { kind: "Revision", schema: &schema::REVISION };

/// An object as it was sent, in our types.
struct Read<S> {
    metadata: ObjectMeta,
    spec: S,
    findings: Findings,
    warnings: Vec<String>,
}

fn read<S: DeserializeOwned + Default>(
    input: &Value,
    kind: &Kind,
    current: Option<&ObjectMeta>,
    request: &Admission<'_>,
) -> std::result::Result<Read<S>, Box<Status>> {
    type_meta(input)?;
    let undecodable = |error: DecodeError| {
        let webhook = "admission webhook \"webhook.serving.knative.dev\" denied the request: mutation failed";
        Status::bad_request(format!("{webhook}: cannot decode incoming new object: {}", error.0))
    };
    let unreadable = |why: String| {
        let kind = kind.kind;
        Status::bad_request(format!("{kind} in version \"v1\" cannot be handled as a {kind}: {why}"))
    };
    let none = Value::Object(Map::new());
    let sent = input.get("metadata").filter(|sent| !sent.is_null()).unwrap_or(&none);
    if !sent.is_object() {
        return Err(Box::new(unreadable("metadata must be an object".to_owned())));
    }
    let (sent, mut warned) =
        decode::walk(sent, &schema::METADATA, "metadata").map_err(|error| unreadable(error.0))?;
    let mut metadata: ObjectMeta =
        serde_json::from_value(sent).map_err(|error| unreadable(error.to_string()))?;
    placed(&mut metadata, current, request)?;

    let spec = Map::from_iter(input.get("spec").map(|spec| ("spec".to_owned(), spec.clone())));
    let (mut kept, findings) = decode::walk(&Value::Object(spec), kind.schema, "").map_err(undecodable)?;
    let spec = match kept.get_mut("spec").map(Value::take) {
        None => S::default(),
        Some(spec) => {
            serde_json::from_value(spec).map_err(|error| undecodable(DecodeError(error.to_string())))?
        }
    };
    let known = ["apiVersion", "kind", "metadata", "spec", "status"];
    let others = input.as_object().into_iter().flatten().map(|(name, _)| name);
    warned.unknown.extend(others.filter(|name| !known.contains(&name.as_str())).cloned());
    let unknown = warned.unknown.iter().chain(&findings.unknown);
    let warnings = unknown.map(|path| format!("unknown field {path:?}")).collect();
    Ok(Read { metadata, spec, findings, warnings })
}

fn type_meta(input: &Value) -> std::result::Result<(), Box<Status>> {
    let text = |name| input.get(name).and_then(Value::as_str).unwrap_or_default();
    if text("kind").is_empty() {
        let body: String = input.to_string().chars().take(1000).collect();
        return Err(Box::new(Status::bad_request(format!("Object 'Kind' is missing in '{body}'"))));
    }
    let version = text("apiVersion");
    if version == API_VERSION {
        return Ok(());
    }
    let expected = format!("does not match the expected API version ({API_VERSION})");
    Err(Box::new(Status::bad_request(format!("the API version in the data ({version}) {expected}"))))
}

/// Checks that the object is the one the request's path names, and completes its name.
fn placed(
    metadata: &mut ObjectMeta,
    current: Option<&ObjectMeta>,
    request: &Admission<'_>,
) -> std::result::Result<(), Box<Status>> {
    if !metadata.namespace.is_empty() && metadata.namespace != request.namespace {
        let why = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Box::new(Status::bad_request(why)));
    }
    metadata.namespace = request.namespace.to_owned();
    match current {
        Some(current) if metadata.name.is_empty() => metadata.name.clone_from(&current.name),
        Some(current) if metadata.name != current.name => {
            let (sent, on_url) = (&metadata.name, &current.name);
            let why =
                format!("the name of the object ({sent}) does not match the name on the URL ({on_url})");
            return Err(Box::new(Status::bad_request(why)));
        }
        None if metadata.name.is_empty() && !metadata.generate_name.is_empty() => {
            // Kubernetes cuts the given part so that the whole stays a DNS label.
            let given: String = metadata.generate_name.chars().take(63 - 5).collect();
            metadata.name = format!("{given}{}", request.name_suffix);
        }
        _ => {}
    }
    Ok(())
}

/// Sets what the API alone decides: identity, times, generation, and who it was.
fn stamp(metadata: &mut ObjectMeta, current: Option<&ObjectMeta>, same_spec: bool, request: &Admission<'_>) {
    let mut sign = |key: &str| metadata.annotations.insert(key.to_owned(), request.user.to_owned());
    match current {
        None => {
            sign(CREATOR);
            sign(LAST_MODIFIER);
            metadata.uid = request.uid.to_owned();
            metadata.creation_timestamp = Some(request.now.to_owned());
            metadata.deletion_timestamp = None;
            metadata.generation = 1;
            metadata.resource_version.clear();
        }
        Some(current) => {
            if !same_spec {
                sign(LAST_MODIFIER);
            }
            metadata.uid.clone_from(&current.uid);
            metadata.creation_timestamp.clone_from(&current.creation_timestamp);
            metadata.deletion_timestamp.clone_from(&current.deletion_timestamp);
            metadata.generate_name.clone_from(&current.generate_name);
            metadata.generation = current.generation + i64::from(!same_spec);
        }
    }
}

/// Kubernetes' own checks, which come before Knative's. `pod_path` is where `pod` stands.
fn kubernetes(
    kind: &Kind,
    meta: &ObjectMeta,
    pod: Option<&RevisionSpec>,
    findings: &Findings,
    pod_path: &str,
) -> std::result::Result<(), Box<Status>> {
    let mut causes = metadata::kubernetes(meta);
    if pod.is_some_and(|pod| pod.containers.is_empty()) && !findings.empty_containers {
        let field = format!("{pod_path}.containers");
        let message = format!("Invalid value: \"null\": {field} in body must be of type array: \"null\"");
        causes.push(StatusCause { reason: "FieldValueTypeInvalid".into(), message, field });
    }
    causes.extend(findings.duplicates.iter().cloned());
    if causes.is_empty() {
        return Ok(());
    }
    Err(Box::new(Status::invalid(kind.kind, GROUP, &meta.name, causes)))
}

fn template(template: &RevisionTemplateSpec, parent: &ObjectMeta, findings: &Findings) -> FieldErrors {
    let below = |path: &str| path.strip_prefix("spec.template.spec.").map(str::to_owned);
    let refused: Vec<(String, Value)> =
        findings.refused.iter().filter_map(|(path, value)| Some((below(path)?, value.clone()))).collect();
    pod::revision_spec(&template.spec, &refused)
        .via("spec")
        .also(annotations::template(&template.metadata.annotations).via("metadata.annotations"))
        .also(metadata::revision_name(&template.metadata, &parent.name))
        .via("template")
}

/// A user who names Revisions names every one.
fn unchanged_name(old: &RevisionTemplateSpec, new: &RevisionTemplateSpec) -> FieldErrors {
    if new.metadata.name.is_empty() || new.metadata.name != old.metadata.name || new == old {
        return FieldErrors::none();
    }
    let message = "Saw the following changes without a name change (-old +new)";
    FieldErrors::detailed(message, &["metadata.name"], diff::of_template(old, new))
}

const DENIED: &str = "admission webhook \"validation.webhook.serving.knative.dev\" denied the request";

fn denied(errors: FieldErrors) -> std::result::Result<(), Box<Status>> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(invalid(&errors))
}

fn invalid(errors: &FieldErrors) -> Box<Status> {
    Box::new(Status::bad_request(format!("{DENIED}: validation failed: {errors}")))
}

/// The refusal of a valid object because something else at the hub is in its way: `value` at `path` cannot be, see `why`.
pub fn refusal(value: &str, path: &str, why: &str) -> Box<Status> {
    invalid(&FieldErrors::invalid_because(format!("{value:?}"), path, why))
}

/// What Kubernetes says of the pod that a valid template describes.
fn runnable(spec: &RevisionSpec, request: &Admission<'_>) -> std::result::Result<(), Box<Status>> {
    let Some(why) = dry_run::complaint(spec) else { return Ok(()) };
    // The pod of the dry run has a generated name.
    let pod = format!("Pod \"dry-run-validation{}\" is invalid: {why}", request.name_suffix);
    let message = format!("{DENIED}: validation callback failed: dry run failed with {pod}: spec.template");
    Err(Box::new(Status::bad_request(message)))
}

/// What Tombolo by itself says of a template that Knative would take.
fn own_template(template: &RevisionTemplateSpec) -> FieldErrors {
    own_annotations(&template.metadata)
        .also(unserved::revision_spec(&template.spec).via("spec"))
        .via("spec.template")
}

fn own_annotations(template: &ObjectMeta) -> FieldErrors {
    tombolo::template(&template.annotations)
        .also(unserved::template(&template.annotations))
        .via("metadata.annotations")
}

fn warnings(mut found: Vec<String>, template: &RevisionTemplateSpec) -> Vec<String> {
    found.extend(unserved::warnings(&template.metadata.annotations));
    found
}
