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
        verification: None,
    }
}

fn image() -> ImageDefaults {
    ImageDefaults {
        entrypoint: vec!["/app".into()],
        cmd: vec!["serve".into()],
        env: vec!["A=image".into(), "B=image".into()],
        accounts: [
            (0, Account { gid: 0, home: "/root".into() }),
            (101, Account { gid: 102, home: "/srv/web".into() }),
        ]
        .into(),
        ..ImageDefaults::default()
    }
}

fn made(container: Container) -> Result<Value, BundleError> {
    made_of(container, &image())
}

fn made_of(container: Container, image: &ImageDefaults) -> Result<Value, BundleError> {
    let object = object(container);
    let files = HostFiles { resolv_conf: "/run/t/resolv.conf".into(), hosts: "/run/t/hosts".into() };
    config(&InstanceId("hello-1".into()), &object, image, &Limits::of(&object), &files)
}

fn variable(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.into(), value: value.into(), ..EnvVar::default() }
}

fn as_user(security: SecurityContext) -> Container {
    Container { security_context: Some(security), ..Container::default() }
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

#[test]
fn references_reach_variables_before_them_and_arguments_reach_all() {
    let container = Container {
        env: vec![
            variable("LATER", "$(HOST)"),
            variable("HOST", "db"),
            variable("URL", "tcp://$(HOST)/$$(HOST)"),
            variable("OF_IMAGE", "$(A)"),
            variable("OF_CONTRACT", "$(PORT)"),
        ],
        command: vec!["/$(HOST)".into()],
        args: vec!["$(URL)".into(), "$(PORT)".into(), "$(K_SERVICE)".into(), "$(A)".into()],
        ..Container::default()
    };
    let process = made(container).unwrap()["process"].clone();
    let env = texts(&process["env"]);
    for expected in
        ["LATER=$(HOST)", "URL=tcp://db/$(HOST)", "OF_IMAGE=$(A)", "OF_CONTRACT=$(PORT)", "A=image"]
    {
        assert!(env.contains(&expected.to_owned()), "{expected} in {env:?}");
    }
    assert_eq!(texts(&process["args"]), ["/db", "tcp://db/$(HOST)", "8080", "hello", "$(A)"]);
}

#[test]
fn the_images_own_words_are_not_expanded() {
    let image = ImageDefaults { cmd: vec!["$(PORT)".into()], ..image() };
    assert_eq!(
        texts(&made_of(Container::default(), &image).unwrap()["process"]["args"]),
        ["/app", "$(PORT)"]
    );
}

#[test]
fn home_and_hostname_are_set_unless_somebody_did() {
    let env = |container, image: &ImageDefaults| texts(&made_of(container, image).unwrap()["process"]["env"]);
    let has = |env: &[String], expected: &str| {
        assert!(env.contains(&expected.to_owned()), "{expected} in {env:?}");
    };
    let user = |uid| as_user(SecurityContext { run_as_user: Some(uid), ..SecurityContext::default() });
    let plain = env(Container::default(), &image());
    has(&plain, "HOSTNAME=hello-1");
    has(&plain, "HOME=/root");
    has(&env(user(101), &image()), "HOME=/srv/web");
    has(&env(user(1000), &image()), "HOME=/");
    let mut chosen = image();
    chosen.env.push("HOME=/image".into());
    has(&env(Container::default(), &chosen), "HOME=/image");
    let container =
        Container { env: vec![variable("HOME", "/mine"), variable("HOSTNAME", "x")], ..Container::default() };
    let mine = env(container, &chosen);
    has(&mine, "HOME=/mine");
    has(&mine, "HOSTNAME=x");
}

#[test]
fn a_chosen_user_brings_its_own_group() {
    let ids = |security| {
        let user = made(as_user(security)).unwrap()["process"]["user"].clone();
        (user["uid"].as_u64().unwrap(), user["gid"].as_u64().unwrap())
    };
    let chosen =
        |uid, gid| SecurityContext { run_as_user: uid, run_as_group: gid, ..SecurityContext::default() };
    assert_eq!(ids(chosen(None, None)), (0, 0));
    assert_eq!(ids(chosen(Some(101), None)), (101, 102));
    assert_eq!(ids(chosen(Some(1000), None)), (1000, 0));
    assert_eq!(ids(chosen(Some(101), Some(7))), (101, 7));
    assert_eq!(ids(chosen(None, Some(7))), (0, 7));
}

#[test]
fn the_working_directory_is_absolute() {
    let cwd = |dir: &str| {
        made(Container { working_dir: dir.into(), ..Container::default() }).unwrap()["process"]["cwd"].clone()
    };
    assert_eq!(cwd(""), "/");
    assert_eq!(cwd("/srv"), "/srv");
    assert_eq!(cwd("srv/x"), "/srv/x");
}

#[test]
fn every_user_may_write_where_the_contract_says_so() {
    let read_only = SecurityContext { read_only_root_filesystem: Some(true), ..SecurityContext::default() };
    let config = made(as_user(read_only)).unwrap();
    assert_eq!(config["root"]["readonly"], true);
    for path in ["/tmp", "/var/log"] {
        let mounts = config["mounts"].as_array().unwrap();
        let mount = mounts.iter().find(|mount| mount["destination"] == path).unwrap();
        assert_eq!(mount["type"], "tmpfs");
        let options = texts(&mount["options"]);
        assert!(options.contains(&"mode=1777".to_owned()), "{options:?}");
        assert!(options.iter().all(|option| option != "ro"), "{options:?}");
    }
}
