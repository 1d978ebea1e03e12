//! The specification against the runtime contract, and against what the runtime itself can read.

use tombolo_api::serving::{Capabilities, EnvVar, RevisionSpec};

use super::*;

fn object(container: Container) -> RevisionObject {
    RevisionObject {
        namespace: "default".into(),
        name: "hello-00001".into(),
        uid: "u".into(),
        service: "hello".into(),
        configuration: "hello".into(),
        annotations: BTreeMap::new(),
        spec: RevisionSpec { containers: vec![container], ..RevisionSpec::default() },
    }
}

fn image() -> ImageDefaults {
    ImageDefaults {
        entrypoint: vec!["/app".into()],
        cmd: vec!["serve".into()],
        env: vec!["A=image".into(), "B=image".into()],
        ..ImageDefaults::default()
    }
}

fn made(container: Container) -> Result<Value, BundleError> {
    let object = object(container);
    let files = HostFiles { resolv_conf: "/run/t/resolv.conf".into(), hosts: "/run/t/hosts".into() };
    config(&InstanceId("hello-1".into()), &object, &image(), &Limits::of(&object), &files)
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_runtime_reads_it() {
    let config = made(Container::default()).unwrap();
    let spec: oci_spec::runtime::Spec = serde_json::from_value(config).unwrap();
    assert_eq!(spec.process().as_ref().unwrap().args().as_ref().unwrap(), &["/app", "serve"]);
    assert_eq!(spec.process().as_ref().unwrap().no_new_privileges(), Some(true));
}

#[test]
fn command_and_args_replace_as_in_kubernetes() {
    let args = |command: &[&str], args: &[&str]| {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        texts(
            &made(Container { command: owned(command), args: owned(args), ..Container::default() }).unwrap()
                ["process"]["args"],
        )
    };
    assert_eq!(args(&[], &[]), ["/app", "serve"]);
    assert_eq!(args(&[], &["x"]), ["/app", "x"]);
    assert_eq!(args(&["/b"], &[]), ["/b"]);
    assert_eq!(args(&["/b"], &["x"]), ["/b", "x"]);
}

#[test]
fn the_contracts_variables_win() {
    let variable =
        |name: &str, value: &str| EnvVar { name: name.into(), value: value.into(), ..EnvVar::default() };
    let container =
        Container { env: vec![variable("B", "revision"), variable("PORT", "1")], ..Container::default() };
    let env = texts(&made(container).unwrap()["process"]["env"]);
    for expected in [
        "A=image",
        "B=revision",
        "PORT=8080",
        "K_SERVICE=hello",
        "K_CONFIGURATION=hello",
        "K_REVISION=hello-00001",
    ] {
        assert!(env.contains(&expected.to_owned()), "{expected} in {env:?}");
    }
    assert_eq!(env.iter().filter(|pair| pair.starts_with("PORT=")).count(), 1);
}

#[test]
fn root_keeps_a_few_capabilities_and_others_none() {
    let keeps = |security: SecurityContext| {
        texts(
            &made(Container { security_context: Some(security), ..Container::default() }).unwrap()["process"]
                ["capabilities"]["bounding"],
        )
    };
    let drops = |names: &[&str]| SecurityContext {
        capabilities: Some(Capabilities {
            drop: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Capabilities::default()
        }),
        ..SecurityContext::default()
    };
    assert!(keeps(SecurityContext::default()).contains(&"CAP_CHOWN".to_owned()));
    assert!(!keeps(drops(&["chown"])).contains(&"CAP_CHOWN".to_owned()));
    assert!(keeps(drops(&["ALL"])).is_empty());
    assert!(keeps(SecurityContext { run_as_user: Some(1000), ..SecurityContext::default() }).is_empty());
}

#[test]
fn what_does_not_fit_is_refused() {
    let non_root = SecurityContext { run_as_non_root: Some(true), ..SecurityContext::default() };
    let refused = made(Container { security_context: Some(non_root), ..Container::default() });
    assert_eq!(refused.unwrap_err(), BundleError::RunsAsRoot);
    let empty = Container { command: vec![String::new()], ..Container::default() };
    assert_eq!(made(empty).unwrap_err(), BundleError::NoProgram);
}
