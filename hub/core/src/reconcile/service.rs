//! A Service: keeps its Configuration and its Route as it says, and sums up their conditions.

use std::sync::Arc;

use tombolo_api::meta::ObjectMeta;
use tombolo_api::serving::{
    Configuration, ConfigurationSpec, Route, RouteSpec, RouteStatus, Service, ServiceStatus, TrafficTarget,
    keys,
};

use super::route::HOST_CONFLICT;
use super::{Inputs, Write, Writes, controlled_by, inherited, is_owned};
use crate::conditions::{Conditions, Verdict};
use crate::snapshot::{Key, Kind, Object};

pub(super) fn reconcile(service: &Arc<Service>, inputs: &Inputs<'_>, writes: &mut Writes) {
    let key = Key::of(&service.metadata);
    let configuration = inputs.snapshot.configurations.get(&key);
    let route = inputs.snapshot.routes.get(&key);
    if let Some(write) = configuration_write(service, configuration) {
        writes.push(write);
    }
    if let Some(write) = route_write(service, route) {
        writes.push(write);
    }
    let status = status(service, configuration, route, inputs);
    if status != service.status {
        let mut changed = Service::clone(service);
        changed.status = status;
        writes.push(Write::Update(Object::Service(Arc::new(changed))));
    }
}

fn configuration_write(service: &Service, existing: Option<&Arc<Configuration>>) -> Option<Write> {
    let spec = ConfigurationSpec { template: service.spec.template.clone() };
    match existing {
        None => {
            let mut wanted = Configuration::new(child_metadata(service), spec);
            inherit_configuration(&mut wanted.metadata, service);
            Some(Write::Create(Object::Configuration(Arc::new(wanted))))
        }
        Some(found) if is_owned(&found.metadata, &service.metadata) => {
            let mut wanted = Configuration::clone(found);
            inherit_configuration(&mut wanted.metadata, service);
            wanted.spec = spec;
            (wanted != **found).then(|| Write::Update(Object::Configuration(Arc::new(wanted))))
        }
        Some(_) => None,
    }
}

fn route_write(service: &Service, existing: Option<&Arc<Route>>) -> Option<Write> {
    let traffic = service.spec.traffic.iter().map(|target| {
        let mut target = target.clone();
        if target.revision_name.is_empty() {
            target.configuration_name.clone_from(&service.metadata.name);
        }
        target
    });
    let spec = RouteSpec { traffic: traffic.collect() };
    match existing {
        None => {
            let mut wanted = Route::new(child_metadata(service), spec);
            inherit(&mut wanted.metadata, service);
            Some(Write::Create(Object::Route(Arc::new(wanted))))
        }
        Some(found) if is_owned(&found.metadata, &service.metadata) => {
            let mut wanted = Route::clone(found);
            inherit(&mut wanted.metadata, service);
            wanted.spec = spec;
            (wanted != **found).then(|| Write::Update(Object::Route(Arc::new(wanted))))
        }
        Some(_) => None,
    }
}

fn child_metadata(service: &Service) -> ObjectMeta {
    ObjectMeta {
        name: service.metadata.name.clone(),
        namespace: service.metadata.namespace.clone(),
        owner_references: vec![controlled_by(Kind::Service, &service.metadata)],
        ..ObjectMeta::default()
    }
}

/// Labels and annotations are the Service's; what else stood there goes.
fn inherit(metadata: &mut ObjectMeta, service: &Service) {
    metadata.annotations = inherited(&service.metadata.annotations);
    metadata.labels = service.metadata.labels.clone();
    metadata.labels.insert(keys::SERVICE.into(), service.metadata.name.clone());
}

/// A Configuration also says what its Revisions will have to: whose they are, and which Route leads to them.
fn inherit_configuration(metadata: &mut ObjectMeta, service: &Service) {
    inherit(metadata, service);
    metadata.labels.insert(keys::SERVICE_UID.into(), service.metadata.uid.clone());
    metadata.annotations.insert(keys::ROUTES.into(), service.metadata.name.clone());
}

fn status(
    service: &Service,
    configuration: Option<&Arc<Configuration>>,
    route: Option<&Arc<Route>>,
    inputs: &Inputs<'_>,
) -> ServiceStatus {
    let name = &service.metadata.name;
    let not_owned = |kind: &str| {
        Verdict::bad("NotOwned", format!("There is an existing {kind} \"{name}\" that we do not own."))
    };
    let configured = match configuration {
        None => Verdict::unknown("", ""),
        Some(found) if !is_owned(&found.metadata, &service.metadata) => not_owned("Configuration"),
        Some(found)
            if found.spec.template != service.spec.template
                || is_behind(found.status.observed_generation, &found.metadata) =>
        {
            let message = "The Configuration is still working to reflect the latest desired specification.";
            Verdict::unknown("OutOfDate", message)
        }
        Some(found) => Verdict::of(&found.status.conditions, "Ready"),
    };
    let routed = match route {
        None => Verdict::unknown("", ""),
        Some(found) if !is_owned(&found.metadata, &service.metadata) => not_owned("Route"),
        Some(found) if is_behind(found.status.observed_generation, &found.metadata) => {
            let message = "The Route is still working to reflect the latest desired specification.";
            Verdict::unknown("OutOfDate", message)
        }
        Some(found) => match Verdict::of(&found.status.conditions, "Ready") {
            // It is of the Revision that the next one is about to replace.
            verdict if verdict.is_bad() && is_undone(&found.status) && is_under_way(&configured) => {
                Verdict::unknown("TrafficNotMigrated", "A newer revision is on its way.")
            }
            verdict if verdict.is_good() && !is_migrated(&found.status.traffic, configuration) => {
                Verdict::unknown("TrafficNotMigrated", "Traffic is not yet migrated to the latest revision.")
            }
            verdict => verdict,
        },
    };
    let before = &service.status;
    let conditions = Conditions::new(&before.conditions, inputs.now)
        .set("ConfigurationsReady", &configured)
        .set("RoutesReady", &routed)
        .set("Ready", &Verdict::all(&[&configured, &routed]))
        .build();
    let (created, ready) = configuration.map_or((String::new(), String::new()), |found| {
        (found.status.latest_created_revision_name.clone(), found.status.latest_ready_revision_name.clone())
    });
    ServiceStatus {
        address: route.and_then(|found| found.status.address.clone()),
        conditions,
        latest_created_revision_name: created,
        latest_ready_revision_name: ready,
        observed_generation: service.metadata.generation,
        traffic: route.map_or(Vec::new(), |found| found.status.traffic.clone()),
        url: route.map_or(String::new(), |found| found.status.url.clone()),
    }
}

/// Whether nodes went back to a former Revision, and nothing else is wrong with a Route.
fn is_undone(status: &RouteStatus) -> bool {
    let ingress = Verdict::of(&status.conditions, "IngressReady");
    ingress.is_bad() && ingress.reason != HOST_CONFLICT
}

fn is_under_way(configured: &Verdict) -> bool {
    !configured.is_good() && !configured.is_bad()
}

fn is_behind(observed: i64, metadata: &ObjectMeta) -> bool {
    observed != metadata.generation
}

/// Whether every share of the latest Revision is on the one that is ready now.
fn is_migrated(traffic: &[TrafficTarget], configuration: Option<&Arc<Configuration>>) -> bool {
    let Some(configuration) = configuration else { return true };
    let ready = &configuration.status.latest_ready_revision_name;
    traffic
        .iter()
        .filter(|target| target.latest_revision == Some(true))
        .all(|target| target.revision_name == *ready)
}
